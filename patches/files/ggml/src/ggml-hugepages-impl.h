#pragma once

// shared by the parts of the engine, not for anybody else

#include "ggml-hugepages.h"

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
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

struct ggml_hugepages_store_file;

// An image, or a buffer: an image without a file, whose rest is ordinary memory.
struct ggml_hugepages_image {
    int                 fd   = -1;
    size_t              fd_page = 0; // bytes of a huge page, if the file itself is on hugetlbfs: it needs no blocks
    std::string         path; // for messages
    size_t              size = 0;
    ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_WEIGHTS;

    ggml_hugepages_params params = {};

    std::vector<ggml_hugepages_want> wants;
    ggml_hugepages_ranges            wanted; // sorted and disjoint once planned
    std::vector<ggml_hugepages_run>  runs;   // sorted by offset and disjoint
    ggml_hugepages_ranges            expected; // will be read as pieces
    ggml_hugepages_arrived_callback  arrived = nullptr;
    void                           * arrived_data = nullptr;

    uint8_t             * addr   = nullptr;
    size_t                length = 0;       // of the address range
    bool                  is_malloc = false; // a buffer under one page, in ordinary memory
    bool                  is_lazy   = false; // a buffer whose pages are populated by those who write to it
    ggml_hugepages_ranges populated;         // of a lazy buffer, or given up
    int                   refused    = 0;    // errno of the first page that was refused to it
    size_t                refused_at = 0;
    std::map<size_t, int> memfds;           // one for each page size
    std::shared_ptr<ggml_hugepages_store_file> resident; // that all runs lie in, or none
};

// the handle of a resident image: images and buffers that lie in it share it
struct ggml_hugepages_resident {
    std::shared_ptr<ggml_hugepages_store_file> file;
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

struct ggml_hugepages_mount {
    std::string device; // major:minor
    std::string fs_root;
    std::string path;
    std::string type;
    std::string options; // of the file system, between commas
};

// all lines of /proc/self/mountinfo
std::vector<ggml_hugepages_mount> ggml_hugepages_mounts(const char * root);

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
// resident images
//

// what is read at once, and gets one checksum
static const size_t GGML_HUGEPAGES_CHUNK_SIZE = 8*1024*1024;

// The last sector of a file may be read with whatever the device has behind it: the manifest begins after that.
static const size_t GGML_HUGEPAGES_GUARD_SIZE = 64*1024;

#define GGML_HUGEPAGES_STORE_MAGIC { 'l', 'l', 'a', 'm', 'a', 'h', 'p', '\n' }

struct ggml_hugepages_store_header {
    char     magic[8]; // written last
    uint32_t version;
    uint32_t kind;
    uint64_t size;
    uint64_t page_size;
    uint64_t segment;
    uint64_t n_segments;
    int64_t  created;
    char     source[1024];
    char     identity[2048];
    uint64_t checksum; // of what is above, but the magic
    uint32_t filler;   // process
    uint32_t unused;
};

// Eight lanes, so that it keeps up with the memory; neither libc nor ggml has a fast one. Against bits that flip, not against people.
uint64_t ggml_hugepages_checksum(const void * data, size_t size);
uint64_t ggml_hugepages_header_checksum(const ggml_hugepages_store_header & h);

struct ggml_hugepages_store_file {
    ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_WEIGHTS;
    std::string         source;
    std::string         identity;
    size_t              size = 0;
    bool                is_buffer = true;  // complete as a whole or not at all
    ggml_hugepages_ranges wants;           // of an image

    // once opened
    std::shared_ptr<int>  dir;             // closes itself
    std::string           name;
    std::string           path;            // for messages
    int                   fd          = -1;
    bool                  is_writable = false;
    bool                  is_filling  = false; // by this process
    bool                  is_new      = false; // made by this process
    bool                  has_header  = false;
    size_t                page_size   = 0;
    size_t                segment     = 0; // bytes
    size_t                length      = 0; // of the file
    size_t                sums_at     = 0; // offset of the checksums
    std::vector<uint64_t> sums;            // of the segments, 0 while one is missing

    ~ggml_hugepages_store_file();

    // whether [first, last) is all there; of a buffer: all of it
    bool has(size_t first, size_t last) const;
    bool is_complete() const;

    // whether the block at this offset takes no page any more
    bool has_page(size_t first) const;

    // the manifest's own, unless it has it or it shares one with data
    size_t pages_of_manifest() const;

    // the segments of [first, last) are in memory at addr + first
    void complete(const uint8_t * addr, size_t first, size_t last);

    // nothing more comes
    void finish();

    // Gives back what is not complete, and the file if this process made it and is alone with it.
    void give_up();

    // Takes the name away: whoever has it keeps it, nobody else gets it.
    void unlink();

private:
    friend struct ggml_hugepages_store;
    void   * manifest      = nullptr; // mapped by who fills
    size_t   manifest_size = 0;

    std::atomic<uint64_t> * shared_sums() const;
    void punch_missing();
    void close_manifest();
};

// Free bytes of the mount that a store lies on, UINT64_MAX if it has no limit.
uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file & file);

// Pages that its mount keeps for its files (min_size) and none of them has yet: the pool counts them as reserved.
uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file & file);

// whether these bytes end a resident image of that name, length and page size. Fills in what is known.
bool ggml_hugepages_manifest_check(
        const void                   * header,
        size_t                         size,
        uint64_t                       length,
        uint64_t                       page_size,
        const char                   * name,
        ggml_hugepages_resident_info * info,
        ggml_hugepages_error         * error);

// bytes of the header, the last of the file
static const size_t GGML_HUGEPAGES_HEADER_SIZE = 4096;

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

// of an open file, empty if the system does not tell
std::string ggml_hugepages_path_of(int fd);

// bytes of a page of the hugetlbfs that a file is on, 0 if it is on another file system
size_t ggml_hugepages_page_of(int fd);

// madvise(2): MADV_POPULATE_WRITE reports a shortage, where touching the page would be SIGBUS. Sets errno.
bool ggml_hugepages_populate(uint8_t * addr, size_t size);

// microseconds that this thread has spent in ggml_hugepages_buffer_populate
uint64_t ggml_hugepages_us_populate();

// threads to populate and to read with
size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params);

// Runs the work on up to n threads, or on this one if none can be started. Calls idle now and then until all of them are done.
void ggml_hugepages_on_threads(size_t n, const std::function<void()> & work, const std::function<void()> & idle = nullptr);

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
