// The steps of a plan that choose pages larger than the smallest: without waste, with waste if small pages are short, and pages of shared
// ranges that have room.

#ifdef __linux__

#include "planner.h"
#include "plan-needs.h"

#include <algorithm>

// Buffers for which a shared range has room need no page.
void ggml_hugepages_planner::take_rooms() {
    if (supplies.empty()) {
        return;
    }
    rooms = params.plan_only && ggml_hugepages_is_planned_together() ? ggml_hugepages_planned_rooms() :
        root[0] == '\0' ? ggml_hugepages_rooms() : std::vector<ggml_hugepages_room>();
    for (size_t s = 0; s < spaces.size(); s++) {
        const auto list = blocks_of(s);
        auto * room = is_of_buffers(s) ? ggml_hugepages_find_room(rooms, list.back().last, params) : nullptr;
        if (!room) {
            continue;
        }
        room->bytes -= list.back().last;
        for (const size_t c : spaces[s]) {
            for (const auto & b : blocks[c]) {
                ggml_hugepages_note_need(consumers[c], b, room->page_size, 0);
            }
            blocks[c].clear();
        }
        if (s == buffers) {
            share.size = buffers_size;
            share.room = room->page_size;
        }
    }
}

// usable pages of a pool that are not in the plan yet
uint64_t ggml_hugepages_planner::left_of(const ggml_hugepages_supply & supply) const {
    return supply.usable() - std::min(supply.usable(), wanted(supply.pool.page_size));
}

// whether pages of this size may replace the smallest
bool ggml_hugepages_planner::may_take(size_t page_size) const {
    return page_size > smallest && (params.page_size == GGML_HUGEPAGES_SIZE_AUTO || params.page_size == page_size);
}

void ggml_hugepages_planner::take(size_t space, const ggml_hugepages_blocks & page, size_t page_size) {
    // the smaller pages that this one contains
    const auto is_inside = [&](const auto & l) { return l.space == space && page.first <= l.page.first && l.page.last <= page.last; };
    for (const auto & l : large) {
        need[l.page_size] -= is_inside(l);
    }
    large.erase(std::remove_if(large.begin(), large.end(), is_inside), large.end());
    large.push_back({ space, page, page_size });
    need[page_size]++;
    for (const size_t c : spaces[space]) {
        ggml_hugepages_cut_out(blocks[c], page.first, page.last);
    }
}

// usable pages that are larger than the smallest replace whole ranges of blocks, the best ranks first
void ggml_hugepages_planner::take_large_pages() {
    for (size_t i = supplies.size(); i-- > 0; ) {
        const size_t page_size = supplies[i].pool.page_size;
        uint64_t left = may_take(page_size) ? left_of(supplies[i]) : 0;
        if (left == 0) {
            continue;
        }
        std::vector<std::pair<size_t, ggml_hugepages_blocks>> candidates; // with their space
        for (size_t s = 0; s < spaces.size(); s++) {
            for (const auto & w : ggml_hugepages_windows(blocks_of(s), page_size)) {
                if (w.covered == page_size) {
                    candidates.emplace_back(s, w.page);
                }
            }
        }
        ggml_hugepages_sort_by_rank(candidates);
        for (const auto & [space, page] : candidates) {
            if (left == 0) {
                break;
            }
            left--;
            take(space, page, page_size);
        }
    }
}

// If the smallest pages are short, larger ones take their place: the fewest that are enough.
void ggml_hugepages_planner::take_pages_with_waste() {
    const auto pool = std::find_if(supplies.begin(), supplies.end(), [&](const auto & s) { return s.pool.page_size == smallest; });
    uint64_t pages = before(smallest) + store.need_of_pool(smallest);
    for (const auto & list : blocks) {
        for (const auto & b : list) {
            pages += (b.last - b.first)/smallest;
        }
    }
    uint64_t missing = pages - std::min(pages, pool == supplies.end() ? 0 : pool->usable());
    for (const auto & s : supplies) {
        const size_t page_size = s.pool.page_size;
        if (missing == 0 || !may_take(page_size)) {
            continue;
        }
        std::vector<std::pair<size_t, ggml_hugepages_window>> candidates; // with their space
        for (size_t space = 0; space < spaces.size(); space++) {
            for (const auto & w : ggml_hugepages_windows(blocks_of(space), page_size)) {
                // the other blocks of an image in a store are on pages of the store
                if (!w.page.image || !w.page.image->resident) {
                    candidates.emplace_back(space, w);
                }
            }
        }
        // the pages with most blocks first, because they waste least
        std::stable_sort(candidates.begin(), candidates.end(), [](const auto & a, const auto & b) { return a.second.covered > b.second.covered; });
        uint64_t left = left_of(s);
        for (const auto & [space, w] : candidates) {
            if (left == 0 || missing == 0) {
                break;
            }
            left--;
            take(space, w.page, page_size);
            missing -= std::min<uint64_t>(missing, w.covered/smallest);
        }
    }
}

// The next plans may use what the last page of a shared range has left.
void ggml_hugepages_planner::leave_rooms() {
    for (size_t s = 0; s < spaces.size(); s++) {
        const auto & last = consumers[spaces[s].back()];
        if (last.image != -1 || (n_images > 0 && (s != buffers || share.size == 0 || share.room > 0))) {
            continue;
        }
        const size_t end = ggml_hugepages_align_up(last.wanted.back().second, unit);
        const auto leave = [&](const ggml_hugepages_blocks & b, size_t page_size) {
            if (b.first < end && end < b.last) {
                rooms.push_back({ page_size, b.last - end });
            }
        };
        for (const auto & l : large) {
            if (l.space == s) {
                leave(l.page, l.page_size);
            }
        }
        for (const auto & [consumer, b] : rest) {
            if (space_of(consumer) == s) {
                leave(b, smallest);
            }
        }
    }
}

#endif // __linux__
