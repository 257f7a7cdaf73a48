#pragma once

// transparent huge pages

#include "image.h"

// The kernel gives a THP if it can, and never reports a shortage. So the engine populates all memory before the first read and counts its
// THP.
bool ggml_hugepages_populate_thp(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error);
