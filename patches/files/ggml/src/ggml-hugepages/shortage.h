#pragma once

// the cause of a shortage, and what to do

#include "image.h"
#include "pool.h"

#include <map>
#include <utility>
#include <vector>

// the kernel's refusal of a page
struct ggml_hugepages_refusal {
    const char * call; // system call
    int          err;  // errno
    size_t       page_size;
    size_t       at;   // offset of the page
    bool         is_in_store;
};

// Explains a refusal: too few pages, a limit, an invisible limit, a forbidden call, or a full mount. need: pages by size
bool ggml_hugepages_fail_refused(
        const std::map<size_t, uint64_t> & need,
        const ggml_hugepages_image       & image,
        const ggml_hugepages_refusal     & refusal,
        ggml_hugepages_error             * error);

// Sets the error for a shortage: the need of the load from each pool that is too small. who: "the model needs"
bool ggml_hugepages_fail_short(
        const char                                                     * root,
        const char                                                     * who,
        const std::vector<std::pair<uint64_t, ggml_hugepages_supply>>  & shortages,
        const ggml_hugepages_params                                    & params,
        ggml_hugepages_error                                           * error);

// Sets the error for a node that has fewer free pages than the rows of its threads need.
bool ggml_hugepages_fail_node_short(const ggml_hugepages_node & node, size_t page_size, uint64_t pages, uint64_t free, ggml_hugepages_error * error);

// Adds --hugepage-policy prefer to the hint, if that would help: not if it is set, and not for programs that only fill a store.
void ggml_hugepages_hint_prefer(const ggml_hugepages_params & params, ggml_hugepages_error * error);

// Sets the error for buffers that get no huge page, and for which ordinary memory is too small too. kinds: "repacked, kv"
bool ggml_hugepages_fail_ordinary_short(const std::string & kinds, uint64_t bytes, uint64_t available, ggml_hugepages_error * error);

// too little ordinary memory, or a limit on it: errno
bool ggml_hugepages_fail_ordinary(ggml_hugepages_error * error, const ggml_hugepages_image & image, size_t size);

// Huge pages need a file of this size, and RLIMIT_FSIZE forbids it.
bool ggml_hugepages_fail_file_size(const ggml_hugepages_params & params, uint64_t size, ggml_hugepages_error * error);

// sets "ulimit -v ..." if the process has such a limit
void ggml_hugepages_hint_address_space(ggml_hugepages_error * error, uint64_t size);
