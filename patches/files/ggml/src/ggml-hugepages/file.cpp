// Facts about an open file: its path, its pages and its identity.

#ifdef __linux__

#include "file.h"
#include "ggml-hugepages.h"
#include "manifest.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <vector>

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

bool ggml_hugepages_file_identity(int fd, size_t header_size, char * buf, size_t size) noexcept try {
    struct stat st = {};
    if (fstat(fd, &st) != 0) {
        return false;
    }
    std::vector<char> data(std::min<size_t>(1024*1024, header_size));
    uint64_t hash = 1;
    for (size_t at = 0; at < header_size; at += data.size()) {
        const size_t n = std::min(data.size(), header_size - at);
        if (!ggml_hugepages_read_all(fd, data.data(), n, at)) {
            return false;
        }
        hash = hash*31 + ggml_hugepages_checksum(data.data(), n);
    }
    return snprintf(buf, size, "file %ju:%ju %jd bytes, modified %jd.%09ld, header %016" PRIx64, (uintmax_t) st.st_dev, (uintmax_t) st.st_ino,
        (intmax_t) st.st_size, (intmax_t) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec, hash) < (int) size;
} catch (...) {
    return false;
}

#endif // __linux__
