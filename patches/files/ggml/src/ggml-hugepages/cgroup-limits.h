#pragma once

// limits of cgroups on huge pages and on memory

#include "ggml-hugepages.h"

#include <cstdint>
#include <string>
#include <vector>

// the limit of one cgroup, in bytes
struct ggml_hugepages_limit {
    std::string path;  // of the cgroup, as in /proc/self/cgroup
    std::string file;  // e.g. hugetlb.2MB.max
    uint64_t    limit;
    uint64_t    used;
    bool        is_of_memory; // and counts huge pages too, in the list of ggml_hugepages_limits()
};

// The limits of the cgroup of this process and of all visible ancestors on huge pages. Includes limits on memory, if huge pages count as memory.
std::vector<ggml_hugepages_limit> ggml_hugepages_limits(const char * root, size_t page_size);

// Bytes that this process can still allocate: MemAvailable, or what the tightest limit on memory leaves. Page cache counts as free.
// At least 1, because 0 means unknown.
// planned: bytes of huge pages that this process will take first; only limits that count them leave less
uint64_t ggml_hugepages_memory_left(const char * root, uint64_t planned);

// Whether an invisible hugetlb limit may apply, because the visible cgroup tree starts below the machine's root or is not mounted.
bool ggml_hugepages_limits_may_hide(const char * root);
