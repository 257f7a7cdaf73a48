// File images: which blocks are overlaid, how they get there, and what the kernel says of them.
//
// The blocks of an image are ranges of one hugetlb memfd, at the same offsets as in the file. A shared mapping of such a
// file keeps its reservation in the inode, not in the mapping. So the pages are reserved by a mapping anywhere, and
// putting the blocks in place with MAP_FIXED afterwards can no longer fail for want of pages: a failing MAP_FIXED would
// leave a hole in the image that another thread's mmap may take. What is not needed is given back by truncating.

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <mutex>
#include <thread>
#include <vector>

#ifdef __linux__
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/memfd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#endif // __linux__

using ranges = ggml_hugepages_ranges;

// images that are alive, for the report
static std::mutex                          g_images_mutex;
static std::vector<ggml_hugepages_image_t> g_images;

static size_t align_down(size_t x, size_t to) { return x/to*to; }
static size_t align_up  (size_t x, size_t to) { return align_down(x + to - 1, to); }

// sorts, and joins what overlaps or touches
static ranges normalized(ranges in) {
    std::sort(in.begin(), in.end());
    ranges out;
    for (const auto & r : in) {
        if (!out.empty() && r.first <= out.back().second) {
            out.back().second = std::max(out.back().second, r.second);
        } else {
            out.push_back(r);
        }
    }
    return out;
}

static size_t total_size(const ranges & rs) {
    size_t sum = 0;
    for (const auto & r : rs) {
        sum += r.second - r.first;
    }
    return sum;
}

size_t ggml_hugepages_overlap(const ranges & rs, size_t first, size_t last) {
    size_t sum = 0;
    for (const auto & r : rs) {
        const size_t beg = std::max(r.first,  first);
        const size_t end = std::min(r.second, last);
        sum += end > beg ? end - beg : 0;
    }
    return sum;
}

// for messages
static std::string path_of(int fd) {
#ifdef __linux__
    char path[4096];
    const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
    if (n > 0) {
        return std::string(path, n);
    }
#endif
    return "fd " + std::to_string(fd);
}

ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size) {
    auto * image = new ggml_hugepages_image();
    image->fd   = fd;
    image->path = path_of(fd);
    image->size = size;

    std::lock_guard<std::mutex> lock(g_images_mutex);
    g_images.push_back(image);
    return image;
}

void ggml_hugepages_image_free(ggml_hugepages_image_t image) {
    if (!image) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(g_images_mutex);
        g_images.erase(std::find(g_images.begin(), g_images.end(), image));
    }
#ifdef __linux__
    if (image->memfd != -1) {
        close(image->memfd);
    }
#endif
    delete image;
}

void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last) {
    GGML_ASSERT(first <= last && last <= image->size);
    image->wanted.emplace_back(first, last);
}

static size_t length_of(const ggml_hugepages_image & image) {
    return align_up(image.size, image.page_size);
}

size_t ggml_hugepages_image_length(ggml_hugepages_image_t image) {
    return length_of(*image);
}

size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image) {
    return image->page_size;
}

bool ggml_hugepages_image_run(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last) {
    if (i >= image->runs.size()) {
        return false;
    }
    *first = image->runs[i].first;
    *last  = image->runs[i].second;
    return true;
}

#ifdef __linux__

static bool fail_errno(ggml_hugepages_error * error, ggml_hugepages_status status, const char * what, const char * path) {
    return ggml_hugepages_fail(error, status, "%s for '%s': %s", what, path, strerror(errno));
}

// the one message for a shortage
static bool fail_short(ggml_hugepages_error * error, const ggml_hugepages_pool & pool, uint64_t need) {
    const uint64_t usable = ggml_hugepages_pool_usable(&pool);
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT,
        "the weights need %" PRIu64 " huge pages of %s (%.2f MiB), %" PRIu64 " can be had: "
        "free %" PRIu64 ", reserved %" PRIu64 ", total %" PRIu64 ", surplus %" PRIu64 ", overcommit %" PRIu64,
        need, ggml_hugepages_size_name(pool.page_size).c_str(), need*pool.page_size/1024.0/1024.0, usable,
        pool.free, pool.reserved, pool.total, pool.surplus, pool.overcommit);
    // a new total, never a number that would shrink what others use
    const uint64_t missing = need > usable ? need - usable : 1;
    ggml_hugepages_hint(error, "%s, or --hugepage-policy prefer to use what there is",
        ggml_hugepages_pool_command("", pool.page_size, pool.total + missing).c_str());
    return false;
}

