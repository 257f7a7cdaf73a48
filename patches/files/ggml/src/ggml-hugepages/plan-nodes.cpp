// The steps of a plan with GGML_HUGEPAGES_PLACEMENT_ROWS: the node of each page of the weights, and nodes that are short of pages.

#ifdef __linux__

#include "planner.h"
#include "error.h"
#include "names.h"
#include "placement.h"
#include "plan-needs.h"
#include "shortage.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>

// Calls the function with the consumer, the first byte and the size of each page that the populating threads will place.
template <typename F> static void each_placed_page(const ggml_hugepages_planner & p, F && f) {
    const auto add = [&](size_t consumer, const ggml_hugepages_blocks & b, size_t page_size) {
        for (size_t at = b.first; p.consumers[consumer].layout && at < b.last; at += page_size) {
            f(consumer, at, page_size);
        }
    };
    // a shared range is on all nodes in turn
    const auto is_in_shared = [&](size_t space) { return space == p.buffers && p.is_shared(); };
    for (const auto & l : p.large) {
        if (!is_in_shared(l.space)) {
            add(p.spaces[l.space].front(), l.page, l.page_size);
        }
    }
    for (const auto & [consumer, b] : p.rest) {
        if (!is_in_shared(p.space_of(consumer))) {
            add(consumer, b, p.smallest);
        }
    }
    for (const auto & e : p.store.entries) {
        for (const auto & b : e.missing) {
            add(e.consumer, b, e.file->page_size);
        }
    }
}

void ggml_hugepages_planner::place_pages() {
    if (thread_nodes.empty()) {
        return;
    }
    each_placed_page(*this, [&](size_t consumer, size_t at, size_t page_size) {
        auto & c = consumers[consumer];
        // a demand may follow others in its space
        const size_t first = at - (c.image == -1 ? c.wanted.front().first : 0);
        const size_t index = ggml_hugepages_page_node(*c.layout, first, first + page_size, thread_nodes.size());
        const int    node  = thread_nodes[index];
        const auto   bytes = ggml_hugepages_read_bytes(*c.layout, first, first + page_size, thread_nodes.size());
        uint64_t     all   = 0;
        for (const uint64_t n : bytes) {
            all += n;
        }
        auto & pages = node_pages[page_size];
        pages.resize(GGML_HUGEPAGES_MAX_NODES);
        pages[node]++;
        const uint64_t local = pages[node] <= free_on(page_size, node) ? bytes[index] : 0;
        auto & need = c.needs[page_size];
        need.node_pages[node]++;
        need.local_bytes  += local;
        need.remote_bytes += all - local;
    });
}

// pages of a node that the plans before this one leave
uint64_t ggml_hugepages_planner::free_on(size_t page_size, int node) const {
    for (const auto & s : supplies) {
        for (const auto & n : s.nodes) {
            if (s.pool.page_size == page_size && n.id == node) {
                const uint64_t taken = params.plan_only ? ggml_hugepages_planned_node_pages(page_size, node) : 0;
                return n.free - std::min(n.free, taken);
            }
        }
    }
    return 0;
}

bool ggml_hugepages_planner::check_nodes() {
    for (const auto & s : supplies) {
        const auto it = node_pages.find(s.pool.page_size);
        if (it == node_pages.end() || s.nodes.empty() || (!is_load && !params.plan_only)) {
            continue;
        }
        uint64_t missing = 0;
        const ggml_hugepages_node * most = nullptr; // the node that lacks most pages
        uint64_t lacks = 0;
        for (const auto & n : s.nodes) {
            const uint64_t pages = n.id < (int) it->second.size() ? it->second[n.id] : 0;
            const uint64_t lack  = pages - std::min(pages, free_on(s.pool.page_size, n.id));
            missing += lack;
            if (lack > lacks) {
                lacks = lack;
                most  = &n;
            }
        }
        // the kernel allocates surplus pages on any node
        if (missing <= s.pool.overcommit - std::min(s.pool.overcommit, s.pool.surplus)) {
            continue;
        }
        const uint64_t pages = it->second[most->id];
        if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
            return ggml_hugepages_fail_node_short(*most, s.pool.page_size, pages, free_on(s.pool.page_size, most->id), error);
        }
        GGML_LOG_WARN("%s: node %d has only %" PRIu64 " of the %" PRIu64 " free huge pages of %s for the rows that its threads read, the rest is on other nodes\n",
            __func__, most->id, free_on(s.pool.page_size, most->id), pages, ggml_hugepages_size_name(s.pool.page_size).c_str());
    }
    return true;
}

#endif // __linux__
