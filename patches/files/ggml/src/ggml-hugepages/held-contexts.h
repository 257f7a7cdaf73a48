#pragma once

// contexts of ggml_hugepages_context_hold, and the KV buffers in them

#include "image.h"

#include <memory>

void ggml_hugepages_held_context_add(std::unique_ptr<ggml_hugepages_image> context);

// The next part of the model's context for this KV buffer, nullptr if none has room for it. Registers the context with its first buffer.
void * ggml_hugepages_held_context_take(const ggml_hugepages_scope & scope, size_t size);

// False if this is no buffer in a context. context: gets the context of its last buffer, to unmap
bool ggml_hugepages_held_context_return(const void * ptr, std::unique_ptr<ggml_hugepages_image> & context);

// Frees the contexts of the model that no buffer uses. A file remains if an earlier process has written it.
void ggml_hugepages_held_contexts_end(uint32_t model_id);
