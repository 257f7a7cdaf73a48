#pragma once

// a file that is read directly or through the page cache

#include "image.h"
#include "page-cache.h"

#include <atomic>

// O_DIRECT needs offset, length and address at a multiple of the logical block size, which is rarely larger than this
static const size_t GGML_HUGEPAGES_DIRECT_ALIGNMENT = 4096;

// A file with its own open file descriptions, because O_DIRECT on a duplicate would also affect upstream's reads.
struct ggml_hugepages_source {
    const ggml_hugepages_image * image;
    int    direct_fd   = -1; // -1 if the file system refuses it
    int    buffered_fd = -1;
    size_t alignment   = GGML_HUGEPAGES_DIRECT_ALIGNMENT;
    ggml_hugepages_page_cache cache;
    // whether O_DIRECT avoids the page cache: unknown before the first direct read
    enum effect { UNTRIED, DIRECT, BUFFERED, NOT_TO_BE_SEEN };
    std::atomic<effect> effect_of_direct{UNTRIED};
    bool                says_direct = false; // the file system reports it

    explicit ggml_hugepages_source(const ggml_hugepages_image * image);
    ggml_hugepages_source(const ggml_hugepages_source &) = delete;
    ~ggml_hugepages_source();

    bool can_direct() const { return direct_fd != -1 && effect_of_direct != BUFFERED; }

    // [first, last) was read with O_DIRECT, and n_before of its bytes were cached before: the bytes that still went through the page cache.
    // A file may have both kinds of parts (btrfs, compressed), so every read is checked if the check is cheap.
    size_t bytes_through_cache(size_t first, size_t last, ggml_hugepages_cached before, size_t n_before);
};
