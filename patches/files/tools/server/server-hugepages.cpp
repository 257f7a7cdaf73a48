#include "server-hugepages.h"
#include "server-hugepages-prompts.h"

#include "ggml-cpp.h"
#include "hugepages-plan.h"
#include "gguf.h"
#include "log.h"
#include "mtmd.h"
#include "../../src/llama-hugepages-context.h"
#include "subproc.h"
#include "server-context.h"
#include "server-models.h"
#include "server-queue.h"
#include "server-task.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <map>
#include <sstream>
#include <system_error>
#include <thread>

#ifdef __GLIBC__
#include <malloc.h>
#endif

// the JSON library of the plan; upstream's own type has less
using plan_json = nlohmann::ordered_json;

// The plan of a model of a router, null if it has none; log: the output of the child
static plan_json plan_child(std::vector<std::string> args, std::string & log) {
    args.push_back("--hugepage-plan");
    common_subproc child;
    plan_json plan = nullptr;
    if (!child.create(args, subprocess_option_no_window | subprocess_option_combined_stdout_stderr | subprocess_option_inherit_environment)) {
        return plan;
    }
    std::string line;
    for (int c; (c = fgetc(child.stdout_file())) != EOF; ) {
        if (c != '\n') {
            line += (char) c;
            continue;
        }
        const plan_json parsed = plan_json::parse(line, nullptr, false);
        if (parsed.is_object() && parsed.contains("needs")) {
            plan = parsed;
        } else {
            log += line + "\n";
        }
        line.clear();
    }
    child.join();
    return plan;
}

static uint64_t bytes_of(const plan_json & plan) {
    uint64_t bytes = 0;
    for (const auto & need : plan["needs"]) {
        bytes += need["pages"].get<uint64_t>()*need["page_size"].get<uint64_t>();
    }
    return bytes;
}

// Ordinary memory of several models and of the router itself. The prompt caches of all models share what is left.
static plan_json memory_of(const common_params & params, const std::vector<plan_json> & plans) {
    const auto own = ggml_hugepages_planned_memory();
    uint64_t process   = own.process;
    uint64_t buffers   = 0;
    uint64_t cache     = 0;
    bool     has_limit = true;
    for (const auto & plan : plans) {
        const auto & memory = plan["memory"];
        process  += memory["process"].get<uint64_t>();
        buffers  += memory["buffers"].get<uint64_t>();
        has_limit = has_limit && !memory["prompt_cache"].is_null();
        cache    += has_limit ? memory["prompt_cache"].get<uint64_t>() : 0;
    }
    if (own.available > 0) {
        const uint64_t taken = process + buffers + common_hugepages_cache_margin(params);
        cache = std::min(cache, own.available - std::min(own.available, taken));
    }
    return {
        { "process",      process },
        { "buffers",      buffers },
        { "prompt_cache", has_limit ? plan_json(cache) : plan_json() },
        { "available",    own.available },
    };
}

// Whether the pools hold the pages of several models.
static bool fit_together(const std::vector<plan_json> & plans, ggml_hugepages_params params, ggml_hugepages_error & error) {
    std::map<size_t, uint64_t> pages;
    for (const auto & plan : plans) {
        for (const auto & need : plan["needs"]) {
            pages[need["page_size"].get<size_t>()] += need["pages"].get<uint64_t>();
        }
    }
    params.plan_only = true;
    for (const auto & [page_size, n] : pages) {
        const ggml_hugepages_demand demand = { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, n*page_size, nullptr };
        params.page_size = params.page_size == GGML_HUGEPAGES_SIZE_THP ? params.page_size : page_size;
        if (page_size > 0) {
            ggml_hugepages_plan(nullptr, 0, &demand, 1, &params, &error);
        }
        if (page_size > 0 && error.status != GGML_HUGEPAGES_STATUS_PLANNED) {
            return false;
        }
    }
    return true;
}

