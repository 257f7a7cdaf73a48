#pragma once

// shared by the parts of the engine, not for anybody else

#include "ggml-hugepages.h"

#include <string>

// sets the status and the formatted message, returns false
GGML_ATTRIBUTE_FORMAT(3, 4)
bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...);

GGML_ATTRIBUTE_FORMAT(2, 3)
void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...);

// "2 MiB", "1 GiB"
std::string ggml_hugepages_size_name(size_t page_size);

// the command that makes `total` the size of a pool
std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total);
