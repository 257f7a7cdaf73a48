// Ranges of huge pages that several buffers share.
//
// Only whole huge pages can be mapped. So that a KV cache of 512 MiB and a compute buffer of 98 MiB need one page of 1 GiB and not two, they
// are parts of one mapping:
//
//   range   [ KV cache | compute | repacked |   room   ]     an image without a file
//   pages   [      1 GiB      |       1 GiB           ]
//
// A range is populated as a whole, before its first buffer exists. A page returns to the pool when no buffer uses a byte of it and no byte
// of it is kept.

#ifdef __linux__

#include "shared-range.h"
#include "held-pages.h"
#include "map.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <mutex>
#include <set>

#include <sys/mman.h>

void ggml_hugepages_range_delete::operator()(ggml_hugepages_image * range) const {
    if (range->addr) {
        munmap(range->addr, range->length);
    }
    ggml_hugepages_close_memfds(*range);
    delete range;
}

uint64_t ggml_hugepages_buffer_size(const ggml_hugepages_params * params, uint64_t size) noexcept {
    const bool   is_any    = params->page_size == GGML_HUGEPAGES_SIZE_AUTO || params->page_size == GGML_HUGEPAGES_SIZE_THP;
    const size_t page_size = is_any ? ggml_hugepages_page_size("") : params->page_size;
    if (page_size == 0) {
        return size;
    }
    const bool is_ordinary = params->page_size == GGML_HUGEPAGES_SIZE_THP && size < page_size;
    return is_ordinary ? 0 : ggml_hugepages_align_up(size, ggml_hugepages_unit(page_size));
}

namespace {

// bytes for buffers of one kind and model
struct kept {
    uint32_t             model_id;
    ggml_hugepages_kind  kind;
    ggml_hugepages_range bytes;
};

struct shared_range {
    ggml_hugepages_range_ptr image;
    std::vector<kept>        parts;
    ggml_hugepages_ranges    used;
    std::set<uint32_t>       open; // models that still allocate buffers after their load

    ggml_hugepages_ranges taken() const {
        auto result = used;
        for (const auto & part : parts) {
            result.push_back(part.bytes);
        }
        return ggml_hugepages_normalized(result);
    }

    ggml_hugepages_ranges on_huge() const {
        ggml_hugepages_ranges result;
        for (const auto & r : image->runs) {
            result.emplace_back(r.first, r.last);
        }
        return ggml_hugepages_normalized(result);
    }

    // free bytes on huge pages
    ggml_hugepages_ranges rooms() const { return ggml_hugepages_minus(on_huge(), taken()); }

    size_t page_size_at(size_t offset) const {
        for (const auto & r : image->runs) {
            if (r.first <= offset && offset < r.last) {
                return r.page_size;
            }
        }
        return 0;
    }

    void keep(const kept & part) {
        parts.push_back(part);
        std::sort(parts.begin(), parts.end(), [](const auto & a, const auto & b) { return a.bytes < b.bytes; });
        std::vector<kept> joined;
        for (const auto & p : parts) {
            const bool continues = !joined.empty() && joined.back().bytes.second == p.bytes.first && joined.back().model_id == p.model_id && joined.back().kind == p.kind;
            if (continues) {
                joined.back().bytes.second = p.bytes.second;
            } else if (p.bytes.first < p.bytes.second) {
                joined.push_back(p);
            }
        }
        parts = std::move(joined);
    }

    bool contains(const uint8_t * addr) const { return image->addr <= addr && addr < image->addr + image->length; }

    void place(ggml_hugepages_image & buffer, size_t at, size_t size) {
        buffer.is_shared = true;
        buffer.is_lazy   = false;
        buffer.addr      = image->addr + at;
        buffer.wanted    = { { 0, buffer.size } };
        buffer.runs.clear();
        for (auto r : image->runs) {
            r.first = std::max(r.first, at) - at;
            r.last  = std::min(r.last, at + buffer.size);
            if (r.last > at + r.first) {
                r.last -= at;
                buffer.runs.push_back(r);
            }
        }
        used.emplace_back(at, at + size);
        used = ggml_hugepages_normalized(used);
    }

