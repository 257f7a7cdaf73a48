#ifdef __linux__

#include "plan-blocks.h"

#include <algorithm>

void ggml_hugepages_sort_by_rank(std::vector<ggml_hugepages_consumed> & list) {
    std::stable_sort(list.begin(), list.end(), [](const auto & a, const auto & b) { return a.second.rank < b.second.rank; });
}

std::vector<ggml_hugepages_window> ggml_hugepages_windows(const std::vector<ggml_hugepages_blocks> & blocks, size_t page_size) {
    std::map<size_t, ggml_hugepages_window> windows; // by offset
    for (const auto & b : blocks) {
        for (size_t at = ggml_hugepages_align_down(b.first, page_size); at < b.last; at += page_size) {
            auto & w = windows.emplace(at, ggml_hugepages_window { { b.rank, b.image, at, at + page_size }, 0 }).first->second;
            w.page.rank = std::min(w.page.rank, b.rank);
            w.covered  += std::min(b.last, at + page_size) - std::max(b.first, at);
        }
    }
    std::vector<ggml_hugepages_window> result;
    for (const auto & [_, w] : windows) {
        result.push_back(w);
    }
    return result;
}

void ggml_hugepages_cut_out(std::vector<ggml_hugepages_blocks> & blocks, size_t first, size_t last) {
    std::vector<ggml_hugepages_blocks> out;
    for (const auto & b : blocks) {
        if (b.last <= first || b.first >= last) {
            out.push_back(b);
            continue;
        }
        if (b.first < first) {
            out.push_back({ b.rank, b.image, b.first, first });
        }
        if (b.last > last) {
            out.push_back({ b.rank, b.image, last, b.last });
        }
    }
    blocks = std::move(out);
}

std::vector<ggml_hugepages_blocks> ggml_hugepages_blocks_of(ggml_hugepages_image & image, size_t page_size) {
    std::vector<ggml_hugepages_blocks> result;
    ggml_hugepages_ranges wanted, taken;
    std::stable_sort(image.wants.begin(), image.wants.end(), [](const auto & a, const auto & b) { return a.rank < b.rank; });
    for (auto it = image.wants.begin(); it != image.wants.end(); ) {
        ggml_hugepages_ranges blocks;
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

void ggml_hugepages_join_runs(std::vector<ggml_hugepages_run> & runs) {
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

#endif // __linux__
