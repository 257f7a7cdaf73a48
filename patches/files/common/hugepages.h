#pragma once

// Huge pages in programs with the common arguments: the need before the load, and the report after it.

#include "llama.h"

#include <string>

struct common_params;

// the options, with the placement that --numa selects
ggml_hugepages_params common_hugepages_params(const common_params & params);

// a page size in the format of --hugepage-size
std::string common_hugepages_size_name(size_t page_size);

// Measures KV cache and compute buffers with the memory fit, or with a load of the model without its weights. The plan adds their sizes to
// the need.
void common_hugepages_measure(const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params * cparams);

// The exit code after a failed load: 3 if more huge pages or more memory would help, else 1.
int common_hugepages_exit_code();

// After this call, buffers without a model or a context also use huge pages.
void common_hugepages_begin(const common_params & params);

// Logs the report. After this call, a buffer without free huge pages uses ordinary memory, and the report counts it. Skips the warm-up if
// all weights are in memory and in the page table, because on a CPU the warm-up only brings them there.
void common_hugepages_ready(common_params & params);
