#pragma once

#include <stddef.h>

struct ggml_tensor;

// Repacks the rows at `data` to `t->data`, byte for byte as the repack buffer type does for nb_cols rows in units of inter_size bytes.
// `data` needs no alignment and must not overlap `t->data`.
// False, with nothing written, if there is no kernel for the layout or the shape: the caller then uses the function of repack.cpp.
bool ggml_repack_rows(struct ggml_tensor * t, int inter_size, int nb_cols, const void * data, size_t data_size);
