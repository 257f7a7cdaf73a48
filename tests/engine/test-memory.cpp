// Memory, files and pages of the real kernel.
//
//   anywhere   needs no pool
//   pool       needs some usable pages of 2 MiB, and no other process that takes pages
//   large      needs a usable page of 1 GiB, and some of 2 MiB

#include "test.h"

#include "ggml-hugepages/syscalls.h"
#include "ggml-hugepages/held-pages.h"
#include "ggml-hugepages/kernel.h"
#include "ggml-hugepages/placement.h"
#include "ggml-hugepages/registry.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const size_t PAGE = 2*MIB;

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

//
// refusing pages
//

// The number of bytes that a simulated cgroup limit allows this process to touch. Linked with --wrap=madvise, because only a real cgroup
// can limit pages after their reservation.
static std::atomic<int64_t> g_allowance{INT64_MAX};

extern "C" int __real_madvise(void * addr, size_t size, int advice); // NOLINT
extern "C" int __wrap_madvise(void * addr, size_t size, int advice); // NOLINT

extern "C" int __wrap_madvise(void * addr, size_t size, int advice) { // NOLINT
    if (advice == MADV_POPULATE_WRITE && g_allowance != INT64_MAX) {
        if (g_allowance.fetch_sub(size) < (int64_t) size) {
            g_allowance += size;
            errno = EFAULT;
            return -1;
        }
    }
    return __real_madvise(addr, size, advice);
}

struct allowance {
    explicit allowance(size_t bytes) { g_allowance = bytes; }
    ~allowance() { g_allowance = INT64_MAX; }
};

// in file order, so that the test knows which blocks get the last pages
static ggml_hugepages_params one_thread(ggml_hugepages_params params) {
    params.n_threads = 1;
    return params;
}

//
// the pool
//

static ggml_hugepages_pool pool_now(size_t page_size = PAGE) {
    ggml_hugepages_pool pool = {};
    ggml_hugepages_pool_read("", page_size, &pool);
    return pool;
}

// usable pages without those of overcommit
static uint64_t usable_now(size_t page_size = PAGE) {
    const auto pool = pool_now(page_size);
    return pool.free - std::min(pool.free, pool.reserved);
}

// Checks at its end that all pages are back.
struct pool_watch {
    size_t   page_size;
    uint64_t usable;   // at its start
    uint64_t reserved;
    uint64_t free;

    explicit pool_watch(size_t page_size = PAGE) : page_size(page_size), usable(usable_now(page_size)) {
        const auto pool = pool_now(page_size);
        reserved = pool.reserved;
        free     = pool.free;
    }
    ~pool_watch() {
        CHECK_EQ(pool_now(page_size).free, free);
        CHECK_EQ(pool_now(page_size).reserved, reserved);
    }
    uint64_t taken()    const { return free   - pool_now(page_size).free; }    // populated
    uint64_t promised() const { return usable - usable_now(page_size); }       // populated or reserved
};

// enough pages for each test, and few enough to run short of them
static const uint64_t MIN_PAGES = 16;
static const uint64_t MAX_PAGES = 64;

#define NEEDS_POOL()                                                                        \
    if (usable_now() < MIN_PAGES || usable_now() > MAX_PAGES) {                             \
        SKIP("needs " + std::to_string(MIN_PAGES) + " to " + std::to_string(MAX_PAGES) +   \
            " usable pages of 2 MiB, there are " + std::to_string(usable_now()));           \
    }                                                                                       \
    pool_watch pool

// Pages that another process has taken.
struct other_process {
    void * addr;
    size_t size;

    explicit other_process(uint64_t pages) : size(pages*PAGE) {
        addr = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | (21 << 26), -1, 0); // MAP_HUGE_2MB
        CHECK(addr != MAP_FAILED);
    }
    ~other_process() {
        if (addr != MAP_FAILED) {
            munmap(addr, size);
        }
    }
};

//
// files
//

static uint8_t byte_at(uint64_t seed, size_t offset) {
    uint64_t x = (offset/8 + 1)*0x9e3779b97f4a7c15 + seed;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9;
    return (uint8_t) (x >> (8*(offset % 8)));
}

// offset of the first byte that differs from the file, SIZE_MAX if none differs
static size_t first_difference(const uint8_t * data, uint64_t seed, size_t first, size_t last) {
    for (size_t i = first; i < last; i++) {
        if (data[i - first] != byte_at(seed, i)) {
            return i;
        }
    }
    return SIZE_MAX;
}

struct temp_file {
    int         fd = -1;
    size_t      size;
    uint64_t    seed;
    std::string path;

    // sparse: a file of zeros
    explicit temp_file(size_t size, uint64_t seed = 1, bool sparse = false) : size(size), seed(seed) {
        path = scratch_dir() + "/file-XXXXXX";
        fd = mkstemp(path.data());
        if (!CHECK(fd != -1)) {
            return;
        }
        if (sparse) {
            CHECK_EQ(ftruncate(fd, size), 0);
            return;
        }
        std::vector<uint8_t> data(MIB);
        for (size_t at = 0; at < size; at += data.size()) {
            const size_t n = std::min(data.size(), size - at);
            for (size_t i = 0; i < n; i++) {
                data[i] = byte_at(seed, at + i);
            }
            CHECK_EQ((size_t) pwrite(fd, data.data(), n, at), n);
        }
    }
    ~temp_file() {
        close(fd);
        unlink(path.c_str());
    }

    // drops the file from the page cache
    void drop() const {
        CHECK_EQ(fsync(fd), 0);
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    }
};

static size_t count_bytes(const ggml_hugepages_image & image) {
    size_t n = 0;
    for (const auto & r : image.runs) {
        n += std::min(r.last, image.size) - std::min(r.first, image.size);
    }
    return n;
}

// A load with the calls of llama.cpp.
struct load {
    struct entry { const temp_file * file; ggml_hugepages_image_t image; uint8_t * addr; };

    ggml_hugepages_params                   params;
    std::vector<entry>                      entries;
    ggml_hugepages_error                    error = {};
    std::vector<ggml_hugepages_piece>       pieces;
    std::vector<ggml_hugepages_demand>      demands; // for the buffers after the files

    explicit load(const ggml_hugepages_params & params) : params(params) {}

    load & add(const temp_file & file) {
        entries.push_back({ &file, ggml_hugepages_image_init(file.fd, file.size), nullptr });
        return *this;
    }
    load & want(size_t first, size_t last, ggml_hugepages_rank rank = GGML_HUGEPAGES_RANK_LAYERS) {
        ggml_hugepages_image_want(entries.back().image, first, last, rank);
        return *this;
    }
    load & want_all() { return want(0, entries.back().file->size); }

    std::vector<ggml_hugepages_image_t> images() const {
        std::vector<ggml_hugepages_image_t> result;
        for (const auto & e : entries) {
            result.push_back(e.image);
        }
        return result;
    }

    bool plan() {
        auto imgs = images();
        return ggml_hugepages_plan(imgs.data(), imgs.size(), demands.data(), demands.size(), &params, &error);
    }
    bool map() {
        for (auto & e : entries) {
            e.addr = (uint8_t *) ggml_hugepages_image_map(e.image, &error);
            if (!e.addr) {
                return false;
            }
        }
        return true;
    }
    bool overlay() {
        auto imgs = images();
        return ggml_hugepages_overlay(imgs.data(), imgs.size(), &error);
    }
    bool fill(ggml_hugepages_progress_callback callback = nullptr, void * user_data = nullptr) {
        auto imgs = images();
        return ggml_hugepages_fill(imgs.data(), imgs.size(), pieces.data(), pieces.size(), &params, callback, user_data, &error);
    }
    bool run() { return plan() && map() && overlay() && fill(); }

    // compares every byte of the image with the file
    void check_bytes() const {
        for (const auto & e : entries) {
            CHECK_EQ(first_difference(e.addr, e.file->seed, 0, e.file->size), (size_t) SIZE_MAX);
        }
    }
    uint64_t pages(size_t page_size = PAGE) const {
        uint64_t n = 0;
        for (const auto & e : entries) {
            for (const auto & r : e.image->runs) {
                n += r.page_size == page_size ? (r.last - r.first)/page_size : 0;
            }
        }
        return n;
    }

    ~load() {
        for (const auto & e : entries) {
            if (e.addr) {
                CHECK_EQ(munmap(e.addr, ggml_hugepages_image_length(e.image)), 0);
            }
            ggml_hugepages_image_free(e.image);
        }
    }
};

