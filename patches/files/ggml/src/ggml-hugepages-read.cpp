// Reading a file into its blocks: threads take chunks in file order.
//
//   chunk in the page cache   copied from there, the cache is left as it was
//   else                      O_DIRECT into place: the page cache is neither filled nor evicted
//   O_DIRECT refused          buffered, and what the read left in the cache is dropped behind it
//
// The kernel zeroes a page when it is populated. Each thread populates just ahead of its own read, so that zeroing
// overlaps the disk and the zeros are still in the CPU's cache when the data comes.

#ifdef __linux__

#include "ggml-hugepages-impl.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// large enough for the device, small enough that a cancelled load ends soon
static const size_t CHUNK_SIZE = 8*1024*1024;

// O_DIRECT wants offset, length and address on a multiple of the logical block size, which is at most this
static const size_t DIRECT_ALIGNMENT = 4096;

// how often the caller's progress callback is asked
static const auto PROGRESS_INTERVAL = std::chrono::milliseconds(20);

namespace {

struct chunk {
    ggml_hugepages_image * image;
    int                    direct_fd; // -1 if refused
    size_t                 first;
    size_t                 last; // may lie behind the end of the file
    bool                   is_done = false; // written by the thread that took it
};

// madvise(2): MADV_POPULATE_WRITE reports a shortage, where touching the page would be SIGBUS
bool populate(uint8_t * addr, size_t size) {
    int ret;
    do {
        ret = madvise(addr, size, MADV_POPULATE_WRITE);
    } while (ret != 0 && (errno == EINTR || errno == EAGAIN));
    return ret == 0;
}

enum cached { CACHED_NONE, CACHED_SOME, CACHED_ALL };

// what of [first, last) is in the page cache
cached cache_state(int fd, size_t first, size_t last) {
    const size_t page    = sysconf(_SC_PAGESIZE);
    const size_t n_pages = (last - first + page - 1)/page;
    size_t n_cached = 0;

    struct { uint64_t off, len; } range = { first, last - first };
    struct { uint64_t cache, dirty, writeback, evicted, recently_evicted; } stat = {};
    const long SYS_CACHESTAT = 451; // since Linux 6.5, newer than many headers
    if (syscall(SYS_CACHESTAT, fd, &range, &stat, 0) == 0) {
        n_cached = stat.cache;
    } else {
        // mincore(2) asks a mapping, and the image has blocks where the file was
        void * addr = mmap(nullptr, last - first, PROT_READ, MAP_SHARED, fd, first);
        if (addr == MAP_FAILED) {
            return CACHED_SOME;
        }
        std::vector<unsigned char> resident(n_pages);
        if (mincore(addr, last - first, resident.data()) == 0) {
            n_cached = std::count_if(resident.begin(), resident.end(), [](unsigned char r) { return r & 1; });
        }
        munmap(addr, last - first);
    }
    return n_cached == 0 ? CACHED_NONE : n_cached >= n_pages ? CACHED_ALL : CACHED_SOME;
}

// Reads the chunk into place. Past the end of the file there stay zeros, as in a file mapping.
bool read_chunk(const chunk & c, ggml_hugepages_error * error) {
    const auto & image = *c.image;
    const size_t last  = std::min(c.last, image.size);

    const cached state = cache_state(image.fd, c.first, last);
    bool direct = c.direct_fd != -1 && state != CACHED_ALL;

    size_t at = c.first;
    while (at < last) {
        // the last read of a file asks for whole sectors and gets what there is
        const size_t  size = direct ? (last - at + DIRECT_ALIGNMENT - 1)/DIRECT_ALIGNMENT*DIRECT_ALIGNMENT : last - at;
        const ssize_t ret  = pread(direct ? c.direct_fd : image.fd, image.addr + at, size, at);
        if (ret > 0) {
            at += std::min<size_t>(ret, last - at);
            // a short read may end between two sectors, from where only a buffered read can go on
            direct = direct && at % DIRECT_ALIGNMENT == 0;
        } else if (ret == -1 && errno == EINTR) {
            continue;
        } else if (ret == -1 && direct && (errno == EINVAL || errno == EOPNOTSUPP)) {
            direct = false;
        } else if (ret == -1) {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_IO, "cannot read '%s' at offset %zu: %s",
                image.path.c_str(), at, strerror(errno));
        } else {
            return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_IO,
                "cannot read '%s' at offset %zu: the file is shorter than the %zu bytes it had", image.path.c_str(), at, image.size);
        }
    }
    // of the last sector the device may have given more than the file has
    memset(image.addr + last, 0, std::min(c.last - last, DIRECT_ALIGNMENT));
    if (!direct && state == CACHED_NONE) {
        posix_fadvise(image.fd, c.first, last - c.first, POSIX_FADV_DONTNEED);
    }
    return true;
}

