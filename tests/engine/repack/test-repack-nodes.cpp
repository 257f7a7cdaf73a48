// Multiplies with experts in node order, and compares with experts one after the other, bit for bit: for several types and shapes, and for
// all numbers of threads and nodes. Exits 1 at the first difference.

#include "ggml-hugepages/placement.h"
#include "repack.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

// 13 groups of 16 rows, so that no number of nodes divides them
static const int64_t N_EXPERTS = 5, N_USED = 3, ROWS = 208, COLUMNS = 512;

struct shape {
    ggml_type type;
    int64_t   rows;
    int64_t   tokens;
};

struct model {
    ggml_context        * ctx;
    ggml_tensor         * weights;
    ggml_backend_buffer_t buffer;

    // matrices: nullptr for upstream's order
    model(const shape & s, const void * data, const ggml_hugepages_matrices * matrices) {
        ctx     = ggml_init({ 1024*1024, nullptr, true });
        weights = ggml_new_tensor_3d(ctx, s.type, COLUMNS, s.rows, N_EXPERTS);
        ggml_hugepages_scope scope = {};
        scope.params            = ggml_hugepages_default_params();
        scope.params.enabled    = matrices != nullptr;
        scope.params.policy     = GGML_HUGEPAGES_POLICY_PREFER; // the order does not depend on the memory
        scope.params.placement  = GGML_HUGEPAGES_PLACEMENT_ROWS;
        scope.kind              = GGML_HUGEPAGES_KIND_REPACKED;
        scope.matrices          = matrices;
        scope.n_matrices        = matrices ? 1 : 0;
        const auto * before = ggml_hugepages_scope_set(&scope);
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, ggml_backend_cpu_repack_buffer_type());
        ggml_hugepages_scope_set(before);
        GGML_ASSERT(buffer);
        if (weights->extra) {
            ggml_backend_tensor_set(weights, data, 0, ggml_nbytes(weights));
        }
    }

    model(const model &) = delete;

    ~model() {
        ggml_backend_buffer_free(buffer);
        ggml_free(ctx);
    }

    std::vector<float> multiply(ggml_backend_t backend, const shape & s, const std::vector<float> & input, const std::vector<int32_t> & ids, int n_threads) const {
        auto * temporary = ggml_init({ 1024*1024, nullptr, true });
        auto * b   = ggml_new_tensor_3d(temporary, GGML_TYPE_F32, COLUMNS, N_USED, s.tokens);
        auto * i   = ggml_new_tensor_2d(temporary, GGML_TYPE_I32, N_USED, s.tokens);
        auto * out = ggml_mul_mat_id(temporary, weights, b, i);
        auto * graph = ggml_new_graph(temporary);
        ggml_build_forward_expand(graph, out);
        auto memory = ggml_backend_alloc_ctx_tensors(temporary, backend);
        ggml_backend_tensor_set(b, input.data(), 0, ggml_nbytes(b));
        ggml_backend_tensor_set(i, ids.data(), 0, ggml_nbytes(i));
        ggml_backend_cpu_set_n_threads(backend, n_threads);
        GGML_ASSERT(ggml_backend_graph_compute(backend, graph) == GGML_STATUS_SUCCESS);
        std::vector<float> result(ggml_nelements(out));
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        ggml_backend_buffer_free(memory);
        ggml_free(temporary);
        return result;
    }
};

// whether the rows of one model are those of the other, in node order
static bool is_in_order(const model & by_node, const model & plain, const ggml_hugepages_matrices & m) {
    const size_t group = 16*m.row_size;
    for (size_t at = 0; at < m.n*m.n_rows*m.row_size; at += group) {
        size_t n;
        const size_t place = ggml_hugepages_offset_by_node(&m, at, &n);
        if (n < group || memcmp((char *) by_node.weights->data + place, (char *) plain.weights->data + at, group) != 0) {
            return false;
        }
    }
    return memcmp(by_node.weights->data, plain.weights->data, m.n*m.n_rows*m.row_size) != 0;
}

static int compare(ggml_backend_t backend, const shape & s) {
    std::mt19937 random(1);
    std::uniform_real_distribution<float> values(-1, 1);
    std::vector<float> rows(COLUMNS*s.rows*N_EXPERTS);
    for (float & x : rows) {
        x = values(random);
    }
    const size_t row_size = ggml_row_size(s.type, COLUMNS);
    std::vector<uint8_t> data(row_size*s.rows*N_EXPERTS);
    ggml_quantize_chunk(s.type, rows.data(), data.data(), 0, s.rows*N_EXPERTS, COLUMNS, nullptr);
    std::vector<float> input(COLUMNS*N_USED*s.tokens);
    for (float & x : input) {
        x = values(random);
    }
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < N_USED*s.tokens; i++) {
        ids.push_back((int32_t) ((i*2 + i/N_USED) % N_EXPERTS)); // no expert twice for a token
    }

    const model plain(s, data.data(), nullptr);
    if (!plain.weights->extra) {
        return 0; // this CPU does not repack the type
    }
    const auto expected = plain.multiply(backend, s, input, ids, 4);
    int n = 0;
    for (size_t n_nodes = 2; n_nodes <= 8; n_nodes++) {
        // equal parts, and unequal parts for a number of threads that the nodes do not divide
        for (const size_t n_planned : { (size_t) 0, n_nodes + 1 }) {
            ggml_hugepages_matrices m = { 0, row_size, (size_t) s.rows, (size_t) N_EXPERTS, {} };
            ggml_hugepages_set_node_rows(m, 16, n_nodes, n_planned);
            if (m.node_rows[0] == 0) {
                continue; // fewer groups of rows than nodes
            }
            const model by_node(s, data.data(), &m);
            if (by_node.weights->extra == plain.weights->extra || !is_in_order(by_node, plain, m)) {
                printf("%s: the rows are not in the order of %zu nodes\n", ggml_type_name(s.type), n_nodes);
                return -1;
            }
            for (int n_threads = 1; n_threads <= 10; n_threads++) {
                const auto result = by_node.multiply(backend, s, input, ids, n_threads);
                if (memcmp(result.data(), expected.data(), expected.size()*sizeof(float)) != 0) {
                    printf("%s: other results with %zu nodes and %d threads, %d rows, %d tokens\n", ggml_type_name(s.type), n_nodes, n_threads, (int) s.rows, (int) s.tokens);
                    return -1;
                }
                n++;
            }
        }
    }
    return n;
}

int main() {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    auto * backend = ggml_backend_cpu_init();
    int n = 0;
    for (const ggml_type type : { GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_Q2_K, GGML_TYPE_IQ4_NL, GGML_TYPE_MXFP4, GGML_TYPE_Q8_0 }) {
        for (const int64_t n_rows : { (int64_t) 32, ROWS }) {
            for (const int64_t n_tokens : { 1, 6 }) {
                const int compared = compare(backend, { type, n_rows, n_tokens });
                if (compared < 0) {
                    return 1;
                }
                n += compared;
            }
        }
    }
    ggml_backend_free(backend);
    printf("%d comparisons, no difference\n", n);
    return 0;
}
