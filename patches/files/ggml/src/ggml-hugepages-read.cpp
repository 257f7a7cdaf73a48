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

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

// large enough for the device, small enough for a quick end of a cancelled load
static const size_t CHUNK_SIZE = GGML_HUGEPAGES_CHUNK_SIZE;

// One read of a chunk has this size, so that a load from a slow device can be cancelled and shows progress. It grows after reads that were
// shorter than READ_US_SHORT and shrinks after reads that were longer than READ_US_LONG.
static const size_t   READ_SIZE_MIN  = 64*1024;
static const size_t   READ_SIZE      = 1024*1024;
static const uint64_t READ_US_SHORT  = 5*1000;
static const uint64_t READ_US_LONG   = 20*1000;

// limit of all staging buffers together, unless a single piece is larger
static const size_t STAGING_SIZE = 128*1024*1024;

// O_DIRECT needs offset, length and address at a multiple of the logical block size, which is rarely larger than this
static const size_t DIRECT_ALIGNMENT = 4096;

// interval of the caller's progress callback
static const auto PROGRESS_INTERVAL = std::chrono::milliseconds(20);

// duration of a test of a number of threads, and the largest number
static const uint64_t PROBE_US    = 200*1000;
static const size_t   MAX_THREADS = 32;

namespace {

uint64_t now_us() {
    return std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// adds the time between its construction and its destruction
struct stopwatch {
    std::atomic<uint64_t> & sum;
    uint64_t                begin = now_us();
    ~stopwatch() { sum += now_us() - begin; }
};

// A file with its own open file descriptions, because O_DIRECT on a duplicate would also affect upstream's reads.
struct source {
    const ggml_hugepages_image * image;
    int    direct_fd   = -1; // -1 if the file system refuses it
    int    buffered_fd = -1;
    size_t alignment   = DIRECT_ALIGNMENT;
    ggml_hugepages_page_cache cache;
    // whether O_DIRECT avoids the page cache: unknown before the first direct read
    enum effect { UNTRIED, DIRECT, BUFFERED, NOT_TO_BE_SEEN };
    std::atomic<effect> effect_of_direct{UNTRIED};
    bool                says_direct = false; // the file system reports it

    explicit source(const ggml_hugepages_image * image) : image(image) {
        const std::string path = "/proc/self/fd/" + std::to_string(image->fd);
        direct_fd   = ggml_hugepages_is_killing(SYS_openat, O_RDONLY | O_CLOEXEC | O_DIRECT) ? -1 : open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT);
        buffered_fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
        if (direct_fd != -1 && !ggml_hugepages_is_killing(SYS_fadvise64)) {
            // a file system that still uses the cache must not read ahead
            posix_fadvise(direct_fd, 0, 0, POSIX_FADV_RANDOM);
        }
#ifdef STATX_DIOALIGN
        struct statx st = {};
        if (direct_fd != -1 && ggml_hugepages_call(SYS_statx, direct_fd, (long) "", AT_EMPTY_PATH, STATX_DIOALIGN, (long) &st) == 0 &&
                (st.stx_mask & STATX_DIOALIGN)) {
            // statx(2): zero if the file does not support direct I/O
            if (st.stx_dio_offset_align == 0 || st.stx_dio_mem_align == 0) {
                effect_of_direct = BUFFERED;
            }
            says_direct = effect_of_direct != BUFFERED;
            alignment = std::max<size_t>(alignment, std::max(st.stx_dio_offset_align, st.stx_dio_mem_align));
        }
        if (direct_fd != -1 && alignment > GGML_HUGEPAGES_GUARD_SIZE) {
            close(direct_fd);
            direct_fd = -1;
            alignment = DIRECT_ALIGNMENT;
        }
#endif
    }
    source(const source &) = delete;
    ~source() {
        for (const int fd : { direct_fd, buffered_fd }) {
            if (fd != -1) {
                close(fd);
            }
        }
    }

    bool can_direct() const { return direct_fd != -1 && effect_of_direct != BUFFERED; }

    // [first, last) was read with O_DIRECT, and n_before of its bytes were cached before: the bytes that still went through the page cache.
    // A file may have both kinds of parts (btrfs, compressed), so every read is checked if the check is cheap.
    size_t bytes_through_cache(size_t first, size_t last, ggml_hugepages_cached before, size_t n_before) {
        if (before == GGML_HUGEPAGES_CACHED_UNKNOWN) {
            effect_of_direct = says_direct ? DIRECT : NOT_TO_BE_SEEN;
        } else if (cache.way != ggml_hugepages_page_cache::BY_TRYING || effect_of_direct == UNTRIED) {
            size_t n_now = 0;
            if (!cache.count(first, last, &n_now)) {
                effect_of_direct = NOT_TO_BE_SEEN;
                return 0;
            }
            const size_t n_new = n_now - std::min(n_now, n_before);
            const size_t n_missing = last - first - std::min(last - first, n_before);
            effect_of_direct = cache.way == ggml_hugepages_page_cache::BY_TRYING && n_new > n_missing/2 ? BUFFERED : DIRECT;
            return n_new;
        }
        return 0;
    }
};

// Memory for a piece. Later pieces reuse it, because its first touch costs as much as the copy from it.
struct staging {
    void * addr = MAP_FAILED;
    size_t size = 0;

