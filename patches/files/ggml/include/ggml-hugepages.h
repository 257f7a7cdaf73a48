#pragma once

//
// Huge pages for memory that the CPU reads
//
// This is the whole mechanism: which page sizes exist and how many pages can be had, what of a file or of a buffer lies
// on them, how they are mapped, filled and protected, and what the kernel says of the result. It knows files, buffers
// and byte ranges, and nothing of models.
//
// - huge page:  a HugeTLB page of an explicit pool. THP is always called THP.
// - file image: a file as one mapping, in which offset in the mapping = offset in the file
// - buffer:     memory without a file
// - block:      one huge page's worth of an image or a buffer
// - overlay:    a block mapped over the file image
//
//   file image   |hdr|  t0  |  t1  | other |  t2  |
//   wanted           [=============]       [======]
//   overlay       [ block ][ block ][block][ block ]      whatever shares a block with a wanted byte comes along
//

#include "ggml.h"

#include <stddef.h>
#include <stdint.h>

#ifdef  __cplusplus
#define GGML_HUGEPAGES_NOEXCEPT noexcept
extern "C" {
#else
#define GGML_HUGEPAGES_NOEXCEPT
#endif

// What other languages call throws nothing: it is GGML_HUGEPAGES_NOEXCEPT, and a failure is in its result or its error.

enum ggml_hugepages_policy {
    GGML_HUGEPAGES_POLICY_REQUIRE = 0, // all that is wanted, or an error before any I/O
    GGML_HUGEPAGES_POLICY_PREFER  = 1, // as many pages as there are, the rest lies where it does without huge pages
};

// which nodes the pages come from
enum ggml_hugepages_placement {
    GGML_HUGEPAGES_PLACEMENT_DEFAULT    = 0, // as the memory policy of the process says
    GGML_HUGEPAGES_PLACEMENT_INTERLEAVE = 1, // all nodes in turn
    GGML_HUGEPAGES_PLACEMENT_LOCAL      = 2, // the node that the process runs on
    GGML_HUGEPAGES_PLACEMENT_BIND       = 3, // the nodes of the CPUs that the process may use
};

// what a buffer or an image is for
enum ggml_hugepages_kind {
    GGML_HUGEPAGES_KIND_WEIGHTS  = 0,
    GGML_HUGEPAGES_KIND_REPACKED = 1, // weights in an order that suits this CPU
    GGML_HUGEPAGES_KIND_KV       = 2, // KV cache, recurrent state
    GGML_HUGEPAGES_KIND_COMPUTE  = 3,
    GGML_HUGEPAGES_KIND_OTHER    = 4, // adapters, projectors, buffers of remote clients

    GGML_HUGEPAGES_KIND_COUNT
};

// How much of it is read for each token: when pages are short, a lower rank gets them first.
enum ggml_hugepages_rank {
    GGML_HUGEPAGES_RANK_LAYERS     = 0,
    GGML_HUGEPAGES_RANK_OUTPUT     = 1,
    GGML_HUGEPAGES_RANK_KV         = 2,
    GGML_HUGEPAGES_RANK_COMPUTE    = 3,
    GGML_HUGEPAGES_RANK_EMBEDDINGS = 4, // a few rows of it
};

enum ggml_hugepages_backing {
    GGML_HUGEPAGES_BACKING_HUGE = 0, // HugeTLB
    GGML_HUGEPAGES_BACKING_THP  = 1,
    GGML_HUGEPAGES_BACKING_BASE = 2, // ordinary anonymous memory
    GGML_HUGEPAGES_BACKING_FILE = 3, // page cache

    GGML_HUGEPAGES_BACKING_COUNT
};

// special values of ggml_hugepages_params.page_size
#define GGML_HUGEPAGES_SIZE_AUTO 0 // the largest that fit, a smaller one for the rest
#define GGML_HUGEPAGES_SIZE_THP  1 // no pool: anonymous memory with MADV_HUGEPAGE

struct ggml_hugepages_params {
    bool                          enabled;
    enum ggml_hugepages_policy    policy;
    enum ggml_hugepages_placement placement;
    size_t                        page_size;     // bytes, or one of GGML_HUGEPAGES_SIZE_*
    int32_t                       n_threads;     // to read with, 0 = from the number of cores
    bool                          drop_cache;    // drop what the page cache holds of the files after the load
    uint64_t                      kv_bytes;      // buffers that will be asked for after the weights: they are
    uint64_t                      compute_bytes; // counted in the need, and pages are left for them
    bool                          plan_only;     // ggml_hugepages_plan fails with GGML_HUGEPAGES_STATUS_PLANNED where it would succeed
    bool                          load_only;     // nothing follows the weights: for programs that fill resident images and end
    bool                          verify;        // compare resident images with their checksums before they are used
    char                          store[512];    // hugetlbfs directory for resident images, "auto" for one that is mounted, "" for none
};

enum ggml_hugepages_status {
    GGML_HUGEPAGES_STATUS_OK          = 0,
    GGML_HUGEPAGES_STATUS_ABORTED     = 1, // the progress callback returned false
    GGML_HUGEPAGES_STATUS_UNSUPPORTED = 2, // not Linux, no such pool in the kernel, or a kernel older than 5.14
    GGML_HUGEPAGES_STATUS_SHORT       = 3, // fewer pages than needed
    GGML_HUGEPAGES_STATUS_NO_MEMORY   = 4, // a mapping that needs no huge page was refused
    GGML_HUGEPAGES_STATUS_IO          = 5, // the file could not be read
    GGML_HUGEPAGES_STATUS_INVALID     = 6, // the file was read, and whoever asked for its bytes refused them
    GGML_HUGEPAGES_STATUS_PLANNED     = 7, // no failure: only the plan was asked for
    GGML_HUGEPAGES_STATUS_FORBIDDEN   = 8, // a system call that is needed is refused to this process
};

// what went wrong: a lower-case fragment, and a line with what to do about it where the user can do something
struct ggml_hugepages_error {
    enum ggml_hugepages_status status;
    char message[2048];
    char hint[2048]; // may be empty
};

// one pool, in pages; all zero where the kernel has no pool of that size
struct ggml_hugepages_pool {
    size_t   page_size;  // bytes
    uint64_t total;      // nr_hugepages, surplus included
    uint64_t free;
    uint64_t reserved;   // promised to a mapping and not yet touched
    uint64_t surplus;    // taken from free memory on top of the persistent pool
    uint64_t overcommit; // how many surplus pages there may be
};

// One kind of memory on one backing. Read from /proc/self/smaps and numa_maps, not from what was planned.
struct ggml_hugepages_usage {
    enum ggml_hugepages_kind    kind;
    enum ggml_hugepages_backing backing;
    size_t                      page_size; // bytes, of GGML_HUGEPAGES_BACKING_HUGE and _THP
    uint64_t                    bytes;     // of tensors
    uint64_t                    pages;     // huge pages that they lie on: blocks are whole, so this can be more than the bytes need
    uint64_t                    node_bytes[8]; // resident memory on each node, all zero where the kernel does not tell
};

// where the time of the last load went
struct ggml_hugepages_load {
    uint64_t bytes_direct;   // read with O_DIRECT
    uint64_t bytes_cached;   // copied from the page cache
    uint64_t bytes_buffered; // read through the page cache
    uint64_t us_total;       // wall time
    uint64_t us_populate;    // these are sums over all threads
    uint64_t us_read;
    uint64_t us_place;       // copying and repacking
    uint64_t bytes_attached; // were there already, in resident images
    uint32_t n_threads;
};

struct ggml_hugepages_report {
    uint32_t                    n_usages;
    uint32_t                    n_nodes;   // how many of node_bytes are meant
    struct ggml_hugepages_usage usages[32];
    uint64_t                    late;      // bytes that were asked for after the start and got ordinary memory
    struct ggml_hugepages_load  load;
};

// Called while files are read: `done` of `total` wanted bytes. Return false to stop.
typedef bool (*ggml_hugepages_progress_callback)(uint64_t done, uint64_t total, void * user_data);

GGML_API struct ggml_hugepages_params ggml_hugepages_default_params(void) GGML_HUGEPAGES_NOEXCEPT;

// whether a load with these parameters goes on with fewer pages than it needs
GGML_API bool ggml_hugepages_accepts_less(const struct ggml_hugepages_params * params) GGML_HUGEPAGES_NOEXCEPT;

GGML_API const char * ggml_hugepages_policy_name    (enum ggml_hugepages_policy policy) GGML_HUGEPAGES_NOEXCEPT;
GGML_API bool         ggml_hugepages_policy_from_str(const char * str, enum ggml_hugepages_policy * policy) GGML_HUGEPAGES_NOEXCEPT;
GGML_API const char * ggml_hugepages_kind_name      (enum ggml_hugepages_kind kind) GGML_HUGEPAGES_NOEXCEPT;

// "auto", "thp", or a size such as "2M", "2MiB", "1G" or a number of bytes. Says nothing of whether there is such a pool.
GGML_API bool ggml_hugepages_size_from_str(const char * str, size_t * page_size) GGML_HUGEPAGES_NOEXCEPT;

// "1G", "2M", "thp", "base" or "file"
GGML_API int ggml_hugepages_backing_to_str(enum ggml_hugepages_backing backing, size_t page_size, char * buf, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// The sizes of the pools that the kernel has, ascending, in bytes. Returns how many there are, writes at most n of them.
// root: prefix of /sys and /proc, "" for this machine
GGML_API size_t ggml_hugepages_page_sizes(const char * root, size_t * page_sizes, size_t n) GGML_HUGEPAGES_NOEXCEPT;

// The smallest of them that is at least 2 MiB. 0 if there is none.
GGML_API size_t ggml_hugepages_page_size(const char * root) GGML_HUGEPAGES_NOEXCEPT;

// root: as above. Returns false if the kernel has no such pool.
GGML_API bool ggml_hugepages_pool_read(const char * root, size_t page_size, struct ggml_hugepages_pool * pool) GGML_HUGEPAGES_NOEXCEPT;

// Pages that can be had now: free and not reserved, and what overcommit may still add.
GGML_API uint64_t ggml_hugepages_pool_usable(const struct ggml_hugepages_pool * pool) GGML_HUGEPAGES_NOEXCEPT;

// Tries what a load does with a page of this size, and gives the page back: a filter or a limit may refuse what all counts allow. Where no
// page can be had, only the system calls are tried.
GGML_API bool ggml_hugepages_probe(size_t page_size, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

//
// file images: init, want, plan, map, overlay, fill
//

typedef struct ggml_hugepages_image    * ggml_hugepages_image_t;
typedef struct ggml_hugepages_resident * ggml_hugepages_resident_t;

// fd stays the caller's and must be open until the image has been filled
GGML_API ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size);

// Frees the description. The address range belongs to whoever called ggml_hugepages_image_map.
GGML_API void ggml_hugepages_image_free(ggml_hugepages_image_t image);

// bytes [first, last) of the file shall lie on huge pages
GGML_API void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last, enum ggml_hugepages_rank rank);

// whether anything shall
GGML_API bool ggml_hugepages_image_is_wanted(ggml_hugepages_image_t image);

// whether the file itself is on hugetlbfs: its mapping is on huge pages, and no block is laid over it
GGML_API bool ggml_hugepages_image_is_huge(ggml_hugepages_image_t image);

// bytes [first, last) of the file will be read as pieces
GGML_API void ggml_hugepages_image_expect(ggml_hugepages_image_t image, size_t first, size_t last);

// a buffer that will be asked for
struct ggml_hugepages_demand {
    enum ggml_hugepages_kind kind;
    enum ggml_hugepages_rank rank;
    uint64_t                 bytes;
    ggml_hugepages_resident_t resident; // that it will lie in, or NULL
};

// Decides which blocks of all images are overlaid, and with which pages. Takes nothing: with GGML_HUGEPAGES_POLICY_REQUIRE and
// too few pages it fails with the sum of the need, and no page has been touched.
GGML_API bool ggml_hugepages_plan(
        ggml_hugepages_image_t *             images,
        size_t                               n_images,
        const struct ggml_hugepages_demand * demands,
        size_t                               n_demands,
        const struct ggml_hugepages_params * params,
        struct ggml_hugepages_error *        error);

// What one image or one demand needs of one page size.
struct ggml_hugepages_need {
    enum ggml_hugepages_kind kind;
    int32_t                  image;     // its index, -1 for a demand
    size_t                   page_size; // 0: less than a page, ordinary memory
    uint64_t                 pages;
    uint64_t                 bytes;     // of tensors
};

// What the last ggml_hugepages_plan with plan_only came to, whether that can be had or not. Returns how many there are, writes
// at most n of them.
GGML_API size_t ggml_hugepages_get_needs(struct ggml_hugepages_need * needs, size_t n);

// How the last plan ended that took nothing: GGML_HUGEPAGES_STATUS_PLANNED, or what is missing. Returns false if there was none.
GGML_API bool ggml_hugepages_get_plan_end(struct ggml_hugepages_error * error);

// Maps the file, aligned to its largest block. NULL on failure. The range is ggml_hugepages_image_length() bytes long.
GGML_API void * ggml_hugepages_image_map(ggml_hugepages_image_t image, struct ggml_hugepages_error * error);

// size of the file rounded up to whole blocks
GGML_API size_t ggml_hugepages_image_length(ggml_hugepages_image_t image);

// munmap of a part of an image must begin and end on a multiple of this
GGML_API size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image);

