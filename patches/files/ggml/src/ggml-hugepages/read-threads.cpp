#ifdef __linux__

#include "read-threads.h"
#include "error.h"
#include "placement.h"
#include "policy.h"
#include "queue-depth.h"
#include "syscalls.h"
#include "threads.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <system_error>

#include <unistd.h>

// large enough for the device, small enough for a quick end of a cancelled load
static const size_t CHUNK_SIZE = GGML_HUGEPAGES_CHUNK_SIZE;

// The size of one read grows after reads that were shorter than READ_US_SHORT and shrinks after reads that were longer than READ_US_LONG.
static const size_t   READ_SIZE_MIN = 64*1024;
static const uint64_t READ_US_SHORT = 5*1000;
static const uint64_t READ_US_LONG  = 20*1000;

// A cached piece is copied and placed in parts of this size, so that source and copy stay in the L2 cache of a core.
static const size_t PART_SIZE = 256*1024;

// limit of all staging buffers together, unless a single piece is larger
static const size_t STAGING_SIZE = 128*1024*1024;

// interval of the caller's progress callback
static const auto PROGRESS_INTERVAL = std::chrono::milliseconds(20);

void ggml_hugepages_reader::fail(const ggml_hugepages_error & e) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!failed) {
        failed = true;
        error  = e;
    }
    stop = true;
    changed.notify_all();
}

void ggml_hugepages_reader::fail_invalid(const ggml_hugepages_job & j) {
    ggml_hugepages_error e = {};
    ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_INVALID, "invalid data in %s at offset %zu", j.image->path.c_str(), j.first);
    fail(e);
}

bool ggml_hugepages_reader::read(ggml_hugepages_source & from, size_t first, size_t last, uint8_t * dst, const std::function<void(size_t, size_t)> & on_read) {
    ggml_hugepages_stopwatch time(us_read);
    const auto & image = *from.image;

    size_t n_before = 0;
    const auto state = from.cache.state(first, last, &n_before);
    const bool is_copied = state == GGML_HUGEPAGES_CACHED_ALL || state == GGML_HUGEPAGES_CACHED_MOST;
    bool direct = from.can_direct() && !is_copied && first % from.alignment == 0 && (size_t) dst % from.alignment == 0;

    size_t n_direct = 0, n_other = 0;
    size_t at = first;
    while (at < last && !stop) {
        // the last direct read of a file asks for whole sectors and gets the bytes up to the end
        const uint64_t begin = ggml_hugepages_now_us();
        const size_t   step  = std::min<size_t>(last - at, read_size);
        const size_t   size  = direct ? ggml_hugepages_align_up(step, from.alignment) : step;
        const ssize_t  ret   = pread(direct ? from.direct_fd : from.buffered_fd, dst + (at - first), size, at);
        if (ret > 0) {
            const uint64_t us = ggml_hugepages_now_us() - begin;
            const size_t now = read_size; // a power of two
            if (us < READ_US_SHORT && step == now && now < CHUNK_SIZE) {
                read_size = 2*now;
            } else if (us > READ_US_LONG && now > READ_SIZE_MIN) {
                read_size = now/2;
            }
            const size_t got = std::min<size_t>(ret, last - at);
            on_read(at, at + got);
            (direct ? n_direct : n_other) += got;
            at += got;
            // a short read may end inside a sector, and only a buffered read can continue there
            direct = direct && at % from.alignment == 0;
        } else if (ret == -1 && errno == EINTR) {
            continue;
        } else if (ret == -1 && direct && (errno == EINVAL || errno == EOPNOTSUPP)) {
            direct = false;
        } else {
            ggml_hugepages_error e = {};
            if (ret == -1) {
                ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_IO, "cannot read %s at offset %zu: %s", image.path.c_str(), at, strerror(errno));
            } else {
                ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_IO, "cannot read %s at offset %zu: the file is shorter than the %zu bytes it had",
                    image.path.c_str(), at, image.size);
            }
            fail(e);
            return false;
        }
    }
    count(from, first, at, state, n_before, n_direct, n_other);
    return at == last;
}

