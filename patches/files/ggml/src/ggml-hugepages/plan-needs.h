#pragma once

// the need of each consumer, summed over its blocks

#include "plan-blocks.h"

#include <set>
#include <string>
#include <vector>

// Adds the blocks to the need of their consumer. page_size: 0 for ordinary memory
void ggml_hugepages_note_need(ggml_hugepages_consumer & consumer, const ggml_hugepages_blocks & b, size_t page_size);

// Ends a plan with plan_only: keeps the needs for ggml_hugepages_get_needs, and returns false.
// ordinary: bytes of buffers on ordinary memory. store_bytes: of the pages that the store lacks. images: their names in the store.
// ok: whether the needs fit
bool ggml_hugepages_end_plan(
        const std::vector<ggml_hugepages_consumer> & consumers,
        uint64_t                                     ordinary,
        uint64_t                                     store_bytes,
        const std::set<std::string>                & images,
        bool                                         ok,
        ggml_hugepages_error                       * error);

// The images in the store of all plans that are one, until the next ones begin: the loads after these plans need them.
const std::set<std::string> & ggml_hugepages_planned_images();

// What the plans before this one need, if they are one.
uint64_t ggml_hugepages_planned_pages(size_t page_size);
uint64_t ggml_hugepages_planned_store_bytes();
uint64_t ggml_hugepages_planned_ordinary();

// whether the plans of this thread try no page
bool ggml_hugepages_plans_by_counts();
