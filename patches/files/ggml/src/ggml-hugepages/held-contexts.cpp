#ifdef __linux__

#include "held-contexts.h"
#include "registry.h"
#include "store-file.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <utility>
#include <vector>

#include <sys/mman.h>

struct used_context {
    ggml_hugepages_image    * image; // in the registry
    size_t                    taken; // bytes of its buffers so far
    std::vector<const void *> buffers;
};

static std::mutex                                         g_mutex;
static std::vector<std::unique_ptr<ggml_hugepages_image>> g_held; // without buffers
static std::vector<used_context>                          g_used;
static std::atomic<size_t>                                g_n_used{0};

void ggml_hugepages_held_context_add(std::unique_ptr<ggml_hugepages_image> context) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_held.push_back(std::move(context));
}

void * ggml_hugepages_held_context_take(const ggml_hugepages_scope & scope, size_t size) {
    if (!scope.params.keep_context || scope.kind != GGML_HUGEPAGES_KIND_KV || scope.late) {
        return nullptr;
    }
    const auto has_room = [&](const ggml_hugepages_image & context, size_t taken) {
        return context.params.model_id == scope.params.model_id && taken + size <= context.params.kv_bytes;
    };
    std::lock_guard<std::mutex> lock(g_mutex);
    auto used = std::find_if(g_used.begin(), g_used.end(), [&](const auto & it) { return has_room(*it.image, it.taken); });
    if (used == g_used.end()) {
        const auto held = std::find_if(g_held.begin(), g_held.end(), [&](const auto & it) { return has_room(*it, 0); });
        if (held == g_held.end()) {
            return nullptr;
        }
        used = g_used.insert(g_used.end(), { held->get(), 0, {} });
        ggml_hugepages_register_buffer(std::move(*held));
        g_held.erase(held);
    }
    void * buffer = used->image->addr + used->taken;
    g_n_used = g_used.size();
    used->taken += ggml_hugepages_buffer_size(&scope.params, size);
    used->buffers.push_back(buffer);
    return buffer;
}

bool ggml_hugepages_held_context_return(const void * ptr, std::unique_ptr<ggml_hugepages_image> & context) {
    if (g_n_used == 0) {
        return false; // without contexts, a free costs no lock
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    for (auto used = g_used.begin(); used != g_used.end(); used++) {
        auto & buffers = used->buffers;
        const auto it = std::find(buffers.begin(), buffers.end(), ptr);
        if (it == buffers.end()) {
            continue;
        }
        buffers.erase(it);
        if (buffers.empty()) {
            context = ggml_hugepages_take_buffer(used->image->addr);
            g_used.erase(used);
            g_n_used = g_used.size();
        }
        return true;
    }
    return false;
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