// The i-th of the byte ranges [first, last) of the file that ggml_hugepages_fill will read: runs of planned blocks, and what
// pieces are expected of. Returns false if there is none.
GGML_API bool ggml_hugepages_image_read(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last);

// Called by any thread once [first, last) of the file is in place, at data. Returns false to end the load.
typedef bool (*ggml_hugepages_arrived_callback)(const void * data, size_t first, size_t last, void * user_data);

GGML_API void ggml_hugepages_image_on_arrival(ggml_hugepages_image_t image, ggml_hugepages_arrived_callback callback, void * user_data);

// Maps the planned blocks of all n images over their file mappings, which reserves their pages.
GGML_API bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, struct ggml_hugepages_error * error);

// A piece of a file that goes somewhere else. `place` is called once with all of it, by any thread, and returns false
// to end the load.
struct ggml_hugepages_piece {
    ggml_hugepages_image_t image;
    size_t                 first; // bytes [first, last) of the file
    size_t                 last;
    bool                (* place)(const void * data, size_t size, const struct ggml_hugepages_piece * piece);
    void                 * user_data; // for place
    size_t                 offset;    // for place
};

// Populates the blocks, reads the files into them and makes them read-only, and reads the pieces.
GGML_API bool ggml_hugepages_fill(
        ggml_hugepages_image_t *             images,
        size_t                               n_images,
        const struct ggml_hugepages_piece *  pieces,
        size_t                               n_pieces,
        const struct ggml_hugepages_params * params,
        ggml_hugepages_progress_callback     callback,
        void *                               user_data,
        struct ggml_hugepages_error *        error);

