#pragma once

// facts that only a trial shows

#include "ggml-hugepages.h"

// Tries the system calls of a load: a memfd, a reservation of n_reserve pages, and n_populate populated pages. Returns everything.
// need: pages of the load, for the message
bool ggml_hugepages_try(const char * root, const ggml_hugepages_params & params, size_t page_size, uint64_t n_reserve, uint64_t n_populate, uint64_t need, ggml_hugepages_error * error);
