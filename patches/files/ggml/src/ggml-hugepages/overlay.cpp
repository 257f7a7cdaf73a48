// The way of images from the plan to their contents: reserve, map, fill, protect.
//
// Blocks are ranges of hugetlb memfds, one memfd for each page size, at the same offsets as in the image. A shared mapping of a memfd keeps
// its reservation in the inode, not in the mapping. So the engine reserves the pages with a mapping at any address. A later MAP_FIXED then
// cannot fail for lack of pages; a failed MAP_FIXED would leave a hole in the image, which another thread's mmap could take. The engine
// returns unneeded pages by punching holes.

#ifdef __linux__

#include "overlay.h"
#include "error.h"
#include "held-contexts.h"
#include "held-pages.h"
#include "map.h"
#include "kernel.h"
#include "names.h"
#include "placement.h"
#include "plan.h"
#include "read.h"
#include "registry.h"
#include "shared-range.h"
#include "store-file.h"
#include "syscalls.h"
#include "thp.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstring>
#include <memory>

#include <sys/mman.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// The end of the longest head of a run that can be reserved. Sets errno if this is not the whole run.
static size_t reserve_head(int fd, const ggml_hugepages_run & run) {
    size_t at   = run.first;
    size_t step = run.last - run.first;
    while (at < run.last) {
        step = std::min(step, run.last - at);
        if (ggml_hugepages_reserve(fd, at, at + step)) {
            at += step;
        } else if (errno == ENOMEM && step > run.page_size) {
            step = ggml_hugepages_align_up(step/2, run.page_size);
        } else {
            break;
        }
    }
    return at;
}

// number of pages of the images, without pages that are already allocated in a store
static std::map<size_t, uint64_t> need_of(ggml_hugepages_image_t * images, size_t n) {
    std::map<size_t, uint64_t> need;
    for (size_t i = 0; i < n; i++) {
        for (const auto & r : images[i]->runs) {
            for (size_t at = r.first; at < r.last; at += r.page_size) {
                need[r.page_size] += !r.is_in_store() || !images[i]->resident->has_page(at);
            }
        }
        for (const auto & grant : images[i]->grants) {
            need[grant.page_size] += grant.pages;
        }
        for (const auto & r : images[i]->share.runs) {
            need[r.page_size] += (r.last - r.first)/r.page_size;
        }
        const bool is_filled = std::any_of(images[i]->runs.begin(), images[i]->runs.end(), [](const auto & r) {
            return r.owner == GGML_HUGEPAGES_OWNER_FILLING;
        });
        if (is_filled) {
            need[images[i]->resident->page_size] += images[i]->resident->pages_of_missing_manifest();
        }
    }
    return need;
}

static void release(ggml_hugepages_image_t * images, size_t n_images) {
    for (size_t i = 0; i < n_images; i++) {
        ggml_hugepages_forget_promise(*images[i]);
        if (images[i]->resident) {
            images[i]->resident->give_up();
        }
        for (const auto & [_, fd] : images[i]->memfds) {
            if (!ggml_hugepages_resize(fd, 0)) {
                GGML_LOG_WARN("%s: cannot return huge pages: ftruncate: %s\n", __func__, strerror(errno));
            }
        }
        ggml_hugepages_hold_end(images[i]->params.model_id);
    }
}

bool ggml_hugepages_fail_load(
        ggml_hugepages_image_t *       images,
        size_t                         n,
        const ggml_hugepages_image   & image,
        const ggml_hugepages_refusal & refusal,
        ggml_hugepages_error         * error) {
    const auto need = need_of(images, n);
    release(images, n);
    return ggml_hugepages_fail_refused(need, image, refusal, error);
}