    // Returns ordinary memory: with prefer, a range has some between its pages.
    void return_ordinary(const ggml_hugepages_range & bytes) const {
        for (const auto & r : ggml_hugepages_minus({ bytes }, on_huge())) {
            ggml_hugepages_advise(image->addr + r.first, r.second - r.first, MADV_DONTNEED);
        }
    }

    // Returns the pages that have no byte in use. Without an open memfd they return with the whole range.
    void return_unused() {
        const auto taken_now = taken();
        const auto runs      = image->runs;
        for (const auto & r : runs) {
            for (size_t page = r.first; page < r.last && image->memfds.count(r.page_size) > 0; page += r.page_size) {
                ggml_hugepages_error error = {};
                if (ggml_hugepages_overlap(taken_now, page, page + r.page_size) == 0 && !ggml_hugepages_drop(*image, r.page_size, page, page + r.page_size, &error)) {
                    GGML_LOG_WARN("%s: cannot return a huge page: %s\n", __func__, error.message);
                    used.emplace_back(page, page + r.page_size); // it may have lost its mapping, so no buffer gets it
                    used = ggml_hugepages_normalized(used);
                }
            }
        }
    }
};

}

static std::mutex g_mutex; // for g_ranges and its elements
// never destroyed: at the exit of the process, other threads may still use their buffers
static auto & g_ranges = *new std::vector<shared_range>();

static size_t size_in_range(size_t size) {
    return ggml_hugepages_align_up(size, GGML_HUGEPAGES_SHARED_UNIT);
}

static bool is_allowed(const ggml_hugepages_params & params, size_t page_size) {
    return params.page_size == GGML_HUGEPAGES_SIZE_AUTO || params.page_size == page_size;
}

// Removes the ranges without a buffer. The caller holds g_mutex.
static void remove_empty() {
    const auto is_empty = [](const auto & range) { return range.used.empty() && range.parts.empty(); };
    g_ranges.erase(std::remove_if(g_ranges.begin(), g_ranges.end(), is_empty), g_ranges.end());
}

std::vector<ggml_hugepages_room> ggml_hugepages_rooms() {
    std::lock_guard<std::mutex> lock(g_mutex);
    std::vector<ggml_hugepages_room> result;
    for (const auto & range : g_ranges) {
        for (const auto & r : range.rooms()) {
            result.push_back({ range.page_size_at(r.first), r.second - r.first });
        }
    }
    return result;
}

ggml_hugepages_room * ggml_hugepages_find_room(std::vector<ggml_hugepages_room> & rooms, uint64_t bytes, const ggml_hugepages_params & params) {
    const auto it = std::find_if(rooms.begin(), rooms.end(), [&](const auto & room) { return room.bytes >= bytes && is_allowed(params, room.page_size); });
    return it == rooms.end() ? nullptr : &*it;
}

// The range with the first room, and its offset; nullptr if none is large enough. The caller holds g_mutex.
static shared_range * find_room(size_t size, const ggml_hugepages_params & params, size_t * at) {
    for (auto & range : g_ranges) {
        for (const auto & r : range.rooms()) {
            if (r.second - r.first >= size && is_allowed(params, range.page_size_at(r.first))) {
                *at = r.first;
                return &range;
            }
        }
    }
    return nullptr;
}

static void keep_parts(shared_range & range, uint32_t model_id, const std::vector<ggml_hugepages_part> & parts, size_t at) {
    for (const auto & part : parts) {
        if (ggml_hugepages_follows_load(part.kind)) {
            range.open.insert(model_id);
        }
        range.keep({ model_id, part.kind, { at + part.first, at + part.last } });
    }
}

void ggml_hugepages_shared_add(ggml_hugepages_range_ptr range, uint32_t model_id, const std::vector<ggml_hugepages_part> & parts) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_ranges.push_back({ std::move(range), {}, {}, {} });
    keep_parts(g_ranges.back(), model_id, parts, 0);
}

