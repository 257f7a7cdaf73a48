#pragma once

//
// Huge pages for memory that the CPU reads
//
// The whole engine: page sizes and usable pages, which bytes of a file or a buffer get huge pages, mapping, filling and protecting them,
// and the kernel's view of the result. The engine knows files, buffers and byte ranges, but no models.
//
// - huge page:  a HugeTLB page from an explicit pool. Transparent huge pages are always called THP.
// - file image: a file as one mapping, in which offset in the mapping = offset in the file
// - buffer:     memory without a file
// - block:      a range of an image or a buffer with the size of one huge page
// - overlay:    the blocks that are mapped over the file image
//
//   file image   |hdr|  t0  |  t1  | other |  t2  |
//   wanted           [=============]       [======]
//   overlay       [ block ][ block ][block][ block ]      all bytes of a block that contains a wanted byte
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

// Functions that other languages call throw nothing: they are GGML_HUGEPAGES_NOEXCEPT and report a failure in their result or their error.

enum ggml_hugepages_policy {
    GGML_HUGEPAGES_POLICY_REQUIRE = 0, // all wanted bytes on huge pages, or an error before any I/O
    GGML_HUGEPAGES_POLICY_PREFER  = 1, // as many wanted bytes as the usable pages allow, the rest as without huge pages
};

// the nodes that provide the pages
enum ggml_hugepages_placement {
    GGML_HUGEPAGES_PLACEMENT_DEFAULT    = 0, // the memory policy of the process
    GGML_HUGEPAGES_PLACEMENT_INTERLEAVE = 1, // all nodes in turn
    GGML_HUGEPAGES_PLACEMENT_LOCAL      = 2, // the node on which the process runs
    GGML_HUGEPAGES_PLACEMENT_BIND       = 3, // the nodes of the CPUs that the process may use
    GGML_HUGEPAGES_PLACEMENT_ROWS       = 4, // weights: the node of the threads that read them; other memory: all nodes in turn
};

// the purpose of a buffer or an image
enum ggml_hugepages_kind {
    GGML_HUGEPAGES_KIND_WEIGHTS  = 0,
    GGML_HUGEPAGES_KIND_REPACKED = 1, // weights in the order that suits this CPU
    GGML_HUGEPAGES_KIND_KV       = 2, // KV cache, recurrent state
    GGML_HUGEPAGES_KIND_COMPUTE  = 3,
    GGML_HUGEPAGES_KIND_OTHER    = 4, // adapters, projectors, buffers of remote clients

    GGML_HUGEPAGES_KIND_COUNT
};

// The share of the bytes that each token reads. If pages are short, a lower rank gets them first.
enum ggml_hugepages_rank {
    GGML_HUGEPAGES_RANK_LAYERS     = 0,
    GGML_HUGEPAGES_RANK_OUTPUT     = 1,
    GGML_HUGEPAGES_RANK_KV         = 2,
    GGML_HUGEPAGES_RANK_COMPUTE    = 3,
    GGML_HUGEPAGES_RANK_EMBEDDINGS = 4, // each token reads a few rows
};

enum ggml_hugepages_backing {
    GGML_HUGEPAGES_BACKING_HUGE = 0, // HugeTLB
    GGML_HUGEPAGES_BACKING_THP  = 1,
    GGML_HUGEPAGES_BACKING_BASE = 2, // ordinary anonymous memory
    GGML_HUGEPAGES_BACKING_FILE = 3, // page cache

    GGML_HUGEPAGES_BACKING_COUNT
};

// the nodes that ggml-cpu.c and the report know
#define GGML_HUGEPAGES_MAX_NODES 8

// special values of ggml_hugepages_params.page_size
#define GGML_HUGEPAGES_SIZE_AUTO 0 // the largest size that fits, smaller sizes for the rest
#define GGML_HUGEPAGES_SIZE_THP  1 // no pool: anonymous memory with MADV_HUGEPAGE

