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

TEST(placement, the_plan_may_take_pages_of_all_nodes) {
    machine m;
    m.pool(2*MIB, 300, 120).node(0, 2*MIB, 200, 100, "0-4095").node(1, 2*MIB, 100, 20, "0-4095");
    auto params = require();
    params.placement = GGML_HUGEPAGES_PLACEMENT_ROWS;
    CHECK(decide(m, { { 240*MIB, { { 0, 240*MIB, 0 } } } }, params).ok);
    CHECK(!decide(m, { { 242*MIB, { { 0, 242*MIB, 0 } } } }, params).ok);
}