    staging() = default;
    staging(const staging &) = delete;
    ~staging() { release(); }

    bool reserve(size_t wanted) {
        if (wanted > size) {
            release();
            addr = mmap(nullptr, wanted, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            size = addr == MAP_FAILED ? 0 : wanted;
        }
        return addr != MAP_FAILED;
    }

    void release() {
        if (addr != MAP_FAILED) {
            munmap(addr, size);
            addr = MAP_FAILED;
            size = 0;
        }
    }
};

// a page larger than a chunk: the first thread that needs it populates it
struct large_page {
    std::mutex mutex;
    enum { UNTOUCHED, POPULATED, DROPPED } state = UNTOUCHED;
};

struct job {
    ggml_hugepages_image       * image;
    source                     * from;      // nullptr for a buffer
    const ggml_hugepages_piece * piece;     // nullptr for a chunk of a block
    size_t                       first;
    size_t                       last;      // may be behind the end of the file
    size_t                       page_size; // of the block
    large_page                 * large;     // the page that contains the chunk, or nullptr
    size_t                       turn;      // jobs are taken in this order
    ggml_hugepages_store_file  * store = nullptr; // the file in the store that contains the chunk, or nullptr
};

// Each thread is one request in flight. Only a trial shows how many a device needs: four keep one disk busy, sixteen are too few for an
// array of disks.
struct queue_depth {
    uint64_t begin;              // of the current test, microseconds
    uint64_t bytes      = 0;     // read at its begin
    double   rate       = 0.0;   // before the last doubling of the threads
    bool     is_settled = false; // the last doubling gained nothing

    // Whether to double the threads, at most every PROBE_US: yes while each doubling gains a fifth.
    bool wants_more(uint64_t direct, uint64_t cached) {
        const uint64_t now = now_us();
        if (is_settled || now - begin < PROBE_US || direct <= bytes) {
            return false;
        }
        const double before = rate;
        rate  = (double) (direct - bytes)/(now - begin);
        begin = now;
        bytes = direct;
        // copies wait for the CPU, not for a device
        is_settled = cached >= direct || rate <= 1.2*before;
        return !is_settled;
    }
};

struct reader {
    std::vector<std::unique_ptr<source>>     sources;
    std::vector<std::unique_ptr<large_page>> large_pages;
    std::vector<job>                         jobs;

    std::atomic<size_t>   next{0};
    std::atomic<uint64_t> done{0}; // wanted bytes
    uint64_t              total = 0;
    std::atomic<bool>     stop{false};

    std::atomic<size_t>   read_size{READ_SIZE};
    std::atomic<uint64_t> bytes_direct{0}, bytes_cached{0}, bytes_buffered{0};
    std::atomic<uint64_t> us_populate{0}, us_read{0}, us_place{0};
    uint64_t              bytes_attached = 0;

    std::mutex              mutex; // for the fields below, and the runs of the images
    std::condition_variable changed;
    size_t                  n_running = 0;
    size_t                  n_started = 0; // set at the end of run()
    size_t                  n_staged  = 0; // bytes of staging buffers in use
    std::vector<std::unique_ptr<staging>> unused; // reused for later pieces
    bool                    failed    = false;
    ggml_hugepages_error    error     = {};
    ggml_hugepages_image *  refused   = nullptr; // the image that got no page
    ggml_hugepages_refusal  refusal   = {};

    void fail(const ggml_hugepages_error & e) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failed) {
            failed = true;
            error  = e;
        }
        stop = true;
        changed.notify_all();
    }

