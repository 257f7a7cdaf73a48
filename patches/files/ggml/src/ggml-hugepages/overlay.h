#pragma once

// the way of images from the plan to their contents

#include "image.h"
#include "shortage.h"

// Reserves the pages of all runs, the lowest rank first.
bool ggml_hugepages_reserve_runs(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error);

// Returns the pages of a failed load, then explains the refusal, so that the message counts only the pages of others. Nobody may use the
// blocks after this.
bool ggml_hugepages_fail_load(
        ggml_hugepages_image_t *       images,
        size_t                         n,
        const ggml_hugepages_image   & image,
        const ggml_hugepages_refusal & refusal,
        ggml_hugepages_error         * error);
