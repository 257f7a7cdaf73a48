// Memory: file images with their overlay, and buffers.
//
// Blocks are ranges of hugetlb memfds, one memfd for each page size, at the same offsets as in the image. A shared mapping of a memfd keeps
// its reservation in the inode, not in the mapping. So the engine reserves the pages with a mapping at any address. A later MAP_FIXED then
// cannot fail for lack of pages; a failed MAP_FIXED would leave a hole in the image, which another thread's mmap could take. The engine
// returns unneeded pages by punching holes.
//
// A buffer is an image without a file: it has ordinary anonymous memory instead of the file mapping.

#include "ggml-hugepages-impl.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

#ifdef __linux__
#include <cerrno>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/memfd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d61
#define PR_SET_VMA_ANON_NAME 0
#endif
#endif // __linux__

// Finished images and buffers. The mutex is needed because a thread other than the loader may read them for a report.
static std::mutex                          g_mutex;
static std::vector<ggml_hugepages_image_t> g_images;
static std::vector<ggml_hugepages_image_t> g_buffers;
static std::atomic<size_t>                 g_n_buffers{0};
static std::atomic<uint64_t>               g_late{0};
static std::atomic<uint64_t>               g_attached{0}; // bytes of attached buffers since the last load
static ggml_hugepages_load                 g_load;
static std::map<const ggml_hugepages_image *, std::map<size_t, uint64_t>> g_promised; // reserved and untouched pages, by size

std::vector<ggml_hugepages_image> ggml_hugepages_alive() {
    std::lock_guard<std::mutex> lock(g_mutex);
    std::vector<ggml_hugepages_image> result;
    for (const auto * list : { &g_images, &g_buffers }) {
        for (const auto * image : *list) {
            // its writers still populate it
            if (!image->is_lazy) {
                result.push_back(*image);
            }
        }
    }
    return result;
}

uint64_t ggml_hugepages_promised(size_t page_size, const ggml_hugepages_image * except) {
    uint64_t pages = ggml_hugepages_held_pages(GGML_HUGEPAGES_KIND_COUNT, page_size);
    std::lock_guard<std::mutex> lock(g_mutex);
    for (const auto & [image, promised] : g_promised) {
        const auto it = promised.find(page_size);
        pages += image == except || it == promised.end() ? 0 : it->second;
    }
    return pages;
}

// Forgets the reserved pages of an image that has touched or returned them.
static void forget_promise(const ggml_hugepages_image & image) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_promised.erase(&image);
}

uint64_t ggml_hugepages_late() {
    return g_late;
}

void ggml_hugepages_set_load(const ggml_hugepages_load & load) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_load = load;
    g_load.bytes_attached += g_attached.exchange(0);
}

ggml_hugepages_load ggml_hugepages_last_load() {
    std::lock_guard<std::mutex> lock(g_mutex);
    return g_load;
}

ggml_hugepages_params ggml_hugepages_default_params(void) noexcept {
    ggml_hugepages_params result = {
        /*.enabled       =*/ false,
        /*.policy        =*/ GGML_HUGEPAGES_POLICY_REQUIRE,
        /*.placement     =*/ GGML_HUGEPAGES_PLACEMENT_DEFAULT,
        /*.page_size     =*/ GGML_HUGEPAGES_SIZE_AUTO,
        /*.n_threads     =*/ 0,
        /*.drop_cache    =*/ false,
        /*.kv_bytes      =*/ 0,
        /*.compute_bytes =*/ 0,
        /*.plan_only     =*/ false,
        /*.load_only     =*/ false,
        /*.verify        =*/ false,
        /*.store         =*/ "",
    };
    return result;
}

const char * ggml_hugepages_policy_name(ggml_hugepages_policy policy) noexcept {
    switch (policy) {
        case GGML_HUGEPAGES_POLICY_REQUIRE: return "require";
        case GGML_HUGEPAGES_POLICY_PREFER:  return "prefer";
    }
    return "unknown";
}

bool ggml_hugepages_policy_from_str(const char * str, ggml_hugepages_policy * policy) noexcept {
    for (auto p : { GGML_HUGEPAGES_POLICY_REQUIRE, GGML_HUGEPAGES_POLICY_PREFER }) {
        if (strcmp(str, ggml_hugepages_policy_name(p)) == 0) {
            *policy = p;
            return true;
        }
    }
    return false;
}

