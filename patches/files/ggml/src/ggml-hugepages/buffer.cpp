// Buffers: images without a file. They take their pages from those that the plan held for them, or from the pool.

#ifdef __linux__

#include "buffer.h"
#include "error.h"
#include "held-contexts.h"
#include "held-pages.h"
#include "kernel.h"
#include "map.h"
#include "overlay.h"
#include "params.h"
#include "placement.h"
#include "policy.h"
#include "read.h"
#include "registry.h"
#include "shared-range.h"
#include "stopwatch.h"
#include "store-file.h"
#include "syscalls.h"
#include "thp.h"
#include "threads.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>

#include <sys/mman.h>

void ggml_hugepages_unmap_buffer(ggml_hugepages_image & buffer) {
    ggml_hugepages_forget_promise(buffer);
    ggml_hugepages_close_memfds(buffer);
    if (buffer.addr && !buffer.is_malloc) {
        munmap(buffer.addr, buffer.length);
    }
    for (const auto & r : buffer.runs) {
        if (r.owner == GGML_HUGEPAGES_OWNER_HELD) {
            ggml_hugepages_held_return(r);
        }
    }
    buffer.runs.clear();
    buffer.addr = nullptr;
}

bool ggml_hugepages_is_in_store(const ggml_hugepages_image & buffer) {
    size_t covered = 0;
    for (const auto & r : buffer.runs) {
        covered += r.is_in_store() ? r.last - r.first : 0;
    }
    return covered >= buffer.size;
}

static bool is_attached(const ggml_hugepages_image & buffer) {
    return buffer.resident && buffer.resident->is_complete();
}

// plans the buffer on pages of this process, because the store lacks room for all of it
static bool leave_store(ggml_hugepages_image & buffer, const ggml_hugepages_params & params, ggml_hugepages_error * error) {
    auto * handle = &buffer;
    buffer.resident->give_up();
    buffer.resident.reset();
    return ggml_hugepages_plan(&handle, 1, nullptr, 0, &params, error);
}

bool ggml_hugepages_map_buffer(ggml_hugepages_image & buffer, const ggml_hugepages_params & params, ggml_hugepages_error * error) {
    auto * handle = &buffer;
    const bool accepts_less = ggml_hugepages_accepts_less(&params);
    bool planned = ggml_hugepages_plan(&handle, 1, nullptr, 0, &params, error);
    // a resident buffer is shared as a whole or not at all
    if (planned && buffer.resident && !is_attached(buffer) && (!ggml_hugepages_is_in_store(buffer) || !buffer.resident->begin(error))) {
        planned = accepts_less && leave_store(buffer, params, error);
        if (!planned && !accepts_less && error->status == GGML_HUGEPAGES_STATUS_SHORT) {
            const auto & file = *buffer.resident;
            return ggml_hugepages_fail_load(&handle, 1, buffer, { "madvise", EFAULT, file.page_size, file.sums_at, true }, error);
        }
    } else if (!planned && accepts_less && buffer.resident) {
        planned = leave_store(buffer, params, error);
    }
    if (!planned) {
        if (!accepts_less) {
            return false;
        }
        buffer.runs.clear();
        buffer.wanted = { { 0, buffer.size } };
    }
    if (!ggml_hugepages_map_image(buffer, error)) {
        return false;
    }
    if (is_attached(buffer) && buffer.resident->is_context()) {
        // a context is written by its process
        for (auto & r : buffer.runs) {
            r.owner = GGML_HUGEPAGES_OWNER_FILLING;
        }
        return ggml_hugepages_map_runs(buffer, error);
    }
    if (is_attached(buffer)) {
        buffer.is_lazy = false;
        ggml_hugepages_n_attached += buffer.size;
        return ggml_hugepages_map_runs(buffer, error) && ggml_hugepages_protect(buffer, error);
    }
    ggml_hugepages_refusal refusal = {};
    ggml_hugepages_image * refused = nullptr;
    bool ok = ggml_hugepages_reserve_runs(&handle, 1, error) && ggml_hugepages_map_runs(buffer, error) && ggml_hugepages_map_gaps(buffer, error);
    if (ok && buffer.is_thp()) {
        ok = ggml_hugepages_populate_thp(&handle, 1, error);
    } else if (ok) {
        ok = (accepts_less || ggml_hugepages_populate_ahead(&handle, 1, nullptr, nullptr, &refused, &refusal, error)) &&
            ggml_hugepages_populate_all(buffer, &refused, &refusal, error);
    }
    if (!ok) {
        if (refused) {
            ggml_hugepages_fail_load(&handle, 1, buffer, refusal, error);
        }
        ggml_hugepages_unmap_buffer(buffer);
        return false;
    }
    if (!buffer.is_lazy) {
        ggml_hugepages_close_memfds(buffer);
        ggml_hugepages_forget_promise(buffer);
    }
    return true;
}

