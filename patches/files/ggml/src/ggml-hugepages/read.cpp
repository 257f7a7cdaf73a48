// Reading: threads take jobs in file order.
//
//   chunk of a block   read into place
//   piece              read into a staging buffer, then passed to a callback
//
//   in the page cache       copied from there; the cache does not change
//   not cached, or unknown  O_DIRECT: the page cache is neither filled nor evicted
//   O_DIRECT has no effect  buffered; the engine drops the pages that the read brought into the cache
//
// Some file systems accept O_DIRECT and still use the page cache, so the engine checks direct reads.
//
// The kernel zeroes a page when it is populated. Each thread populates just before its own read, so zeroing overlaps the disk, and the
// zeros are still in the CPU's cache when the data arrives.

#ifdef __linux__

#include "read.h"
#include "error.h"
#include "read-threads.h"
#include "registry.h"
#include "threads.h"
#include "ggml-impl.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

// the largest number of threads
static const size_t MAX_THREADS = 32;

enum what_to_do {
    READ,
    POPULATE,       // buffers have no file
    POPULATE_AHEAD, // pages that the engine cannot reserve, or all pages if an invisible limit may apply
};

static bool run_jobs(
        what_to_do                       what,
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        const ggml_hugepages_piece *     pieces,
        size_t                           n_pieces,
        const ggml_hugepages_params    & params,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_image          ** refused,
        ggml_hugepages_refusal         * refusal,
        ggml_hugepages_error           * error) {
    const uint64_t begin = ggml_hugepages_now_us();
    ggml_hugepages_reader r;

    std::map<const ggml_hugepages_image *, size_t> order; // of the files
    for (size_t i = 0; i < n_images; i++) {
        auto & image = *images[i];
        order[&image] = i;
        const bool is_read = what == READ && image.fd != -1;
        if (is_read) {
            r.sources.push_back(std::make_unique<ggml_hugepages_source>(&image));
            if (r.sources.back()->buffered_fd == -1) {
                return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_IO, "cannot open %s: %s", image.path.c_str(), strerror(errno));
            }
        }
        r.add_image(image, is_read ? r.sources.back().get() : nullptr, what == POPULATE_AHEAD);
    }
    for (size_t i = 0; i < n_pieces; i++) {
        const auto & p = pieces[i];
        r.jobs.push_back({ p.image, r.sources.at(order.at(p.image)).get(), &p, p.first, p.last, 0, nullptr, p.first });
        r.total += p.last - p.first;
    }
    if (r.jobs.empty() && what != READ) {
        return true;
    }
    std::stable_sort(r.jobs.begin(), r.jobs.end(), [&](const ggml_hugepages_job & a, const ggml_hugepages_job & b) {
        return std::make_pair(order.at(a.image), a.turn) < std::make_pair(order.at(b.image), b.turn);
    });
    // before the first read, because reads change the answer
    for (const auto & s : r.sources) {
        ggml_hugepages_ranges of;
        for (const auto & j : r.jobs) {
            if (j.from == s.get() && j.first < j.last) {
                of.emplace_back(j.first, j.last);
            }
        }
        s->cache.look(s->buffered_fd, s->image->size, ggml_hugepages_normalized(of));
    }

    const size_t n_threads = ggml_hugepages_n_threads(params);
    const bool   is_fixed  = params.n_threads > 0 || r.sources.empty();
    // some place pieces while others wait for the device
    const size_t n_first   = is_fixed || n_pieces == 0 ? n_threads : 2*n_threads;
    const bool   finished  = r.run(n_first, is_fixed ? n_threads : MAX_THREADS, callback, user_data);

    if (r.failed) {
        *error = r.error;
        return false;
    }
    if (r.refused) {
        *refused = r.refused;
        *refusal = r.refusal;
        return false;
    }
    if (!finished) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "loading was cancelled");
    }
    for (const auto & s : r.sources) {
        // the kernel's readahead may have read more
        if (r.bytes_buffered > 0 && s->cache.way != ggml_hugepages_page_cache::BY_NOTHING) {
            for (const auto & j : r.jobs) {
                if (j.from == s.get() && j.first < j.last) {
                    s->cache.drop_new(j.first, j.last + GGML_HUGEPAGES_CHUNK_SIZE);
                }
            }
        }
        if (params.drop_cache) {
            const size_t left = s->cache.drop_all();
            if (left > 0) {
                GGML_LOG_WARN("%s: the kernel keeps %.2f MiB of the model in the page cache\n", __func__, left/1024.0/1024.0);
            }
        }
    }
    if (!r.sources.empty()) {
        ggml_hugepages_set_load(params.model_id, { r.bytes_direct, r.bytes_cached, r.bytes_buffered, ggml_hugepages_now_us() - begin, r.us_populate, r.us_read, r.us_place,
            r.bytes_attached, (uint32_t) r.n_started });
    }
    return true;
}

bool ggml_hugepages_read(
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        const ggml_hugepages_piece *     pieces,
        size_t                           n_pieces,
        const ggml_hugepages_params    & params,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_image          ** refused,
        ggml_hugepages_refusal         * refusal,
        ggml_hugepages_error           * error) {
    return run_jobs(READ, images, n_images, pieces, n_pieces, params, callback, user_data, refused, refusal, error);
}

bool ggml_hugepages_populate_all(ggml_hugepages_image & image, ggml_hugepages_image ** refused, ggml_hugepages_refusal * refusal, ggml_hugepages_error * error) {
    auto * handle = &image;
    return run_jobs(POPULATE, &handle, 1, nullptr, 0, image.params, nullptr, nullptr, refused, refusal, error);
}

bool ggml_hugepages_populate_ahead(
        ggml_hugepages_image_t *         images,
        size_t                           n_images,
        ggml_hugepages_progress_callback callback,
        void                           * user_data,
        ggml_hugepages_image          ** refused,
        ggml_hugepages_refusal         * refusal,
        ggml_hugepages_error           * error) {
    return n_images == 0 ||
        run_jobs(POPULATE_AHEAD, images, n_images, nullptr, 0, images[0]->params, callback, user_data, refused, refusal, error);
}

#endif // __linux__
