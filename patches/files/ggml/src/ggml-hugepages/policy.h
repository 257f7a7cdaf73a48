#pragma once

// the reaction to a shortage

#include "image.h"
#include "shortage.h"

// Reacts to the kernel's refusal of [first, last) of an image. True: ordinary memory replaced the blocks, and the load continues. False:
// the load ends with the error that ggml_hugepages_fail_refused sets.
bool ggml_hugepages_policy_refused(
        ggml_hugepages_image         & image,
        const ggml_hugepages_refusal & refusal,
        size_t                         first,
        size_t                         last,
        ggml_hugepages_error         * error);
