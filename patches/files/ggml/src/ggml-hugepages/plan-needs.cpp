#ifdef __linux__

#include "plan-needs.h"
#include "cgroup-limits.h"
#include "error.h"
#include "kernel.h"

#include <algorithm>
#include <utility>

// the plans of this thread with plan_only
static thread_local struct {
    bool                             together    = false;
    bool                             by_counts   = false;
    uint32_t                         n_plans     = 0;
    uint64_t                         ordinary    = 0;
    uint64_t                         store_bytes = 0;
    std::vector<ggml_hugepages_need> needs;
    std::set<std::string>            images;
    std::vector<ggml_hugepages_room> rooms;
} t_planned;

void ggml_hugepages_plan_together(bool together, bool by_counts) {
    auto images = std::move(t_planned.images);
    t_planned = {};
    t_planned.together  = together;
    t_planned.by_counts = together && by_counts;
    if (together) {
        t_planned.rooms = ggml_hugepages_rooms();
    } else {
        t_planned.images = std::move(images);
    }
}

const std::set<std::string> & ggml_hugepages_planned_images() {
    return t_planned.images;
}

void ggml_hugepages_note_need(ggml_hugepages_consumer & consumer, const ggml_hugepages_blocks & b, size_t page_size, uint64_t pages) {
    auto & need = consumer.needs[page_size];
    need.kind      = consumer.kind;
    need.image     = consumer.image;
    need.page_size = page_size;
    need.pages    += pages;
    need.bytes    += ggml_hugepages_overlap(consumer.wanted, b.first, b.last);
}

bool ggml_hugepages_end_plan(
        const std::vector<ggml_hugepages_consumer> & consumers,
        uint64_t                                     ordinary,
        uint64_t                                     store_bytes,
        const std::set<std::string>                & images,
        bool                                         ok,
        ggml_hugepages_error                       * error) {
    if (ok) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_PLANNED, "the plan is complete");
    }
    if (!t_planned.together) {
        t_planned = {};
    }
    for (const auto & consumer : consumers) {
        for (const auto & [_, need] : consumer.needs) {
            t_planned.needs.push_back(need);
            t_planned.needs.back().plan = t_planned.n_plans;
        }
    }
    t_planned.n_plans++;
    t_planned.ordinary    += ordinary;
    t_planned.store_bytes += store_bytes;
    t_planned.images.insert(images.begin(), images.end());
    return false;
}

size_t ggml_hugepages_get_needs(ggml_hugepages_need * needs, size_t n) {
    std::copy_n(t_planned.needs.begin(), std::min(n, t_planned.needs.size()), needs);
    return t_planned.needs.size();
}

ggml_hugepages_memory ggml_hugepages_planned_memory() noexcept try {
    uint64_t huge = 0;
    for (const auto & need : t_planned.needs) {
        huge += need.pages*need.page_size;
    }
    return { t_planned.ordinary, ggml_hugepages_mem_anonymous(), ggml_hugepages_memory_left("", huge) };
} catch (...) {
    return {};
}

uint64_t ggml_hugepages_planned_pages(size_t page_size) {
    uint64_t pages = 0;
    for (const auto & need : t_planned.needs) {
        pages += t_planned.together && need.page_size == page_size ? need.pages : 0;
    }
    return pages;
}

uint64_t ggml_hugepages_planned_node_pages(size_t page_size, int node) {
    uint64_t pages = 0;
    for (const auto & need : t_planned.needs) {
        pages += t_planned.together && need.page_size == page_size ? need.node_pages[node] : 0;
    }
    return pages;
}

bool ggml_hugepages_is_planned_together() {
    return t_planned.together;
}

std::vector<ggml_hugepages_room> ggml_hugepages_planned_rooms() {
    return t_planned.rooms;
}

void ggml_hugepages_set_planned_rooms(const std::vector<ggml_hugepages_room> & rooms) {
    t_planned.rooms = rooms;
}

bool ggml_hugepages_plans_by_counts() {
    return t_planned.by_counts;
}

uint64_t ggml_hugepages_planned_store_bytes() {
    return t_planned.together ? t_planned.store_bytes : 0;
}

uint64_t ggml_hugepages_planned_ordinary() {
    return t_planned.together ? t_planned.ordinary : 0;
}

#endif // __linux__
