// test-engine GROUP...: runs the tests of these groups, or all tests without an argument.
//
// stdout has a line for each test: "ok NAME", "failed NAME" or "skipped NAME: REASON". The exit code is 1 if a check failed.

#include "test.h"

#include "ggml-hugepages/plan.h"

#include "ggml-impl.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <utility>

#include <unistd.h>

static std::mutex       g_mutex; // for g_log and g_skipped
static std::string      g_log;
static std::string      g_skipped;
static std::atomic<int> g_n_failed{0};

std::vector<test_entry> & test_entries() {
    static std::vector<test_entry> entries;
    return entries;
}

void test_fail(const char * file, int line, const std::string & text) {
    g_n_failed++;
    fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
}

bool test_has_failed() {
    return g_n_failed > 0;
}

bool test_says(const char * file, int line, const std::string & text, const std::vector<std::string> & facts) {
    bool ok = true;
    for (const auto & fact : facts) {
        if (text.find(fact) == std::string::npos) {
            test_fail(file, line, "\"" + fact + "\" is not in \"" + text + "\"");
            ok = false;
        }
    }
    return ok;
}

void test_skip(const std::string & reason) {
    std::lock_guard<std::mutex> lock(g_mutex);
    g_skipped = reason;
}

std::string take_log() {
    std::lock_guard<std::mutex> lock(g_mutex);
    return std::exchange(g_log, {});
}

const std::string & scratch_dir() {
    static const std::string dir = [] {
        const char * given = getenv("TEST_ENGINE_SCRATCH");
        return std::string(given ? given : ".");
    }();
    return dir;
}

//
// functions of ggml.c that the engine calls; ggml.c itself would need the rest of ggml
//

void ggml_log_internal(ggml_log_level, const char * format, ...) {
    char line[4096];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    std::lock_guard<std::mutex> lock(g_mutex);
    g_log += line;
}

void ggml_abort(const char * file, int line, const char * fmt, ...) {
    fprintf(stderr, "%s:%d: ", file, line);
    va_list args;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
    abort();
}

const char * ggml_version(void) { return "test"; }
const char * ggml_commit (void) { return "test"; }

void * ggml_aligned_malloc(size_t size) {
    void * ptr = nullptr;
    return size > 0 && posix_memalign(&ptr, 64, size) == 0 ? ptr : nullptr;
}

void ggml_aligned_free(void * ptr, size_t) {
    free(ptr);
}

//
// made-up machines
//

machine::machine() {
    dir = scratch_dir() + "/machine-XXXXXX";
    if (!mkdtemp(dir.data())) {
        GGML_ABORT("cannot make %s: %s", dir.c_str(), strerror(errno));
    }
}

machine::~machine() {
    std::error_code ignored;
    std::filesystem::remove_all(dir, ignored);
}

machine & machine::file(const std::string & path, const std::string & text) {
    const std::filesystem::path full = dir + path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream out(full);
    out << text;
    if (!out.flush()) {
        GGML_ABORT("cannot write %s", full.c_str());
    }
    return *this;
}

static std::string pool_name(size_t page_size) {
    return "hugepages-" + std::to_string(page_size/KIB) + "kB/";
}

machine & machine::pool(size_t page_size, uint64_t total, uint64_t free, uint64_t reserved, uint64_t surplus, uint64_t overcommit) {
    const std::string folder = "/sys/kernel/mm/hugepages/" + pool_name(page_size);
    file(folder + "nr_hugepages",            std::to_string(total)      + "\n");
    file(folder + "free_hugepages",          std::to_string(free)       + "\n");
    file(folder + "resv_hugepages",          std::to_string(reserved)   + "\n");
    file(folder + "surplus_hugepages",       std::to_string(surplus)    + "\n");
    file(folder + "nr_overcommit_hugepages", std::to_string(overcommit) + "\n");
    if (!has_pool) {
        file("/proc/meminfo", "MemTotal:       65536000 kB\nHugepagesize:    " + std::to_string(page_size/KIB) + " kB\n");
        has_pool = true;
    }
    return *this;
}

