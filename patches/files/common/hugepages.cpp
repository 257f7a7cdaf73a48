#include "hugepages.h"

#include "common.h"
#include "hugepages-plan.h"
#include "log.h"
#include "speculative.h"
#include "../src/llama-hugepages-context.h"

#include <algorithm>
#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <utility>
#include <vector>

ggml_hugepages_params common_hugepages_params(const common_params & params) {
    auto result = params.hugepages;
    switch (params.numa) {
        case GGML_NUMA_STRATEGY_DISTRIBUTE: result.placement = GGML_HUGEPAGES_PLACEMENT_ROWS;         break;
        case GGML_NUMA_STRATEGY_ISOLATE:    result.placement = GGML_HUGEPAGES_PLACEMENT_LOCAL;        break;
        case GGML_NUMA_STRATEGY_NUMACTL:    result.placement = GGML_HUGEPAGES_PLACEMENT_BIND;         break;
        default:                            result.placement = ggml_hugepages_env_params().placement; break;
    }
    result.n_compute_threads = std::max(0, params.cpuparams.n_threads);
    return result;
}

std::string common_hugepages_size_name(size_t page_size) {
    if (page_size == GGML_HUGEPAGES_SIZE_AUTO) {
        return "auto";
    }
    char buf[32];
    ggml_hugepages_backing_to_str(page_size == GGML_HUGEPAGES_SIZE_THP ? GGML_HUGEPAGES_BACKING_THP : GGML_HUGEPAGES_BACKING_HUGE, page_size, buf, sizeof(buf));
    return buf;
}

static int exit_code(ggml_hugepages_status status) {
    return status == GGML_HUGEPAGES_STATUS_SHORT || status == GGML_HUGEPAGES_STATUS_NO_MEMORY ? 3 : 1;
}

int common_hugepages_exit_code() {
    return exit_code(ggml_hugepages_get_failure(nullptr));
}

static void log_error(const ggml_hugepages_error & error) {
    LOG_ERR("%s\n", error.message);
    if (error.hint[0]) {
        LOG_ERR("hint: %s\n", error.hint);
    }
}

[[noreturn]] static void print_and_exit(const common_hugepages_plan & plan, const common_params & params) {
    int code = 1;
    if (!plan.is_planned()) {
        LOG_ERR("%s", plan.log.c_str());
    } else if (!plan.fits() && exit_code(plan.error.status) != 3) {
        // more pages would not help
        log_error(plan.error);
    } else {
        common_hugepages_print(plan, params);
        code = plan.fits() ? 0 : 3;
    }
    common_log_flush(common_log_main());
    std::exit(code);
}

// the progress of several models, one JSON object a line
struct progress {
    size_t n_models;
    size_t done = 0;
    int    last = -1;

    static bool print(float part, void * user_data) {
        auto & self = *(progress *) user_data;
        const int permille = (int) (1000*(self.done + part)/self.n_models);
        if (permille != self.last) {
            self.last = permille;
            printf("{\"done\": %d, \"total\": 1000}\n", permille);
            fflush(stdout);
        }
        return true;
    }
};

[[noreturn]] static void load_and_exit(const common_params & params, const llama_model_params & mparams) {
    if (!params.hugepages.store[0]) {
        LOG_ERR("--hugepage-load needs --hugepage-store\n");
        common_log_flush(common_log_main());
        std::exit(1);
    }
    std::vector<std::pair<std::string, llama_model_params>> models = { { params.model.path, mparams } };
    common_params draft; // owns what its model parameters point to
    if (params.speculative.has_dft()) {
        draft = common_base_params_to_speculative(params);
        models.emplace_back(draft.model.path, common_model_params_to_llama(draft));
    }
    progress progress = { models.size() };
    for (auto & [path, model_params] : models) {
        // all weights on huge pages, or a failure
        model_params.hugepages.policy            = GGML_HUGEPAGES_POLICY_REQUIRE;
        model_params.progress_callback           = progress::print;
        model_params.progress_callback_user_data = &progress;
        llama_model * model = llama_model_load_from_file(path.c_str(), model_params);
        if (!model) {
            common_log_flush(common_log_main());
            std::exit(common_hugepages_exit_code());
        }
        llama_model_free(model);
        progress.done++;
    }
    common_log_flush(common_log_main());
    std::exit(0);
}

static void set_default(const common_params & params, bool late) {
    const ggml_hugepages_scope scope = { common_hugepages_params(params), GGML_HUGEPAGES_KIND_OTHER, late, /*.lazy =*/ false, /*.resident =*/ nullptr, /*.matrices =*/ nullptr, /*.n_matrices =*/ 0 };
    ggml_hugepages_scope_set_default(&scope);
}

