// The plan: which blocks get which pages. Allocates nothing, and reports a shortage.
//
// All wanted bytes are cut into blocks of the smallest page size, each with the best rank of its bytes. Larger pages replace whole aligned
// ranges of these blocks, so they waste no more memory than the small pages. If small pages are short, the fewest larger pages that are
// enough replace the rest, with waste. Then the blocks get pages in the order of their ranks.
//
// If a buffer of a model is on pages larger than a unit, all buffers of the model share one range, so that they share its last page.

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

// Where huge pages count as memory, a limit must also hold what the server adds after its plan: threads, connections and answers. A load
// keeps less than its plan, because the process has grown in between.
static const uint64_t GROWTH_AFTER_PLAN = 32*GGML_HUGEPAGES_MIB;
static const uint64_t GROWTH_AFTER_LOAD = 16*GGML_HUGEPAGES_MIB;

ggml_hugepages_supply ggml_hugepages_planner::read_supply(size_t page_size) const {
    auto supply = ggml_hugepages_supply_read(root, page_size, nodes);
    supply.growth = params.plan_only ? GROWTH_AFTER_PLAN : is_load ? GROWTH_AFTER_LOAD : 0;
    return supply;
}

bool ggml_hugepages_planner::find_pools() {
    if (params.page_size == GGML_HUGEPAGES_SIZE_THP) {
        smallest = ggml_hugepages_thp_size(root, &thp_enabled);
        if (smallest == 0) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no transparent huge pages");
        }
        unit = smallest;
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
    unit     = ggml_hugepages_unit(smallest);
    std::string names;
    for (size_t i = 0; i < n; i++) {
        names += (names.empty() ? "" : ", ") + ggml_hugepages_size_name(sizes[i]);
        if (sizes[i] == smallest || (is_auto && smallest != 0 && sizes[i] > smallest)) {
            supplies.push_back(read_supply(sizes[i]));
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
    image.share = {};
    const auto & resident = image.resident;
    auto wanted = ggml_hugepages_blocks_of(image, resident ? resident->page_size : smallest);
    if (wanted.empty() || image.fd_page != 0) {
        return;
    }
    largest = std::max<uint64_t>(largest, image.size);
    const size_t consumer = add_consumer({ image.kind, (int32_t) i, image.wanted, {} }, NONE);
    if (!thread_nodes.empty() && ggml_hugepages_is_of_weights(image.kind)) {
        consumers[consumer].layout = &image;
    }
    if (resident) {
        store.add(*resident, wanted, consumer);
    } else {
        blocks[consumer] = std::move(wanted);
    }
}

// space: NONE for a new one
size_t ggml_hugepages_planner::add_consumer(const ggml_hugepages_consumer & consumer, size_t space) {
    if (space == NONE) {
        space = spaces.size();
        spaces.emplace_back();
    }
    spaces[space].push_back(consumers.size());
    consumers.push_back(consumer);
    blocks.emplace_back();
    return consumers.size() - 1;
}

size_t ggml_hugepages_planner::space_of(size_t consumer) const {
    for (size_t s = 0; s < spaces.size(); s++) {
        if (std::count(spaces[s].begin(), spaces[s].end(), consumer) > 0) {
            return s;
        }
    }
    return NONE;
}

std::vector<ggml_hugepages_blocks> ggml_hugepages_planner::blocks_of(size_t space) const {
    std::vector<ggml_hugepages_blocks> result;
    for (const size_t c : spaces[space]) {
        result.insert(result.end(), blocks[c].begin(), blocks[c].end());
    }
    return result;
}

// whether its consumers are buffers outside the store, with blocks of a unit
bool ggml_hugepages_planner::is_of_buffers(size_t space) const {
    const auto list = blocks_of(space);
    return !list.empty() && !list.front().image;
}

// whether all buffers of the model share one range
bool ggml_hugepages_planner::is_shared() const {
    const auto is_of_model = [&](const auto & l) { return l.space == buffers; };
    return buffers != NONE && (std::any_of(large.begin(), large.end(), is_of_model) || (smallest > unit && is_of_buffers(buffers)));
}

void ggml_hugepages_planner::add_layout(size_t consumer, const ggml_hugepages_demand & demand) {
    if (thread_nodes.empty() || !ggml_hugepages_is_of_weights(demand.kind)) {
        return;
    }
    layouts.emplace_back();
    auto & layout = layouts.back();
    layout.kind   = demand.kind;
    layout.params = params;
    layout.matrices.assign(demand.matrices, demand.matrices + demand.n_matrices);
    consumers[consumer].layout = &layout;
}

void ggml_hugepages_planner::add_demand(const ggml_hugepages_demand & demand) {
    const auto * file = demand.resident ? demand.resident->file.get() : nullptr;
    // a demand smaller than a page of the store does not use the store
    const auto * resident = file && demand.bytes >= file->page_size ? file : nullptr;
    if (demand.bytes == 0) {
        return;
    }
    largest = std::max(largest, demand.bytes);
    const bool is_ordinary = demand.bytes < smallest && (supplies.empty() || params.load_only);
    if (resident || is_ordinary || n_images == 0) {
        const ggml_hugepages_blocks all = { (int) demand.rank, nullptr, 0, ggml_hugepages_align_up(demand.bytes, resident ? resident->page_size : unit) };
        const size_t consumer = add_consumer({ demand.kind, -1, { { 0, demand.bytes } }, {} }, NONE);
        add_layout(consumer, demand);
        if (resident) {
            store.add(*resident, { all }, consumer);
        } else if (is_ordinary) {
            ggml_hugepages_note_need(consumers[consumer], all, 0, 0);
            ordinary[demand.kind] += demand.bytes;
        } else {
            blocks[consumer].push_back(all);
        }
        return;
    }
    const ggml_hugepages_blocks all = { (int) demand.rank, nullptr, buffers_size, buffers_size + ggml_hugepages_align_up(demand.bytes, unit) };
    const size_t consumer = add_consumer({ demand.kind, -1, { { all.first, all.first + demand.bytes } }, {} }, buffers);
    add_layout(consumer, demand);
    buffers      = space_of(consumer);
    buffers_size = all.last;
    blocks[consumer].push_back(all);
    share.parts.push_back({ demand.kind, all.first, all.last });
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
    const uint64_t available = ggml_hugepages_memory_left(root, 0);
    if (!accepts_less && bytes > available) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %.2f MiB of memory for transparent huge pages, but only %.2f MiB are available",
            bytes/1024.0/1024.0, available/1024.0/1024.0);
    }
    return true;
}

