// The description of an image. It maps nothing.

#ifdef __linux__

#include "image.h"
#include "file.h"

#include <algorithm>

#include <unistd.h>

ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size) {
    auto * image = new ggml_hugepages_image();
    image->fd     = fd;
    const std::string path = ggml_hugepages_path_of(fd);
    image->path   = path.empty() ? "fd " + std::to_string(fd) : "'" + path + "'";
    image->fd_page = ggml_hugepages_page_of(fd);
    image->size   = size;
    image->length = size;
    return image;
}

void ggml_hugepages_close_memfds(ggml_hugepages_image & image) {
    for (const auto & [_, fd] : image.memfds) {
        close(fd); // the mappings keep the pages
    }
    image.memfds.clear();
}

void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last, ggml_hugepages_rank rank) {
    GGML_ASSERT(first <= last && last <= image->size);
    image->wants.push_back({ first, last, rank });
}

bool ggml_hugepages_image_is_wanted(ggml_hugepages_image_t image) {
    return !image->wants.empty();
}

bool ggml_hugepages_image_is_huge(ggml_hugepages_image_t image) {
    return image->fd_page != 0;
}

size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image) {
    size_t result = std::max<size_t>(4096, image->fd_page);
    result = std::max<size_t>(result, sysconf(_SC_PAGESIZE));
    for (const auto & r : image->runs) {
        result = std::max(result, r.page_size);
    }
    return result;
}

size_t ggml_hugepages_image_length(ggml_hugepages_image_t image) {
    return image->length;
}

void ggml_hugepages_image_share(ggml_hugepages_image_t image, const ggml_hugepages_matrices * matrices) {
    auto & all = image->matrices;
    const auto at = std::upper_bound(all.begin(), all.end(), *matrices, [](const auto & a, const auto & b) { return a.first < b.first; });
    all.insert(at, *matrices);
}

void ggml_hugepages_image_expect(ggml_hugepages_image_t image, size_t first, size_t last) {
    GGML_ASSERT(first <= last && last <= image->size);
    image->expected.emplace_back(first, last);
}

void ggml_hugepages_image_on_arrival(ggml_hugepages_image_t image, ggml_hugepages_arrived_callback callback, void * user_data) {
    image->arrived      = callback;
    image->arrived_data = user_data;
}

bool ggml_hugepages_image_read(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last) {
    if (image->fd_page != 0) {
        // already in memory
        *first = 0;
        *last  = image->size;
        return i == 0;
    }
    if (i < image->runs.size()) {
        *first = image->runs[i].first;
        *last  = image->runs[i].last;
        return true;
    }
    i -= image->runs.size();
    if (i < image->expected.size()) {
        *first = image->expected[i].first;
        *last  = image->expected[i].second;
        return true;
    }
    return false;
}

#endif // __linux__
