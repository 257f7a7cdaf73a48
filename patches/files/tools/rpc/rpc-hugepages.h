#pragma once

// The huge page options of rpc-server, which has no libcommon. What it allocates for its clients is theirs to name, so
// all of it is of the kind "other".

#include "ggml-hugepages.h"

#include <string>

// LLAMA_ARG_HUGEPAGES, LLAMA_ARG_HUGEPAGE_POLICY and LLAMA_ARG_HUGEPAGE_SIZE. Prints what is wrong and returns false.
bool rpc_hugepages_from_env(ggml_hugepages_params & params);

// Takes argv[i], and its value if it has one; returns false if it is none of these options. is_valid: is the value one?
bool rpc_hugepages_from_arg(int argc, char ** argv, int & i, ggml_hugepages_params & params, bool & is_valid);

void rpc_hugepages_print_usage(const ggml_hugepages_params & params);

// From here on CPU buffers come from huge pages. Prints what there is, and returns false when there can never be any.
bool rpc_hugepages_begin(const ggml_hugepages_params & params);
