#pragma once

#include "llama-hugepages.h"
#include "llama-impl.h"

#include <stdexcept>
#include <string>

// Throws the message and the hint. The exit code of the program depends on the status.
[[noreturn]] static inline void llama_hugepages_raise(const ggml_hugepages_error & error) {
    ggml_hugepages_set_failure(&error);
    throw std::runtime_error(error.hint[0] ? format("%s\nhint: %s", error.message, error.hint) : std::string(error.message));
}
