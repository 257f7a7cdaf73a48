#pragma once

// shared by the parts of the engine; other code must not include this file

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
    ggml_hugepages_ranges            expected; // ranges that will be read as pieces
    ggml_hugepages_arrived_callback  arrived = nullptr;
    void                           * arrived_data = nullptr;

    uint8_t             * addr   = nullptr;
    size_t                length = 0;       // of the address range
    bool                  is_malloc = false; // a buffer smaller than one page, in ordinary memory
    bool                  limits_may_hide = false; // a limit above the cgroup namespace may be invisible
    bool                  is_lazy   = false; // a buffer whose writers populate its pages
    ggml_hugepages_ranges populated;         // of a lazy buffer; includes ranges that became ordinary memory
    bool                  is_told = false;   // the log contains the refusal of its pages
    int                   refused    = 0;    // errno of the first refused page
    size_t                refused_at = 0;
    std::map<size_t, int> memfds;           // one for each page size
    std::shared_ptr<ggml_hugepages_store_file> resident; // the resident image that holds some of the runs, or none
    std::vector<ggml_hugepages_grant> grants; // of the first image of a plan: pages held for the buffers after it
};

// the handle of a resident image, shared by its images and buffers
struct ggml_hugepages_resident {
    std::shared_ptr<ggml_hugepages_store_file> file;
};

//
// ranges
//

static inline size_t ggml_hugepages_align_down(size_t x, size_t to) { return x/to*to; }
static inline size_t ggml_hugepages_align_up  (size_t x, size_t to) { return (x + to - 1)/to*to; }

// sorts, and joins overlapping and adjacent ranges
ggml_hugepages_ranges ggml_hugepages_normalized(ggml_hugepages_ranges rs);

// the bytes of a that are not in b; both normalized
ggml_hugepages_ranges ggml_hugepages_minus(const ggml_hugepages_ranges & a, const ggml_hugepages_ranges & b);

// number of bytes of [first, last) in the ranges
size_t ggml_hugepages_overlap(const ggml_hugepages_ranges & rs, size_t first, size_t last);

//
// supply
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
    std::vector<ggml_hugepages_node>  nodes;       // nodes that may be used
    bool                              is_bound = false; // to fewer nodes than the machine has
    std::vector<ggml_hugepages_limit> limits;      // of all visible ancestors
    uint64_t                          held = 0;    // pages that this process holds for the planned buffer
    uint64_t                          promised = 0; // pages that this process reserved for others and has not touched

    // usable pages within pool, nodes and limits
    uint64_t usable() const;

    uint64_t usable_of_pool() const; // within pool and nodes

    // the limit that leaves the fewest bytes, nullptr without a limit
    const ggml_hugepages_limit * tightest() const;
};

// root: prefix of /sys and /proc. nodes: nodes that may be used, empty for all.
ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes);

// Whether an invisible hugetlb limit may apply, because the visible cgroup tree starts below the machine's root or is not mounted.
bool ggml_hugepages_limits_may_hide(const char * root);

// Pages that this process reserved and has not touched, except those of one buffer or image. A limit on pages does not count them yet.
uint64_t ggml_hugepages_promised(size_t page_size, const ggml_hugepages_image * except);

// the nodes that a placement binds to, empty for all
std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement);

// every node of the machine
std::vector<int> ggml_hugepages_all_nodes(const char * root);

// bytes of a THP, 0 if the kernel has none; enabled: false if THP is off
size_t ggml_hugepages_thp_size(const char * root, bool * enabled);

// MemAvailable in bytes
uint64_t ggml_hugepages_mem_available(const char * root);

// "CommitLimit ..., Committed_AS ..." if vm.overcommit_memory is 2, else empty
std::string ggml_hugepages_overcommit(const char * root);

struct ggml_hugepages_mount {
    std::string device; // major:minor
    std::string fs_root;
    std::string path;
    std::string type;
    std::string options; // of the file system, with a comma before and after each
};

// all lines of /proc/self/mountinfo
std::vector<ggml_hugepages_mount> ggml_hugepages_mounts(const char * root);

//
// plan
//

// Sets wanted and runs of the images. Allocates nothing.
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

// one read, and one checksum
static const size_t GGML_HUGEPAGES_CHUNK_SIZE = 8*1024*1024;

// A direct read of the last sector may write garbage behind the end of the file, so the manifest starts this far behind it.
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
    uint64_t checksum; // of the fields above, except the magic
    uint32_t filler;   // process
    uint32_t unused;
};

// Eight lanes, to keep up with the memory; neither libc nor ggml has a fast checksum. It detects flipped bits, not forgeries.
uint64_t ggml_hugepages_checksum(const void * data, size_t size);
uint64_t ggml_hugepages_header_checksum(const ggml_hugepages_store_header & h);