// The kernel writes into the memory and returns EFAULT where a write of this process would raise a signal.
static bool is_writable(const void * addr) {
    int fds[2];
    if (pipe(fds) != 0) {
        return false;
    }
    const char byte = *(const volatile char *) addr;
    const bool ok = write(fds[1], &byte, 1) == 1 && read(fds[0], (void *) addr, 1) == 1;
    close(fds[0]);
    close(fds[1]);
    return ok;
}

// the value of a line of /proc/self/smaps for the mapping of the address, e.g. "KernelPageSize" in bytes; VmFlags as text
static std::string smaps_of(const void * addr, const char * name) {
    std::string result;
    FILE * file = fopen("/proc/self/smaps", "r");
    char line[8192];
    bool is_inside = false;
    while (file && fgets(line, sizeof(line), file)) {
        size_t first, last; // NOLINT
        if (sscanf(line, "%zx-%zx ", &first, &last) == 2) {
            is_inside = (size_t) addr >= first && (size_t) addr < last;
            if (is_inside && strcmp(name, "header") == 0) {
                result = line;
            }
        } else if (is_inside && strncmp(line, name, strlen(name)) == 0 && line[strlen(name)] == ':') {
            result = line + strlen(name) + 1;
        }
    }
    if (file) {
        fclose(file);
    }
    result.erase(0, result.find_first_not_of(" \t"));
    result.erase(result.find_last_not_of(" \n") + 1);
    return result;
}

static std::string base_page() {
    return std::to_string(sysconf(_SC_PAGESIZE)/KIB) + " kB";
}

static bool is_zero(const void * data, size_t size) {
    const auto * bytes = (const uint8_t *) data;
    return std::all_of(bytes, bytes + size, [](uint8_t b) { return b == 0; });
}

//
// buffers
//

struct scoped {
    ggml_hugepages_scope         scope;
    const ggml_hugepages_scope * before;

    scoped(const ggml_hugepages_params & params, ggml_hugepages_kind kind = GGML_HUGEPAGES_KIND_KV, bool late = false, bool lazy = false) : scope{ params, kind, late, lazy } {
        before = ggml_hugepages_scope_set(&scope);
    }
    ~scoped() { CHECK(ggml_hugepages_scope_set(before) == &scope); }
};

static const ggml_hugepages_usage * usage_of(const ggml_hugepages_report & report, ggml_hugepages_kind kind, ggml_hugepages_backing backing) {
    for (uint32_t i = 0; i < report.n_usages; i++) {
        if (report.usages[i].kind == kind && report.usages[i].backing == backing) {
            return &report.usages[i];
        }
    }
    return nullptr;
}

static uint64_t bytes_of(const ggml_hugepages_report & report, ggml_hugepages_kind kind, ggml_hugepages_backing backing) {
    const auto * usage = usage_of(report, kind, backing);
    return usage ? usage->bytes : 0;
}

TEST(anywhere, without_a_scope_a_buffer_is_ordinary_memory) {
    CHECK(ggml_hugepages_scope_set(nullptr) == nullptr);
    for (const size_t size : { (size_t) 1, PAGE, 3*PAGE + 1 }) {
        void * ptr = ggml_hugepages_buffer_alloc(size);
        REQUIRE(ptr != nullptr);
        memset(ptr, 1, size);
        ggml_hugepages_report report;
        CHECK(ggml_hugepages_get_report(0, &report));
        CHECK_EQ(report.n_usages, 0u);
        ggml_hugepages_buffer_free(ptr, size);
    }
    ggml_hugepages_buffer_free(nullptr, 0);
}

TEST(anywhere, a_scope_that_is_off_is_none) {
    auto params = require();
    params.enabled = false;
    scoped off(params);
    void * ptr = ggml_hugepages_buffer_alloc(PAGE);
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.n_usages, 0u);
    ggml_hugepages_buffer_free(ptr, PAGE);
}

TEST(anywhere, nothing_is_nothing) {
    CHECK(ggml_hugepages_buffer_alloc(0) == nullptr);
    scoped on(require(), GGML_HUGEPAGES_KIND_KV);
    CHECK(ggml_hugepages_buffer_alloc(0) == nullptr);
}

TEST(anywhere, scopes_nest_and_end) {
    const ggml_hugepages_scope outer = { require(), GGML_HUGEPAGES_KIND_KV,      false };
    const ggml_hugepages_scope inner = { prefer(),  GGML_HUGEPAGES_KIND_COMPUTE, true  };
    CHECK(ggml_hugepages_scope_set(&outer) == nullptr);
    CHECK(ggml_hugepages_scope_set(&inner) == &outer);
    // each thread has its own scope
    std::thread([] { CHECK(ggml_hugepages_scope_set(nullptr) == nullptr); }).join();
    CHECK(ggml_hugepages_scope_set(&outer) == &inner);
    CHECK(ggml_hugepages_scope_set(nullptr) == &outer);
    CHECK(ggml_hugepages_scope_set(nullptr) == nullptr);
}

TEST(anywhere, a_size_without_a_pool_is_an_error_or_ordinary_memory_that_is_counted) {
    const size_t size = 5*MIB;
    {
        scoped on(require(4*MIB)); // no kernel for this CPU has this size
        CHECK(ggml_hugepages_buffer_alloc(size) == nullptr);
        const std::string log = take_log();
        CHECK(log.find("this kernel has no pool of huge pages of 4 MiB") != std::string::npos);
        CHECK(log.find("hint: ") != std::string::npos);
    }
    scoped on(prefer(4*MIB));
    void * ptr = ggml_hugepages_buffer_alloc(size);
    REQUIRE(ptr != nullptr);
    CHECK(is_zero(ptr, size));
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_BASE) +
             bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_THP), (uint64_t) size);
    ggml_hugepages_buffer_free(ptr, size);
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.n_usages, 0u);
}

//
// pieces
//

struct placed {
    std::mutex           mutex;
    std::map<size_t, int> times; // by offset of the piece
    uint64_t             seed     = 0;
    size_t               bad      = 0;
    size_t               fail_at  = SIZE_MAX;
};

