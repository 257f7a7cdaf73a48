// Placement of weights by rows, on made-up machines.

#include "test.h"
#include "ggml-hugepages/placement.h"

#include <algorithm>

static ggml_hugepages_image image_of(const std::vector<ggml_hugepages_matrices> & matrices, int n_threads) {
    ggml_hugepages_image image;
    image.params.placement         = GGML_HUGEPAGES_PLACEMENT_ROWS;
    image.params.n_compute_threads = n_threads;
    for (const auto & m : matrices) {
        ggml_hugepages_image_share(&image, &m);
    }
    return image;
}

static std::vector<size_t> nodes_of(const ggml_hugepages_image & image, size_t size, size_t page, size_t n_nodes) {
    std::vector<size_t> result;
    for (size_t at = 0; at < size; at += page) {
        result.push_back(ggml_hugepages_page_node(image, at, at + page, n_nodes));
    }
    return result;
}

TEST(placement, a_page_goes_to_the_node_that_reads_most_of_it) {
    // 18 MiB from 1 MiB on: the border between the nodes is at 10 MiB
    const auto image = image_of({ { 1*MIB, 64*KIB, 288, 1 } }, 2);
    CHECK_EQ(nodes_of(image, 20*MIB, 2*MIB, 2), (std::vector<size_t>{ 0, 0, 0, 0, 0, 1, 1, 1, 1, 1 }));
    // the border at 10.5 MiB is in a page that node 0 reads less of
    const auto later = image_of({ { 1*MIB + 512*KIB, 64*KIB, 288, 1 } }, 2);
    CHECK_EQ(nodes_of(later, 20*MIB, 2*MIB, 2), (std::vector<size_t>{ 0, 0, 0, 0, 0, 1, 1, 1, 1, 1 }));
    CHECK_EQ(ggml_hugepages_read_bytes(later, 10*MIB, 12*MIB, 2), (std::vector<uint64_t>{ 512*KIB, 1536*KIB }));
}

TEST(placement, pages_without_a_matrix_are_interleaved) {
    const auto image = image_of({ { 4*MIB, 64*KIB, 64, 1 } }, 2);
    CHECK_EQ(nodes_of(image, 16*MIB, 2*MIB, 2), (std::vector<size_t>{ 0, 1, 0, 1, 0, 1, 0, 1 }));
    CHECK_EQ(nodes_of(image_of({}, 4), 12*MIB, 2*MIB, 3), (std::vector<size_t>{ 0, 1, 2, 0, 1, 2 }));
}

TEST(placement, each_expert_is_shared_by_all_nodes) {
    // four experts of 8 MiB
    const auto image = image_of({ { 0, 8*KIB, 1024, 4 } }, 8);
    CHECK_EQ(nodes_of(image, 32*MIB, 2*MIB, 2), (std::vector<size_t>{ 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1 }));
    // a page larger than an expert has a half for each node
    CHECK_EQ(ggml_hugepages_read_bytes(image, 0, GIB, 2), (std::vector<uint64_t>{ 16*MIB, 16*MIB }));
    // such pages are interleaved, not all on the first node
    CHECK_EQ(nodes_of(image, 32*MIB, 8*MIB, 2), (std::vector<size_t>{ 0, 1, 0, 1 }));
}

TEST(placement, matrices_may_be_added_in_any_order) {
    const auto image = image_of({ { 8*MIB, 1*MIB, 4, 1 }, { 0, 1*MIB, 8, 1 } }, 2);
    CHECK_EQ(nodes_of(image, 12*MIB, 2*MIB, 2), (std::vector<size_t>{ 0, 0, 1, 1, 0, 1 }));
}

// The bytes that each node reads, computed from the formulas of ggml-cpu.c: a thread reads dr0 rows, and runs on node ith*n_nodes/nth.
static std::vector<uint64_t> bytes_by_thread(size_t n_rows, size_t row_size, size_t nth, size_t n_nodes) {
    std::vector<uint64_t> result(n_nodes);
    const size_t dr0 = (n_rows + nth - 1)/nth;
    for (size_t ith = 0; ith < nth; ith++) {
        const size_t begin = std::min(n_rows, dr0*ith);
        const size_t end   = std::min(n_rows, begin + dr0);
        result[ith*n_nodes/nth] += (end - begin)*row_size;
    }
    return result;
}

TEST(placement, nodes_read_the_rows_of_their_threads_for_all_counts) {
    for (size_t n_nodes = 1; n_nodes <= 8; n_nodes++) {
        for (size_t nth = 1; nth <= 40; nth++) {
            for (const size_t n_rows : { 2, 7, 64, 1000, 4096 }) {
                const auto image = image_of({ { 0, 100, n_rows, 3 } }, (int) nth);
                auto expected = bytes_by_thread(n_rows, 100, nth, n_nodes);
                if (!CHECK_EQ(ggml_hugepages_read_bytes(image, 100*n_rows, 200*n_rows, n_nodes), expected)) {
                    return;
                }
            }
        }
    }
}