bool ggml_hugepages_reserve_runs(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    struct entry { ggml_hugepages_image * image; ggml_hugepages_run * run; };
    std::vector<entry> entries;
    for (size_t i = 0; i < n; i++) {
        ggml_hugepages_held_take(images[i]->params.model_id, images[i]->kind, images[i]->runs);
        for (auto & r : images[i]->runs) {
            if (!images[i]->is_thp() && r.owner == GGML_HUGEPAGES_OWNER_PROCESS) {
                entries.push_back({ images[i], &r });
            }
        }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const entry & a, const entry & b) { return a.run->rank < b.run->rank; });
    const auto begin = std::chrono::steady_clock::now();
    for (const auto & e : entries) {
        auto & run = *e.run;
        const int    fd  = ggml_hugepages_memfd_of(*e.image, run.page_size);
        const int    err_memfd = errno;
        const size_t end = fd == -1 ? run.first : reserve_head(fd, run);
        if (end == run.last) {
            continue;
        }
        const ggml_hugepages_refusal refusal = { fd == -1 ? "memfd_create" : "mmap", fd == -1 ? err_memfd : errno, run.page_size, end, false };
        if (!ggml_hugepages_accepts_less(&e.image->params)) {
            return ggml_hugepages_fail_load(images, n, *e.image, refusal, error);
        }
        GGML_LOG_WARN("%s: no huge page of %s is left for offset %zu of %s (%s: %s), the rest uses ordinary memory\n", __func__,
            ggml_hugepages_size_name(run.page_size).c_str(), end, e.image->path.c_str(), refusal.call, strerror(refusal.err));
        run.last = end;
    }
    for (size_t i = 0; i < n; i++) {
        auto & runs = images[i]->runs;
        runs.erase(std::remove_if(runs.begin(), runs.end(), [](const auto & r) { return r.first == r.last; }), runs.end());
    }
    if (!entries.empty()) {
        uint64_t n_pages = 0;
        for (size_t i = 0; i < n; i++) {
            std::map<size_t, uint64_t> pages;
            for (const auto & r : images[i]->runs) {
                pages[r.page_size] += r.is_in_store() || images[i]->is_thp() ? 0 : (r.last - r.first)/r.page_size;
            }
            for (const auto & [_, count] : pages) {
                n_pages += count;
            }
            ggml_hugepages_promise(*images[i], pages);
        }
        const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
        GGML_LOG_INFO("%s: reserved %" PRIu64 " huge pages for %s in %.2f ms\n", __func__, n_pages, ggml_hugepages_kind_name(images[0]->kind), ms);
    }
    return true;
}

// Maps the manifest of the resident image writable, if this process fills it. Without a page for the manifest, no page remains in the
// store.
static bool begin_filling(ggml_hugepages_image & image, ggml_hugepages_error * error) {
    const auto is_filling = [](const auto & r) { return r.owner == GGML_HUGEPAGES_OWNER_FILLING; };
    if (!image.resident || std::none_of(image.runs.begin(), image.runs.end(), is_filling) || image.resident->begin(error)) {
        return true;
    }
    if (!ggml_hugepages_accepts_less(&image.params)) {
        return false;
    }
    GGML_LOG_WARN("%s: %s will not remain in memory after this process ends: %s\n", __func__, image.path.c_str(), error->message);
    image.runs.erase(std::remove_if(image.runs.begin(), image.runs.end(), is_filling), image.runs.end());
    return true;
}

// holds the pages that the plan counted for buffers after the weights
static bool hold(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    std::vector<ggml_hugepages_grant> grants;
    for (size_t i = 0; i < n; i++) {
        grants.insert(grants.end(), images[i]->grants.begin(), images[i]->grants.end());
    }
    if (grants.empty()) {
        return true;
    }
    size_t page_size = 0;
    // pages that are populated now have no mapping of their buffer yet
    std::unique_ptr<ggml_hugepages_thread_policy> policy;
    const auto & params = images[0]->params;
    if (images[0]->limits_may_hide && (params.placement == GGML_HUGEPAGES_PLACEMENT_INTERLEAVE || params.placement == GGML_HUGEPAGES_PLACEMENT_ROWS)) {
        policy = std::make_unique<ggml_hugepages_thread_policy>(true, ggml_hugepages_all_nodes(""));
    }
    if (ggml_hugepages_hold(params.model_id, grants, ggml_hugepages_accepts_less(&params), images[0]->limits_may_hide, &page_size)) {
        return true;
    }
    // EFAULT: the kernel refused the page on touch
    return ggml_hugepages_fail_load(images, n, *images[0], { errno == EFAULT ? "madvise" : "mmap", errno, page_size, 0, false }, error);
}

// the range that the plan of these images chose for the buffers after them, nullptr if it chose none or the room of another
static ggml_hugepages_range_ptr make_range(ggml_hugepages_image & first) {
    ggml_hugepages_range_ptr range;
    if (first.share.size > 0 && first.share.room == 0) {
        range.reset(new ggml_hugepages_image());
        range->is_shared = true;
        range->kind   = GGML_HUGEPAGES_KIND_OTHER; // its pages hold memory of several kinds, so they are on all nodes in turn
        range->path   = "the buffers";
        range->size   = first.share.size;
        range->length = first.share.size;
        range->params = first.params;
        range->limits_may_hide = first.limits_may_hide;
        std::swap(range->runs, first.share.runs); // until the pages are reserved, each page has one owner
    }
    return range;
}

