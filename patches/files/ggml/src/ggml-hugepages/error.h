#pragma once

// errors: a status, a message, and a hint

#include "ggml-hugepages.h"

#include <cstddef>
#include <cstdint>
#include <exception>
#include <string>

// sets the status and the formatted message, returns false
GGML_ATTRIBUTE_FORMAT(3, 4)
bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...);

// the numbers of a shortage
void ggml_hugepages_set_shortage(ggml_hugepages_error * error, size_t page_size, uint64_t needed, uint64_t usable);

// "WHAT for PATH: ", and the text of errno
bool ggml_hugepages_fail_errno(ggml_hugepages_error * error, ggml_hugepages_status status, const char * what, const std::string & path);

GGML_ATTRIBUTE_FORMAT(2, 3)
void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...);

// A hint for a failed system call. A limit and a filter have remedies of their own; otherwise: the remedy for a missing right.
void ggml_hugepages_hint_errno(ggml_hugepages_error * error, int err, const char * call, const char * otherwise);

// Runs f and turns an exception into an error, because other languages cannot catch it.
template <typename F> static bool ggml_hugepages_guard(ggml_hugepages_error * error, F && f) noexcept {
    try {
        return f();
    } catch (const std::exception & e) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "%s", e.what());
    } catch (...) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "unknown error");
    }
}
