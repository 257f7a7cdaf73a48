#pragma once

#include "plan-blocks.h"
#include "store-file.h"

#include <map>
#include <vector>

// Blocks that belong in a store. They use the store's page size, and blocks that are already in the store need no page.
struct ggml_hugepages_plan_store {
    struct entry {
        const ggml_hugepages_store_file *  file;
        size_t                             consumer;
        uint64_t                           manifest; // pages
        std::vector<ggml_hugepages_blocks> missing;  // one element for each page
        bool                               is_whole; // a buffer: the store holds all of it or nothing
    };
    std::vector<entry>         entries;
    std::map<size_t, uint64_t> own;               // pages that the store already has, by page size
    uint64_t                   free = UINT64_MAX; // bytes of the mount

    // Gives complete blocks to their image, and keeps the missing ones.
    void add(const ggml_hugepages_store_file & f, const std::vector<ggml_hugepages_blocks> & all, size_t consumer);

    // pages of the missing blocks and manifests; need_of_pool: without those that the store already has
    uint64_t need(size_t page_size) const;
    uint64_t need_of_pool(size_t page_size) const;

    // of the missing pages
    uint64_t bytes() const;

    bool is_full() const { return bytes() > free; }

    // Keeps the blocks that fit in the mount, the best ranks first. Returns the rest.
    std::vector<ggml_hugepages_consumed> fit();

    // adds the missing pages to the needs of their consumers
    void note(std::vector<ggml_hugepages_consumer> & consumers) const;

    bool fail_full(const ggml_hugepages_params & params, ggml_hugepages_error * error) const;
};
