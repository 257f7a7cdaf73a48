#ifdef __linux__

#include "held-contexts.h"
#include "store-file.h"

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include <sys/mman.h>

static std::mutex                                         g_mutex;
static std::vector<std::unique_ptr<ggml_hugepages_image>> g_held;

void ggml_hugepages_held_context_add(std::unique_ptr<ggml_hugepages_image> context) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_held.push_back(std::move(context));
}

std::unique_ptr<ggml_hugepages_image> ggml_hugepages_held_context_take(const ggml_hugepages_scope & scope, size_t size) {
    if (!scope.params.keep_context || scope.kind != GGML_HUGEPAGES_KIND_KV || scope.late) {
        return nullptr;
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto it = std::find_if(g_held.begin(), g_held.end(), [&](const auto & held) {
        const auto & params = held->params;
        return params.model_id == scope.params.model_id && ggml_hugepages_buffer_size(&params, size) == params.kv_bytes;
    });
    if (it == g_held.end()) {
        return nullptr;
    }
    auto context = std::move(*it);
    g_held.erase(it);
    return context;
}

void ggml_hugepages_held_contexts_end(uint32_t model_id) {
    std::lock_guard<std::mutex> lock(g_mutex);
    for (auto it = g_held.begin(); it != g_held.end();) {
        const auto & context = **it;
        if (context.params.model_id != model_id) {
            it++;
            continue;
        }
        if (!context.is_old_context) {
            context.resident->unlink(); // of a failed load
        }
        munmap(context.addr, context.length);
        it = g_held.erase(it);
    }
}

#endif // __linux__
