#ifdef __linux__

#include "plan-needs.h"
#include "error.h"

#include <algorithm>
#include <mutex>

// the needs of the last plan with plan_only
static std::mutex                       g_needs_mutex;
static std::vector<ggml_hugepages_need> g_needs;
static ggml_hugepages_error             g_plan_end = {};

void ggml_hugepages_note_need(ggml_hugepages_consumer & consumer, const ggml_hugepages_blocks & b, size_t page_size) {
    auto & need = consumer.needs[page_size];
    need.kind      = consumer.kind;
    need.image     = consumer.image;
    need.page_size = page_size;
    need.pages    += page_size == 0 ? 0 : (b.last - b.first)/page_size;
    need.bytes    += ggml_hugepages_overlap(consumer.wanted, b.first, b.last);
}

bool ggml_hugepages_end_plan(const std::vector<ggml_hugepages_consumer> & consumers, bool ok, ggml_hugepages_error * error) {
    if (ok) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_PLANNED, "the plan is complete");
    }
    std::lock_guard<std::mutex> lock(g_needs_mutex);
    g_plan_end = *error;
    g_needs.clear();
    for (const auto & consumer : consumers) {
        for (const auto & [_, need] : consumer.needs) {
            g_needs.push_back(need);
        }
    }
    return false;
}

size_t ggml_hugepages_get_needs(ggml_hugepages_need * needs, size_t n) {
    std::lock_guard<std::mutex> lock(g_needs_mutex);
    std::copy_n(g_needs.begin(), std::min(n, g_needs.size()), needs);
    return g_needs.size();
}

bool ggml_hugepages_get_plan_end(ggml_hugepages_error * error) {
    std::lock_guard<std::mutex> lock(g_needs_mutex);
    *error = g_plan_end;
    return error->status != GGML_HUGEPAGES_STATUS_OK;
}

#endif // __linux__