// One row for each model, and the needs of the models that together need most of those that the router may load at once.
static int plan_router(const common_params & params, int argc, char ** argv) {
    server_models models(params, argc, argv);
    plan_json rows = plan_json::array();
    std::vector<plan_json> plans;
    for (const auto & meta : models.get_all_meta()) {
        std::string log;
        plan_json plan = meta.hidden ? nullptr : plan_child(meta.args, log);
        if (!plan.is_null()) {
            rows.push_back({ { "name", meta.name }, { "bytes", bytes_of(plan) }, { "fits", plan["fits"] }, { "message", plan["message"] } });
            plans.push_back(plan);
        } else if (!meta.hidden) {
            rows.push_back({ { "name", meta.name }, { "bytes", nullptr }, { "fits", false }, { "message", log } });
        }
    }
    if (plans.empty()) {
        return 1;
    }
    std::stable_sort(plans.begin(), plans.end(), [](const plan_json & a, const plan_json & b) { return bytes_of(a) > bytes_of(b); });
    if (params.models_max > 0 && plans.size() > (size_t) params.models_max) {
        plans.resize(params.models_max);
    }
    plan_json needs   = plan_json::array();
    plan_json workers = plan_json::array();
    for (const auto & plan : plans) {
        needs  .insert(needs.end(),   plan["needs"].begin(),   plan["needs"].end());
        workers.insert(workers.end(), plan["workers"].begin(), plan["workers"].end());
    }
    ggml_hugepages_error error = {};
    const bool fits = fit_together(plans, params.hugepages, error);
    std::string message = fits ? "" : error.message;
    const size_t at = message.find("needs ");
    if (at != std::string::npos) {
        message = "the " + std::to_string(plans.size()) + " largest models together need " + message.substr(at + strlen("needs "));
    }
    const plan_json result = {
        { "schema",  1 },
        { "model",   params.models_dir },
        { "size",    common_hugepages_size_name(params.hugepages.page_size) },
        { "fits",    fits },
        { "message", message },
        { "hint",    fits ? "" : error.hint },
        { "context", nullptr },
        { "memory",  memory_of(params, plans) },
        { "needs",   needs },
        { "workers", workers },
        { "router",  rows },
    };
    // a path may be no UTF-8
    printf("%s\n", result.dump(-1, ' ', false, plan_json::error_handler_t::replace).c_str());
    fflush(stdout);
    return fits ? 0 : 3;
}

int server_hugepages_run(server_context & ctx_server, common_params & params, bool is_router, int argc, char ** argv) {
    int code = 1;
    std::error_code none;
    if (!is_router && std::filesystem::is_fifo(params.model.path, none)) {
        SRV_ERR("'%s' is no regular file\n", params.model.path.c_str()); // a pipe would wait for its writer
        return code;
    }
    if (!is_router) {
        return ctx_server.load_model(params) ? 0 : common_hugepages_exit_code();
    } else if (params.hugepages.plan_only) {
        code = plan_router(params, argc, argv);
    }
    if (code == 1) {
        SRV_ERR("%s", "--hugepage-plan and --hugepage-load need a model\nhint: add -m FILE or another option that names one model\n");
    }
    common_log_flush(common_log_main());
    return code;
}

void server_hugepages_plan_projector(const common_params & params, const mtmd_context_params & projector_params) {
    const std::string & path = params.mmproj.path;
    if (!params.hugepages.enabled || path.empty()) {
        return;
    }
    ggml_context * tensors = nullptr;
    const gguf_context_ptr file(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ &tensors }));
    const ggml_context_ptr owned(tensors);
    const auto usage = mtmd_get_memory_usage(path.c_str(), projector_params);
    const auto on_cpu = usage.find(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
    if (!tensors || usage.empty()) {
        common_hugepages_also_plan(path, {});
        return;
    }
    if (on_cpu == usage.end()) {
        return;
    }
    // one buffer for the weights, and one for the computation; upstream only knows their sum
    size_t weights = 0;
    for (auto * cur = ggml_get_first_tensor(tensors); cur; cur = ggml_get_next_tensor(tensors, cur)) {
        weights += ggml_nbytes(cur);
    }
    weights = std::min(weights, on_cpu->second);
    common_hugepages_also_plan(path, { weights, on_cpu->second - weights });
}

//
// lost workers
//

struct lost_worker : server_task_result_error {
    server_task_result * clone() const override { return new lost_worker(*this); }
};

static server_response * g_results = nullptr;

