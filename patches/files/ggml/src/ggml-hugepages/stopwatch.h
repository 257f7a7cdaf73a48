#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

static inline uint64_t ggml_hugepages_now_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// adds the time between its construction and its destruction
struct ggml_hugepages_stopwatch {
    std::atomic<uint64_t> & sum;
    uint64_t                begin = ggml_hugepages_now_us();
    ~ggml_hugepages_stopwatch() { sum += ggml_hugepages_now_us() - begin; }
};
