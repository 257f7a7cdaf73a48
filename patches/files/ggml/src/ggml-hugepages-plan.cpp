// The decision: which blocks lie on which pages. Takes nothing, and says what is missing.
//
// Whatever is wanted is cut into blocks of the smallest page size, each with the best rank of the bytes in it. Larger pages
// replace whole aligned ranges of these blocks, so that they waste no more than the smallest would. Pages are then given out
// in the order of ranks.

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
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

//
// messages
//

bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    error->status = status;
    vsnprintf(error->message, sizeof(error->message), fmt, args);
    va_end(args);
    error->hint[0] = '\0';
    return false;
}

void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(error->hint, sizeof(error->hint), fmt, args);
    va_end(args);
}

namespace {

struct shortage {
    uint64_t              need; // pages
    ggml_hugepages_supply supply;
};

std::string to_str(const shortage & s) {
    const auto & pool = s.supply.pool;
    char buf[512];
    snprintf(buf, sizeof(buf), "%" PRIu64 " huge pages of %s (%.2f MiB), %" PRIu64 " can be had: "
        "free %" PRIu64 ", reserved %" PRIu64 ", total %" PRIu64 ", surplus %" PRIu64 ", overcommit %" PRIu64,
        s.need, ggml_hugepages_size_name(pool.page_size).c_str(), s.need*pool.page_size/1024.0/1024.0, s.supply.usable(),
        pool.free, pool.reserved, pool.total, pool.surplus, pool.overcommit);
    std::string text = buf;
    if (s.supply.is_bound || s.supply.nodes.size() > 1) {
        for (const auto & node : s.supply.nodes) {
            snprintf(buf, sizeof(buf), ", node %d free %" PRIu64 " of %" PRIu64, node.id, node.free, node.total);
            text += buf;
        }
    }
    if (const auto * limit = s.supply.tightest()) {
        snprintf(buf, sizeof(buf), ", %s of cgroup %s %" PRIu64 " (used %" PRIu64 ")",
            limit->file.c_str(), limit->path.c_str(), limit->limit, limit->used);
        text += buf;
    }
    return text;
}

// the commands, each with a new total that keeps what others have
std::string to_hint(const char * root, const shortage & s) {
    const auto   & pool   = s.supply.pool;
    const uint64_t usable = s.supply.usable_of_pool();
    std::string text;
    if (s.need > usable) {
        if (s.supply.is_bound && !s.supply.nodes.empty()) {
            const auto & node = s.supply.nodes.front();
            text = "echo " + std::to_string(node.total + s.need - usable) + " > /sys/devices/system/node/node" + std::to_string(node.id) +
                "/hugepages/hugepages-" + std::to_string(pool.page_size/1024) + "kB/nr_hugepages";
        } else {
            text = ggml_hugepages_pool_command(root, pool.page_size, pool.total + s.need - usable);
        }
    }
    // a larger pool does not help against a limit
    for (const auto & limit : s.supply.limits) {
        if (limit.used + s.need*pool.page_size > limit.limit) {
            text += (text.empty() ? "" : ", ") + limit.file + " of cgroup " + limit.path + ": " + std::to_string(limit.used + s.need*pool.page_size);
        }
    }
    return text;
}

bool fail_short(const char * root, const std::vector<shortage> & shortages, ggml_hugepages_error * error) {
    std::string message, hint;
    bool limit_only = true;
    for (const auto & s : shortages) {
        message += (message.empty() ? "" : "; ") + to_str(s);
        const std::string h = to_hint(root, s);
        hint += (hint.empty() || h.empty() ? "" : ", ") + h;
        limit_only = limit_only && s.need <= s.supply.usable_of_pool();
    }
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %s%s", message.c_str(),
        limit_only ? " (the pool is large enough, the cgroup is not)" : "");
    ggml_hugepages_hint(error, "%s%s--hugepage-policy prefer to use what there is", hint.c_str(), hint.empty() ? "" : ", or ");
    return false;
}

// who wants pages: an image or a demand
struct owner {
    ggml_hugepages_kind      kind;
    int32_t                  image;  // its index, -1 for a demand
    ranges                   wanted; // bytes of tensors
    std::map<size_t, ggml_hugepages_need> needs; // by page size
};

// blocks [first, last) of an image, or of a demand, which has no image
struct piece {
    int                    rank;
    ggml_hugepages_image * image;
    size_t                 first;
    size_t                 last;
    bool                   is_resident = false; // in a store
};

// what owners need, for whoever asks after a decision that was only a question
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
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_PLANNED, "the plan is made");
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

// the largest blocks that lie wholly in the pieces, which are those of one image or one demand
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

// takes [first, last) out of the pieces
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

void by_rank(std::vector<piece> & pieces) {
    std::stable_sort(pieces.begin(), pieces.end(), [](const piece & a, const piece & b) { return a.rank < b.rank; });
}

