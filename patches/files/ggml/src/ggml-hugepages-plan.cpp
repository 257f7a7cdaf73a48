// The plan: which blocks get which pages. Allocates nothing, and reports a shortage.
//
// All wanted bytes are cut into blocks of the smallest page size, each with the best rank of its bytes. Larger pages replace whole aligned
// ranges of these blocks, so they waste no more memory than the small pages. Then the blocks get pages in the order of their ranks.

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <mutex>

using ranges = ggml_hugepages_ranges;

ranges ggml_hugepages_normalized(ranges in) {
    std::sort(in.begin(), in.end());
    ranges out;
    for (const auto & r : in) {
        if (!out.empty() && r.first <= out.back().second) {
            out.back().second = std::max(out.back().second, r.second);
        } else {
            out.push_back(r);
        }
    }
    return out;
}

ranges ggml_hugepages_minus(const ranges & a, const ranges & b) {
    ranges out;
    auto it = b.begin();
    for (auto [first, last] : a) {
        while (it != b.end() && it->second <= first) {
            ++it;
        }
        for (auto hole = it; hole != b.end() && hole->first < last; ++hole) {
            if (hole->first > first) {
                out.emplace_back(first, hole->first);
            }
            first = std::min(last, hole->second);
        }
        if (first < last) {
            out.emplace_back(first, last);
        }
    }
    return out;
}

size_t ggml_hugepages_overlap(const ranges & rs, size_t first, size_t last) {
    size_t sum = 0;
    auto it = std::lower_bound(rs.begin(), rs.end(), first, [](const auto & r, size_t x) { return r.second <= x; });
    for (; it != rs.end() && it->first < last; ++it) {
        sum += std::min(it->second, last) - std::max(it->first, first);
    }
    return sum;
}

namespace {

// an image or a demand that wants pages
struct owner {
    ggml_hugepages_kind      kind;
    int32_t                  image;  // index of the image, -1 for a demand
    ranges                   wanted; // bytes of tensors
    std::map<size_t, ggml_hugepages_need> needs; // by page size
};

// blocks [first, last) of an image, or of a demand, which has no image
struct piece {
    int                    rank;
    ggml_hugepages_image * image;
    size_t                 first;
    size_t                 last;
    const ggml_hugepages_store_file * file = nullptr; // the file in the store that holds them, or nullptr
};

// the needs of the last plan with plan_only
std::mutex                       g_needs_mutex;
std::vector<ggml_hugepages_need> g_needs;
ggml_hugepages_error             g_plan_end = {};

void note_need(owner & o, const piece & p, size_t page_size) {
    auto & need = o.needs[page_size];
    need.kind      = o.kind;
    need.image     = o.image;
    need.page_size = page_size;
    need.pages    += page_size == 0 ? 0 : (p.last - p.first)/page_size;
    need.bytes    += ggml_hugepages_overlap(o.wanted, p.first, p.last);
}

bool end_plan(const std::vector<owner> & who, bool ok, ggml_hugepages_error * error) {
    if (ok) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_PLANNED, "the plan is complete");
    }
    std::lock_guard<std::mutex> lock(g_needs_mutex);
    g_plan_end = *error;
    g_needs.clear();
    for (const auto & o : who) {
        for (const auto & [_, need] : o.needs) {
            g_needs.push_back(need);
        }
    }
    return false;
}

// the blocks of page_size inside the pieces, which belong to one image or one demand
void cut_large(const std::vector<piece> & pieces, size_t page_size, std::vector<piece> & large) {
    ranges rs;
    for (const auto & p : pieces) {
        rs.emplace_back(p.first, p.last);
    }
    for (const auto & r : ggml_hugepages_normalized(rs)) {
        for (size_t at = ggml_hugepages_align_up(r.first, page_size); at + page_size <= r.second; at += page_size) {
            int rank = INT32_MAX;
            for (const auto & p : pieces) {
                if (p.first < at + page_size && p.last > at) {
                    rank = std::min(rank, p.rank);
                }
            }
            large.push_back({ rank, pieces.front().image, at, at + page_size });
        }
    }
}

// removes [first, last) from the pieces
void cut_out(std::vector<piece> & pieces, size_t first, size_t last) {
    std::vector<piece> out;
    for (const auto & p : pieces) {
        if (p.last <= first || p.first >= last) {
            out.push_back(p);
            continue;
        }
        if (p.first < first) {
            out.push_back({ p.rank, p.image, p.first, first });
        }
        if (p.last > last) {
            out.push_back({ p.rank, p.image, last, p.last });
        }
    }
    pieces = std::move(out);
}

