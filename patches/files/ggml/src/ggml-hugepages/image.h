#pragma once

// an image or a buffer, and its blocks

#include "ggml-hugepages.h"
#include "ranges.h"

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

struct ggml_hugepages_held;
struct ggml_hugepages_store_file;

struct ggml_hugepages_want {
    size_t first;
    size_t last;
    int    rank;
};

// the memory under the blocks of a run
enum ggml_hugepages_owner {
    GGML_HUGEPAGES_OWNER_PROCESS,  // this process alone: a memfd, or THP
    GGML_HUGEPAGES_OWNER_HELD,     // the same, reserved before the buffer asks for it
    GGML_HUGEPAGES_OWNER_FILLING,  // pages of the resident image that this process writes
    GGML_HUGEPAGES_OWNER_ATTACHED, // complete pages of the resident image, which no process writes
};

// adjacent blocks of one size
struct ggml_hugepages_run {
    size_t               first;
    size_t               last;
    size_t               page_size; // of the pool, or of THP
    int                  rank;
    ggml_hugepages_owner owner = GGML_HUGEPAGES_OWNER_PROCESS;

    std::shared_ptr<ggml_hugepages_held> held{};      // of GGML_HUGEPAGES_OWNER_HELD
    size_t                               held_at = 0; // offset of the first block in it

    bool is_in_store() const { return owner == GGML_HUGEPAGES_OWNER_FILLING || owner == GGML_HUGEPAGES_OWNER_ATTACHED; }
};

// pages that the plan counts for a buffer after the weights
struct ggml_hugepages_grant {
    ggml_hugepages_kind kind;
    size_t              page_size;
    uint64_t            pages;
};

// kinds whose buffers are allocated after the load of their model
static inline bool ggml_hugepages_follows_load(ggml_hugepages_kind kind) { return kind == GGML_HUGEPAGES_KIND_KV || kind == GGML_HUGEPAGES_KIND_COMPUTE; }

// kinds that GGML_HUGEPAGES_PLACEMENT_ROWS places by rows
static inline bool ggml_hugepages_is_of_weights(ggml_hugepages_kind kind) { return kind == GGML_HUGEPAGES_KIND_WEIGHTS || kind == GGML_HUGEPAGES_KIND_REPACKED; }

// bytes [first, last) of a shared range, for buffers of one kind
struct ggml_hugepages_part {
    ggml_hugepages_kind kind;
    size_t              first;
    size_t              last;
};

// the plan of a range that all buffers of a model share (shared-range.h)
struct ggml_hugepages_share {
    size_t                           size = 0; // 0: each buffer has its own pages
    std::vector<ggml_hugepages_part> parts;
    std::vector<ggml_hugepages_run>  runs;     // of a new range
    size_t                           room = 0; // page size of the existing range that has room for the parts, 0: a new range
};

// An image, or a buffer: an image without a file, with ordinary memory outside its runs.
struct ggml_hugepages_image {
    int                 fd   = -1;
    size_t              fd_page = 0; // page size if the file itself is on hugetlbfs and needs no blocks
    std::string         path; // for messages
    size_t              size = 0;
    ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_WEIGHTS;

    ggml_hugepages_params params = {};

    std::vector<ggml_hugepages_want> wants;
    ggml_hugepages_ranges            wanted; // sorted and disjoint after the plan
    std::vector<ggml_hugepages_run>  runs;   // sorted by offset and disjoint
    std::vector<ggml_hugepages_matrices> matrices; // sorted by offset and disjoint
    ggml_hugepages_ranges            expected; // ranges that will be read as pieces
    ggml_hugepages_arrived_callback  arrived = nullptr;
    void                           * arrived_data = nullptr;

    uint8_t             * addr   = nullptr;
    size_t                length = 0;       // of the address range
    bool                  is_malloc = false; // a buffer smaller than one page, in ordinary memory
    bool                  is_shared = false; // a shared range, or a buffer in one
    bool                  limits_may_hide = false; // a limit above the cgroup namespace may be invisible
    uint64_t              late      = 0; // bytes on ordinary memory, if it was allocated after the start
    bool                  is_lazy   = false; // a buffer whose writers populate its pages
    ggml_hugepages_ranges populated;         // of a lazy buffer; includes ranges that became ordinary memory
    bool                  is_old_context = false; // a context that an earlier process has written
    bool                  is_told = false;   // the log contains the refusal of its pages
    int                   refused    = 0;    // errno of the first refused page
    size_t                refused_at = 0;
    std::map<size_t, int> memfds;           // one for each page size
    std::shared_ptr<ggml_hugepages_store_file> resident; // the resident image that holds some of the runs, or none
    std::vector<ggml_hugepages_grant> grants; // of the first image of a plan: pages held for the buffers after it
    ggml_hugepages_share share;               // of the first image of a plan

    bool is_thp() const { return params.page_size == GGML_HUGEPAGES_SIZE_THP; }
};

// Closes the memfds. The mappings keep the pages.
void ggml_hugepages_close_memfds(ggml_hugepages_image & image);
