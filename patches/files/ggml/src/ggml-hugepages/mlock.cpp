#ifdef __linux__

#include "ranges.h"
#include "registry.h"

#include <sys/mman.h>

int ggml_hugepages_mlock(const void * addr, size_t size) noexcept try {
    for (const auto & r : ggml_hugepages_minus({ { 0, size } }, ggml_hugepages_pool_ranges(addr, size))) {
        if (mlock((const char *) addr + r.first, r.second - r.first) != 0) {
            return -1;
        }
    }
    return 0;
} catch (...) {
    return mlock(addr, size);
}

#endif // __linux__