const char * ggml_hugepages_kind_name(ggml_hugepages_kind kind) noexcept {
    switch (kind) {
        case GGML_HUGEPAGES_KIND_WEIGHTS:  return "weights";
        case GGML_HUGEPAGES_KIND_REPACKED: return "repacked";
        case GGML_HUGEPAGES_KIND_KV:       return "kv";
        case GGML_HUGEPAGES_KIND_COMPUTE:  return "compute";
        case GGML_HUGEPAGES_KIND_OTHER:    return "other";
        case GGML_HUGEPAGES_KIND_COUNT:    break;
    }
    return "unknown";
}

std::string ggml_hugepages_path_of(int fd) {
#ifdef __linux__
    char path[4096];
    const ssize_t n = readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof(path));
    if (n > 0) {
        return std::string(path, n);
    }
#endif
    GGML_UNUSED(fd);
    return "";
}

ggml_hugepages_image_t ggml_hugepages_image_init(int fd, size_t size) {
    auto * image = new ggml_hugepages_image();
    image->fd     = fd;
    const std::string path = ggml_hugepages_path_of(fd);
    image->path   = path.empty() ? "fd " + std::to_string(fd) : "'" + path + "'";
#ifdef __linux__
    image->fd_page = ggml_hugepages_page_of(fd);
#endif
    image->size   = size;
    image->length = size;
    return image;
}

static void close_memfds(ggml_hugepages_image & image) {
#ifdef __linux__
    for (const auto & [_, fd] : image.memfds) {
        close(fd); // the mappings keep the pages
    }
#endif
    image.memfds.clear();
}

void ggml_hugepages_image_free(ggml_hugepages_image_t image) {
    if (!image) {
        return;
    }
    {
        std::lock_guard<std::mutex> lock(g_mutex);
        g_images.erase(std::remove(g_images.begin(), g_images.end(), image), g_images.end());
    }
    forget_promise(*image);
    close_memfds(*image);
    delete image;
}

void ggml_hugepages_image_want(ggml_hugepages_image_t image, size_t first, size_t last, ggml_hugepages_rank rank) {
    GGML_ASSERT(first <= last && last <= image->size);
    image->wants.push_back({ first, last, rank });
}

bool ggml_hugepages_image_is_wanted(ggml_hugepages_image_t image) {
    return !image->wants.empty();
}

bool ggml_hugepages_image_is_huge(ggml_hugepages_image_t image) {
    return image->fd_page != 0;
}

size_t ggml_hugepages_image_granularity(ggml_hugepages_image_t image) {
    size_t result = std::max<size_t>(4096, image->fd_page);
#ifdef __linux__
    result = std::max<size_t>(result, sysconf(_SC_PAGESIZE));
#endif
    for (const auto & r : image->runs) {
        result = std::max(result, r.page_size);
    }
    return result;
}

size_t ggml_hugepages_image_length(ggml_hugepages_image_t image) {
    return image->length;
}

void ggml_hugepages_image_expect(ggml_hugepages_image_t image, size_t first, size_t last) {
    GGML_ASSERT(first <= last && last <= image->size);
    image->expected.emplace_back(first, last);
}

void ggml_hugepages_image_on_arrival(ggml_hugepages_image_t image, ggml_hugepages_arrived_callback callback, void * user_data) {
    image->arrived      = callback;
    image->arrived_data = user_data;
}

bool ggml_hugepages_image_read(ggml_hugepages_image_t image, size_t i, size_t * first, size_t * last) {
    if (image->fd_page != 0) {
        // already in memory
        *first = 0;
        *last  = image->size;
        return i == 0;
    }
    if (i < image->runs.size()) {
        *first = image->runs[i].first;
        *last  = image->runs[i].last;
        return true;
    }
    i -= image->runs.size();
    if (i < image->expected.size()) {
        *first = image->expected[i].first;
        *last  = image->expected[i].second;
        return true;
    }
    return false;
}

static thread_local const ggml_hugepages_scope * t_scope = nullptr;
static std::mutex                                g_scope_mutex; // for g_scope
static ggml_hugepages_scope                      g_scope = {};

const ggml_hugepages_scope * ggml_hugepages_scope_set(const ggml_hugepages_scope * scope) {
    const auto * before = t_scope;
    t_scope = scope;
    return before;
}

void ggml_hugepages_scope_set_default(const ggml_hugepages_scope * scope) {
    std::lock_guard<std::mutex> lock(g_scope_mutex);
    g_scope = *scope;
}

ggml_hugepages_scope ggml_hugepages_default_scope() {
    std::lock_guard<std::mutex> lock(g_scope_mutex);
    return g_scope;
}

#ifdef __linux__

static bool fail_errno(ggml_hugepages_error * error, ggml_hugepages_status status, const char * what, const std::string & path) {
    return ggml_hugepages_fail(error, status, "%s for %s: %s", what, path.c_str(), strerror(errno));
}

static thread_local uint64_t t_us_populate = 0;

