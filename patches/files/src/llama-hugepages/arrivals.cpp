#include "arrivals.h"
#include "weights.h"
#include "llama-impl.h"

#include <algorithm>
#include <utility>

bool llama_hugepages_check_arrivals(const void * data, size_t first, size_t last, void * user_data) {
    auto & tensors = *(llama_hugepages_arrivals *) user_data;
    auto it = std::lower_bound(tensors.begin(), tensors.end(), first, [](const llama_hugepages_arriving & a, size_t x) { return a.last <= x; });
    for (; it != tensors.end() && it->first < last; ++it) {
        const size_t n = std::min(last, it->last) - std::max(first, it->first);
        if (it->missing.fetch_sub(n) != n) {
            continue;
        }
        const auto * begin = (const uint8_t *) data - first + it->first;
        if (!ggml_validate_row_data(it->tensor->type, begin, it->last - it->first)) {
            LLAMA_LOG_ERROR("%s: tensor '%s' has invalid data\n", __func__, ggml_get_name(it->tensor));
            return false;
        }
    }
    return true;
}

std::vector<llama_hugepages_arrivals> llama_hugepages_arrivals_of(const llama_model_loader & ml, const std::vector<const ggml_context *> & contexts, const std::vector<ggml_context *> & buffered) {
    std::vector<std::vector<std::pair<size_t, const ggml_tensor *>>> sorted(ml.files.size());
    for (const auto & [_, ctx] : ml.ctx_map) {
        const bool is_mapped = std::find(contexts.begin(), contexts.end(), ctx.get()) != contexts.end() &&
            std::find(buffered.begin(), buffered.end(), ctx.get()) == buffered.end();
        if (is_mapped) {
            llama_hugepages_for_each_weight(ml, ctx.get(), [&](const ggml_tensor * cur, const auto & weight) { sorted[weight.idx].emplace_back(weight.offs, cur); });
        }
    }
    std::vector<llama_hugepages_arrivals> result(ml.files.size());
    for (size_t i = 0; i < sorted.size(); i++) {
        std::sort(sorted[i].begin(), sorted[i].end());
        for (const auto & [offs, tensor] : sorted[i]) {
            result[i].emplace_back(tensor, offs);
        }
    }
    return result;
}
