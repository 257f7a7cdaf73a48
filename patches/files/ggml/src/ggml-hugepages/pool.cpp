// The kernel's pools of huge pages, and the command that grows one. This file only reads.

#ifdef __linux__

#include "pool.h"
#include "kernel.h"
#include "names.h"

#include <algorithm>

static std::string pool_dir(const char * root, size_t page_size) {
    return std::string(root) + "/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_size/GGML_HUGEPAGES_KIB) + "kB";
}

size_t ggml_hugepages_page_sizes(const char * root, size_t * page_sizes, size_t n) noexcept try {
    const auto kibs = ggml_hugepages_numbered_entries(std::string(root) + "/sys/kernel/mm/hugepages", "hugepages-%zukB");
    for (size_t i = 0; i < std::min(n, kibs.size()); i++) {
        page_sizes[i] = kibs[i]*GGML_HUGEPAGES_KIB;
    }
    return kibs.size();
} catch (...) {
    return 0;
}

size_t ggml_hugepages_page_size(const char * root) noexcept {
    size_t sizes[16];
    const size_t n = std::min<size_t>(16, ggml_hugepages_page_sizes(root, sizes, 16));
    // arm64 also has 64 KiB pages: they save page table entries, but no level of the walk
    const auto * it = std::find_if(sizes, sizes + n, [](size_t size) { return size >= 2*GGML_HUGEPAGES_MIB; });
    return it == sizes + n ? 0 : *it;
}

bool ggml_hugepages_pool_read(const char * root, size_t page_size, ggml_hugepages_pool * pool) noexcept try {
    *pool = {};
    const std::string dir = pool_dir(root, page_size);
    // hugetlbpage.rst: nr_hugepages counts surplus pages too
    if (!ggml_hugepages_read_u64(dir + "/nr_hugepages",            &pool->total)    ||
        !ggml_hugepages_read_u64(dir + "/free_hugepages",          &pool->free)     ||
        !ggml_hugepages_read_u64(dir + "/resv_hugepages",          &pool->reserved) ||
        !ggml_hugepages_read_u64(dir + "/surplus_hugepages",       &pool->surplus)  ||
        !ggml_hugepages_read_u64(dir + "/nr_overcommit_hugepages", &pool->overcommit)) {
        *pool = {};
        return false;
    }
    pool->page_size = page_size;
    return true;
} catch (...) {
    *pool = {};
    return false;
}

uint64_t ggml_hugepages_pool_usable(const ggml_hugepages_pool * pool) noexcept {
    const uint64_t ready  = pool->free       - std::min(pool->free,       pool->reserved);
    const uint64_t growth = pool->overcommit - std::min(pool->overcommit, pool->surplus);
    return ready + growth;
}

ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes) {
    ggml_hugepages_supply supply;
    if (!ggml_hugepages_pool_read(root, page_size, &supply.pool)) {
        return supply;
    }
    supply.is_bound = !nodes.empty();
    for (const int id : nodes.empty() ? ggml_hugepages_all_nodes(root) : nodes) {
        const std::string dir = ggml_hugepages_node_dir(root, id) + "/hugepages/hugepages-" + std::to_string(page_size/GGML_HUGEPAGES_KIB) + "kB";
        ggml_hugepages_node node = { id, 0, 0 };
        if (ggml_hugepages_read_u64(dir + "/nr_hugepages", &node.total) && ggml_hugepages_read_u64(dir + "/free_hugepages", &node.free)) {
            supply.nodes.push_back(node);
        }
    }
    supply.limits = ggml_hugepages_limits(root, page_size);
    return supply;
}

uint64_t ggml_hugepages_supply::usable_of_pool() const {
    uint64_t result = ggml_hugepages_pool_usable(&pool);
    // Reservations belong to no node, so pages that others reserved may be on these nodes or on others. Surplus pages come from any node
    // with memory.
    if (is_bound && !nodes.empty()) {
        uint64_t free = 0;
        for (const auto & node : nodes) {
            free += node.free;
        }
        result = std::min(result, free + (pool.overcommit - std::min(pool.overcommit, pool.surplus)));
    }
    return result;
}

// bytes below a limit
static uint64_t left_of(const ggml_hugepages_limit & l, const ggml_hugepages_supply & supply) {
    const uint64_t left = l.limit - std::min(l.limit, l.used);
    // a limit on reservations counts reserved pages already, a limit on pages counts them on touch
    const bool is_of_reservations = l.file.find(".rsvd.") != std::string::npos;
    const uint64_t more = is_of_reservations ? supply.held*supply.pool.page_size : 0;
    const uint64_t less = is_of_reservations ? 0 : supply.promised*supply.pool.page_size + (l.is_of_memory ? supply.growth : 0);
    return left + more - std::min(left + more, less);
}

const ggml_hugepages_limit * ggml_hugepages_supply::tightest() const {
    const auto it = std::min_element(limits.begin(), limits.end(), [&](const auto & a, const auto & b) { return left_of(a, *this) < left_of(b, *this); });
    return it == limits.end() ? nullptr : &*it;
}

uint64_t ggml_hugepages_supply::needed_limit(const ggml_hugepages_limit & limit, uint64_t pages) const {
    return limit.used + pages*pool.page_size + (limit.is_of_memory ? growth : 0);
}

uint64_t ggml_hugepages_supply::usable() const {
    uint64_t result = usable_of_pool() + held;
    if (const auto * limit = tightest()) {
        result = std::min(result, left_of(*limit, *this)/pool.page_size);
    }
    return result;
}

std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total) {
    // vm.nr_hugepages sets only the pool of the default size
    if (page_size == ggml_hugepages_default_size(root)) {
        return "sysctl vm.nr_hugepages=" + std::to_string(total);
    }
    return "echo " + std::to_string(total) + " > " + pool_dir("", page_size) + "/nr_hugepages";
}

#endif // __linux__
