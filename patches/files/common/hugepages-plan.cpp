#include "hugepages-plan.h"

#include "common.h"
#include "fit.h"
#include "hugepages.h"
#include "log.h"
#include "speculative.h"

#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "gguf.h"
#include "llama-cpp.h"
#include "../src/llama-hugepages-context.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <utility>

common_hugepages_errors::common_hugepages_errors(bool is_only) : is_only(is_only) {
    llama_log_get(&before, &before_data);
    llama_log_set([](ggml_log_level level, const char * text, void * data) {
        auto & self = *(common_hugepages_errors *) data;
        self.is_error = level == GGML_LOG_LEVEL_CONT ? self.is_error : level == GGML_LOG_LEVEL_ERROR;
        if (self.is_error) {
            self.text += text;
        } else if (!self.is_only && self.before) {
            self.before(level, text, self.before_data);
        }
    }, this);
}

common_hugepages_errors::~common_hugepages_errors() {
    llama_log_set(before, before_data);
}

//
// sizes of KV cache and compute buffers
//

// the last context that was created without its memory
static thread_local llama_hugepages_layout t_layout;

// what the memory fit measured
static thread_local struct { uint32_t n_ctx; uint64_t kv_bytes; uint64_t compute_bytes; llama_hugepages_layout layout; } t_measured = {};

void common_hugepages_measured_context(const llama_context * ctx) {
    t_layout = llama_hugepages_layout_of(ctx);
}

void common_hugepages_measured(const llama_context_params & cparams, uint64_t kv_bytes, uint64_t compute_bytes) {
    t_measured = { cparams.n_ctx, kv_bytes, compute_bytes, t_layout };
}

bool common_hugepages_keeps(const llama_context * ctx) {
    return llama_hugepages_context_length(ctx, 0) >= 0;
}

static bool has_speculation(const common_params & params) {
    const auto & types = params.speculative.types;
    return std::any_of(types.begin(), types.end(), [](const auto type) { return type != COMMON_SPECULATIVE_TYPE_NONE; });
}

std::string common_hugepages_why_no_context(const common_params & params, const ggml_hugepages_params & hugepages) {
    if (!params.hugepages.keep_context || hugepages.context_bytes > 0) {
        return "";
    }
    if (!params.hugepages.store[0]) {
        return "--hugepage-keep-context needs --hugepage-store";
    }
    if (params.hugepages.page_size == GGML_HUGEPAGES_SIZE_THP) {
        return "transparent huge pages end with the process";
    }
    if (common_hugepages_has_other_devices()) {
        return "a GPU may hold a part of the KV cache";
    }
    if (params.speculative.has_dft() || has_speculation(params)) {
        return "speculative decoding has a second context";
    }
    if (!params.mmproj.path.empty()) {
        return "conversations may contain images";
    }
    if (!params.lora_adapters.empty() || !params.control_vectors.empty()) {
        return "adapters and control vectors change the KV cache";
    }
    if (!params.kv_overrides.empty()) {
        return "--override-kv changes the KV cache";
    }
    if (params.embedding) {
        return "a server for embeddings has no conversations";
    }
    return t_layout.why_not;
}

static void set_context(const common_params & params, ggml_hugepages_params & hugepages, const llama_hugepages_layout & layout) {
    t_layout = layout;
    hugepages.context_bytes = 0;
    if (hugepages.keep_context && hugepages.kv_bytes > 0 && common_hugepages_why_no_context(params, hugepages).empty()) {
        hugepages.context_bytes = layout.journal_bytes;
        hugepages.context_key   = layout.key;
    }
}

bool common_hugepages_has_other_devices() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const auto type = ggml_backend_dev_type(ggml_backend_dev_get(i));
        if (type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU) {
            return true;
        }
    }
    return false;
}

static bool is_worker(ggml_backend_dev_t dev) {
    return strcmp(ggml_backend_reg_name(ggml_backend_dev_backend_reg(dev)), "RPC") == 0;
}

bool common_hugepages_has_workers() {
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        if (is_worker(ggml_backend_dev_get(i))) {
            return true;
        }
    }
    return false;
}

// what the last measured context leaves to workers
static thread_local std::vector<common_hugepages_worker_need> t_workers;

static void add_worker(const std::string & model, ggml_backend_dev_t dev, const common_device_memory_data & data) {
    const std::pair<ggml_hugepages_kind, size_t> kinds[] = {
        { GGML_HUGEPAGES_KIND_WEIGHTS, data.model   },
        { GGML_HUGEPAGES_KIND_KV,      data.context },
        { GGML_HUGEPAGES_KIND_COMPUTE, data.compute },
    };
    for (const auto & [kind, bytes] : kinds) {
        if (bytes > 0) {
            t_workers.push_back({ model, ggml_backend_dev_description(dev), ggml_backend_dev_name(dev), kind, bytes });
        }
    }
}

