// The plan: which blocks get which pages. Allocates nothing, and reports a shortage.
//
// All wanted bytes are cut into blocks of the smallest page size, each with the best rank of its bytes. Larger pages replace whole aligned
// ranges of these blocks, so they waste no more memory than the small pages. Then the blocks get pages in the order of their ranks.

#ifdef __linux__

#include "plan.h"
#include "planner.h"
#include "cgroup-limits.h"
#include "error.h"
#include "held-pages.h"
#include "kernel.h"
#include "names.h"
#include "registry.h"
#include "shortage.h"
#include "store-evict.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <string>

bool ggml_hugepages_planner::find_pools() {
    if (params.page_size == GGML_HUGEPAGES_SIZE_THP) {
        smallest = ggml_hugepages_thp_size(root, &thp_enabled);
        if (smallest == 0) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no transparent huge pages");
        }
        return true;
    }
    const bool is_auto = params.page_size == GGML_HUGEPAGES_SIZE_AUTO;
    size_t sizes[16];
    const size_t n = std::min<size_t>(16, ggml_hugepages_page_sizes(root, sizes, 16));
    const int    err = errno;
    if (n == 0 && err != 0 && err != ENOENT) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_FORBIDDEN, "cannot list the pools of huge pages in /sys/kernel/mm/hugepages: %s", strerror(err));
        ggml_hugepages_hint_errno(error, err, "getdents64", "mount /sys for this process");
        return false;
    }
    smallest = is_auto ? ggml_hugepages_page_size(root) : params.page_size;
    std::string names;
    for (size_t i = 0; i < n; i++) {
        names += (names.empty() ? "" : ", ") + ggml_hugepages_size_name(sizes[i]);
        if (sizes[i] == smallest || (is_auto && smallest != 0 && sizes[i] > smallest)) {
            supplies.push_back(ggml_hugepages_supply_read(root, sizes[i], nodes));
        }
    }
    if (supplies.empty() && smallest == 0) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED,
            "this kernel has no pool of huge pages (no size of 2 MiB or more in /sys/kernel/mm/hugepages)");
    }
    if (supplies.empty()) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no pool of huge pages of %s; available sizes: %s",
            ggml_hugepages_size_name(smallest).c_str(), names.empty() ? "none" : names.c_str());
        ggml_hugepages_hint(error, "use --hugepage-size auto");
        return false;
    }
    return true;
}

void ggml_hugepages_planner::add_image(size_t i) {
    auto & image = *images[i];
    image.params = params;
    image.runs.clear();
    image.grants.clear();
    const auto & resident = image.resident;
    auto wanted = ggml_hugepages_blocks_of(image, resident ? resident->page_size : smallest);
    if (wanted.empty() || image.fd_page != 0) {
        return;
    }
    largest = std::max<uint64_t>(largest, image.size);
    consumers.push_back({ image.kind, (int32_t) i, image.wanted, {} });
    blocks.emplace_back();
    if (resident) {
        store.add(*resident, wanted, consumers.size() - 1);
    } else {
        blocks.back() = std::move(wanted);
    }
}

void ggml_hugepages_planner::add_demand(const ggml_hugepages_demand & demand) {
    const auto * file = demand.resident ? demand.resident->file.get() : nullptr;
    // a demand smaller than a page of the store does not use the store
    const auto * resident = file && demand.bytes >= file->page_size ? file : nullptr;
    const ggml_hugepages_blocks all = { (int) demand.rank, nullptr, 0, ggml_hugepages_align_up(demand.bytes, resident ? resident->page_size : smallest) };
    largest = std::max(largest, demand.bytes);
    consumers.push_back({ demand.kind, -1, { { 0, demand.bytes } }, {} });
    blocks.emplace_back();
    if (resident) {
        store.add(*resident, { all }, consumers.size() - 1);
    } else if (demand.bytes >= smallest) {
        blocks.back().push_back(all);
    } else if (demand.bytes > 0) {
        // a demand smaller than a page uses ordinary memory
        ggml_hugepages_note_need(consumers.back(), all, 0);
        ordinary[demand.kind] += demand.bytes;
    }
}

bool ggml_hugepages_planner::decide_thp() {
    if (!thp_enabled) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has transparent huge pages disabled");
        ggml_hugepages_hint(error, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        return false;
    }
    uint64_t bytes = 0;
    for (const auto & list : blocks) {
        for (const auto & b : list) {
            bytes += b.last - b.first;
            if (b.image) {
                b.image->runs.push_back({ b.first, b.last, smallest, b.rank });
            }
        }
    }
    for (const auto & [consumer, b] : rest) {
        if (!b.image) {
            ordinary[consumers[consumer].kind] += b.last - b.first;
        }
    }
    bytes += before(smallest)*smallest;
    const uint64_t available = ggml_hugepages_memory_left(root);
    if (!accepts_less && bytes > available) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %.2f MiB of memory for transparent huge pages, but only %.2f MiB are available",
            bytes/1024.0/1024.0, available/1024.0/1024.0);
    }
    return true;
}

