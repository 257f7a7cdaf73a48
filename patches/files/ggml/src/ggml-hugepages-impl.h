#pragma once

// shared by the parts of the engine, not for anybody else

#include "ggml-hugepages.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

using ggml_hugepages_range  = std::pair<size_t, size_t>; // bytes [first, second) of the file
using ggml_hugepages_ranges = std::vector<ggml_hugepages_range>;

struct ggml_hugepages_image {
    int         fd;
    std::string path;
    size_t      size;

    ggml_hugepages_policy policy    = GGML_HUGEPAGES_POLICY_REQUIRE;
    size_t                page_size = 1;

    ggml_hugepages_ranges wanted; // sorted and disjoint once planned
    ggml_hugepages_ranges runs;   // of blocks, sorted and disjoint

    uint8_t * addr  = nullptr;
    int       memfd = -1;

    // set while reading: all blocks before fill_from are done, and the kernel gave no pages for short_at, and why
    size_t fill_from   = 0;
    size_t short_at    = SIZE_MAX;
    int    short_cause = 0;
};

// how many bytes of [first, last) are in the ranges
size_t ggml_hugepages_overlap(const ggml_hugepages_ranges & rs, size_t first, size_t last);

// Populates the runs of all images from fill_from on, and reads the files into them. Returns false when a file cannot be
// read or the callback says so. A shortage of pages is no failure here, it is left in short_at:
// - with one thread it is where the pages end; the other images are still read
// - with more it ends the reading, and behind fill_from some blocks are done and others are not
bool ggml_hugepages_read(
        ggml_hugepages_image_t *         images,
        size_t                           n,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error);

// sets the status and the formatted message, returns false
GGML_ATTRIBUTE_FORMAT(3, 4)
bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...);

GGML_ATTRIBUTE_FORMAT(2, 3)
void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...);

// "2 MiB", "1 GiB"
std::string ggml_hugepages_size_name(size_t page_size);

// the command that makes `total` the size of a pool
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