static bool place(const void * data, size_t size, const ggml_hugepages_piece * piece) {
    auto & p = *(placed *) piece->user_data;
    const bool ok = size == piece->last - piece->first && first_difference((const uint8_t *) data, p.seed, piece->first, piece->last) == SIZE_MAX;
    if (p.fail_at != SIZE_MAX && piece->offset > p.fail_at) {
        // gives the refused piece time to end, also on a busy machine
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::lock_guard<std::mutex> lock(p.mutex);
    p.times[piece->offset]++;
    p.bad += !ok;
    return piece->offset != p.fail_at;
}

TEST(anywhere, pieces_come_once_and_whole_from_any_offset) {
    const temp_file file(21*MIB + 777, 5);
    random_numbers random{ 7 };
    for (const bool is_cached : { true, false }) {
        if (!is_cached) {
            file.drop();
        }
        placed p;
        p.seed = file.seed;
        load l(prefer());
        l.add(file);
        size_t total = 0;
        // small pieces, pieces across sectors and chunks, adjacent and overlapping pieces, the whole file, its last byte, and an empty
        // piece
        for (size_t i = 0; i < 200; i++) {
            const size_t first = random.below(file.size);
            const size_t size  = random.below(std::min(file.size - first, i % 3 == 0 ? 3*MIB : 9*KIB)) + 1;
            l.pieces.push_back({ l.entries[0].image, first, first + size, place, &p, 0 });
        }
        l.pieces.push_back({ l.entries[0].image, 0, file.size, place, &p, 0 });
        l.pieces.push_back({ l.entries[0].image, file.size - 1, file.size, place, &p, 0 });
        for (const size_t first : { (size_t) 0, 4096*KIB, 5*MIB + 3, file.size }) {
            l.pieces.push_back({ l.entries[0].image, first, first, place, &p, 0 });
        }
        for (size_t i = 0; i < l.pieces.size(); i++) {
            l.pieces[i].offset = i;
            total += l.pieces[i].last - l.pieces[i].first;
        }
        std::vector<std::pair<uint64_t, uint64_t>> seen;
        const bool ok = l.fill([](uint64_t done, uint64_t total, void * user_data) {
            ((std::vector<std::pair<uint64_t, uint64_t>> *) user_data)->emplace_back(done, total);
            return true;
        }, &seen);
        CHECK(ok);
        if (!ok) {
            test_fail(__FILE__, __LINE__, l.error.message);
        }
        CHECK_EQ(p.bad, (size_t) 0);
        CHECK_EQ(p.times.size(), l.pieces.size());
        CHECK(std::all_of(p.times.begin(), p.times.end(), [](const auto & t) { return t.second == 1; }));
        CHECK(!seen.empty());
        for (size_t i = 0; i < seen.size(); i++) {
            CHECK_EQ(seen[i].second, (uint64_t) total);
            CHECK(seen[i].first <= total);
            CHECK(i == 0 || seen[i - 1].first <= seen[i].first);
        }
    }
}

TEST(anywhere, parts_of_a_piece_come_in_order_in_whole_groups) {
    const temp_file file(24*MIB + 777, 5);
    struct parts {
        const temp_file & file;
        std::mutex        mutex;
        std::map<size_t, std::vector<std::pair<size_t, size_t>>> of = {}; // offset and size, by the first byte of the piece
        size_t            bad = 0;
    };
    const auto take = [](const void * data, size_t size, const ggml_hugepages_piece * piece) {
        auto & p = *(parts *) piece->user_data;
        std::lock_guard<std::mutex> lock(p.mutex);
        p.bad += first_difference((const uint8_t *) data, p.file.seed, piece->offset, piece->offset + size) != SIZE_MAX;
        p.of[piece->first].emplace_back(piece->offset, size);
        return true;
    };
    for (const bool is_cached : { true, false }) {
        if (!is_cached) {
            file.drop();
        }
        parts p = { file, {} };
        load l(prefer());
        l.add(file);
        const size_t group = 36*KIB + 2; // of the tests' own: no power of two
        const size_t piece = 100*group;
        for (size_t first = 3; first < file.size; first += piece) {
            l.pieces.push_back({ l.entries[0].image, first, std::min(first + piece, file.size), take, &p, first, group });
        }
        CHECK(l.fill());
        CHECK_EQ(p.bad, (size_t) 0);
        CHECK_EQ(p.of.size(), l.pieces.size());
        size_t n_parts = 0;
        for (const auto & whole : l.pieces) {
            size_t at = whole.first;
            for (const auto & [offset, size] : p.of[whole.first]) {
                CHECK_EQ(offset, at);
                CHECK(size % group == 0 || offset + size == whole.last);
                at += size;
                n_parts++;
            }
            CHECK_EQ(at, whole.last);
        }
        CHECK(is_cached ? n_parts > 5*l.pieces.size() : n_parts >= l.pieces.size());
    }
}

TEST(anywhere, a_piece_that_is_refused_ends_the_load) {
    const temp_file file(9*MIB, 5);
    placed p;
    p.seed    = file.seed;
    p.fail_at = 3;
    load l(prefer());
    l.add(file);
    for (size_t i = 0; i < 1000; i++) {
        l.pieces.push_back({ l.entries[0].image, 9*KIB*i, 9*KIB*i + 5, place, &p, i });
    }
    CHECK(!l.fill());
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_INVALID);
    CHECK(std::string(l.error.message).find("invalid data in '") == 0);
    CHECK(std::string(l.error.message).find(" at offset 27648") != std::string::npos);
    CHECK(p.times.size() < 1000);
    CHECK(std::all_of(p.times.begin(), p.times.end(), [](const auto & t) { return t.second == 1; }));
}

TEST(anywhere, pieces_of_a_file_that_became_shorter_are_an_error) {
    const temp_file file(9*MIB, 5);
    for (const size_t size : { 5*MIB + 17, 4*MIB, (size_t) 0 }) {
        placed p;
        p.seed = file.seed;
        load l(prefer());
        l.add(file);
        CHECK_EQ(ftruncate(file.fd, size), 0);
        l.pieces.push_back({ l.entries[0].image, 6*MIB + 1, 7*MIB, place, &p, 0 });
        l.pieces.push_back({ l.entries[0].image, 5*MIB, 5*MIB + 1000, place, &p, 1 });
        CHECK(!l.fill());
        CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_IO);
        CHECK(std::string(l.error.message).find("the file is shorter than the 9437184 bytes it had") != std::string::npos);
    }
}

TEST(anywhere, pieces_larger_than_all_staging_come_one_at_a_time) {
    const temp_file file(160*MIB, 0, true);
    std::atomic<int> n_now{0};
    std::atomic<int> n_most{0};
    struct counts { std::atomic<int> & now; std::atomic<int> & most; } c = { n_now, n_most };
    const auto count = [](const void *, size_t, const ggml_hugepages_piece * piece) {
        auto & c = *(counts *) piece->user_data;
        const int now = ++c.now;
        c.most = std::max(now, c.most.load());
        --c.now;
        return true;
    };
    load l(prefer());
    l.add(file);
    for (int i = 0; i < 3; i++) {
        l.pieces.push_back({ l.entries[0].image, 0, file.size, count, &c, 0 });
    }
    CHECK(l.fill());
    CHECK_EQ(n_most.load(), 1);
}

TEST(anywhere, a_load_that_is_told_to_stop_stops) {
    const temp_file file(64*MIB, 0, true);
    placed p;
    load l(prefer());
    l.add(file);
    for (size_t i = 0; i < 64; i++) {
        l.pieces.push_back({ l.entries[0].image, i*MIB, (i + 1)*MIB, place, &p, i });
    }
    CHECK(!l.fill([](uint64_t, uint64_t, void *) { return false; }));
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_ABORTED);
    CHECK_EQ(std::string(l.error.message), "loading was cancelled");
}

//
// THP
//

static bool has_thp() {
    bool enabled = false;
    return ggml_hugepages_thp_size("", &enabled) != 0 && enabled;
}

TEST(anywhere, thp_holds_the_file) {
    if (!has_thp()) {
        SKIP("THP is switched off");
    }
    const size_t size = ggml_hugepages_thp_size("", std::make_unique<bool>().get());
    const temp_file a(5*size + 12345, 3);
    const temp_file b(2*size, 4);
    load l(prefer(GGML_HUGEPAGES_SIZE_THP));
    l.add(a).want(0, 100, GGML_HUGEPAGES_RANK_EMBEDDINGS).want(2*size, a.size).add(b).want_all();
    REQUIRE(l.run());
    l.check_bytes();
    CHECK(!is_writable(l.entries[0].addr + 3*size));
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    // the report counts only the wanted bytes of the first block
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_THP) +
             bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_BASE), (uint64_t) (100 + a.size - 2*size + b.size));
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE), (uint64_t) 0);
}

TEST(anywhere, thp_that_cannot_be_had_leaves_the_file) {
    if (!has_thp()) {
        SKIP("THP is switched off");
    }
    const size_t size = ggml_hugepages_thp_size("", std::make_unique<bool>().get());
    const temp_file file(6*size + 12345, 3);
    {
        load l(one_thread(prefer(GGML_HUGEPAGES_SIZE_THP)));
        l.add(file).want_all();
        REQUIRE(l.plan() && l.map());
        {
            allowance some(3*size); // like a memory limit
            REQUIRE(l.overlay());
        }
        REQUIRE(l.fill());
        CHECK_EQ(l.pages(size), (uint64_t) 3);
        l.check_bytes();
        ggml_hugepages_report report;
        CHECK(ggml_hugepages_get_report(0, &report));
        CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_FILE), (uint64_t) (file.size - 3*size));
    }
    load l(require(GGML_HUGEPAGES_SIZE_THP));
    l.add(file).want_all();
    REQUIRE(l.plan() && l.map());
    allowance some(3*size);
    CHECK(!l.overlay());
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
}

TEST(anywhere, a_buffer_on_thp_is_zero_and_writable) {
    if (!has_thp()) {
        SKIP("THP is switched off");
    }
    const size_t size = 3*ggml_hugepages_thp_size("", std::make_unique<bool>().get()) + 5;
    scoped on(prefer(GGML_HUGEPAGES_SIZE_THP));
    void * ptr = ggml_hugepages_buffer_alloc(size);
    REQUIRE(ptr != nullptr);
    CHECK(is_zero(ptr, size));
    memset(ptr, 7, size);
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_THP) +
             bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_BASE), (uint64_t) size);
    ggml_hugepages_buffer_free(ptr, size);
}

//
// buffers on pages
//

