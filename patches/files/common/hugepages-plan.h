#pragma once

// One plan for all that a command line loads: the model, its adapters, its draft, and buffers that a program announces.

#include "llama.h"

#include <string>
#include <vector>

struct common_params;

// What an RPC worker holds of one kind. A worker with --hugepages needs whole pages for each of its buffers.
struct common_hugepages_worker_need {
    std::string         model;
    std::string         worker; // HOST:PORT
    std::string         device; // RPC0, RPC1, ...
    ggml_hugepages_kind kind;
    uint64_t            bytes;
};

struct common_hugepages_plan {
    std::vector<std::string>         files;     // the parts, in the order of their load
    std::vector<ggml_hugepages_need> needs;     // need.plan: index of the part
    std::vector<common_hugepages_worker_need> workers;
    ggml_hugepages_memory            memory = {}; // of all parts
    ggml_hugepages_error             error = {}; // GGML_HUGEPAGES_STATUS_PLANNED if all fits; _OK if a part cannot be planned
    std::string                      log;       // errors of a part that cannot be planned

    // the context that the fit chose, 0 if the user did
    uint32_t n_ctx      = 0;
    uint32_t n_ctx_full = 0; // of the model
    uint64_t bytes_full = 0; // of huge pages for that context

    bool fits() const { return error.status == GGML_HUGEPAGES_STATUS_PLANNED; }
    bool is_planned() const { return error.status != GGML_HUGEPAGES_STATUS_OK; }
    uint64_t bytes() const; // of all huge pages
};

// Sets the sizes of KV cache and compute buffers in mparams. Returns the size of the context. If llama.cpp refuses the model or the context,
// the load will fail in the same way; why: gets the errors of its log
uint32_t common_hugepages_measure(
        const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params & cparams, std::string * why = nullptr);

// Plans all parts. Sets the sizes of KV cache and compute buffers in mparams. If the user gave no -c, sets n_ctx of cparams to what the pools
// can hold, but not below --fit-ctx.
common_hugepages_plan common_hugepages_plan_all(
        const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams);

// whether the load of the model alone would not count all that is loaded
bool common_hugepages_is_plan_needed(const common_params & params, bool model_only, const llama_model_params & mparams);

// whether a shorter context may make the load fit
bool common_hugepages_may_choose_context(const common_params & params, bool model_only, const llama_model_params & mparams);

// Keeps the errors that llama.cpp logs during its life. is_only: drops the rest of the log
struct common_hugepages_errors {
    explicit common_hugepages_errors(bool is_only);
    ~common_hugepages_errors();
    common_hugepages_errors(const common_hugepages_errors &) = delete;
    common_hugepages_errors & operator=(const common_hugepages_errors &) = delete;

    std::string text;

private:
    bool              is_only;
    bool              is_error = false;
    ggml_log_callback before;
    void            * before_data;
};

// JSON on stdout, for programs
void common_hugepages_print(const common_hugepages_plan & plan, const common_params & params);

// The limit of the server's prompt cache in MiB, -1 for none: upstream's default is for a machine whose memory is not in a pool.
// available: bytes of ordinary memory, 0 if unknown
int32_t common_hugepages_prompt_cache(const common_params & params, uint64_t available);

// The bytes of ordinary memory that the caches of a server leave.
uint64_t common_hugepages_cache_margin(const common_params & params);

// forgets what common_hugepages_also_plan() and common_hugepages_measured() were told
void common_hugepages_plan_forget();

// whether a GPU exists, so that the fit may move layers
bool common_hugepages_has_other_devices();

// whether one of these devices is an RPC worker
bool common_hugepages_has_workers();