// Blocks that belong in a store. They use the store's page size, and blocks that are already in the store need no page.
struct residents {
    struct entry {
        const ggml_hugepages_store_file * file;
        size_t                            owner;
        uint64_t                          manifest; // pages
        std::vector<piece>                missing;  // one piece for each page
        bool                              is_whole; // a buffer: the store holds all of it or nothing
    };
    std::vector<entry>           entries;
    std::map<size_t, uint64_t>   own;      // pages that the store already has, by page size
    uint64_t                     free = UINT64_MAX; // bytes of the mount

    void add(const ggml_hugepages_store_file & f, const std::vector<piece> & all, size_t owner) {
        entry e = { &f, owner, f.pages_of_manifest(), {}, f.is_buffer };
        for (const auto & p : all) {
            for (size_t at = p.first; at < p.last; at += f.page_size) {
                if (!f.has_page(at)) {
                    // the filler allocates the page with the manifest first in any case
                    const int rank = at + f.page_size > f.sums_at ? -1 : p.rank;
                    e.missing.push_back({ rank, p.image, at, at + f.page_size, &f });
                } else if (p.image) {
                    ggml_hugepages_run run = { at, at + f.page_size, f.page_size, p.rank };
                    run.owner = f.has(at, std::min(f.size, at + f.page_size)) ? GGML_HUGEPAGES_OWNER_ATTACHED : GGML_HUGEPAGES_OWNER_FILLING;
                    p.image->runs.push_back(run);
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

    uint64_t need(size_t page_size) const {
        uint64_t pages = 0;
        for (const auto & e : entries) {
            pages += e.file->page_size == page_size ? e.missing.size() + e.manifest : 0;
        }
        return pages;
    }

    // the pages that the store does not have yet
    uint64_t need_of_pool(size_t page_size) const {
        const auto it = own.find(page_size);
        return need(page_size) - std::min(need(page_size), it == own.end() ? 0 : it->second);
    }

    uint64_t bytes() const {
        uint64_t sum = 0;
        for (const auto & [page_size, _] : own) {
            sum += need(page_size)*page_size;
        }
        return sum;
    }

    bool is_full() const { return bytes() > free; }

    // Keeps the blocks that fit in the mount, the best ranks first. Returns the rest.
    std::vector<std::pair<size_t, piece>> fit() {
        std::vector<std::pair<size_t, piece>> rest; // with their owner
        uint64_t room = free;
        for (auto & e : entries) {
            const size_t page_size = e.file->page_size;
            std::stable_sort(e.missing.begin(), e.missing.end(), [](const piece & a, const piece & b) { return a.rank < b.rank; });
            const uint64_t pages = room == UINT64_MAX ? UINT64_MAX : room/page_size;
            uint64_t n = pages > e.manifest ? std::min<uint64_t>(e.missing.size(), pages - e.manifest) : 0;
            n = e.is_whole && n < e.missing.size() ? 0 : n;
            for (size_t i = n; i < e.missing.size(); i++) {
                rest.emplace_back(e.owner, e.missing[i]);
            }
            e.missing.resize(n);
            e.manifest = n > 0 ? e.manifest : 0;
            room -= room == UINT64_MAX ? 0 : (n + e.manifest)*page_size;
        }
        return rest;
    }

    void note(std::vector<owner> & who) const {
        for (const auto & e : entries) {
            for (const auto & p : e.missing) {
                note_need(who[e.owner], p, e.file->page_size);
            }
            if (e.manifest > 0) {
                // the manifest has no bytes of tensors, because it is behind them
                note_need(who[e.owner], { 0, nullptr, e.file->length - e.manifest*e.file->page_size, e.file->length }, e.file->page_size);
            }
        }
    }

    bool fail_full(ggml_hugepages_error * error) const {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the resident images need %.2f MiB, but the mount has only %.2f MiB left",
            bytes()/1024.0/1024.0, free/1024.0/1024.0);
        ggml_hugepages_hint(error, "run hugepages store gc, raise the limit of the mount (hugepages store unmount, then mount --limit), or use --hugepage-policy prefer");
        return false;
    }
};

} // namespace

// the blocks that contain wanted bytes of an image, each with its best rank
static std::vector<piece> pieces_of(ggml_hugepages_image & image, size_t page_size) {
    std::vector<piece> result;
    ranges wanted, taken;
    std::stable_sort(image.wants.begin(), image.wants.end(), [](const auto & a, const auto & b) { return a.rank < b.rank; });
    for (auto it = image.wants.begin(); it != image.wants.end(); ) {
        ranges blocks;
        const int rank = it->rank;
        for (; it != image.wants.end() && it->rank == rank; ++it) {
            wanted.emplace_back(it->first, it->last);
            if (it->first < it->last) {
                blocks.emplace_back(ggml_hugepages_align_down(it->first, page_size), ggml_hugepages_align_up(it->last, page_size));
            }
        }
        blocks = ggml_hugepages_minus(ggml_hugepages_normalized(blocks), taken);
        for (const auto & b : blocks) {
            result.push_back({ rank, &image, b.first, b.second });
        }
        taken.insert(taken.end(), blocks.begin(), blocks.end());
        taken = ggml_hugepages_normalized(taken);
    }
    image.wanted = ggml_hugepages_normalized(wanted);
    return result;
}

// Sorts the runs by offset, and joins neighbours of one size and owner, to save mappings.
static void join_runs(ggml_hugepages_image_t * images, size_t n_images) {
    for (size_t i = 0; i < n_images; i++) {
        auto & runs = images[i]->runs;
        std::sort(runs.begin(), runs.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
        std::vector<ggml_hugepages_run> joined;
        for (const auto & r : runs) {
            if (!joined.empty() && joined.back().last == r.first && joined.back().page_size == r.page_size && joined.back().owner == r.owner) {
                joined.back().last = r.last;
                joined.back().rank = std::min(joined.back().rank, r.rank);
            } else {
                joined.push_back(r);
            }
        }
        runs = std::move(joined);
    }
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

static bool decide_thp(
        const char                  * root,
        std::vector<std::vector<piece>> & owners,
        size_t                        page_size,
        bool                          enabled,
        const ggml_hugepages_params & params,
        ggml_hugepages_error        * error) {
    if (page_size == 0 || !enabled) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel %s", page_size == 0 ? "has no transparent huge pages" : "has transparent huge pages disabled");
        if (page_size != 0) {
            ggml_hugepages_hint(error, "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled");
        }
        return false;
    }
    uint64_t need = 0;
    for (const auto & pieces : owners) {
        for (const auto & p : pieces) {
            need += p.last - p.first;
            if (p.image) {
                p.image->runs.push_back({ p.first, p.last, page_size, p.rank });
            }
        }
    }
    const uint64_t available = ggml_hugepages_mem_available(root);
    if (!ggml_hugepages_accepts_less(&params) && need > available) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %.2f MiB of memory for transparent huge pages, but only %.2f MiB are available",
            need/1024.0/1024.0, available/1024.0/1024.0);
    }
    return true;
}

bool ggml_hugepages_decide(
        const char *                  root,
        ggml_hugepages_image_t *      images,
        size_t                        n_images,
        const ggml_hugepages_demand * demands,
        size_t                        n_demands,
        const ggml_hugepages_params & params,
        ggml_hugepages_error *        error) {
    // the usable pools, the smallest size first
    std::vector<ggml_hugepages_supply> supplies;
    const auto nodes = ggml_hugepages_placement_nodes(root, params.placement);
    bool   thp_enabled = false;
    size_t smallest    = 0;
    if (params.page_size == GGML_HUGEPAGES_SIZE_THP) {
        smallest = ggml_hugepages_thp_size(root, &thp_enabled);
        if (smallest == 0) {
            std::vector<std::vector<piece>> none;
            return decide_thp(root, none, 0, false, params, error);
        }
    } else {
        size_t sizes[16];
        const size_t n = std::min<size_t>(16, ggml_hugepages_page_sizes(root, sizes, 16));
        smallest = params.page_size == GGML_HUGEPAGES_SIZE_AUTO ? ggml_hugepages_page_size(root) : params.page_size;
        std::string names;
        for (size_t i = 0; i < n; i++) {
            names += (names.empty() ? "" : ", ") + ggml_hugepages_size_name(sizes[i]);
            if (sizes[i] == smallest || (params.page_size == GGML_HUGEPAGES_SIZE_AUTO && smallest != 0 && sizes[i] > smallest)) {
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
    }

    // images first; a demand has no image, so its pieces need no pointer to it
    std::vector<std::vector<piece>> owners;
    std::vector<owner>              who; // the owners of these pieces
    residents                       of_store;
    for (size_t i = 0; i < n_images; i++) {
        images[i]->params = params;
        images[i]->runs.clear();
        images[i]->grants.clear();
        const auto & resident = images[i]->resident;
        auto pieces = pieces_of(*images[i], resident ? resident->page_size : smallest);
        if (!pieces.empty() && images[i]->fd_page == 0) {
            who.push_back({ images[i]->kind, (int32_t) i, images[i]->wanted, {} });
            if (resident) {
                of_store.add(*resident, pieces, who.size() - 1);
                pieces.clear();
            }
            owners.push_back(std::move(pieces));
        }
    }
    for (size_t i = 0; i < n_demands; i++) {
        const auto * file = demands[i].resident ? demands[i].resident->file.get() : nullptr;
        // a demand smaller than a page of the store does not use the store
        const auto * resident = file && demands[i].bytes >= file->page_size ? file : nullptr;
        const piece  all      = { (int) demands[i].rank, nullptr, 0, ggml_hugepages_align_up(demands[i].bytes, resident ? resident->page_size : smallest) };
        who.push_back({ demands[i].kind, -1, { { 0, demands[i].bytes } }, {} });
        owners.emplace_back();
        if (resident) {
            of_store.add(*resident, { all }, who.size() - 1);
        } else if (demands[i].bytes >= smallest) {
            owners.back().push_back(all);
        } else if (demands[i].bytes > 0) {
            // a demand smaller than a page uses ordinary memory
            note_need(who.back(), all, 0);
        }
    }
    if (supplies.empty()) {
        for (size_t o = 0; o < owners.size(); o++) {
            for (const auto & p : owners[o]) {
                note_need(who[o], p, smallest);
            }
        }
        const bool ok = decide_thp(root, owners, smallest, thp_enabled, params, error);
        join_runs(images, n_images);
        return params.plan_only ? end_plan(who, ok, error) : ok;
    }
    const bool accepts_less = ggml_hugepages_accepts_less(&params);
    if (of_store.is_full() && accepts_less) {
        GGML_LOG_WARN("%s: the mount of the store has room for only %.2f of %.2f MiB; the rest will not remain in memory after this process ends\n", __func__,
            of_store.free/1024.0/1024.0, of_store.bytes()/1024.0/1024.0);
        uint64_t left_in_file = 0;
        for (const auto & [o, p] : of_store.fit()) {
            // the process' own pages can replace only store pages that are at least as large
            if (p.file->page_size % smallest == 0) {
                owners[o].push_back({ std::max(0, p.rank), p.image, p.first, p.last });
            } else {
                left_in_file += p.last - p.first;
            }
        }
        if (left_in_file > 0) {
            GGML_LOG_WARN("%s: %.2f MiB of the rest use ordinary memory, because the pages of the store are smaller than %s\n", __func__,
                left_in_file/1024.0/1024.0, ggml_hugepages_size_name(smallest).c_str());
        }
    }
    of_store.note(who);
    // the store may use a page size that nothing else uses
    for (const auto & e : of_store.entries) {
        const size_t page_size = e.file->page_size;
        if (std::none_of(supplies.begin(), supplies.end(), [&](const auto & s) { return s.pool.page_size == page_size; })) {
            supplies.push_back(ggml_hugepages_supply_read(root, page_size, nodes));
        }
    }
    std::sort(supplies.begin(), supplies.end(), [](const auto & a, const auto & b) { return a.pool.page_size < b.pool.page_size; });
    // a buffer that the plan of the weights already counted
    if (n_images == 1 && images[0]->fd == -1) {
        for (auto & s : supplies) {
            s.held     = ggml_hugepages_held_pages(images[0]->kind, s.pool.page_size);
            s.promised = ggml_hugepages_promised(s.pool.page_size, images[0]) - s.held;
        }
    }

    std::map<size_t, uint64_t> need; // pages
    const auto grant = [&](size_t o, size_t page_size, uint64_t pages) {
        const bool follows = who[o].kind == GGML_HUGEPAGES_KIND_KV || who[o].kind == GGML_HUGEPAGES_KIND_COMPUTE;
        if (n_images > 0 && who[o].image == -1 && follows && pages > 0) {
            images[0]->grants.push_back({ who[o].kind, page_size, pages });
        }
    };
    for (size_t s = supplies.size(); s-- > 0; ) {
        const size_t page_size = supplies[s].pool.page_size;
        if (page_size <= smallest) {
            continue;
        }
        const uint64_t kept = of_store.need_of_pool(page_size);
        uint64_t left = supplies[s].usable() - std::min(supplies[s].usable(), kept);
        if (left == 0 || (params.page_size != GGML_HUGEPAGES_SIZE_AUTO && params.page_size != page_size)) {
            continue;
        }
        std::vector<std::pair<size_t, piece>> candidates; // with their owner
        for (size_t o = 0; o < owners.size(); o++) {
            std::vector<piece> large;
            if (!owners[o].empty()) {
                cut_large(owners[o], page_size, large);
            }
            for (const auto & p : large) {
                candidates.emplace_back(o, p);
            }
        }
        std::stable_sort(candidates.begin(), candidates.end(), [](const auto & a, const auto & b) { return a.second.rank < b.second.rank; });
        for (const auto & [o, p] : candidates) {
            if (left == 0) {
                break;
            }
            left--;
            need[page_size]++;
            note_need(who[o], p, page_size);
            grant(o, page_size, 1);
            cut_out(owners[o], p.first, p.last);
            if (p.image) {
                p.image->runs.push_back({ p.first, p.last, page_size, p.rank });
            }
        }
    }

    std::vector<std::pair<size_t, piece>> rest; // with their owner
    for (size_t o = 0; o < owners.size(); o++) {
        for (const auto & p : owners[o]) {
            note_need(who[o], p, smallest);
            rest.emplace_back(o, p);
            need[smallest] += (p.last - p.first)/smallest;
        }
    }
    std::vector<std::pair<uint64_t, ggml_hugepages_supply>> shortages;
    for (const auto & s : supplies) {
        // a plan never needs more large pages than are usable, so only a store with large pages can be short of them
        const size_t   page_size = s.pool.page_size;
        const uint64_t wanted    = of_store.need_of_pool(page_size) + (page_size == smallest ? need[smallest] : 0);
        if (wanted > s.usable()) {
            shortages.emplace_back(wanted, s);
        }
    }
    if (!shortages.empty()) {
        if (!accepts_less) {
            ggml_hugepages_fail_short(root, shortages, error);
            return end_plan(who, false, error);
        }
        // once for a model, and not for each of its buffers
        if (n_images != 1 || images[0]->fd != -1) {
            for (const auto & [pages, s] : shortages) {
                GGML_LOG_WARN("%s: only %" PRIu64 " of %" PRIu64 " huge pages of %s are usable, the rest uses ordinary memory\n", __func__,
                    s.usable(), pages, ggml_hugepages_size_name(s.pool.page_size).c_str());
            }
        }
    } else if (of_store.is_full() && !accepts_less) {
        of_store.fail_full(error);
        return end_plan(who, false, error);
    }
    const bool is_load  = n_images > 0 && images[0]->fd != -1;
    const bool may_hide = ggml_hugepages_limits_may_hide(root);
    for (size_t i = 0; i < n_images; i++) {
        images[i]->limits_may_hide = may_hide && !accepts_less;
    }
    for (const auto & s : supplies) {
        const size_t   page_size = s.pool.page_size;
        const uint64_t wanted    = of_store.need_of_pool(page_size) + need[page_size];
        // Only a trial detects an invisible limit or a forbidden call. If an invisible limit is possible, a plan populates all of its pages
        // for a moment; a load only reserves them, because it populates them soon.
        const uint64_t n_reserve  = may_hide ? wanted : 1;
        const uint64_t n_populate = may_hide && params.plan_only ? wanted : 1;
        if (is_load && wanted > 0 && s.usable() >= wanted && !accepts_less && !ggml_hugepages_try(root, page_size, n_reserve, n_populate, wanted, error)) {
            return end_plan(who, false, error);
        }
    }
    if (params.plan_only) {
        return end_plan(who, true, error);
    }
    for (const auto & s : supplies) {
        const size_t page_size = s.pool.page_size;
        uint64_t left = s.usable();
        uint64_t own  = of_store.own[page_size];
        auto pieces = page_size == smallest ? rest : std::vector<std::pair<size_t, piece>>();
        for (const auto & e : of_store.entries) {
            // without a page for the manifest, no page remains in the store
            if (e.file->page_size == page_size && !e.missing.empty() && own + left > e.manifest) {
                const uint64_t from_own = std::min(own, e.manifest);
                own  -= from_own;
                left -= e.manifest - from_own;
                for (const auto & p : e.missing) {
                    pieces.emplace_back(e.owner, p);
                }
            }
        }
        std::stable_sort(pieces.begin(), pieces.end(), [](const auto & a, const auto & b) { return a.second.rank < b.second.rank; });
        for (const auto & [o, p] : pieces) {
            const uint64_t want     = (p.last - p.first)/page_size;
            const uint64_t from_own = p.file ? std::min(own, want) : 0;
            const uint64_t pages    = from_own + std::min(left, want - from_own);
            own  -= from_own;
            left -= pages - from_own;
            if (p.image && pages > 0) {
                ggml_hugepages_run run = { p.first, p.first + pages*page_size, page_size, std::max(0, p.rank) };
                run.owner = p.file ? GGML_HUGEPAGES_OWNER_FILLING : GGML_HUGEPAGES_OWNER_PROCESS;
                p.image->runs.push_back(run);
            } else if (!p.file) {
                grant(o, page_size, pages);
            }
        }
    }
    join_runs(images, n_images);
    return true;
}