// maps and populates the range
static bool fill_range(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_range_ptr range, ggml_hugepages_error * error) {
    auto & share = images[0]->share;
    if (share.size > 0 && share.room > 0 && !ggml_hugepages_shared_keep(share, images[0]->params)) {
        return ggml_hugepages_accepts_less(&images[0]->params) || ggml_hugepages_fail_load(images, n, *images[0], { "mmap", ENOMEM, share.room, 0, false }, error);
    }
    if (!range) {
        return true;
    }
    ggml_hugepages_refusal refusal = {};
    ggml_hugepages_image * refused = nullptr;
    const bool ok = ggml_hugepages_map_image(*range, error) && ggml_hugepages_map_runs(*range, error) && ggml_hugepages_map_gaps(*range, error) &&
        ggml_hugepages_populate_all(*range, &refused, &refusal, error);
    if (refused) {
        return ggml_hugepages_fail_load(images, n, *range, refusal, error);
    }
    ggml_hugepages_forget_promise(*range);
    if (!ok) {
        return false;
    }
    share.runs = range->runs;
    ggml_hugepages_shared_add(std::move(range), images[0]->params.model_id, share.parts);
    return true;
}

void ggml_hugepages_hold_end(uint32_t model_id) noexcept try {
    ggml_hugepages_held_end(model_id);
    ggml_hugepages_shared_end(model_id);
    ggml_hugepages_held_contexts_end(model_id);
} catch (...) {
    GGML_LOG_WARN("%s: out of memory, so some huge pages are returned only when the process ends\n", __func__);
}

bool ggml_hugepages_plan(
        ggml_hugepages_image_t *      images,
        size_t                        n_images,
        const ggml_hugepages_demand * demands,
        size_t                        n_demands,
        const ggml_hugepages_params * params,
        ggml_hugepages_error *        error) {
    ggml_hugepages_forget_filters();
    // madvise(2): with an empty range the kernel only checks whether it knows the advice (since Linux 5.14)
    if (ggml_hugepages_advise(nullptr, 0, MADV_POPULATE_WRITE) != 0 && errno == EINVAL) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED,
            "huge pages need MADV_POPULATE_WRITE, which this kernel lacks (Linux 5.14 or later has it)");
    }
    return ggml_hugepages_decide("", images, n_images, demands, n_demands, *params, error);
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    // reserve all pages of all files first, so that nothing is mapped if pages are short
    std::vector<ggml_hugepages_image_t> all(images, images + n);
    auto range = n > 0 ? make_range(*images[0]) : nullptr;
    if (range) {
        all.push_back(range.get());
    }
    if (!ggml_hugepages_reserve_runs(all.data(), all.size(), error) || !hold(all.data(), all.size(), error) ||
            (n > 0 && !fill_range(all.data(), all.size(), std::move(range), error))) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (!begin_filling(*images[i], error)) {
            const auto need    = need_of(images, n);
            const auto message = *error;
            release(images, n);
            if (message.status != GGML_HUGEPAGES_STATUS_SHORT) {
                *error = message;
                return false;
            }
            const auto & file = *images[i]->resident;
            return ggml_hugepages_fail_refused(need, *images[i], { "madvise", EFAULT, file.page_size, file.sums_at, true }, error);
        }
        if (!images[i]->runs.empty() && !ggml_hugepages_map_runs(*images[i], error)) {
            return false;
        }
    }
    return ggml_hugepages_populate_thp(images, n, error);
}

bool ggml_hugepages_fill(
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        const ggml_hugepages_piece *     pieces,
        size_t                           n_pieces,
        const ggml_hugepages_params *    params,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
    ggml_hugepages_refusal refusal = {};
    ggml_hugepages_image * refused = nullptr;
    const bool ok =
        (ggml_hugepages_accepts_less(params) || ggml_hugepages_populate_ahead(images, n_images, callback, user_data, &refused, &refusal, error)) &&
        ggml_hugepages_read(images, n_images, pieces, n_pieces, *params, callback, user_data, &refused, &refusal, error);
    if (refused) {
        return ggml_hugepages_fail_load(images, n_images, *refused, refusal, error);
    }
    if (!ok) {
        ggml_hugepages_hold_end(params->model_id);
        return false;
    }
    for (size_t i = 0; i < n_images; i++) {
        auto & image = *images[i];
        if (!ggml_hugepages_protect(image, error)) {
            ggml_hugepages_hold_end(params->model_id);
            return false;
        }
        if (image.resident) {
            image.resident->finish();
        }
    }
    for (size_t i = 0; i < n_images; i++) {
        ggml_hugepages_forget_promise(*images[i]);
    }
    // Only after all images are filled, because a shortage in a later image returns the pages of the earlier ones.
    for (size_t i = 0; i < n_images; i++) {
        ggml_hugepages_close_memfds(*images[i]);
    }
    ggml_hugepages_register_images(images, n_images);
    return true;
}

#endif // __linux__
