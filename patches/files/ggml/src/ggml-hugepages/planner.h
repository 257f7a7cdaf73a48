#pragma once

#include "image.h"
#include "kernel.h"
#include "placement.h"
#include "params.h"
#include "plan-blocks.h"
#include "plan-needs.h"
#include "plan-store.h"
#include "pool.h"
#include "shared-range.h"

#include <deque>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

// One plan. Its steps follow each other in ggml_hugepages_decide (plan.cpp).
struct ggml_hugepages_planner {
    const char                  * root;
    ggml_hugepages_image_t      * images;
    size_t                        n_images;
    const ggml_hugepages_params & params;
    ggml_hugepages_error        * error;

    const bool             accepts_less = ggml_hugepages_accepts_less(&params);
    const bool             is_load      = n_images > 0 && images[0]->fd != -1; // else the plan of a buffer
    const std::vector<int> nodes        = ggml_hugepages_placement_nodes(root, params.placement);

    // the nodes of GGML_HUGEPAGES_PLACEMENT_ROWS, else none
    const std::vector<int> thread_nodes = ggml_hugepages_nodes_of_rows(root, params.placement);

    std::vector<ggml_hugepages_supply> supplies;     // the usable pools, the smallest size first; none for THP
    size_t                             smallest = 0; // page size, or the size of a THP
    bool                               thp_enabled = false;

    size_t                 unit     = 0; // the blocks of buffers are multiples of it

    // Consumers with offsets in one address range: an image, a buffer, or all buffers of a model, one after the other.
    static const size_t NONE = SIZE_MAX;
    std::vector<std::vector<size_t>> spaces;
    size_t                           buffers      = NONE; // the space of all buffers of the model
    size_t                           buffers_size = 0;

    // a page that is larger than the smallest, and its space
    struct large_page {
        size_t                space;
        ggml_hugepages_blocks page;
        size_t                page_size;
    };

    std::vector<ggml_hugepages_consumer>            consumers;
    std::vector<std::vector<ggml_hugepages_blocks>> blocks;   // of each consumer, outside the store
    std::vector<large_page>                         large;
    ggml_hugepages_share                            share;    // of the buffers of the model
    std::vector<ggml_hugepages_room>                rooms;
    ggml_hugepages_plan_store                       store;
    bool                                            counts_idle = false; // the plan counts pages of idle images as free
    uint64_t                                        store_bytes = 0; // that the store lacks
    std::map<size_t, uint64_t>                      need;     // pages outside the store, by size
    std::vector<ggml_hugepages_consumed>            rest;     // blocks of the smallest size
    uint64_t                                        largest = 0;     // bytes of the largest image or demand
    std::map<ggml_hugepages_kind, uint64_t>         ordinary;        // bytes of demands that get no page
    std::deque<ggml_hugepages_image>                layouts;         // of demands with matrices
    std::map<size_t, std::vector<uint64_t>>         node_pages;      // pages of weights on each node, by size

    ggml_hugepages_planner(const char * root, ggml_hugepages_image_t * images, size_t n_images, const ggml_hugepages_params & params, ggml_hugepages_error * error) :
        root(root), images(images), n_images(n_images), params(params), error(error) {}

    ggml_hugepages_supply read_supply(size_t page_size) const;
    bool find_pools();
    void add_image(size_t i);
    void add_demand(const ggml_hugepages_demand & demand);
    void add_layout(size_t consumer, const ggml_hugepages_demand & demand);
    void take_rooms();
    bool decide_thp();
    void make_room_in_store();
    void leave_full_store();
    void add_pools_of_store();
    void take_large_pages();
    void take_pages_with_waste();
    void count_rest();
    void place_pages();
    uint64_t free_on(size_t page_size, int node) const;
    bool check_nodes();
    bool check_shortage();
    std::vector<std::pair<uint64_t, ggml_hugepages_supply>> find_shortages() const;
    bool may_evict() const;
    std::set<std::string> own_images() const;
    uint64_t idle_pages(size_t page_size, bool all) const;
    ggml_hugepages_supply without_idle(const ggml_hugepages_supply & supply, bool all) const;
    bool can_evict(const ggml_hugepages_supply & supply, uint64_t pages, bool all) const;
    void make_room(std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages);
    void hint_larger() const;
    void hint_evict(const std::vector<std::pair<uint64_t, ggml_hugepages_supply>> & shortages) const;
    bool check_by_trying();
    void hand_out();
    uint64_t ordinary_bytes() const;
    bool check_ordinary();
    bool end_plan(bool ok);

    size_t add_consumer(const ggml_hugepages_consumer & consumer, size_t space);
    size_t space_of(size_t consumer) const;
    bool is_of_buffers(size_t space) const;
    bool is_shared() const;
    std::vector<ggml_hugepages_blocks> blocks_of(size_t space) const;
    uint64_t left_of(const ggml_hugepages_supply & supply) const;
    bool may_take(size_t page_size) const;
    void take(size_t space, const ggml_hugepages_blocks & page, size_t page_size);
    void note(size_t space, const ggml_hugepages_blocks & b, size_t page_size);
    void give(size_t consumer, const ggml_hugepages_blocks & b, size_t page_size, uint64_t pages);
    void share_buffers();
    void leave_rooms();
    uint64_t before(size_t page_size) const;
    uint64_t wanted(size_t page_size) const;
};
