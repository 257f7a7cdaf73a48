#pragma once

// The huge page options of rpc-server, which does not use libcommon. Its clients do not send the purpose of their buffers, so all buffers
// have the kind "other".

#include "ggml-hugepages.h"

#include <string>

// Reads LLAMA_ARG_HUGEPAGES, LLAMA_ARG_HUGEPAGE_POLICY and LLAMA_ARG_HUGEPAGE_SIZE. Prints invalid values and returns false.
bool rpc_hugepages_from_env(ggml_hugepages_params & params);

// Parses argv[i] and its value, if it has one. Returns false for other options. is_valid: whether the value is valid
bool rpc_hugepages_from_arg(int argc, char ** argv, int & i, ggml_hugepages_params & params, bool & is_valid);

void rpc_hugepages_print_usage(const ggml_hugepages_params & params);

// After this call, CPU buffers use huge pages. Prints the usable pages, and returns false if the kernel has no pool for them.
bool rpc_hugepages_begin(const ggml_hugepages_params & params);