machine & machine::node(int id, size_t page_size, uint64_t total, uint64_t free, const char * cpulist) {
    const std::string folder = "/sys/devices/system/node/node" + std::to_string(id) + "/";
    file(folder + "cpulist", std::string(cpulist) + "\n");
    file(folder + "hugepages/" + pool_name(page_size) + "nr_hugepages",   std::to_string(total) + "\n");
    file(folder + "hugepages/" + pool_name(page_size) + "free_hugepages", std::to_string(free)  + "\n");
    return *this;
}

machine & machine::cgroup2(const char * cgroup, const char * mount, const char * fs_root) {
    file("/proc/self/cgroup", std::string("0::") + cgroup + "\n");
    return mounts(std::string("29 24 0:26 ") + fs_root + " " + mount + " rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
}

machine & machine::mounts(const std::string & lines) {
    mountinfo += lines;
    return file("/proc/self/mountinfo", "24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n" + mountinfo);
}

static std::string offset_name(size_t x) {
    return x % MIB == 0 ? std::to_string(x/MIB) : std::to_string(x/KIB) + "K";
}

std::string decision::runs(size_t image) const {
    std::string text;
    for (const auto & r : images.at(image).runs) {
        char size[16];
        ggml_hugepages_backing_to_str(GGML_HUGEPAGES_BACKING_HUGE, r.page_size, size, sizeof(size));
        text += (text.empty() ? "" : " ") + offset_name(r.first) + "-" + offset_name(r.last) + ":" + size;
    }
    return text;
}

uint64_t decision::pages(size_t page_size) const {
    uint64_t n = 0;
    for (const auto & image : images) {
        for (const auto & r : image.runs) {
            n += r.page_size == page_size ? (r.last - r.first)/page_size : 0;
        }
    }
    return n;
}

decision decide(
        const machine                            & m,
        const std::vector<wants>                 & images,
        const ggml_hugepages_params              & params,
        const std::vector<ggml_hugepages_demand> & demands) {
    std::vector<ggml_hugepages_image_t> handles;
    for (const auto & w : images) {
        handles.push_back(ggml_hugepages_image_init(-1, w.size));
        handles.back()->resident = w.resident;
        handles.back()->matrices = w.matrices;
        for (const auto & want : w.list) {
            ggml_hugepages_image_want(handles.back(), want.first, want.last, (ggml_hugepages_rank) want.rank);
        }
    }
    decision result;
    result.ok = ggml_hugepages_decide(m.root(), handles.data(), handles.size(), demands.data(), demands.size(), params, &result.error);
    for (auto * handle : handles) {
        result.images.push_back(*handle);
        ggml_hugepages_image_free(handle);
    }
    return result;
}

ggml_hugepages_params require(size_t page_size) {
    auto params = ggml_hugepages_default_params();
    params.enabled   = true;
    params.policy    = GGML_HUGEPAGES_POLICY_REQUIRE;
    params.page_size = page_size;
    params.n_threads = 4;
    return params;
}

ggml_hugepages_params prefer(size_t page_size) {
    auto params = require(page_size);
    params.policy = GGML_HUGEPAGES_POLICY_PREFER;
    return params;
}

int main(int argc, char ** argv) {
    int n_failed = 0;
    int n_run    = 0;
    for (const auto & test : test_entries()) {
        bool is_chosen = argc == 1;
        for (int i = 1; i < argc; i++) {
            is_chosen = is_chosen || strcmp(argv[i], test.group) == 0 || strcmp(argv[i], test.name) == 0;
        }
        if (!is_chosen) {
            continue;
        }
        n_run++;
        g_n_failed = 0;
        g_skipped.clear();
        take_log();
        test.run();
        if (g_n_failed > 0) {
            n_failed++;
            printf("failed %s\n", test.name);
            fprintf(stderr, "%s", take_log().c_str());
        } else if (!g_skipped.empty()) {
            printf("skipped %s: %s\n", test.name, g_skipped.c_str());
        } else {
            printf("ok %s\n", test.name);
        }
        fflush(stdout);
    }
    printf("%d tests, %d failed\n", n_run, n_failed);
    return n_run == 0 || n_failed > 0;
}
