#pragma once

// Checks, and shared parts of the tests. A failed check prints its place and values and is counted, and the test continues.

#include "ggml-hugepages/image.h"
#include "ggml-hugepages/pool.h"

#include <cstdint>
#include <functional>
#include <sstream>
#include <string>
#include <vector>

static const size_t KIB = 1024;
static const size_t MIB = 1024*KIB;
static const size_t GIB = 1024*MIB;

//
// running
//

struct test_entry {
    const char * group;
    const char * name; // a claim
    void      (* run)();
};

std::vector<test_entry> & test_entries();

struct test_registration {
    test_registration(const char * group, const char * name, void (* run)()) { test_entries().push_back({ group, name, run }); }
};

#define TEST(group, name)                                                  \
    static void group##_##name();                                          \
    static test_registration registration_##group##_##name(#group, #name, group##_##name); \
    static void group##_##name()

// may be called by any thread
void test_fail(const char * file, int line, const std::string & text);
bool test_has_failed();
void test_skip(const std::string & reason);

template <typename T> void test_print(std::ostream & out, const T & value) { out << value; }

template <typename A, typename B> void test_print(std::ostream & out, const std::pair<A, B> & pair) {
    out << "[" << pair.first << ", " << pair.second << ")";
}

template <typename T> void test_print(std::ostream & out, const std::vector<T> & list) {
    for (const auto & value : list) {
        out << "\n      ";
        test_print(out, value);
    }
}

template <typename A, typename B>
bool test_eq(const char * file, int line, const char * a_text, const char * b_text, const A & a, const B & b) {
    if (a == b) {
        return true;
    }
    std::ostringstream out;
    out << a_text << " == " << b_text << "\n    left:  ";
    test_print(out, a);
    out << "\n    right: ";
    test_print(out, b);
    test_fail(file, line, out.str());
    return false;
}

#define CHECK(cond)    ((cond) ? true : (test_fail(__FILE__, __LINE__, #cond), false))
#define CHECK_EQ(a, b) test_eq(__FILE__, __LINE__, #a, #b, a, b)

// whether a message has all these facts; its other words may change
bool test_says(const char * file, int line, const std::string & text, const std::vector<std::string> & facts);

#define CHECK_SAYS(text, ...) test_says(__FILE__, __LINE__, text, { __VA_ARGS__ })

// ends the test if a condition of its other checks fails
#define REQUIRE(cond)    do { if (!CHECK(cond))    { return; } } while (0)
#define REQUIRE_EQ(a, b) do { if (!CHECK_EQ(a, b)) { return; } } while (0)

// ends the test: the program that starts this one counts the tests that cannot run here
#define SKIP(reason)     do { test_skip(reason); return; } while (0)

// the log of the engine since the last call
std::string take_log();

// a writable folder on a disk
const std::string & scratch_dir();

//
// made-up machines
//

struct random_numbers {
    uint64_t state;

    // splitmix64
    uint64_t next() {
        uint64_t z = state += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30))*0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27))*0x94d049bb133111eb;
        return z ^ (z >> 31);
    }
    size_t below(size_t n) { return next() % n; }
};

// A folder with made-up /sys and /proc, removed with the object.
struct machine {
    std::string dir;

    machine();
    ~machine();
    machine(const machine &) = delete;

    const char * root() const { return dir.c_str(); }

    machine & file(const std::string & path, const std::string & text);

    // in pages; the first pool is of the default size
    machine & pool(size_t page_size, uint64_t total, uint64_t free, uint64_t reserved = 0, uint64_t surplus = 0, uint64_t overcommit = 0);

    machine & node(int id, size_t page_size, uint64_t total, uint64_t free, const char * cpulist = "");

    // a cgroup2 hierarchy, and the cgroup of the process in it
    machine & cgroup2(const char * cgroup, const char * mount = "/sys/fs/cgroup", const char * fs_root = "/");

    // whole lines of mountinfo
    machine & mounts(const std::string & lines);

private:
    bool        has_pool = false;
    std::string mountinfo;
};

struct decision {
    bool                                     ok = false;
    ggml_hugepages_error                     error = {};
    std::vector<ggml_hugepages_image>        images; // after the decision
    std::string runs(size_t image = 0) const; // e.g. "0-1024:1G 1024-1026:2M", in MiB
    uint64_t    pages(size_t page_size) const;
};

struct wants {
    size_t                           size; // of the image
    std::vector<ggml_hugepages_want> list;
    std::shared_ptr<ggml_hugepages_store_file> resident = nullptr;
    std::vector<ggml_hugepages_matrices> matrices = {};
};

decision decide(
        const machine                            & m,
        const std::vector<wants>                 & images,
        const ggml_hugepages_params              & params,
        const std::vector<ggml_hugepages_demand> & demands = {});

ggml_hugepages_params require(size_t page_size = GGML_HUGEPAGES_SIZE_AUTO);
ggml_hugepages_params prefer (size_t page_size = GGML_HUGEPAGES_SIZE_AUTO);
