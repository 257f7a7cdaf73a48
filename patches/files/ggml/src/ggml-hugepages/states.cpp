// Saved states of a resident context: each is a file of the store. Between a save and a load no process uses the file, so it is an idle
// image, which others may remove.

#ifdef __linux__

#include "context.h"
#include "buffer.h"
#include "error.h"
#include "file.h"
#include "manifest.h"
#include "registry.h"
#include "store-file.h"
#include "store-locks.h"
#include "store-states.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include <sys/stat.h>
#include <unistd.h>

struct ggml_hugepages_state {
    uint64_t                                   id;
    std::shared_ptr<ggml_hugepages_store_file> file;
    std::unique_ptr<ggml_hugepages_image>      image;
};

// The context that contains this address, and its parameters for a state. nullptr if it is in none.
static std::shared_ptr<ggml_hugepages_store_file> context_of(const void * kv, ggml_hugepages_params * params) {
    const auto * buffer = ggml_hugepages_find_buffer(kv);
    if (!buffer || !buffer->resident || !buffer->resident->is_context()) {
        return nullptr;
    }
    *params = buffer->params;
    params->policy = GGML_HUGEPAGES_POLICY_REQUIRE; // on other pages it would end with the process
    params->evict  = false;
    return buffer->resident;
}

// A context changes all the time, but a state is written once.
static bool has_checksums(const ggml_hugepages_store_file & file, const uint8_t * addr) {
    for (size_t i = 0; i < file.sums.size(); i++) {
        const size_t first = i*file.segment;
        if (ggml_hugepages_checksum(addr + first, std::min(file.segment, file.size - first)) != file.sums[i]) {
            return false;
        }
    }
    return true;
}

static ggml_hugepages_state_t open_state(const void * kv, uint64_t id, size_t size, bool is_new, ggml_hugepages_error * error) {
    ggml_hugepages_params params;
    const auto context = context_of(kv, &params);
    if (!context) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the KV cache is not in a store");
        return nullptr;
    }
    struct stat st = {};
    if (is_new && fstat(context->fd, &st) == 0 && st.st_nlink == 0) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "the context was dropped from the store");
        return nullptr;
    }
    ggml_hugepages_resident resident{ std::make_shared<ggml_hugepages_store_file>() };
    auto & file = resident.file;
    file->kind       = GGML_HUGEPAGES_KIND_KV;
    file->source     = context->source;
    file->source_dev = context->source_dev;
    file->source_ino = context->source_ino;
    file->content    = context->content.substr(0, context->content.find('\n')) + ggml_hugepages_state_line(id, context->name);
    file->size       = size;
    if (!ggml_hugepages_context_open(&resident, &params, error)) {
        return nullptr;
    }
    const bool is_old = file->fd != -1 && file->is_complete();
    if (is_old == is_new) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "another process has %s it", is_new ? "made" : "removed");
        return nullptr;
    }
    auto image = ggml_hugepages_map_context(file, params, error);
    if (image && is_old && !has_checksums(*file, image->addr)) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "'%s' is damaged", file->path.c_str());
        file->unlink();
        ggml_hugepages_unmap_buffer(*image);
        return nullptr;
    }
    return image ? new ggml_hugepages_state{ id, file, std::move(image) } : nullptr;
}

// the complete state with this number, empty if another process has removed it
static ggml_hugepages_state_file find_state(const ggml_hugepages_store_file & context, uint64_t id) {
    ggml_hugepages_state_file result = {};
    ggml_hugepages_each_state(*context.dir, context.name, geteuid(), [&](const auto & state) {
        if (state.id == id && state.is_complete) {
            result = state;
        }
    });
    return result;
}

ggml_hugepages_state_t ggml_hugepages_state_new(const void * kv, size_t size, ggml_hugepages_error * error) noexcept {
    ggml_hugepages_state_t result = nullptr;
    ggml_hugepages_guard(error, [&] {
        // a time, so that the order of the numbers is that of the states
        const uint64_t id = std::chrono::system_clock::now().time_since_epoch()/std::chrono::nanoseconds(1);
        result = open_state(kv, id, size, /*.is_new =*/ true, error);
        return result != nullptr;
    });
    return result;
}

ggml_hugepages_state_t ggml_hugepages_state_open(const void * kv, uint64_t id, ggml_hugepages_error * error) noexcept {
    ggml_hugepages_state_t result = nullptr;
    ggml_hugepages_guard(error, [&] {
        ggml_hugepages_params params;
        const auto context = context_of(kv, &params);
        const auto state   = context ? find_state(*context, id) : ggml_hugepages_state_file{};
        if (state.name.empty()) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_INVALID, "it is not in the store any more");
        }
        result = open_state(kv, id, state.size, /*.is_new =*/ false, error);
        return result != nullptr;
    });
    return result;
}

uint64_t ggml_hugepages_state_id(ggml_hugepages_state_t state) {
    return state->id;
}

void * ggml_hugepages_state_data(ggml_hugepages_state_t state, size_t * size) {
    *size = state->image->size;
    return state->image->addr;
}

void ggml_hugepages_state_close(ggml_hugepages_state_t state, bool keep) noexcept {
    auto & file = *state->file;
    if (!keep) {
        file.unlink();
    } else if (file.is_filling()) {
        file.complete(state->image->addr, 0, file.size);
    }
    file.finish();
    ggml_hugepages_unmap_buffer(*state->image);
    delete state;
}

void ggml_hugepages_states(const void * kv, size_t head_size, ggml_hugepages_state_callback callback, void * user_data) noexcept {
    ggml_hugepages_error error = {};
    ggml_hugepages_guard(&error, [&] {
        ggml_hugepages_params params;
        const auto context = context_of(kv, &params);
        if (!context) {
            return false;
        }
        std::vector<uint8_t> head(head_size);
        ggml_hugepages_each_state(*context->dir, context->name, geteuid(), [&](const auto & state) {
            if (!state.is_complete) {
                ggml_hugepages_resident_drop(*context->dir, state.name.c_str(), /*.force =*/ false, &error); // fails while it is saved
            } else if (head_size <= state.size && ggml_hugepages_read_all(state.fd, head.data(), head_size, 0)) {
                callback(state.id, head.data(), user_data);
            }
        });
        return true;
    });
}

void ggml_hugepages_state_drop(const void * kv, uint64_t id) noexcept {
    ggml_hugepages_error error = {};
    ggml_hugepages_guard(&error, [&] {
        ggml_hugepages_params params;
        const auto context = context_of(kv, &params);
        const auto state   = context ? find_state(*context, id) : ggml_hugepages_state_file{};
        return !state.name.empty() && ggml_hugepages_resident_drop(*context->dir, state.name.c_str(), /*.force =*/ false, &error);
    });
}

#endif // __linux__