struct ggml_hugepages_params {
    bool                          enabled;
    enum ggml_hugepages_policy    policy;
    enum ggml_hugepages_placement placement;
    size_t                        page_size;     // bytes, or one of GGML_HUGEPAGES_SIZE_*
    int32_t                       n_threads;     // reader threads, 0 = depends on the number of cores
    bool                          drop_cache;    // drop the files from the page cache after the load
    uint64_t                      kv_bytes;      // sizes of the buffers that follow the weights: the plan
    uint64_t                      compute_bytes; // counts them, and the load keeps pages for them
    bool                          plan_only;     // ggml_hugepages_plan fails with GGML_HUGEPAGES_STATUS_PLANNED instead of succeeding
    bool                          load_only;     // no buffer follows the weights: for programs that fill resident images and exit
    bool                          evict;         // if pages are short, remove images of the store that no process uses; plan_only counts them
    bool                          verify;        // compare resident images with their checksums before use
    uint32_t                      model_id;      // a number that the caller chose for this model, for ggml_hugepages_get_report; 0: none
    char                          store[512];    // hugetlbfs directory for resident images, "auto" for a mounted one, "" for none
    int32_t                       n_compute_threads; // threads of a token, for GGML_HUGEPAGES_PLACEMENT_ROWS; 0: unknown
    bool                          keep_context;  // the KV cache remains in the store, see ggml_hugepages_context_init
    bool                          wipe_context;  // remove it when this process exits
    uint64_t                      context_bytes; // of the journal behind a KV cache that remains in the store, 0: it does not remain
    uint64_t                      context_key;   // a hash of everything else that must be equal before another process may use it
};

enum ggml_hugepages_status {
    GGML_HUGEPAGES_STATUS_OK          = 0,
    GGML_HUGEPAGES_STATUS_ABORTED     = 1, // the progress callback returned false
    GGML_HUGEPAGES_STATUS_UNSUPPORTED = 2, // not Linux, no such pool in the kernel, or a kernel before 5.14
    GGML_HUGEPAGES_STATUS_SHORT       = 3, // too few pages
    GGML_HUGEPAGES_STATUS_NO_MEMORY   = 4, // the kernel refused a mapping that needs no huge page
    GGML_HUGEPAGES_STATUS_IO          = 5, // the file cannot be read
    GGML_HUGEPAGES_STATUS_INVALID     = 6, // the file was read, but a callback refused its bytes
    GGML_HUGEPAGES_STATUS_PLANNED     = 7, // no failure: the caller asked only for the plan
    GGML_HUGEPAGES_STATUS_FORBIDDEN   = 8, // this process may not use a system call that the engine needs
};

// a lower-case fragment, and a hint if the user can fix the failure
struct ggml_hugepages_error {
    enum ggml_hugepages_status status;
    char message[2048];
    char hint[2048]; // may be empty

    // for a shortage of pages of one size, otherwise 0
    size_t   page_size; // bytes
    uint64_t needed;    // pages
    uint64_t usable;    // pages
};

// one pool, in pages; all zero if the kernel has no pool of that size
struct ggml_hugepages_pool {
    size_t   page_size;  // bytes
    uint64_t total;      // nr_hugepages, includes surplus
    uint64_t free;
    uint64_t reserved;   // reserved by mappings that have not touched them yet
    uint64_t surplus;    // allocated from ordinary memory on top of the persistent pool
    uint64_t overcommit; // the limit of surplus pages
};

// One kind of memory on one backing. The numbers are from /proc/self/smaps and numa_maps, not from the plan.
struct ggml_hugepages_usage {
    enum ggml_hugepages_kind    kind;
    enum ggml_hugepages_backing backing;
    size_t                      page_size; // bytes, for GGML_HUGEPAGES_BACKING_HUGE and _THP
    uint64_t                    bytes;     // of tensors
    uint64_t                    pages;     // huge pages under these bytes; blocks are whole, so this can be more than the bytes need
    uint64_t                    node_bytes[GGML_HUGEPAGES_MAX_NODES]; // resident memory on each node, all zero if the kernel does not report it
    uint64_t                    local_bytes;   // of matrices, on the node of the threads that read them with GGML_HUGEPAGES_PLACEMENT_ROWS,
    uint64_t                    remote_bytes;  // and on other nodes. Both zero with another placement, or if the kernel does not report it
};

// bytes and times of the last load of a model
struct ggml_hugepages_load {
    uint64_t bytes_direct;   // read with O_DIRECT
    uint64_t bytes_cached;   // copied from the page cache
    uint64_t bytes_buffered; // read through the page cache
    uint64_t us_total;       // wall time
    uint64_t us_populate;    // this and the next two are sums over all threads
    uint64_t us_read;
    uint64_t us_place;       // copy and repack
    uint64_t bytes_attached; // already present in resident images
    uint32_t n_threads;
};

