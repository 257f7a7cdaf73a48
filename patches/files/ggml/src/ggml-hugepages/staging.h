#pragma once

#include "names.h"
#include "ranges.h"

#include <cstddef>
#include <cstdint>

#include <sys/mman.h>

// Memory for a piece. Later pieces reuse it, because its first touch costs as much as the copy from it. It lies on transparent huge pages
// where the kernel has them: a direct read to small pages needs a segment for each of them, and reaches half of the speed.
struct ggml_hugepages_staging {
    void * addr = MAP_FAILED;
    size_t size = 0;

    ggml_hugepages_staging() = default;
    ggml_hugepages_staging(const ggml_hugepages_staging &) = delete;
    ~ggml_hugepages_staging() { release(); }

    bool reserve(size_t wanted) {
        if (wanted > size) {
            release();
            const size_t thp  = 2*GGML_HUGEPAGES_MIB;
            const bool   huge = wanted >= thp;
            mapped = huge ? ggml_hugepages_align_up(wanted, thp) + thp : wanted;
            base   = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (base != MAP_FAILED) {
                addr = huge ? (void *) ggml_hugepages_align_up((uintptr_t) base, thp) : base;
                size = wanted;
                if (huge) {
                    madvise(addr, mapped - thp, MADV_HUGEPAGE); // may fail
                }
                // btrfs reads through the page cache to memory that has no page yet
                for (size_t at = 0; at < size; at += 4096) {
                    ((volatile uint8_t *) addr)[at] = 0;
                }
            }
        }
        return addr != MAP_FAILED;
    }

    void release() {
        if (addr != MAP_FAILED) {
            munmap(base, mapped);
            addr = MAP_FAILED;
            size = 0;
        }
    }

private:
    void * base   = MAP_FAILED;
    size_t mapped = 0;
};