// Those who have a place in a store: their page size is its own, and what is there already needs no page.
struct residents {
    std::map<size_t, std::vector<piece>> pieces; // that are missing, by page size
    std::map<size_t, uint64_t>           extra;  // pages of manifests
    std::map<size_t, uint64_t>           set_aside; // pages that the mounts keep for their files
    uint64_t                             free = UINT64_MAX; // bytes of the mount

    void add(const ggml_hugepages_store_file & f, const std::vector<piece> & all, owner & o) {
        for (const auto & p : all) {
            for (size_t at = p.first; at < p.last; at += f.page_size) {
                const piece block = { p.rank, p.image, at, at + f.page_size, true };
                if (!f.has_page(at)) {
                    pieces[f.page_size].push_back(block);
                    note_need(o, block, f.page_size);
                } else if (p.image) {
                    p.image->runs.push_back({ at, at + f.page_size, f.page_size, p.rank });
                }
            }
        }
        const uint64_t n = f.pages_of_manifest();
        extra[f.page_size] += n;
        if (n > 0) {
            // no bytes of tensors: it lies behind them
            note_need(o, { 0, nullptr, f.length - n*f.page_size, f.length }, f.page_size);
        }
        free = std::min(free, ggml_hugepages_store_free(f));
        // once, and not at all where everything is there: it walks the mount
        if (need(f.page_size) > 0 && set_aside.count(f.page_size) == 0) {
            set_aside[f.page_size] = ggml_hugepages_store_set_aside(f);
        }
    }

    std::vector<piece> missing(size_t page_size) const {
        const auto it = pieces.find(page_size);
        return it == pieces.end() ? std::vector<piece>() : it->second;
    }

    uint64_t need(size_t page_size) const {
        const auto blocks    = pieces.find(page_size);
        const auto manifests = extra.find(page_size);
        return (blocks == pieces.end() ? 0 : blocks->second.size()) + (manifests == extra.end() ? 0 : manifests->second);
    }

    // what the mounts do not have by themselves
    uint64_t need_of_pool(size_t page_size) const {
        const auto it = set_aside.find(page_size);
        return need(page_size) - std::min(need(page_size), it == set_aside.end() ? 0 : it->second);
    }

    uint64_t bytes() const {
        uint64_t sum = 0;
        for (const auto & [page_size, _] : extra) {
            sum += need(page_size)*page_size;
        }
        return sum;
    }

    bool is_full() const { return bytes() > free; }

    bool fail_full(ggml_hugepages_error * error) const {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the resident images need %.2f MiB, %.2f MiB are left of the size of the mount",
            bytes()/1024.0/1024.0, free/1024.0/1024.0);
        ggml_hugepages_hint(error, "hugepages store gc, a mount with a larger limit (hugepages store unmount, then mount --limit), or --hugepage-policy prefer");
        return false;
    }
};

} // namespace

// what an image wants, in blocks, each with its best rank
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

