#ifdef __linux__

#include "store-evict.h"
#include "store-directory.h"
#include "store-states.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cinttypes>
#include <memory>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static std::shared_ptr<int> open_store(const ggml_hugepages_params & params, size_t page_size) {
    std::string path;
    size_t found = 0;
    ggml_hugepages_error error = {};
    const int fd = ggml_hugepages_store_open(params.store, page_size, path, &found, &error);
    return fd == -1 ? nullptr : std::shared_ptr<int>(new int(fd), [](int * p) { close(*p); delete p; });
}

static std::vector<ggml_hugepages_idle_image> idle_images(int dir_fd, size_t page_size, const std::set<std::string> & kept, bool all) {
    std::vector<ggml_hugepages_idle_image> result;
    ggml_hugepages_each_image(dir_fd, [&](const char * name) {
        ggml_hugepages_error error = {};
        const auto info = std::make_unique<ggml_hugepages_resident_info>();
        struct stat st = {};
        if (kept.count(name) != 0 || fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) != 0 || (st.st_uid != geteuid() && geteuid() != 0)) {
            return;
        }
        if (ggml_hugepages_resident_read(dir_fd, name, info.get(), &error) && info->page_size == page_size && !info->is_attached && !info->is_filling &&
                (all || ggml_hugepages_is_state(info->identity))) {
            result.push_back({ name, info->source, info->kind == GGML_HUGEPAGES_KIND_KV, ggml_hugepages_is_state(info->identity), info->used_bytes/page_size, info->used });
        }
    });
    std::sort(result.begin(), result.end(), [](const auto & a, const auto & b) { return a.used < b.used; });
    return result;
}

std::vector<ggml_hugepages_idle_image> ggml_hugepages_idle_images(
        const ggml_hugepages_params & params, size_t page_size, const std::set<std::string> & kept, bool all) {
    const auto dir = open_store(params, page_size);
    return dir ? idle_images(*dir, page_size, kept, all) : std::vector<ggml_hugepages_idle_image>();
}

uint64_t ggml_hugepages_evict(const ggml_hugepages_params & params, size_t page_size, const std::set<std::string> & kept, uint64_t pages) {
    uint64_t removed = 0;
    const auto dir = open_store(params, page_size);
    if (!dir) {
        return removed;
    }
    for (const auto & image : idle_images(*dir, page_size, kept, params.evict)) {
        if (removed >= pages) {
            break;
        }
        ggml_hugepages_error error = {};
        // fails if a process attached in between, or if the image belongs to another user
        if (ggml_hugepages_resident_drop(*dir, image.name.c_str(), false, &error)) {
            GGML_LOG_WARN("%s: removed %s of %s from the store, because this model needs its %" PRIu64 " pages\n", __func__,
                image.is_state ? "a saved prompt" : image.is_context ? "the conversations" : "an image", image.source.c_str(), image.pages);
            removed += image.pages;
        }
    }
    return removed;
}

#endif // __linux__