static std::atomic<bool> is_on{false};

bool common_hugepages_is_on() {
    return is_on;
}

void common_hugepages_begin(const common_params & params) {
    if (params.hugepages.enabled) {
        is_on = true;
        ggml_hugepages_hold_end(params.hugepages.model_id); // for a failed load
        set_default(params, false);
        // the log would be lost if main() returns soon
        static const int registered = std::atexit([] { common_log_flush(common_log_main()); });
        GGML_UNUSED(registered);
    }
}

// False if a part of what will be loaded lacks pages: nothing is read then.
static bool check(const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams) {
    const auto plan = common_hugepages_plan_all(params, model_only, mparams, cparams);
    if (mparams->hugepages.plan_only) {
        print_and_exit(plan, params);
    }
    if (plan.is_planned() && !plan.fits()) {
        ggml_hugepages_set_failure(&plan.error);
        log_error(plan.error);
        if (plan.n_ctx != 0) {
            LOG_ERR("this is for a context of %u tokens, the shortest that --fit-ctx allows\n", plan.n_ctx);
        }
        return false;
    }
    if (plan.n_ctx != 0) {
        LOG_INF("hugepages: a context of %u of %u tokens, because the huge pages hold no more: the full context needs %.2f MiB of huge pages, this one %.2f MiB\n",
            plan.n_ctx, plan.n_ctx_full, plan.bytes_full/1024.0/1024.0, plan.bytes()/1024.0/1024.0);
    }
    return true;
}

// the context of the last load without -c
static thread_local uint32_t t_n_ctx = 0;

static llama_model * load(const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams) {
    ggml_hugepages_set_failure(nullptr);
    const bool may_choose = common_hugepages_may_choose_context(params, model_only, *mparams);
    if (may_choose) {
        mparams->hugepages.evict = false; // unless not even the shortest context fits
    }
    if (common_hugepages_is_plan_needed(params, model_only, *mparams)) {
        if (!check(params, model_only, mparams, cparams)) {
            return nullptr;
        }
    } else {
        common_hugepages_measure(params, model_only, mparams, *cparams);
    }
    if (mparams->hugepages.load_only) {
        load_and_exit(params, *mparams);
    }
    const std::string why = common_hugepages_why_no_context(params, mparams->hugepages);
    if (!why.empty()) {
        LOG_WRN("hugepages: no conversation will remain in memory after this process ends: %s\n", why.c_str());
    }
    common_hugepages_begin(params);
    if (!may_choose) {
        return llama_model_load_from_file(params.model.path.c_str(), *mparams);
    }
    // The load itself plans. Another plan before it would read the header once more, so only a shortage leads to a shorter context.
    std::string errors;
    {
        common_hugepages_errors kept(false);
        auto * model = llama_model_load_from_file(params.model.path.c_str(), *mparams);
        if (model) {
            return model;
        }
        errors = kept.text;
    }
    if (ggml_hugepages_get_failure(nullptr) != GGML_HUGEPAGES_STATUS_SHORT) {
        LOG_ERR("%s", errors.c_str());
        return nullptr;
    }
    return check(params, model_only, mparams, cparams) ? llama_model_load_from_file(params.model.path.c_str(), *mparams) : nullptr;
}

llama_model * common_hugepages_load(const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams) {
    if (params.hugepages.keep_context && !params.hugepages.enabled) {
        LOG_WRN("--hugepage-keep-context has no effect without --hugepages\n");
    } else if (params.hugepages.wipe_context && !params.hugepages.keep_context) {
        LOG_WRN("--hugepage-wipe-context has no effect without --hugepage-keep-context\n");
    }
    if (!mparams->hugepages.enabled || params.no_alloc) {
        common_hugepages_begin(params);
        return llama_model_load_from_file(params.model.path.c_str(), *mparams);
    }
    auto * model = load(params, model_only, mparams, cparams);
    t_n_ctx = model && common_hugepages_may_choose_context(params, model_only, *mparams) ? cparams->n_ctx : 0;
    common_hugepages_plan_forget();
    return model;
}

uint64_t common_hugepages_cache_margin(const common_params & params) {
    return params.fit_params_target.empty() ? 0 : params.fit_params_target[0];
}

static bool has_default_cache_ram(const common_params & params) {
    return params.cache_ram_mib == common_params().cache_ram_mib;
}

int32_t common_hugepages_prompt_cache(const common_params & params, uint64_t available) {
    const uint64_t margin = common_hugepages_cache_margin(params);
    const int32_t  left   = std::min<uint64_t>(INT32_MAX, (available - std::min(available, margin))/1024/1024);
    return available == 0 || !has_default_cache_ram(params) ? params.cache_ram_mib : std::min(left, params.cache_ram_mib);
}