// Returns the context of the model, 0 if llama.cpp refuses the model or the context. why: gets the errors of its log then
static uint32_t measure(const common_params & params, llama_model_params * mparams, const llama_context_params & cparams, std::string * why = nullptr) {
    common_hugepages_errors errors(false);
    t_workers.clear();
    try {
        std::vector<ggml_backend_dev_t> devs;
        uint32_t n_gpu_layers, n_ctx_train, n_expert; // NOLINT
        const auto data = common_get_device_memory_data(params.model.path.c_str(), mparams, &cparams, devs, n_gpu_layers, n_ctx_train, n_expert,
            params.verbosity >= LOG_LEVEL_DEBUG ? GGML_LOG_LEVEL_DEBUG : GGML_LOG_LEVEL_ERROR);
        mparams->hugepages.kv_bytes      = data.back().context;
        mparams->hugepages.compute_bytes = data.back().compute;
        for (size_t i = 0; i < devs.size(); i++) {
            if (is_worker(devs[i])) {
                add_worker(params.model.path, devs[i], data[i]);
            }
        }
        return n_ctx_train;
    } catch (const std::runtime_error &) {
        if (why) {
            *why = errors.text.empty() ? "error: llama.cpp refuses a context of '" + params.model.path + "'\n" : errors.text;
        }
        return 0;
    }
}

uint32_t common_hugepages_measure(
        const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params & cparams, std::string * why) {
    auto & hugepages = mparams->hugepages;
    if (model_only || hugepages.load_only) {
        hugepages.kv_bytes      = 0;
        hugepages.compute_bytes = 0;
        hugepages.context_bytes = 0;
        return cparams.n_ctx;
    }
    // the fit measures before it moves layers between devices
    if (cparams.n_ctx != 0 && t_measured.n_ctx == cparams.n_ctx && !common_hugepages_has_other_devices()) {
        hugepages.kv_bytes      = t_measured.kv_bytes;
        hugepages.compute_bytes = t_measured.compute_bytes;
        set_context(params, hugepages, t_measured.layout);
        return cparams.n_ctx;
    }
    const uint32_t n_ctx_train = measure(params, mparams, cparams, why);
    set_context(params, hugepages, t_layout);
    return cparams.n_ctx == 0 ? n_ctx_train : cparams.n_ctx;
}

//
// parts
//

static std::vector<std::pair<std::string, std::vector<uint64_t>>> g_also;

void common_hugepages_plan_forget() {
    g_also.clear();
    t_measured = {};
}

void common_hugepages_also_plan(const std::string & path, const std::vector<uint64_t> & buffers) {
    g_also.emplace_back(path, buffers);
}

static bool has_mtp(const common_params & params) {
    const auto & types = params.speculative.types;
    return std::find(types.begin(), types.end(), COMMON_SPECULATIVE_TYPE_DRAFT_MTP) != types.end();
}

static void note(common_hugepages_plan & plan, const ggml_hugepages_error & error) {
    // more pages help against a shortage only, so any other error stays
    const bool is_final = plan.is_planned() && !plan.fits() && plan.error.status != GGML_HUGEPAGES_STATUS_SHORT;
    if (!is_final && (error.status != GGML_HUGEPAGES_STATUS_PLANNED || !plan.is_planned())) {
        plan.error = error;
    }
}

// The load will fail too, and log the cause.
static void no_plan(common_hugepages_plan & plan, const std::string & path, const char * why) {
    plan.log += "error loading model: '" + path + "' " + why + "\n";
}

static void add_buffers(common_hugepages_plan & plan, const std::string & path, const std::vector<ggml_hugepages_demand> & demands, ggml_hugepages_params params) {
    ggml_hugepages_error error = {};
    params.plan_only = true;
    // one after the other, because a buffer may use what the page of the one before has left
    for (const auto & demand : demands) {
        ggml_hugepages_plan(nullptr, 0, &demand, 1, &params, &error);
        plan.files.push_back(path);
        note(plan, error);
    }
}

