// The order of the rows of several matrices in a buffer: the rows for one node are adjacent.

#ifdef __linux__

#include "placement.h"
#include "ranges.h"
#include "registry.h"

#include <algorithm>

void ggml_hugepages_set_node_rows(ggml_hugepages_matrices & matrices, size_t group, size_t n_nodes, size_t n_threads) {
    const size_t n_max = GGML_HUGEPAGES_MAX_NODES;
    if (matrices.n < 2 || n_nodes < 2 || n_nodes > n_max) {
        return;
    }
    uint32_t rows[n_max] = {};
    size_t border = 0;
    for (size_t node = 0; node < n_nodes; node++) {
        const size_t exact = ggml_hugepages_first_row(matrices.n_rows, node + 1, n_nodes, n_threads > 0 ? n_threads : n_nodes, true);
        const size_t next  = node + 1 == n_nodes ? matrices.n_rows : std::min(matrices.n_rows, ggml_hugepages_align_up(exact, group));
        if (next <= border) {
            return; // with fewer threads than nodes, or fewer groups than nodes
        }
        rows[node] = (uint32_t) (next - border);
        border     = next;
    }
    std::copy_n(rows, n_max, matrices.node_rows);
}

void ggml_hugepages_order_by_node(const ggml_hugepages_params * params, size_t group, ggml_hugepages_matrices * matrices) {
    if (params->placement == GGML_HUGEPAGES_PLACEMENT_ROWS) {
        ggml_hugepages_set_node_rows(*matrices, group, ggml_hugepages_own_thread_nodes().size(), std::max(0, params->n_compute_threads));
    }
}

bool ggml_hugepages_is_by_node(const void * ptr, ggml_hugepages_matrices * matrices) {
    const auto * buffer = ggml_hugepages_is_buffer(ptr) ? ggml_hugepages_find_buffer(ptr) : nullptr;
    if (!buffer) {
        return false;
    }
    const size_t first = (const uint8_t *) ptr - buffer->addr;
    for (const auto & m : buffer->matrices) {
        if (m.first == first && m.node_rows[0] > 0) {
            *matrices = m;
            return true;
        }
    }
    return false;
}

size_t ggml_hugepages_offset_by_node(const ggml_hugepages_matrices * matrices, size_t offset, size_t * n) {
    const auto & m = *matrices;
    const size_t row    = offset/m.row_size;
    const size_t matrix = row/m.n_rows;
    size_t border = 0; // the first row of the node
    size_t node   = 0;
    while (row % m.n_rows >= border + m.node_rows[node]) {
        border += m.node_rows[node++];
    }
    const size_t in_node = row % m.n_rows - border;
    *n = (m.node_rows[node] - in_node)*m.row_size - offset % m.row_size;
    return (border*m.n + matrix*m.node_rows[node] + in_node)*m.row_size + offset % m.row_size;
}

#endif // __linux__
