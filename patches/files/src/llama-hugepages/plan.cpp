// Which tensors want huge pages: in the mapping of their file, or in a buffer.

#include "llama-hugepages.h"
#include "error.h"
#include "weights.h"

#include <algorithm>
#include <cstring>
#include <set>

// How much of a tensor each token reads. Embeddings rank last, because a token reads only a few rows, unless they are also the output.
static ggml_hugepages_rank rank_of(const llama_model_loader & ml, const char * name) {
    const bool is_tied = ml.get_weight("output.weight") == nullptr;
    if (strcmp(name, "output.weight") == 0 || (is_tied && strcmp(name, "token_embd.weight") == 0)) {
        return GGML_HUGEPAGES_RANK_OUTPUT;
    }
    return strstr(name, "token_embd") ? GGML_HUGEPAGES_RANK_EMBEDDINGS : GGML_HUGEPAGES_RANK_LAYERS;
}

// Whether a mapping would take a tenth more blocks than a buffer. Of a repacked model only norms and embeddings are mapped, and each norm
// would take a block of its own. A buffer shares larger pages with others, so the size of the pages does not matter.
static bool is_sparse(const llama_model_loader & ml, ggml_context * ctx, const ggml_hugepages_params & params) {
    const size_t smallest  = llama_hugepages_smallest_page(params);
    const size_t unit      = ggml_hugepages_buffer_size(&params, 1);
    const size_t page_size = unit == 0 ? smallest : std::min(smallest, unit);
    if (page_size == 0) {
        return false;
    }
    size_t bytes = 0;
    std::set<std::pair<size_t, size_t>> blocks; // file, block
    llama_hugepages_for_each_weight(ml, ctx, [&](const ggml_tensor * cur, const auto & weight) {
        bytes += ggml_nbytes(cur);
        for (size_t block = weight.offs/page_size; block*page_size < weight.offs + ggml_nbytes(cur); block++) {
            blocks.emplace(weight.idx, block);
        }
    });
    const size_t needed = (bytes + page_size - 1)/page_size;
    return blocks.size() > needed + needed/10 + 2*ml.files.size();
}

void llama_hugepages::begin(const llama_model_params & model_params, const std::string & name, const std::vector<std::string> & shards) {
    names                       = shards;
    if (names.empty() && !name.empty()) {
        names = { name };
    }
    params                      = model_params.hugepages;
    progress_callback           = model_params.progress_callback;
    progress_callback_user_data = model_params.progress_callback_user_data;
}