bool ggml_hugepages_shared_keep(const ggml_hugepages_share & share, const ggml_hugepages_params & params) {
    std::lock_guard<std::mutex> lock(g_mutex);
    size_t at = 0;
    auto * range = find_room(share.size, params, &at);
    if (range) {
        keep_parts(*range, params.model_id, share.parts, at);
    }
    return range != nullptr;
}

bool ggml_hugepages_shared_take(ggml_hugepages_image & buffer) {
    // the plan counted these pages for this buffer
    const bool is_held = ggml_hugepages_is_held(buffer.params.model_id, buffer.kind);
    std::lock_guard<std::mutex> lock(g_mutex);
    const size_t size = size_in_range(buffer.size);
    for (auto & range : g_ranges) {
        for (auto & part : range.parts) {
            if (part.model_id == buffer.params.model_id && part.kind == buffer.kind && part.bytes.second - part.bytes.first >= size) {
                const size_t at = part.bytes.first;
                part.bytes.first += size;
                if (part.bytes.first == part.bytes.second) {
                    range.parts.erase(range.parts.begin() + (&part - range.parts.data()));
                }
                range.place(buffer, at, size);
                return true;
            }
        }
    }
    // A part that is too small for this buffer is room for it, together with what is free beside it.
    const auto is_for_it = [&](const kept & part) { return part.model_id == buffer.params.model_id && part.kind == buffer.kind; };
    bool is_freed = false;
    for (auto & range : g_ranges) {
        const auto end = std::remove_if(range.parts.begin(), range.parts.end(), is_for_it);
        is_freed = is_freed || end != range.parts.end();
        range.parts.erase(end, range.parts.end());
    }
    size_t at = 0;
    auto * range = is_held ? nullptr : find_room(size, buffer.params, &at);
    if (range) {
        range->place(buffer, at, size);
    }
    for (auto & other : g_ranges) {
        if (is_freed) {
            other.return_unused();
        }
    }
    return range != nullptr;
}

void ggml_hugepages_shared_begin(ggml_hugepages_image & buffer) {
    if (buffer.runs.empty() || buffer.is_lazy || buffer.resident || buffer.is_thp()) {
        return;
    }
    const auto & last = buffer.runs.back();
    const size_t size = size_in_range(buffer.size);
    if (last.owner != GGML_HUGEPAGES_OWNER_PROCESS || last.page_size <= GGML_HUGEPAGES_SHARED_UNIT || last.last < size + GGML_HUGEPAGES_SHARED_UNIT) {
        return;
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    g_ranges.push_back({ ggml_hugepages_range_ptr(new ggml_hugepages_image(buffer)), {}, {}, {} });
    buffer.memfds.clear(); // the range closes them
    buffer.length = buffer.size;
    g_ranges.back().place(buffer, 0, size);
}

void ggml_hugepages_shared_return(const ggml_hugepages_image & buffer) {
    std::lock_guard<std::mutex> lock(g_mutex);
    for (auto & range : g_ranges) {
        if (range.contains(buffer.addr)) {
            const size_t at = buffer.addr - range.image->addr;
            const ggml_hugepages_range bytes = { at, at + size_in_range(buffer.size) };
            range.used = ggml_hugepages_minus(range.used, { bytes });
            range.return_ordinary(bytes);
            // the start may free a compute buffer and allocate another one
            if (ggml_hugepages_follows_load(buffer.kind) && range.open.count(buffer.params.model_id) > 0) {
                range.keep({ buffer.params.model_id, buffer.kind, bytes });
            } else {
                range.return_unused();
            }
        }
    }
    remove_empty();
}

void ggml_hugepages_shared_end(uint32_t model_id) {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto is_of_model = [&](const kept & part) { return part.model_id == model_id; };
    for (auto & range : g_ranges) {
        range.open.erase(model_id);
        range.parts.erase(std::remove_if(range.parts.begin(), range.parts.end(), is_of_model), range.parts.end());
        range.return_unused();
    }
    remove_empty();
}

#endif // __linux__
