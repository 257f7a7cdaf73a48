// Pages that are reserved for the buffers after the weights: KV cache and compute.
//
// The plan counts these pages before the first read, but the buffers are allocated after the last one. Until then a reservation in a memfd
// keeps the pages from other processes. Buffers take pages from the front:
//
//   held   [ a buffer | a buffer |  free, was a buffer  |  reserved  ]
//          0                                            used         end
//
// A shorter file returns a reserved page that was never populated. A hole returns a populated page.

#ifdef __linux__

#include "held-pages.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <mutex>

#include <sys/mman.h>
#include <unistd.h>

struct ggml_hugepages_held {
    uint32_t              model_id;
    ggml_hugepages_kind   kind;
    size_t                page_size;
    int                   fd   = -1;
    size_t                end  = 0; // reserved or used bytes
    size_t                used = 0; // bytes that buffers have used, now or earlier
    ggml_hugepages_ranges free;     // used bytes of freed buffers
    ggml_hugepages_ranges refused;  // used bytes that the kernel refused on touch
    bool                  is_open = true; // buffers may take pages

    ~ggml_hugepages_held() {
        if (fd != -1) {
            close(fd);
        }
    }

    bool is_for(uint32_t other_id, ggml_hugepages_kind other_kind) const {
        return model_id == other_id && kind == other_kind;
    }

    uint64_t pages() const {
        size_t bytes = end - used;
        for (const auto & r : free) {
            bytes += r.second - r.first;
        }
        return bytes/page_size;
    }

    void punch(size_t first, size_t last) const {
        // the close of the file returns the pages in any case
        if (!ggml_hugepages_punch(fd, first, last) && is_open) {
            GGML_LOG_WARN("%s: cannot return %zu huge pages: fallocate: errno %d\n", __func__, (last - first)/page_size, errno);
        }
    }
};

static std::mutex g_mutex; // for g_held and its elements
static std::vector<std::shared_ptr<ggml_hugepages_held>> g_held;

bool ggml_hugepages_hold(uint32_t model_id, const std::vector<ggml_hugepages_grant> & grants, bool accept_less, bool populate, size_t * at_page_size) {
    for (const auto & grant : grants) {
        auto held = std::make_shared<ggml_hugepages_held>();
        held->model_id  = model_id;
        held->kind      = grant.kind;
        held->page_size = grant.page_size;
        held->end       = grant.pages*grant.page_size;
        *at_page_size   = grant.page_size;
        held->fd        = ggml_hugepages_memfd((std::string("llama-") + ggml_hugepages_kind_name(grant.kind)).c_str(), grant.page_size);
        if (held->fd == -1 || !ggml_hugepages_resize(held->fd, held->end) || !ggml_hugepages_reserve(held->fd, 0, held->end)) {
            if (accept_less) {
                continue; // the buffer takes usable pages later
            }
            return false;
        }
        if (populate) {
            void * addr = mmap(nullptr, held->end, PROT_READ | PROT_WRITE, MAP_SHARED, held->fd, 0);
            const bool ok  = addr != MAP_FAILED && ggml_hugepages_populate((uint8_t *) addr, held->end);
            const int  err = errno;
            if (addr != MAP_FAILED) {
                munmap(addr, held->end);
            }
            if (!ok) {
                errno = err;
                return false;
            }
        }
        std::lock_guard<std::mutex> lock(g_mutex);
        g_held.push_back(held);
    }
    return true;
}

void ggml_hugepages_held_end(uint32_t model_id) {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto is_of_other = [&](const auto & held) { return held->model_id != model_id; };
    const auto ended = std::stable_partition(g_held.begin(), g_held.end(), is_of_other);
    for (auto it = ended; it != g_held.end(); ++it) {
        auto & held = *it;
        held->is_open = false;
        for (const auto & r : held->free) {
            held->punch(r.first, r.second);
        }
        if (!ggml_hugepages_resize(held->fd, held->used)) {
            GGML_LOG_WARN("%s: cannot return reserved huge pages: ftruncate: errno %d\n", __func__, errno);
        }
    }
    g_held.erase(ended, g_held.end());
}

// pages of the reservations for which is_counted returns true
template <typename F> static uint64_t held_pages(size_t page_size, F is_counted) {
    std::lock_guard<std::mutex> lock(g_mutex);
    uint64_t pages = 0;
    for (const auto & held : g_held) {
        pages += held->page_size == page_size && is_counted(*held) ? held->pages() : 0;
    }
    return pages;
}

uint64_t ggml_hugepages_held_pages(uint32_t model_id, ggml_hugepages_kind kind, size_t page_size) {
    return held_pages(page_size, [&](const auto & held) { return held.is_for(model_id, kind); });
}

bool ggml_hugepages_is_held(uint32_t model_id, ggml_hugepages_kind kind) {
    std::lock_guard<std::mutex> lock(g_mutex);
    return std::any_of(g_held.begin(), g_held.end(), [&](const auto & held) { return held->is_for(model_id, kind) && held->pages() > 0; });
}

uint64_t ggml_hugepages_all_held_pages(size_t page_size) {
    return held_pages(page_size, [](const auto &) { return true; });
}

void ggml_hugepages_held_take(uint32_t model_id, ggml_hugepages_kind kind, std::vector<ggml_hugepages_run> & runs) {
    std::lock_guard<std::mutex> lock(g_mutex);
    std::vector<ggml_hugepages_run> result;
    for (auto run : runs) {
        for (const auto & held : g_held) {
            while (held->is_for(model_id, kind) && held->page_size == run.page_size && run.first < run.last && held->pages() > 0) {
                auto part = run;
                part.owner = GGML_HUGEPAGES_OWNER_HELD;
                part.held  = held;
                if (!held->free.empty()) {
                    auto & r = held->free.back();
                    const size_t n = std::min(r.second - r.first, run.last - run.first);
                    part.held_at = r.first;
                    part.last    = run.first + n;
                    r.first     += n;
                    if (r.first == r.second) {
                        held->free.pop_back();
                    }
                } else {
                    part.held_at = held->used;
                    part.last    = run.first + std::min(held->end - held->used, run.last - run.first);
                    held->used  += part.last - part.first;
                }
                run.first = part.last;
                result.push_back(part);
            }
        }
        if (run.first < run.last) {
            result.push_back(run);
        }
    }
    runs = std::move(result);
}

int ggml_hugepages_held_fd(const ggml_hugepages_held & held) {
    return held.fd;
}

void ggml_hugepages_held_return(const ggml_hugepages_run & run) {
    std::lock_guard<std::mutex> lock(g_mutex);
    auto & held = *run.held;
    const size_t last = run.held_at + (run.last - run.first);
    if (held.is_open) {
        // the next buffer of the start may need these pages
        held.free.emplace_back(run.held_at, last);
        held.free = ggml_hugepages_normalized(held.free);
    } else {
        held.punch(run.held_at, last);
    }
}

void ggml_hugepages_held_refused(const ggml_hugepages_run & run) {
    std::lock_guard<std::mutex> lock(g_mutex);
    auto & held = *run.held;
    const size_t last = run.held_at + (run.last - run.first);
    held.punch(run.held_at, last);
    // the file can be cut after its last served page
    held.refused.emplace_back(run.held_at, last);
    held.refused = ggml_hugepages_normalized(held.refused);
    if (held.refused.back().second == held.used) {
        held.used = held.refused.back().first;
        held.refused.pop_back();
    }
}

#endif // __linux__