TEST(placement, repacked_experts_divide_their_rows_exactly) {
    auto image = image_of({ { 0, 1*KIB, 512, 2 } }, 96);
    CHECK_EQ(ggml_hugepages_read_bytes(image, 0, 512*KIB, 2), (std::vector<uint64_t>{ 288*KIB, 224*KIB }));
    image.kind = GGML_HUGEPAGES_KIND_REPACKED;
    CHECK_EQ(ggml_hugepages_read_bytes(image, 0, 512*KIB, 2), (std::vector<uint64_t>{ 256*KIB, 256*KIB }));
}

TEST(placement, nodes_without_a_cpu_of_this_process_run_no_threads) {
    machine m;
    m.pool(2*MIB, 300, 120).node(0, 2*MIB, 100, 40, "0-4095").node(1, 2*MIB, 100, 40, "").node(2, 2*MIB, 100, 40, "0-4095");
    CHECK_EQ(ggml_hugepages_thread_nodes(m.root()), (std::vector<int>{ 0, 2 }));
    machine gap;
    gap.pool(2*MIB, 300, 120).node(0, 2*MIB, 100, 40, "0-4095").node(2, 2*MIB, 100, 40, "0-4095");
    CHECK(ggml_hugepages_thread_nodes(gap.root()).empty()); // ggml-cpu.c counts one node, and pins no thread
    machine without_numa;
    without_numa.pool(2*MIB, 300, 120);
    CHECK(ggml_hugepages_thread_nodes(without_numa.root()).empty());
}

// node 0 has 100 free pages of 2 MiB, node 1 has 20
struct uneven : machine {
    explicit uneven(uint64_t overcommit = 0) {
        pool(2*MIB, 300, 120, 0, 0, overcommit).node(0, 2*MIB, 200, 100, "0-4095").node(1, 2*MIB, 100, 20, "0-4095");
    }
};

static ggml_hugepages_params by_rows(ggml_hugepages_params params) {
    params.placement         = GGML_HUGEPAGES_PLACEMENT_ROWS;
    params.n_compute_threads = 4;
    params.plan_only         = true;
    return params;
}

static bool fits(const decision & d) { return d.error.status == GGML_HUGEPAGES_STATUS_PLANNED; }

// one matrix of a file
static wants matrix_of(size_t size) {
    wants w = { size, { { 0, size, 0 } } };
    w.matrices = { { 0, 4*KIB, size/(4*KIB), 1, {} } };
    return w;
}

