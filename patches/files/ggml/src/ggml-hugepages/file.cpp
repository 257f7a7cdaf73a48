// Facts about an open file: its path and its pages.

#ifdef __linux__

#include "file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>

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

std::string ggml_hugepages_path_of(int fd, const char * name) {
    std::error_code ec;
    const auto absolute = name ? std::filesystem::absolute(name, ec).lexically_normal().native() : "";
    struct stat named = {}, opened = {};
    // a link in the middle of x/../y leads elsewhere, and a file may have been replaced since it was opened
    const bool is_same = !absolute.empty() && stat(absolute.c_str(), &named) == 0 && fstat(fd, &opened) == 0 &&
        named.st_dev == opened.st_dev && named.st_ino == opened.st_ino;
    // /proc/self/fd/3 is a name of this process only
    const bool is_lasting = absolute.compare(0, 6, "/proc/") != 0 && absolute.compare(0, 5, "/dev/") != 0;
    return is_same && is_lasting ? absolute : ggml_hugepages_path_of(fd);
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
