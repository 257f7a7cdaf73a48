#pragma once

// the mappings of this process

#include <cstddef>
#include <cstdint>
#include <vector>

// one mapping of smaps and numa_maps
struct ggml_hugepages_vma {
    size_t first;
    size_t last;
    bool   is_file        = false; // in a file system, not in a memfd
    size_t page_size      = 0;
    size_t hugetlb        = 0; // bytes
    size_t anon_huge      = 0;
    size_t node_bytes[8]  = {};
};

// All mappings, sorted by address; empty if the kernel does not report them.
// n_nodes: number of valid entries in node_bytes, or nullptr to skip the nodes, which the kernel counts page by page
std::vector<ggml_hugepages_vma> ggml_hugepages_vmas(uint32_t * n_nodes);