bool ggml_hugepages_plan(
        ggml_hugepages_image_t *      images,
        size_t                        n,
        const ggml_hugepages_params * params,
        ggml_hugepages_error *        error) {
    // madvise(2): an empty range only asks whether the advice is known (since Linux 5.14)
    if (madvise(nullptr, 0, MADV_POPULATE_WRITE) != 0) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED,
            "huge pages need MADV_POPULATE_WRITE, which came with Linux 5.14");
    }
    ggml_hugepages_pool pool;
    if (!ggml_hugepages_pool_read("", ggml_hugepages_page_size(""), &pool)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED,
            "this kernel has no pool of huge pages (no size of 2 MiB or more in /sys/kernel/mm/hugepages)");
    }

    uint64_t need = 0;
    for (size_t i = 0; i < n; i++) {
        auto & image = *images[i];
        image.policy    = params->policy;
        image.page_size = pool.page_size;
        image.wanted    = normalized(std::move(image.wanted));
        for (const auto & r : image.wanted) {
            image.runs.emplace_back(align_down(r.first, pool.page_size), align_up(r.second, pool.page_size));
        }
        image.runs = normalized(std::move(image.runs));
        need += total_size(image.runs)/pool.page_size;
    }

    uint64_t left = ggml_hugepages_pool_usable(&pool);
    if (need <= left) {
        return true;
    }
    if (params->policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
        return fail_short(error, pool, need);
    }
    GGML_LOG_WARN("%s: %" PRIu64 " of %" PRIu64 " huge pages can be had, the rest stays the file mapping\n", __func__, left, need);
    for (size_t i = 0; i < n; i++) {
        ranges kept;
        for (auto & r : images[i]->runs) {
            const uint64_t pages = std::min<uint64_t>(left, (r.second - r.first)/pool.page_size);
            if (pages > 0) {
                kept.emplace_back(r.first, r.first + pages*pool.page_size);
                left -= pages;
            }
        }
        images[i]->runs = std::move(kept);
    }
    return true;
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t image, ggml_hugepages_error * error) {
    const size_t length  = length_of(*image);
    const size_t reserve = length + image->page_size;

    auto * addr = (uint8_t *) mmap(nullptr, reserve, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addr == MAP_FAILED) {
        fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no address space", image->path.c_str());
        return nullptr;
    }
    auto * base = (uint8_t *) align_up((size_t) addr, image->page_size);
    if (base > addr) {
        munmap(addr, base - addr);
    }
    if (addr + reserve > base + length) {
        munmap(base + length, addr + reserve - (base + length));
    }
    if (mmap(base, image->size, PROT_READ, MAP_SHARED | MAP_FIXED, image->fd, 0) == MAP_FAILED) {
        fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mmap failed", image->path.c_str());
        munmap(base, length);
        return nullptr;
    }
    image->addr = base;
    return base;
}

static int open_memfd(size_t page_size) {
    int log2 = 0;
    while (((size_t) 1 << log2) < page_size) {
        log2++;
    }
    const unsigned flags = MFD_CLOEXEC | MFD_HUGETLB | ((unsigned) log2 << MFD_HUGE_SHIFT);
    // vm.memfd_noexec=2 refuses a memfd without the seal, and kernels before 6.3 refuse the seal
    int fd = (int) syscall(SYS_memfd_create, "llama-weights", flags | MFD_NOEXEC_SEAL);
    if (fd == -1 && errno == EINVAL) {
        fd = (int) syscall(SYS_memfd_create, "llama-weights", flags);
    }
    return fd;
}

// Reserves the pages of [first, last). The reservation stays with the memfd when the mapping goes.
static bool reserve_pages(const ggml_hugepages_image & image, size_t first, size_t last) {
    void * addr = mmap(nullptr, last - first, PROT_NONE, MAP_SHARED, image.memfd, first);
    if (addr == MAP_FAILED) {
        return false;
    }
    munmap(addr, last - first);
    return true;
}

// the longest head of [first, last) whose pages can be reserved
static size_t reserve_head(const ggml_hugepages_image & image, size_t first, size_t last) {
    size_t at   = first;
    size_t step = last - first;
    while (at < last) {
        step = std::min(step, last - at);
        if (reserve_pages(image, at, at + step)) {
            at += step;
        } else if (errno == ENOMEM && step > image.page_size) {
            step = align_up(step/2, image.page_size);
        } else {
            break;
        }
    }
    return at;
}