// False if the model cannot be loaded for another reason than pages.
static bool add_model(common_hugepages_plan & plan, const std::string & path, llama_model_params mparams) {
    // with plan_only the load always ends with an error, and its log matters only if no plan was made
    common_hugepages_errors errors(true);
    mparams.hugepages.plan_only = true;
    ggml_hugepages_set_failure(nullptr);
    llama_model_free(llama_model_load_from_file(path.c_str(), mparams));

    ggml_hugepages_error error = {};
    if (ggml_hugepages_get_failure(&error) == GGML_HUGEPAGES_STATUS_OK) {
        plan.error = {};
        plan.log   = errors.text;
        return false;
    }
    ggml_hugepages_set_failure(nullptr);
    plan.files.push_back(path);
    note(plan, error);
    return true;
}

// A LoRA adapter has one buffer for each device of its layers. With other devices this is more than the CPU needs.
static void add_adapter(common_hugepages_plan & plan, const std::string & path, const ggml_hugepages_params & params) {
    ggml_context * tensors = nullptr;
    const gguf_context_ptr file(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ &tensors }));
    const ggml_context_ptr owned(tensors);
    const int64_t key = file ? gguf_find_key(file.get(), "adapter.type") : -1;
    if (key < 0 || !tensors) {
        no_plan(plan, path, "is no LoRA adapter");
        return;
    }
    const uint64_t size = ggml_backend_alloc_ctx_tensors_from_buft_size(tensors, ggml_backend_cpu_buffer_type());
    add_buffers(plan, path, { { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, size, nullptr, nullptr, 0 } }, params);
}

static bool is_control_vector(const std::string & path) {
    const gguf_context_ptr file(gguf_init_from_file(path.c_str(), { /*.no_alloc =*/ true, /*.ctx =*/ nullptr }));
    bool is_one = file && gguf_get_n_tensors(file.get()) > 0;
    for (int64_t i = 0; is_one && i < gguf_get_n_tensors(file.get()); i++) {
        is_one = string_starts_with(gguf_get_tensor_name(file.get(), i), "direction.");
    }
    return is_one;
}

// All control vectors share one tensor for each layer but the first. With other devices this is more than the CPU needs.
static void add_control_vectors(common_hugepages_plan & plan, const common_params & params, llama_model_params mparams) {
    for (const auto & vector : params.control_vectors) {
        if (!is_control_vector(vector.fname)) {
            no_plan(plan, vector.fname, "is no control vector");
            return;
        }
    }
    mparams.no_alloc  = true;
    mparams.load_mode = LLAMA_LOAD_MODE_NONE;
    common_hugepages_errors errors(true);
    const llama_model_ptr model(llama_model_load_from_file(params.model.path.c_str(), mparams));
    if (!model) {
        return; // its own plan says why
    }
    const int n_tensors = llama_model_n_layer(model.get()) - 1;
    const ggml_context_ptr tensors(ggml_init({ /*.mem_size =*/ (n_tensors + 1)*ggml_tensor_overhead(), /*.mem_buffer =*/ nullptr, /*.no_alloc =*/ true }));
    for (int i = 0; i < n_tensors; i++) {
        ggml_new_tensor_1d(tensors.get(), GGML_TYPE_F32, llama_model_n_embd(model.get()));
    }
    const uint64_t size = ggml_backend_alloc_ctx_tensors_from_buft_size(tensors.get(), ggml_backend_cpu_buffer_type());
    add_buffers(plan, params.control_vectors.front().fname, { { GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, size, nullptr } }, mparams.hugepages);
}

// The draft model, or the MTP context, which uses the weights of the model.
static bool add_draft(common_hugepages_plan & plan, const common_params & params, uint32_t n_ctx, bool evict) {
    const bool has_draft = params.speculative.has_dft();
    if (!has_draft && !has_mtp(params)) {
        return true;
    }
    common_params draft = common_base_params_to_speculative(params);
    auto mparams = common_model_params_to_llama(draft);
    auto cparams = common_context_params_to_llama(draft);
    if (has_mtp(params)) {
        cparams.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    }
    cparams.n_rs_seq = 0;
    cparams.n_ctx    = n_ctx;
    mparams.hugepages.evict = evict;
    if (!mparams.hugepages.load_only) {
        measure(draft, &mparams, cparams, &plan.log);
        for (const auto & need : std::exchange(t_workers, {})) {
            if (has_draft || need.kind != GGML_HUGEPAGES_KIND_WEIGHTS) {
                plan.workers.push_back(need);
            }
        }
    }
    if (has_draft) {
        return add_model(plan, draft.model.path, mparams);
    }
    add_buffers(plan, draft.model.path, {
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      mparams.hugepages.kv_bytes,      nullptr, nullptr, 0 },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, mparams.hugepages.compute_bytes, nullptr, nullptr, 0 },
    }, mparams.hugepages);
    return true;
}