// Two threads may populate the page that their parts share. If the kernel refuses it to one of them and ordinary memory replaces it, bytes
// that the other thread wrote would be lost. So with a policy that accepts less, only one thread populates at a time.
static std::mutex g_lazy_mutex;

static bool populate_lazy(ggml_hugepages_image & buffer, size_t first, size_t last, ggml_hugepages_error * error) {
    std::unique_lock<std::mutex> lock(g_lazy_mutex);
    struct todo { ggml_hugepages_range range; size_t page_size; };
    std::vector<todo> todos;
    for (const auto & r : buffer.runs) {
        if (r.first < last && first < r.last) {
            const size_t begin = std::max(r.first, ggml_hugepages_align_down(first, r.page_size));
            const size_t end   = std::min(r.last,  ggml_hugepages_align_up(last, r.page_size));
            for (const auto & range : ggml_hugepages_minus({ { begin, end } }, buffer.populated)) {
                todos.push_back({ range, r.page_size });
            }
        }
    }
    const bool accepts_less = ggml_hugepages_accepts_less(&buffer.params);
    for (const auto & [range, page_size] : todos) {
        if (!accepts_less) {
            lock.unlock();
        }
        const bool ok  = ggml_hugepages_populate_placed(buffer, range.first, range.second, page_size);
        const int  err = errno;
        if (!accepts_less) {
            lock.lock();
        }
        if (!ok && !accepts_less) {
            if (buffer.refused == 0) {
                buffer.refused    = err;
                buffer.refused_at = range.first;
            }
            return false;
        }
        for (size_t page = range.first; !ok && page < range.second; page += page_size) {
            if (!ggml_hugepages_populate_placed(buffer, page, page + page_size, page_size) && !ggml_hugepages_policy_refused(buffer,
                    { "madvise", errno, page_size, page, buffer.resident != nullptr }, page, page + page_size, error)) {
                return false;
            }
        }
        buffer.populated.push_back(range);
        buffer.populated = ggml_hugepages_normalized(buffer.populated);
    }
    return true;
}

bool ggml_hugepages_buffer_populate(void * ptr, size_t size) {
    auto * buffer = ggml_hugepages_find_buffer(ptr);
    if (!buffer || !buffer->is_lazy) {
        return true;
    }
    ggml_hugepages_stopwatch time(ggml_hugepages_us_populate);
    const size_t first = (uint8_t *) ptr - buffer->addr;
    ggml_hugepages_error error = {};
    const bool ok = populate_lazy(*buffer, first, std::min(first + size, buffer->size), &error);
    if (!ok && error.message[0]) {
        GGML_LOG_ERROR("%s: %s\n", __func__, error.message);
    }
    return ok;
}

// completes a fully written buffer, so that other processes can attach
static bool make_resident(ggml_hugepages_image & buffer, ggml_hugepages_error * error) {
    auto & file = *buffer.resident;
    if (!ggml_hugepages_is_in_store(buffer)) {
        // the kernel refused a page, so only this process keeps the buffer
        GGML_LOG_WARN("%s: '%s' did not get all its pages, so it will not remain in memory after this process ends\n", __func__, file.path.c_str());
        file.unlink();
        file.finish();
        return true;
    }
    std::atomic<size_t> next{0};
    ggml_hugepages_on_threads(ggml_hugepages_n_threads(buffer.params), [&] {
        for (size_t at = next.fetch_add(file.segment); at < file.size; at = next.fetch_add(file.segment)) {
            file.complete(buffer.addr, at, at + file.segment);
        }
    });
    file.finish();
    return ggml_hugepages_protect(buffer, error);
}