uint64_t ggml_hugepages_us_populate() {
    return t_us_populate;
}

static std::string mapping_name(const ggml_hugepages_image & image) {
    return std::string("llama-") + ggml_hugepages_kind_name(image.kind);
}

// shown in /proc/PID/maps as [anon:NAME]; the kernel does not merge it with neighbours of another name
static void set_name(const ggml_hugepages_image & image, void * addr, size_t size) {
    const std::string name = mapping_name(image);
    ggml_hugepages_call(SYS_prctl, PR_SET_VMA, PR_SET_VMA_ANON_NAME, (long) addr, (long) size, (long) name.c_str());
}

// An empty address range of `length` bytes that starts at a multiple of `alignment`.
static uint8_t * reserve_range(size_t length, size_t alignment) {
    auto * addr = (uint8_t *) mmap(nullptr, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (addr == MAP_FAILED) {
        return nullptr;
    }
    auto * base = (uint8_t *) ggml_hugepages_align_up((size_t) addr, alignment);
    if (base > addr) {
        munmap(addr, base - addr);
    }
    munmap(base + length, addr + alignment - base);
    return base;
}

// too little ordinary memory, or a limit on it
static bool fail_ordinary(ggml_hugepages_error * error, const ggml_hugepages_image & image, size_t size) {
    const int err = errno;
    ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot allocate %.2f MiB of ordinary memory for %s: %s", size/1024.0/1024.0,
        image.path.c_str(), strerror(err));
    const std::string strict = ggml_hugepages_overcommit("");
    ggml_hugepages_hint_address_space(error, size);
    if (error->hint[0] == '\0' && !strict.empty()) {
        ggml_hugepages_hint(error, "end other programs, raise vm.overcommit_kbytes or vm.overcommit_ratio, or add huge pages (%s)", strict.c_str());
    }
    return false;
}

// maps [first, last) without huge pages: the file up to its end, or ordinary memory
static bool map_ordinary(ggml_hugepages_image & image, size_t first, size_t last, ggml_hugepages_error * error) {
    const bool has_file = image.fd != -1;
    // The placeholder first, then the file: the file may end inside a block, and a huge mapping can only be cut at its page borders.
    if (mmap(image.addr + first, last - first, has_file ? PROT_NONE : PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | (has_file ? MAP_NORESERVE : 0), -1, 0) == MAP_FAILED) {
        return fail_ordinary(error, image, last - first);
    }
    if (has_file) {
        last = std::min(last, image.size);
        if (first < last && mmap(image.addr + first, last - first, PROT_READ, MAP_SHARED | MAP_FIXED, image.fd, first) == MAP_FAILED) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mmap failed", image.path);
        }
    } else {
        set_name(image, image.addr + first, last - first);
    }
    return true;
}

static bool map_image(ggml_hugepages_image & image, ggml_hugepages_error * error) {
    const size_t alignment = ggml_hugepages_image_granularity(&image);
    image.length = ggml_hugepages_align_up(image.size, alignment);
    for (const auto & r : image.runs) {
        image.length = std::max(image.length, r.last);
    }
    image.addr = reserve_range(image.length, alignment);
    if (!image.addr) {
        fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "no address space", image.path);
        ggml_hugepages_hint_address_space(error, image.length);
        return false;
    }
    // The gaps of a buffer get ordinary memory later, when its runs are final: with vm.overcommit_memory=2 the kernel charges memory when
    // it is mapped, not when it is touched.
    if (image.fd != -1 && !map_ordinary(image, 0, image.length, error)) {
        munmap(image.addr, image.length);
        image.addr = nullptr;
        return false;
    }
    return true;
}

