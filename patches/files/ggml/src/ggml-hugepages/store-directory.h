#pragma once

// the directory of a store

#include "ggml-hugepages.h"

#include <string>

// Opens the directory. store: a path or "auto". page_size: required page size, or GGML_HUGEPAGES_SIZE_AUTO. Returns -1 with an error.
int ggml_hugepages_store_open(const char * store, size_t page_size, std::string & path, size_t * found, ggml_hugepages_error * error);
