// Mappings.
//
// An image is one mapping of its file. Its blocks are ranges of hugetlb memfds or of a file in a store, mapped over the file at the same offsets.
// A buffer is an image without a file: it has ordinary anonymous memory instead of the file mapping.

#ifdef __linux__

#include "map.h"
#include "error.h"
#include "held-pages.h"
#include "kernel.h"
#include "placement.h"
#include "shortage.h"
#include "store-file.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d61
#define PR_SET_VMA_ANON_NAME 0
#endif

static std::string mapping_name(const ggml_hugepages_image & image) {
    return std::string("llama-") + (image.is_shared ? "buffers" : ggml_hugepages_kind_name(image.kind));
}

// shown in /proc/PID/maps as [anon:NAME]; the kernel does not merge it with neighbours of another name
static void set_name(const ggml_hugepages_image & image, void * addr, size_t size) {
    const std::string name = mapping_name(image);
    ggml_hugepages_call(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, (long) addr, (long) size, (long) name.c_str());
}

// An empty address range of `length` bytes that starts at a multiple of `alignment`.
static uint8_t * reserve_range(size_t length, size_t alignment) {
    auto * addr = (uint8_t *) mmap(nullptr, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addr == MAP_FAILED) {
        return nullptr;
    }
    auto * base = (uint8_t *) ggml_hugepages_align_up((size_t) addr, alignment);
    if (base > addr) {
        munmap(addr, base - addr);
    }
    munmap(base + length, addr + alignment - base);
    return base;
}

// maps [first, last) without huge pages: the file up to its end, or ordinary memory
static bool map_ordinary(ggml_hugepages_image & image, size_t first, size_t last, ggml_hugepages_error * error) {
    const bool has_file = image.fd != -1;
    // The placeholder first, then the file: the file may end inside a block, and a huge mapping can only be cut at its page borders.
    if (mmap(image.addr + first, last - first, has_file ? PROT_NONE : PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (has_file ? MAP_NORESERVE : 0), -1, 0) == MAP_FAILED) {
        return ggml_hugepages_fail_ordinary(error, image, last - first);
    }
    if (has_file) {
        last = std::min(last, image.size);
        void * addr = image.addr + first;
        if (first < last && mmap(addr, last - first, PROT_READ, MAP_SHARED | MAP_FIXED, image.fd, first) == MAP_FAILED &&
                // FUSE with direct I/O has only private mappings
                (errno != ENODEV || mmap(addr, last - first, PROT_READ, MAP_PRIVATE | MAP_FIXED, image.fd, first) == MAP_FAILED)) {
            return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mmap failed", image.path);
        }
    } else {
        set_name(image, image.addr + first, last - first);
    }
    return true;
}

bool ggml_hugepages_map_image(ggml_hugepages_image & image, ggml_hugepages_error * error) {
    const size_t alignment = ggml_hugepages_image_granularity(&image);
    image.length = ggml_hugepages_align_up(image.size, alignment);
    for (const auto & r : image.runs) {
        image.length = std::max(image.length, r.last);
    }
    image.addr = reserve_range(image.length, alignment);
    if (!image.addr) {
        ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no address space", image.path);
        ggml_hugepages_hint_address_space(error, image.length);
        return false;
    }
    // The gaps of a buffer get ordinary memory later, when its runs are final: with vm.overcommit_memory=2 the kernel charges memory when
    // it is mapped, not when it is touched.
    if (image.fd != -1 && !map_ordinary(image, 0, image.length, error)) {
        munmap(image.addr, image.length);
        image.addr = nullptr;
        return false;
    }
    return true;
}

bool ggml_hugepages_map_gaps(ggml_hugepages_image & buffer, ggml_hugepages_error * error) {
    ggml_hugepages_ranges runs;
    for (const auto & r : buffer.runs) {
        runs.emplace_back(r.first, r.last);
    }
    for (const auto & gap : ggml_hugepages_minus({ { 0, buffer.length } }, ggml_hugepages_normalized(runs))) {
        if (!map_ordinary(buffer, gap.first, gap.second, error)) {
            return false;
        }
    }
    return true;
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t image, ggml_hugepages_error * error) {
    return ggml_hugepages_map_image(*image, error) ? image->addr : nullptr;
}

int ggml_hugepages_memfd_of(ggml_hugepages_image & image, size_t page_size) {
    const auto it = image.memfds.find(page_size);
    if (it != image.memfds.end()) {
        return it->second;
    }
    int fd = ggml_hugepages_memfd(mapping_name(image).c_str(), page_size);
    if (fd != -1 && !ggml_hugepages_resize(fd, ggml_hugepages_align_up(image.size, page_size))) {
        const int err = errno;
        close(fd);
        errno = err;
        fd = -1;
    }
    if (fd != -1) {
        image.memfds[page_size] = fd;
    }
    return fd;
}

// the file of a run, and the offset of its first block in this file
static std::pair<int, size_t> file_of(ggml_hugepages_image & image, const ggml_hugepages_run & run) {
    switch (run.owner) {
        case GGML_HUGEPAGES_OWNER_PROCESS:  return { ggml_hugepages_memfd_of(image, run.page_size), run.first };
        case GGML_HUGEPAGES_OWNER_HELD:     return { ggml_hugepages_held_fd(*run.held), run.held_at };
        case GGML_HUGEPAGES_OWNER_FILLING:
        case GGML_HUGEPAGES_OWNER_ATTACHED: break;
    }
    return { image.resident->fd, run.first };
}

