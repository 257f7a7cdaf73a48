#pragma once

// idle images of a store, which can make room for another model

#include "ggml-hugepages.h"

#include <set>
#include <string>
#include <vector>

struct ggml_hugepages_idle_image {
    std::string name;
    std::string source;
    bool        is_context;
    bool        is_state;
    uint64_t    pages;
    int64_t     used; // seconds since 1970
};

// The images in the store of the parameters that no process uses and this user may remove, without those in `kept`. The longest unused are
// first. all: else only saved states, which every load may remove, because their server computes them again.
std::vector<ggml_hugepages_idle_image> ggml_hugepages_idle_images(
        const ggml_hugepages_params & params, size_t page_size, const std::set<std::string> & kept, bool all);

// Removes idle images, only states without params.evict, until this many pages are back, or none is left. Returns the pages.
uint64_t ggml_hugepages_evict(const ggml_hugepages_params & params, size_t page_size, const std::set<std::string> & kept, uint64_t pages);
