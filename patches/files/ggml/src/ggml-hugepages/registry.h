#pragma once

// the images and buffers of this process, and the sums over them

#include "image.h"

#include <atomic>
#include <memory>
#include <vector>

// copies of all complete images and buffers of one model, or of all if model_id is 0, for the report
std::vector<ggml_hugepages_image> ggml_hugepages_alive(uint32_t model_id);

// adds filled images
void ggml_hugepages_register_images(ggml_hugepages_image_t * images, size_t n_images);

// Keeps the buffer until ggml_hugepages_take_buffer.
void ggml_hugepages_register_buffer(std::unique_ptr<ggml_hugepages_image> buffer);

// the buffer that contains an address, or nullptr
ggml_hugepages_image * ggml_hugepages_find_buffer(const void * ptr);

// Removes the buffer that starts at an address; nullptr if there is none.
std::unique_ptr<ggml_hugepages_image> ggml_hugepages_take_buffer(const void * ptr);

// The parts of [addr, addr + size) that are on pages of a pool, as distances from addr.
ggml_hugepages_ranges ggml_hugepages_pool_ranges(const void * addr, size_t size);

// The last writer is done: the buffer is not lazy any more, and the report shows it.
void ggml_hugepages_end_lazy(ggml_hugepages_image & buffer);

// Pages that this process reserved and has not touched, except those of one buffer or image. A limit on pages does not count them yet.
uint64_t ggml_hugepages_promised(size_t page_size, const ggml_hugepages_image * except);

// The image reserved these pages, by page size, and has not touched them.
void ggml_hugepages_promise(const ggml_hugepages_image & image, const std::map<size_t, uint64_t> & pages);

// The image has touched or returned its reserved pages.
void ggml_hugepages_forget_promise(const ggml_hugepages_image & image);

void ggml_hugepages_set_load(uint32_t model_id, const ggml_hugepages_load & load);

// the last load of this model, or of this process if model_id is 0
ggml_hugepages_load ggml_hugepages_last_load(uint32_t model_id);

extern std::atomic<uint64_t> ggml_hugepages_n_attached; // bytes of attached buffers since the last load