// ordinary memory in the gaps between the runs of a buffer
static bool map_gaps(ggml_hugepages_image & buffer, ggml_hugepages_error * error) {
    ggml_hugepages_ranges runs;
    for (const auto & r : buffer.runs) {
        runs.emplace_back(r.first, r.last);
    }
    for (const auto & gap : ggml_hugepages_minus({ { 0, buffer.length } }, ggml_hugepages_normalized(runs))) {
        if (!map_ordinary(buffer, gap.first, gap.second, error)) {
            return false;
        }
    }
    return true;
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t image, ggml_hugepages_error * error) {
    return map_image(*image, error) ? image->addr : nullptr;
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

static bool is_thp(const ggml_hugepages_image & image) {
    return image.params.page_size == GGML_HUGEPAGES_SIZE_THP;
}

// the memfd with this process' own pages of one size
static int memfd_of(ggml_hugepages_image & image, size_t page_size) {
    const auto it = image.memfds.find(page_size);
    if (it != image.memfds.end()) {
        return it->second;
    }
    int fd = ggml_hugepages_memfd(mapping_name(image).c_str(), page_size);
    if (fd != -1 && !ggml_hugepages_resize(fd, ggml_hugepages_align_up(image.size, page_size))) {
        const int err = errno;
        close(fd);
        errno = err;
        fd = -1;
    }
    if (fd != -1) {
        image.memfds[page_size] = fd;
    }
    return fd;
}

// the file of a run, and the offset of its first block in this file
static std::pair<int, size_t> file_of(ggml_hugepages_image & image, const ggml_hugepages_run & run) {
    switch (run.owner) {
        case GGML_HUGEPAGES_OWNER_PROCESS:  return { memfd_of(image, run.page_size), run.first };
        case GGML_HUGEPAGES_OWNER_HELD:     return { ggml_hugepages_held_fd(*run.held), run.held_at };
        case GGML_HUGEPAGES_OWNER_FILLING:
        case GGML_HUGEPAGES_OWNER_ATTACHED: break;
    }
    return { image.resident->fd, run.first };
}

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

bool ggml_hugepages_drop(ggml_hugepages_image & image, size_t page_size, size_t first, size_t last, ggml_hugepages_error * error) {
    if (!map_ordinary(image, first, last, error)) {
        return false;
    }
    std::vector<ggml_hugepages_run> kept;
    for (const auto & r : image.runs) {
        if (r.page_size != page_size || r.last <= first || r.first >= last) {
            kept.push_back(r);
            continue;
        }
        auto head = r, tail = r, gone = r;
        head.last    = std::max(r.first, first);
        tail.first   = std::min(r.last, last);
        tail.held_at = r.held_at + (tail.first - r.first);
        gone.first   = head.last;
        gone.last    = tail.first;
        gone.held_at = r.held_at + (gone.first - r.first);
        for (const auto & part : { head, tail }) {
            if (part.first < part.last) {
                kept.push_back(part);
            }
        }
        // All attached processes share a page of a store, so only ggml_hugepages_store_file returns one.
        if (r.is_in_store()) {
            continue;
        }
        if (r.owner == GGML_HUGEPAGES_OWNER_HELD) {
            ggml_hugepages_held_refused(gone);
            continue;
        }
        const auto [fd, at] = file_of(image, gone);
        if (!ggml_hugepages_punch(fd, at, at + (gone.last - gone.first))) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "fallocate failed", image.path);
        }
    }
    image.runs = std::move(kept);
    // A hole returns pages, but not the reservation of a page that was never touched. Only a shorter file returns it, so the file is cut
    // after its last block.
    size_t end = 0;
    for (const auto & r : image.runs) {
        end = r.page_size == page_size && r.owner == GGML_HUGEPAGES_OWNER_PROCESS ? std::max(end, r.last) : end;
    }
    const auto it = image.memfds.find(page_size);
    if (it != image.memfds.end() && !ggml_hugepages_resize(it->second, end)) {
        return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "ftruncate failed", image.path);
    }
    return true;
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
        const bool is_filled = std::any_of(images[i]->runs.begin(), images[i]->runs.end(), [](const auto & r) {
            return r.owner == GGML_HUGEPAGES_OWNER_FILLING;
        });
        if (is_filled) {
            need[images[i]->resident->page_size] += images[i]->resident->pages_of_manifest();
        }
    }
    return need;
}

void ggml_hugepages_release(ggml_hugepages_image_t * images, size_t n_images) {
    for (size_t i = 0; i < n_images; i++) {
        forget_promise(*images[i]);
        if (images[i]->resident) {
            images[i]->resident->give_up();
        }
        for (const auto & [_, fd] : images[i]->memfds) {
            if (!ggml_hugepages_resize(fd, 0)) {
                GGML_LOG_WARN("%s: cannot return huge pages: ftruncate: %s\n", __func__, strerror(errno));
            }
        }
    }
    ggml_hugepages_hold_end();
}

// Returns the pages of the load before the message, so that the message counts only the pages of others.
static bool fail_load(
        ggml_hugepages_image_t *       images,
        size_t                         n,
        const ggml_hugepages_image   & image,
        const ggml_hugepages_refusal & refusal,
        ggml_hugepages_error         * error) {
    const auto need = need_of(images, n);
    ggml_hugepages_release(images, n);
    return ggml_hugepages_fail_refused(need, image, refusal, error);
}