// Runs in the thread that talks to the worker. The thread that computes waits for it, so no slot changes.
static void on_abort(const char * message) {
    fprintf(stderr, "%s\n", message);
    if (!strstr(message, "the RPC server ")) {
        return; // abort() follows
    }
    common_log_flush(common_log_main());
    lost_worker result;
    result.err_type = ERROR_TYPE_UNAVAILABLE;
    result.err_msg  = std::string(strstr(message, "the RPC server ")) + ", so this server ends";
    // the threads of the clients need time to send it, and may add clients until then
    for (int i = 0; i < 10; i++) {
        g_results->broadcast(server_task_result_ptr(result.clone()));
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    std::_Exit(1);
}

void server_hugepages_watch_workers(const common_params & params, server_response & results) {
    if (params.hugepages.enabled && common_hugepages_has_workers()) {
        g_results = &results;
        ggml_set_abort_callback(on_abort);
    }
}

// the cause and the hint of the last failed load of this thread, empty if none is known
static std::string failure() {
    ggml_hugepages_error error = {};
    if (ggml_hugepages_get_failure(&error) == GGML_HUGEPAGES_STATUS_OK) {
        return "";
    }
    return std::string(error.message) + (error.hint[0] ? "\nhint: " + std::string(error.hint) : "");
}

void server_hugepages_stay_asleep(const common_params & params) {
    if (!params.hugepages.enabled) {
        return;
    }
    ggml_hugepages_hold_end(params.hugepages.model_id); // what was kept for the rest of the load
    const std::string cause = failure();
    const std::string message = "the model cannot be loaded again" + (cause.empty() ? "" : ": " + cause);
    SRV_ERR("%s\n", message.c_str());
    throw server_hugepages_unavailable(message);
}

// key of the cause in the progress of a child
static const char * const FAILURE = "hugepages";

void server_hugepages_tell_router(server_child & child) {
    if (child.is_child() && common_hugepages_exit_code() != 1) {
        child.notify_to_router(server_state_to_str(SERVER_STATE_LOADING), { { FAILURE, failure() } });
    }
}

void server_hugepages_add_failure(json & status, const json & progress) {
    if (progress.is_object() && progress.contains(FAILURE)) {
        status["message"] = progress[FAILURE];
    }
}

void server_hugepages_throw_failure(const json & progress) {
    if (progress.is_object() && progress.contains(FAILURE)) {
        throw server_hugepages_unavailable("the model cannot be loaded: " + progress[FAILURE].get<std::string>());
    }
}

// An unused block of the C library is no memory for the next entry of another process.
static void return_free_memory() {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

template <typename Entry> static bool make_room(common_hugepages_cache cache, const char * what, std::list<Entry> & entries, size_t size) {
    uint64_t missing = common_hugepages_cache_missing(cache, size);
    if (missing == 0) {
        return true;
    }
    uint64_t kept = 0;
    for (const auto & entry : entries) {
        kept += entry.size();
    }
    // an entry that is too large for all that is there replaces nothing
    const bool   fits   = missing <= kept;
    const size_t wanted = fits ? size : 0;
    while (!entries.empty() && (missing = common_hugepages_cache_missing(cache, wanted)) > 0) {
        SRV_WRN("hugepages: the oldest %s of %.2f MiB is dropped, because %.2f MiB of ordinary memory are missing\n", what, entries.front().size()/1024.0/1024.0, missing/1024.0/1024.0);
        entries.pop_front();
        return_free_memory();
    }
    missing = common_hugepages_cache_missing(cache, size);
    if (!fits || missing > 0) {
        SRV_WRN("hugepages: a %s of %.2f MiB is not kept, because %.2f MiB of ordinary memory are missing\n", what, size/1024.0/1024.0, missing/1024.0/1024.0);
        return false;
    }
    return true;
}

bool server_hugepages_make_room(std::list<server_prompt_cache_state> & prompts, size_t size, const std::list<common_prompt_checkpoint> & checkpoints) {
    return server_hugepages_prompt_prepare(size, checkpoints.size()) || make_room(COMMON_HUGEPAGES_CACHE_PROMPTS, "saved prompt", prompts, size);
}

bool server_hugepages_make_room(std::list<common_prompt_checkpoint> & checkpoints) {
    return make_room(COMMON_HUGEPAGES_CACHE_CHECKPOINTS, "checkpoint", checkpoints, checkpoints.empty() ? 0 : checkpoints.back().size());
}

static std::string backing_of(const ggml_hugepages_usage & usage) {
    char buf[32];
    ggml_hugepages_backing_to_str(usage.backing, usage.page_size, buf, sizeof(buf));
    return buf;
}

json server_hugepages_props(const common_params & params) {
    if (!params.hugepages.enabled) {
        return nullptr;
    }
    ggml_hugepages_report report;
    json usages = nullptr; // unknown; an empty list would mean that no memory is in use
    if (ggml_hugepages_get_report(0, &report)) {
        usages = json::array();
        for (uint32_t i = 0; i < report.n_usages; i++) {
            const auto & usage = report.usages[i];
            json node_bytes = json::array();
            for (uint32_t node = 0; node < report.n_nodes; node++) {
                node_bytes.push_back(usage.node_bytes[node]);
            }
            const bool is_dealt = usage.local_bytes + usage.remote_bytes > 0;
            usages.push_back({
                { "kind",       ggml_hugepages_kind_name(usage.kind) },
                { "backing",    backing_of(usage) },
                { "page_size",  usage.page_size },
                { "bytes",      usage.bytes },
                { "pages",      usage.pages },
                { "node_bytes", node_bytes },
                // null: not placed by rows, or not reported by the kernel
                { "local_bytes",  is_dealt ? json(usage.local_bytes)  : json(nullptr) },
                { "remote_bytes", is_dealt ? json(usage.remote_bytes) : json(nullptr) },
            });
        }
    }
    const auto & load = report.load;
    return json {
        { "policy",     ggml_hugepages_policy_name(params.hugepages.policy) },
        { "page_size",  common_hugepages_size_name(params.hugepages.page_size) },
        { "usages",     usages },
        { "late_bytes", report.late },
        { "load",       json {
            { "bytes_direct",   load.bytes_direct },
            { "bytes_cached",   load.bytes_cached },
            { "bytes_buffered", load.bytes_buffered },
            { "us_total",       load.us_total },
            { "us_populate",    load.us_populate },
            { "us_read",        load.us_read },
            { "us_place",       load.us_place },
            { "bytes_attached", load.bytes_attached },
            { "n_threads",      load.n_threads },
        } },
    };
}

std::string server_hugepages_metrics(const common_params & params) {
    if (!params.hugepages.enabled) {
        return "";
    }
    ggml_hugepages_report report;
    if (!ggml_hugepages_get_report(0, &report)) {
        report.n_usages = 0;
    }
    std::ostringstream prometheus;
    auto add_head = [&](const char * name, const char * description) {
        prometheus << "# HELP llamacpp:hugepages_" << name << " " << description << "\n"
                   << "# TYPE llamacpp:hugepages_" << name << " gauge\n";
    };
    // integers: a double is written with six digits, and bytes have more
    auto add_item = [&](const char * name, const ggml_hugepages_usage & usage, const std::string & more, uint64_t value) {
        prometheus << "llamacpp:hugepages_" << name << "{kind=\"" << ggml_hugepages_kind_name(usage.kind)
                   << "\",backing=\"" << backing_of(usage) << "\"" << more << "} " << value << "\n";
    };

    auto add_all = [&](const char * name, const char * description, uint64_t ggml_hugepages_usage::* value) {
        add_head(name, description);
        for (uint32_t i = 0; i < report.n_usages; i++) {
            add_item(name, report.usages[i], "", report.usages[i].*value);
        }
    };

    add_all("bytes", "Bytes of tensors that the CPU reads, by kind and backing", &ggml_hugepages_usage::bytes);
    add_all("pages", "Huge pages under these bytes", &ggml_hugepages_usage::pages);
    add_head("node_bytes", "Resident memory under these bytes on each NUMA node");
    for (uint32_t i = 0; i < report.n_usages; i++) {
        for (uint32_t node = 0; node < report.n_nodes; node++) {
            add_item("node_bytes", report.usages[i], ",node=\"" + std::to_string(node) + "\"", report.usages[i].node_bytes[node]);
        }
    }
    add_all("local_bytes", "Bytes of weight matrices on the NUMA node of the threads that read them", &ggml_hugepages_usage::local_bytes);
    add_all("remote_bytes", "Bytes of weight matrices on other NUMA nodes", &ggml_hugepages_usage::remote_bytes);
    add_head("late_bytes", "Bytes that were allocated after the start on ordinary memory");
    prometheus << "llamacpp:hugepages_late_bytes " << report.late << "\n";
    return prometheus.str();
}

void server_hugepages_continue(const llama_context * ctx, int id_slot, server_prompt & prompt, int n_checkpoints) {
    const auto kept = llama_hugepages_context_tokens(ctx, id_slot);
    if (!kept.empty()) {
        prompt.tokens.insert(kept);
    }
    server_hugepages_checkpoints_begin(ctx, id_slot, prompt);
    while (prompt.checkpoints.size() > (size_t) std::max(n_checkpoints, 0)) {
        prompt.checkpoints.pop_front();
    }
    if (!kept.empty()) {
        SRV_INF("hugepages: slot %d continues with %zu tokens and %zu checkpoints from the store\n", id_slot, kept.size(), prompt.checkpoints.size());
    }
}

bool server_hugepages_has_window(const llama_context * ctx, int n_swa, llama_pos pos_min) {
    return n_swa > 0 && pos_min == 0 && common_hugepages_keeps(ctx);
}

void server_hugepages_keep(llama_context * ctx, int id_slot, const server_tokens & tokens) {
    server_hugepages_checkpoints_changed();
    const int64_t n_kept = llama_hugepages_context_length(ctx, id_slot);
    if (n_kept < 0 || (size_t) n_kept > tokens.size()) {
        return;
    }
    std::vector<llama_token> more;
    for (size_t i = n_kept; i < tokens.size() && tokens[i] != LLAMA_TOKEN_NULL; i++) {
        more.push_back(tokens[i]);
    }
    llama_hugepages_context_append(ctx, id_slot, more);
}