TEST(pool, a_buffer_takes_the_pages_that_it_needs_and_gives_them_back) {
    NEEDS_POOL();
    for (const auto & params : { require(), prefer(), require(PAGE) }) {
        scoped on(params);
        for (const size_t size : { (size_t) 1, PAGE - 1, PAGE, PAGE + 1, 3*PAGE - 1, 3*PAGE, 11*MIB }) {
            const uint64_t pages = (size + PAGE - 1)/PAGE;
            auto * ptr = (uint8_t *) ggml_hugepages_buffer_alloc(size);
            REQUIRE(ptr != nullptr);
            CHECK_EQ((size_t) ptr % PAGE, (size_t) 0);
            CHECK_EQ(pool.taken(), pages);
            CHECK(is_zero(ptr, size));
            memset(ptr, 0xff, size);
            CHECK_EQ(smaps_of(ptr, "KernelPageSize"), "2048 kB");
            CHECK_EQ(smaps_of(ptr + size - 1, "KernelPageSize"), "2048 kB");
            const std::string flags = smaps_of(ptr, "VmFlags");
            CHECK(flags.find("dd") != std::string::npos); // not in core dumps
            CHECK(flags.find("dc") != std::string::npos); // not in children
            CHECK(smaps_of(ptr, "header").find("llama-kv") != std::string::npos);
            ggml_hugepages_buffer_free(ptr, size);
            CHECK_EQ(pool.promised(), (uint64_t) 0);
        }
    }
}

TEST(pool, a_buffer_that_is_given_back_is_zero_the_next_time) {
    NEEDS_POOL();
    scoped on(require());
    for (int i = 0; i < 3; i++) {
        const size_t size = pool.usable*PAGE;
        void * ptr = ggml_hugepages_buffer_alloc(size);
        REQUIRE(ptr != nullptr);
        CHECK(is_zero(ptr, size));
        memset(ptr, 0xaa, size);
        ggml_hugepages_buffer_free(ptr, size);
    }
}

TEST(pool, a_buffer_that_is_one_page_too_large_is_refused_and_takes_nothing) {
    NEEDS_POOL();
    scoped on(require());
    CHECK(ggml_hugepages_buffer_alloc((pool.usable + 1)*PAGE) == nullptr);
    CHECK_EQ(pool.promised(), (uint64_t) 0);
    const std::string log = take_log();
    CHECK(log.find("needs " + std::to_string(pool.usable + 1) + " huge pages of 2 MiB") != std::string::npos);
    CHECK(log.find("hint: sysctl vm.nr_hugepages=" + std::to_string(pool_now().total + 1)) != std::string::npos);
    // the next load fails too
    void * ptr = ggml_hugepages_buffer_alloc(pool.usable*PAGE);
    CHECK(ptr != nullptr);
    ggml_hugepages_buffer_free(ptr, pool.usable*PAGE);
}

TEST(pool, a_buffer_that_is_too_large_takes_what_there_is_under_prefer) {
    NEEDS_POOL();
    scoped on(prefer());
    const size_t size = (pool.usable + 4)*PAGE - 1000;
    void * ptr = ggml_hugepages_buffer_alloc(size);
    REQUIRE(ptr != nullptr);
    CHECK_EQ(pool.taken(), pool.usable);
    CHECK(is_zero(ptr, size));
    memset(ptr, 0xff, size);
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    const auto * huge = usage_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_HUGE);
    REQUIRE(huge != nullptr);
    CHECK_EQ(huge->page_size, PAGE);
    CHECK_EQ(huge->bytes, (uint64_t) pool.usable*PAGE);
    CHECK_EQ(huge->pages, pool.usable);
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_BASE) +
             bytes_of(report, GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_BACKING_THP), (uint64_t) (size - pool.usable*PAGE));

    // now no page is left
    void * other = ggml_hugepages_buffer_alloc(3*PAGE);
    REQUIRE(other != nullptr);
    memset(other, 1, 3*PAGE);
    ggml_hugepages_buffer_free(other, 3*PAGE);
    ggml_hugepages_buffer_free(ptr, size);
}

TEST(pool, a_buffer_whose_pages_are_refused_when_touched_is_an_error_or_ordinary_memory) {
    NEEDS_POOL();
    const size_t size = 9*PAGE + 5;
    for (const size_t bytes : { (size_t) 0, 1*PAGE, 6*PAGE }) {
        allowance some(bytes);
        {
            scoped on(require());
            CHECK(ggml_hugepages_buffer_alloc(size) == nullptr);
            CHECK_EQ(pool.promised(), (uint64_t) 0);
            CHECK(take_log().find("the kernel refused the page at offset") != std::string::npos);
        }
        g_allowance = bytes;
        scoped on(one_thread(prefer()));
        void * ptr = ggml_hugepages_buffer_alloc(size);
        REQUIRE(ptr != nullptr);
        CHECK_EQ(pool.taken(), (uint64_t) (bytes/PAGE));
        CHECK_EQ(pool.promised(), (uint64_t) (bytes/PAGE));
        CHECK(is_zero(ptr, size));
        memset(ptr, 0xff, size);
        ggml_hugepages_buffer_free(ptr, size);
        CHECK_EQ(pool.promised(), (uint64_t) 0);
    }
}

static void * lazy_buffer(const ggml_hugepages_params & params, size_t size) {
    scoped on(params, GGML_HUGEPAGES_KIND_REPACKED, /*late =*/ false, /*lazy =*/ true);
    return ggml_hugepages_buffer_alloc(size);
}

TEST(pool, a_lazy_buffer_takes_a_page_when_it_is_written_to) {
    NEEDS_POOL();
    const size_t size = 5*PAGE + PAGE/2;
    auto * ptr = (uint8_t *) lazy_buffer(require(), size);
    REQUIRE(ptr != nullptr);
    CHECK_EQ(pool.taken(), (uint64_t) 0);
    CHECK_EQ(pool.promised(), (uint64_t) 6);
    // a part that starts and ends inside pages
    CHECK(ggml_hugepages_buffer_populate(ptr + PAGE + 1, PAGE));
    CHECK_EQ(pool.taken(), (uint64_t) 2);
    memset(ptr + PAGE + 1, 7, PAGE);
    ggml_hugepages_error error = {};
    CHECK(ggml_hugepages_buffer_settle(ptr, &error));
    CHECK_EQ(pool.taken(), (uint64_t) 6);
    CHECK_EQ(ptr[PAGE + 1], 7);
    CHECK_EQ(ptr[PAGE], 0);
    ggml_hugepages_buffer_free(ptr, size);
    CHECK_EQ(pool.promised(), (uint64_t) 0);
    // has no effect on other memory
    uint8_t byte = 0;
    CHECK(ggml_hugepages_buffer_populate(&byte, 1));
    CHECK(ggml_hugepages_buffer_settle(&byte, &error));
}

TEST(pool, threads_that_write_to_a_lazy_buffer_at_once_find_their_bytes) {
    NEEDS_POOL();
    const size_t part = PAGE/3 + 17;
    const size_t n    = 24;
    for (const size_t bytes : { 100*PAGE, 5*PAGE }) {
        for (const auto & params : { require(), prefer() }) {
            allowance some(bytes);
            auto * ptr = (uint8_t *) lazy_buffer(params, n*part);
            REQUIRE(ptr != nullptr);
            std::atomic<bool> refused{false};
            std::vector<std::thread> threads;
            for (size_t t = 0; t < 4; t++) {
                threads.emplace_back([&, t] {
                    for (size_t i = t; i < n && !refused; i += 4) {
                        if (!ggml_hugepages_buffer_populate(ptr + i*part, part)) {
                            refused = true;
                            break;
                        }
                        memset(ptr + i*part, (int) i + 1, part);
                    }
                });
            }
            for (auto & thread : threads) {
                thread.join();
            }
            const bool is_short = bytes < n*part && params.policy == GGML_HUGEPAGES_POLICY_REQUIRE;
            CHECK_EQ((bool) refused, is_short);
            ggml_hugepages_error error = {};
            CHECK_EQ(ggml_hugepages_buffer_settle(ptr, &error), !is_short);
            if (is_short) {
                CHECK_EQ(error.status, GGML_HUGEPAGES_STATUS_SHORT);
                CHECK(std::string(error.message).find("the kernel refused the page at offset ") != std::string::npos);
                CHECK_EQ(pool.promised(), (uint64_t) 0);
            } else {
                for (size_t i = 0; i < n; i++) {
                    CHECK(std::all_of(ptr + i*part, ptr + (i + 1)*part, [&](uint8_t b) { return b == i + 1; }));
                }
                CHECK(bytes < n*part ? pool.taken() == 5 : pool.taken() == (n*part + PAGE - 1)/PAGE);
            }
            ggml_hugepages_buffer_free(ptr, n*part);
            CHECK_EQ(pool.promised(), (uint64_t) 0);
        }
    }
}