TEST(placement, require_refuses_a_node_that_is_short_with_its_numbers) {
    const uneven m;
    CHECK(fits(decide(m, { matrix_of(80*MIB) }, by_rows(require())))); // 20 pages on each node
    const auto d = decide(m, { matrix_of(100*MIB) }, by_rows(require()));
    CHECK_EQ(d.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_SAYS(d.error.message, "node 1", "25 huge pages of 2 MiB", "only 20 are free", "node 1 free 20 of 100");
    CHECK_SAYS(d.error.hint, "echo 105 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "--hugepage-policy prefer");
    CHECK_EQ(d.error.needed, 25u);
    CHECK_EQ(d.error.usable, 20u);
    // the pages of all nodes are too few
    CHECK_SAYS(decide(m, { matrix_of(242*MIB) }, by_rows(require())).error.message, "121 huge pages of 2 MiB", "node 0 free 100 of 200", "node 1 free 20 of 100");
}

TEST(placement, other_nodes_provide_pages_to_prefer_and_overcommit) {
    const uneven m;
    CHECK_SAYS(decide(m, { matrix_of(240*MIB) }, by_rows(prefer())).error.message, "the plan is complete");
    const uneven more(5);
    CHECK(fits(decide(more, { matrix_of(100*MIB) }, by_rows(require()))));  // 5 surplus pages on any node
    CHECK(!fits(decide(more, { matrix_of(104*MIB) }, by_rows(require()))));
}

TEST(placement, buffers_may_be_on_any_node) {
    // the KV cache is on all nodes in turn
    CHECK(fits(decide(uneven(), { matrix_of(80*MIB) }, by_rows(require()), { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, 160*MIB, nullptr, nullptr, 0 } })));
    // rows of repacked weights are not
    const ggml_hugepages_matrices rows = { 0, 4*KIB, 25600, 1, {} };
    const ggml_hugepages_demand demand = { GGML_HUGEPAGES_KIND_REPACKED, GGML_HUGEPAGES_RANK_LAYERS, 100*MIB, nullptr, &rows, 1 };
    CHECK_SAYS(decide(uneven(), { { MIB, {} } }, by_rows(require()), { demand }).error.message, "node 1", "25 huge pages of 2 MiB");
}

TEST(placement, a_plan_tells_the_pages_of_each_node_and_the_local_bytes) {
    const auto need_of = [](const ggml_hugepages_params & params, size_t size) {
        decide(uneven(), { matrix_of(size) }, params);
        std::vector<ggml_hugepages_need> needs(ggml_hugepages_get_needs(nullptr, 0));
        ggml_hugepages_get_needs(needs.data(), needs.size());
        return needs.empty() ? ggml_hugepages_need{} : needs[0];
    };
    const auto fits = need_of(by_rows(require()), 62*MIB);
    CHECK_EQ(std::vector<uint64_t>(fits.node_pages, fits.node_pages + 3), (std::vector<uint64_t>{ 15, 16, 0 }));
    CHECK_EQ(fits.local_bytes,  61*MIB); // the page on the border is remote for one of them
    CHECK_EQ(fits.remote_bytes, 1*MIB);
    // 5 of the 25 pages of node 1 are on node 0
    const auto short_of = need_of(by_rows(prefer()), 100*MIB);
    CHECK_EQ(std::vector<uint64_t>(short_of.node_pages, short_of.node_pages + 3), (std::vector<uint64_t>{ 25, 25, 0 }));
    CHECK_EQ(short_of.local_bytes,  90*MIB);
    CHECK_EQ(short_of.remote_bytes, 10*MIB);
    // other placements
    auto params = by_rows(require());
    params.placement = GGML_HUGEPAGES_PLACEMENT_INTERLEAVE;
    CHECK_EQ(need_of(params, 62*MIB).local_bytes + need_of(params, 62*MIB).node_pages[0], 0u);
}

static ggml_hugepages_matrices by_node(size_t n_rows, size_t n, size_t group, size_t n_nodes, size_t n_threads) {
    ggml_hugepages_matrices m = { 0, 64, n_rows, n, {} };
    ggml_hugepages_set_node_rows(m, group, n_nodes, n_threads);
    return m;
}

static std::vector<uint32_t> node_rows(const ggml_hugepages_matrices & m) {
    return { std::begin(m.node_rows), std::begin(m.node_rows) + 3 };
}

TEST(placement, node_order_gives_each_node_the_rows_of_its_threads) {
    CHECK_EQ(node_rows(by_node(768, 128, 16, 2, 64)), (std::vector<uint32_t>{ 384, 384, 0 }));
    CHECK_EQ(node_rows(by_node(768, 128, 16, 2, 3)),  (std::vector<uint32_t>{ 512, 256, 0 }));
    CHECK_EQ(node_rows(by_node(768, 128, 16, 3, 0)),  (std::vector<uint32_t>{ 256, 256, 256 }));
    // borders are whole groups; the last node has the rest
    CHECK_EQ(node_rows(by_node(1000, 4, 16, 3, 3)),   (std::vector<uint32_t>{ 336, 336, 328 }));
    // no use: one matrix, one node, a node without threads or without a group
    for (const auto & m : { by_node(768, 1, 16, 2, 64), by_node(768, 8, 16, 1, 64), by_node(768, 8, 16, 2, 1), by_node(16, 8, 16, 2, 4) }) {
        CHECK_EQ(node_rows(m), (std::vector<uint32_t>{ 0, 0, 0 }));
    }
}

TEST(placement, node_order_moves_each_row_to_its_node_and_loses_none) {
    for (const size_t n_nodes : { 2, 3, 5, 8 }) {
        const auto m = by_node(208, 3, 16, n_nodes, 13);
        std::vector<bool> is_taken(208*3);
        for (size_t row = 0; row < is_taken.size(); row++) {
            size_t n;
            const size_t place = ggml_hugepages_offset_by_node(&m, row*64 + 5, &n);
            size_t next;
            if (!CHECK_EQ(place % 64, 5u) || !CHECK(place/64 < is_taken.size() && !is_taken[place/64]) ||
                    // the bytes that follow are adjacent, up to the border
                    !CHECK(n <= 64 || ggml_hugepages_offset_by_node(&m, (row + 1)*64, &next) == (place/64 + 1)*64)) {
                return;
            }
            is_taken[place/64] = true;
        }
    }
    // the rows of the second node of all experts follow those of the first
    const auto m = by_node(32, 3, 16, 2, 2);
    size_t n;
    CHECK_EQ(ggml_hugepages_offset_by_node(&m, 16*64, &n), 48u*64);
    CHECK_EQ(n, 16u*64);
    CHECK_EQ(ggml_hugepages_offset_by_node(&m, 33*64, &n), 17u*64);
    CHECK_EQ(n, 15u*64);
}

TEST(placement, small_experts_in_node_order_are_local_on_any_page) {
    // 64 experts of 1 MiB: a page of 2 MiB would contain rows of both nodes of two experts
    ggml_hugepages_matrices m = { 0, 1*KIB, 1024, 64, {} };
    ggml_hugepages_set_node_rows(m, 16, 2, 4);
    auto image = image_of({ m }, 4);
    image.kind = GGML_HUGEPAGES_KIND_REPACKED;
    CHECK_EQ(ggml_hugepages_read_bytes(image, 0, 64*MIB, 2), (std::vector<uint64_t>{ 32*MIB, 32*MIB }));
    for (const size_t page : { 2*MIB, 32*MIB }) {
        for (size_t at = 0; at < 64*MIB; at += page) {
            const auto bytes = ggml_hugepages_read_bytes(image, at, at + page, 2);
            CHECK_EQ(bytes[ggml_hugepages_page_node(image, at, at + page, 2)], page);
            CHECK_EQ(ggml_hugepages_page_node(image, at, at + page, 2), at < 32*MIB ? 0u : 1u);
        }
    }
}