struct ggml_hugepages_report {
    uint32_t                    n_usages;
    uint32_t                    n_nodes;   // number of valid entries in node_bytes
    struct ggml_hugepages_usage usages[32];
    uint64_t                    late;      // bytes of buffers that were allocated after the start on ordinary memory
    struct ggml_hugepages_load  load;
};

// Called while files are read: `done` of `total` wanted bytes. Return false to cancel.
typedef bool (*ggml_hugepages_progress_callback)(uint64_t done, uint64_t total, void * user_data);

GGML_API struct ggml_hugepages_params ggml_hugepages_default_params(void) GGML_HUGEPAGES_NOEXCEPT;

// The defaults with the values of LLAMA_ARG_HUGEPAGES, LLAMA_ARG_HUGEPAGE_POLICY, _SIZE, _STORE, _THREADS and _PLACEMENT. An invalid value
// leaves the option off, with one warning for the process.
GGML_API struct ggml_hugepages_params ggml_hugepages_env_params(void) GGML_HUGEPAGES_NOEXCEPT;

// whether a load with these parameters continues if it gets fewer pages than it needs
GGML_API bool ggml_hugepages_accepts_less(const struct ggml_hugepages_params * params) GGML_HUGEPAGES_NOEXCEPT;

GGML_API const char * ggml_hugepages_policy_name    (enum ggml_hugepages_policy policy) GGML_HUGEPAGES_NOEXCEPT;
GGML_API bool         ggml_hugepages_policy_from_str(const char * str, enum ggml_hugepages_policy * policy) GGML_HUGEPAGES_NOEXCEPT;
GGML_API const char * ggml_hugepages_kind_name      (enum ggml_hugepages_kind kind) GGML_HUGEPAGES_NOEXCEPT;

// Parses "auto", "thp", or a size such as "2M", "2MiB", "1G" or a number of bytes. Does not check that the kernel has such a pool.
GGML_API bool ggml_hugepages_size_from_str(const char * str, size_t * page_size) GGML_HUGEPAGES_NOEXCEPT;

// "1G", "2M", "thp", "base" or "file"
GGML_API int ggml_hugepages_backing_to_str(enum ggml_hugepages_backing backing, size_t page_size, char * buf, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// The page sizes of the kernel's pools in bytes, ascending. Writes at most n sizes and returns the number of all sizes.
// root: prefix of /sys and /proc, "" for this machine
GGML_API size_t ggml_hugepages_page_sizes(const char * root, size_t * page_sizes, size_t n) GGML_HUGEPAGES_NOEXCEPT;

// The smallest pool size that is at least 2 MiB, 0 if the kernel has no such pool.
GGML_API size_t ggml_hugepages_page_size(const char * root) GGML_HUGEPAGES_NOEXCEPT;

// root: as above. Returns false if the kernel has no such pool.
GGML_API bool ggml_hugepages_pool_read(const char * root, size_t page_size, struct ggml_hugepages_pool * pool) GGML_HUGEPAGES_NOEXCEPT;

// Usable pages: free pages without reserved ones, plus the surplus pages that overcommit still allows.
GGML_API uint64_t ggml_hugepages_pool_usable(const struct ggml_hugepages_pool * pool) GGML_HUGEPAGES_NOEXCEPT;

// Bytes of ordinary memory that this process can still allocate: MemAvailable, or less within a cgroup; 0 if unknown
GGML_API uint64_t ggml_hugepages_memory_available(void) GGML_HUGEPAGES_NOEXCEPT;

// Tries the system calls of a load with one page of this size and returns the page. A filter or a limit may refuse a load that
// all counts allow. If no page is usable, the engine tries only the system calls.
GGML_API bool ggml_hugepages_probe(size_t page_size, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

//
// file images: init, want, plan, map, overlay, fill
//

typedef struct ggml_hugepages_image    * ggml_hugepages_image_t;
typedef struct ggml_hugepages_resident * ggml_hugepages_resident_t;

// The caller owns fd and keeps it open until the image is filled.
GGML_API ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size);

// Frees the description. The caller of ggml_hugepages_image_map owns the address range.
GGML_API void ggml_hugepages_image_free(ggml_hugepages_image_t image);

// requests huge pages for the bytes [first, last) of the file
GGML_API void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last, enum ggml_hugepages_rank rank);

