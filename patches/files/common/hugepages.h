#pragma once

// Huge pages in programs with the common arguments: the need before the load, and the report after it.

#include "llama.h"

#include <functional>
#include <string>

struct common_arg;
struct common_params;

// Adds --hugepages and its options, each with its environment variable. The help text names the defaults in params.
void common_hugepages_add_options(const common_params & params, const std::function<void(common_arg)> & add_opt);

// the options, with the placement that --numa selects
ggml_hugepages_params common_hugepages_params(const common_params & params);

// a page size in the format of --hugepage-size
std::string common_hugepages_size_name(size_t page_size);

// The exit code after a failed load: 3 if more huge pages or more memory would help, else 1.
int common_hugepages_exit_code();

// Measures KV cache and compute buffers with the memory fit, or with a load of the model without its weights. The plan adds their sizes to
// the need. With plan_only and load_only the program prints its result and exits here. Then calls common_hugepages_begin().
void common_hugepages_before_load(const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params * cparams);

// Calls common_hugepages_ready() if the model, and its context if the caller wants one, exist.
void common_hugepages_after_load(common_params & params, bool is_loaded);

// After this call, buffers without a model or a context also use huge pages.
void common_hugepages_begin(const common_params & params);

// whether common_hugepages_begin() was called with the option on
bool common_hugepages_is_on();

// Logs the report. After this call, a buffer without free huge pages uses ordinary memory, and the report counts it. Skips the warm-up if
// all weights are in memory and in the page table, because on a CPU the warm-up only brings them there.
void common_hugepages_ready(common_params & params);