void ggml_hugepages_reader::count(ggml_hugepages_source & from, size_t first, size_t last, ggml_hugepages_cached state, size_t n_before, size_t n_direct, size_t n_other) {
    const size_t n_through = n_direct > 0 ? std::min(n_direct, from.bytes_through_cache(first, last, state, n_before)) : 0;
    bytes_direct   += n_direct - n_through;
    bytes_buffered += n_through;
    if (state == GGML_HUGEPAGES_CACHED_ALL) {
        bytes_cached += n_other;
        return;
    }
    const size_t n_there = n_direct > 0 ? 0 : ggml_hugepages_overlap(from.cache.there, first, last);
    bytes_cached   += std::min(n_there, n_other);
    bytes_buffered += n_other - std::min(n_there, n_other);
    if (n_through > 0 || n_other > 0 || from.effect_of_direct == ggml_hugepages_source::NOT_TO_BE_SEEN) {
        from.cache.drop_new(first, last);
    }
}

bool ggml_hugepages_reader::on_shortage(const ggml_hugepages_job & j, size_t first, size_t last, int err) {
    std::lock_guard<std::mutex> lock(mutex);
    const ggml_hugepages_refusal r = { "madvise", err, j.page_size, first, j.store != nullptr };
    ggml_hugepages_error e = {};
    if (ggml_hugepages_policy_refused(*j.image, r, first, last, &e)) {
        return true;
    }
    stop = true;
    if (e.status == GGML_HUGEPAGES_STATUS_SHORT && !refused) {
        refused = j.image;
        refusal = r;
    } else if (e.status != GGML_HUGEPAGES_STATUS_SHORT && !failed) {
        failed = true;
        error  = e;
    }
    return false;
}

size_t ggml_hugepages_reader::populate(const ggml_hugepages_job & j) {
    ggml_hugepages_stopwatch time(us_populate);
    if (j.large) {
        std::lock_guard<std::mutex> lock(j.large->mutex);
        const size_t page = ggml_hugepages_align_down(j.first, j.page_size);
        if (j.large->state == ggml_hugepages_large_page::UNTOUCHED) {
            const bool ok = ggml_hugepages_populate_placed(*j.image, page, page + j.page_size, j.page_size);
            j.large->state = ok ? ggml_hugepages_large_page::POPULATED : ggml_hugepages_large_page::DROPPED;
            if (!ok) {
                on_shortage(j, page, page + j.page_size, errno);
            }
        }
        return j.large->state == ggml_hugepages_large_page::POPULATED ? j.last : j.first;
    }
    if (ggml_hugepages_populate_placed(*j.image, j.first, j.last, j.page_size)) {
        return j.last;
    }
    // page by page, to use the last free pages; ordinary memory replaces the pages after the first refusal
    for (size_t at = j.first; at < j.last; at += j.page_size) {
        if (!ggml_hugepages_populate_placed(*j.image, at, at + j.page_size, j.page_size)) {
            on_shortage(j, at, j.last, errno);
            return at;
        }
    }
    return j.last;
}

void ggml_hugepages_reader::read_chunk(const ggml_hugepages_job & j) {
    const size_t populated = populate(j);
    const size_t last      = j.from ? std::min(populated, j.image->size) : j.first;
    // the rest stays in the file mapping and needs no read
    done += ggml_hugepages_overlap(j.image->wanted, std::max(last, j.first), j.last);
    const auto on_read = [&](size_t from, size_t to) { done += ggml_hugepages_overlap(j.image->wanted, from, to); };
    if (j.first < last && !stop && read(*j.from, j.first, last, j.image->addr + j.first, on_read)) {
        // a direct read of the last sector may write bytes behind the end of the file
        memset(j.image->addr + last, 0, std::min(populated - last, j.from->alignment));
        ggml_hugepages_stopwatch time(us_place);
        if (j.image->arrived && !j.image->arrived(j.image->addr + j.first, j.first, last, j.image->arrived_data)) {
            fail_invalid(j);
        } else if (j.store) {
            j.store->complete(j.image->addr, j.first, populated);
        }
    }
}

