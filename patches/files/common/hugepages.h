#pragma once

// What programs with the common arguments do about huge pages: the need before the load, and the report after it.

#include "llama.h"

#include <string>

struct common_params;

// the options, with pages from the nodes that --numa chooses
ggml_hugepages_params common_hugepages_params(const common_params & params);

// a page size as --hugepage-size takes it
std::string common_hugepages_size_name(size_t page_size);

// Counts KV cache and compute buffers in the need that is checked before anything is read. They are known from the fit, or
// else from loading the model without its weights.
void common_hugepages_measure(const common_params & params, bool model_only, llama_model_params * mparams, const llama_context_params * cparams);

// What a program that could not load its model ends with: 3 if more huge pages or more memory would help, else 1.
int common_hugepages_exit_code();

// From here on buffers that belong to no model and no context come from huge pages too.
void common_hugepages_begin(const common_params & params);

// Logs the report. From here on a buffer that gets no huge page is ordinary memory, and counted. Calls off the warm-up where all
// weights are in memory and in the page table: bringing them there is what it is for on a CPU.
void common_hugepages_ready(common_params & params);
