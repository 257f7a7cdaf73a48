#include "rows.h"
#include "ggml-backend.h"
#include "llama-impl.h"

#include <algorithm>

// places rows that are adjacent in the buffer
static bool place(const llama_hugepages_rows & target, const void * data, size_t size, size_t offset) {
    // a tensor with only these rows, because repacking needs whole tensors
    ggml_tensor rows = *target.tensor;
    const size_t row_size = ggml_row_size(rows.type, rows.ne[0]);
    rows.data  = (char *) rows.data + offset;
    if (size < ggml_nbytes(target.tensor)) {
        rows.ne[1] = size/row_size;
        rows.ne[2] = 1;
        rows.ne[3] = 1;
        rows.nb[2] = rows.nb[3] = size;
    }
    // a tensor that is not split by rows may need more memory than its bytes
    const size_t n_populate = target.mutex ? ggml_backend_buffer_get_alloc_size(target.tensor->buffer, target.tensor) : size;
    if (!ggml_hugepages_buffer_populate(rows.data, n_populate)) {
        *target.refused = true;
        return false;
    }
    std::unique_lock<std::mutex> lock;
    if (target.mutex) {
        lock = std::unique_lock<std::mutex>(*target.mutex);
    }
    ggml_backend_tensor_set(&rows, data, 0, size);
    return true;
}

bool llama_hugepages_place_rows(const void * data, size_t size, const ggml_hugepages_piece * piece) {
    const auto & target = *(const llama_hugepages_rows *) piece->user_data;
    if (target.check && !ggml_validate_row_data(target.tensor->type, data, size)) {
        LLAMA_LOG_ERROR("%s: tensor '%s' has invalid data\n", __func__, ggml_get_name(target.tensor));
        return false;
    }
    if (!target.by_node) {
        return place(target, data, size, piece->offset);
    }
    size_t n;
    for (size_t at = 0; at < size; at += n) {
        const size_t offset = ggml_hugepages_offset_by_node(&*target.by_node, piece->offset + at, &n);
        n = std::min(n, size - at);
        if (!place(target, (const char *) data + at, n, offset)) {
            return false;
        }
    }
    return true;
}
