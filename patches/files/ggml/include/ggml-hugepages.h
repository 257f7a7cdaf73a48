#pragma once

//
// HugeTLB pages for memory that the CPU reads
//
// This is the whole mechanism: which page sizes exist and how many pages can be had, which blocks of a file lie
// on them, how they are mapped, read and protected, and what the kernel says of the result. It knows files and byte
// ranges and nothing of models.
//
// - huge page:  a HugeTLB page of an explicit pool, never THP
// - file image: a file as one mapping, in which offset in the mapping = offset in the file
// - block:      one huge page's worth of the file image
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
extern "C" {
#endif

enum ggml_hugepages_policy {
    GGML_HUGEPAGES_POLICY_REQUIRE = 0, // all that is wanted, or an error before any I/O
    GGML_HUGEPAGES_POLICY_PREFER  = 1, // as many pages as there are, the rest stays the file mapping
};

struct ggml_hugepages_params {
    bool                       enabled;
    enum ggml_hugepages_policy policy;
};

enum ggml_hugepages_status {
    GGML_HUGEPAGES_STATUS_OK          = 0,
    GGML_HUGEPAGES_STATUS_ABORTED     = 1, // the progress callback returned false
    GGML_HUGEPAGES_STATUS_UNSUPPORTED = 2, // not Linux, no HugeTLB in the kernel, or a kernel older than 5.14
    GGML_HUGEPAGES_STATUS_SHORT       = 3, // fewer pages than needed
    GGML_HUGEPAGES_STATUS_NO_MEMORY   = 4, // a mapping that needs no huge page was refused
    GGML_HUGEPAGES_STATUS_IO          = 5, // the file could not be read
};

// what went wrong: a lower-case fragment, and a line with what to do about it where the user can do something
struct ggml_hugepages_error {
    enum ggml_hugepages_status status;
    char message[512];
    char hint[256]; // may be empty
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

// What the memory that was asked for lies on, in bytes. Read from /proc/self/smaps, not from what was planned.
struct ggml_hugepages_report {
    uint64_t wanted;     // host tensor bytes in the images that are alive now
    uint64_t on_huge;    // of these, in mappings whose KernelPageSize is page_size
    uint64_t on_file;    // of these, in ordinary file mappings: page cache
    uint64_t huge_pages; // pages populated: more than on_huge needs, since blocks are whole
    uint64_t page_size;  // bytes
};

// Called while an image is read: `done` of `total` wanted bytes. Return false to stop.
typedef bool (*ggml_hugepages_progress_callback)(uint64_t done, uint64_t total, void * user_data);

GGML_API struct ggml_hugepages_params ggml_hugepages_default_params(void);

GGML_API const char * ggml_hugepages_policy_name    (enum ggml_hugepages_policy policy);
GGML_API bool         ggml_hugepages_policy_from_str(const char * str, enum ggml_hugepages_policy * policy);

// The page size that images are laid on, in bytes: the smallest pool of at least 2 MiB. 0 if there is none.
// root: prefix of /sys, "" for this machine
GGML_API size_t ggml_hugepages_page_size(const char * root);

// root: as above. Returns false if the kernel has no such pool.
GGML_API bool ggml_hugepages_pool_read(const char * root, size_t page_size, struct ggml_hugepages_pool * pool);

// Pages that can be had now: free and not reserved, and what overcommit may still add.
GGML_API uint64_t ggml_hugepages_pool_usable(const struct ggml_hugepages_pool * pool);

//
// file images: init, want, plan, map, overlay, fill
//

typedef struct ggml_hugepages_image * ggml_hugepages_image_t;

// fd stays the caller's and must be open until the image has been filled
GGML_API ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size);

// Frees the description. The address range belongs to whoever called ggml_hugepages_image_map.
GGML_API void ggml_hugepages_image_free(ggml_hugepages_image_t image);

// bytes [first, last) of the file shall lie on huge pages
GGML_API void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last);

// Decides which blocks of all n images are overlaid. Takes nothing: with GGML_HUGEPAGES_POLICY_REQUIRE and too few
// pages it fails with the sum of the need, and no page has been touched.
GGML_API bool ggml_hugepages_plan(
        ggml_hugepages_image_t *            images,
        size_t                              n,
        const struct ggml_hugepages_params * params,
        struct ggml_hugepages_error *       error);

// Maps the file, aligned to the page size. NULL on failure. The range is ggml_hugepages_image_length() bytes long.
GGML_API void * ggml_hugepages_image_map(ggml_hugepages_image_t image, struct ggml_hugepages_error * error);

// size of the file rounded up to whole blocks
GGML_API size_t ggml_hugepages_image_length(ggml_hugepages_image_t image);

// munmap of a part of an image must begin and end on a multiple of this
GGML_API size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image);

// The i-th run of planned blocks as bytes [first, last) of the file. Returns false if there is none.
GGML_API bool ggml_hugepages_image_run(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last);

// Maps the planned blocks of all n images over their file mappings, which reserves their pages.
GGML_API bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, struct ggml_hugepages_error * error);

// Populates the blocks, reads the file into them and makes them read-only.
GGML_API bool ggml_hugepages_fill(
        ggml_hugepages_image_t *         images,
        size_t                           n,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        struct ggml_hugepages_error *    error);

// Sums over all images of this process that are alive. Returns false if the kernel does not tell.
GGML_API bool ggml_hugepages_get_report(struct ggml_hugepages_report * report);

// One line for people, e.g. "1000.00 MiB on huge pages (501 of 2 MiB), 0.00 MiB on the file mapping". Returns what snprintf does.
GGML_API int ggml_hugepages_report_to_str(const struct ggml_hugepages_report * report, char * buf, size_t size);

#ifdef  __cplusplus
}
#endif
