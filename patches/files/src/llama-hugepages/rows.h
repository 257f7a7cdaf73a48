#pragma once

#include "ggml.h"
#include "ggml-hugepages.h"

#include <atomic>
#include <mutex>
#include <optional>

// the destination of a piece: rows of a tensor in a CPU buffer
struct llama_hugepages_rows {
    ggml_tensor          * tensor;
    std::mutex           * mutex; // nullptr if several threads can place rows at the same time
    bool                   check;
    std::atomic<bool>    * refused; // set when the buffer gets no page
    std::optional<ggml_hugepages_matrices> by_node; // if the rows are in node order
};

// places the rows of a piece, whose user_data is a llama_hugepages_rows
bool llama_hugepages_place_rows(const void * data, size_t size, const ggml_hugepages_piece * piece);
