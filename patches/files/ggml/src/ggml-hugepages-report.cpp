// The kernel's view of the images and buffers: smaps for the backing, numa_maps for the nodes.

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <sstream>

#ifdef __linux__
#include <unistd.h>
#endif

int ggml_hugepages_backing_to_str(ggml_hugepages_backing backing, size_t page_size, char * buf, size_t size) noexcept {
    switch (backing) {
        case GGML_HUGEPAGES_BACKING_HUGE: {
            // "2 MiB" -> "2M"
            const std::string name = ggml_hugepages_size_name(page_size);
            const size_t space = name.find(' ');
            return snprintf(buf, size, "%s%c", name.substr(0, space).c_str(), name[space + 1]);
        }
        case GGML_HUGEPAGES_BACKING_THP:  return snprintf(buf, size, "thp");
        case GGML_HUGEPAGES_BACKING_BASE: return snprintf(buf, size, "base");
        case GGML_HUGEPAGES_BACKING_FILE: return snprintf(buf, size, "file");
        case GGML_HUGEPAGES_BACKING_COUNT: break;
    }
    return snprintf(buf, size, "unknown");
}

int ggml_hugepages_report_to_str(const ggml_hugepages_report * report, char * buf, size_t size) noexcept try {
    std::string text;
    char line[256];
    snprintf(line, sizeof(line), "%-10s %-6s %14s %8s", "kind", "on", "MiB", "pages");
    text += line;
    for (uint32_t node = 0; node < report->n_nodes; node++) {
        snprintf(line, sizeof(line), "     node %u MiB", node);
        text += line;
    }
    double huge  = 0.0;
    double total = 0.0;
    for (uint32_t i = 0; i < report->n_usages; i++) {
        const auto & u = report->usages[i];
        char backing[16];
        ggml_hugepages_backing_to_str(u.backing, u.page_size, backing, sizeof(backing));
        snprintf(line, sizeof(line), "\n%-10s %-6s %14.2f %8" PRIu64, ggml_hugepages_kind_name(u.kind), backing, u.bytes/1024.0/1024.0, u.pages);
        text += line;
        for (uint32_t node = 0; node < report->n_nodes; node++) {
            snprintf(line, sizeof(line), " %14.2f", u.node_bytes[node]/1024.0/1024.0);
            text += line;
        }
        total += u.bytes;
        if (u.backing == GGML_HUGEPAGES_BACKING_HUGE || u.backing == GGML_HUGEPAGES_BACKING_THP) {
            huge += u.bytes;
        }
    }
    // rounds down, so that "100" means all
    snprintf(line, sizeof(line), "\n%.2f of %.2f MiB on huge pages (%.1f %%)", huge/1024.0/1024.0, total/1024.0/1024.0,
        total > 0 ? (double) (int64_t) (1000.0*huge/total)/10.0 : 0.0);
    text += line;
    if (report->late > 0) {
        snprintf(line, sizeof(line), ", %.2f MiB of later growth in ordinary memory", report->late/1024.0/1024.0);
        text += line;
    }
    return snprintf(buf, size, "%s", text.c_str());
} catch (...) {
    return snprintf(buf, size, "out of memory");
}

void ggml_hugepages_log_report(void) {
    ggml_hugepages_report report;
    if (!ggml_hugepages_default_scope().params.enabled || !ggml_hugepages_get_report(&report)) {
        return;
    }
    char text[4096];
    ggml_hugepages_report_to_str(&report, text, sizeof(text));
    std::istringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
        GGML_LOG_INFO("hugepages: %s\n", line.c_str());
    }
}

#ifdef __linux__

