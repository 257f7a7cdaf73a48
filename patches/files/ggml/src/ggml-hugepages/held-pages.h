#pragma once

// pages held for the buffers after the weights

#include "image.h"

#include <vector>

// Reserves the pages. False with errno if the kernel refuses; at_page_size: the page size that it refused.
// populate: also populates them, so that an invisible limit refuses them now
bool ggml_hugepages_hold(uint32_t model_id, const std::vector<ggml_hugepages_grant> & grants, bool accept_less, bool populate, size_t * at_page_size);

// number of pages held for buffers of this kind and model
uint64_t ggml_hugepages_held_pages(uint32_t model_id, ggml_hugepages_kind kind, size_t page_size);

// number of pages held for all buffers of all models
uint64_t ggml_hugepages_all_held_pages(size_t page_size);

// whether pages are held for buffers of this kind and model
bool ggml_hugepages_is_held(uint32_t model_id, ggml_hugepages_kind kind);

// Returns the reserved pages of this model that no buffer uses.
void ggml_hugepages_held_end(uint32_t model_id);

// Gives held pages to runs, and splits a run where the held pages end.
void ggml_hugepages_held_take(uint32_t model_id, ggml_hugepages_kind kind, std::vector<ggml_hugepages_run> & runs);

// the file with the held pages
int ggml_hugepages_held_fd(const ggml_hugepages_held & held);

// Takes back the held pages of a freed buffer. Nothing maps these pages any more.
void ggml_hugepages_held_return(const ggml_hugepages_run & run);

// Marks blocks that the kernel refused on touch.
void ggml_hugepages_held_refused(const ggml_hugepages_run & run);