std::unique_ptr<ggml_hugepages_staging> ggml_hugepages_reader::take_staging(size_t size) {
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return stop || n_staged == 0 || n_staged + size <= STAGING_SIZE; });
    n_staged += size;
    if (unused.empty()) {
        return std::make_unique<ggml_hugepages_staging>();
    }
    auto buf = std::move(unused.back());
    unused.pop_back();
    return buf;
}

void ggml_hugepages_reader::return_staging(std::unique_ptr<ggml_hugepages_staging> buf, size_t size) {
    std::lock_guard<std::mutex> lock(mutex);
    n_staged -= size;
    if (buf->size <= 2*CHUNK_SIZE && unused.size() < STAGING_SIZE/(2*CHUNK_SIZE)) {
        unused.push_back(std::move(buf));
    }
    changed.notify_all();
}

void ggml_hugepages_reader::place(const ggml_hugepages_job & j, const uint8_t * data, size_t first, size_t last) {
    auto part = *j.piece;
    part.offset += first - j.first;
    const uint64_t begin    = ggml_hugepages_now_us();
    const uint64_t populate = ggml_hugepages_us_populate;
    const bool     placed   = part.place(data, last - first, &part);
    us_populate += ggml_hugepages_us_populate - populate;
    us_place    += ggml_hugepages_now_us() - begin - (ggml_hugepages_us_populate - populate);
    if (!placed) {
        fail_invalid(j);
    }
}

void ggml_hugepages_reader::read_piece(const ggml_hugepages_job & j) {
    size_t       n_cached  = 0;
    const auto   state     = j.from->cache.state(j.first, j.last, &n_cached);
    const bool   is_copied = state == GGML_HUGEPAGES_CACHED_ALL || state == GGML_HUGEPAGES_CACHED_MOST;
    const size_t group     = j.piece->group;
    const size_t step      = is_copied && group > 0 ? std::max(group, PART_SIZE/group*group) : std::max<size_t>(1, j.last - j.first);
    const size_t alignment = j.from->alignment;
    const size_t size      = ggml_hugepages_align_up(step, alignment) + alignment;

    auto buf = take_staging(size);
    if (!stop && !buf->reserve(size)) {
        ggml_hugepages_error e = {};
        ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no memory to read %s: %s", j.image->path.c_str(), strerror(errno));
        fail(e);
    }
    // a copy needs a CPU, a direct read only the device
    std::unique_ptr<cpu> held;
    if (is_copied) {
        held = std::make_unique<cpu>(*this);
    }
    size_t at = j.first;
    do { // a piece may be empty
        const size_t last  = std::min(at + step, j.last);
        const size_t first = ggml_hugepages_align_down(at, alignment);
        const size_t end   = std::min(ggml_hugepages_align_up(std::max(last, at + 1), alignment), j.image->size);
        const auto on_read = [&](size_t from, size_t to) {
            from = std::max(from, at);
            to   = std::min(to, last);
            done += to > from ? to - from : 0;
        };
        if (stop || !read(*j.from, first, end, (uint8_t *) buf->addr, on_read)) {
            break;
        }
        if (!held) {
            held = std::make_unique<cpu>(*this);
        }
        place(j, (const uint8_t *) buf->addr + (at - first), at, last);
        at = last;
    } while (at < j.last);
    held.reset();
    return_staging(std::move(buf), size);
}

ggml_hugepages_reader::cpu::cpu(ggml_hugepages_reader & reader) : reader(reader) {
    std::unique_lock<std::mutex> lock(reader.mutex);
    reader.changed.wait(lock, [&] { return reader.n_free_cpus > 0; });
    reader.n_free_cpus--;
}

ggml_hugepages_reader::cpu::~cpu() {
    std::lock_guard<std::mutex> lock(reader.mutex);
    reader.n_free_cpus++;
    reader.changed.notify_all();
}

void ggml_hugepages_reader::work() {
    while (!stop) {
        const size_t i = next++;
        if (i >= jobs.size()) {
            break;
        }
        const auto & j = jobs[i];
        if (j.piece) {
            read_piece(j);
        } else {
            read_chunk(j);
        }
    }
    std::lock_guard<std::mutex> lock(mutex);
    n_running--;
    changed.notify_all();
}

