#pragma once

// shared by the parts of the engine, not for anybody else

#include "ggml-hugepages.h"

#include <atomic>
#include <cstdint>
#include <exception>
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

struct ggml_hugepages_held;
struct ggml_hugepages_store_file;

// which memory the blocks of a run are
enum ggml_hugepages_owner {
    GGML_HUGEPAGES_OWNER_PROCESS,  // this process alone: a memfd, or THP
    GGML_HUGEPAGES_OWNER_HELD,     // the same, reserved before it was asked for
    GGML_HUGEPAGES_OWNER_FILLING,  // pages of the resident image that this process writes
    GGML_HUGEPAGES_OWNER_ATTACHED, // pages of the resident image that are complete: nobody writes them
};

// blocks of one size, one after the other
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

// pages that the plan counts for a buffer that follows the weights
struct ggml_hugepages_grant {
    ggml_hugepages_kind kind;
    size_t              page_size;
    uint64_t            pages;
};

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
    bool                  limits_may_hide = false; // above the cgroup namespace
    bool                  is_lazy   = false; // a buffer whose pages are populated by those who write to it
    ggml_hugepages_ranges populated;         // of a lazy buffer, or given up
    bool                  is_told = false;   // that pages were refused to it
    int                   refused    = 0;    // errno of the first page that was refused to it
    size_t                refused_at = 0;
    std::map<size_t, int> memfds;           // one for each page size
    std::shared_ptr<ggml_hugepages_store_file> resident; // that runs may lie in, or none
    std::vector<ggml_hugepages_grant> grants; // of the first image of a plan: what is held for buffers that follow
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
    std::vector<ggml_hugepages_limit> limits;      // of all ancestors that can be seen
    uint64_t                          held = 0;    // pages that this process holds for the buffer that is planned
    uint64_t                          promised = 0; // pages that it has reserved for others and not touched

    // pages, regarding all of the above
    uint64_t usable() const;

    uint64_t usable_of_pool() const; // and nodes

    // the limit that leaves least, nullptr if there is none
    const ggml_hugepages_limit * tightest() const;
};

// root: prefix of /sys and /proc. nodes: those that may be used, empty for all.
ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes);

// Whether a hugetlb limit may apply that cannot be seen: the cgroup tree begins below the root of the machine's, or is not mounted.
bool ggml_hugepages_limits_may_hide(const char * root);

// Pages that this process has reserved and not touched, but for one buffer or image: a limit on pages does not count them yet.
uint64_t ggml_hugepages_promised(size_t page_size, const ggml_hugepages_image * except);

// the nodes that a placement binds to, empty for all
std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement);

// every node of the machine
std::vector<int> ggml_hugepages_all_nodes(const char * root);

// bytes of a THP, 0 where there is none; enabled: false when it is switched off for everybody
size_t ggml_hugepages_thp_size(const char * root, bool * enabled);

// MemAvailable in bytes
uint64_t ggml_hugepages_mem_available(const char * root);

// "CommitLimit ..., Committed_AS ..." where vm.overcommit_memory is 2, else empty
std::string ggml_hugepages_overcommit(const char * root);

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

// Proof that this process alone may write to a resident image. The lock is on a file beside the image that only those who may write
// to the image can open, so a reader cannot take it. The lock belongs to the open file: the kernel releases it with the process.
struct ggml_hugepages_fill_lock {
    int         dir_fd;
    int         fd;
    std::string name;

