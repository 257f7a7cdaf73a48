// The steps of a plan if pages may be short: evict idle images, refuse, or continue with fewer pages. A trial finds limits that no file
// shows.

#ifdef __linux__

#include "planner.h"
#include "cgroup-limits.h"
#include "error.h"
#include "names.h"
#include "probe.h"
#include "registry.h"
#include "shortage.h"
#include "store-evict.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <memory>

std::vector<std::pair<uint64_t, ggml_hugepages_supply>> ggml_hugepages_planner::find_shortages() const {
    std::vector<std::pair<uint64_t, ggml_hugepages_supply>> shortages;
    for (const auto & s : supplies) {
        // take_large_pages() leaves the pages of the store, so only the smallest size and the store can be short of pages
        const uint64_t pages = wanted(s.pool.page_size);
        if (pages > s.usable()) {
            shortages.emplace_back(pages, s);
        }
    }
    return shortages;
}

// the store is that of this machine, and this is the plan of a model
bool ggml_hugepages_planner::may_evict() const {
    return params.store[0] && root[0] == '\0' && (is_load || params.plan_only);
}

// the images of this model and of those that load with it, which they need or will complete
std::set<std::string> ggml_hugepages_planner::own_images() const {
    auto names = ggml_hugepages_planned_images();
    for (const auto & e : store.entries) {
        names.insert(e.file->name);
    }
    return names;
}

// pages of the images that no process uses, or only those that may be removed without the option
uint64_t ggml_hugepages_planner::idle_pages(size_t page_size, bool all) const {
    uint64_t pages = 0;
    for (const auto & image : may_evict() ? ggml_hugepages_idle_images(params, page_size, own_images(), all) : std::vector<ggml_hugepages_idle_image>()) {
        pages += image.pages;
    }
    return pages;
}

// freed pages that leave the pool because they are surplus
static uint64_t freed_but_gone(const ggml_hugepages_pool & pool) {
    return pool.surplus - std::min(pool.surplus, pool.overcommit);
}

// the pool without idle images
ggml_hugepages_supply ggml_hugepages_planner::without_idle(const ggml_hugepages_supply & supply, bool all) const {
    auto after = supply;
    const uint64_t idle = idle_pages(after.pool.page_size, all);
    after.pool.free += idle - std::min(idle, freed_but_gone(after.pool));
    for (auto & node : after.nodes) {
        node.free += after.is_bound ? 0 : idle;
    }
    return after;
}

// whether the pages of idle images would be enough
bool ggml_hugepages_planner::can_evict(const ggml_hugepages_supply & supply, uint64_t pages, bool all) const {
    return idle_pages(supply.pool.page_size, all) > 0 && without_idle(supply, all).usable() >= pages;
}

// names what could make room
void ggml_hugepages_planner::hint_evict(const std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages) const {
    if (!params.evict && shortages.size() == 1 && can_evict(shortages[0].second, shortages[0].first, /*.all =*/ true)) {
        const std::string rest = error->hint;
        ggml_hugepages_hint(error, "use --hugepage-evict to remove idle images from the store (%" PRIu64 " pages), or %s",
            idle_pages(shortages[0].second.pool.page_size, /*.all =*/ true), rest.c_str());
    }
}

// A machine with larger pages may prefer to add those. Their number is another plan.
void ggml_hugepages_planner::hint_larger() const {
    const auto larger = std::find_if(supplies.rbegin(), supplies.rend(), [&](const auto & s) { return may_take(s.pool.page_size) && s.pool.total > 0; });
    if (params.page_size == GGML_HUGEPAGES_SIZE_AUTO && larger != supplies.rend()) {
        const std::string rest = error->hint;
        char size[32];
        ggml_hugepages_backing_to_str(GGML_HUGEPAGES_BACKING_HUGE, larger->pool.page_size, size, sizeof(size));
        ggml_hugepages_hint(error, "%s, or see what --hugepage-size %s needs", rest.c_str(), size);
    }
}

