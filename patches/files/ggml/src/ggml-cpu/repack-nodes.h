#pragma once

// CPU_REPACK tensors in node order: the rows of all experts for one node are adjacent (ggml-hugepages.h).
//
// The multiplication is upstream's. Each thread calls it with copies of the tensors whose address, stride and number of rows describe the
// rows of this thread. So each thread multiplies rows of its node, for any number of threads.

#include "ggml-hugepages.h"
#include "ggml-impl.h"
#include "traits.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <vector>

// The number of calls in which each thread multiplies its rows: more than one if there are fewer threads than nodes.
int ggml_repack_n_parts(const struct ggml_hugepages_matrices & matrices, int nth);

// Makes src0 and dst, copies of the tensors of a GGML_OP_MUL_MAT_ID, describe the rows of one part of thread ith. group: rows that are
// interleaved
void ggml_repack_part(const struct ggml_hugepages_matrices & matrices, int64_t group, int part, int ith, int nth, struct ggml_tensor * src0, struct ggml_tensor * dst);

// BASE: tensor_traits_base of repack.cpp
template <typename BASE> class ggml_repack_by_node : public BASE {
  public:
    // Gives the tensor these traits if its rows are in node order.
    static void init(struct ggml_tensor * tensor) {
        struct ggml_hugepages_matrices matrices;
        const struct ggml_tensor * of = tensor->view_src ? tensor->view_src : tensor;
        if (!tensor->extra || !ggml_hugepages_is_by_node(of->data, &matrices)) {
            return;
        }
        // a view of some experts or rows would need another order
        GGML_ASSERT(tensor->data == of->data && ggml_are_same_shape(tensor, of) && ggml_are_same_stride(tensor, of));
        tensor->extra = (void *) static_cast<ggml::cpu::tensor_traits *>(of_shape((BASE *) tensor->extra, matrices));
    }

    bool work_size(int n_threads, const struct ggml_tensor * op, size_t & size) override { return inner->work_size(n_threads, op, size); }

    bool compute_forward(struct ggml_compute_params * params, struct ggml_tensor * op) override {
        GGML_ASSERT(op->op == GGML_OP_MUL_MAT_ID);
        for (int part = 0; part < ggml_repack_n_parts(matrices, params->nth); part++) {
            if (part > 0) {
                ggml_barrier(params->threadpool); // each call fills the work buffer again
            }
            struct ggml_tensor src0 = *op->src[0];
            struct ggml_tensor dst  = *op;
            ggml_repack_part(matrices, inner->rows_per_group(), part, params->ith, params->nth, &src0, &dst);
            dst.src[0] = &src0;
            if (!inner->compute_forward(params, &dst)) {
                return false;
            }
        }
        return true;
    }

    int64_t rows_per_group() const override { return inner->rows_per_group(); }

    // The whole tensor, or rows for one node that the caller has already put in their place.
    int repack(struct ggml_tensor * t, const void * data, size_t data_size) override {
        const bool is_whole = (size_t) t->ne[2] == matrices.n;
        size_t n;
        for (size_t at = 0; at < data_size; at += n) {
            size_t place = 0;
            n = data_size;
            if (is_whole) {
                place = ggml_hugepages_offset_by_node(&matrices, at, &n);
            }
            struct ggml_tensor rows = *t;
            rows.data  = (char *) t->data + place;
            rows.ne[1] = n/matrices.row_size;
            rows.ne[2] = 1;
            rows.nb[2] = rows.nb[3] = n;
            const int result = inner->repack(&rows, (const char *) data + at, n);
            if (result != 0) {
                return result;
            }
        }
        return 0;
    }

  private:
    BASE * const                         inner;
    const struct ggml_hugepages_matrices matrices; // the offset of the first does not matter

    ggml_repack_by_node(BASE * inner, const struct ggml_hugepages_matrices & matrices) : inner(inner), matrices(matrices) {}

    bool is_for(const BASE * other, const struct ggml_hugepages_matrices & m) const {
        return inner == other && matrices.n == m.n && matrices.n_rows == m.n_rows && matrices.row_size == m.row_size &&
            std::equal(std::begin(m.node_rows), std::end(m.node_rows), matrices.node_rows);
    }

    // Tensors have no destructor, so the traits of each shape remain until the process ends.
    static ggml_repack_by_node * of_shape(BASE * inner, const struct ggml_hugepages_matrices & m) {
        static std::mutex mutex;
        static std::vector<std::unique_ptr<ggml_repack_by_node>> all;
        std::lock_guard<std::mutex> lock(mutex);
        for (const auto & one : all) {
            if (one->is_for(inner, m)) {
                return one.get();
            }
        }
        for (const uint32_t rows : m.node_rows) {
            GGML_ASSERT(rows % inner->rows_per_group() == 0);
        }
        all.emplace_back(new ggml_repack_by_node(inner, m));
        return all.back().get();
    }
};
