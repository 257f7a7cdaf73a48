#pragma once

#include "image.h"

// Plans, maps and populates. False with an error if the kernel refuses pages and the policy does not accept less.
bool ggml_hugepages_map_buffer(ggml_hugepages_image & buffer, const ggml_hugepages_params & params, ggml_hugepages_error * error);

void ggml_hugepages_unmap_buffer(ggml_hugepages_image & buffer);

// whether the store holds all of the buffer
bool ggml_hugepages_is_in_store(const ggml_hugepages_image & buffer);