// whether the image has any wanted bytes
GGML_API bool ggml_hugepages_image_is_wanted(ggml_hugepages_image_t image);

// whether the file itself is on hugetlbfs: its mapping is on huge pages, so the image needs no blocks
GGML_API bool ggml_hugepages_image_is_huge(ggml_hugepages_image_t image);

// Weight matrices of one shape in an image or a buffer, one after the other: one, or one for each expert. The threads of a multiplication
// share the rows of each matrix.
struct ggml_hugepages_matrices {
    size_t first;    // offset of the first matrix
    size_t row_size; // bytes
    size_t n_rows;   // of one matrix
    size_t n;
    uint32_t node_rows[GGML_HUGEPAGES_MAX_NODES]; // node order: the rows of one matrix for each node. All zero: each matrix is one range
};

// tells GGML_HUGEPAGES_PLACEMENT_ROWS which rows the threads share
GGML_API void ggml_hugepages_image_share(ggml_hugepages_image_t image, const struct ggml_hugepages_matrices * matrices);

// Node order: the rows of all matrices for one node are adjacent, so that pages that are larger than a matrix contain rows of one node.
//
//   one after the other   [ matrix 0: rows 0 to n ][ matrix 1: rows 0 to n ]...
//   node order            [ matrix 0: rows 0 to b, matrix 1: rows 0 to b, ... ][ matrix 0: rows b to n, matrix 1: rows b to n, ... ]
//
// Chooses node order if it has a use: with GGML_HUGEPAGES_PLACEMENT_ROWS, several nodes, several matrices, and rows for each node.
// group: the borders between nodes are multiples of this number of rows
GGML_API void ggml_hugepages_order_by_node(const struct ggml_hugepages_params * params, size_t group, struct ggml_hugepages_matrices * matrices);

// Whether matrices in node order begin at this address of a buffer of the engine. Fills in matrices.
GGML_API bool ggml_hugepages_is_by_node(const void * ptr, struct ggml_hugepages_matrices * matrices);

// The offset in node order, from the first matrix on, of the byte at this offset of matrices that are one after the other. n: the
// number of bytes that follow in both orders, at most
GGML_API size_t ggml_hugepages_offset_by_node(const struct ggml_hugepages_matrices * matrices, size_t offset, size_t * n);

// announces that the bytes [first, last) of the file will be read as pieces
GGML_API void ggml_hugepages_image_expect(ggml_hugepages_image_t image, size_t first, size_t last);

// a buffer that the caller will allocate
struct ggml_hugepages_demand {
    enum ggml_hugepages_kind kind;
    enum ggml_hugepages_rank rank;
    uint64_t                 bytes;
    ggml_hugepages_resident_t resident; // the resident image that will hold the buffer, or NULL
    const struct ggml_hugepages_matrices * matrices; // in the buffer, as for ggml_hugepages_image_share, by offset
    size_t                                 n_matrices;
};

// The bytes that a buffer adds to a demand: whole blocks, because several buffers may share a page that is larger than a block.
GGML_API uint64_t ggml_hugepages_buffer_size(const struct ggml_hugepages_params * params, uint64_t size) GGML_HUGEPAGES_NOEXCEPT;

// An RPC worker does not report its page sizes, so plans count pages of this size for it.
#define GGML_HUGEPAGES_WORKER_PAGE (2*1024*1024)

// Chooses the blocks and pages of all images. Allocates nothing: with GGML_HUGEPAGES_POLICY_REQUIRE and too few pages it fails with the sum
// of the need and touches no page.
GGML_API bool ggml_hugepages_plan(
        ggml_hugepages_image_t *             images,
        size_t                               n_images,
        const struct ggml_hugepages_demand * demands,
        size_t                               n_demands,
        const struct ggml_hugepages_params * params,
        struct ggml_hugepages_error *        error);

// From its plan to the last reservation of its pages, a load takes its turn, so that of two loads at once one gets all its pages. begin
// waits for the loads of other processes, but at most two seconds, and returns a token for end; -1 if no turn is possible.
GGML_API int  ggml_hugepages_turn_begin(void) GGML_HUGEPAGES_NOEXCEPT;
GGML_API void ggml_hugepages_turn_end(int turn) GGML_HUGEPAGES_NOEXCEPT;