void ggml_hugepages_planner::make_room_in_store() {
    if (!store.is_full() || !params.evict) {
        return;
    }
    const auto & file = *store.entries.front().file;
    const uint64_t pages = (store.bytes() - store.free + file.page_size - 1)/file.page_size;
    if (idle_pages(file.page_size) < pages) {
        return;
    }
    if (params.plan_only) {
        store.free += pages*file.page_size;
    } else if (ggml_hugepages_evict(params, file.page_size, own_images(), pages) > 0) {
        store.free = ggml_hugepages_store_free(file);
    }
}

// the blocks for which the mount of the store has no room get pages of this process
void ggml_hugepages_planner::leave_full_store() {
    GGML_LOG_WARN("%s: the mount of the store has room for only %.2f of %.2f MiB; the rest will not remain in memory after this process ends\n", __func__,
        store.free/1024.0/1024.0, store.bytes()/1024.0/1024.0);
    uint64_t left_in_file = 0;
    for (const auto & [consumer, b] : store.fit()) {
        // the process' own pages can replace only store pages that are at least as large
        if (b.file->page_size % smallest == 0) {
            blocks[consumer].push_back({ std::max(0, b.rank), b.image, b.first, b.last });
        } else {
            left_in_file += b.last - b.first;
        }
    }
    if (left_in_file > 0) {
        GGML_LOG_WARN("%s: %.2f MiB of the rest use ordinary memory, because private pages of %s cannot replace the smaller pages of the store\n", __func__,
            left_in_file/1024.0/1024.0, ggml_hugepages_size_name(smallest).c_str());
    }
}

// the store may use a page size that nothing else uses
void ggml_hugepages_planner::add_pools_of_store() {
    for (const auto & e : store.entries) {
        const size_t page_size = e.file->page_size;
        if (std::none_of(supplies.begin(), supplies.end(), [&](const auto & s) { return s.pool.page_size == page_size; })) {
            supplies.push_back(ggml_hugepages_supply_read(root, page_size, nodes));
        }
    }
    std::sort(supplies.begin(), supplies.end(), [](const auto & a, const auto & b) { return a.pool.page_size < b.pool.page_size; });
    // a buffer that the plan of the weights already counted
    if (n_images == 1 && !is_load) {
        for (auto & s : supplies) {
            s.held     = ggml_hugepages_held_pages(params.model_id, images[0]->kind, s.pool.page_size);
            s.promised = ggml_hugepages_promised(s.pool.page_size, images[0]) - s.held;
        }
    }
}

// The buffers after the weights get these pages when they are allocated.
void ggml_hugepages_planner::grant(size_t consumer, size_t page_size, uint64_t pages) {
    const auto & c = consumers[consumer];
    const bool follows = c.kind == GGML_HUGEPAGES_KIND_KV || c.kind == GGML_HUGEPAGES_KIND_COMPUTE;
    if (n_images > 0 && c.image == -1 && follows && pages > 0) {
        images[0]->grants.push_back({ c.kind, page_size, pages });
    }
}

// usable pages that are larger than the smallest replace whole ranges of blocks, the best ranks first
void ggml_hugepages_planner::take_large_pages() {
    for (size_t s = supplies.size(); s-- > 0; ) {
        const size_t page_size = supplies[s].pool.page_size;
        if (page_size <= smallest) {
            continue;
        }
        const uint64_t kept = store.need_of_pool(page_size) + before(page_size);
        uint64_t left = supplies[s].usable() - std::min(supplies[s].usable(), kept);
        if (left == 0 || (params.page_size != GGML_HUGEPAGES_SIZE_AUTO && params.page_size != page_size)) {
            continue;
        }
        std::vector<ggml_hugepages_consumed> candidates;
        for (size_t c = 0; c < blocks.size(); c++) {
            if (!blocks[c].empty()) {
                for (const auto & b : ggml_hugepages_cut_large(blocks[c], page_size)) {
                    candidates.emplace_back(c, b);
                }
            }
        }
        ggml_hugepages_sort_by_rank(candidates);
        for (const auto & [consumer, b] : candidates) {
            if (left == 0) {
                break;
            }
            left--;
            need[page_size]++;
            ggml_hugepages_note_need(consumers[consumer], b, page_size);
            grant(consumer, page_size, 1);
            ggml_hugepages_cut_out(blocks[consumer], b.first, b.last);
            if (b.image) {
                b.image->runs.push_back({ b.first, b.last, page_size, b.rank });
            }
        }
    }
}

void ggml_hugepages_planner::count_rest() {
    for (size_t c = 0; c < blocks.size(); c++) {
        for (const auto & b : blocks[c]) {
            ggml_hugepages_note_need(consumers[c], b, smallest);
            rest.emplace_back(c, b);
            need[smallest] += (b.last - b.first)/smallest;
        }
    }
}

