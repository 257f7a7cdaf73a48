// Resident contexts: the buffers of a KV cache that remain in a store.
//
//   | buffers |  | journal |     | manifest |
//   0            kv_bytes  size             length

#ifdef __linux__

#include "context.h"
#include "buffer.h"
#include "error.h"
#include "held-contexts.h"
#include "registry.h"
#include "store-file.h"
#include "store-states.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>

#include <fcntl.h>
#include <unistd.h>

// a context that is removed at exit
struct wiped_context {
    int         dir_fd;
    std::string name;
    std::weak_ptr<ggml_hugepages_store_file> file; // while this process uses it
};

static std::mutex                 g_mutex;
static std::vector<wiped_context> g_wiped;

static void wipe() {
    for (const auto & wiped : g_wiped) {
        ggml_hugepages_error error = {};
        ggml_hugepages_each_state(wiped.dir_fd, wiped.name, geteuid(), [&](const ggml_hugepages_state_file & state) {
            ggml_hugepages_resident_drop(wiped.dir_fd, state.name.c_str(), /*.force =*/ false, &error);
        });
        if (const auto file = wiped.file.lock()) {
            file->unlink();
            file->lock.reset();
        } else if (!ggml_hugepages_resident_drop(wiped.dir_fd, wiped.name.c_str(), /*.force =*/ false, &error) &&
                faccessat(wiped.dir_fd, wiped.name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
            // while this process slept, another one took it over
            GGML_LOG_WARN("%s: the conversations in '%s' are not removed: %s\n", __func__, wiped.name.c_str(), error.message);
        }
    }
}

static void wipe_at_exit(const std::shared_ptr<ggml_hugepages_store_file> & file) {
    std::lock_guard<std::mutex> lock(g_mutex);
    static const int registered = std::atexit(wipe);
    GGML_UNUSED(registered);
    const auto it = std::find_if(g_wiped.begin(), g_wiped.end(), [&](const auto & wiped) { return wiped.name == file->name; });
    if (it != g_wiped.end()) {
        it->file = file;
        return;
    }
    const int dir_fd = fcntl(*file->dir, F_DUPFD_CLOEXEC, 0);
    if (dir_fd != -1) {
        g_wiped.push_back({ dir_fd, file->name, file });
    }
}

ggml_hugepages_resident_t ggml_hugepages_context_init(int fd, const char * name, const char * identity, size_t size) {
    return ggml_hugepages_resident_init(GGML_HUGEPAGES_KIND_KV, fd, name, identity, size);
}

std::unique_ptr<ggml_hugepages_image> ggml_hugepages_map_context(
        const std::shared_ptr<ggml_hugepages_store_file> & file, const ggml_hugepages_params & params, ggml_hugepages_error * error) {
    auto buffer = std::make_unique<ggml_hugepages_image>();
    buffer->kind     = GGML_HUGEPAGES_KIND_KV;
    buffer->path     = "the context";
    buffer->size     = file->size;
    buffer->length   = file->size;
    buffer->params   = params;
    buffer->resident = file;
    buffer->wants.push_back({ 0, file->size, GGML_HUGEPAGES_RANK_KV });
    buffer->is_old_context = file->fd != -1 && file->is_complete();
    if (!ggml_hugepages_map_buffer(*buffer, params, error)) {
        return nullptr;
    }
    if (!buffer->resident || !ggml_hugepages_is_in_store(*buffer)) {
        file->give_up();
        ggml_hugepages_unmap_buffer(*buffer);
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "too few huge pages for the context in the store");
        return nullptr;
    }
    return buffer;
}

bool ggml_hugepages_context_hold(ggml_hugepages_resident_t context, const ggml_hugepages_params * params, ggml_hugepages_error * error) {
    auto & file = context->file;
    auto buffer = ggml_hugepages_map_context(file, *params, error);
    if (!buffer) {
        return false;
    }
    file->settle_context();
    if (params->wipe_context) {
        wipe_at_exit(file);
    }
    ggml_hugepages_held_context_add(std::move(buffer));
    return true;
}

void * ggml_hugepages_context_journal(const void * kv, size_t * size, bool * is_old) {
    const auto * buffer = ggml_hugepages_find_buffer(kv);
    if (!buffer || !buffer->resident || !buffer->resident->is_context()) {
        return nullptr;
    }
    *size   = buffer->size - buffer->params.kv_bytes;
    *is_old = buffer->is_old_context;
    return buffer->addr + buffer->params.kv_bytes;
}

#endif // __linux__
