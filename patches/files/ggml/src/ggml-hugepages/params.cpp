// What the program asks for: defaults, the policy, the scope of each thread, and the cause of the last failure.

#include "params.h"

#include <memory>
#include <mutex>
#include <new>

ggml_hugepages_params ggml_hugepages_default_params(void) noexcept {
    ggml_hugepages_params result = {
        /*.enabled       =*/ false,
        /*.policy        =*/ GGML_HUGEPAGES_POLICY_REQUIRE,
        /*.placement     =*/ GGML_HUGEPAGES_PLACEMENT_DEFAULT,
        /*.page_size     =*/ GGML_HUGEPAGES_SIZE_AUTO,
        /*.n_threads     =*/ 0,
        /*.drop_cache    =*/ false,
        /*.kv_bytes      =*/ 0,
        /*.compute_bytes =*/ 0,
        /*.plan_only     =*/ false,
        /*.load_only     =*/ false,
        /*.evict         =*/ false,
        /*.verify        =*/ false,
        /*.model_id      =*/ 0,
        /*.store         =*/ "",
        /*.n_compute_threads =*/ 0,
        /*.keep_context  =*/ false,
        /*.wipe_context  =*/ false,
        /*.context_bytes =*/ 0,
        /*.context_key   =*/ 0,
    };
    return result;
}

bool ggml_hugepages_accepts_less(const ggml_hugepages_params * params) noexcept {
    return params->policy == GGML_HUGEPAGES_POLICY_PREFER && !params->plan_only && !params->load_only;
}

static thread_local std::unique_ptr<ggml_hugepages_error> t_failure;

void ggml_hugepages_set_failure(const ggml_hugepages_error * error) noexcept {
    t_failure.reset(error ? new (std::nothrow) ggml_hugepages_error(*error) : nullptr);
}

ggml_hugepages_status ggml_hugepages_get_failure(ggml_hugepages_error * error) noexcept {
    if (!t_failure) {
        return GGML_HUGEPAGES_STATUS_OK;
    }
    if (error) {
        *error = *t_failure;
    }
    return t_failure->status;
}

static thread_local const ggml_hugepages_scope * t_scope = nullptr;
static std::mutex                                g_scope_mutex; // for g_scope
static ggml_hugepages_scope                      g_scope = {};

const ggml_hugepages_scope * ggml_hugepages_scope_set(const ggml_hugepages_scope * scope) {
    const auto * before = t_scope;
    t_scope = scope;
    return before;
}

void ggml_hugepages_scope_set_default(const ggml_hugepages_scope * scope) {
    std::lock_guard<std::mutex> lock(g_scope_mutex);
    g_scope = *scope;
}

ggml_hugepages_scope ggml_hugepages_default_scope() {
    std::lock_guard<std::mutex> lock(g_scope_mutex);
    return g_scope;
}

ggml_hugepages_scope ggml_hugepages_current_scope() {
    return t_scope ? *t_scope : ggml_hugepages_default_scope();
}
