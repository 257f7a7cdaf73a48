#pragma once

// The node of each page of the weights with GGML_HUGEPAGES_PLACEMENT_ROWS: the node whose threads read most of the page. The populating
// threads, the report and the threads of ggml-cpu ask this file.

#include "image.h"

#include <cstdint>
#include <vector>

// The nodes that run the threads of a multiplication, ascending. Nodes without a CPU that this process may use run none.
// root: prefix of /sys, "" for this machine
std::vector<int> ggml_hugepages_thread_nodes(const char * root);

// the same for this machine, when this process first asked
const std::vector<int> & ggml_hugepages_own_thread_nodes();

// Of these, the nodes that get weights with this placement: none if it does not place rows.
std::vector<int> ggml_hugepages_nodes_of_rows(const char * root, ggml_hugepages_placement placement);

// The first row that the threads of a node read. is_exact: repack.cpp divides the rows of an expert exactly, mul_mat rounds up
size_t ggml_hugepages_first_row(size_t n_rows, size_t node, size_t n_nodes, size_t n_threads, bool is_exact);

// Sets the node order for this number of nodes and threads, ggml_hugepages_order_by_node. n_threads: 0 for unknown
void ggml_hugepages_set_node_rows(ggml_hugepages_matrices & matrices, size_t group, size_t n_nodes, size_t n_threads);

// The bytes of [first, last) that the threads of each of n_nodes nodes read.
std::vector<uint64_t> ggml_hugepages_read_bytes(const ggml_hugepages_image & image, size_t first, size_t last, size_t n_nodes);

// The index of the node, of n_nodes, for the page [first, last). Nodes that read about as much of the page take turns, so pages without a
// byte of a matrix are interleaved.
size_t ggml_hugepages_page_node(const ggml_hugepages_image & image, size_t first, size_t last, size_t n_nodes);

// whether populating threads choose the node of each page of this image
bool ggml_hugepages_is_placed(const ggml_hugepages_image & image);

// From now on ggml_hugepages_node_of_thread answers.
void ggml_hugepages_deal_threads();

// The memory policy of this thread, until the end of the scope: prefer a node, or interleave. It decides where populated pages are, except
// in ranges with a policy of their own (mbind).
struct ggml_hugepages_thread_policy {
    ggml_hugepages_thread_policy(bool interleave, const std::vector<int> & nodes);
    ggml_hugepages_thread_policy(const ggml_hugepages_thread_policy &) = delete;
    ~ggml_hugepages_thread_policy();

private:
    int           mode = -1; // before; -1: unchanged
    unsigned long mask[1024/8/sizeof(unsigned long)] = {};
};

// Populates [first, last), whole pages, each on its node if the image is placed. Sets errno.
bool ggml_hugepages_populate_placed(const ggml_hugepages_image & image, size_t first, size_t last, size_t page_size);

// Adds the bytes of matrices in a run whose page is on the node that reads them, and those on other nodes. Asks the kernel for the node of
// each page, and adds nothing if the kernel does not answer.
void ggml_hugepages_add_locality(const ggml_hugepages_image & image, const ggml_hugepages_run & run, uint64_t * local, uint64_t * remote);
