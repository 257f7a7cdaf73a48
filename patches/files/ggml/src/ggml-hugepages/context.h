#pragma once

// resident contexts

#include "image.h"

#include <memory>

struct ggml_hugepages_store_file;

// Maps all of a file that ggml_hugepages_context_open has opened. nullptr with an error if the store lacks pages.
std::unique_ptr<ggml_hugepages_image> ggml_hugepages_map_context(
        const std::shared_ptr<ggml_hugepages_store_file> & file, const ggml_hugepages_params & params, ggml_hugepages_error * error);
