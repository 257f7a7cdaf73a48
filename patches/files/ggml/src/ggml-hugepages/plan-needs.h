#pragma once

// the need of each consumer, summed over its blocks

#include "plan-blocks.h"
#include "shared-range.h"

#include <set>
#include <string>
#include <vector>

// Adds the blocks to the need of their consumer. page_size: 0 for ordinary memory. pages: fewer than the blocks have if others share them
void ggml_hugepages_note_need(ggml_hugepages_consumer & consumer, const ggml_hugepages_blocks & b, size_t page_size, uint64_t pages);

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
uint64_t ggml_hugepages_planned_node_pages(size_t page_size, int node);
uint64_t ggml_hugepages_planned_store_bytes();
uint64_t ggml_hugepages_planned_ordinary();

// The rooms that the plans before this one left, if they are one.
bool ggml_hugepages_is_planned_together();
std::vector<ggml_hugepages_room> ggml_hugepages_planned_rooms();
void ggml_hugepages_set_planned_rooms(const std::vector<ggml_hugepages_room> & rooms);

// whether the plans of this thread try no page
bool ggml_hugepages_plans_by_counts();
