#pragma once

// pools of huge pages, and how many pages of them are usable

#include "cgroup-limits.h"
#include "ggml-hugepages.h"

#include <cstdint>
#include <string>
#include <vector>

struct ggml_hugepages_node {
    int      id;
    uint64_t total; // pages
    uint64_t free;
};

struct ggml_hugepages_supply {
    ggml_hugepages_pool               pool = {};
    std::vector<ggml_hugepages_node>  nodes;       // nodes that may be used
    bool                              is_bound = false; // to fewer nodes than the machine has
    std::vector<ggml_hugepages_limit> limits;      // of all visible ancestors
    uint64_t                          held = 0;    // pages that this process holds for the planned buffer
    uint64_t                          promised = 0; // pages that this process reserved for others and has not touched
    uint64_t                          growth = 0;  // bytes of ordinary memory that this process will add

    // usable pages within pool, nodes and limits
    uint64_t usable() const;

    uint64_t usable_of_pool() const; // within pool and nodes

    // bytes that the limit must allow for so many pages
    uint64_t needed_limit(const ggml_hugepages_limit & limit, uint64_t pages) const;

    // the limit that leaves the fewest bytes, nullptr without a limit
    const ggml_hugepages_limit * tightest() const;
};

// root: prefix of /sys and /proc. nodes: nodes that may be used, empty for all.
ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes);

// the command that sets the size of a pool to `total`
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