// Why the last load of this process failed, GGML_HUGEPAGES_STATUS_OK if none did: for exit codes. Set where the failure becomes an exception
// or a buffer that is NULL.
GGML_API void                       ggml_hugepages_set_failure(enum ggml_hugepages_status status) GGML_HUGEPAGES_NOEXCEPT;
GGML_API enum ggml_hugepages_status ggml_hugepages_get_failure(void) GGML_HUGEPAGES_NOEXCEPT;

// Ends the reservation of pages that the plan counted for buffers (KV cache, compute) and that no buffer has taken. To be called once the
// buffers exist; a load that fails does so by itself.
GGML_API void ggml_hugepages_hold_end(void);

//
// buffers: whatever a CPU buffer type allocates, while the calling thread is in a scope
//

struct ggml_hugepages_scope {
    struct ggml_hugepages_params params;
    enum ggml_hugepages_kind     kind;
    bool                         late; // growth after the start: falls back, and is counted
    bool                         lazy; // whoever writes to the buffer calls ggml_hugepages_buffer_populate before
    ggml_hugepages_resident_t    resident; // that the buffer shall lie in, or NULL
};

// Returns the scope that was set before, to be set again at the end. NULL: none.
GGML_API const struct ggml_hugepages_scope * ggml_hugepages_scope_set(const struct ggml_hugepages_scope * scope);