void llama_hugepages::plan(const llama_model_loader & ml) {
    if (!params.enabled || ml.no_alloc || ml.files.empty()) {
        return;
    }
    use_mmap = ml.use_mmap;
    for (const auto & file : ml.files) {
        images.emplace_back(ggml_hugepages_image_init(file->file_id(), file->size()), ggml_hugepages_image_free);
    }

    std::vector<ggml_hugepages_demand> demands = {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      params.kv_bytes,      nullptr, nullptr, 0 },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, params.compute_bytes, nullptr, nullptr, 0 },
    };
    std::vector<std::pair<ggml_context *, ggml_backend_buffer_type_t>> in_buffers;
    for (const auto & [key, ctx] : ml.ctx_map) {
        if (key.lazy || !is_of_cpu(key.buft) || !ggml_get_first_tensor(ctx.get())) {
            continue;
        }
        const bool could_map = use_mmap && kind(key.buft) == GGML_HUGEPAGES_KIND_WEIGHTS;
        contexts.push_back(ctx.get());
        llama_hugepages_for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto &) { n_bytes += ggml_nbytes(cur); });
        if (could_map && is_sparse(ml, ctx.get(), params)) {
            packed.push_back(ctx.get());
        }
        if (could_map && !is_packed(ctx.get())) {
            llama_hugepages_for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto & weight) {
                ggml_hugepages_image_want(images.at(weight.idx).get(), weight.offs, weight.offs + ggml_nbytes(cur),
                    rank_of(ml, ggml_get_name(cur)));
            });
        } else {
            buffered.push_back(ctx.get());
            in_buffers.emplace_back(ctx.get(), key.buft);
        }
    }
    if (params.placement == GGML_HUGEPAGES_PLACEMENT_ROWS) {
        find_matrices(ml);
    }
    if (params.store[0]) {
        open_residents(ml);
    }
    const auto context = open_context(ml);
    if (context) {
        demands[0].bytes   += params.context_bytes;
        demands[0].resident = context.get();
    }
    for (const auto & [ctx, buft] : in_buffers) {
        auto * there = resident(ctx);
        const auto & rows = matrices(ctx);
        demands.push_back({ kind(buft), GGML_HUGEPAGES_RANK_LAYERS, ggml_backend_alloc_ctx_tensors_from_buft_size(ctx, buft), there, rows.data(), rows.size() });
        if (there && ggml_hugepages_resident_is_complete(there)) {
            attached.push_back(ctx);
        }
        // includes attached buffers, because upstream's prefetch would bring their tensors into the page cache
        llama_hugepages_for_each_weight(ml, ctx, [&](const ggml_tensor * cur, const auto & weight) {
            ggml_hugepages_image_expect(images.at(weight.idx).get(), weight.offs, weight.offs + ggml_nbytes(cur));
        });
    }

    if (!params.plan_only) {
        const int token = ggml_hugepages_turn_begin();
        turn = std::shared_ptr<void>(nullptr, [token](void *) { ggml_hugepages_turn_end(token); });
    }
    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_plan(imgs.data(), imgs.size(), demands.data(), demands.size(), &params, &error)) {
        // without huge pages, even more ordinary memory would be used
        if (!ggml_hugepages_accepts_less(&params) || error.status == GGML_HUGEPAGES_STATUS_NO_MEMORY) {
            llama_hugepages_raise(error);
        }
        LLAMA_LOG_WARN("%s: no huge pages: %s\n", __func__, error.message);
        *this = llama_hugepages();
    } else if (context && !ggml_hugepages_context_hold(context.get(), &params, &error)) {
        if (!ggml_hugepages_accepts_less(&params)) {
            llama_hugepages_raise(error);
        }
        LLAMA_LOG_WARN("%s: no conversation will remain in memory after this process ends: %s\n", __func__, error.message);
    }
    for (size_t i = 0; use_mmap && i < images.size(); i++) {
        ml.files[i]->hugepages = images[i];
    }
}

void llama_hugepages::overlay() {
    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!imgs.empty() && !ggml_hugepages_overlay(imgs.data(), imgs.size(), &error)) {
        llama_hugepages_raise(error);
    }
}

bool llama_hugepages::is_packed(const ggml_context * ctx) const {
    return std::find(packed.begin(), packed.end(), ctx) != packed.end();
}

bool llama_hugepages::is_attached(const ggml_context * ctx) const {
    return std::find(attached.begin(), attached.end(), ctx) != attached.end();
}

bool llama_hugepages::is_buffered(const ggml_context * ctx) const {
    return std::find(buffered.begin(), buffered.end(), ctx) != buffered.end();
}

ggml_hugepages_resident_t llama_hugepages::resident(const ggml_context * ctx) const {
    const auto it = resident_buffers.find(ctx);
    return it == resident_buffers.end() ? nullptr : it->second.get();
}

std::vector<ggml_hugepages_image_t> llama_hugepages::handles() const {
    std::vector<ggml_hugepages_image_t> result;
    for (const auto & image : images) {
        result.push_back(image.get());
    }
    return result;
}

void * llama_hugepages_map(const llama_hugepages_image & image) {
    ggml_hugepages_error error = {};
    void * addr = ggml_hugepages_image_map(image.get(), &error);
    if (!addr) {
        llama_hugepages_raise(error);
    }
    return addr;
}

std::vector<std::pair<size_t, size_t>> llama_hugepages_no_prefetch(
        const llama_hugepages_image & image, const std::vector<std::pair<size_t, size_t>> & lazy_ranges) {
    std::vector<std::pair<size_t, size_t>> result;
    size_t first, last; // NOLINT
    while (image && ggml_hugepages_image_read(image.get(), result.size(), &first, &last)) {
        result.emplace_back(first, last);
    }
    result.insert(result.end(), lazy_ranges.begin(), lazy_ranges.end());
    return result;
}
