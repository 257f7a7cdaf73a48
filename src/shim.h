// C interface over the C++ parts of llama.cpp. Nothing here throws.
#pragma once

#include "llama.h"
#include "gguf.h"

#ifdef __cplusplus
#define LH_NOEXCEPT noexcept
extern "C" {
#else
#define LH_NOEXCEPT
#endif

// llama-server as a function: takes the command line, returns the exit code.
// `argv` ends with a null pointer and outlives the call.
int lh_server_main(int argc, char ** argv) LH_NOEXCEPT;

#ifdef __cplusplus
}
#endif
