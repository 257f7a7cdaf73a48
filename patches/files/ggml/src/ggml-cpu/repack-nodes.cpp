// The rows of each thread in a tensor in node order.

#include "repack-nodes.h"

// Thread i runs on node i*n_nodes/n_threads. The first thread of node i is first_of(i, n_threads, n_nodes). If there are fewer threads than
// nodes, the first node of thread i is first_of(i, n_nodes, n_threads).
static int64_t first_of(int64_t i, int64_t n_wanted, int64_t n_given) {
    return (i*n_wanted + n_given - 1)/n_given;
}

static int64_t n_nodes_of(const struct ggml_hugepages_matrices & m) {
    return std::find(std::begin(m.node_rows), std::end(m.node_rows), 0u) - std::begin(m.node_rows);
}

int ggml_repack_n_parts(const struct ggml_hugepages_matrices & matrices, int nth) {
    return (int) ((n_nodes_of(matrices) + nth - 1)/nth);
}

void ggml_repack_part(const struct ggml_hugepages_matrices & matrices, int64_t group, int part, int ith, int nth, struct ggml_tensor * src0, struct ggml_tensor * dst) {
    const int64_t n_nodes = n_nodes_of(matrices);
    int64_t node  = ith*n_nodes/nth;
    int64_t index = 0; // of this thread, in its node
    int64_t n     = 1; // threads of the node
    if (nth >= n_nodes) {
        index = ith - first_of(node, nth, n_nodes);
        n     = first_of(node + 1, nth, n_nodes) - first_of(node, nth, n_nodes);
    } else {
        node = first_of(ith, n_nodes, nth) + part;
        if (node >= first_of(ith + 1, n_nodes, nth)) {
            src0->ne[1] = 0;
            return;
        }
    }
    int64_t border = 0; // the first row of the node
    for (int64_t other = 0; other < node; other++) {
        border += matrices.node_rows[other];
    }
    const int64_t n_rows   = matrices.node_rows[node];
    const int64_t n_groups = n_rows/group;
    const int64_t first    = n_groups*index/n*group; // in the node
    const int64_t last     = n_groups*(index + 1)/n*group;
    // The kernel multiplies rows ith*ne[1]/nth to (ith + 1)*ne[1]/nth. With this ne[1], these are rows `from` to from + last - first.
    const int64_t from = ith*(last - first);
    src0->ne[1] = nth*(last - first);
    src0->nb[2] = n_rows*src0->nb[1];
    src0->data  = (char *) src0->data + ((int64_t) matrices.n*border + first - from)*(int64_t) src0->nb[1];
    dst->data   = (char *) dst->data + (border + first - from)*(int64_t) sizeof(float);
}
