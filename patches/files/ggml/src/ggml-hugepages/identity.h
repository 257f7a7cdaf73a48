#pragma once

// the content in the identity of a model file

#include <cstddef>
#include <cstdint>

// A hash of 64 blocks of a file: other models differ in all of them. Archives and image builders may give two files the same times, and a
// file system may give them the same inode. Returns false if the file cannot be read.
bool ggml_hugepages_sample(int fd, size_t size, uint64_t * hash);
