#include "server-hugepages.h"

#include "ggml-cpp.h"
#include "gguf.h"
#include "log.h"
#include "mtmd.h"
#include "server-context.h"
#include "server-models.h"

#include <algorithm>

#include <sstream>

int server_hugepages_run(server_context & ctx_server, common_params & params, bool is_router) {
    if (is_router) {
        SRV_ERR("%s", "--hugepage-plan and --hugepage-load need a model\nhint: add -m FILE or another option that names one model\n");
        common_log_flush(common_log_main());
        return 1;
    }
    return ctx_server.load_model(params) ? 0 : common_hugepages_exit_code();
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
    if (!tensors || on_cpu == usage.end()) {
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
            usages.push_back({
                { "kind",       ggml_hugepages_kind_name(usage.kind) },
                { "backing",    backing_of(usage) },
                { "page_size",  usage.page_size },
                { "bytes",      usage.bytes },
                { "pages",      usage.pages },
                { "node_bytes", node_bytes },
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

    add_head("bytes", "Bytes of tensors that the CPU reads, by kind and backing");
    for (uint32_t i = 0; i < report.n_usages; i++) {
        add_item("bytes", report.usages[i], "", report.usages[i].bytes);
    }
    add_head("pages", "Huge pages under these bytes");
    for (uint32_t i = 0; i < report.n_usages; i++) {
        add_item("pages", report.usages[i], "", report.usages[i].pages);
    }
    add_head("node_bytes", "Resident memory under these bytes on each NUMA node");
    for (uint32_t i = 0; i < report.n_usages; i++) {
        for (uint32_t node = 0; node < report.n_nodes; node++) {
            add_item("node_bytes", report.usages[i], ",node=\"" + std::to_string(node) + "\"", report.usages[i].node_bytes[node]);
        }
    }
    add_head("late_bytes", "Bytes that were allocated after the start on ordinary memory");
    prometheus << "llamacpp:hugepages_late_bytes " << report.late << "\n";
    return prometheus.str();
}
