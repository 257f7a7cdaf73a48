#pragma once

// Huge pages in programs with the common arguments: the need before the load, and the report after it.

#include "llama.h"

#include <functional>
#include <string>
#include <vector>

struct common_arg;
struct common_params;

// Adds --hugepages and its options, each with its environment variable. The help text names the defaults in params.
void common_hugepages_add_options(common_params & params, const std::function<void(common_arg)> & add_opt);

// the options, with the placement that --numa selects
ggml_hugepages_params common_hugepages_params(const common_params & params);

// a page size in the format of --hugepage-size
std::string common_hugepages_size_name(size_t page_size);

// The exit code after a failed load: 3 if more huge pages or more memory would help, else 1.
int common_hugepages_exit_code();

// A file that the program loads after the model, and the sizes of its buffers; none if they are unknown. Only the next plan counts it.
void common_hugepages_also_plan(const std::string & path, const std::vector<uint64_t> & buffers);

// The sizes that the memory fit found for this context, so that the plan need not measure them again.
void common_hugepages_measured(const llama_context_params & cparams, uint64_t kv_bytes, uint64_t compute_bytes);

// The memory fit created this context without its memory.
void common_hugepages_measured_context(const llama_context * ctx);

// whether the KV cache of this context remains in a store, so that a trial would destroy conversations
bool common_hugepages_keeps(const llama_context * ctx);

// Why the KV cache cannot remain in the store although the user asked for it; empty if it can, or if nobody asked.
std::string common_hugepages_why_no_context(const common_params & params, const ggml_hugepages_params & hugepages);

// The caller of --hugepage-plan will add pages, so the context may need more than the usable ones.
void common_hugepages_plan_grow();

// Loads the model as llama_model_load_from_file does. Before it reads a byte, it plans all that will be loaded: the model, its draft, its
// adapters, and what common_hugepages_also_plan() announced. If pages are short and the user gave no -c, it chooses a context that the pools
// can hold. Else it returns nullptr. With plan_only and load_only the program prints its result and exits here.
llama_model * common_hugepages_load(const common_params & params, bool model_only, llama_model_params * mparams, llama_context_params * cparams);

// Calls common_hugepages_ready() if the model, and its context if the caller wants one, exist.
void common_hugepages_after_load(common_params & params, bool is_loaded);

// Ordinary memory that a server takes while it serves.
enum common_hugepages_cache {
    COMMON_HUGEPAGES_CACHE_PROMPTS,     // --cache-ram
    COMMON_HUGEPAGES_CACHE_CHECKPOINTS, // --ctx-checkpoints
};

// The bytes of ordinary memory that must become free before the cache may take so many more. 0 if the user chose the size of the cache, or if
// the option is off. It asks the kernel, because other processes, such as the other models of a router, take from the same memory.
uint64_t common_hugepages_cache_missing(common_hugepages_cache cache, uint64_t bytes);

// After this call, buffers without a model or a context also use huge pages.
void common_hugepages_begin(const common_params & params);

// whether common_hugepages_begin() was called with the option on
bool common_hugepages_is_on();

// Logs the report. After this call, a buffer without free huge pages uses ordinary memory, and the report counts it. Skips the warm-up if
// all weights are in memory and in the page table, because on a CPU the warm-up only brings them there.
void common_hugepages_ready(common_params & params);