// Proof that only this process may write to a resident image. The lock is on a file of mode 0600 beside the image, so a process that may
// only read the image cannot take it. The lock belongs to the open file, so the kernel releases it when the process ends.
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

    // set by the open
    std::shared_ptr<int>  dir;             // closes itself
    std::string           name;
    std::string           path;            // for messages
    int                   fd          = -1; // -1: no image with that name yet
    bool                  is_writable = false;
    size_t                page_size   = 0;
    size_t                segment     = 0; // bytes
    size_t                length      = 0; // of the file
    size_t                sums_at     = 0; // offset of the checksums
    std::vector<uint64_t> sums;            // of the segments, 0 for a missing segment

    // while this process fills the image
    std::unique_ptr<ggml_hugepages_fill_lock> lock;
    bool                  is_new = false;  // created by this process

    ~ggml_hugepages_store_file();

    // whether this process is attached to the image, or may fill it
    bool is_open() const { return fd != -1 || lock; }

    // whether all of [first, last) is complete; is_complete: for a buffer, all segments
    bool has(size_t first, size_t last) const;
    bool is_complete() const;

    // whether the page of this block is already allocated
    bool has_page(size_t first) const;

    // pages that the manifest still needs for itself: none if it exists, or if it shares its page with data
    size_t pages_of_manifest() const;

    // pages of the file that nobody uses, because a filler died before it completed them
    uint64_t pages_left_over() const;

    // Creates the image if it does not exist, and maps its manifest writable. Fails with GGML_HUGEPAGES_STATUS_SHORT if the manifest gets
    // no page.
    bool begin(ggml_hugepages_error * error);

    // whether begin() was called: this process may write to missing segments
    bool is_filling() const { return manifest != nullptr; }

    // writes the checksums of the segments inside [first, last), whose bytes are at addr + first
    void complete(const uint8_t * addr, size_t first, size_t last);

    // ends the filling and releases the lock
    void finish();

    // Returns the pages that a dead filler left. This process holds the fill lock.
    void return_left_over() { return_pages(*lock); }

    // Returns the pages that are not complete, and removes the file if this process created it and no other process uses it.
    void give_up();

    // Removes the name: attached processes keep the image, and no other process can attach.
    void unlink();

private:
    void   * manifest      = nullptr; // mapped by the filler
    size_t   manifest_size = 0;

    std::atomic<uint64_t> * shared_sums() const;
    bool make(ggml_hugepages_error * error);
    void return_pages(const ggml_hugepages_fill_lock & proof);
    void close_manifest();
};

// Free bytes of the store's mount, UINT64_MAX if the mount has no limit.
uint64_t ggml_hugepages_store_free(const ggml_hugepages_store_file & file);

// Pages that the mount reserves for its files (min_size) and that no file uses yet: the pool counts them as reserved.
uint64_t ggml_hugepages_store_set_aside(const ggml_hugepages_store_file & file);

// Whether these bytes are the header of a resident image with that name, length and page size. Fills in info.
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
// shortages
//

// the kernel's refusal of a page
struct ggml_hugepages_refusal {
    const char * call; // system call
    int          err;  // errno
    size_t       page_size;
    size_t       at;   // offset of the page
    bool         is_in_store;
};

// Reacts to the kernel's refusal of [first, last) of an image. True: ordinary memory replaced the blocks, and the load continues. False:
// the load ends with the error that ggml_hugepages_fail_refused sets.
bool ggml_hugepages_policy_refused(
        ggml_hugepages_image         & image,
        const ggml_hugepages_refusal & refusal,
        size_t                         first,
        size_t                         last,
        ggml_hugepages_error         * error);

// Explains a refusal: too few pages, a limit, an invisible limit, a forbidden call, or a full mount. need: pages by size
bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        const ggml_hugepages_refusal     & refusal,
        ggml_hugepages_error             * error);

// sets "ulimit -v ..." if the process has such a limit
void ggml_hugepages_hint_address_space(ggml_hugepages_error * error, uint64_t size);

// Sets the error for a shortage: the need of the load from each pool that is too small.
bool ggml_hugepages_fail_short(const char * root, const std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages, ggml_hugepages_error * error);

//
// system calls
//

// Whether a filter kills this process for a call. A filter that returns an error is harmless, because the caller sees the error.
// third: the third argument, for filters that check flags
bool ggml_hugepages_is_killing(long call, long third = 0);

// Counts the filters again, because the host program may have added filters since the last load.
void ggml_hugepages_forget_filters();

// -1 and EPERM if a filter would kill the process, else the result of the call.
long ggml_hugepages_call(long call, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0);

// madvise(2)
int ggml_hugepages_advise(void * addr, size_t size, int advice);

// a memfd of huge pages; -1 with errno
int ggml_hugepages_memfd(const char * name, size_t page_size);

// ftruncate(2)
bool ggml_hugepages_resize(int fd, size_t size);

// Returns the pages of [first, last) of a file of huge pages.
bool ggml_hugepages_punch(int fd, size_t first, size_t last);

// Reserves the pages of [first, last) of such a file. The reservation lasts as long as the file.
bool ggml_hugepages_reserve(int fd, size_t first, size_t last);

