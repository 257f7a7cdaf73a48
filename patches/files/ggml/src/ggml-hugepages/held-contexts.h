#pragma once

// contexts between ggml_hugepages_context_hold and the buffer that uses them

#include "image.h"

#include <memory>

void ggml_hugepages_held_context_add(std::unique_ptr<ggml_hugepages_image> context);

// The context for this KV buffer, nullptr if none is held.
std::unique_ptr<ggml_hugepages_image> ggml_hugepages_held_context_take(const ggml_hugepages_scope & scope, size_t size);

// Frees the contexts of the model that no buffer uses. A file remains if an earlier process has written it.
void ggml_hugepages_held_contexts_end(uint32_t model_id);