// for threads that are in no scope; params.enabled = false for none
GGML_API void ggml_hugepages_scope_set_default(const struct ggml_hugepages_scope * scope);

// NULL when the pages cannot be had and the scope requires them. Outside of a scope: ggml_aligned_malloc.
GGML_API void * ggml_hugepages_buffer_alloc(size_t size);
GGML_API void   ggml_hugepages_buffer_free (void * ptr, size_t size);

// Populates the pages of [ptr, ptr + size), a part of a buffer that was allocated in a lazy scope. Any thread may do so. Returns
// false when pages are refused and the scope requires them. Does nothing for other memory.
GGML_API bool ggml_hugepages_buffer_populate(void * ptr, size_t size);

// To be called once nobody writes to a lazy buffer any more, with what ggml_hugepages_buffer_alloc returned: populates what nobody
// wrote to, or says why pages were refused. Nobody may use the buffer then.
GGML_API bool ggml_hugepages_buffer_settle(void * ptr, struct ggml_hugepages_error * error);

//
// resident images: an image or a buffer in a file on hugetlbfs, where it stays when the process ends
//
//   resident   |segment|segment| ... |segment|  |checksums|header|     the same offsets as in the image or the buffer
//                                               [  manifest      ]     ends with the file
//
// A segment has a checksum once all of it is there, and never before. Whoever finds all segments that it wants attaches: it maps them
// read-only. Whoever misses some fills them, one process at a time: the others wait, and go on when it dies. Locks are open file
// description locks, so none outlives its process.
//

