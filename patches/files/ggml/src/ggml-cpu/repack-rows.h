#pragma once

#include <stddef.h>

struct ggml_tensor;

// Repacks the rows at `data` to `t->data`, with the same bytes as the function of repack.cpp for nb_cols rows in units of inter_size bytes.
// `t` may describe a part of a tensor, of whole groups of nb_cols rows. Neither address needs an alignment. Threads may repack adjacent parts.
// Returns false, with nothing written, if there is no kernel for the layout or the shape: the caller then uses the function of repack.cpp.
bool ggml_repack_rows(struct ggml_tensor * t, int inter_size, int nb_cols, const void * data, size_t data_size);
