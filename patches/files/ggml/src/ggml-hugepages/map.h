#pragma once

// mappings of an image: the file, its blocks, and ordinary memory

#include "image.h"

// Reserves the address range. Maps the file, if the image has one.
bool ggml_hugepages_map_image(ggml_hugepages_image & image, ggml_hugepages_error * error);

// maps the blocks
bool ggml_hugepages_map_runs(ggml_hugepages_image & image, ggml_hugepages_error * error);

// ordinary memory in the gaps between the runs of a buffer
bool ggml_hugepages_map_gaps(ggml_hugepages_image & buffer, ggml_hugepages_error * error);

// Makes the blocks read-only. Fills the page table for resident pages now, so that the first token does not have to.
bool ggml_hugepages_protect(const ggml_hugepages_image & image, ggml_hugepages_error * error);

// Replaces [first, last), whole blocks of one size, with the ordinary mapping, and returns pages that belong to this process alone. Pages
// in a store remain.
bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error);

// the memfd with this process' own pages of one size; -1 with errno
int ggml_hugepages_memfd_of(ggml_hugepages_image & image, size_t page_size);
