#pragma once

// words for sizes

#include "ggml-hugepages.h"

#include <string>

// "2 MiB", "1 GiB"
std::string ggml_hugepages_size_name(size_t page_size);

static const size_t GGML_HUGEPAGES_KIB = 1024;
static const size_t GGML_HUGEPAGES_MIB = 1024*GGML_HUGEPAGES_KIB;
static const size_t GGML_HUGEPAGES_GIB = 1024*GGML_HUGEPAGES_MIB;
