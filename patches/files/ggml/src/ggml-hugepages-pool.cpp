// What the kernel offers: page sizes, pools, and the command that grows one. Only reads.

#include "ggml-hugepages-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#ifdef __linux__
#include <dirent.h>
#endif

static const size_t KIB = 1024;
static const size_t MIB = 1024*KIB;
static const size_t GIB = 1024*MIB;

ggml_hugepages_params ggml_hugepages_default_params(void) {
    ggml_hugepages_params result = {
        /*.enabled =*/ false,
        /*.policy  =*/ GGML_HUGEPAGES_POLICY_REQUIRE,
    };
    return result;
}

const char * ggml_hugepages_policy_name(ggml_hugepages_policy policy) {
    switch (policy) {
        case GGML_HUGEPAGES_POLICY_REQUIRE: return "require";
        case GGML_HUGEPAGES_POLICY_PREFER:  return "prefer";
    }
    return "unknown";
}

bool ggml_hugepages_policy_from_str(const char * str, ggml_hugepages_policy * policy) {
    for (auto p : { GGML_HUGEPAGES_POLICY_REQUIRE, GGML_HUGEPAGES_POLICY_PREFER }) {
        if (strcmp(str, ggml_hugepages_policy_name(p)) == 0) {
            *policy = p;
            return true;
        }
    }
    return false;
}

bool ggml_hugepages_fail(ggml_hugepages_error * error, ggml_hugepages_status status, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    error->status = status;
    vsnprintf(error->message, sizeof(error->message), fmt, args);
    va_end(args);
    error->hint[0] = '\0';
    return false;
}

void ggml_hugepages_hint(ggml_hugepages_error * error, const char * fmt, ...) {
    va_list args;
    va_start(args, fmt);
    vsnprintf(error->hint, sizeof(error->hint), fmt, args);
    va_end(args);
}

std::string ggml_hugepages_size_name(size_t page_size) {
    char buf[32];
    if (page_size >= GIB) {
        snprintf(buf, sizeof(buf), "%zu GiB", page_size/GIB);
    } else if (page_size >= MIB) {
        snprintf(buf, sizeof(buf), "%zu MiB", page_size/MIB);
    } else {
        snprintf(buf, sizeof(buf), "%zu KiB", page_size/KIB);
    }
    return buf;
}

int ggml_hugepages_report_to_str(const ggml_hugepages_report * report, char * buf, size_t size) {
    return snprintf(buf, size, "%.2f MiB on huge pages (%" PRIu64 " of %s), %.2f MiB on the file mapping",
        (double) report->on_huge/MIB, report->huge_pages, ggml_hugepages_size_name(report->page_size).c_str(), (double) report->on_file/MIB);
}

static std::string pool_dir(const char * root, size_t page_size) {
    return std::string(root) + "/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page_size/KIB) + "kB";
}

static bool read_u64(const std::string & path, uint64_t * value) {
    FILE * file = fopen(path.c_str(), "r");
    if (!file) {
        return false;
    }
    const bool ok = fscanf(file, "%" SCNu64, value) == 1;
    fclose(file);
    return ok;
}

bool ggml_hugepages_pool_read(const char * root, size_t page_size, ggml_hugepages_pool * pool) {
    *pool = {};
    const std::string dir = pool_dir(root, page_size);
    // hugetlbpage.rst: nr_hugepages counts surplus pages too
    if (!read_u64(dir + "/nr_hugepages",            &pool->total)    ||
        !read_u64(dir + "/free_hugepages",          &pool->free)     ||
        !read_u64(dir + "/resv_hugepages",          &pool->reserved) ||
        !read_u64(dir + "/surplus_hugepages",       &pool->surplus)  ||
        !read_u64(dir + "/nr_overcommit_hugepages", &pool->overcommit)) {
        *pool = {};
        return false;
    }
    pool->page_size = page_size;
    return true;
}

uint64_t ggml_hugepages_pool_usable(const ggml_hugepages_pool * pool) {
    const uint64_t ready  = pool->free       - std::min(pool->free,       pool->reserved);
    const uint64_t growth = pool->overcommit - std::min(pool->overcommit, pool->surplus);
    return ready + growth;
}

#ifdef __linux__

size_t ggml_hugepages_page_size(const char * root) {
    DIR * dir = opendir((std::string(root) + "/sys/kernel/mm/hugepages").c_str());
    if (!dir) {
        return 0;
    }
    size_t best = 0;
    while (const dirent * entry = readdir(dir)) {
        size_t kib = 0;
        // arm64 has 64 KiB pages too: they save page table entries, but not whole levels of the walk
        if (sscanf(entry->d_name, "hugepages-%zukB", &kib) == 1 && kib*KIB >= 2*MIB && (best == 0 || kib*KIB < best)) {
            best = kib*KIB;
        }
    }
    closedir(dir);
    return best;
}

// vm.nr_hugepages speaks of the default size only
static size_t default_page_size(const char * root) {
    FILE * file = fopen((std::string(root) + "/proc/meminfo").c_str(), "r");
    if (!file) {
        return 0;
    }
    size_t kib = 0;
    char line[256];
    while (fgets(line, sizeof(line), file) && sscanf(line, "Hugepagesize: %zu kB", &kib) != 1) {
    }
    fclose(file);
    return kib*KIB;
}

std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total) {
    if (page_size == default_page_size(root)) {
        return "sysctl vm.nr_hugepages=" + std::to_string(total);
    }
    return "echo " + std::to_string(total) + " > " + pool_dir("", page_size) + "/nr_hugepages";
}

#else

size_t ggml_hugepages_page_size(const char * root) {
    GGML_UNUSED(root);
    return 0;
}

#endif // __linux__
