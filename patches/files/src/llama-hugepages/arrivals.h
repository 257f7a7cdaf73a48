#pragma once

#include "ggml.h"
#include "llama-model-loader.h"

#include <atomic>
#include <deque>
#include <vector>

// A mapped tensor. The thread that reads its last bytes checks its data, while the other threads continue to read.
struct llama_hugepages_arriving {
    const ggml_tensor * tensor;
    size_t              first; // bytes [first, last) of the file
    size_t              last;
    std::atomic<size_t> missing;

    llama_hugepages_arriving(const ggml_tensor * tensor, size_t first) : tensor(tensor), first(first), last(first + ggml_nbytes(tensor)), missing(last - first) {}
};

using llama_hugepages_arrivals = std::deque<llama_hugepages_arriving>; // of one file, by offset

// the mapped tensors of each file
std::vector<llama_hugepages_arrivals> llama_hugepages_arrivals_of(const llama_model_loader & ml, const std::vector<const ggml_context *> & contexts, const std::vector<ggml_context *> & buffered);

// Checks the tensors whose last bytes are in [first, last). user_data: the llama_hugepages_arrivals of the file
bool llama_hugepages_check_arrivals(const void * data, size_t first, size_t last, void * user_data);