// The need of one image or one demand for one page size.
struct ggml_hugepages_need {
    enum ggml_hugepages_kind kind;
    int32_t                  image;     // index of the image, -1 for a demand
    uint32_t                 plan;      // number of the plan since ggml_hugepages_plan_together(), from 0
    size_t                   page_size; // 0: ordinary memory
    uint64_t                 pages;     // a page that several share counts for the first of them
    uint64_t                 bytes;     // of tensors

    // Of GGML_HUGEPAGES_PLACEMENT_ROWS, for weights: the pages on each node, and the bytes of matrices on the node that reads them and on
    // other nodes. All zero with another placement.
    uint64_t                 node_pages[GGML_HUGEPAGES_MAX_NODES];
    uint64_t                 local_bytes;
    uint64_t                 remote_bytes;
};

// Between a call with true and one with false, the plans of this thread with plan_only are one: each also counts the pages and the room in
// the store that those before it need. For a process that loads several models.
// by_counts: try no page, although an invisible limit may exist: for a caller that compares many plans and then tries one
GGML_API void ggml_hugepages_plan_together(bool together, bool by_counts);

// The needs of the last plan of this thread with plan_only, or of all that are one, whether they fit or not. Writes at most n needs and
// returns the number of all needs. The result of a plan is ggml_hugepages_get_failure: GGML_HUGEPAGES_STATUS_PLANNED, or the shortage.
GGML_API size_t ggml_hugepages_get_needs(struct ggml_hugepages_need * needs, size_t n);

// Ordinary memory, in bytes.
struct ggml_hugepages_memory {
    uint64_t buffers;   // of the buffers that get no huge page in the plans of ggml_hugepages_get_needs
    uint64_t process;   // that this process uses now; 0 if unknown
    uint64_t available; // that this process can still allocate, after its huge pages; 0 if unknown
};

GGML_API struct ggml_hugepages_memory ggml_hugepages_planned_memory(void) GGML_HUGEPAGES_NOEXCEPT;

// Maps the file, aligned to its largest block. NULL on failure. The range has ggml_hugepages_image_length() bytes.
GGML_API void * ggml_hugepages_image_map(ggml_hugepages_image_t image, struct ggml_hugepages_error * error);

// size of the file rounded up to whole blocks
GGML_API size_t ggml_hugepages_image_length(ggml_hugepages_image_t image);

// munmap of a part of an image must start and end at a multiple of this
GGML_API size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image);

// The i-th byte range [first, last) of the file that ggml_hugepages_fill will read: runs of planned blocks, then the ranges of pieces.
// Returns false if i is not less than the number of ranges.
GGML_API bool ggml_hugepages_image_read(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last);

// Any thread calls this when the bytes [first, last) of the file are in place at data. Return false to end the load.
typedef bool (*ggml_hugepages_arrived_callback)(const void * data, size_t first, size_t last, void * user_data);

GGML_API void ggml_hugepages_image_on_arrival(ggml_hugepages_image_t image, ggml_hugepages_arrived_callback callback, void * user_data);

// Reserves the pages of the planned blocks of all n images and maps the blocks over the file mappings.
GGML_API bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, struct ggml_hugepages_error * error);

// A piece of a file that is read to another place. Any thread calls `place`, once with the whole piece, or for parts of it, in their order,
// each with a copy of the piece that has the offset of the part. Return false to end the load.
struct ggml_hugepages_piece {
    ggml_hugepages_image_t image;
    size_t                 first; // bytes [first, last) of the file
    size_t                 last;
    bool                (* place)(const void * data, size_t size, const struct ggml_hugepages_piece * piece);
    void                 * user_data; // for place
    size_t                 offset;    // for place
    size_t                 group;     // a part has a multiple of these bytes; 0: no parts
};

// Populates the blocks, reads the files into them, makes the blocks read-only, and reads the pieces.
GGML_API bool ggml_hugepages_fill(
        ggml_hugepages_image_t *             images,
        size_t                               n_images,
        const struct ggml_hugepages_piece *  pieces,
        size_t                               n_pieces,
        const struct ggml_hugepages_params * params,
        ggml_hugepages_progress_callback     callback,
        void *                               user_data,
        struct ggml_hugepages_error *        error);