// Reserves the pages of all runs, the lowest rank first.
static bool reserve_all(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    struct entry { ggml_hugepages_image * image; ggml_hugepages_run * run; };
    std::vector<entry> entries;
    for (size_t i = 0; i < n; i++) {
        ggml_hugepages_held_take(images[i]->kind, images[i]->runs);
        for (auto & r : images[i]->runs) {
            if (!is_thp(*images[i]) && r.owner == GGML_HUGEPAGES_OWNER_PROCESS) {
                entries.push_back({ images[i], &r });
            }
        }
    }
    std::stable_sort(entries.begin(), entries.end(), [](const entry & a, const entry & b) { return a.run->rank < b.run->rank; });
    const auto begin = std::chrono::steady_clock::now();
    for (const auto & e : entries) {
        auto & run = *e.run;
        const int    fd  = memfd_of(*e.image, run.page_size);
        const int    err_memfd = errno;
        const size_t end = fd == -1 ? run.first : reserve_head(fd, run);
        if (end == run.last) {
            continue;
        }
        const ggml_hugepages_refusal refusal = { fd == -1 ? "memfd_create" : "mmap", fd == -1 ? err_memfd : errno, run.page_size, end, false };
        if (!ggml_hugepages_accepts_less(&e.image->params)) {
            return fail_load(images, n, *e.image, refusal, error);
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
                pages[r.page_size] += r.is_in_store() || is_thp(*images[i]) ? 0 : (r.last - r.first)/r.page_size;
            }
            for (const auto & [_, count] : pages) {
                n_pages += count;
            }
            std::lock_guard<std::mutex> lock(g_mutex);
            g_promised[images[i]] = pages;
        }
        const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
        GGML_LOG_INFO("%s: reserved %" PRIu64 " huge pages for %s in %.2f ms\n", __func__, n_pages, ggml_hugepages_kind_name(images[0]->kind), ms);
    }
    return true;
}

// Sets the nodes of a range. Call it before the pages are populated, because it moves no page.
static void place_on_nodes(const ggml_hugepages_image & image, void * addr, size_t size) {
    // linux/mempolicy.h, which some libcs lack
    const int MPOL_BIND       = 2;
    const int MPOL_INTERLEAVE = 3;

    std::vector<int> nodes;
    if (image.params.placement == GGML_HUGEPAGES_PLACEMENT_INTERLEAVE) {
        nodes = ggml_hugepages_all_nodes("");
    } else if (image.params.placement != GGML_HUGEPAGES_PLACEMENT_DEFAULT) {
        nodes = ggml_hugepages_placement_nodes("", image.params.placement);
    }
    if (nodes.empty()) {
        return;
    }
    unsigned long mask[16] = {};
    const size_t bits = 8*sizeof(mask[0]);
    for (const int node : nodes) {
        if ((size_t) node < 16*bits) {
            mask[node/bits] |= 1ul << (node % bits);
        }
    }
    const int mode = image.params.placement == GGML_HUGEPAGES_PLACEMENT_INTERLEAVE ? MPOL_INTERLEAVE : MPOL_BIND;
    if (ggml_hugepages_call(SYS_mbind, (long) addr, (long) size, mode, (long) mask, 16*bits, 0) != 0) {
        // the default seccomp profiles of containers forbid mbind
        GGML_LOG_WARN("%s: cannot choose the nodes of %s (mbind: %s), the kernel chooses them\n", __func__, image.path.c_str(), strerror(errno));
    }
}

