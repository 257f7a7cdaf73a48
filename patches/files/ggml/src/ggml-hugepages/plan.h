#pragma once

#include "image.h"

// Sets wanted and runs of the images. Allocates nothing.
bool ggml_hugepages_decide(
        const char *                  root,
        ggml_hugepages_image_t *      images,
        size_t                        n_images,
        const ggml_hugepages_demand * demands,
        size_t                        n_demands,
        const ggml_hugepages_params & params,
        ggml_hugepages_error *        error);