    ggml_hugepages_fill_lock(int dir_fd, int fd, const std::string & name) : dir_fd(dir_fd), fd(fd), name(name) {}
    ggml_hugepages_fill_lock(const ggml_hugepages_fill_lock &) = delete;
    ~ggml_hugepages_fill_lock(); // removes the file, then releases the lock
};

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
    int                   fd          = -1; // -1: no image of that name yet
    bool                  is_writable = false;
    size_t                page_size   = 0;
    size_t                segment     = 0; // bytes
    size_t                length      = 0; // of the file
    size_t                sums_at     = 0; // offset of the checksums
    std::vector<uint64_t> sums;            // of the segments, 0 while one is missing

    // while this process fills it
    std::unique_ptr<ggml_hugepages_fill_lock> lock;
    bool                  is_new = false;  // made by this process

    ~ggml_hugepages_store_file();

    // whether this process is attached to it, or may fill it
    bool is_open() const { return fd != -1 || lock; }

    // whether [first, last) is all there; of a buffer: all of it
    bool has(size_t first, size_t last) const;
    bool is_complete() const;

    // whether the block at this offset takes no page any more
    bool has_page(size_t first) const;

    // the manifest's own, unless it has it or it shares one with data
    size_t pages_of_manifest() const;

    // pages that the file holds and that nobody uses: a filler died before it completed them
    uint64_t pages_left_over() const;

    // Makes the image if it does not exist, and its manifest writable. Fails with GGML_HUGEPAGES_STATUS_SHORT if the manifest gets no page.
    bool begin(ggml_hugepages_error * error);

    // whether begin() has been called: this process may write to missing segments
    bool is_filling() const { return manifest != nullptr; }

    // the segments that lie wholly in [first, last) are in memory at addr + first
    void complete(const uint8_t * addr, size_t first, size_t last);

    // nothing more comes
    void finish();

    // Returns the pages that a filler left who died. This process has the fill lock.
    void return_left_over() { return_pages(*lock); }

    // Gives back what is not complete, and the file if this process made it and no other process uses it.
    void give_up();

    // Takes the name away: whoever has it keeps it, nobody else gets it.
    void unlink();

private:
    void   * manifest      = nullptr; // mapped by who fills
    size_t   manifest_size = 0;

    std::atomic<uint64_t> * shared_sums() const;
    bool make(ggml_hugepages_error * error);
    void return_pages(const ggml_hugepages_fill_lock & proof);
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
// what happens when pages run out
//

// What made the kernel refuse a page.
struct ggml_hugepages_refusal {
    const char * call; // system call
    int          err;  // errno
    size_t       page_size;
    size_t       at;   // offset of the page
    bool         is_in_store;
};

// The kernel refused [first, last) of an image. True: the blocks are dropped, ordinary memory takes their place, and the load goes on. False:
// the load ends with the error that ggml_hugepages_fail_refused sets.
bool ggml_hugepages_policy_refused(
        ggml_hugepages_image         & image,
        const ggml_hugepages_refusal & refusal,
        size_t                         first,
        size_t                         last,
        ggml_hugepages_error         * error);

// Explains a refusal: too few pages, a limit, a hidden limit, a forbidden call, or a full mount. need: pages by size
bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        const ggml_hugepages_refusal     & refusal,
        ggml_hugepages_error             * error);

// "ulimit -v ...", where there is such a limit
void ggml_hugepages_hint_address_space(ggml_hugepages_error * error, uint64_t size);

// What the load needs of each pool and a supply that is too small, as an error.
bool ggml_hugepages_fail_short(const char * root, const std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages, ggml_hugepages_error * error);

//
// system calls
//

// Whether a filter kills this process for a call. One that answers with an error is no danger: the caller sees the error.
// third: the third argument, for a filter that looks at flags
bool ggml_hugepages_is_killing(long call, long third = 0);

// A host may have added filters since the last load.
void ggml_hugepages_forget_filters();

// -1 and EPERM if a filter would kill the process, else what the call returns.
long ggml_hugepages_call(long call, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);

// madvise(2)
int ggml_hugepages_advise(void * addr, size_t size, int advice);

// a file of huge pages in memory; -1 with errno
int ggml_hugepages_memfd(const char * name, size_t page_size);

// ftruncate(2)
bool ggml_hugepages_resize(int fd, size_t size);

// Gives back the pages of [first, last) of a file of huge pages.
bool ggml_hugepages_punch(int fd, size_t first, size_t last);

// Reserves the pages of [first, last) of such a file. They stay reserved for it until it ends.
bool ggml_hugepages_reserve(int fd, size_t first, size_t last);

// Tries what a load does with a page: a file of huge pages, a reservation of n_reserve pages. Everything is given back.
// n_populate of them are populated. need: of the load, for the message
bool ggml_hugepages_try(const char * root, size_t page_size, uint64_t n_reserve, uint64_t n_populate, uint64_t need, ggml_hugepages_error * error);

//
// the page cache
//

enum ggml_hugepages_cached { GGML_HUGEPAGES_CACHED_NONE, GGML_HUGEPAGES_CACHED_SOME, GGML_HUGEPAGES_CACHED_ALL, GGML_HUGEPAGES_CACHED_UNKNOWN };