// maps the blocks of an image
static bool map_runs(ggml_hugepages_image & image, ggml_hugepages_error * error) {
    for (const auto & r : image.runs) {
        void * addr = image.addr + r.first;
        const size_t size = r.last - r.first;
        const bool   is_attached = r.owner == GGML_HUGEPAGES_OWNER_ATTACHED;
        const int    prot        = is_attached ? PROT_READ : PROT_READ | PROT_WRITE;
        void * ret;
        if (is_thp(image)) {
            ret = mmap(addr, size, prot, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        } else {
            const auto [fd, at] = file_of(image, r);
            ret = mmap(addr, size, prot, MAP_SHARED | MAP_FIXED | (r.is_in_store() ? MAP_NORESERVE : 0), fd, at);
        }
        if (ret == MAP_FAILED) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "cannot map the huge pages", image.path);
        }
        if (is_thp(image)) {
            ggml_hugepages_advise(addr, size, MADV_HUGEPAGE);
            set_name(image, addr, size);
        }
        ggml_hugepages_advise(addr, size, MADV_DONTDUMP);
        ggml_hugepages_advise(addr, size, MADV_DONTFORK);
        if (!is_attached) {
            place_on_nodes(image, addr, size);
        }
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

// The kernel gives a THP if it can, and never reports a shortage. So the engine populates all memory before the first read and counts its
// THP.
static bool populate_thp(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    size_t wanted = 0;
    for (size_t i = 0; i < n; i++) {
        if (is_thp(*images[i])) {
            ggml_hugepages_refusal refusal = {};
            ggml_hugepages_image * refused = nullptr;
            if (!ggml_hugepages_populate_all(*images[i], &refused, &refusal, error)) {
                if (refused) {
                    errno = refusal.err;
                    fail_ordinary(error, *refused, images[i]->size);
                    error->status = GGML_HUGEPAGES_STATUS_SHORT;
                }
                return false;
            }
            for (const auto & r : images[i]->runs) {
                wanted += r.last - r.first;
            }
        }
    }
    if (wanted == 0) {
        return true;
    }
    size_t huge = 0;
    FILE * file = fopen("/proc/self/smaps", "r");
    if (!file) {
        return fail_errno(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "cannot count transparent huge pages", "/proc/self/smaps");
    }
    char line[8192];
    bool is_inside = false;
    while (fgets(line, sizeof(line), file)) {
        size_t beg, end, kib; // NOLINT
        if (sscanf(line, "%zx-%zx ", &beg, &end) == 2) {
            is_inside = std::any_of(images, images + n, [&](const auto * image) {
                return is_thp(*image) && beg < (size_t) image->addr + image->length && end > (size_t) image->addr;
            });
        } else if (is_inside && sscanf(line, "AnonHugePages: %zu kB", &kib) == 1) {
            huge += kib*1024;
        }
    }
    fclose(file);
    if (huge >= wanted) {
        return true;
    }
    if (!ggml_hugepages_accepts_less(&images[0]->params)) {
        ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_SHORT, "only %.2f of %.2f MiB got transparent huge pages",
            huge/1024.0/1024.0, wanted/1024.0/1024.0);
        ggml_hugepages_hint(error, "as root: echo 1 > /proc/sys/vm/compact_memory, then try again, or use --hugepage-policy prefer to load with fewer huge pages");
        return false;
    }
    GGML_LOG_WARN("%s: only %.2f of %.2f MiB got transparent huge pages\n", __func__, huge/1024.0/1024.0, wanted/1024.0/1024.0);
    return true;
}

// holds the pages that the plan counted for buffers after the weights
static bool hold(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    std::vector<ggml_hugepages_grant> grants;
    for (size_t i = 0; i < n; i++) {
        grants.insert(grants.end(), images[i]->grants.begin(), images[i]->grants.end());
    }
    size_t page_size = 0;
    if (grants.empty() || ggml_hugepages_hold(grants, ggml_hugepages_accepts_less(&images[0]->params), images[0]->limits_may_hide, &page_size)) {
        return true;
    }
    // EFAULT: the kernel refused the page on touch
    return fail_load(images, n, *images[0], { errno == EFAULT ? "madvise" : "mmap", errno, page_size, 0, false }, error);
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t * images, size_t n, ggml_hugepages_error * error) {
    // reserve all pages of all files first, so that nothing is mapped if pages are short
    if (!reserve_all(images, n, error) || !hold(images, n, error)) {
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        if (!begin_filling(*images[i], error)) {
            const auto need    = need_of(images, n);
            const auto message = *error;
            ggml_hugepages_release(images, n);
            if (message.status != GGML_HUGEPAGES_STATUS_SHORT) {
                *error = message;
                return false;
            }
            const auto & file = *images[i]->resident;
            return ggml_hugepages_fail_refused(need, *images[i], { "madvise", EFAULT, file.page_size, file.sums_at, true }, error);
        }
        if (!images[i]->runs.empty() && !map_runs(*images[i], error)) {
            return false;
        }
    }
    return populate_thp(images, n, error);
}

// Makes the blocks read-only. Fills the page table for resident pages now, so that the first token does not have to.
static bool protect(const ggml_hugepages_image & image, ggml_hugepages_error * error) {
    for (const auto & r : image.runs) {
        if (mprotect(image.addr + r.first, r.last - r.first, PROT_READ) != 0) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_NO_MEMORY, "mprotect failed", image.path);
        }
        // if the call is forbidden, the first touch maps the page
        if (r.is_in_store() && ggml_hugepages_advise(image.addr + r.first, r.last - r.first, MADV_POPULATE_READ) != 0 && errno != EPERM && errno != ENOSYS) {
            return fail_errno(error, GGML_HUGEPAGES_STATUS_IO, "cannot attach to the resident pages", image.path);
        }
    }
    return true;
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
        return fail_load(images, n_images, *refused, refusal, error);
    }
    if (!ok) {
        ggml_hugepages_hold_end();
        return false;
    }
    for (size_t i = 0; i < n_images; i++) {
        auto & image = *images[i];
        if (!protect(image, error)) {
            ggml_hugepages_hold_end();
            return false;
        }
        if (image.resident) {
            image.resident->finish();
        }
    }
    for (size_t i = 0; i < n_images; i++) {
        forget_promise(*images[i]);
    }
    std::lock_guard<std::mutex> lock(g_mutex);
    // Only after all images are filled, because a shortage in a later image returns the pages of the earlier ones.
    for (size_t i = 0; i < n_images; i++) {
        close_memfds(*images[i]);
        if (images[i]->addr) {
            g_images.push_back(images[i]);
        }
    }
    return true;
}

