// Reads the weights: mapped tensors in place, the other tensors by rows into their buffers.

#include "llama-hugepages.h"
#include "arrivals.h"
#include "error.h"
#include "rows.h"
#include "weights.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <mutex>
#include <stdexcept>

bool llama_hugepages::fill(const llama_model_loader & ml, llama_progress_callback progress_callback, void * progress_callback_user_data) {
    turn.reset(); // all pages are reserved
    if (images.empty()) {
        return true;
    }

    std::mutex                        mutex;
    std::atomic<bool>                 refused{false};
    std::deque<llama_hugepages_rows>           targets; // pieces point to them
    std::vector<ggml_hugepages_piece> pieces;
    for (auto * ctx : buffered) {
        check_matrices(ctx);
        llama_hugepages_for_each_weight(ml, ctx, [&](ggml_tensor * cur, const auto & weight) {
            // CPU_REPACK interleaves up to 64 rows, and keeps each group of rows at its offset
            const std::string buft     = ggml_backend_buft_name(ggml_backend_buffer_get_type(cur->buffer));
            const bool        by_rows  = buft == "CPU" || buft == "CPU_REPACK";
            const size_t      row_size = ggml_row_size(cur->type, cur->ne[0]);
            const size_t      group    = 64*row_size;
            // with the sectors around it, a piece fits into two transparent huge pages
            const size_t      step     = by_rows ? std::max<size_t>(1, (4*1024*1024 - 64*1024)/group)*group : ggml_nbytes(cur);
            loaded_tensors.insert(cur);
            if (is_attached(ctx)) {
                return;
            }
            targets.push_back({ cur, by_rows ? nullptr : &mutex, ml.check_tensors, &refused, {} });
            ggml_hugepages_matrices by_node = {};
            if (ggml_hugepages_is_by_node(cur->data, &by_node)) {
                targets.back().by_node = by_node;
            }
            for (size_t at = 0; at < ggml_nbytes(cur); at += step) {
                pieces.push_back({ images.at(weight.idx).get(), weight.offs + at, weight.offs + std::min(at + step, ggml_nbytes(cur)),
                    llama_hugepages_place_rows, &targets.back(), at, by_rows ? group : 0 });
            }
        });
    }

    struct progress {
        llama_hugepages          * self;
        const llama_model_loader * ml;
        llama_progress_callback    callback;
        void                     * user_data;
    } ud = { this, &ml, progress_callback, progress_callback_user_data };

    const auto on_progress = [](uint64_t done, uint64_t total, void * user_data) {
        auto & p = *(progress *) user_data;
        p.self->n_ahead = total ? (size_t) ((double) done/total*p.self->n_bytes) : 0;
        return p.callback == nullptr || p.callback((float) p.self->n_ahead/p.ml->size_data, p.user_data);
    };

    const auto settle = [&] {
        for (auto * ctx : buffered) {
            ggml_hugepages_error error = {};
            auto * buffer = ggml_get_first_tensor(ctx)->buffer;
            if (buffer && !ggml_hugepages_buffer_settle(ggml_backend_buffer_get_base(buffer), &error)) {
                llama_hugepages_raise(error);
            }
        }
    };

    std::vector<llama_hugepages_arrivals> arriving;
    if (ml.check_tensors && use_mmap) {
        arriving = llama_hugepages_arrivals_of(ml, contexts, buffered);
        for (size_t i = 0; i < images.size(); i++) {
            ggml_hugepages_image_on_arrival(images[i].get(), llama_hugepages_check_arrivals, &arriving[i]);
        }
    }

    ggml_hugepages_error error = {};
    auto imgs = handles();
    if (!ggml_hugepages_fill(imgs.data(), imgs.size(), pieces.data(), pieces.size(), &params, on_progress, &ud, &error)) {
        if (error.status == GGML_HUGEPAGES_STATUS_ABORTED) {
            return false;
        }
        if (refused) {
            settle();
        }
        if (error.status == GGML_HUGEPAGES_STATUS_INVALID) {
            throw std::runtime_error("found tensors with invalid data");
        }
        llama_hugepages_raise(error);
    }
    settle();
    for (const auto & tensors : arriving) {
        for (const auto & t : tensors) {
            // tensors in the file mapping, and resident tensors, were not read
            if (t.missing == 0) {
                checked_tensors.insert(t.tensor);
            }
        }
    }
    n_ahead = n_bytes;
    return true;
}

bool llama_hugepages::loaded(const ggml_tensor * tensor) const {
    return loaded_tensors.count(tensor) > 0;
}

bool llama_hugepages::checked(const ggml_tensor * tensor) const {
    return checked_tensors.count(tensor) > 0;
}

size_t llama_hugepages::ahead() const {
    return n_ahead;
}

void llama_hugepages::counted(const ggml_context * ctx, size_t size) {
    if (std::find(contexts.begin(), contexts.end(), ctx) != contexts.end()) {
        n_ahead -= std::min(n_ahead, size);
    }
}
