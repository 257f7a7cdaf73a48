#include "hugepages.h"

#include "common.h"
#include "fit.h"
#include "log.h"

#include <nlohmann/json.hpp>

#include <atomic>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <stdexcept>
#include <vector>

ggml_hugepages_params common_hugepages_params(const common_params & params) {
    auto result = params.hugepages;
    switch (params.numa) {
        case GGML_NUMA_STRATEGY_DISTRIBUTE: result.placement = GGML_HUGEPAGES_PLACEMENT_INTERLEAVE; break;
        case GGML_NUMA_STRATEGY_ISOLATE:    result.placement = GGML_HUGEPAGES_PLACEMENT_LOCAL;      break;
        case GGML_NUMA_STRATEGY_NUMACTL:    result.placement = GGML_HUGEPAGES_PLACEMENT_BIND;       break;
        default:                                                                                    break;
    }
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

static bool has_other_devices() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            return true;
        }
    }
    return false;
}

static void measure(const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params * cparams) {
    auto & hugepages = mparams->hugepages;
    if (model_only || hugepages.load_only) {
        hugepages.kv_bytes      = 0;
        hugepages.compute_bytes = 0;
        return;
    }
    // the fit measures before it moves layers between devices
    if (hugepages.compute_bytes > 0 && !has_other_devices()) {
        return;
    }
    try {
        std::vector<ggml_backend_dev_t> devs;
        uint32_t n_gpu_layers, n_ctx_train, n_expert; // NOLINT
        const auto data = common_get_device_memory_data(params.model.path.c_str(), mparams, cparams, devs, n_gpu_layers, n_ctx_train, n_expert,
            params.verbosity >= LOG_LEVEL_DEBUG ? GGML_LOG_LEVEL_DEBUG : GGML_LOG_LEVEL_ERROR);
        hugepages.kv_bytes      = data.back().context;
        hugepages.compute_bytes = data.back().compute;
    } catch (const std::runtime_error &) {
        // the load will fail in the same way and log the cause
    }
}

int common_hugepages_exit_code() {
    const auto status = ggml_hugepages_get_failure(nullptr);
    return status == GGML_HUGEPAGES_STATUS_SHORT || status == GGML_HUGEPAGES_STATUS_NO_MEMORY ? 3 : 1;
}

// JSON on stdout, for programs
static void print_plan(const common_params & params, const ggml_hugepages_error & error) {
    std::vector<ggml_hugepages_need> needs(ggml_hugepages_get_needs(nullptr, 0));
    ggml_hugepages_get_needs(needs.data(), needs.size());
    auto rows = nlohmann::ordered_json::array();
    for (const auto & need : needs) {
        rows.push_back({
            { "kind",      ggml_hugepages_kind_name(need.kind) },
            { "file",      need.image == -1 ? nlohmann::ordered_json() : nlohmann::ordered_json(need.image) },
            { "page_size", need.page_size },
            { "pages",     need.pages },
            { "bytes",     need.bytes },
        });
    }
    const nlohmann::ordered_json plan = {
        { "schema",  1 },
        { "model",   params.model.path },
        { "size",    common_hugepages_size_name(params.hugepages.page_size) },
        { "fits",    error.status == GGML_HUGEPAGES_STATUS_PLANNED },
        { "message", error.status == GGML_HUGEPAGES_STATUS_PLANNED ? "" : error.message },
        { "hint",    error.hint },
        { "needs",   rows },
    };
    // a path may be no UTF-8
    printf("%s\n", plan.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    fflush(stdout);
}

static void plan_and_exit(const common_params & params, const llama_model_params & mparams) {
    // With plan_only the load always ends with an error. Its log matters only if it fails before the plan.
    std::string log;
    ggml_log_callback before; void * before_data; // NOLINT
    llama_log_get(&before, &before_data);
    llama_log_set([](ggml_log_level level, const char * text, void * data) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            *(std::string *) data += text;
        }
    }, &log);
    llama_model * model = llama_model_load_from_file(params.model.path.c_str(), mparams);
    llama_log_set(before, before_data);
    llama_model_free(model);

    ggml_hugepages_error error;
    if (!ggml_hugepages_get_plan_end(&error)) {
        LOG_ERR("%s", log.c_str());
        common_log_flush(common_log_main());
        std::exit(1);
    }
    if (error.status != GGML_HUGEPAGES_STATUS_PLANNED && common_hugepages_exit_code() != 3) {
        // more pages would not help
        LOG_ERR("%s\n", error.message);
        if (error.hint[0]) {
            LOG_ERR("hint: %s\n", error.hint);
        }
        common_log_flush(common_log_main());
        std::exit(1);
    }
    print_plan(params, error);
    common_log_flush(common_log_main());
    std::exit(error.status == GGML_HUGEPAGES_STATUS_PLANNED ? 0 : common_hugepages_exit_code());
}

// the progress, one JSON object a line
static bool print_progress(float progress, void * user_data) {
    auto & last = *(int *) user_data;
    const int permille = (int) (1000*progress);
    if (permille != last) {
        last = permille;
        printf("{\"done\": %d, \"total\": 1000}\n", permille);
        fflush(stdout);
    }
    return true;
}

static void load_and_exit(const common_params & params, llama_model_params mparams) {
    if (!params.hugepages.store[0]) {
        LOG_ERR("--hugepage-load needs --hugepage-store\n");
        common_log_flush(common_log_main());
        std::exit(1);
    }
    int last = -1;
    // all weights on huge pages, or a failure
    mparams.hugepages.policy            = GGML_HUGEPAGES_POLICY_REQUIRE;
    mparams.progress_callback           = print_progress;
    mparams.progress_callback_user_data = &last;
    llama_model * model = llama_model_load_from_file(params.model.path.c_str(), mparams);
    llama_model_free(model);
    common_log_flush(common_log_main());
    std::exit(model ? 0 : common_hugepages_exit_code());
}

static void set_default(const common_params & params, bool late) {
    const ggml_hugepages_scope scope = { common_hugepages_params(params), GGML_HUGEPAGES_KIND_OTHER, late, /*.lazy =*/ false, /*.resident =*/ nullptr };
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

void common_hugepages_before_load(const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params * cparams) {
    if (mparams->hugepages.enabled && !params.no_alloc) {
        ggml_hugepages_set_failure(nullptr);
        measure(params, model_only, mparams, cparams);
        if (mparams->hugepages.plan_only) {
            plan_and_exit(params, *mparams);
        }
        if (mparams->hugepages.load_only) {
            load_and_exit(params, *mparams);
        }
    }
    common_hugepages_begin(params);
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
    if (!ggml_hugepages_get_report(0, &report)) {
        LOG_WRN("hugepages: cannot read the backing of the memory from /proc/self/smaps\n");
        return;
    }
    if (params.warmup && !has_file_backing(report) && !has_other_devices()) {
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
    }
}