//
// buffers
//

static void unmap_buffer(ggml_hugepages_image & buffer) {
    forget_promise(buffer);
    close_memfds(buffer);
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

// whether the store holds all of the buffer
static bool is_in_store(const ggml_hugepages_image & buffer) {
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

// Plans, maps and populates. False with an error if the kernel refuses pages and the policy does not accept less.
static bool map_buffer(ggml_hugepages_image & buffer, const ggml_hugepages_params & params, ggml_hugepages_error * error) {
    auto * handle = &buffer;
    const bool accepts_less = ggml_hugepages_accepts_less(&params);
    bool planned = ggml_hugepages_plan(&handle, 1, nullptr, 0, &params, error);
    // a resident buffer is shared as a whole or not at all
    if (planned && buffer.resident && !is_attached(buffer) && (!is_in_store(buffer) || !buffer.resident->begin(error))) {
        planned = accepts_less && leave_store(buffer, params, error);
        if (!planned && !accepts_less && error->status == GGML_HUGEPAGES_STATUS_SHORT) {
            const auto & file = *buffer.resident;
            return fail_load(&handle, 1, buffer, { "madvise", EFAULT, file.page_size, file.sums_at, true }, error);
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
    if (!map_image(buffer, error)) {
        return false;
    }
    if (is_attached(buffer)) {
        buffer.is_lazy = false;
        g_attached    += buffer.size;
        return map_runs(buffer, error) && protect(buffer, error);
    }
    ggml_hugepages_refusal refusal = {};
    ggml_hugepages_image * refused = nullptr;
    bool ok = reserve_all(&handle, 1, error) && map_runs(buffer, error) && map_gaps(buffer, error);
    if (ok && is_thp(buffer)) {
        ok = populate_thp(&handle, 1, error);
    } else if (ok) {
        ok = (accepts_less || ggml_hugepages_populate_ahead(&handle, 1, nullptr, nullptr, &refused, &refusal, error)) &&
            ggml_hugepages_populate_all(buffer, &refused, &refusal, error);
    }
    if (!ok) {
        if (refused) {
            fail_load(&handle, 1, buffer, refusal, error);
        }
        unmap_buffer(buffer);
        return false;
    }
    if (!buffer.is_lazy) {
        close_memfds(buffer);
        forget_promise(buffer);
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
        const bool ok  = ggml_hugepages_populate(buffer.addr + range.first, range.second - range.first);
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
            if (!ggml_hugepages_populate(buffer.addr + page, page_size) && !ggml_hugepages_policy_refused(buffer,
                    { "madvise", errno, page_size, page, buffer.resident != nullptr }, page, page + page_size, error)) {
                return false;
            }
        }
        buffer.populated.push_back(range);
        buffer.populated = ggml_hugepages_normalized(buffer.populated);
    }
    return true;
}

// the buffer that contains an address
static ggml_hugepages_image * find_buffer(const void * ptr) {
    std::lock_guard<std::mutex> lock(g_mutex);
    const auto it = std::find_if(g_buffers.begin(), g_buffers.end(), [&](const auto * b) { return b->addr <= ptr && ptr < b->addr + b->length; });
    return it == g_buffers.end() ? nullptr : *it;
}

bool ggml_hugepages_buffer_populate(void * ptr, size_t size) {
    auto * buffer = find_buffer(ptr);
    if (!buffer || !buffer->is_lazy) {
        return true;
    }
    const auto   begin = std::chrono::steady_clock::now();
    const size_t first = (uint8_t *) ptr - buffer->addr;
    ggml_hugepages_error error = {};
    const bool ok = populate_lazy(*buffer, first, std::min(first + size, buffer->size), &error);
    if (!ok && error.message[0]) {
        GGML_LOG_ERROR("%s: %s\n", __func__, error.message);
    }
    t_us_populate += std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - begin).count();
    return ok;
}

// completes a fully written buffer, so that other processes can attach
static bool ggml_hugepages_make_resident(ggml_hugepages_image & buffer, ggml_hugepages_error * error) {
    auto & file = *buffer.resident;
    if (!is_in_store(buffer)) {
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
    return protect(buffer, error);
}

bool ggml_hugepages_buffer_settle(void * ptr, ggml_hugepages_error * error) {
    auto * buffer = find_buffer(ptr);
    if (!buffer || !buffer->is_lazy) {
        return true;
    }
    if (buffer->refused == 0 && populate_lazy(*buffer, 0, buffer->size, error)) {
        close_memfds(*buffer);
        forget_promise(*buffer);
        if (buffer->resident && !ggml_hugepages_make_resident(*buffer, error)) {
            return false;
        }
        std::lock_guard<std::mutex> lock(g_mutex);
        buffer->is_lazy = false;
        return true;
    }
    if (buffer->refused != 0) {
        const auto run = std::find_if(buffer->runs.begin(), buffer->runs.end(), [&](const auto & r) { return buffer->refused_at < r.last; });
        return fail_load(&buffer, 1, *buffer, { "madvise", buffer->refused, run->page_size, buffer->refused_at, run->is_in_store() }, error);
    }
    return false;
}

void * ggml_hugepages_buffer_alloc(size_t size) {
    const ggml_hugepages_scope scope = t_scope ? *t_scope : ggml_hugepages_default_scope();
    if (!scope.params.enabled || size == 0) {
        return ggml_aligned_malloc(size);
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
    if (scope.resident && scope.resident->file->is_open() && scope.resident->file->size == size) {
        buffer->resident = scope.resident->file;
    }

    bool thp_enabled = false;
    const size_t smallest = params.page_size == GGML_HUGEPAGES_SIZE_AUTO ? ggml_hugepages_page_size("") :
                            params.page_size == GGML_HUGEPAGES_SIZE_THP  ? ggml_hugepages_thp_size("", &thp_enabled) : params.page_size;
    if (size < smallest) {
        buffer->is_malloc = true;
        buffer->addr      = (uint8_t *) ggml_aligned_malloc(size);
        buffer->wanted    = { { 0, size } };
    } else {
        ggml_hugepages_error error = {};
        if (!map_buffer(*buffer, params, &error)) {
            ggml_hugepages_set_failure(error.status);
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
            g_late += size - std::min<uint64_t>(size, on_huge);
        }
    }
    if (!buffer->addr) {
        return nullptr;
    }
    void * result = buffer->addr;
    std::lock_guard<std::mutex> lock(g_mutex);
    g_buffers.push_back(buffer.release());
    g_n_buffers = g_buffers.size();
    return result;
}

void ggml_hugepages_buffer_free(void * ptr, size_t size) {
    if (g_n_buffers > 0) {
        std::unique_ptr<ggml_hugepages_image> buffer;
        {
            std::lock_guard<std::mutex> lock(g_mutex);
            const auto it = std::find_if(g_buffers.begin(), g_buffers.end(), [&](const auto * b) { return b->addr == ptr; });
            if (it != g_buffers.end()) {
                buffer.reset(*it);
                g_buffers.erase(it);
                g_n_buffers = g_buffers.size();
            }
        }
        if (buffer && !buffer->is_malloc) {
            unmap_buffer(*buffer);
            return;
        }
    }
    ggml_aligned_free(ptr, size);
}

#else

static bool unsupported(ggml_hugepages_error * error) {
    return ggml_hugepages_fail(error, GGML_HUGEPAGES_STATUS_UNSUPPORTED, "huge pages are available only on Linux");
}

bool ggml_hugepages_plan(ggml_hugepages_image_t *, size_t, const ggml_hugepages_demand *, size_t, const ggml_hugepages_params *, ggml_hugepages_error * error) {
    return unsupported(error);
}

void * ggml_hugepages_image_map(ggml_hugepages_image_t, ggml_hugepages_error * error) {
    unsupported(error);
    return nullptr;
}

bool ggml_hugepages_overlay(ggml_hugepages_image_t *, size_t, ggml_hugepages_error * error) {
    return unsupported(error);
}

bool ggml_hugepages_fill(ggml_hugepages_image_t *, size_t, const ggml_hugepages_piece *, size_t, const ggml_hugepages_params *,
        ggml_hugepages_progress_callback, void *, ggml_hugepages_error * error) {
    return unsupported(error);
}

void * ggml_hugepages_buffer_alloc(size_t size) {
    return ggml_aligned_malloc(size);
}

void ggml_hugepages_buffer_free(void * ptr, size_t size) {
    ggml_aligned_free(ptr, size);
}

bool ggml_hugepages_buffer_populate(void *, size_t) {
    return true;
}

bool ggml_hugepages_buffer_settle(void *, ggml_hugepages_error *) {
    return true;
}

#endif // __linux__
