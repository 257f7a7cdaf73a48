#pragma once

#include "image.h"

#include <memory>

// The context that ggml_hugepages_context_hold prepared for this KV buffer, nullptr if it prepared none.
std::unique_ptr<ggml_hugepages_image> ggml_hugepages_context_take(const ggml_hugepages_scope & scope, size_t size);

// Frees the context of the model if no buffer uses it. The file remains if an earlier process has written it.
void ggml_hugepages_context_end(uint32_t model_id);