// Sets the nodes of a range, unless the threads that populate its pages choose them. Call it before the pages are populated, because it
// moves no page.
static void place_on_nodes(const ggml_hugepages_image & image, void * addr, size_t size) {
    // linux/mempolicy.h, which some libcs lack
    const int MPOL_BIND       = 2;
    const int MPOL_INTERLEAVE = 3;

    std::vector<int> nodes;
    const bool is_interleaved = image.params.placement == GGML_HUGEPAGES_PLACEMENT_INTERLEAVE || image.params.placement == GGML_HUGEPAGES_PLACEMENT_ROWS;
    if (ggml_hugepages_is_placed(image)) {
        return;
    }
    if (is_interleaved) {
        nodes = ggml_hugepages_all_nodes("");
    } else if (image.params.placement != GGML_HUGEPAGES_PLACEMENT_DEFAULT) {
        nodes = ggml_hugepages_placement_nodes("", image.params.placement);
    }
    if (nodes.empty()) {
        return;
    }
    unsigned long mask[16] = {};
    const size_t bits = 8*sizeof(mask[0]);
    for (const int node : nodes) {
        if ((size_t) node < 16*bits) {
            mask[node/bits] |= 1ul << (node % bits);
        }
    }
    const int mode = is_interleaved ? MPOL_INTERLEAVE : MPOL_BIND;
    if (ggml_hugepages_call(SYS_mbind, (long) addr, (long) size, mode, (long) mask, 16*bits, 0) != 0) {
        // the default seccomp profiles of containers forbid mbind
        GGML_LOG_WARN("%s: cannot choose the nodes of %s (mbind: %s), the kernel chooses them\n", __func__, image.path.c_str(), strerror(errno));
    }
}

bool ggml_hugepages_map_runs(ggml_hugepages_image & image, ggml_hugepages_error * error) {
    if (!image.runs.empty() && ggml_hugepages_is_placed(image)) {
        ggml_hugepages_deal_threads();
    }
    for (const auto & r : image.runs) {
        void * addr = image.addr + r.first;
        const size_t size = r.last - r.first;
        const bool   is_attached = r.owner == GGML_HUGEPAGES_OWNER_ATTACHED;
        const int    prot        = is_attached ? PROT_READ : PROT_READ | PROT_WRITE;
        void * ret;
        if (image.is_thp()) {
            ret = mmap(addr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        } else {
            const auto [fd, at] = file_of(image, r);
            ret = mmap(addr, size, prot, MAP_SHARED | MAP_FIXED | (r.is_in_store() ? MAP_NORESERVE : 0), fd, at);
        }
        if (ret == MAP_FAILED) {
            return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot map the huge pages", image.path);
        }
        if (image.is_thp()) {
            ggml_hugepages_advise(addr, size, MADV_HUGEPAGE);
            set_name(image, addr, size);
        }
        ggml_hugepages_advise(addr, size, MADV_DONTDUMP);
        ggml_hugepages_advise(addr, size, MADV_DONTFORK);
        if (!is_attached) {
            place_on_nodes(image, addr, size);
        }
    }
    return true;
}

bool ggml_hugepages_protect(const ggml_hugepages_image & image, ggml_hugepages_error * error) {
    for (const auto & r : image.runs) {
        if (mprotect(image.addr + r.first, r.last - r.first, PROT_READ) != 0) {
            return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mprotect failed", image.path);
        }
        // if the call is forbidden, the first touch maps the page
        if (r.is_in_store() && ggml_hugepages_advise(image.addr + r.first, r.last - r.first, MADV_POPULATE_READ) != 0 && errno != EPERM && errno != ENOSYS) {
            return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_IO, "cannot attach to the resident pages", image.path);
        }
    }
    return true;
}

bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error) {
    if (!map_ordinary(image, first, last, error)) {
        return false;
    }
    std::vector<ggml_hugepages_run> kept;
    for (const auto & r : image.runs) {
        if (r.page_size != page_size || r.last <= first || r.first >= last) {
            kept.push_back(r);
            continue;
        }
        auto head = r, tail = r, gone = r;
        head.last    = std::max(r.first, first);
        tail.first   = std::min(r.last, last);
        tail.held_at = r.held_at + (tail.first - r.first);
        gone.first   = head.last;
        gone.last    = tail.first;
        gone.held_at = r.held_at + (gone.first - r.first);
        for (const auto & part : { head, tail }) {
            if (part.first < part.last) {
                kept.push_back(part);
            }
        }
        // All attached processes share a page of a store, so only ggml_hugepages_store_file returns one.
        if (r.is_in_store()) {
            continue;
        }
        if (r.owner == GGML_HUGEPAGES_OWNER_HELD) {
            ggml_hugepages_held_refused(gone);
            continue;
        }
        const auto [fd, at] = file_of(image, gone);
        if (!ggml_hugepages_punch(fd, at, at + (gone.last - gone.first))) {
            return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "fallocate failed", image.path);
        }
    }
    image.runs = std::move(kept);
    // A hole returns pages, but not the reservation of a page that was never touched. Only a shorter file returns it, so the file is cut
    // after its last block.
    size_t end = 0;
    for (const auto & r : image.runs) {
        end = r.page_size == page_size && r.owner == GGML_HUGEPAGES_OWNER_PROCESS ? std::max(end, r.last) : end;
    }
    const auto it = image.memfds.find(page_size);
    if (it != image.memfds.end() && !ggml_hugepages_resize(it->second, end)) {
        return ggml_hugepages_fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "ftruncate failed", image.path);
    }
    return true;
}

#endif // __linux__