uint64_t common_hugepages_plan::bytes() const {
    uint64_t sum = 0;
    for (const auto & need : needs) {
        sum += need.pages*need.page_size;
    }
    return sum;
}

static common_hugepages_plan plan_parts(
        const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params & cparams, bool by_counts) {
    const auto & hugepages = mparams->hugepages;
    common_hugepages_plan plan;
    std::string why;
    const uint32_t n_ctx = common_hugepages_measure(params, model_only, mparams, cparams, &why);
    plan.workers = std::exchange(t_workers, {});
    ggml_hugepages_plan_together(true, by_counts);
    if (add_model(plan, params.model.path, *mparams) && !model_only && add_draft(plan, params, n_ctx, hugepages.evict) && !hugepages.load_only) {
        for (const auto & adapter : params.lora_adapters) {
            add_adapter(plan, adapter.path, hugepages);
        }
        if (!params.control_vectors.empty()) {
            add_control_vectors(plan, params, *mparams);
        }
        for (const auto & [path, buffers] : g_also) {
            if (buffers.empty()) {
                no_plan(plan, path, "is no projector");
            }
            std::vector<ggml_hugepages_demand> demands;
            for (const uint64_t size : buffers) {
                demands.push_back({ GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_RANK_LAYERS, size, nullptr, nullptr, 0 });
            }
            add_buffers(plan, path, demands, hugepages);
        }
    }
    // the model alone can be loaded
    if (plan.is_planned()) {
        plan.log += why;
    }
    if (!plan.log.empty()) {
        plan.error = {};
    }
    plan.needs.resize(ggml_hugepages_get_needs(nullptr, 0));
    ggml_hugepages_get_needs(plan.needs.data(), plan.needs.size());
    plan.memory = ggml_hugepages_planned_memory();
    ggml_hugepages_plan_together(false, false);
    return plan;
}

//
// the context
//

bool common_hugepages_may_choose_context(const common_params & params, bool model_only, const llama_model_params & mparams) {
    const auto & hugepages = mparams.hugepages;
    return params.fit_params && params.n_ctx == 0 && !model_only && !hugepages.load_only && hugepages.policy == GGML_HUGEPAGES_POLICY_REQUIRE &&
        hugepages.page_size != GGML_HUGEPAGES_SIZE_THP && !common_hugepages_has_other_devices();
}

bool common_hugepages_is_plan_needed(const common_params & params, bool model_only, const llama_model_params & mparams) {
    const auto & hugepages = mparams.hugepages;
    const bool has_others = !model_only && (!params.lora_adapters.empty() || !params.control_vectors.empty() || !g_also.empty() ||
        params.speculative.has_dft() || has_mtp(params));
    const bool accepts_less = hugepages.policy == GGML_HUGEPAGES_POLICY_PREFER && !hugepages.load_only;
    return hugepages.plan_only || (has_others && !accepts_less);
}

static bool g_grow = false;

void common_hugepages_plan_grow() {
    g_grow = true;
}

// What the machine could add to its pools: a quarter of its memory stays for everything else.
static uint64_t addable_bytes() {
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &free, &total);
    const uint64_t available = ggml_hugepages_memory_available();
    return available - std::min<uint64_t>(available, total/4);
}