// what each cache leaves, 0 without a bound
static std::atomic<uint64_t> g_margins[COMMON_HUGEPAGES_CACHE_CHECKPOINTS + 1];

static void bound_caches(const common_params & params) {
    if (has_default_cache_ram(params)) {
        g_margins[COMMON_HUGEPAGES_CACHE_PROMPTS] = common_hugepages_cache_margin(params);
    }
    if (params.n_ctx_checkpoints == common_params().n_ctx_checkpoints) {
        // the next message of a conversation needs its checkpoint more than another conversation needs its prompt
        g_margins[COMMON_HUGEPAGES_CACHE_CHECKPOINTS] = common_hugepages_cache_margin(params)/4;
    }
}

uint64_t common_hugepages_cache_missing(common_hugepages_cache cache, uint64_t bytes) {
    const uint64_t margin    = g_margins[cache];
    const uint64_t available = margin == 0 ? 0 : ggml_hugepages_memory_available();
    return available == 0 ? 0 : bytes + margin - std::min(bytes + margin, available);
}

static void limit_prompt_cache(common_params & params) {
    const uint64_t available = ggml_hugepages_memory_available();
    const int32_t  left      = common_hugepages_prompt_cache(params, available);
    if (left != params.cache_ram_mib) {
        LOG_INF("hugepages: the prompt cache may use %d instead of %d MiB, because this process can allocate only %.2f MiB of ordinary memory; --cache-ram with any other value keeps it\n",
            left, params.cache_ram_mib, available/1024.0/1024.0);
        params.cache_ram_mib = left;
    }
}

static bool has_file_backing(const ggml_hugepages_report & report) {
    for (uint32_t i = 0; i < report.n_usages; i++) {
        if (report.usages[i].backing == GGML_HUGEPAGES_BACKING_FILE && report.usages[i].bytes > 0) {
            return true;
        }
    }
    return false;
}

void common_hugepages_ready(common_params & params) {
    ggml_hugepages_report report;
    if (!params.hugepages.enabled) {
        return;
    }
    ggml_hugepages_hold_end(params.hugepages.model_id);
    set_default(params, true);
    bound_caches(params);
    limit_prompt_cache(params);
    if (t_n_ctx != 0) {
        // a server that wakes up keeps the context that its clients know
        params.n_ctx = t_n_ctx;
        t_n_ctx = 0;
    }
    if (!ggml_hugepages_get_report(0, &report)) {
        LOG_WRN("hugepages: cannot read the backing of the memory from /proc/self/smaps\n");
        return;
    }
    if (llama_hugepages_context_exists()) {
        // the warm-up would write to the cells of a conversation, and idle slots would move to memory that ends with the process
        LOG_INF("hugepages: conversations remain in the store, so the warm-up is skipped, and idle slots stay in the KV cache\n");
        params.warmup           = false;
        params.cache_idle_slots = false;
    }
    if (params.warmup && !has_file_backing(report) && !common_hugepages_has_other_devices()) {
        LOG_INF("hugepages: warm-up skipped, all weights are in memory\n");
        params.warmup = false;
    }
    char text[4096];
    ggml_hugepages_report_to_str(&report, text, sizeof(text));
    std::istringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
        LOG_INF("hugepages: %s\n", line.c_str());
    }
    const auto & load = report.load;
    if (load.us_total > 0) {
        const uint64_t bytes = load.bytes_direct + load.bytes_cached + load.bytes_buffered;
        LOG_INF("hugepages: read %.2f MiB in %.2f s (%.2f GB/s), %" PRIu32 " threads: populate %.2f s, read %.2f s, copy and repack %.2f s; "
            "%.2f MiB direct, %.2f MiB from the page cache, %.2f MiB buffered\n",
            bytes/1024.0/1024.0, load.us_total/1e6, bytes/1e3/load.us_total, load.n_threads, load.us_populate/1e6, load.us_read/1e6, load.us_place/1e6,
            load.bytes_direct/1024.0/1024.0, load.bytes_cached/1024.0/1024.0, load.bytes_buffered/1024.0/1024.0);
        if (params.hugepages.store[0]) {
            LOG_INF("hugepages: %.2f MiB were already resident in the store\n", load.bytes_attached/1024.0/1024.0);
        }
    }
}

void common_hugepages_after_load(common_params & params, bool is_loaded) {
    if (is_loaded) {
        common_hugepages_ready(params);
    } else if (params.hugepages.enabled) {
        ggml_hugepages_hold_end(params.hugepages.model_id);
    }
}