TEST(pool, the_default_scope_is_for_threads_that_are_in_none) {
    NEEDS_POOL();
    const ggml_hugepages_scope on = { require(), GGML_HUGEPAGES_KIND_OTHER, false };
    ggml_hugepages_scope_set_default(&on);
    std::thread([&] {
        void * ptr = ggml_hugepages_buffer_alloc(2*PAGE);
        CHECK(ptr != nullptr);
        CHECK_EQ(pool.taken(), (uint64_t) 2);
        ggml_hugepages_report report;
        CHECK(ggml_hugepages_get_report(0, &report));
        CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_OTHER, GGML_HUGEPAGES_BACKING_HUGE), (uint64_t) 2*PAGE);
        // the scope of the thread overrides the default
        auto params = require();
        params.enabled = false;
        scoped off(params);
        void * ordinary = ggml_hugepages_buffer_alloc(2*PAGE);
        CHECK_EQ(pool.taken(), (uint64_t) 2);
        ggml_hugepages_buffer_free(ordinary, 2*PAGE);
        ggml_hugepages_buffer_free(ptr, 2*PAGE);
    }).join();
    const ggml_hugepages_scope none = {};
    ggml_hugepages_scope_set_default(&none);
    void * ptr = ggml_hugepages_buffer_alloc(2*PAGE);
    CHECK_EQ(pool.taken(), (uint64_t) 0);
    ggml_hugepages_buffer_free(ptr, 2*PAGE);
}

TEST(pool, later_growth_never_fails_and_is_counted) {
    NEEDS_POOL();
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    const uint64_t before = report.late;
    // a late buffer may use ordinary memory although the scope requires huge pages
    scoped on(require(), GGML_HUGEPAGES_KIND_COMPUTE, true);
    void * fits = ggml_hugepages_buffer_alloc(3*PAGE);
    CHECK(fits != nullptr);
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.late, before);

    const size_t size = pool.usable*PAGE + 123;
    void * ptr = ggml_hugepages_buffer_alloc(size);
    REQUIRE(ptr != nullptr);
    CHECK(is_zero(ptr, size));
    CHECK_EQ(pool.taken(), pool.usable);
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.late - before, (uint64_t) (3*PAGE + 123));
    void * small = ggml_hugepages_buffer_alloc(PAGE - 1);
    REQUIRE(small != nullptr);
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.late - before, (uint64_t) (3*PAGE + 123 + PAGE - 1));
    ggml_hugepages_buffer_free(small, PAGE - 1);
    ggml_hugepages_buffer_free(ptr, size);
    ggml_hugepages_buffer_free(fits, 3*PAGE);
}

TEST(pool, threads_that_allocate_at_once_get_what_is_theirs) {
    NEEDS_POOL();
    const auto work = [](uint64_t seed, uint64_t most) {
        random_numbers random{ seed };
        for (int i = 0; i < 40; i++) {
            scoped on(i % 2 ? require() : prefer(), i % 3 ? GGML_HUGEPAGES_KIND_KV : GGML_HUGEPAGES_KIND_COMPUTE);
            const size_t size = 1 + random.below(most*PAGE);
            auto * ptr = (uint8_t *) ggml_hugepages_buffer_alloc(size);
            CHECK(ptr != nullptr);
            if (ptr) {
                CHECK(size < PAGE || is_zero(ptr, size));
                memset(ptr, (int) seed, size);
                ggml_hugepages_report report;
                CHECK(ggml_hugepages_get_report(0, &report));
                CHECK(std::all_of(ptr, ptr + size, [&](uint8_t b) { return b == (uint8_t) seed; }));
                ggml_hugepages_buffer_free(ptr, size);
            }
        }
    };
    // together they never need more pages than are usable
    std::thread a(work, 1, pool.usable/2);
    std::thread b(work, 2, pool.usable/2);
    a.join();
    b.join();
}

//
// images
//

TEST(pool, a_file_on_pages_is_the_file) {
    NEEDS_POOL();
    // a small file, one byte more than a page, and many chunks with an odd end
    for (const size_t size : { (size_t) 1, (size_t) 5000, PAGE, PAGE + 1, 23*MIB + 12345 }) {
        const temp_file file(size, size);
        for (const bool is_cached : { true, false }) {
            if (!is_cached) {
                file.drop();
            }
            load l(require());
            l.add(file).want_all();
            REQUIRE(l.plan());
            CHECK_EQ(pool.promised(), (uint64_t) 0); // a plan takes no page
            REQUIRE(l.map());
            CHECK_EQ(pool.promised(), (uint64_t) 0);
            const uint64_t pages = (size + PAGE - 1)/PAGE;
            CHECK_EQ((size_t) l.entries[0].addr % PAGE, (size_t) 0);
            CHECK_EQ(ggml_hugepages_image_length(l.entries[0].image), (size_t) pages*PAGE);
            CHECK_EQ(ggml_hugepages_image_granularity(l.entries[0].image), PAGE);
            REQUIRE(l.overlay());
            CHECK_EQ(pool.promised(), pages);
            CHECK_EQ(pool.taken(), (uint64_t) 0);
            REQUIRE(l.fill());
            CHECK_EQ(pool.taken(), pages);
            l.check_bytes();
            CHECK(is_zero(l.entries[0].addr + size, pages*PAGE - size));

            const auto * addr = l.entries[0].addr;
            CHECK(!is_writable(addr));
            CHECK(!is_writable(addr + size - 1));
            CHECK_EQ(smaps_of(addr, "KernelPageSize"), "2048 kB");
            CHECK(smaps_of(addr, "header").find(" r--s ") != std::string::npos);
            CHECK(smaps_of(addr, "VmFlags").find("dd") != std::string::npos);
            CHECK(smaps_of(addr, "VmFlags").find("dc") != std::string::npos);

            ggml_hugepages_report report;
            CHECK(ggml_hugepages_get_report(0, &report));
            CHECK_EQ(report.load.bytes_direct + report.load.bytes_cached + report.load.bytes_buffered, (uint64_t) size);
        }
        CHECK_EQ(pool.promised(), (uint64_t) 0);
    }
}

TEST(pool, what_is_not_wanted_stays_the_file_mapping) {
    NEEDS_POOL();
    const temp_file file(20*MIB + 99, 11);
    load l(require());
    l.add(file).want(3*MIB, 5*MIB + 1).want(10*MIB + 1, 10*MIB + 2, GGML_HUGEPAGES_RANK_OUTPUT).want(20*MIB + 90, 20*MIB + 99, GGML_HUGEPAGES_RANK_EMBEDDINGS);
    REQUIRE(l.run());
    CHECK_EQ(pool.taken(), (uint64_t) 4);
    l.check_bytes();
    const auto * addr = l.entries[0].addr;
    CHECK_EQ(smaps_of(addr, "KernelPageSize"), base_page());
    CHECK_EQ(smaps_of(addr + 2*MIB, "KernelPageSize"), "2048 kB");
    CHECK_EQ(smaps_of(addr + 6*MIB, "KernelPageSize"), base_page());
    CHECK_EQ(smaps_of(addr + 10*MIB, "KernelPageSize"), "2048 kB");
    CHECK_EQ(smaps_of(addr + 20*MIB, "KernelPageSize"), "2048 kB");
    CHECK(smaps_of(addr, "header").find(file.path.substr(file.path.rfind('/'))) != std::string::npos);

    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    const auto * huge = usage_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE);
    REQUIRE(huge != nullptr);
    CHECK_EQ(huge->bytes, (uint64_t) (2*MIB + 1 + 1 + 9));
    CHECK_EQ(huge->pages, (uint64_t) 4);
    CHECK_EQ(huge->page_size, PAGE);
    CHECK_EQ(report.n_usages, 1u);
    if (report.n_nodes > 0) {
        uint64_t sum = 0;
        for (const uint64_t bytes : huge->node_bytes) {
            sum += bytes;
        }
        CHECK_EQ(sum, (uint64_t) 4*PAGE);
    }
    size_t first = 0, last = 0;
    CHECK(ggml_hugepages_image_read(l.entries[0].image, 0, &first, &last));
    CHECK_EQ(std::make_pair(first, last), std::make_pair(2*MIB, 6*MIB));
    CHECK(ggml_hugepages_image_read(l.entries[0].image, 2, &first, &last));
    CHECK_EQ(std::make_pair(first, last), std::make_pair(20*MIB, 22*MIB));
    CHECK(!ggml_hugepages_image_read(l.entries[0].image, 3, &first, &last));
}