// What makes a file this file: device, inode, size, modification time, and a hash of its first header_size bytes; as a line of
// text. Returns false if it cannot be read.
GGML_API bool ggml_hugepages_file_identity(int fd, size_t header_size, char * buf, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// Nothing is opened yet.
// fd:       the file that it is made of: its path goes into the manifest, to be shown, and to see whether it is still the same
// identity: all that has to be the same for two processes to share it, in lines; the first one is a ggml_hugepages_file_identity of fd.
//           The engine's own version and ggml's build come along by themselves.
// size:     of the image or the buffer, in bytes
GGML_API ggml_hugepages_resident_t ggml_hugepages_resident_init(
        enum ggml_hugepages_kind kind,
        int                      fd,
        const char *             identity,
        size_t                   size);

// What lies in it stays. Gives back what was not completed.
GGML_API void ggml_hugepages_resident_free(ggml_hugepages_resident_t resident);

// The blocks of the image shall lie in it, or in none again if it is NULL: before ggml_hugepages_residents_open, after all
// ggml_hugepages_image_want.
GGML_API void ggml_hugepages_image_reside(ggml_hugepages_image_t image, ggml_hugepages_resident_t resident);

// Opens or makes them all in params->store, and waits for who fills them now. With params->plan_only it only looks.
GGML_API bool ggml_hugepages_residents_open(
        ggml_hugepages_resident_t *          residents,
        size_t                               n,
        const struct ggml_hugepages_params * params,
        ggml_hugepages_progress_callback     callback,
        void *                               user_data,
        struct ggml_hugepages_error *        error);

// whether nothing is missing
GGML_API bool ggml_hugepages_resident_is_complete(ggml_hugepages_resident_t resident);

// Bytes that a program shows of a file with that name in a store.
struct ggml_hugepages_resident_info {
    enum ggml_hugepages_kind kind;
    uint64_t                 page_size;
    uint64_t                 size;        // bytes of the image or the buffer
    uint64_t                 file_bytes;  // length of the file
    uint64_t                 used_bytes;  // of huge pages that it holds
    uint64_t                 n_segments;
    uint64_t                 n_complete;
    int64_t                  created;     // seconds since 1970
    int64_t                  used;        // attached or filled last
    uint32_t                 filler;      // process that fills it or did so last, 0 if unknown
    bool                     is_filling;  // by a process that is alive
    bool                     is_attached; // by at least one process
    bool                     is_stale;    // its source is gone or not the same any more
    char                     source[1024];
    char                     identity[2048];
};

// whether a file of that name can be a resident image
GGML_API bool ggml_hugepages_resident_is_name(const char * name) GGML_HUGEPAGES_NOEXCEPT;

// dir_fd: a directory on hugetlbfs. Fails with GGML_HUGEPAGES_STATUS_INVALID and the reason when nobody would attach to it; what is known
// of it is in info then. Takes no page.
GGML_API bool ggml_hugepages_resident_read(int dir_fd, const char * name, struct ggml_hugepages_resident_info * info, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// Compares all complete segments with their checksums. Takes no page.
GGML_API bool ggml_hugepages_resident_verify(
        int                              dir_fd,
        const char *                     name,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        struct ggml_hugepages_error *    error) GGML_HUGEPAGES_NOEXCEPT;

// Removes it, also one that cannot be trusted. While a process is attached to it or fills it: fails with
// GGML_HUGEPAGES_STATUS_INVALID, or with force takes the name away, and the pages go with the last process.
GGML_API bool ggml_hugepages_resident_drop(int dir_fd, const char * name, bool force, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// The directory that `store` of the parameters means, and its page size. `store` may be "auto". Fails when it is not on hugetlbfs, when others
// may write to it, or when there is none.
GGML_API bool ggml_hugepages_store_find(
        const char *                  store,
        size_t                        page_size, // that it shall have, or GGML_HUGEPAGES_SIZE_AUTO
        char *                        path,
        size_t                        path_size,
        size_t *                      found,
        struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

//
// what the kernel says
//

// Sums over all images and buffers of this process that are alive. Returns false if the kernel does not tell.
GGML_API bool ggml_hugepages_get_report(struct ggml_hugepages_report * report) GGML_HUGEPAGES_NOEXCEPT;

// A table for people, several lines. Returns what snprintf does.
GGML_API int ggml_hugepages_report_to_str(const struct ggml_hugepages_report * report, char * buf, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// Logs that table, unless the default scope has no huge pages: for programs that serve buffers and load no model.
GGML_API void ggml_hugepages_log_report(void);

#ifdef  __cplusplus
}
#endif