// From here on the file image has no blocks: they are the file mapping again, and their pages are given back.
static bool drop_tail(ggml_hugepages_image & image, size_t from, ggml_hugepages_error * error) {
    ranges kept;
    for (const auto & r : image.runs) {
        const size_t first = std::max(r.first, from);
        const size_t last  = std::min(r.second, image.size);
        // A huge mapping can only be cut at its page borders, and the file may end inside of a page: room first, then the file.
        if (first < last && (
                mmap(image.addr + first, r.second - first, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED ||
                mmap(image.addr + first, last     - first, PROT_READ, MAP_SHARED | MAP_FIXED, image.fd, first) == MAP_FAILED)) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mmap failed", image.path.c_str());
        }
        if (r.first < from) {
            kept.emplace_back(r.first, std::min(r.second, from));
        }
    }
    image.runs = std::move(kept);
    if (ftruncate(image.memfd, from) != 0) {
        return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "ftruncate failed", image.path.c_str());
    }
    return true;
}

// Pages ran out at an offset of the image, after the plan said that there are enough: others took them, or a limit.
static bool handle_shortage(
        ggml_hugepages_image_t * images,
        size_t                   n,
        ggml_hugepages_image   & image,
        size_t                   at,
        int                      err,
        ggml_hugepages_error   * error) {
    // madvise(2): EFAULT is what MADV_POPULATE_WRITE says where a touch would be SIGBUS
    const char * cause = err == EFAULT ? "refused at the page fault, as by a hugetlb limit of the cgroup" : strerror(err);
    if (image.policy == GGML_HUGEPAGES_POLICY_PREFER) {
        GGML_LOG_WARN("%s: no more huge pages at offset %zu of '%s' (%s), the rest stays the file mapping\n",
            __func__, at, image.path.c_str(), cause);
        return drop_tail(image, at, error);
    }
    // The load ends here. What it holds goes back first, so that the counts in the message are those of others.
    uint64_t need = 0;
    for (size_t i = 0; i < n; i++) {
        need += total_size(images[i]->runs)/images[i]->page_size;
        if (images[i]->memfd != -1 && ftruncate(images[i]->memfd, 0) != 0) {
            GGML_LOG_WARN("%s: ftruncate failed: %s\n", __func__, strerror(errno));
        }
    }
    ggml_hugepages_pool pool;
    if (!ggml_hugepages_pool_read("", image.page_size, &pool)) {
        return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "no huge pages: %s", cause);
    }
    if (ggml_hugepages_pool_usable(&pool) < need) {
        return fail_short(error, pool, need);
    }
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT,
        "the weights need %" PRIu64 " huge pages of %s and the pool has them, but the kernel refuses them at offset %zu of '%s': %s",
        need, ggml_hugepages_size_name(image.page_size).c_str(), at, image.path.c_str(), cause);
    ggml_hugepages_hint(error, "look at the hugetlb limits of this cgroup and its ancestors (hugetlb.*.max, hugetlb.*.rsvd.max)");
    return false;
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    // all pages of all files first: nothing has been put in place when they are not there
    for (size_t i = 0; i < n; i++) {
        auto & image = *images[i];
        if (image.runs.empty()) {
            continue;
        }
        image.memfd = open_memfd(image.page_size);
        if (image.memfd == -1 || ftruncate(image.memfd, length_of(image)) != 0) {
            fail_errno(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "cannot create a hugetlb memfd", image.path.c_str());
            if (image.policy == GGML_HUGEPAGES_POLICY_REQUIRE) {
                return false;
            }
            GGML_LOG_WARN("%s: %s, it stays the file mapping\n", __func__, error->message);
            image.runs.clear();
            continue;
        }
        for (const auto & r : ranges(image.runs)) {
            const size_t end = reserve_head(image, r.first, r.second);
            if (end < r.second) {
                if (!handle_shortage(images, n, image, end, errno, error)) {
                    return false;
                }
                break;
            }
        }
    }
    for (size_t i = 0; i < n; i++) {
        auto & image = *images[i];
        for (const auto & r : image.runs) {
            if (mmap(image.addr + r.first, r.second - r.first, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, image.memfd, r.first) == MAP_FAILED) {
                return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot map huge pages", image.path.c_str());
            }
            madvise(image.addr + r.first, r.second - r.first, MADV_DONTDUMP);
            madvise(image.addr + r.first, r.second - r.first, MADV_DONTFORK);
        }
    }
    return true;
}