TEST(pool, weights_that_are_placed_by_rows_are_local_to_the_threads_that_read_them) {
    NEEDS_POOL();
    const auto nodes = ggml_hugepages_thread_nodes("");
    if (nodes.empty()) {
        SKIP("this kernel has no nodes");
    }
    const temp_file file(16*MIB, 23);
    auto params = require();
    params.placement         = GGML_HUGEPAGES_PLACEMENT_ROWS;
    params.n_compute_threads = 2;
    load l(params);
    l.add(file).want(0, 16*MIB);
    const ggml_hugepages_matrices matrices = { 1*MIB, 4*KIB, 1024, 3 }; // 12 MiB
    ggml_hugepages_image_share(l.entries[0].image, &matrices);
    REQUIRE(l.run());
    l.check_bytes();

    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    const auto * huge = usage_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE);
    REQUIRE(huge != nullptr);
    CHECK_EQ(report.n_usages, 1u);
    CHECK_EQ(huge->local_bytes + huge->remote_bytes, (uint64_t) 12*MIB);
    CHECK(nodes.size() > 1 || huge->remote_bytes == 0);
    // threads run where their rows are
    CHECK_EQ(ggml_hugepages_node_of_thread(0, 2, 99), nodes.front());
    // the policy of this thread is the one before
    int mode = -1;
    CHECK_EQ(syscall(SYS_get_mempolicy, &mode, nullptr, 0, 0, 0), 0l);
    CHECK_EQ(mode, 0);
}

TEST(pool, pieces_and_blocks_are_read_together) {
    NEEDS_POOL();
    const temp_file a(13*MIB + 7, 21);
    const temp_file b(9*MIB + 1, 22);
    placed pa, pb;
    pa.seed = a.seed;
    pb.seed = b.seed;
    load l(require());
    l.add(a).want(0, 6*MIB).add(b).want(b.size - 5, b.size);
    for (size_t i = 0; i < 50; i++) {
        l.pieces.push_back({ l.entries[0].image, 6*MIB + i*100*KIB + i, 6*MIB + (i + 1)*100*KIB, place, &pa, i });
        l.pieces.push_back({ l.entries[1].image, i*70*KIB + 13*i, i*70*KIB + 13*i + 70*KIB + 13, place, &pb, i });
    }
    REQUIRE(l.run());
    l.check_bytes();
    for (const auto * p : { &pa, &pb }) {
        CHECK_EQ(p->bad, (size_t) 0);
        CHECK_EQ(p->times.size(), (size_t) 50);
    }
    CHECK_EQ(pool.taken(), (uint64_t) 4);
}

TEST(pool, an_aborted_load_gives_everything_back) {
    NEEDS_POOL();
    const temp_file file(24*MIB, 31);
    load l(require());
    l.add(file).want_all();
    REQUIRE(l.plan() && l.map() && l.overlay());
    CHECK_EQ(pool.promised(), (uint64_t) 12);
    std::atomic<int> calls{0};
    CHECK(!l.fill([](uint64_t, uint64_t, void * user_data) { return ++*(std::atomic<int> *) user_data > 1; }, &calls) || calls == 0);
    if (l.error.status != GGML_HUGEPAGES_STATUS_OK) {
        CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_ABORTED);
    }
    // pool_watch checks the pool after the end of the load
}

TEST(pool, a_file_that_is_cut_after_the_overlay_is_an_error_and_no_signal) {
    NEEDS_POOL();
    for (const size_t size : { 9*MIB + 5, (size_t) 0 }) {
        for (const bool is_cached : { true, false }) {
            const temp_file file(20*MIB, 41);
            if (!is_cached) {
                file.drop();
            }
            load l(is_cached ? require() : prefer());
            l.add(file).want(8*MIB, 20*MIB);
            REQUIRE(l.plan() && l.map() && l.overlay());
            CHECK_EQ(ftruncate(file.fd, size), 0);
            CHECK(!l.fill());
            CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_IO);
            CHECK(std::string(l.error.message).find("the file is shorter than the 20971520 bytes it had") != std::string::npos);
        }
    }
}

TEST(pool, one_page_short_fails_before_anything_is_taken) {
    NEEDS_POOL();
    const temp_file file((pool.usable + 1)*PAGE, 0, true);
    load l(require());
    l.add(file).want_all();
    CHECK(!l.plan());
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK(std::string(l.error.message).find("the model needs " + std::to_string(pool.usable + 1) + " huge pages of 2 MiB") == 0);
    CHECK(std::string(l.error.hint).find("sysctl vm.nr_hugepages=" + std::to_string(pool_now().total + 1) + ", or ") == 0);
    CHECK_EQ(pool.promised(), (uint64_t) 0);
}

TEST(pool, half_the_pages_hold_what_is_read_most) {
    NEEDS_POOL();
    const size_t half = pool.usable*PAGE;
    const temp_file file(2*half + 4321, 51);
    load l(prefer());
    l.add(file).want(0, half, GGML_HUGEPAGES_RANK_EMBEDDINGS).want(half, file.size - PAGE, GGML_HUGEPAGES_RANK_LAYERS);
    REQUIRE(l.run());
    CHECK_EQ(pool.taken(), pool.usable);
    l.check_bytes();
    const auto * addr = l.entries[0].addr;
    CHECK_EQ(smaps_of(addr + half, "KernelPageSize"), "2048 kB");
    CHECK_EQ(smaps_of(addr, "KernelPageSize"), base_page());
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    // the last block of the layers got no page
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE) + bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_FILE),
        (uint64_t) (file.size - PAGE));
    CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE), (uint64_t) (half - PAGE + 4321));
}

TEST(pool, pages_lost_between_plan_and_overlay_are_an_error_that_holds_nothing) {
    NEEDS_POOL();
    const temp_file a(10*MIB, 61);
    const temp_file b((pool.usable - 5)*PAGE, 62);
    load l(require());
    l.add(a).want_all().add(b).want_all();
    REQUIRE(l.plan() && l.map());
    const other_process other(1);
    CHECK(!l.overlay());
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    // the sum of the need, and the usable pages without those that the load held
    CHECK_SAYS(l.error.message, "needs " + std::to_string(pool.usable) + " huge pages of 2 MiB (" + std::to_string(2*pool.usable) + ".00 MiB)",
        "only " + std::to_string(pool.usable - 1) + " are usable");
    CHECK(std::string(l.error.hint).find("sysctl vm.nr_hugepages=" + std::to_string(pool_now().total + 1)) == 0);
    CHECK_EQ(pool.promised(), (uint64_t) 1); // taken by the other process
}

TEST(pool, pages_lost_between_plan_and_overlay_are_done_without_under_prefer) {
    NEEDS_POOL();
    const temp_file a(10*MIB, 61);
    const temp_file b((pool.usable - 5)*PAGE, 62);
    load l(prefer());
    l.add(a).want(0, a.size, GGML_HUGEPAGES_RANK_EMBEDDINGS).add(b).want_all();
    REQUIRE(l.plan() && l.map());
    {
        const other_process other(7);
        REQUIRE(l.overlay());
        REQUIRE(l.fill());
        CHECK_EQ(l.pages(), pool.usable - 7);
        CHECK(l.entries[0].image->runs.empty()); // has the lowest rank
        l.check_bytes();
    }
}

TEST(pool, pages_refused_when_touched_end_a_load_that_requires_them) {
    NEEDS_POOL();
    const temp_file a(12*MIB, 71);
    const temp_file b(14*MIB + 5, 72);
    for (const size_t bytes : { (size_t) 0, 4*MIB, 22*MIB }) {
        load l(require());
        l.add(a).want_all().add(b).want_all();
        REQUIRE(l.plan() && l.map() && l.overlay());
        allowance some(bytes);
        CHECK(!l.fill());
        CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
        const std::string message = l.error.message;
        CHECK(message.find("the model needs 14 huge pages of 2 MiB, ") == 0);
        CHECK(message.find(" the kernel refused the page at offset ") != std::string::npos);
        CHECK(message.find("refused at the page fault") != std::string::npos);
        CHECK(std::string(l.error.hint).find("cgroup") != std::string::npos);
        CHECK_EQ(pool.promised(), (uint64_t) 0); // although the images are still mapped
    }
}