    void fail_invalid(const job & j) {
        ggml_hugepages_error e = {};
        ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_INVALID, "invalid data in %s at offset %zu", j.image->path.c_str(), j.first);
        fail(e);
    }

    // Reads [first, last) of the file, at most up to its end, to dst. dst has room up to the next multiple of the alignment. Returns false
    // after a failure or a stop.
    template <typename F> bool read(source & from, size_t first, size_t last, uint8_t * dst, F on_read) {
        stopwatch time{us_read};
        const auto & image = *from.image;

        size_t n_before = 0;
        const auto state = from.cache.state(first, last, &n_before);
        bool direct = from.can_direct() && state != GGML_HUGEPAGES_CACHED_ALL && first % from.alignment == 0 && (size_t) dst % from.alignment == 0;

        size_t n_direct = 0, n_other = 0;
        size_t at = first;
        while (at < last && !stop) {
            // the last direct read of a file asks for whole sectors and gets the bytes up to the end
            const uint64_t begin = now_us();
            const size_t   step  = std::min<size_t>(last - at, read_size);
            const size_t   size  = direct ? ggml_hugepages_align_up(step, from.alignment) : step;
            const ssize_t  ret   = pread(direct ? from.direct_fd : from.buffered_fd, dst + (at - first), size, at);
            if (ret > 0) {
                const uint64_t us = now_us() - begin;
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

    // Counts the sources of the bytes of [first, last), and drops new pages from the page cache.
    void count(source & from, size_t first, size_t last, ggml_hugepages_cached state, size_t n_before, size_t n_direct, size_t n_other) {
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
        if (n_through > 0 || n_other > 0 || from.effect_of_direct == source::NOT_TO_BE_SEEN) {
            from.cache.drop_new(first, last);
        }
    }

    // lets the policy decide: ordinary memory replaces the pages, or the load ends
    bool on_shortage(const job & j, size_t first, size_t last, int err) {
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

    // Returns the end of the populated part of the chunk: all of it, or the part before the first refused page.
    size_t populate(const job & j) {
        stopwatch time{us_populate};
        uint8_t * addr = j.image->addr;
        if (j.large) {
            std::lock_guard<std::mutex> lock(j.large->mutex);
            const size_t page = ggml_hugepages_align_down(j.first, j.page_size);
            if (j.large->state == large_page::UNTOUCHED) {
                const bool ok = ggml_hugepages_populate(addr + page, j.page_size);
                j.large->state = ok ? large_page::POPULATED : large_page::DROPPED;
                if (!ok) {
                    on_shortage(j, page, page + j.page_size, errno);
                }
            }
            return j.large->state == large_page::POPULATED ? j.last : j.first;
        }
        if (ggml_hugepages_populate(addr + j.first, j.last - j.first)) {
            return j.last;
        }
        // page by page, to use the last free pages; ordinary memory replaces the pages after the first refusal
        for (size_t at = j.first; at < j.last; at += j.page_size) {
            if (!ggml_hugepages_populate(addr + at, j.page_size)) {
                on_shortage(j, at, j.last, errno);
                return at;
            }
        }
        return j.last;
    }

    void read_chunk(const job & j) {
        const size_t populated = populate(j);
        const size_t last      = j.from ? std::min(populated, j.image->size) : j.first;
        // the rest stays in the file mapping and needs no read
        done += ggml_hugepages_overlap(j.image->wanted, std::max(last, j.first), j.last);
        const auto on_read = [&](size_t from, size_t to) { done += ggml_hugepages_overlap(j.image->wanted, from, to); };
        if (j.first < last && !stop && read(*j.from, j.first, last, j.image->addr + j.first, on_read)) {
            // a direct read of the last sector may write bytes behind the end of the file
            memset(j.image->addr + last, 0, std::min(populated - last, j.from->alignment));
            stopwatch time{us_place};
            if (j.image->arrived && !j.image->arrived(j.image->addr + j.first, j.first, last, j.image->arrived_data)) {
                fail_invalid(j);
            } else if (j.store) {
                j.store->complete(j.image->addr, j.first, populated);
            }
        }
    }

    void read_piece(const job & j) {
        const size_t alignment = j.from->alignment;
        const size_t first     = ggml_hugepages_align_down(j.first, alignment);
        const size_t size      = ggml_hugepages_align_up(std::max(j.last, j.first + 1), alignment) - first; // a piece may be empty
        std::unique_ptr<staging> buf;
        {
            std::unique_lock<std::mutex> lock(mutex);
            changed.wait(lock, [&] { return stop || n_staged == 0 || n_staged + size <= STAGING_SIZE; });
            n_staged += size;
            if (!unused.empty()) {
                buf = std::move(unused.back());
                unused.pop_back();
            }
        }
        if (!buf) {
            buf = std::make_unique<staging>();
        }
        if (stop || !buf->reserve(size)) {
            ggml_hugepages_error e = {};
            if (!stop) {
                ggml_hugepages_fail(&e, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no memory to read %s: %s", j.image->path.c_str(), strerror(errno));
                fail(e);
            }
        } else {
            const auto on_read = [&](size_t from, size_t to) {
                from = std::max(from, j.first);
                to   = std::min(to, j.last);
                done += to > from ? to - from : 0;
            };
            if (read(*j.from, first, std::min(first + size, j.image->size), (uint8_t *) buf->addr, on_read)) {
                const uint64_t begin    = now_us();
                const uint64_t populate = ggml_hugepages_us_populate();
                const bool     placed   = j.piece->place((const uint8_t *) buf->addr + (j.first - first), j.last - j.first, j.piece);
                us_populate += ggml_hugepages_us_populate() - populate;
                us_place    += now_us() - begin - (ggml_hugepages_us_populate() - populate);
                if (!placed) {
                    fail_invalid(j);
                }
            }
        }
        std::lock_guard<std::mutex> lock(mutex);
        n_staged -= size;
        if (buf->size <= 2*CHUNK_SIZE && unused.size() < STAGING_SIZE/(2*CHUNK_SIZE)) {
            unused.push_back(std::move(buf));
        }
        changed.notify_all();
    }

    void work() {
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

    // the parts of [first, last) to read: of a resident image only missing segments
    static ggml_hugepages_ranges missing(const ggml_hugepages_image & image, const ggml_hugepages_run & run, size_t first, size_t last) {
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

    // ahead: only runs that the engine cannot reserve, or whose refusal after the read would be too late
    void add_image(ggml_hugepages_image & image, source * from, bool ahead) {
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
                size_t       left = end - at;
                for (const auto & [first, last] : missing(image, run, at, end)) {
                    left -= last - first;
                    if (is_large && page_at != ggml_hugepages_align_down(first, run.page_size)) {
                        large_pages.push_back(std::make_unique<large_page>());
                        page_at = ggml_hugepages_align_down(first, run.page_size);
                        // an empty chunk only populates: threads populate the next page while others read this one
                        jobs.push_back({ &image, from, nullptr, first, first, run.page_size, large_pages.back().get(),
                            page_at - std::min(page_at, run.page_size), store });
                    }
                    jobs.push_back({ &image, from, nullptr, first, last, run.page_size, is_large ? large_pages.back().get() : nullptr, first, store });
                    total += ggml_hugepages_overlap(image.wanted, first, last);
                }
                bytes_attached += left;
            }
        }
    }

    // Returns false if the callback cancels. Starts n_threads, and more up to max_threads as long as they speed up the device.
    bool run(size_t n_threads, size_t max_threads, ggml_hugepages_progress_callback callback, void * user_data) {
        // before the first read, because a small file may be done before the first interval ends
        if (callback && !callback(0, total, user_data)) {
            return false;
        }
        std::vector<std::thread> threads;
        bool aborted = false;
        {
            std::unique_lock<std::mutex> lock(mutex);
            start(threads, std::min(n_threads, jobs.size()));
            queue_depth depth = { now_us() };
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

    // starts threads until n run
    void start(std::vector<std::thread> & threads, size_t n) {
        try {
            while (threads.size() < n) {
                threads.emplace_back([this] { work(); });
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
};

} // namespace

size_t ggml_hugepages_n_threads(const ggml_hugepages_params & params) {
    // can be more than the cores, because the threads wait for the disk
    return params.n_threads > 0 ? params.n_threads : std::min<size_t>(8, std::max<size_t>(4, std::thread::hardware_concurrency()));
}

void ggml_hugepages_on_threads(size_t n, const std::function<void()> & work, const std::function<void()> & idle) {
    std::atomic<size_t> running{0};
    std::vector<std::thread> threads;
    try {
        while (threads.size() < n) {
            running++;
            threads.emplace_back([&] {
                work();
                running--;
            });
        }
    } catch (const std::system_error &) {
        running--; // the thread that did not start; the others do all the work
    }
    if (threads.empty()) {
        work();
    }
    while (idle && running > 0) {
        idle();
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    for (auto & thread : threads) {
        thread.join();
    }
}

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
    const uint64_t begin = now_us();
    reader r;

    std::map<const ggml_hugepages_image *, size_t> order; // of the files
    for (size_t i = 0; i < n_images; i++) {
        auto & image = *images[i];
        order[&image] = i;
        const bool is_read = what == READ && image.fd != -1;
        if (is_read) {
            r.sources.push_back(std::make_unique<source>(&image));
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
    std::stable_sort(r.jobs.begin(), r.jobs.end(), [&](const job & a, const job & b) {
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
    const bool   is_fixed  = params.n_threads > 0 || r.sources.empty() || n_pieces > 0;
    const bool   finished  = r.run(n_threads, is_fixed ? n_threads : MAX_THREADS, callback, user_data);

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
                    s->cache.drop_new(j.first, j.last + CHUNK_SIZE);
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
        ggml_hugepages_set_load({ r.bytes_direct, r.bytes_cached, r.bytes_buffered, now_us() - begin, r.us_populate, r.us_read, r.us_place,
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