// Tries the system calls of a load: a memfd, a reservation of n_reserve pages, and n_populate populated pages. Returns everything.
// need: pages of the load, for the message
bool ggml_hugepages_try(const char * root, size_t page_size, uint64_t n_reserve, uint64_t n_populate, uint64_t need, ggml_hugepages_error * error);

//
// the page cache
//

enum ggml_hugepages_cached { GGML_HUGEPAGES_CACHED_NONE, GGML_HUGEPAGES_CACHED_SOME, GGML_HUGEPAGES_CACHED_ALL, GGML_HUGEPAGES_CACHED_UNKNOWN };

// The parts of a file that the page cache holds. The engine asks before the first read, because reads change the answer.
struct ggml_hugepages_page_cache {
    // the system call that works here; the engine first tries each call on a cached page, because some succeed with a wrong answer
    enum { BY_CACHESTAT, BY_MINCORE, BY_TRYING, BY_NOTHING } way = BY_NOTHING;
    int                   fd   = -1;
    size_t                size = 0; // of the file
    ggml_hugepages_ranges of;       // the ranges that will be read
    ggml_hugepages_ranges there;    // cached ranges at the first look, unless BY_TRYING or BY_NOTHING

    void look(int fd, size_t size, const ggml_hugepages_ranges & of);

    // of [first, last), at the first look if known; *bytes: how many are cached, 0 if unknown
    ggml_hugepages_cached state(size_t first, size_t last, size_t * bytes) const;

    // bytes of [first, last) that are cached now; false: unknown
    bool count(size_t first, size_t last, size_t * bytes) const;

    // drops the pages that were not cached at the first look
    void drop_new(size_t first, size_t last) const;

    // Drops the whole file. Returns the bytes of the read ranges that the kernel keeps, 0 if the kernel does not report them.
    size_t drop_all() const;
};

//
// pages held for the buffers after the weights
//

struct ggml_hugepages_held;

// Reserves the pages. False with errno if the kernel refuses; at_page_size: the page size that it refused.
// populate: also populates them, so that an invisible limit refuses them now
bool ggml_hugepages_hold(const std::vector<ggml_hugepages_grant> & grants, bool accept_less, bool populate, size_t * at_page_size);

// number of pages held for buffers of this kind, or of all kinds with GGML_HUGEPAGES_KIND_COUNT
uint64_t ggml_hugepages_held_pages(ggml_hugepages_kind kind, size_t page_size);

// Gives held pages to runs, and splits a run where the held pages end.
void ggml_hugepages_held_take(ggml_hugepages_kind kind, std::vector<ggml_hugepages_run> & runs);

// the file with the held pages
int ggml_hugepages_held_fd(const ggml_hugepages_held & held);

// Takes back the held pages of a freed buffer. Nothing maps these pages any more.
void ggml_hugepages_held_return(const ggml_hugepages_run & run);

// Marks blocks that the kernel refused on touch.
void ggml_hugepages_held_refused(const ggml_hugepages_run & run);

//
// memory
//

// Replaces [first, last), whole blocks of one size, with the ordinary mapping, and returns pages that belong to this process alone. Pages
// in a store remain.
bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error);

// Returns the pages of a failed load, so that the message counts only the pages of others. Nobody may use the blocks after this.
void ggml_hugepages_release(ggml_hugepages_image_t * images, size_t n_images);

// the path of an open file, empty if unknown
std::string ggml_hugepages_path_of(int fd);

// page size of the hugetlbfs that holds a file, 0 on other file systems
size_t ggml_hugepages_page_of(int fd);

// madvise(2): MADV_POPULATE_WRITE reports a shortage as an error, while a touch would end in SIGBUS. Sets errno.
bool ggml_hugepages_populate(uint8_t * addr, size_t size);

// microseconds of this thread in ggml_hugepages_buffer_populate
uint64_t ggml_hugepages_us_populate();

// number of threads that populate and read
size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params);

// Runs the work on up to n threads, or on this thread if none starts. Calls idle repeatedly until all threads are done.
void ggml_hugepages_on_threads(size_t n, const std::function<void()> & work, const std::function<void()> & idle = nullptr);

// Populates the runs of all images, reads the files into them, and reads the pieces. ggml_hugepages_policy_refused decides what happens if
// the kernel refuses pages.
// refused, refusal: the image and the cause, if the load ends for lack of a page; error has no message then
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

// Populates a buffer. Of a lazy buffer it populates only pages that are larger than a chunk.
bool ggml_hugepages_populate_all(ggml_hugepages_image & image, ggml_hugepages_image ** refused, ggml_hugepages_refusal * refusal, ggml_hugepages_error * error);

// Populates pages before the first read: the missing pages of resident images, because the engine does not reserve pages of a store, and
// all pages if an invisible limit may apply, because the kernel enforces it on touch.
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

// the scope of threads without one
ggml_hugepages_scope ggml_hugepages_default_scope();

//
// messages
//

// sets the status and the formatted message, returns false
GGML_ATTRIBUTE_FORMAT(3, 4)
bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...);

// Runs f and turns an exception into an error, because other languages cannot catch it.
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

// the command that sets the size of a pool to `total`
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