TEST(pool, pages_refused_when_touched_become_the_file_under_prefer) {
    NEEDS_POOL();
    const temp_file a(11*MIB + 1, 71);
    const temp_file b(14*MIB + 5, 72);
    for (const size_t bytes : { (size_t) 0, 2*MIB, 4*MIB, 22*MIB }) {
        for (const auto & params : { prefer(), one_thread(prefer()) }) {
            load l(params);
            l.add(a).want(1, 10*MIB).add(b).want_all();
            REQUIRE(l.plan() && l.map() && l.overlay());
            allowance some(bytes);
            REQUIRE(l.fill());
            l.check_bytes();
            CHECK_EQ(l.pages(), (uint64_t) (bytes/PAGE));
            CHECK_EQ(pool.taken(), (uint64_t) (bytes/PAGE));
            if (params.n_threads == 1) {
                CHECK_EQ(pool.promised(), (uint64_t) (bytes/PAGE)); // the refused pages are usable for others
            }
            ggml_hugepages_report report;
            CHECK(ggml_hugepages_get_report(0, &report));
            CHECK_EQ(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE) +
                     bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_FILE), (uint64_t) (10*MIB - 1 + b.size));
            for (const auto & e : l.entries) {
                CHECK(!is_writable(e.addr + 5*MIB));
            }
        }
    }
}

TEST(pool, a_part_of_an_image_can_be_unmapped_at_page_borders) {
    NEEDS_POOL();
    const temp_file file(16*MIB + 5, 81);
    load l(require());
    l.add(file).want(6*MIB, file.size);
    REQUIRE(l.run());
    auto & e = l.entries[0];
    const size_t granularity = ggml_hugepages_image_granularity(e.image);
    CHECK_EQ(granularity, PAGE);
    CHECK_EQ(munmap(e.addr, 8*MIB), 0);
    CHECK_EQ(first_difference(e.addr + 8*MIB, file.seed, 8*MIB, file.size), (size_t) SIZE_MAX);
}

TEST(pool, two_loads_at_once_do_not_see_each_other) {
    NEEDS_POOL();
    const uint64_t half = pool.usable/2;
    std::vector<std::thread> threads;
    for (uint64_t seed : { 91, 92 }) {
        threads.emplace_back([seed, half] {
            const temp_file file(half*PAGE - 321, seed);
            for (int i = 0; i < 5; i++) {
                load l(i % 2 ? prefer() : require());
                l.add(file).want_all();
                if (!CHECK(l.run())) {
                    test_fail(__FILE__, __LINE__, l.error.message);
                    return;
                }
                l.check_bytes();
            }
        });
    }
    // another thread asks for reports all the time
    std::atomic<bool> stop{false};
    std::thread asking([&] {
        while (!stop) {
            ggml_hugepages_report report;
            CHECK(ggml_hugepages_get_report(0, &report));
            CHECK(bytes_of(report, GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE) <= 2*half*PAGE);
        }
    });
    for (auto & thread : threads) {
        thread.join();
    }
    stop = true;
    asking.join();
}

TEST(pool, a_report_says_what_was_asked_for) {
    NEEDS_POOL();
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.n_usages, 0u);

    const temp_file file(6*MIB, 95);
    load l(require());
    l.add(file).want(0, 5*MIB + 1);
    REQUIRE(l.run());
    void * kv = nullptr;
    void * compute = nullptr;
    {
        scoped on(require(), GGML_HUGEPAGES_KIND_KV);
        kv = ggml_hugepages_buffer_alloc(3*MIB);
    }
    {
        scoped on(require(), GGML_HUGEPAGES_KIND_COMPUTE);
        compute = ggml_hugepages_buffer_alloc(100*KIB);
        memset(compute, 1, 100*KIB);
    }
    CHECK(ggml_hugepages_get_report(0, &report));
    CHECK_EQ(report.n_usages, 3u);
    const struct { ggml_hugepages_kind kind; ggml_hugepages_backing backing; size_t page_size; uint64_t bytes; uint64_t pages; } expected[] = {
        { GGML_HUGEPAGES_KIND_WEIGHTS, GGML_HUGEPAGES_BACKING_HUGE, PAGE, 5*MIB + 1, 3 },
        { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_BACKING_HUGE, PAGE, 3*MIB,     2 },
        { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_BACKING_HUGE, PAGE, 100*KIB,   1 },
    };
    for (uint32_t i = 0; i < std::min(3u, report.n_usages); i++) {
        CHECK_EQ(report.usages[i].kind, expected[i].kind);
        CHECK_EQ(report.usages[i].backing, expected[i].backing);
        CHECK_EQ(report.usages[i].page_size, expected[i].page_size);
        CHECK_EQ(report.usages[i].bytes, expected[i].bytes);
        CHECK_EQ(report.usages[i].pages, expected[i].pages);
    }
    CHECK_EQ(report.load.bytes_direct + report.load.bytes_cached + report.load.bytes_buffered, (uint64_t) 6*MIB);
    CHECK(report.load.us_total > 0);
    CHECK_EQ(report.load.n_threads, 1u); // the file has only one chunk
    ggml_hugepages_buffer_free(kv, 3*MIB);
    ggml_hugepages_buffer_free(compute, 100*KIB);
}

TEST(pool, a_child_process_has_none_of_the_pages) {
    NEEDS_POOL();
    scoped on(require());
    auto * ptr = (uint8_t *) ggml_hugepages_buffer_alloc(2*PAGE);
    REQUIRE(ptr != nullptr);
    const pid_t child = fork();
    if (child == 0) {
        unsigned char resident[1];
        _exit(mincore(ptr, 4096, resident) == -1 && errno == ENOMEM ? 0 : 1);
    }
    REQUIRE(child > 0);
    int status = -1;
    CHECK_EQ(waitpid(child, &status, 0), child);
    CHECK_EQ(status, 0);
    ggml_hugepages_buffer_free(ptr, 2*PAGE);
}

//
// 1 GiB
//

#define NEEDS_LARGE()                                                        \
    NEEDS_POOL();                                                            \
    if (usable_now(GIB) != 1) {                                              \
        SKIP("needs one usable page of 1 GiB, there are " + std::to_string(usable_now(GIB))); \
    }                                                                        \
    pool_watch large(GIB)

TEST(large, a_file_lies_on_a_page_larger_than_itself) {
    NEEDS_LARGE();
    // chunks of one page, some of them behind the end of the file
    const temp_file file(37*MIB + 12345, 101);
    load l(require(GIB));
    l.add(file).want(5, 6).want(file.size - 1, file.size);
    REQUIRE(l.run());
    CHECK_EQ(large.taken(), (uint64_t) 1);
    CHECK_EQ(pool.taken(), (uint64_t) 0);
    l.check_bytes();
    CHECK(is_zero(l.entries[0].addr + file.size, MIB));
    CHECK_EQ((size_t) l.entries[0].addr % GIB, (size_t) 0);
    CHECK_EQ(smaps_of(l.entries[0].addr, "KernelPageSize"), "1048576 kB");
    CHECK(!is_writable(l.entries[0].addr));
}

TEST(large, a_large_page_that_is_refused_when_touched_becomes_the_file_or_an_error) {
    NEEDS_LARGE();
    const temp_file file(37*MIB + 12345, 102);
    {
        load l(prefer(GIB));
        l.add(file).want_all();
        REQUIRE(l.plan() && l.map() && l.overlay());
        allowance none(0);
        REQUIRE(l.fill());
        l.check_bytes();
        CHECK_EQ(l.pages(GIB), (uint64_t) 0);
        CHECK_EQ(large.promised(), (uint64_t) 0);
    }
    load l(require(GIB));
    l.add(file).want_all();
    REQUIRE(l.plan() && l.map() && l.overlay());
    allowance none(0);
    CHECK(!l.fill());
    CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
    CHECK_EQ(large.promised(), (uint64_t) 0);
}

TEST(large, a_buffer_may_have_both_sizes) {
    NEEDS_LARGE();
    scoped on(require());
    const size_t size = GIB + 5*MIB;
    auto * ptr = (uint8_t *) ggml_hugepages_buffer_alloc(size);
    REQUIRE(ptr != nullptr);
    CHECK_EQ(large.taken(), (uint64_t) 1);
    CHECK_EQ(pool.taken(), (uint64_t) 3);
    CHECK_EQ(smaps_of(ptr + GIB - 1, "KernelPageSize"), "1048576 kB");
    CHECK_EQ(smaps_of(ptr + GIB, "KernelPageSize"), "2048 kB");
    ptr[0] = ptr[size - 1] = 1;
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    REQUIRE_EQ(report.n_usages, 2u);
    CHECK_EQ(report.usages[0].page_size, GIB);
    CHECK_EQ(report.usages[0].bytes, (uint64_t) GIB);
    CHECK_EQ(report.usages[1].page_size, PAGE);
    CHECK_EQ(report.usages[1].bytes, (uint64_t) 5*MIB);
    CHECK_EQ(report.usages[1].pages, (uint64_t) 3);
    ggml_hugepages_buffer_free(ptr, size);
}

