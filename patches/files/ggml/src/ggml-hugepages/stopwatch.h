#pragma once

// the time of threads, in microseconds

#include <atomic>
#include <chrono>
#include <cstdint>

static inline uint64_t ggml_hugepages_now_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// adds the time between its construction and its destruction
template <typename T> struct ggml_hugepages_stopwatch {
    T      & sum;
    uint64_t begin = ggml_hugepages_now_us();

    explicit ggml_hugepages_stopwatch(T & sum) : sum(sum) {}
    ~ggml_hugepages_stopwatch() { sum += ggml_hugepages_now_us() - begin; }
};

// The time of this thread in ggml_hugepages_buffer_populate. A reader that places a piece subtracts it from its own time.
inline thread_local uint64_t ggml_hugepages_us_populate = 0;