bool ggml_hugepages_buffer_settle(void * ptr, ggml_hugepages_error * error) {
    auto * buffer = ggml_hugepages_find_buffer(ptr);
    if (!buffer || !buffer->is_lazy) {
        return true;
    }
    if (buffer->refused == 0 && populate_lazy(*buffer, 0, buffer->size, error)) {
        ggml_hugepages_close_memfds(*buffer);
        ggml_hugepages_forget_promise(*buffer);
        if (buffer->resident && !make_resident(*buffer, error)) {
            return false;
        }
        ggml_hugepages_end_lazy(*buffer);
        return true;
    }
    if (buffer->refused != 0) {
        const auto run = std::find_if(buffer->runs.begin(), buffer->runs.end(), [&](const auto & r) { return buffer->refused_at < r.last; });
        return ggml_hugepages_fail_load(&buffer, 1, *buffer, { "madvise", buffer->refused, run->page_size, buffer->refused_at, run->is_in_store() }, error);
    }
    return false;
}

void * ggml_hugepages_buffer_alloc(size_t size) {
    const ggml_hugepages_scope scope = ggml_hugepages_current_scope();
    if (!scope.params.enabled || size == 0) {
        return ggml_aligned_malloc(size);
    }
    if (void * part = ggml_hugepages_held_context_take(scope, size)) {
        return part;
    }
    auto params = scope.params;
    if (scope.late) {
        params.policy = GGML_HUGEPAGES_POLICY_PREFER;
    }

    auto buffer = std::make_unique<ggml_hugepages_image>();
    buffer->kind   = scope.kind;
    buffer->path   = std::string("a ") + ggml_hugepages_kind_name(scope.kind) + " buffer";
    buffer->size   = size;
    buffer->length = size;
    buffer->params = params;
    // populate_thp counts the THP before the first write, so such a buffer is not lazy
    buffer->is_lazy = scope.lazy && params.page_size != GGML_HUGEPAGES_SIZE_THP;
    buffer->wants.push_back({ 0, size, 0 });
    buffer->matrices.assign(scope.matrices, scope.matrices + scope.n_matrices);
    if (scope.resident && scope.resident->file->is_open() && scope.resident->file->size == size) {
        buffer->resident = scope.resident->file;
    }

    bool thp_enabled = false;
    const size_t smallest = params.page_size == GGML_HUGEPAGES_SIZE_AUTO ? ggml_hugepages_page_size("") :
                            params.page_size == GGML_HUGEPAGES_SIZE_THP  ? ggml_hugepages_thp_size("", &thp_enabled) : params.page_size;
    // a process that only fills a store ends soon
    const bool is_ordinary = size < smallest && (buffer->is_thp() || params.load_only);
    const bool is_shared   = !buffer->is_thp() && !buffer->resident && ggml_hugepages_shared_take(*buffer);
    if (is_ordinary && !is_shared) {
        buffer->is_malloc = true;
        buffer->addr      = (uint8_t *) ggml_aligned_malloc(size);
        buffer->wanted    = { { 0, size } };
    } else {
        ggml_hugepages_error error = {};
        if (!is_shared && !ggml_hugepages_map_buffer(*buffer, params, &error)) {
            ggml_hugepages_set_failure(&error);
            GGML_LOG_ERROR("%s: %.2f MiB for %s: %s\n", __func__, size/1024.0/1024.0, ggml_hugepages_kind_name(scope.kind), error.message);
            if (error.hint[0]) {
                GGML_LOG_ERROR("hint: %s\n", error.hint);
            }
            return nullptr;
        }
        if (scope.late) {
            uint64_t on_huge = 0;
            for (const auto & r : buffer->runs) {
                on_huge += r.last - r.first;
            }
            buffer->late = size - std::min<uint64_t>(size, on_huge);
        }
        if (!is_shared) {
            ggml_hugepages_shared_begin(*buffer);
        }
    }
    if (!buffer->addr) {
        return nullptr;
    }
    void * result = buffer->addr;
    ggml_hugepages_register_buffer(std::move(buffer));
    return result;
}

void ggml_hugepages_buffer_free(void * ptr, size_t size) {
    std::unique_ptr<ggml_hugepages_image> buffer;
    const bool is_in_context = ggml_hugepages_held_context_return(ptr, buffer);
    if (is_in_context && !buffer) {
        return; // other buffers use the context
    }
    if (!is_in_context) {
        buffer = ggml_hugepages_take_buffer(ptr);
    }
    if (buffer && buffer->is_shared) {
        ggml_hugepages_shared_return(*buffer);
    } else if (buffer && !buffer->is_malloc) {
        ggml_hugepages_unmap_buffer(*buffer);
    } else {
        ggml_aligned_free(ptr, size);
    }
}

#endif // __linux__