static void * buffer_of(const ggml_hugepages_params & params, ggml_hugepages_kind kind, size_t size, bool late = false) {
    scoped on(params, kind, late);
    return ggml_hugepages_buffer_alloc(size);
}

TEST(large, buffers_smaller_than_a_page_share_it) {
    NEEDS_LARGE();
    const auto params = require(GIB);
    auto * kv      = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_KV,      512*MIB - 5);
    auto * compute = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_COMPUTE, 98*MIB);
    REQUIRE(kv != nullptr && compute != nullptr);
    CHECK_EQ(large.taken(), (uint64_t) 1);
    CHECK_EQ(pool.promised(), (uint64_t) 0);
    CHECK(compute >= kv + 512*MIB - 5 || kv >= compute + 98*MIB);
    CHECK_EQ(smaps_of(compute, "KernelPageSize"), "1048576 kB");
    memset(kv, 1, 512*MIB - 5);
    memset(compute, 2, 98*MIB);
    ggml_hugepages_report report;
    CHECK(ggml_hugepages_get_report(0, &report));
    REQUIRE_EQ(report.n_usages, 2u);
    CHECK_EQ(report.usages[0].bytes, (uint64_t) (512*MIB - 5));
    CHECK_EQ(report.usages[1].bytes, (uint64_t) (98*MIB));
    CHECK_EQ(report.usages[0].pages + report.usages[1].pages, (uint64_t) 1);
    if (report.n_nodes > 0) {
        CHECK_EQ(report.usages[0].node_bytes[0] + report.usages[1].node_bytes[0], (uint64_t) GIB);
    }
    // mlock skips their pages
    const auto ranges_of = [](const void * addr, size_t size) { return ggml_hugepages_pool_ranges(addr, size); };
    CHECK_EQ(ranges_of(compute, 98*MIB), (ggml_hugepages_ranges { { 0, 98*MIB } }));

    // the rest of the page is too small, and no other page is usable
    CHECK(buffer_of(params, GGML_HUGEPAGES_KIND_OTHER, 500*MIB) == nullptr);
    CHECK(take_log().find("needs 1 huge pages of 1 GiB") != std::string::npos);

    // a page of a buffer that is gone is for the next one
    ggml_hugepages_buffer_free(kv, 512*MIB - 5);
    CHECK_EQ(large.taken(), (uint64_t) 1);
    auto * other = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_OTHER, 500*MIB);
    REQUIRE(other != nullptr);
    memset(other, 3, 500*MIB);
    CHECK_EQ(large.taken(), (uint64_t) 1);
    CHECK_EQ(std::count(compute, compute + 98*MIB, 2), (ptrdiff_t) (98*MIB));
    ggml_hugepages_buffer_free(other, 500*MIB);
    ggml_hugepages_buffer_free(compute, 98*MIB);
    CHECK_EQ(large.promised(), (uint64_t) 0);
}

TEST(large, buffers_after_a_load_share_the_page_that_the_plan_counted) {
    NEEDS_LARGE();
    const temp_file file(8*MIB, 103);
    for (const bool is_used : { true, false }) {
        // more small pages than are usable, so a large one replaces them
        const size_t kv_size = (pool.usable + 8)*PAGE;
        auto params = require();
        params.model_id = 7;
        load l(params);
        l.add(file).want_all();
        l.demands = {
            { GGML_HUGEPAGES_KIND_KV,      GGML_HUGEPAGES_RANK_KV,      kv_size, nullptr },
            { GGML_HUGEPAGES_KIND_COMPUTE, GGML_HUGEPAGES_RANK_COMPUTE, 20*MIB,  nullptr },
        };
        REQUIRE(l.run());
        CHECK_EQ(large.taken(), (uint64_t) 1);
        CHECK_EQ(pool.taken(), (uint64_t) 4);
        if (is_used) {
            auto * compute = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_COMPUTE, 10*MIB);
            auto * kv      = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_KV, kv_size);
            REQUIRE(kv != nullptr && compute != nullptr);
            memset(kv, 1, kv_size);
            // a compute buffer grows while the model starts
            ggml_hugepages_buffer_free(compute, 10*MIB);
            compute = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_COMPUTE, 20*MIB);
            REQUIRE(compute != nullptr);
            memset(compute, 2, 20*MIB);
            ggml_hugepages_hold_end(7);
            // later growth uses the rest of the page
            void * late = buffer_of(params, GGML_HUGEPAGES_KIND_COMPUTE, 100*MIB, /*late =*/ true);
            REQUIRE(late != nullptr);
            CHECK_EQ(smaps_of(late, "KernelPageSize"), "1048576 kB");
            memset(late, 3, 100*MIB);
            CHECK_EQ(large.taken(), (uint64_t) 1);
            CHECK_EQ(pool.taken(), (uint64_t) 4);
            CHECK_EQ(std::count(kv, kv + kv_size, 1), (ptrdiff_t) kv_size);
            CHECK_EQ(std::count(compute, compute + 20*MIB, 2), (ptrdiff_t) (20*MIB));
            ggml_hugepages_buffer_free(late, 100*MIB);
            ggml_hugepages_buffer_free(kv, kv_size);
            ggml_hugepages_buffer_free(compute, 20*MIB);
        } else {
            ggml_hugepages_hold_end(7);
        }
        CHECK_EQ(large.promised(), (uint64_t) 0);
    }
}

TEST(large, a_page_for_buffers_that_is_refused_when_touched_ends_the_load_or_becomes_ordinary_memory) {
    NEEDS_LARGE();
    const temp_file file(8*MIB, 104);
    const size_t kv_size = (pool.usable + 8)*PAGE;
    for (auto params : { require(), prefer() }) {
        params.model_id = 8;
        load l(params);
        l.add(file).want_all();
        l.demands = { { GGML_HUGEPAGES_KIND_KV, GGML_HUGEPAGES_RANK_KV, kv_size, nullptr } };
        REQUIRE(l.plan() && l.map());
        bool ok = false;
        {
            allowance none(0);
            ok = l.overlay();
        }
        CHECK_EQ(ok, params.policy == GGML_HUGEPAGES_POLICY_PREFER);
        if (!ok) {
            CHECK_EQ(l.error.status, GGML_HUGEPAGES_STATUS_SHORT);
            CHECK_SAYS(l.error.message, "the model needs 1 huge pages of 1 GiB", "refused at the page fault");
            CHECK_EQ(pool.promised(), (uint64_t) 0);
        } else {
            REQUIRE(l.fill());
            auto * kv = (uint8_t *) buffer_of(params, GGML_HUGEPAGES_KIND_KV, kv_size);
            REQUIRE(kv != nullptr);
            memset(kv, 1, kv_size);
            CHECK_EQ(smaps_of(kv, "KernelPageSize"), base_page());
            ggml_hugepages_hold_end(8);
            ggml_hugepages_buffer_free(kv, kv_size);
        }
        CHECK_EQ(large.promised(), (uint64_t) 0);
    }
}

TEST(large, a_file_may_have_both_sizes) {
    NEEDS_LARGE();
#ifdef __SANITIZE_THREAD__
    SKIP("its shadow would take 4 GiB");
#endif
    // zeros, with some other bytes at both ends of the gigabyte
    const temp_file file(GIB + 6*MIB + 5, 0, true);
    for (const size_t at : { (size_t) 0, GIB - 5, GIB, GIB + 6*MIB }) {
        CHECK_EQ(pwrite(file.fd, "12345", 5, at), (ssize_t) 5);
    }
    load l(require());
    l.add(file).want_all();
    REQUIRE(l.run());
    CHECK_EQ(large.taken(), (uint64_t) 1);
    CHECK_EQ(pool.taken(), (uint64_t) 4);
    const auto * addr = l.entries[0].addr;
    for (const size_t at : { (size_t) 0, GIB - 5, GIB, GIB + 6*MIB }) {
        CHECK_EQ(std::string((const char *) addr + at, 5), "12345");
    }
    CHECK(is_zero(addr + 5, GIB - 10));
    CHECK(is_zero(addr + GIB + 5, 6*MIB - 5));
    CHECK_EQ(ggml_hugepages_image_granularity(l.entries[0].image), GIB);
}
