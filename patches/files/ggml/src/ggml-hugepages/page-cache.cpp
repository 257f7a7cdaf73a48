// The parts of a file that the page cache holds.
//
// The kernel has three system calls for this, and each can give a wrong answer without an error:
//
//   cachestat(2)   since Linux 6.5; since 6.13 EPERM for a user who neither owns the file nor may write it; 0 on overlayfs
//   mincore(2)     reports all pages as cached to a user who neither owns the file nor may write it
//   preadv2(2)     RWF_NOWAIT fails if the data is not cached; some file systems refuse the flag
//
// So the engine first tries each call on a page that it just read. It also tries mincore on the page behind the end of the file, which is
// never cached.

#ifdef __linux__

#include "page-cache.h"
#include "manifest.h"
#include "syscalls.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif

static const long   SYS_CACHESTAT = 451;      // missing in many headers
static const size_t STEP          = 64*1024;  // of trying, which reads what is missing
static const size_t MOST          = 64;       // at most one of so many bytes is missing
static const int    N_DROPS       = 6;        // attempts to drop a file
static const size_t WINDOW        = 64*1024*1024; // of one mincore call

static size_t base_page() {
    static const size_t size = sysconf(_SC_PAGESIZE);
    return size;
}

// number of cached pages of [first, last), -1 if unknown
static int64_t by_cachestat(int fd, size_t first, size_t last) {
    struct { uint64_t off, len; } range = { first, last - first };
    struct { uint64_t cache, dirty, writeback, evicted, recently_evicted; } stat = {};
    return ggml_hugepages_call(SYS_CACHESTAT, fd, (long) &range, (long) &stat) == 0 ? (int64_t) stat.cache : -1;
}

static size_t n_pages(size_t first, size_t last) {
    return (last + base_page() - 1)/base_page() - first/base_page();
}

// first at a page border
static void add_by_cachestat(int fd, size_t first, size_t last, ggml_hugepages_ranges & there) {
    const int64_t n = first < last ? by_cachestat(fd, first, last) : 0;
    if (n <= 0) {
        return;
    }
    if ((size_t) n >= n_pages(first, last)) {
        there.emplace_back(first, last);
    } else if (last - first > base_page()) {
        const size_t middle = ggml_hugepages_align_up(first + (last - first)/2, base_page());
        add_by_cachestat(fd, first, middle, there);
        add_by_cachestat(fd, middle, last, there);
    }
}

// a byte for each page of [first, last), first at a page border; empty if unknown
static std::vector<unsigned char> by_mincore(int fd, size_t first, size_t last) {
    const size_t size = ggml_hugepages_align_up(last - first, base_page());
    std::vector<unsigned char> result;
    void * addr = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, (off_t) first);
    if (addr == MAP_FAILED) {
        return result;
    }
    result.resize(size/base_page());
    if (ggml_hugepages_call(SYS_mincore, (long) addr, (long) size, (long) result.data()) != 0) {
        result.clear();
    }
    munmap(addr, size);
    return result;
}

static void add_by_mincore(int fd, size_t first, size_t last, ggml_hugepages_ranges & there) {
    for (size_t at = ggml_hugepages_align_down(first, base_page()); at < last; at += WINDOW) {
        const auto pages = by_mincore(fd, at, std::min(last, at + WINDOW));
        for (size_t i = 0; i < pages.size(); i++) {
            if (pages[i] & 1) {
                const size_t page = at + i*base_page();
                there.emplace_back(page, page + base_page());
            }
        }
    }
}

static void drop(int fd, size_t first, size_t last) {
    if (first < last && !ggml_hugepages_is_killing(SYS_fadvise64)) {
        posix_fadvise(fd, (off_t) first, (off_t) (last - first), POSIX_FADV_DONTNEED);
    }
}

// Whether the byte is cached. The attempt makes the kernel read a missing page, so this function drops the page again.
static bool is_there(int fd, size_t at) {
    char byte;
    const struct iovec iov = { &byte, 1 };
    // the system call takes the offset in two halves; 64-bit systems ignore the second
    if (ggml_hugepages_call(SYS_preadv2, fd, (long) &iov, 1, (long) at, 0, RWF_NOWAIT) == 1) {
        return true;
    }
    const size_t page = ggml_hugepages_align_down(at, base_page());
    if (errno == EAGAIN && pread(fd, &byte, 1, (off_t) at) == 1) {
        drop(fd, page, page + base_page());
    }
    return false;
}