void ggml_hugepages_planner::make_room_in_store() {
    if (!store.is_full()) {
        return;
    }
    const auto & file = *store.entries.front().file;
    const uint64_t pages = (store.bytes() - store.free + file.page_size - 1)/file.page_size;
    if (idle_pages(file.page_size, params.evict) < pages) {
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
            supplies.push_back(read_supply(page_size));
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

// A page that several consumers share counts for the first of them.
void ggml_hugepages_planner::note(size_t space, const ggml_hugepages_blocks & b, size_t page_size) {
    uint64_t pages = (b.last - b.first)/page_size;
    for (const size_t c : spaces[space]) {
        if (ggml_hugepages_overlap(consumers[c].wanted, b.first, b.last) > 0) {
            ggml_hugepages_note_need(consumers[c], b, page_size, pages);
            pages = 0;
        }
    }
}

void ggml_hugepages_planner::count_rest() {
    for (const auto & l : large) {
        note(l.space, l.page, l.page_size);
    }
    if (is_shared()) {
        share.size = buffers_size;
        largest    = std::max<uint64_t>(largest, buffers_size);
    }
    for (size_t s = 0; s < spaces.size(); s++) {
        std::vector<ggml_hugepages_consumed> list;
        if (smallest > unit && is_of_buffers(s)) {
            for (const auto & w : ggml_hugepages_windows(blocks_of(s), smallest)) {
                list.emplace_back(spaces[s].front(), w.page);
            }
        } else {
            for (const size_t c : spaces[s]) {
                for (const auto & b : blocks[c]) {
                    list.emplace_back(c, b);
                }
            }
        }
        for (const auto & [consumer, b] : list) {
            note(s, b, smallest);
            rest.emplace_back(consumer, b);
            need[smallest] += (b.last - b.first)/smallest;
        }
    }
}

// Gives pages to blocks: to their image, to the range that the buffers share, or to the buffer after the weights.
void ggml_hugepages_planner::give(size_t consumer, const ggml_hugepages_blocks & b, size_t page_size, uint64_t pages) {
    if (pages == 0) {
        return;
    }
    ggml_hugepages_run run = { b.first, b.first + pages*page_size, page_size, std::max(0, b.rank) };
    run.owner = b.file ? GGML_HUGEPAGES_OWNER_FILLING : GGML_HUGEPAGES_OWNER_PROCESS;
    if (b.image) {
        b.image->runs.push_back(run);
    } else if (!b.file && share.size > 0 && space_of(consumer) == buffers) {
        share.runs.push_back(run);
    } else if (!b.file) {
        const auto & c = consumers[consumer];
        if (n_images > 0 && c.image == -1 && ggml_hugepages_follows_load(c.kind)) {
            // the buffers after the weights get these pages when they are allocated
            images[0]->grants.push_back({ c.kind, page_size, pages });
        }
    }
}

// gives the usable pages to the blocks, the best ranks first
void ggml_hugepages_planner::hand_out() {
    for (const auto & l : large) {
        give(spaces[l.space].front(), l.page, l.page_size, 1);
    }
    for (const auto & s : supplies) {
        const size_t page_size = s.pool.page_size;
        const auto is_large = [&](const auto & l) { return l.page_size == page_size; };
        uint64_t left = s.usable() - std::min<uint64_t>(s.usable(), before(page_size) + std::count_if(large.begin(), large.end(), is_large));
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
            give(consumer, b, page_size, pages);
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
    uint64_t huge = 0;
    for (const auto & s : supplies) {
        huge += std::min(wanted(s.pool.page_size), s.usable())*s.pool.page_size;
    }
    const uint64_t available = ggml_hugepages_memory_left(root, huge);
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
    leave_rooms();
    ggml_hugepages_set_planned_rooms(rooms);
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
        for (size_t i = 0; i < n_images; i++) {
            ggml_hugepages_join_runs(images[i]->runs);
        }
        return params.plan_only ? p.end_plan(ok) : ok;
    }
    p.take_rooms();
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
    p.take_pages_with_waste();
    p.count_rest();
    p.place_pages();
    bool ok = p.check_shortage() && p.check_nodes() && p.check_by_trying();
    // a plan also tells what a load with `prefer` would leave out
    if (ok || (params.plan_only && params.policy == GGML_HUGEPAGES_POLICY_PREFER)) {
        p.hand_out();
        ok = p.check_ordinary() && ok;
    }
    if (params.plan_only) {
        return p.end_plan(ok);
    }
    for (size_t i = 0; i < n_images; i++) {
        ggml_hugepages_join_runs(images[i]->runs);
    }
    if (n_images > 0 && p.share.size > 0) {
        ggml_hugepages_join_runs(p.share.runs);
        images[0]->share = p.share;
    }
    return ok;
}

#endif // __linux__
