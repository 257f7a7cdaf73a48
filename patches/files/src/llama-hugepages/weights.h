#pragma once

#include "ggml.h"
#include "llama-model-loader.h"

// calls f for each tensor of a context that is in a file
template <typename F> static void llama_hugepages_for_each_weight(const llama_model_loader & ml, ggml_context * ctx, F f) {
    for (auto * cur = ggml_get_first_tensor(ctx); cur; cur = ggml_get_next_tensor(ctx, cur)) {
        if (const auto * weight = ml.get_weight(ggml_get_name(cur))) {
            f(cur, *weight);
        }
    }
}

// the smallest page of a plan, 0 if the kernel has no pool
size_t llama_hugepages_smallest_page(const ggml_hugepages_params & params);
