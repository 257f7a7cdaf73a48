#ifdef __linux__

#include "plan-store.h"
#include "error.h"
#include "plan-needs.h"
#include "shortage.h"

#include <algorithm>

void ggml_hugepages_plan_store::add(const ggml_hugepages_store_file & f, const std::vector<ggml_hugepages_blocks> & all, size_t consumer) {
    entry e = { &f, consumer, f.pages_of_manifest(), {}, f.is_buffer };
    for (const auto & b : all) {
        for (size_t at = b.first; at < b.last; at += f.page_size) {
            if (!f.has_page(at)) {
                // the filler allocates the page with the manifest first in any case
                const int rank = at + f.page_size > f.sums_at ? -1 : b.rank;
                e.missing.push_back({ rank, b.image, at, at + f.page_size, &f });
            } else if (b.image) {
                ggml_hugepages_run run = { at, at + f.page_size, f.page_size, b.rank };
                run.owner = f.has(at, std::min(f.size, at + f.page_size)) ? GGML_HUGEPAGES_OWNER_ATTACHED : GGML_HUGEPAGES_OWNER_FILLING;
                b.image->runs.push_back(run);
            }
        }
    }
    free = std::min(free, ggml_hugepages_store_free(f));
    if (own.count(f.page_size) == 0 && !e.missing.empty()) {
        own[f.page_size] = ggml_hugepages_store_set_aside(f);
    }
    own[f.page_size] += f.pages_left_over();
    entries.push_back(std::move(e));
}

uint64_t ggml_hugepages_plan_store::need(size_t page_size) const {
    uint64_t pages = 0;
    for (const auto & e : entries) {
        pages += e.file->page_size == page_size ? e.missing.size() + e.manifest : 0;
    }
    return pages;
}

uint64_t ggml_hugepages_plan_store::need_of_pool(size_t page_size) const {
    const auto it = own.find(page_size);
    return need(page_size) - std::min(need(page_size), it == own.end() ? 0 : it->second);
}

uint64_t ggml_hugepages_plan_store::bytes() const {
    uint64_t sum = 0;
    for (const auto & [page_size, _] : own) {
        sum += need(page_size)*page_size;
    }
    return sum;
}

std::vector<ggml_hugepages_consumed> ggml_hugepages_plan_store::fit() {
    std::vector<ggml_hugepages_consumed> rest; // with their consumer
    uint64_t room = free;
    for (auto & e : entries) {
        const size_t page_size = e.file->page_size;
        std::stable_sort(e.missing.begin(), e.missing.end(), [](const auto & a, const auto & b) { return a.rank < b.rank; });
        const uint64_t pages = room == UINT64_MAX ? UINT64_MAX : room/page_size;
        uint64_t n = pages > e.manifest ? std::min<uint64_t>(e.missing.size(), pages - e.manifest) : 0;
        n = e.is_whole && n < e.missing.size() ? 0 : n;
        for (size_t i = n; i < e.missing.size(); i++) {
            rest.emplace_back(e.consumer, e.missing[i]);
        }
        e.missing.resize(n);
        e.manifest = n > 0 ? e.manifest : 0;
        room -= room == UINT64_MAX ? 0 : (n + e.manifest)*page_size;
    }
    return rest;
}

void ggml_hugepages_plan_store::note(std::vector<ggml_hugepages_consumer> & consumers) const {
    for (const auto & e : entries) {
        for (const auto & b : e.missing) {
            ggml_hugepages_note_need(consumers[e.consumer], b, e.file->page_size, 1);
        }
        if (e.manifest > 0) {
            // the manifest has no bytes of tensors, because it is behind them
            ggml_hugepages_note_need(consumers[e.consumer], { 0, nullptr, e.file->length - e.manifest*e.file->page_size, e.file->length }, e.file->page_size, e.manifest);
        }
    }
}

bool ggml_hugepages_plan_store::fail_full(const ggml_hugepages_params & params, ggml_hugepages_error * error) const {
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the resident images need %.2f MiB, but the mount has only %.2f MiB left",
        bytes()/1024.0/1024.0, free/1024.0/1024.0);
    ggml_hugepages_hint(error, "run hugepages store gc, raise the limit of the mount (hugepages store unmount, then mount --limit)");
    ggml_hugepages_hint_prefer(params, error);
    const size_t page_size = entries.front().file->page_size;
    ggml_hugepages_set_shortage(error, page_size, (bytes() + page_size - 1)/page_size, free/page_size);
    return false;
}

#endif // __linux__