// Removes idle images if that is enough; a plan only counts their pages as free.
void ggml_hugepages_planner::make_room(std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages) {
    const bool is_enough = !shortages.empty() &&
        std::all_of(shortages.begin(), shortages.end(), [&](const auto & shortage) { return can_evict(shortage.second, shortage.first, params.evict); });
    if (is_enough && params.plan_only) {
        for (auto & s : supplies) {
            s = without_idle(s, params.evict);
        }
        counts_idle = true;
        shortages.clear();
    } else if (is_enough) {
        for (const auto & [pages, s] : shortages) {
            ggml_hugepages_evict(params, s.pool.page_size, own_images(), pages - s.usable() + freed_but_gone(s.pool));
        }
        for (auto & s : supplies) {
            s = read_supply(s.pool.page_size);
        }
        shortages = find_shortages();
    }
}

bool ggml_hugepages_planner::check_shortage() {
    auto shortages = find_shortages();
    make_room(shortages);
    if (!accepts_less) {
        if (!shortages.empty()) {
            const bool is_one = before(shortages.front().second.pool.page_size) == 0;
            ggml_hugepages_fail_short(root, is_one ? "the model needs" : "the models together need", shortages, params, error);
            hint_larger();
            hint_evict(shortages);
            return false;
        }
        return !store.is_full() || store.fail_full(params, error);
    }
    // once for a model, and not for each of its buffers
    if (n_images != 1 || is_load) {
        for (const auto & [pages, s] : shortages) {
            GGML_LOG_WARN("%s: only %" PRIu64 " of %" PRIu64 " huge pages of %s are usable, the rest uses ordinary memory\n", __func__,
                s.usable(), pages, ggml_hugepages_size_name(s.pool.page_size).c_str());
        }
    }
    return true;
}

// pages that the models before this one need
uint64_t ggml_hugepages_planner::before(size_t page_size) const {
    return params.plan_only ? ggml_hugepages_planned_pages(page_size) : 0;
}

// pages of one size that the plan takes from the pool, with those before it
uint64_t ggml_hugepages_planner::wanted(size_t page_size) const {
    const auto it = need.find(page_size);
    return before(page_size) + store.need_of_pool(page_size) + (it == need.end() ? 0 : it->second);
}

// Only a trial detects an invisible limit or a forbidden call. If an invisible limit is possible, a plan populates all of its pages for a
// moment; a load only reserves them, because it populates them soon. If none is possible, a plan populates nothing. A plan waits for its
// turn, as loads do, so that it does not take the last page from one of them.
bool ggml_hugepages_planner::check_by_trying() {
    const bool may_hide = ggml_hugepages_limits_may_hide(root);
    for (size_t i = 0; i < n_images; i++) {
        images[i]->limits_may_hide = may_hide && !accepts_less;
    }
    if (params.plan_only && (ggml_hugepages_plans_by_counts() || counts_idle)) {
        return true; // a trial cannot take pages of idle images
    }
    const int turn = params.plan_only && is_load && !accepts_less ? ggml_hugepages_turn_begin() : -1;
    const std::shared_ptr<void> ended(nullptr, [turn](void *) { ggml_hugepages_turn_end(turn); });
    uint64_t missing = 0;
    for (const auto & s : supplies) {
        const size_t   page_size  = s.pool.page_size;
        const uint64_t pages      = wanted(page_size);
        missing += pages;
        const uint64_t n_reserve  = may_hide ? pages : 1;
        const uint64_t n_populate = params.plan_only ? (may_hide ? pages : 0) : 1;
        if (is_load && pages > 0 && s.usable() >= pages && !accepts_less && !ggml_hugepages_try(root, params, page_size, n_reserve, n_populate, pages, error)) {
            return false;
        }
    }
    // a memfd has the size of its image
    if (is_load && missing > 0 && !accepts_less && root[0] == '\0' && largest > ggml_hugepages_file_size_limit()) {
        return ggml_hugepages_fail_file_size(params, largest, error);
    }
    return true;
}

#endif // __linux__