namespace {

// one mapping of smaps and numa_maps
struct vma {
    size_t first;
    size_t last;
    bool   is_file        = false; // in a file system, not in a memfd
    size_t page_size      = 0;
    size_t hugetlb        = 0; // bytes
    size_t anon_huge      = 0;
    size_t rss            = 0;
    size_t node_bytes[8]  = {};
};

std::vector<vma> read_vmas(uint32_t * n_nodes) {
    std::vector<vma> result;
    FILE * file = fopen("/proc/self/smaps", "r");
    if (!file) {
        return result;
    }
    char line[8192]; // holds most paths; the rest of a longer line matches nothing
    while (fgets(line, sizeof(line), file)) {
        size_t first, last, inode, kib; // NOLINT
        if (sscanf(line, "%zx-%zx %*s %*s %*s %zu", &first, &last, &inode) == 3) {
            result.emplace_back();
            result.back().first   = first;
            result.back().last    = last;
            result.back().is_file = inode != 0;
        } else if (result.empty()) {
            continue;
        } else if (sscanf(line, "KernelPageSize: %zu kB", &kib) == 1) {
            result.back().page_size = kib*1024;
        } else if (sscanf(line, "Rss: %zu kB", &kib) == 1) {
            result.back().rss = kib*1024;
        } else if (sscanf(line, "AnonHugePages: %zu kB", &kib) == 1) {
            result.back().anon_huge = kib*1024;
        } else if (sscanf(line, "Shared_Hugetlb: %zu kB", &kib) == 1 || sscanf(line, "Private_Hugetlb: %zu kB", &kib) == 1) {
            result.back().hugetlb += kib*1024;
        }
    }
    fclose(file);

    *n_nodes = 0;
    file = fopen("/proc/self/numa_maps", "r"); // absent without CONFIG_NUMA
    if (!file) {
        return result;
    }
    while (fgets(line, sizeof(line), file)) {
        const size_t first = strtoull(line, nullptr, 16);
        const auto it = std::lower_bound(result.begin(), result.end(), first, [](const vma & v, size_t x) { return v.first < x; });
        if (it == result.end() || it->first != first) {
            continue;
        }
        // numa(7): N<node>=<pages>, in pages of kernelpagesize_kB
        size_t page_kib = 4;
        if (const char * at = strstr(line, "kernelpagesize_kB=")) {
            sscanf(at, "kernelpagesize_kB=%zu", &page_kib);
        }
        for (const char * at = strstr(line, " N"); at; at = strstr(at + 1, " N")) {
            size_t node, pages; // NOLINT
            if (sscanf(at, " N%zu=%zu", &node, &pages) == 2 && node < 8) {
                it->node_bytes[node] = pages*page_kib*1024;
                *n_nodes = std::max<uint32_t>(*n_nodes, node + 1);
            }
        }
    }
    fclose(file);
    return result;
}

} // namespace

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

bool ggml_hugepages_get_report(ggml_hugepages_report * report) noexcept try {
    *report = {};
    report->late = ggml_hugepages_late();
    report->load = ggml_hugepages_last_load();

    const auto vmas = read_vmas(&report->n_nodes);
    if (vmas.empty()) {
        return false;
    }
    const size_t base_page = sysconf(_SC_PAGESIZE);
    bool thp_enabled = false;
    const size_t thp_size = ggml_hugepages_thp_size("", &thp_enabled);

    for (const auto & image : ggml_hugepages_alive()) {
        const size_t addr = (size_t) image.addr;
        auto it = std::lower_bound(vmas.begin(), vmas.end(), addr, [](const vma & v, size_t x) { return v.last <= x; });
        for (; it != vmas.end() && it->first < addr + image.length; ++it) {
            const size_t bytes = ggml_hugepages_overlap(image.wanted, std::max(it->first, addr) - addr, it->last - addr);
            if (bytes == 0) {
                continue; // this part was unmapped, and another mapping may be there now
            }
            // a mapping of blocks belongs to one image, a mapping of ordinary memory may contain other memory
            const bool is_ours = it->first >= addr && it->last <= addr + image.length;
            const auto add = [&](ggml_hugepages_backing backing, size_t page_size, uint64_t n, uint64_t pages, bool with_nodes) {
                auto * u = n > 0 ? usage_of(report, image.kind, backing, page_size) : nullptr;
                if (u) {
                    u->bytes += n;
                    u->pages += pages;
                    for (size_t node = 0; node < 8 && with_nodes && is_ours; node++) {
                        u->node_bytes[node] += it->node_bytes[node];
                    }
                }
            };
            if (it->page_size > base_page) {
                add(GGML_HUGEPAGES_BACKING_HUGE, it->page_size, bytes, it->hugetlb/it->page_size, true);
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
    std::sort(report->usages, report->usages + report->n_usages, [](const auto & a, const auto & b) {
        return a.kind != b.kind ? a.kind < b.kind : a.backing != b.backing ? a.backing < b.backing : a.page_size > b.page_size;
    });
    return true;
} catch (...) {
    *report = {};
    return false;
}

#else

bool ggml_hugepages_get_report(ggml_hugepages_report * report) noexcept {
    *report = {};
    return false;
}

#endif // __linux__
