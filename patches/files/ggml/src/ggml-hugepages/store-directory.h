#pragma once

// the directory of a store

#include "ggml-hugepages.h"

#include <functional>
#include <string>

// Opens the directory. store: a path or "auto". page_size: required page size, or GGML_HUGEPAGES_SIZE_AUTO. Returns -1 with an error.
int ggml_hugepages_store_open(const char * store, size_t page_size, std::string & path, size_t * found, ggml_hugepages_error * error);

// Calls back with the name of each file that can be a resident image.
void ggml_hugepages_each_image(int dir_fd, const std::function<void(const char * name)> & callback);
