// The buffers of a model and of its contexts: their kind, and whether they take huge pages.

#include "llama-hugepages.h"
#include "llama-model.h"
#include "weights.h"

#include <algorithm>
#include <cstring>

llama_hugepages_scope::llama_hugepages_scope(const ggml_hugepages_params & params, ggml_hugepages_kind kind, bool late) :
    scope{ params, kind, late, /*.lazy =*/ false, /*.resident =*/ nullptr, /*.matrices =*/ nullptr, /*.n_matrices =*/ 0 } {
    if (params.enabled) {
        before = ggml_hugepages_scope_set(&scope);
    }
}

llama_hugepages_scope::llama_hugepages_scope(const llama_model & model, ggml_hugepages_kind kind, bool late) :
    llama_hugepages_scope(model.hparams.no_alloc ? ggml_hugepages_default_params() : model.hugepages(), kind, late) {}

llama_hugepages_scope::llama_hugepages_scope(const llama_hugepages & hugepages, const ggml_context * ctx, ggml_backend_buffer_type_t buft) :
    llama_hugepages_scope(hugepages.params, llama_hugepages::kind(buft)) {
    const auto & matrices = hugepages.matrices(ctx);
    scope.lazy       = hugepages.is_buffered(ctx);
    scope.resident   = hugepages.resident(ctx);
    scope.matrices   = matrices.data();
    scope.n_matrices = matrices.size();
}

llama_hugepages_scope::~llama_hugepages_scope() {
    if (scope.params.enabled) {
        ggml_hugepages_scope_set(before);
    }
}

bool llama_hugepages::is_of_cpu(ggml_backend_buffer_type_t buft) {
    auto * dev = ggml_backend_buft_get_device(buft);
    return !dev || dev == ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

ggml_hugepages_kind llama_hugepages::kind(ggml_backend_buffer_type_t buft) {
    auto * cpu_dev = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    return buft == ggml_backend_dev_buffer_type(cpu_dev) ? GGML_HUGEPAGES_KIND_WEIGHTS : GGML_HUGEPAGES_KIND_REPACKED;
}

size_t llama_hugepages_smallest_page(const ggml_hugepages_params & params) {
    const bool is_any = params.page_size == GGML_HUGEPAGES_SIZE_AUTO || params.page_size == GGML_HUGEPAGES_SIZE_THP;
    return is_any ? ggml_hugepages_page_size("") : params.page_size;
}

static bool is_of_worker(ggml_backend_buffer_type_t buft) {
    auto * dev = ggml_backend_buft_get_device(buft);
    return dev && strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "RPC") == 0;
}

size_t llama_hugepages_size(const llama_model & model, ggml_backend_buffer_type_t buft, size_t size) {
    const auto & params = model.hugepages();
    if (params.enabled && model.hparams.no_alloc && is_of_worker(buft)) {
        return GGML_PAD(size, GGML_HUGEPAGES_WORKER_PAGE);
    }
    if (!params.enabled || !model.hparams.no_alloc || !ggml_backend_buft_is_host(buft)) {
        return size;
    }
    if (!llama_hugepages::is_of_cpu(buft)) {
        return 0; // pinned by the driver of a GPU
    }
    return ggml_hugepages_buffer_size(&params, size);
}

size_t llama_hugepages_compute_size(const llama_model & model, const std::vector<ggml_backend_buffer_type_t> & bufts, size_t i, size_t size) {
    if (!model.hugepages().enabled) {
        return size;
    }
    const bool is_shared = std::find(bufts.begin(), bufts.begin() + i, bufts[i]) != bufts.begin() + i;
    const bool is_pinned = ggml_backend_buft_is_host(bufts[i]) && !llama_hugepages::is_of_cpu(bufts[i]);
    return is_shared || is_pinned ? 0 : size;
}
