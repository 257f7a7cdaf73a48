#pragma once

// the content in the identity of a model file

#include <cstddef>
#include <cstdint>

// A hash of 64 blocks of a file: other models differ in all of them, and a file that was changed in place most likely differs in one.
// Returns false if the file cannot be read.
bool ggml_hugepages_sample(int fd, size_t size, uint64_t * hash);