// The last failure of this thread, kept where it becomes an exception or a NULL buffer. set: NULL forgets it. get: returns its status, and
// fills in error if that is not NULL. GGML_HUGEPAGES_STATUS_OK: none failed.
GGML_API void                       ggml_hugepages_set_failure(const struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;
GGML_API enum ggml_hugepages_status ggml_hugepages_get_failure(struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// Returns the pages that the plans of this model counted for buffers (KV cache, compute) and that no buffer uses. Call it when the buffers
// exist. A failed load calls it itself.
GGML_API void ggml_hugepages_hold_end(uint32_t model_id) GGML_HUGEPAGES_NOEXCEPT;

//
// buffers: memory that a CPU buffer type allocates while the calling thread is in a scope
//

struct ggml_hugepages_scope {
    struct ggml_hugepages_params params;
    enum ggml_hugepages_kind     kind;
    bool                         late; // growth after the start: uses ordinary memory if pages are short, and the report counts it
    bool                         lazy; // all writers call ggml_hugepages_buffer_populate before they write to the buffer
    ggml_hugepages_resident_t    resident; // the resident image that will hold the buffer, or NULL
    const struct ggml_hugepages_matrices * matrices; // in the buffer, as for ggml_hugepages_image_share, by offset
    size_t                                 n_matrices;
};

// Returns the previous scope, which the caller sets again at the end. NULL: no scope.
GGML_API const struct ggml_hugepages_scope * ggml_hugepages_scope_set(const struct ggml_hugepages_scope * scope);

// for threads without a scope; params.enabled = false for none
GGML_API void ggml_hugepages_scope_set_default(const struct ggml_hugepages_scope * scope);

// NULL if the pages are not available and the scope requires them. Without a scope: ggml_aligned_malloc.
GGML_API void * ggml_hugepages_buffer_alloc(size_t size);
GGML_API void   ggml_hugepages_buffer_free (void * ptr, size_t size);

// Populates the pages of [ptr, ptr + size), a part of a buffer of a lazy scope. Any thread may call it. Returns false if the kernel refuses
// pages and the scope requires them. Does nothing for other memory.
GGML_API bool ggml_hugepages_buffer_populate(void * ptr, size_t size);

// Whether the address is in a buffer that the engine allocated, on huge pages or not.
GGML_API bool ggml_hugepages_is_buffer(const void * ptr);

// Call it with the result of ggml_hugepages_buffer_alloc when all writes to a lazy buffer are done. It populates the pages that were not
// written, or reports why the kernel refused pages. After a failure nobody may use the buffer.
GGML_API bool ggml_hugepages_buffer_settle(void * ptr, struct ggml_hugepages_error * error);

// mlock(2) without the huge pages of images and buffers, which the kernel never swaps: RLIMIT_MEMLOCK counts only what needs it.
GGML_API int ggml_hugepages_mlock(const void * addr, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// Returns the pages of the bytes [first, last) of a file of huge pages to the pool. Nothing may map them. False with errno if the kernel or a
// filter refuses: first asks in a child process whether a filter would kill this one for the call.
GGML_API bool ggml_hugepages_file_punch(int fd, size_t first, size_t last) GGML_HUGEPAGES_NOEXCEPT;

//
// resident images: an image or a buffer in a file on hugetlbfs, which remains when the process ends
//
//   resident   |segment|segment| ... |segment|  |checksums|header|     the same offsets as in the image or the buffer
//                                               [  manifest      ]     ends with the file
//
// A segment has a checksum if it is complete, and never before. A process that finds all its segments complete attaches: it maps them
// read-only. If segments are missing, one process at a time fills them. The other processes wait, and continue if the filler dies. Locks
// are open file description locks, so the kernel releases them when their process ends.
//

// The identity of a model file as a line of text: size, modification time, a hash of its first header_size bytes, a hash of samples of
// the file, and a hash of the blocks at `places`. Device, inode and path are not part of it, so two containers with the same file share
// its image. Returns false if the file cannot be read.
// places: offsets in every part of the file that may differ from another model's
// params: if their store knows the file, its places are not read again
GGML_API bool ggml_hugepages_file_identity(
        int                                  fd,
        size_t                               header_size,
        const uint64_t *                     places,
        size_t                               n_places,
        const struct ggml_hugepages_params * params,
        char *                               buf,
        size_t                               size) GGML_HUGEPAGES_NOEXCEPT;

// Opens nothing yet.
// fd:       the source file
// name:     the name that the user gave to the file, nullptr if unknown. The manifest contains it as an absolute path, which tools show and
//           use to check the source
// identity: lines with everything that must be equal before two processes share the image. The first line is the
//           ggml_hugepages_file_identity of fd. The engine adds its own version and ggml's build.
// size:     of the image or the buffer, in bytes
GGML_API ggml_hugepages_resident_t ggml_hugepages_resident_init(
        enum ggml_hugepages_kind kind,
        int                      fd,
        const char *             name,
        const char *             identity,
        size_t                   size);

// Complete segments remain in the store. Returns the pages that are not complete.
GGML_API void ggml_hugepages_resident_free(ggml_hugepages_resident_t resident);

// Puts the blocks of the image in the resident image, or in none if it is NULL. Call it after all ggml_hugepages_image_want and before
// ggml_hugepages_residents_open.
GGML_API void ggml_hugepages_image_reside(ggml_hugepages_image_t image, ggml_hugepages_resident_t resident);

// Opens or creates all of them in params->store, and waits for other processes that fill them. With params->plan_only it only reads.
GGML_API bool ggml_hugepages_residents_open(
        ggml_hugepages_resident_t *          residents,
        size_t                               n,
        const struct ggml_hugepages_params * params,
        ggml_hugepages_progress_callback     callback,
        void *                               user_data,
        struct ggml_hugepages_error *        error);

// whether no segment is missing
GGML_API bool ggml_hugepages_resident_is_complete(ggml_hugepages_resident_t resident);

// The facts that programs show about a file in a store.
struct ggml_hugepages_resident_info {
    enum ggml_hugepages_kind kind;
    uint64_t                 page_size;
    uint64_t                 size;        // bytes of the image or the buffer
    uint64_t                 file_bytes;  // length of the file
    uint64_t                 used_bytes;  // of its huge pages
    uint64_t                 n_segments;
    uint64_t                 n_complete;
    int64_t                  created;     // seconds since 1970
    int64_t                  used;        // last attached or filled
    uint32_t                 filler;      // the current or last filling process, 0 if unknown
    bool                     is_filling;  // by a living process
    bool                     is_attached; // by at least one process
    bool                     is_stale;    // the source was removed or has changed
    bool                     is_hidden;   // this process cannot see the source, so it may exist
    uint64_t                 source_dev;  // device and inode of the source in the process that made the image
    uint64_t                 source_ino;
    char                     source[1024];
    char                     identity[2048];
};

// whether a file with this name can be a resident image
GGML_API bool ggml_hugepages_resident_is_name(const char * name) GGML_HUGEPAGES_NOEXCEPT;

// dir_fd: a directory on hugetlbfs. Fails with GGML_HUGEPAGES_STATUS_INVALID and the reason if no process would attach to the file; info
// then contains the known facts. Allocates no page.
GGML_API bool ggml_hugepages_resident_read(int dir_fd, const char * name, struct ggml_hugepages_resident_info * info, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// Compares all complete segments with their checksums. Allocates no page.
GGML_API bool ggml_hugepages_resident_verify(
        int                              dir_fd,
        const char *                     name,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        struct ggml_hugepages_error *    error) GGML_HUGEPAGES_NOEXCEPT;

// Removes a resident image, also one that is not trusted. If a process is attached to it or fills it, the call fails with
// GGML_HUGEPAGES_STATUS_INVALID. With force it removes only the name, and the kernel frees the pages when the last process ends.
GGML_API bool ggml_hugepages_resident_drop(int dir_fd, const char * name, bool force, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

//
// resident contexts: a KV cache and its journal in a file of the store. One process at a time uses it, and only its user may read it. After
// the end of the process, however it ends, the next process with the same identity continues with the same bytes. The caller decides which
// of them it trusts.
//

// Opens nothing yet. The arguments are those of ggml_hugepages_resident_init, and so is the handle.
GGML_API ggml_hugepages_resident_t ggml_hugepages_context_init(int fd, const char * name, const char * identity, size_t size);

// Opens the context in params->store and takes its lock, without waiting. Fails if another process uses it. With params->plan_only it only
// reads.
GGML_API bool ggml_hugepages_context_open(ggml_hugepages_resident_t context, const struct ggml_hugepages_params * params, struct ggml_hugepages_error * error);

// Allocates all pages of an open context. The next KV buffers of params->model_id are its first kv_bytes bytes, one after the other, each
// with the bytes of ggml_hugepages_buffer_size. ggml_hugepages_hold_end frees a context that no buffer uses.
GGML_API bool ggml_hugepages_context_hold(ggml_hugepages_resident_t context, const struct ggml_hugepages_params * params, struct ggml_hugepages_error * error);

// The journal behind the KV buffers of this context and its size, NULL if the buffer is in no context. is_old: an earlier process has written both.
GGML_API void * ggml_hugepages_context_journal(const void * kv, size_t * size, bool * is_old);

//
// states: a server saves the state of a sequence of a resident context in a file of the store. While the file is not open, it is an idle
// image: a load that is short of pages may remove it. kv: an address in a KV buffer of the context.
//

typedef struct ggml_hugepages_state * ggml_hugepages_state_t;

// A new state of `size` bytes, open. Takes only pages that are free. NULL with an error if it gets none, or if the KV cache is not in a store.
GGML_API ggml_hugepages_state_t ggml_hugepages_state_new(const void * kv, size_t size, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// Opens a state, also one of an earlier process. NULL with an error if it was removed.
GGML_API ggml_hugepages_state_t ggml_hugepages_state_open(const void * kv, uint64_t id, struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

// a number that only this state of the context has; later states have larger ones
GGML_API uint64_t ggml_hugepages_state_id(ggml_hugepages_state_t state);

// its bytes, which the process may write
GGML_API void * ggml_hugepages_state_data(ggml_hugepages_state_t state, size_t * size);

// keep: from now on later processes may open it. Otherwise it is removed.
GGML_API void ggml_hugepages_state_close(ggml_hugepages_state_t state, bool keep) GGML_HUGEPAGES_NOEXCEPT;

// head: the first head_size bytes of the state
typedef void (*ggml_hugepages_state_callback)(uint64_t id, const void * head, void * user_data);

// Calls back for each kept state that has at least head_size bytes, in no order. Maps no page. Removes what a killed process left incomplete.
GGML_API void ggml_hugepages_states(const void * kv, size_t head_size, ggml_hugepages_state_callback callback, void * user_data) GGML_HUGEPAGES_NOEXCEPT;

// Removes a state. Does nothing if another process has removed it.
GGML_API void ggml_hugepages_state_drop(const void * kv, uint64_t id) GGML_HUGEPAGES_NOEXCEPT;

// Resolves `store` of the parameters, which may be "auto", to a directory and its page size. Fails if the directory does not exist or
// is not on hugetlbfs, or if others may write to it.
GGML_API bool ggml_hugepages_store_find(
        const char *                  store,
        size_t                        page_size, // required page size, or GGML_HUGEPAGES_SIZE_AUTO
        char *                        path,
        size_t                        path_size,
        size_t *                      found,
        struct ggml_hugepages_error * error) GGML_HUGEPAGES_NOEXCEPT;

//
// threads
//

// Whether the engine started the calling thread. Such a thread works for the thread that called the engine, so a host that stands before the
// C library must neither lock nor change its calls.
GGML_API bool ggml_hugepages_is_own_thread(void) GGML_HUGEPAGES_NOEXCEPT;

// The node for thread ith of nth if weights of this process are placed by rows: adjacent threads are on the same node. Else `other`.
GGML_API int ggml_hugepages_node_of_thread(int ith, int nth, int other) GGML_HUGEPAGES_NOEXCEPT;

//
// report
//

// Sums over all images and buffers of one model, or of this process if model_id is 0. Returns false if the kernel does not report them.
GGML_API bool ggml_hugepages_get_report(uint32_t model_id, struct ggml_hugepages_report * report) GGML_HUGEPAGES_NOEXCEPT;

// A table for people, with several lines. Returns the result of snprintf.
GGML_API int ggml_hugepages_report_to_str(const struct ggml_hugepages_report * report, char * buf, size_t size) GGML_HUGEPAGES_NOEXCEPT;

// Logs this table, unless the default scope has no huge pages: for programs that serve buffers and load no model.
GGML_API void ggml_hugepages_log_report(void);

#ifdef  __cplusplus
}
#endif