// in the order of the file; neighbours of one size are one run, whatever their rank: fewer mappings
static void join_runs(ggml_hugepages_image_t * images, size_t n_images) {
    for (size_t i = 0; i < n_images; i++) {
        auto & runs = images[i]->runs;
        std::sort(runs.begin(), runs.end(), [](const auto & a, const auto & b) { return a.first < b.first; });
        std::vector<ggml_hugepages_run> joined;
        for (const auto & r : runs) {
            if (!joined.empty() && joined.back().last == r.first && joined.back().page_size == r.page_size) {
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
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel %s", page_size == 0 ? "has no THP" : "has THP switched off");
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
    if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE && need > available) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "the model needs %.2f MiB of anonymous memory for THP, %.2f MiB are available",
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
    // the pools that are used, the smallest first
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
            ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "this kernel has no pool of huge pages of %s, it has: %s",
                ggml_hugepages_size_name(smallest).c_str(), names.empty() ? "none" : names.c_str());
            ggml_hugepages_hint(error, "--hugepage-size auto");
            return false;
        }
    }

    // images first, so that pointers to demands need not be kept: a demand has no image
    std::vector<std::vector<piece>> owners;
    std::vector<owner>              who; // the owners' names
    residents                       of_store;
    for (size_t i = 0; i < n_images; i++) {
        images[i]->params = params;
        images[i]->runs.clear();
        const auto & resident = images[i]->resident;
        auto pieces = pieces_of(*images[i], resident ? resident->page_size : smallest);
        if (!pieces.empty() && images[i]->fd_page == 0) {
            who.push_back({ images[i]->kind, (int32_t) i, images[i]->wanted, {} });
            if (resident) {
                of_store.add(*resident, pieces, who.back());
                pieces.clear();
            }
            owners.push_back(std::move(pieces));
        }
    }
    for (size_t i = 0; i < n_demands; i++) {
        const auto * file = demands[i].resident ? demands[i].resident->file.get() : nullptr;
        // less than a page of the store has no place in it
        const auto * resident = file && demands[i].bytes >= file->page_size ? file : nullptr;
        const piece  all      = { (int) demands[i].rank, nullptr, 0, ggml_hugepages_align_up(demands[i].bytes, resident ? resident->page_size : smallest) };
        who.push_back({ demands[i].kind, -1, { { 0, demands[i].bytes } }, {} });
        owners.emplace_back();
        if (resident) {
            of_store.add(*resident, { all }, who.back());
        } else if (demands[i].bytes >= smallest) {
            owners.back().push_back(all);
        } else if (demands[i].bytes > 0) {
            // less than a page stays ordinary memory
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

    std::map<size_t, uint64_t> need; // pages
    for (size_t s = supplies.size(); s-- > 1; ) {
        const size_t page_size = supplies[s].pool.page_size;
        const uint64_t kept = of_store.need_of_pool(page_size);
        uint64_t left = supplies[s].usable() - std::min(supplies[s].usable(), kept);
        if (left == 0) {
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
            cut_out(owners[o], p.first, p.last);
            if (p.image) {
                p.image->runs.push_back({ p.first, p.last, page_size, p.rank });
            }
        }
    }

    std::vector<piece> rest;
    for (size_t o = 0; o < owners.size(); o++) {
        for (const auto & p : owners[o]) {
            note_need(who[o], p, smallest);
        }
        rest.insert(rest.end(), owners[o].begin(), owners[o].end());
    }
    for (const auto & p : rest) {
        need[smallest] += (p.last - p.first)/smallest;
    }
    std::vector<shortage> shortages;
    for (const auto & s : supplies) {
        // of larger pages as many are used as there are, so only a store of theirs can be short
        const size_t   page_size = s.pool.page_size;
        const uint64_t wanted    = of_store.need_of_pool(page_size) + (page_size == smallest ? need[smallest] : 0);
        if (wanted > s.usable()) {
            shortages.push_back({ wanted, s });
        }
    }
    if (!shortages.empty()) {
        if (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE || params.plan_only) {
            fail_short(root, shortages, error);
            return end_plan(who, false, error);
        }
        // once for a model, not again for each of its buffers
        if (n_images != 1 || images[0]->fd != -1) {
            for (const auto & s : shortages) {
                GGML_LOG_WARN("%s: %" PRIu64 " of %" PRIu64 " huge pages of %s can be had, the rest is ordinary memory\n", __func__,
                    s.supply.usable(), s.need, ggml_hugepages_size_name(s.supply.pool.page_size).c_str());
            }
        }
    } else if (of_store.is_full() && (params.policy == GGML_HUGEPAGES_POLICY_REQUIRE || params.plan_only)) {
        of_store.fail_full(error);
        return end_plan(who, false, error);
    }
    if (params.plan_only) {
        return end_plan(who, true, error);
    }
    for (const auto & s : supplies) {
        const size_t page_size = s.pool.page_size;
        auto pieces = of_store.missing(page_size);
        if (page_size == smallest) {
            pieces.insert(pieces.end(), rest.begin(), rest.end());
        }
        by_rank(pieces);
        uint64_t left      = s.usable();
        uint64_t set_aside = of_store.set_aside[page_size];
        for (const auto & p : pieces) {
            const uint64_t want  = (p.last - p.first)/page_size;
            const uint64_t own   = p.is_resident ? std::min(set_aside, want) : 0;
            const uint64_t pages = own + std::min(left, want - own);
            set_aside -= own;
            left      -= pages - own;
            if (p.image && pages > 0) {
                p.image->runs.push_back({ p.first, p.first + pages*page_size, page_size, p.rank });
            }
        }
    }
    join_runs(images, n_images);
    return true;
}

bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        size_t                             page_size,
        size_t                             at,
        int                                err,
        ggml_hugepages_error             * error) {
    const auto nodes  = ggml_hugepages_placement_nodes("", image.params.placement);
    const auto supply = ggml_hugepages_supply_read("", page_size, nodes);
    const auto it     = need.find(page_size);
    if (supply.pool.page_size != 0 && it != need.end() && it->second > supply.usable()) {
        return fail_short("", { { it->second, supply } }, error);
    }
    // madvise(2): EFAULT is what MADV_POPULATE_WRITE says where a touch would be SIGBUS
    const char * cause = err == EFAULT ? "refused at the page fault" : strerror(err);
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT,
        "the model needs %" PRIu64 " huge pages of %s, which were there a moment ago, and the kernel refuses one at offset %zu of %s: %s",
        it == need.end() ? 0 : it->second, ggml_hugepages_size_name(page_size).c_str(), at, image.path.c_str(), cause);
    ggml_hugepages_hint(error, "another process may have taken them: try again, look at the hugetlb limits of this cgroup and its ancestors, "
        "or --hugepage-policy prefer to use what there is");
    return false;
}