// Plans the longest context that fits, and sets it in cparams and its sizes in mparams. Without such a context: the shortest.
static common_hugepages_plan plan_shorter_context(
        const common_params & params, const common_hugepages_plan & full, llama_model_params * mparams, llama_context_params * cparams) {
    auto & hugepages = mparams->hugepages;
    const uint64_t n_streams = cparams->kv_unified ? 1 : std::max<uint32_t>(1, cparams->n_seq_max);
    const uint64_t align     = 256*n_streams;
    const uint64_t n_full    = cparams->n_ctx;
    const uint64_t n_least   = std::min(n_full, ((uint32_t) params.fit_params_min_ctx*n_streams + align - 1)/align*align);
    const auto plan_for = [&](uint64_t n_ctx, bool by_counts) {
        cparams->n_ctx = n_ctx;
        auto plan = plan_parts(params, false, mparams, *cparams, by_counts);
        plan.n_ctx      = n_ctx;
        plan.n_ctx_full = n_full;
        plan.bytes_full = full.bytes();
        return plan;
    };
    const auto   & error   = full.error;
    const uint64_t missing = (error.needed - std::min(error.needed, error.usable))*error.page_size;
    const uint64_t usable  = full.bytes() - std::min(full.bytes(), missing);
    const uint64_t budget  = usable + addable_bytes();
    const auto is_good = [&](const common_hugepages_plan & plan) { return g_grow ? plan.bytes() <= budget : plan.fits(); };

    auto least = plan_for(n_least, true);
    if (!is_good(least) && !g_grow && params.hugepages.evict) {
        // idle images make room for a model, but not for a longer context
        hugepages.evict = true;
    }
    if (!is_good(least)) {
        return plan_for(n_least, false);
    }
    // The need grows with the context, nearly in a line.
    const uint64_t limit = std::min(std::max(g_grow ? budget : usable, least.bytes()), full.bytes());
    const double   share = full.bytes() > least.bytes() ? (double) (limit - least.bytes())/(full.bytes() - least.bytes()) : 0.0;
    const uint64_t guess = n_least + (uint64_t) (share*(n_full - n_least))/align*align;
    const uint64_t none  = n_full + align; // no context is known to be too long
    uint64_t good = n_least;
    uint64_t bad  = none;
    uint64_t step = align;
    uint64_t next = std::max(n_least + align, guess) - align;
    while (good < n_full && bad - good > align) {
        if (next > good && is_good(plan_for(next, true))) {
            good = next;
        } else if (next > good) {
            bad = next;
        }
        // first up in growing steps, then half of the way
        next = std::min(n_full, good + (bad == none ? step : std::max(align, (bad - good)/2/align*align)));
        step *= 2;
    }
    return plan_for(good, false);
}

common_hugepages_plan common_hugepages_plan_all(
        const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams) {
    auto plan = plan_parts(params, model_only, mparams, *cparams, false);
    if (plan.error.status == GGML_HUGEPAGES_STATUS_SHORT && common_hugepages_may_choose_context(params, model_only, *mparams)) {
        plan = plan_shorter_context(params, plan, mparams, cparams);
    }
    return plan;
}

void common_hugepages_print(const common_hugepages_plan & plan, const common_params & params) {
    auto rows = nlohmann::ordered_json::array();
    for (const auto & need : plan.needs) {
        rows.push_back({
            { "model",     plan.files.at(need.plan) },
            { "kind",      ggml_hugepages_kind_name(need.kind) },
            { "file",      need.image == -1 ? nlohmann::ordered_json() : nlohmann::ordered_json(need.image) },
            { "page_size", need.page_size },
            { "pages",     need.pages },
            { "bytes",     need.bytes },
        });
        // only for weights that are placed by rows
        if (need.local_bytes + need.remote_bytes > 0) {
            auto & row = rows.back();
            row["node_pages"]   = std::vector<uint64_t>(std::begin(need.node_pages), std::end(need.node_pages));
            row["local_bytes"]  = need.local_bytes;
            row["remote_bytes"] = need.remote_bytes;
        }
    }
    auto workers = nlohmann::ordered_json::array();
    for (const auto & need : plan.workers) {
        workers.push_back({
            { "model",     need.model },
            { "worker",    need.worker },
            { "device",    need.device },
            { "kind",      ggml_hugepages_kind_name(need.kind) },
            { "page_size", GGML_HUGEPAGES_WORKER_PAGE },
            { "pages",     GGML_PAD(need.bytes, GGML_HUGEPAGES_WORKER_PAGE)/GGML_HUGEPAGES_WORKER_PAGE },
            { "bytes",     need.bytes },
        });
    }
    nlohmann::ordered_json context;
    if (plan.n_ctx != 0) {
        context = { { "tokens", plan.n_ctx }, { "full_tokens", plan.n_ctx_full }, { "full_bytes", plan.bytes_full } };
    }
    const auto   & memory    = plan.memory;
    const int32_t  cache_mib = common_hugepages_prompt_cache(params, memory.available - std::min(memory.available, memory.buffers));
    const nlohmann::ordered_json result = {
        { "schema",  1 },
        { "model",   params.model.path },
        { "size",    common_hugepages_size_name(params.hugepages.page_size) },
        { "fits",    plan.fits() },
        { "message", plan.fits() ? "" : plan.error.message },
        { "hint",    plan.error.hint },
        { "context", context },
        { "memory",  {
            { "process",      memory.process },
            { "buffers",      memory.buffers },
            { "prompt_cache", cache_mib < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json((uint64_t) cache_mib*1024*1024) },
            { "available",    memory.available },
        } },
        { "needs",   rows },
        { "workers", workers },
    };
    // a path may be no UTF-8
    printf("%s\n", result.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    fflush(stdout);
}
