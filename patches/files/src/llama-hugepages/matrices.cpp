// The matrices of a model: their rows are shared by the threads of a multiplication, so pages of rows belong on the node of their threads.

#include "llama-hugepages.h"
#include "weights.h"

void llama_hugepages::chosen(const ggml_tensor * weight, ggml_op op, ggml_backend_buffer_type_t buft) {
    if (params.enabled && params.placement == GGML_HUGEPAGES_PLACEMENT_ROWS && (op == GGML_OP_MUL_MAT || op == GGML_OP_MUL_MAT_ID)) {
        multiplied.emplace(buft, ggml_get_name(weight));
    }
}

bool llama_hugepages::is_matrix(const ggml_tensor * cur, ggml_backend_buffer_type_t buft) const {
    return cur->ne[1] > 1 && multiplied.count({ buft, ggml_get_name(cur) }) > 0;
}

// CPU_REPACK interleaves small groups of rows and keeps each group at its offset. Other buffers have layouts of their own.
static bool has_rows(ggml_backend_buffer_type_t buft) {
    const std::string name = ggml_backend_buft_name(buft);
    return name == "CPU" || name == "CPU_REPACK";
}

// the most rows that a layout of CPU_REPACK interleaves; the others interleave 4 or 8
static const size_t ROWS_PER_GROUP = 16;

static ggml_hugepages_matrices matrices_at(size_t first, const ggml_tensor * cur) {
    return { first, ggml_row_size(cur->type, cur->ne[0]), (size_t) cur->ne[1], (size_t) (cur->ne[2]*cur->ne[3]), {} };
}

void llama_hugepages::find_matrices(const llama_model_loader & ml) {
    for (const auto & [key, ctx] : ml.ctx_map) {
        auto * buft = key.buft;
        if (key.lazy || !has_rows(buft)) {
            continue;
        }
        if (!is_buffered(ctx.get())) {
            llama_hugepages_for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto & weight) {
                if (is_matrix(cur, buft)) {
                    const auto matrices = matrices_at(weight.offs, cur);
                    ggml_hugepages_image_share(images.at(weight.idx).get(), &matrices);
                }
            });
            continue;
        }
        // ggml_backend_alloc_ctx_tensors_from_buft puts one tensor after the other; check_matrices() compares
        const size_t alignment = ggml_backend_buft_get_alignment(buft);
        size_t offset = 0;
        for (auto * cur = ggml_get_first_tensor(ctx.get()); cur; cur = ggml_get_next_tensor(ctx.get(), cur)) {
            if (is_matrix(cur, buft)) {
                auto matrices = matrices_at(offset, cur);
                if (kind(buft) == GGML_HUGEPAGES_KIND_REPACKED) {
                    ggml_hugepages_order_by_node(&params, ROWS_PER_GROUP, &matrices);
                }
                matrices_of[ctx.get()].push_back(matrices);
            }
            offset += GGML_PAD(ggml_backend_buft_get_alloc_size(buft, cur), alignment);
        }
    }
}

void llama_hugepages::check_matrices(ggml_context * ctx) const {
    const auto & all = matrices(ctx);
    size_t n = 0;
    for (auto * cur = ggml_get_first_tensor(ctx); cur && !all.empty(); cur = ggml_get_next_tensor(ctx, cur)) {
        if (is_matrix(cur, ggml_backend_buffer_get_type(cur->buffer))) {
            GGML_ASSERT((uint8_t *) ggml_backend_buffer_get_base(cur->buffer) + all.at(n++).first == cur->data);
        }
    }
}

const std::vector<ggml_hugepages_matrices> & llama_hugepages::matrices(const ggml_context * ctx) const {
    static const std::vector<ggml_hugepages_matrices> none;
    const auto it = matrices_of.find(ctx);
    return it == matrices_of.end() ? none : it->second;
}