ggml_hugepages_ranges ggml_hugepages_reader::missing(const ggml_hugepages_image & image, const ggml_hugepages_run & run, size_t first, size_t last) {
    if (!run.is_in_store()) {
        return { { first, last } };
    }
    ggml_hugepages_ranges result;
    const size_t step = image.resident->segment;
    for (size_t at = first; at < last; at += step) {
        if (!image.resident->has(at, at + 1)) {
            result.emplace_back(at, std::min(at + step, last));
        }
    }
    return ggml_hugepages_normalized(result);
}

void ggml_hugepages_reader::add_image(ggml_hugepages_image & image, ggml_hugepages_source * from, bool ahead) {
    for (const auto & run : image.runs) {
        const bool is_large = run.page_size > CHUNK_SIZE;
        const bool is_ahead = run.owner == GGML_HUGEPAGES_OWNER_FILLING || (image.limits_may_hide && !run.is_in_store());
        if (ahead ? !is_ahead : image.is_lazy && !is_large) {
            continue;
        }
        auto * store = run.is_in_store() ? image.resident.get() : nullptr;
        const size_t step = is_large ? CHUNK_SIZE : ggml_hugepages_align_up(CHUNK_SIZE, run.page_size);
        size_t       page_at = SIZE_MAX; // the start of the last page in large_pages
        for (size_t at = run.first; at < run.last; at += step) {
            const size_t end = std::min(at + step, run.last);
            size_t       n_read = 0; // wanted bytes
            for (const auto & [first, last] : missing(image, run, at, end)) {
                if (is_large && page_at != ggml_hugepages_align_down(first, run.page_size)) {
                    large_pages.push_back(std::make_unique<ggml_hugepages_large_page>());
                    page_at = ggml_hugepages_align_down(first, run.page_size);
                    // an empty chunk only populates: threads populate the next page while others read this one
                    jobs.push_back({ &image, from, nullptr, first, first, run.page_size, large_pages.back().get(),
                        page_at - std::min(page_at, run.page_size), store });
                }
                jobs.push_back({ &image, from, nullptr, first, last, run.page_size, is_large ? large_pages.back().get() : nullptr, first, store });
                n_read += ggml_hugepages_overlap(image.wanted, first, last);
            }
            total          += n_read;
            bytes_attached += store ? ggml_hugepages_overlap(image.wanted, at, end) - n_read : 0;
        }
    }
}

bool ggml_hugepages_reader::run(size_t n_threads, size_t max_threads, ggml_hugepages_progress_callback callback, void * user_data) {
    // before the first read, because a small file may be done before the first interval ends
    if (callback && !callback(0, total, user_data)) {
        return false;
    }
    std::vector<std::thread> threads;
    bool aborted = false;
    {
        std::unique_lock<std::mutex> lock(mutex);
        start(threads, std::min(n_threads, jobs.size()));
        ggml_hugepages_queue_depth depth = { ggml_hugepages_now_us() };
        // the callback is upstream's, so only the thread that upstream expects calls it
        while (n_running > 0) {
            lock.unlock();
            if (!aborted && callback && !callback(done, total, user_data)) {
                aborted = true;
                stop    = true;
            }
            lock.lock();
            if (stop) {
                changed.notify_all();
            } else if (2*threads.size() <= max_threads && next + 2*threads.size() < jobs.size() && depth.wants_more(bytes_direct, bytes_cached)) {
                start(threads, 2*threads.size());
            }
            changed.wait_for(lock, PROGRESS_INTERVAL, [this] { return n_running == 0; });
        }
    }
    n_started = threads.size();
    for (auto & thread : threads) {
        thread.join();
    }
    return !aborted;
}

void ggml_hugepages_reader::start(std::vector<std::thread> & threads, size_t n) {
    try {
        while (threads.size() < n) {
            threads.emplace_back([this] {
                ggml_hugepages_own_thread_begin();
                work();
            });
            n_running++;
        }
    } catch (const std::system_error & e) {
        // the threads that already run do all the work
        if (threads.empty()) {
            ggml_hugepages_fail(&error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot start a reader thread: %s", e.what());
            failed = true;
        }
    }
}

#endif // __linux__
