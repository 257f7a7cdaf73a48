// The kernel's view of the images and buffers: smaps for the backing, numa_maps for the nodes.

#ifdef __linux__

#include "image.h"
#include "kernel.h"
#include "placement.h"
#include "ranges.h"
#include "registry.h"
#include "vmas.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>

#include <unistd.h>

static ggml_hugepages_usage * usage_of(ggml_hugepages_report * report, ggml_hugepages_kind kind, ggml_hugepages_backing backing, size_t page_size) {
    for (uint32_t i = 0; i < report->n_usages; i++) {
        auto & u = report->usages[i];
        if (u.kind == kind && u.backing == backing && u.page_size == page_size) {
            return &u;
        }
    }
    if (report->n_usages == sizeof(report->usages)/sizeof(report->usages[0])) {
        return nullptr;
    }
    auto & u = report->usages[report->n_usages++];
    u = {};
    u.kind      = kind;
    u.backing   = backing;
    u.page_size = page_size;
    return &u;
}

// the pages of a mapping under [first, last) that are not counted yet
static uint64_t count_new(const ggml_hugepages_vma & vma, size_t first, size_t last, std::set<size_t> & counted) {
    uint64_t n = 0;
    for (size_t page = ggml_hugepages_align_down(std::max(vma.first, first), vma.page_size); page < std::min(vma.last, last); page += vma.page_size) {
        n += counted.insert(page).second;
    }
    return n;
}

bool ggml_hugepages_get_report(uint32_t model_id, ggml_hugepages_report * report) noexcept try {
    *report = {};
    report->load = ggml_hugepages_last_load(model_id);

    const auto vmas = ggml_hugepages_vmas(&report->n_nodes);
    if (vmas.empty()) {
        return false;
    }
    const size_t base_page = sysconf(_SC_PAGESIZE);
    bool thp_enabled = false;
    const size_t thp_size = ggml_hugepages_thp_size("", &thp_enabled);

    auto images = ggml_hugepages_alive(model_id);
    std::sort(images.begin(), images.end(), [](const auto & a, const auto & b) { return a.addr < b.addr; });
    std::set<size_t> counted; // pages of shared ranges: each counts for the first buffer on it
    for (const auto & image : images) {
        report->late += image.late;
        const size_t addr = (size_t) image.addr;
        auto it = std::lower_bound(vmas.begin(), vmas.end(), addr, [](const ggml_hugepages_vma & v, size_t x) { return v.last <= x; });
        for (; it != vmas.end() && it->first < addr + image.length; ++it) {
            const size_t bytes = ggml_hugepages_overlap(image.wanted, std::max(it->first, addr) - addr, it->last - addr);
            if (bytes == 0) {
                continue; // this part was unmapped, and another mapping may be there now
            }
            // a mapping of blocks belongs to one image, a mapping of ordinary memory may contain other memory
            const bool is_ours = !image.is_shared && it->first >= addr && it->last <= addr + image.length;
            const uint64_t pages = it->page_size > base_page ? it->hugetlb/it->page_size : 0;
            const uint64_t own   = pages > 0 && image.is_shared ? count_new(*it, addr, addr + image.length, counted) : pages;
            const auto add = [&](ggml_hugepages_backing backing, size_t page_size, uint64_t n, uint64_t pages, bool with_nodes) {
                auto * u = n > 0 ? usage_of(report, image.kind, backing, page_size) : nullptr;
                if (u) {
                    u->bytes += n;
                    u->pages += pages;
                    for (size_t node = 0; node < 8 && with_nodes && is_ours; node++) {
                        u->node_bytes[node] += it->node_bytes[node];
                    }
                    for (size_t node = 0; node < 8 && with_nodes && image.is_shared && pages > 0; node++) {
                        // the kernel reports the nodes of the whole mapping
                        u->node_bytes[node] += it->node_bytes[node]*own/pages;
                    }
                }
            };
            if (it->page_size > base_page) {
                add(GGML_HUGEPAGES_BACKING_HUGE, it->page_size, bytes, own, true);
            } else if (it->is_file) {
                add(GGML_HUGEPAGES_BACKING_FILE, 0, bytes, 0, bytes > 0);
            } else {
                // smaps reports how many bytes of a mapping are THP, but not which. So the other bytes count against the tensors first.
                const size_t base = (it->last - it->first) - std::min(it->last - it->first, it->anon_huge);
                const size_t thp  = bytes - std::min(bytes, base);
                add(GGML_HUGEPAGES_BACKING_THP,  thp_size, thp, thp_size && is_ours ? it->anon_huge/thp_size : 0, thp > 0);
                add(GGML_HUGEPAGES_BACKING_BASE, 0, bytes - thp, 0, thp == 0);
            }
        }
    }
    for (const auto & image : images) {
        for (const auto & run : image.runs) {
            uint64_t local  = 0;
            uint64_t remote = 0;
            ggml_hugepages_add_locality(image, run, &local, &remote);
            auto * u = local + remote > 0 ? usage_of(report, image.kind, image.is_thp() ? GGML_HUGEPAGES_BACKING_THP : GGML_HUGEPAGES_BACKING_HUGE, run.page_size) : nullptr;
            if (u) {
                u->local_bytes  += local;
                u->remote_bytes += remote;
            }
        }
    }
    std::sort(report->usages, report->usages + report->n_usages, [](const auto & a, const auto & b) {
        return a.kind != b.kind ? a.kind < b.kind : a.backing != b.backing ? a.backing < b.backing : a.page_size > b.page_size;
    });
    return true;
} catch (...) {
    *report = {};
    return false;
}

#endif // __linux__
