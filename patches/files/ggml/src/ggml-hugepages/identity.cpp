// The identity of a model file: what must be equal before a process uses an image of the file.

#ifdef __linux__

#include "identity.h"
#include "direct-io.h"
#include "file.h"
#include "image.h"
#include "manifest.h"
#include "ranges.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <memory>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

bool ggml_hugepages_sample(int fd, size_t file_size, uint64_t * hash) {
    static const size_t N    = 64;
    static const size_t SIZE = GGML_HUGEPAGES_GUARD_SIZE; // any logical block size divides it
    ggml_hugepages_image image;
    image.fd   = fd;
    image.size = file_size;
    const ggml_hugepages_source source(&image);
    const std::unique_ptr<void, void (*)(void *)> block(ggml_aligned_malloc(SIZE), [](void * ptr) { ggml_aligned_free(ptr, SIZE); });
    *hash = 1;
    for (size_t i = 0; i < N; i++) {
        const size_t at = ggml_hugepages_align_down(file_size/N*i, SIZE);
        const size_t n  = std::min(SIZE, file_size - at);
        // past the page cache where possible, because a load leaves none of the file there
        const bool ok = (source.direct_fd != -1 && pread(source.direct_fd, block.get(), SIZE, (off_t) at) >= (ssize_t) n) ||
            ggml_hugepages_read_all(fd, block.get(), n, (off_t) at);
        if (!ok) {
            return false;
        }
        *hash = *hash*31 + ggml_hugepages_checksum(block.get(), n);
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
    uint64_t content;
    if (!ggml_hugepages_sample(fd, st.st_size, &content)) {
        return false;
    }
    return snprintf(buf, size, "file %ju:%ju %jd bytes, modified %jd.%09ld, header %016" PRIx64 ", content %016" PRIx64, (uintmax_t) st.st_dev,
        (uintmax_t) st.st_ino, (intmax_t) st.st_size, (intmax_t) st.st_mtim.tv_sec, (long) st.st_mtim.tv_nsec, hash, content) < (int) size;
} catch (...) {
    return false;
}

#endif // __linux__
