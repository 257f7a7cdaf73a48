#pragma once

// Shared parts of the fuzz targets. Each target is a program of its own:
//
//   TARGET seeds DIR       writes the first inputs, and fails if the parser refuses all of them
//   TARGET [OPTION] DIR    runs libFuzzer

#include "ggml-hugepages.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// Aborts, so that libFuzzer keeps the input.
#define FUZZ_CHECK(cond) do { if (!(cond)) { fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #cond); abort(); } } while (0)

// Bytes of an input, taken from the front. Zeros follow the last byte.
struct fuzz_input {
    const uint8_t * data;
    size_t          size;

    void take(void * to, size_t n) {
        memset(to, 0, n);
        const size_t taken = n < size ? n : size;
        memcpy(to, data, taken);
        data += taken;
        size -= taken;
    }

    template <typename T> T take() {
        T value;
        take(&value, sizeof(value));
        return value;
    }

    // the bytes before the next zero byte
    std::string text() {
        const auto * end = size > 0 ? (const uint8_t *) memchr(data, 0, size) : nullptr;
        const size_t n   = end ? end - data : size;
        std::string result((const char *) data, n);
        const size_t taken = end ? n + 1 : n;
        data += taken;
        size -= taken;
        return result;
    }
};

// The target. Returns whether the parser accepted the input.
bool fuzz_one(fuzz_input input);

std::vector<std::string> fuzz_seeds();

// A new folder in memory. The program removes it when it ends.
const std::string & fuzz_dir();
