#pragma once

// blocks that want pages, and who wants them

#include "image.h"
#include "ranges.h"

#include <map>
#include <utility>
#include <vector>

// an image or a demand that wants pages
struct ggml_hugepages_consumer {
    ggml_hugepages_kind   kind;
    int32_t               image;  // index of the image, -1 for a demand
    ggml_hugepages_ranges wanted; // bytes of tensors
    std::map<size_t, ggml_hugepages_need> needs; // by page size
    const ggml_hugepages_image          * layout = nullptr; // its matrices, if the populating threads choose the node of each page
};

// blocks [first, last) of an image, or of a demand, which has no image
struct ggml_hugepages_blocks {
    int                    rank;
    ggml_hugepages_image * image;
    size_t                 first;
    size_t                 last;
    const ggml_hugepages_store_file * file = nullptr; // the file in the store that holds them, or nullptr
};

// blocks, and the index of their consumer
using ggml_hugepages_consumed = std::pair<size_t, ggml_hugepages_blocks>;

void ggml_hugepages_sort_by_rank(std::vector<ggml_hugepages_consumed> & list);

// a page of another size, with the best rank of the blocks inside it
struct ggml_hugepages_window {
    ggml_hugepages_blocks page;
    size_t                covered; // bytes of the blocks
};

// The pages of a larger size that contain blocks of one address range.
std::vector<ggml_hugepages_window> ggml_hugepages_windows(const std::vector<ggml_hugepages_blocks> & blocks, size_t page_size);

// removes [first, last) from the blocks
void ggml_hugepages_cut_out(std::vector<ggml_hugepages_blocks> & blocks, size_t first, size_t last);

// the blocks that contain wanted bytes of an image, each with its best rank
std::vector<ggml_hugepages_blocks> ggml_hugepages_blocks_of(ggml_hugepages_image & image, size_t page_size);

// Sorts the runs by offset, and joins neighbours of one size and owner, to save mappings.
void ggml_hugepages_join_runs(std::vector<ggml_hugepages_run> & runs);