// gives the usable pages to the blocks, the best ranks first
void ggml_hugepages_planner::hand_out() {
    for (const auto & s : supplies) {
        const size_t page_size = s.pool.page_size;
        uint64_t left = s.usable() - std::min(s.usable(), before(page_size));
        uint64_t own  = store.own[page_size];
        auto takers = page_size == smallest ? rest : std::vector<ggml_hugepages_consumed>();
        for (const auto & e : store.entries) {
            // without a page for the manifest, no page remains in the store
            if (e.file->page_size == page_size && !e.missing.empty() && own + left > e.manifest) {
                const uint64_t from_own = std::min(own, e.manifest);
                own  -= from_own;
                left -= e.manifest - from_own;
                for (const auto & b : e.missing) {
                    takers.emplace_back(e.consumer, b);
                }
            }
        }
        ggml_hugepages_sort_by_rank(takers);
        for (const auto & [consumer, b] : takers) {
            const uint64_t want     = (b.last - b.first)/page_size;
            const uint64_t from_own = b.file ? std::min(own, want) : 0;
            const uint64_t pages    = from_own + std::min(left, want - from_own);
            own  -= from_own;
            left -= pages - from_own;
            if (b.image && pages > 0) {
                ggml_hugepages_run run = { b.first, b.first + pages*page_size, page_size, std::max(0, b.rank) };
                run.owner = b.file ? GGML_HUGEPAGES_OWNER_FILLING : GGML_HUGEPAGES_OWNER_PROCESS;
                b.image->runs.push_back(run);
            } else if (!b.file) {
                grant(consumer, page_size, pages);
            }
            if (!b.image) {
                ordinary[consumers[consumer].kind] += (want - pages)*page_size;
            }
        }
    }
}

uint64_t ggml_hugepages_planner::ordinary_bytes() const {
    uint64_t sum = 0;
    for (const auto & [_, bytes] : ordinary) {
        sum += bytes;
    }
    return sum;
}

// The kernel grants ordinary memory that it does not have, and ends a process that uses it.
bool ggml_hugepages_planner::check_ordinary() {
    const uint64_t bytes     = ordinary_bytes() + (params.plan_only ? ggml_hugepages_planned_ordinary() : 0);
    const uint64_t available = ggml_hugepages_memory_left(root);
    if (available == 0 || bytes <= available + ggml_hugepages_swap_free(root)) {
        return true;
    }
    std::string kinds;
    for (const auto & [kind, n] : ordinary) {
        if (n > 0) {
            kinds += (kinds.empty() ? "" : ", ") + std::string(ggml_hugepages_kind_name(kind));
        }
    }
    return ggml_hugepages_fail_ordinary_short(kinds, bytes, available, error);
}

bool ggml_hugepages_planner::end_plan(bool ok) {
    return ggml_hugepages_end_plan(consumers, ordinary_bytes(), store_bytes, own_images(), ok, error);
}

bool ggml_hugepages_decide(
        const char *                  root,
        ggml_hugepages_image_t *      images,
        size_t                        n_images,
        const ggml_hugepages_demand * demands,
        size_t                        n_demands,
        const ggml_hugepages_params & params,
        ggml_hugepages_error *        error) {
    ggml_hugepages_planner p(root, images, n_images, params, error);
    if (!p.find_pools()) {
        return false;
    }
    for (size_t i = 0; i < n_images; i++) {
        p.add_image(i);
    }
    for (size_t i = 0; i < n_demands; i++) {
        p.add_demand(demands[i]);
    }
    if (p.supplies.empty()) {
        p.count_rest();
        const bool ok = p.decide_thp() && p.check_ordinary();
        ggml_hugepages_join_runs(images, n_images);
        return params.plan_only ? p.end_plan(ok) : ok;
    }
    p.store_bytes = p.store.bytes();
    if (params.plan_only && p.store.free != UINT64_MAX) {
        p.store.free -= std::min(p.store.free, ggml_hugepages_planned_store_bytes());
    }
    p.make_room_in_store();
    if (p.store.is_full() && p.accepts_less) {
        p.leave_full_store();
    }
    p.store.note(p.consumers);
    p.add_pools_of_store();
    p.take_large_pages();
    p.count_rest();
    bool ok = p.check_shortage() && p.check_by_trying();
    // a plan also tells what a load with `prefer` would leave out
    if (ok || (params.plan_only && params.policy == GGML_HUGEPAGES_POLICY_PREFER)) {
        p.hand_out();
        ok = ok && p.check_ordinary();
    }
    if (params.plan_only) {
        return p.end_plan(ok);
    }
    ggml_hugepages_join_runs(images, n_images);
    return ok;
}

#endif // __linux__
