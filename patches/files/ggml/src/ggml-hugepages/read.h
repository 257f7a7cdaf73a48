#pragma once

#include "image.h"
#include "shortage.h"

// Populates the runs of all images, reads the files into them, and reads the pieces. ggml_hugepages_policy_refused decides what happens if
// the kernel refuses pages.
// refused, refusal: the image and the cause, if the load ends for lack of a page; error has no message then
bool ggml_hugepages_read(
        ggml_hugepages_image_t *           images,
        size_t                             n_images,
        const ggml_hugepages_piece *       pieces,
        size_t                             n_pieces,
        const ggml_hugepages_params      & params,
        ggml_hugepages_progress_callback   callback,
        void                             * user_data,
        ggml_hugepages_image            ** refused,
        ggml_hugepages_refusal           * refusal,
        ggml_hugepages_error             * error);

// Populates a buffer. Of a lazy buffer it populates only pages that are larger than a chunk.
bool ggml_hugepages_populate_all(ggml_hugepages_image & image, ggml_hugepages_image ** refused, ggml_hugepages_refusal * refusal, ggml_hugepages_error * error);

// Populates pages before the first read: the missing pages of resident images, because the engine does not reserve pages of a store, and
// all pages if an invisible limit may apply, because the kernel enforces it on touch.
bool ggml_hugepages_populate_ahead(
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_image          ** refused,
        ggml_hugepages_refusal         * refusal,
        ggml_hugepages_error           * error);
