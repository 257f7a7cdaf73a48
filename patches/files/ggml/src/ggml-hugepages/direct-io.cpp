#ifdef __linux__

#include "direct-io.h"
#include "manifest.h"
#include "syscalls.h"

#include <algorithm>
#include <string>

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

ggml_hugepages_source::ggml_hugepages_source(const ggml_hugepages_image * image) : image(image) {
    const std::string path = "/proc/self/fd/" + std::to_string(image->fd);
    direct_fd   = ggml_hugepages_is_killing(SYS_openat, O_RDONLY | O_CLOEXEC | O_DIRECT) ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
    buffered_fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (buffered_fd == -1) {
        buffered_fd = fcntl(image->fd, F_DUPFD_CLOEXEC, 0); // without /proc
    }
    if (direct_fd != -1 && !ggml_hugepages_is_killing(SYS_fadvise64)) {
        // a file system that still uses the cache must not read ahead
        posix_fadvise(direct_fd, 0, 0, POSIX_FADV_RANDOM);
    }
#ifdef STATX_DIOALIGN
    struct statx st = {};
    if (direct_fd != -1 && ggml_hugepages_call(SYS_statx, direct_fd, (long) "", AT_EMPTY_PATH, STATX_DIOALIGN, (long) &st) == 0 &&
            (st.stx_mask & STATX_DIOALIGN)) {
        // statx(2): zero if the file does not support direct I/O
        if (st.stx_dio_offset_align == 0 || st.stx_dio_mem_align == 0) {
            effect_of_direct = BUFFERED;
        }
        says_direct = effect_of_direct != BUFFERED;
        alignment = std::max<size_t>(alignment, std::max(st.stx_dio_offset_align, st.stx_dio_mem_align));
    }
    if (direct_fd != -1 && alignment > GGML_HUGEPAGES_GUARD_SIZE) {
        close(direct_fd);
        direct_fd = -1;
        alignment = GGML_HUGEPAGES_DIRECT_ALIGNMENT;
    }
#endif
}

ggml_hugepages_source::~ggml_hugepages_source() {
    for (const int fd : { direct_fd, buffered_fd }) {
        if (fd != -1) {
            close(fd);
        }
    }
}

size_t ggml_hugepages_source::bytes_through_cache(size_t first, size_t last, ggml_hugepages_cached before, size_t n_before) {
    if (before == GGML_HUGEPAGES_CACHED_UNKNOWN) {
        effect_of_direct = says_direct ? DIRECT : NOT_TO_BE_SEEN;
    } else if (cache.way != ggml_hugepages_page_cache::BY_TRYING || effect_of_direct == UNTRIED) {
        size_t n_now = 0;
        if (!cache.count(first, last, &n_now)) {
            effect_of_direct = NOT_TO_BE_SEEN;
            return 0;
        }
        const size_t n_new = n_now - std::min(n_now, n_before);
        const size_t n_missing = last - first - std::min(last - first, n_before);
        effect_of_direct = cache.way == ggml_hugepages_page_cache::BY_TRYING && n_new > n_missing/2 ? BUFFERED : DIRECT;
        return n_new;
    }
    return 0;
}

#endif // __linux__