bool ggml_hugepages_fill(
        ggml_hugepages_image_t *         images,
        size_t                           n,
        ggml_hugepages_progress_callback callback,
        void *                           user_data,
        ggml_hugepages_error *           error) {
    // more than the cores there are, since they wait for the disk
    const size_t n_threads = std::min<size_t>(8, std::max<size_t>(4, std::thread::hardware_concurrency()));
    if (!ggml_hugepages_read(images, n, n_threads, callback, user_data, error)) {
        return false;
    }
    const bool is_short = std::any_of(images, images + n, [](const auto * image) { return image->short_at != SIZE_MAX; });
    if (is_short && images[0]->policy == GGML_HUGEPAGES_POLICY_PREFER) {
        // Who came first got the last pages, and that need not be the first block. They are put back, and given out again
        // in order of the file.
        for (size_t i = 0; i < n; i++) {
            const auto & image = *images[i];
            if (image.memfd != -1 && image.fill_from < length_of(image) &&
                    fallocate(image.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, image.fill_from, length_of(image) - image.fill_from) != 0) {
                return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "fallocate failed", image.path.c_str());
            }
        }
        if (!ggml_hugepages_read(images, n, 1, callback, user_data, error)) {
            return false;
        }
    }
    for (size_t i = 0; i < n; i++) {
        auto & image = *images[i];
        if (image.short_at != SIZE_MAX && !handle_shortage(images, n, image, image.short_at, image.short_cause, error)) {
            return false;
        }
        for (const auto & r : image.runs) {
            if (mprotect(image.addr + r.first, r.second - r.first, PROT_READ) != 0) {
                return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mprotect failed", image.path.c_str());
            }
        }
    }
    // not before all are filled: a shortage in a later image gives back what the earlier ones hold
    for (size_t i = 0; i < n; i++) {
        if (images[i]->memfd != -1) {
            close(images[i]->memfd); // the mappings keep the pages
            images[i]->memfd = -1;
        }
    }
    return true;
}

bool ggml_hugepages_get_report(ggml_hugepages_report * report) {
    *report = {};

    std::lock_guard<std::mutex> lock(g_images_mutex);
    for (const auto * image : g_images) {
        if (image->addr) {
            report->wanted += total_size(image->wanted);
            report->page_size = image->page_size;
        }
    }
    FILE * file = fopen("/proc/self/smaps", "r");
    if (!file) {
        return false;
    }
    size_t beg = 0, end = 0, kib = 0;
    bool is_huge = false;
    char line[8192]; // a path can be long, a longer one is cut into lines that match nothing
    while (fgets(line, sizeof(line), file)) {
        size_t b, e;
        if (sscanf(line, "%zx-%zx ", &b, &e) == 2) {
            beg = b;
            end = e;
        } else if (sscanf(line, "KernelPageSize: %zu kB", &kib) == 1) {
            is_huge = kib*1024 == report->page_size;
            for (const auto * image : g_images) {
                const size_t addr = (size_t) image->addr;
                if (addr && beg < addr + length_of(*image) && end > addr) {
                    const size_t bytes = ggml_hugepages_overlap(image->wanted, std::max(beg, addr) - addr, end - addr);
                    (is_huge ? report->on_huge : report->on_file) += bytes;
                }
            }
        } else if (is_huge && (sscanf(line, "Shared_Hugetlb: %zu kB", &kib) == 1 || sscanf(line, "Private_Hugetlb: %zu kB", &kib) == 1)) {
            for (const auto * image : g_images) {
                const size_t addr = (size_t) image->addr;
                if (addr && beg >= addr && end <= addr + length_of(*image)) {
                    report->huge_pages += kib*1024/report->page_size;
                }
            }
        }
    }
    fclose(file);
    return true;
}

#else

static bool unsupported(ggml_hugepages_error * error) {
    return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "huge pages need Linux");
}

bool ggml_hugepages_plan(ggml_hugepages_image_t *, size_t, const ggml_hugepages_params *, ggml_hugepages_error * error) {
    return unsupported(error);
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t, ggml_hugepages_error * error) {
    unsupported(error);
    return nullptr;
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t *, size_t, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_fill(ggml_hugepages_image_t *, size_t, ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_get_report(ggml_hugepages_report * report) {
    *report = {};
    return false;
}

#endif // __linux__
