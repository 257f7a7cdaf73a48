#pragma once

// the parts of a file that the page cache holds

#include "ranges.h"

enum ggml_hugepages_cached {
    GGML_HUGEPAGES_CACHED_NONE,
    GGML_HUGEPAGES_CACHED_SOME,
    GGML_HUGEPAGES_CACHED_MOST, // so few pages are missing that reading them costs less than reading everything again
    GGML_HUGEPAGES_CACHED_ALL,
    GGML_HUGEPAGES_CACHED_UNKNOWN,
};

// The parts of a file that the page cache holds. The engine asks before the first read, because reads change the answer.
struct ggml_hugepages_page_cache {
    // the system call that works here; the engine first tries each call on a cached page, because some succeed with a wrong answer
    enum { BY_CACHESTAT, BY_MINCORE, BY_TRYING, BY_NOTHING } way = BY_NOTHING;
    int                   fd   = -1;
    size_t                size = 0; // of the file
    ggml_hugepages_ranges of;       // the ranges that will be read
    ggml_hugepages_ranges there;    // cached ranges at the first look, unless BY_TRYING or BY_NOTHING

    void look(int fd, size_t size, const ggml_hugepages_ranges & of);

    // of [first, last), at the first look if known; *bytes: how many are cached, 0 if unknown
    ggml_hugepages_cached state(size_t first, size_t last, size_t * bytes) const;

    // bytes of [first, last) that are cached now; false: unknown
    bool count(size_t first, size_t last, size_t * bytes) const;

    // drops the pages that were not cached at the first look
    void drop_new(size_t first, size_t last) const;

    // Drops the whole file. Returns the bytes of the read ranges that the kernel keeps, 0 if the kernel does not report them.
    size_t drop_all() const;
};
