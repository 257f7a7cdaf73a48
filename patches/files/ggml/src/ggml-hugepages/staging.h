#pragma once

#include <cstddef>

#include <sys/mman.h>

// Memory for a piece. Later pieces reuse it, because its first touch costs as much as the copy from it.
struct ggml_hugepages_staging {
    void * addr = MAP_FAILED;
    size_t size = 0;

    ggml_hugepages_staging() = default;
    ggml_hugepages_staging(const ggml_hugepages_staging &) = delete;
    ~ggml_hugepages_staging() { release(); }

    bool reserve(size_t wanted) {
        if (wanted > size) {
            release();
            addr = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            size = addr == MAP_FAILED ? 0 : wanted;
        }
        return addr != MAP_FAILED;
    }

    void release() {
        if (addr != MAP_FAILED) {
            munmap(addr, size);
            addr = MAP_FAILED;
            size = 0;
        }
    }
};