struct reader {
    std::vector<chunk>    chunks;
    bool                  in_order; // one thread
    std::atomic<size_t>   next{0};
    std::atomic<uint64_t> done{0}; // wanted bytes
    std::atomic<bool>     stop{false};

    std::mutex              mutex; // for what follows, and short_at and short_cause of the images
    std::condition_variable ended;
    size_t                  n_running = 0;
    bool                    failed    = false;
    ggml_hugepages_error    error     = {};

    bool is_behind_shortage(const chunk & c) {
        std::lock_guard<std::mutex> lock(mutex);
        return c.first >= c.image->short_at;
    }

    void on_shortage(const chunk & c, int cause) {
        std::lock_guard<std::mutex> lock(mutex);
        if (c.first < c.image->short_at) {
            c.image->short_at    = c.first;
            c.image->short_cause = cause;
        }
        if (!in_order) {
            stop = true;
        }
    }

    void on_failure(const ggml_hugepages_error & e) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failed) {
            failed = true;
            error  = e;
        }
        stop = true;
    }

    void work() {
        while (!stop) {
            const size_t i = next++;
            if (i >= chunks.size()) {
                break;
            }
            auto & c = chunks[i];
            if (!is_behind_shortage(c)) {
                ggml_hugepages_error e = {};
                if (!populate(c.image->addr + c.first, c.last - c.first)) {
                    on_shortage(c, errno);
                } else if (!read_chunk(c, &e)) {
                    on_failure(e);
                } else {
                    c.is_done = true;
                }
            }
            done += ggml_hugepages_overlap(c.image->wanted, c.first, c.last);
        }
        std::lock_guard<std::mutex> lock(mutex);
        n_running--;
        ended.notify_all();
    }
};

} // namespace

bool ggml_hugepages_read(
        ggml_hugepages_image_t *         images,
        size_t                           n,
        size_t                           n_threads,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
    reader           r;
    std::vector<int> direct_fds;
    uint64_t         total = 0;

    for (size_t i = 0; i < n; i++) {
        auto & image = *images[i];
        if (image.runs.empty()) {
            continue;
        }
        // a file description of its own: O_DIRECT on a duplicate would hold for upstream's reads too
        direct_fds.push_back(open(("/proc/self/fd/" + std::to_string(image.fd)).c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC));
        const size_t step = (CHUNK_SIZE + image.page_size - 1)/image.page_size*image.page_size;
        for (const auto & run : image.runs) {
            for (size_t first = run.first; first < run.second; first += step) {
                const size_t last   = std::min(first + step, run.second);
                const size_t wanted = ggml_hugepages_overlap(image.wanted, first, last);
                total += wanted;
                if (first < image.fill_from) {
                    r.done += wanted;
                } else {
                    r.chunks.push_back({ &image, direct_fds.back(), first, last });
                }
            }
        }
        image.fill_from = SIZE_MAX;
        image.short_at  = SIZE_MAX;
    }
    n_threads  = std::min(n_threads, r.chunks.size());
    r.in_order = n_threads == 1;

    std::vector<std::thread> threads;
    bool aborted = false;
    {
        std::unique_lock<std::mutex> lock(r.mutex);
        try {
            for (size_t i = 0; i < n_threads; i++) {
                threads.emplace_back([&r] { r.work(); });
                r.n_running++;
            }
        } catch (const std::system_error & e) {
            // those that run do it alone
            if (threads.empty()) {
                ggml_hugepages_fail(&r.error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot start a thread to read with: %s", e.what());
                r.failed = true;
            }
        }
        // the callback is upstream's, and is called by the thread that upstream expects
        while (r.n_running > 0) {
            lock.unlock();
            if (!aborted && callback && !callback(r.done, total, user_data)) {
                aborted = true;
                r.stop  = true;
            }
            lock.lock();
            r.ended.wait_for(lock, PROGRESS_INTERVAL, [&r] { return r.n_running == 0; });
        }
    }
    for (auto & thread : threads) {
        thread.join();
    }
    for (const int fd : direct_fds) {
        if (fd != -1) {
            close(fd);
        }
    }
    for (const auto & c : r.chunks) {
        if (!c.is_done) {
            c.image->fill_from = std::min(c.image->fill_from, c.first);
        }
    }
    if (aborted) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_ABORTED, "loading was cancelled");
    }
    if (r.failed) {
        *error = r.error;
        return false;
    }
    return true;
}

#endif // __linux__
