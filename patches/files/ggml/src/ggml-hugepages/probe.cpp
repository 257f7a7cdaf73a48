// Facts that only a trial shows: forbidden system calls and invisible limits.

#ifdef __linux__

#include "probe.h"
#include "error.h"
#include "image.h"
#include "names.h"
#include "pool.h"
#include "shortage.h"
#include "syscalls.h"

#include <cerrno>

#include <sys/mman.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

bool ggml_hugepages_try(const char * root, const ggml_hugepages_params & params, size_t page_size, uint64_t n_reserve, uint64_t n_populate, uint64_t need, ggml_hugepages_error * error) {
    if (root[0] != '\0') {
        return true; // a made-up machine has no pages to try
    }
    const char * call  = "memfd_create"; // the last call
    const auto   tried = [&](int fd) {
        if (fd == -1) {
            return false;
        }
        call = "ftruncate";
        if (!ggml_hugepages_resize(fd, n_reserve*page_size)) {
            return false;
        }
        call = "mmap";
        if (n_reserve > 0 && !ggml_hugepages_reserve(fd, 0, n_reserve*page_size)) {
            return false;
        }
        if (n_populate == 0) {
            call = "madvise";
            return ggml_hugepages_advise(nullptr, 0, MADV_POPULATE_WRITE) == 0;
        }
        void * addr = mmap(nullptr, n_populate*page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (addr == MAP_FAILED) {
            return false;
        }
        call = "madvise";
        const bool ok  = ggml_hugepages_populate((uint8_t *) addr, n_populate*page_size);
        const int  err = errno;
        munmap(addr, n_populate*page_size);
        errno = err;
        return ok;
    };
    const int  fd  = ggml_hugepages_memfd("llama-try", page_size);
    const bool ok  = tried(fd);
    const int  err = errno;
    if (fd != -1) {
        // a child that another thread forked meanwhile also has the mapping, and would keep the pages
        ggml_hugepages_resize(fd, 0);
        close(fd); // before fail_refused counts pages
    }
    ggml_hugepages_image nothing;
    nothing.path   = "a trial page";
    nothing.params = params;
    return ok || ggml_hugepages_fail_refused({ { page_size, need } }, nothing, { call, err, page_size, 0, false }, error);
}

bool ggml_hugepages_probe(size_t page_size, ggml_hugepages_error * error) noexcept {
    return ggml_hugepages_guard(error, [&] {
        const auto supply = ggml_hugepages_supply_read("", page_size, {});
        if (supply.pool.page_size == 0) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no pool of huge pages of %s", ggml_hugepages_size_name(page_size).c_str());
        }
        const uint64_t n = supply.usable() > 0 ? 1 : 0;
        return ggml_hugepages_try("", ggml_hugepages_default_params(), page_size, n, n, n, error);
    });
}

#endif // __linux__
