#pragma once

// shared by the parts of the engine, not for anybody else

#include "ggml-hugepages.h"

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

using ggml_hugepages_range  = std::pair<size_t, size_t>; // bytes [first, second) of an image or a buffer
using ggml_hugepages_ranges = std::vector<ggml_hugepages_range>;

struct ggml_hugepages_want {
    size_t first;
    size_t last;
    int    rank;
};

// blocks of one size, one after the other
struct ggml_hugepages_run {
    size_t first;
    size_t last;
    size_t page_size; // of the pool, or of THP
    int    rank;
};

// An image, or a buffer: an image without a file, whose rest is ordinary memory.
struct ggml_hugepages_image {
    int                 fd   = -1;
    std::string         path; // for messages
    size_t              size = 0;
    ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_WEIGHTS;

    ggml_hugepages_params params = {};

    std::vector<ggml_hugepages_want> wants;
    ggml_hugepages_ranges            wanted; // sorted and disjoint once planned
    std::vector<ggml_hugepages_run>  runs;   // sorted by offset and disjoint
    ggml_hugepages_ranges            expected; // will be read as pieces

    uint8_t             * addr   = nullptr;
    size_t                length = 0;       // of the address range
    bool                  is_malloc = false; // a buffer under one page, in ordinary memory
    bool                  is_lazy   = false; // a buffer whose pages are populated by those who write to it
    ggml_hugepages_ranges populated;         // of a lazy buffer, or given up
    int                   refused    = 0;    // errno of the first page that was refused to it
    size_t                refused_at = 0;
    std::map<size_t, int> memfds;           // one for each page size
};

//
// ranges
//

static inline size_t ggml_hugepages_align_down(size_t x, size_t to) { return x/to*to; }
static inline size_t ggml_hugepages_align_up  (size_t x, size_t to) { return (x + to - 1)/to*to; }

// sorts, and joins what overlaps or touches
ggml_hugepages_ranges ggml_hugepages_normalized(ggml_hugepages_ranges rs);

// what of a is not in b; both normalized
ggml_hugepages_ranges ggml_hugepages_minus(const ggml_hugepages_ranges & a, const ggml_hugepages_ranges & b);

// how many bytes of [first, last) are in the ranges
size_t ggml_hugepages_overlap(const ggml_hugepages_ranges & rs, size_t first, size_t last);

//
// what can be had
//

struct ggml_hugepages_node {
    int      id;
    uint64_t total; // pages
    uint64_t free;
};

// the limit of one cgroup, in bytes
struct ggml_hugepages_limit {
    std::string path;  // of the cgroup, as in /proc/self/cgroup
    std::string file;  // e.g. hugetlb.2MB.max
    uint64_t    limit;
    uint64_t    used;
};

struct ggml_hugepages_supply {
    ggml_hugepages_pool               pool = {};
    std::vector<ggml_hugepages_node>  nodes;       // those that may be used
    bool                              is_bound = false; // to fewer nodes than the machine has
    std::vector<ggml_hugepages_limit> limits;      // of all ancestors

    // pages, regarding all of the above
    uint64_t usable() const;

    uint64_t usable_of_pool() const; // and nodes

    // the limit that leaves least, nullptr if there is none
    const ggml_hugepages_limit * tightest() const;
};

// root: prefix of /sys and /proc. nodes: those that may be used, empty for all.
ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes);

// the nodes that a placement binds to, empty for all
std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement);

// every node of the machine
std::vector<int> ggml_hugepages_all_nodes(const char * root);

// bytes of a THP, 0 where there is none; enabled: false when it is switched off for everybody
size_t ggml_hugepages_thp_size(const char * root, bool * enabled);

// MemAvailable in bytes
uint64_t ggml_hugepages_mem_available(const char * root);

//
// the decision
//

// Sets wanted and runs of the images. Takes nothing.
bool ggml_hugepages_decide(
        const char *                  root,
        ggml_hugepages_image_t *      images,
        size_t                        n_images,
        const ggml_hugepages_demand * demands,
        size_t                        n_demands,
        const ggml_hugepages_params & params,
        ggml_hugepages_error *        error);

//
// memory
//

// Puts the ordinary mapping back in place of [first, last), whole blocks of one size, and gives their pages back.
bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error);

// The kernel refused pages that the decision counted on: gives back what the load holds, so that the counts in the message are
// those of others, and fails. Nobody may use the blocks any more.
bool ggml_hugepages_give_up(
        ggml_hugepages_image_t     * images,
        size_t                       n_images,
        const ggml_hugepages_image & image, // the one it happened to
        size_t                       page_size,
        size_t                       at,
        int                          err,
        ggml_hugepages_error       * error);

// its message; need: pages by size
bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        size_t                             page_size,
        size_t                             at,
        int                                err,
        ggml_hugepages_error             * error);

// madvise(2): MADV_POPULATE_WRITE reports a shortage, where touching the page would be SIGBUS. Sets errno.
bool ggml_hugepages_populate(uint8_t * addr, size_t size);

// microseconds that this thread has spent in ggml_hugepages_buffer_populate
uint64_t ggml_hugepages_us_populate();

// threads to populate and to read with
size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params);

// Populates the runs of all images, reads the files into them, and reads the pieces. When pages are refused:
// - GGML_HUGEPAGES_POLICY_PREFER:  the blocks are dropped, the rest goes on
// - GGML_HUGEPAGES_POLICY_REQUIRE: fails
bool ggml_hugepages_read(
        ggml_hugepages_image_t *           images,
        size_t                             n_images,
        const ggml_hugepages_piece *       pieces,
        size_t                             n_pieces,
        const ggml_hugepages_params      & params,
        ggml_hugepages_progress_callback   callback,
        void                             * user_data,
        ggml_hugepages_error             * error);

// The same for a buffer that has no file. Of a lazy one only the pages that are too large to wait for.
bool ggml_hugepages_populate_all(ggml_hugepages_image & image, ggml_hugepages_error * error);

void ggml_hugepages_set_load(const ggml_hugepages_load & load);

std::vector<ggml_hugepages_image> ggml_hugepages_alive(); // copies, for the report
uint64_t ggml_hugepages_late();
ggml_hugepages_load ggml_hugepages_last_load();

// the scope of threads that are in none
ggml_hugepages_scope ggml_hugepages_default_scope();

//
// messages
//

// sets the status and the formatted message, returns false
GGML_ATTRIBUTE_FORMAT(3, 4)
bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...);

GGML_ATTRIBUTE_FORMAT(2, 3)
void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...);

// "2 MiB", "1 GiB"
std::string ggml_hugepages_size_name(size_t page_size);

// the command that makes `total` the size of a pool
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