void ggml_hugepages_page_cache::look(int fd, size_t size, const ggml_hugepages_ranges & of) {
    this->fd   = fd;
    this->size = size;
    this->of   = of;
    way = BY_NOTHING;
    there.clear();
    if (of.empty()) {
        return;
    }
    if (!ggml_hugepages_is_killing(SYS_fadvise64)) {
        // a read must not bring more pages into the cache
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    }
    char byte;
    if (size == 0 || pread(fd, &byte, 1, 0) != 1) {
        return;
    }
    // the last page of the file, and the page behind it
    const size_t end   = ggml_hugepages_align_up(size, base_page());
    const auto   pages = by_mincore(fd, end - base_page(), end + base_page());
    const auto   first = by_mincore(fd, 0, base_page());
    if (by_cachestat(fd, 0, base_page()) == 1) {
        way = BY_CACHESTAT;
    } else if (pages.size() == 2 && (pages[1] & 1) == 0 && first.size() == 1 && (first[0] & 1)) {
        way = BY_MINCORE;
    } else if (is_there(fd, 0)) {
        way = BY_TRYING;
    }
    for (const auto & r : of) {
        // direct reads start and end at sectors
        const size_t first = ggml_hugepages_align_down(r.first, GGML_HUGEPAGES_GUARD_SIZE);
        const size_t last  = std::min(size, ggml_hugepages_align_up(r.second, GGML_HUGEPAGES_GUARD_SIZE));
        if (way == BY_CACHESTAT) {
            add_by_cachestat(fd, first, last, there);
        } else if (way == BY_MINCORE) {
            add_by_mincore(fd, first, last, there);
        }
    }
    there = ggml_hugepages_normalized(there);
}

bool ggml_hugepages_page_cache::count(size_t first, size_t last, size_t * bytes) const {
    last   = std::min(last, size);
    *bytes = 0;
    if (first >= last) {
        return way != BY_NOTHING;
    }
    switch (way) {
        case BY_CACHESTAT: {
            const int64_t n = by_cachestat(fd, first, last);
            *bytes = n > 0 ? std::min<size_t>(n*base_page(), last - first) : 0;
            return n >= 0;
        }
        case BY_MINCORE: {
            ggml_hugepages_ranges now;
            add_by_mincore(fd, first, last, now);
            *bytes = ggml_hugepages_overlap(ggml_hugepages_normalized(now), first, last);
            return true;
        }
        case BY_TRYING: {
            // stop at the second missing page, because each check of a missing page reads it; the kernel may have reclaimed a single page
            for (size_t at = first, n_missing = 0; at < last && n_missing < 2; at += STEP) {
                if (is_there(fd, at)) {
                    *bytes += std::min(STEP, last - at);
                } else {
                    n_missing++;
                }
            }
            return true;
        }
        case BY_NOTHING: break;
    }
    return false;
}

ggml_hugepages_cached ggml_hugepages_page_cache::state(size_t first, size_t last, size_t * bytes) const {
    last   = std::min(last, size);
    *bytes = 0;
    if (way == BY_NOTHING) {
        return GGML_HUGEPAGES_CACHED_UNKNOWN;
    }
    if (way == BY_TRYING) {
        count(first, last, bytes);
    } else {
        *bytes = ggml_hugepages_overlap(there, first, last);
    }
    if (*bytes == 0) {
        return GGML_HUGEPAGES_CACHED_NONE;
    }
    const size_t missing = last - first - std::min(last - first, *bytes);
    if (missing > (last - first)/MOST) {
        return GGML_HUGEPAGES_CACHED_SOME;
    }
    // By trying, the engine cannot drop the pages that a copy adds, because it does not know which pages were there.
    return missing == 0 || way == BY_TRYING ? GGML_HUGEPAGES_CACHED_ALL : GGML_HUGEPAGES_CACHED_MOST;
}

void ggml_hugepages_page_cache::drop_new(size_t first, size_t last) const {
    // includes pages that the range shares with its neighbours: readers that need them read them again
    first = ggml_hugepages_align_down(first, base_page());
    last  = std::min(ggml_hugepages_align_up(last, base_page()), ggml_hugepages_align_up(size, base_page()));
    if (first < last) {
        for (const auto & r : ggml_hugepages_minus({ { first, last } }, there)) {
            drop(fd, r.first, r.second);
        }
    }
}

size_t ggml_hugepages_page_cache::drop_all() const {
    size_t left = 0;
    // fadvise does not report the pages that it skips. If another task holds a page for a moment, a later attempt drops the page
    for (int i = 0; i < N_DROPS; i++) {
        if (i > 0) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
        }
        drop(fd, 0, ggml_hugepages_align_up(size, base_page()));
        left = 0;
        for (const auto & r : of) {
            size_t bytes = 0;
            if (way == BY_TRYING || !count(r.first, r.second, &bytes)) {
                return 0; // another count by trying would read the pages again
            }
            left += bytes;
        }
        if (left == 0) {
            break;
        }
    }
    return left;
}

#endif // __linux__