// What of a file is in the page cache. Asked before the first read, as reads change the answer.
struct ggml_hugepages_page_cache {
    // how the kernel can be asked here; each way is tried on a page that is known to be there, as some succeed and say nothing true
    enum { BY_CACHESTAT, BY_MINCORE, BY_TRYING, BY_NOTHING } way = BY_NOTHING;
    int                   fd   = -1;
    size_t                size = 0; // of the file
    ggml_hugepages_ranges there;    // at the time of the first look, unless BY_TRYING or BY_NOTHING

    void look(int fd, size_t size, const ggml_hugepages_ranges & of);

    // of [first, last), as of the first look where that is known
    ggml_hugepages_cached state(size_t first, size_t last) const;

    // bytes of [first, last) that are there now; false: cannot be told
    bool count(size_t first, size_t last, size_t * bytes) const;

    // drops from the cache what was not there at the first look
    void drop_new(size_t first, size_t last) const;

    // drops the whole file; returns the bytes of the ranges that the kernel keeps, 0 if it does not tell
    size_t drop_all(const ggml_hugepages_ranges & of) const;
};

//
// pages held for buffers that follow the weights
//

struct ggml_hugepages_held;

// Reserves them. False with errno when the kernel refuses, at_page_size: which.
// populate: so that a hidden limit refuses them now
bool ggml_hugepages_hold(const std::vector<ggml_hugepages_grant> & grants, bool accept_less, bool populate, size_t * at_page_size);

// how many are held for buffers of this kind, or of all if it is GGML_HUGEPAGES_KIND_COUNT
uint64_t ggml_hugepages_held_pages(ggml_hugepages_kind kind, size_t page_size);

// Moves held pages into runs: splits a run where the held pages end.
void ggml_hugepages_held_take(ggml_hugepages_kind kind, std::vector<ggml_hugepages_run> & runs);

// the file of the pages of a run
int ggml_hugepages_held_fd(const ggml_hugepages_held & held);

// A buffer that had them is gone, and nothing maps them any more.
void ggml_hugepages_held_return(const ggml_hugepages_run & run);

// The kernel refused these blocks when they were touched.
void ggml_hugepages_held_refused(const ggml_hugepages_run & run);

//
// memory
//

// Puts the ordinary mapping back in place of [first, last), whole blocks of one size, and gives back their pages if they are this
// process' own. Pages in a store are left alone.
bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error);

// Gives back what a load holds that fails, so that the counts in the message are those of others. Nobody may use the blocks any more.
void ggml_hugepages_release(ggml_hugepages_image_t * images, size_t n_images);

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

// Populates the runs of all images, reads the files into them, and reads the pieces. What happens when pages are refused is decided by
// ggml_hugepages_policy_refused.
// refused, refusal: which image and why, if the load ends for want of a page; error then says nothing yet
bool ggml_hugepages_read(
        ggml_hugepages_image_t *           images,
        size_t                             n_images,
        const ggml_hugepages_piece *       pieces,
        size_t                             n_pieces,
        const ggml_hugepages_params      & params,
        ggml_hugepages_progress_callback   callback,
        void                             * user_data,
        ggml_hugepages_image            ** refused,
        ggml_hugepages_refusal           * refusal,
        ggml_hugepages_error             * error);

// The same for a buffer that has no file. Of a lazy one only the pages that are too large to wait for.
bool ggml_hugepages_populate_all(ggml_hugepages_image & image, ggml_hugepages_image ** refused, ggml_hugepages_refusal * refusal, ggml_hugepages_error * error);

// Populates before anything is read: what is missing in resident images, as pages of a store cannot be reserved, and all pages where a
// limit may hide that the kernel applies when a page is touched.
bool ggml_hugepages_populate_ahead(
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_image          ** refused,
        ggml_hugepages_refusal         * refusal,
        ggml_hugepages_error           * error);

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

// Runs f, and turns what it throws into an error: nothing is thrown into another language.
template <typename F> static bool ggml_hugepages_guard(ggml_hugepages_error * error, F && f) noexcept {
    try {
        return f();
    } catch (const std::exception & e) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "%s", e.what());
    } catch (...) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "unknown error");
    }
}

GGML_ATTRIBUTE_FORMAT(2, 3)
void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...);

// "2 MiB", "1 GiB"
std::string ggml_hugepages_size_name(size_t page_size);

// the command that makes `total` the size of a pool
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
