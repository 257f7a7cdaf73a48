#ifdef __linux__

#include "verify.h"
#include "error.h"
#include "file.h"
#include "threads.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <vector>

bool ggml_hugepages_each_checksum(int fd, const ggml_hugepages_geometry & g, const std::function<bool(uint64_t, uint64_t)> & f) {
    uint64_t sums[512];
    const uint64_t n_at_once = sizeof(sums)/sizeof(sums[0]);
    for (uint64_t i = 0; i < g.n_segments; i += n_at_once) {
        const uint64_t n = std::min(n_at_once, g.n_segments - i);
        if (!ggml_hugepages_read_all(fd, sums, n*sizeof(sums[0]), (off_t) (g.sums_at + i*sizeof(sums[0])))) {
            return false;
        }
        for (uint64_t k = 0; k < n; k++) {
            if (!f(i + k, sums[k])) {
                return true;
            }
        }
    }
    return true;
}

bool ggml_hugepages_verify(
        int                              fd,
        const ggml_hugepages_geometry  & g,
        size_t                           size,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_error           * error) {
    std::atomic<uint64_t> next{0};
    std::atomic<uint64_t> done{0};
    std::atomic<uint64_t> wrong{UINT64_MAX};
    std::atomic<bool>     stop{false};
    const auto work = [&] {
        std::vector<char> data(g.segment);
        for (uint64_t i = next++; i < g.n_segments && !stop; i = next++) {
            const uint64_t at = i*g.segment;
            const uint64_t n  = std::min<uint64_t>(g.segment, size - at);
            uint64_t sum = 0;
            bool ok = ggml_hugepages_read_all(fd, &sum, sizeof(sum), (off_t) (g.sums_at + i*sizeof(sum)));
            if (ok && sum != 0) {
                ok = ggml_hugepages_read_all(fd, data.data(), n, (off_t) at) && ggml_hugepages_checksum(data.data(), n) == sum;
            }
            if (!ok) {
                uint64_t before = wrong;
                while (i < before && !wrong.compare_exchange_weak(before, i)) {}
                stop = true;
            }
            done += n;
        }
    };
    bool cancelled = false;
    ggml_hugepages_on_threads(n_threads, work, [&] {
        if (callback && !callback(done, size, user_data)) {
            cancelled = stop = true;
        }
    });
    if (wrong != UINT64_MAX) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "checksum mismatch at offset %" PRIu64 "", wrong*g.segment);
    }
    return cancelled ? ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "cancelled") : true;
}

#endif // __linux__
