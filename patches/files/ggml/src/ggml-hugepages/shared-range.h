#pragma once

// ranges of huge pages that several buffers share

#include "image.h"

#include <memory>
#include <vector>

// Buffers start at multiples of this in a shared range. page_size: the smallest that the plan may use
static const size_t GGML_HUGEPAGES_SHARED_UNIT = 2*1024*1024;

static inline size_t ggml_hugepages_unit(size_t page_size) { return page_size < GGML_HUGEPAGES_SHARED_UNIT ? page_size : GGML_HUGEPAGES_SHARED_UNIT; }

// unmaps the range and closes its memfds
struct ggml_hugepages_range_delete { void operator()(ggml_hugepages_image * range) const; };

using ggml_hugepages_range_ptr = std::unique_ptr<ggml_hugepages_image, ggml_hugepages_range_delete>;

// free bytes on huge pages, where a buffer takes no new page
struct ggml_hugepages_room {
    size_t   page_size;
    uint64_t bytes;
};

// in the order in which buffers take them
std::vector<ggml_hugepages_room> ggml_hugepages_rooms();

// the first room for a buffer with these parameters, nullptr if none is large enough
ggml_hugepages_room * ggml_hugepages_find_room(std::vector<ggml_hugepages_room> & rooms, uint64_t bytes, const ggml_hugepages_params & params);

// Adds a range that is mapped and populated. The parts are kept for buffers of this model until ggml_hugepages_shared_end.
void ggml_hugepages_shared_add(ggml_hugepages_range_ptr range, uint32_t model_id, const std::vector<ggml_hugepages_part> & parts);

// Keeps the parts in the first room. Returns false if another thread has taken it.
bool ggml_hugepages_shared_keep(const ggml_hugepages_share & share, const ggml_hugepages_params & params);

// Places a buffer in the part that is kept for it, or in a room. Returns false if there is neither.
bool ggml_hugepages_shared_take(ggml_hugepages_image & buffer);

// Makes a mapped buffer the first one of a new shared range.
void ggml_hugepages_shared_begin(ggml_hugepages_image & buffer);

// Ends a buffer of a shared range. Returns the pages that nothing else uses.
void ggml_hugepages_shared_return(const ggml_hugepages_image & buffer);

// Keeps nothing for this model any more, and returns the pages that no buffer uses.
void ggml_hugepages_shared_end(uint32_t model_id);
