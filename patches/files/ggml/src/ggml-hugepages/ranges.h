#pragma once

// ranges of bytes

#include <cstddef>
#include <utility>
#include <vector>

using ggml_hugepages_range  = std::pair<size_t, size_t>; // bytes [first, second) of an image or a buffer
using ggml_hugepages_ranges = std::vector<ggml_hugepages_range>;

static inline size_t ggml_hugepages_align_down(size_t x, size_t to) { return x/to*to; }
static inline size_t ggml_hugepages_align_up  (size_t x, size_t to) { return (x + to - 1)/to*to; }

// sorts, and joins overlapping and adjacent ranges
ggml_hugepages_ranges ggml_hugepages_normalized(ggml_hugepages_ranges rs);

// the bytes of a that are not in b; both normalized
ggml_hugepages_ranges ggml_hugepages_minus(const ggml_hugepages_ranges & a, const ggml_hugepages_ranges & b);

// number of bytes of [first, last) in the ranges
size_t ggml_hugepages_overlap(const ggml_hugepages_ranges & rs, size_t first, size_t last);
