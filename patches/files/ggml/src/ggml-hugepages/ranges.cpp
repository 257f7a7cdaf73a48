#include "ranges.h"

#include <algorithm>

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
