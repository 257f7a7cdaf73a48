// The mappings of this process, from smaps and numa_maps.

#ifdef __linux__

#include "vmas.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

std::vector<ggml_hugepages_vma> ggml_hugepages_vmas(uint32_t * n_nodes) {
    std::vector<ggml_hugepages_vma> result;
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
        } else if (sscanf(line, "AnonHugePages: %zu kB", &kib) == 1) {
            result.back().anon_huge = kib*1024;
        } else if (sscanf(line, "Shared_Hugetlb: %zu kB", &kib) == 1 || sscanf(line, "Private_Hugetlb: %zu kB", &kib) == 1) {
            result.back().hugetlb += kib*1024;
        }
    }
    fclose(file);

    if (!n_nodes) {
        return result;
    }
    *n_nodes = 0;
    file = fopen("/proc/self/numa_maps", "r"); // absent without CONFIG_NUMA
    if (!file) {
        return result;
    }
    while (fgets(line, sizeof(line), file)) {
        const size_t first = strtoull(line, nullptr, 16);
        const auto it = std::lower_bound(result.begin(), result.end(), first, [](const ggml_hugepages_vma & v, size_t x) { return v.first < x; });
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

#endif // __linux__
