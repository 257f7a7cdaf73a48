#pragma once

// the checksums of a resident image

#include "manifest.h"

#include <functional>

// Compares complete segments with their checksums. It uses read(2), because a damaged file could end a mapping's read with SIGBUS.
bool ggml_hugepages_verify(
        int                              fd,
        const ggml_hugepages_geometry  & g,
        size_t                           size,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_error           * error);

// Reads the checksums in small groups, because the number in the header may be false. f: index, checksum; returns false to stop
bool ggml_hugepages_each_checksum(int fd, const ggml_hugepages_geometry & g, const std::function<bool(uint64_t, uint64_t)> & f);
