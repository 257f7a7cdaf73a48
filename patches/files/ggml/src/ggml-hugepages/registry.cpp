#ifdef __linux__

#include "registry.h"
#include "held-pages.h"

#include <algorithm>
#include <mutex>

std::atomic<uint64_t> ggml_hugepages_n_attached{0};

// The mutex is needed because a thread other than the loader may read the images and buffers for a report.
static std::mutex                          g_mutex;
static std::vector<ggml_hugepages_image_t> g_images;
static std::vector<std::unique_ptr<ggml_hugepages_image>> g_buffers;
static std::atomic<size_t>                 g_n_buffers{0};
static std::map<uint32_t, ggml_hugepages_load> g_loads; // by model; 0: the last load of any model
static std::map<const ggml_hugepages_image *, std::map<size_t, uint64_t>> g_promised; // reserved and untouched pages, by size

static bool is_of(const ggml_hugepages_image & image, uint32_t model_id) {
    return model_id == 0 || image.params.model_id == model_id;
}

std::vector<ggml_hugepages_image> ggml_hugepages_alive(uint32_t model_id) {
    std::lock_guard<std::mutex> lock(g_mutex);
    std::vector<ggml_hugepages_image> result;
    for (const auto * image : g_images) {
        if (is_of(*image, model_id)) {
            result.push_back(*image);
        }
    }
    for (const auto & buffer : g_buffers) {
        // writers of a lazy buffer still populate it
        if (!buffer->is_lazy && is_of(*buffer, model_id)) {
            result.push_back(*buffer);
        }
    }
    return result;
}

// Forgets the load of a model without images and buffers. The caller holds g_mutex.
static void forget_load(uint32_t model_id) {
    const auto is_of_model = [&](const auto & image) { return image->params.model_id == model_id; };
    if (model_id != 0 && std::none_of(g_images.begin(), g_images.end(), is_of_model) && std::none_of(g_buffers.begin(), g_buffers.end(), is_of_model)) {
        g_loads.erase(model_id);
    }
}

void ggml_hugepages_register_images(ggml_hugepages_image_t * images, size_t n_images) {
    std::lock_guard<std::mutex> lock(g_mutex);
    for (size_t i = 0; i < n_images; i++) {
        if (images[i]->addr) {
            g_images.push_back(images[i]);
        }
    }
}

void ggml_hugepages_image_free(ggml_hugepages_image_t image) {
    if (!image) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(g_mutex);
        g_images.erase(std::remove(g_images.begin(), g_images.end(), image), g_images.end());
        g_promised.erase(image);
        forget_load(image->params.model_id);
    }
    ggml_hugepages_close_memfds(*image);
    delete image;
}

void ggml_hugepages_register_buffer(std::unique_ptr<ggml_hugepages_image> buffer) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_buffers.push_back(std::move(buffer));
    g_n_buffers = g_buffers.size();
}

ggml_hugepages_image * ggml_hugepages_find_buffer(const void * ptr) {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto it = std::find_if(g_buffers.begin(), g_buffers.end(), [&](const auto & b) { return b->addr <= ptr && ptr < b->addr + b->length; });
    return it == g_buffers.end() ? nullptr : it->get();
}

bool ggml_hugepages_is_buffer(const void * ptr) {
    return g_n_buffers > 0 && ggml_hugepages_find_buffer(ptr);
}

std::unique_ptr<ggml_hugepages_image> ggml_hugepages_take_buffer(const void * ptr) {
    std::unique_ptr<ggml_hugepages_image> buffer;
    if (g_n_buffers == 0) {
        return buffer; // without huge pages, a free costs no lock
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto it = std::find_if(g_buffers.begin(), g_buffers.end(), [&](const auto & b) { return b->addr == ptr; });
    if (it != g_buffers.end()) {
        buffer = std::move(*it);
        g_buffers.erase(it);
        g_n_buffers = g_buffers.size();
        forget_load(buffer->params.model_id);
    }
    return buffer;
}

ggml_hugepages_ranges ggml_hugepages_pool_ranges(const void * addr, size_t size) {
    std::lock_guard<std::mutex> lock(g_mutex);
    ggml_hugepages_ranges result;
    const size_t first = (size_t) addr;
    const auto add = [&](const ggml_hugepages_image & image) {
        for (const auto & r : image.runs) {
            const size_t begin = std::max(first, (size_t) image.addr + r.first);
            const size_t end   = std::min(first + size, (size_t) image.addr + r.last);
            if (begin < end && !image.is_thp()) {
                result.emplace_back(begin - first, end - first);
            }
        }
    };
    for (const auto * image : g_images) {
        add(*image);
    }
    for (const auto & buffer : g_buffers) {
        add(*buffer);
    }
    return ggml_hugepages_normalized(result);
}

void ggml_hugepages_end_lazy(ggml_hugepages_image & buffer) {
    std::lock_guard<std::mutex> lock(g_mutex);
    buffer.is_lazy = false;
}

uint64_t ggml_hugepages_promised(size_t page_size, const ggml_hugepages_image * except) {
    uint64_t pages = ggml_hugepages_all_held_pages(page_size);
    std::lock_guard<std::mutex> lock(g_mutex);
    for (const auto & [image, promised] : g_promised) {
        const auto it = promised.find(page_size);
        pages += image == except || it == promised.end() ? 0 : it->second;
    }
    return pages;
}

void ggml_hugepages_promise(const ggml_hugepages_image & image, const std::map<size_t, uint64_t> & pages) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_promised[&image] = pages;
}

void ggml_hugepages_forget_promise(const ggml_hugepages_image & image) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_promised.erase(&image);
}

void ggml_hugepages_set_load(uint32_t model_id, const ggml_hugepages_load & load) {
    std::lock_guard<std::mutex> lock(g_mutex);
    auto & last = g_loads[0];
    last = load;
    last.bytes_attached += ggml_hugepages_n_attached.exchange(0);
    g_loads[model_id] = last;
}

ggml_hugepages_load ggml_hugepages_last_load(uint32_t model_id) {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto it = g_loads.find(model_id);
    return it == g_loads.end() ? ggml_hugepages_load{} : it->second;
}

#endif // __linux__
