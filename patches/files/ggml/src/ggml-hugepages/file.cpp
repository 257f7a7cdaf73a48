// Facts about an open file: its path and its pages.

#ifdef __linux__

#include "file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

static const long HUGETLBFS = 0x958458f6; // linux/magic.h

std::string ggml_hugepages_path_of(int fd) {
    char path[4096];
    const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
    if (n > 0) {
        return std::string(path, n);
    }
    return "";
}

size_t ggml_hugepages_page_of(int fd) {
    struct statfs fs = {};
    return fstatfs(fd, &fs) == 0 && (long) fs.f_type == HUGETLBFS ? fs.f_bsize : 0;
}

bool ggml_hugepages_read_all(int fd, void * data, size_t size, off_t at) {
    auto * to = (char *) data;
    while (size > 0) {
        const ssize_t n = pread(fd, to, size, at);
        if (n > 0) {
            to += n; at += n; size -= n;
        } else if (n == 0 || errno != EINTR) {
            errno = n == 0 ? EIO : errno;
            return false;
        }
    }
    return true;
}

#endif // __linux__
