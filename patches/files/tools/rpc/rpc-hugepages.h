#pragma once

// The huge page options of rpc-server, which does not use libcommon. Its clients do not send the purpose of their buffers, so all buffers
// have the kind "other".

// Takes argv[i] and its value, if it has one. Returns false for other options.
bool rpc_hugepages_take_arg(int argc, char ** argv, int & i);

void rpc_hugepages_print_usage();

// Reads LLAMA_ARG_HUGEPAGES, LLAMA_ARG_HUGEPAGE_POLICY and LLAMA_ARG_HUGEPAGE_SIZE, then the arguments. After this call, CPU buffers use
// huge pages if the option is on. Prints the usable pages. Prints an error and returns false for an invalid value, or if the kernel has no
// pool.
bool rpc_hugepages_begin();
