// The mount table, the cgroup of the process, its limits, and the counts of a pool, in made-up /proc and /sys.
//
// input: texts, each with a zero byte at the end: mountinfo, cgroup, the limits, the usage, the counts of the pool

#include "fuzz.h"

#include "ggml-hugepages/kernel.h"
#include "ggml-hugepages/pool.h"

#include <algorithm>
#include <filesystem>

#include <fcntl.h>
#include <unistd.h>

static const size_t PAGE = 2*1024*1024;

static const char CGROUP[] = "/sys/fs/cgroup/a/b";
static const char POOL[]   = "/sys/kernel/mm/hugepages/hugepages-2048kB";

static void write_file(const std::string & path, const std::string & text) {
    const std::string full = fuzz_dir() + path;
    const int fd = open(full.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FUZZ_CHECK(fd != -1);
    FUZZ_CHECK(write(fd, text.data(), text.size()) == (ssize_t) text.size());
    close(fd);
}

static void make_folders() {
    static const bool made = [] {
        for (const char * dir : { "/proc/self", CGROUP, POOL }) {
            std::filesystem::create_directories(fuzz_dir() + dir);
        }
        return true;
    }();
    (void) made;
}

bool fuzz_one(fuzz_input input) {
    make_folders();
    const auto mountinfo = input.text();
    const auto cgroup    = input.text();
    const auto limit     = input.text();
    const auto used      = input.text();
    const auto counts    = input.text();
    write_file("/proc/self/mountinfo", mountinfo);
    write_file("/proc/self/cgroup",    cgroup);
    for (const std::string dir : { "/sys/fs/cgroup", CGROUP }) {
        for (const std::string rsvd : { "", "rsvd." }) {
            write_file(dir + "/hugetlb.2MB." + rsvd + "max",            limit);
            write_file(dir + "/hugetlb.2MB." + rsvd + "current",        used);
            write_file(dir + "/hugetlb.2MB." + rsvd + "limit_in_bytes", limit);
            write_file(dir + "/hugetlb.2MB." + rsvd + "usage_in_bytes", used);
        }
    }
    for (const char * name : { "nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages", "nr_overcommit_hugepages" }) {
        write_file(std::string(POOL) + "/" + name, counts);
    }

    const char * root = fuzz_dir().c_str();
    const auto mounts = ggml_hugepages_mounts(root);
    FUZZ_CHECK(mounts.size() <= (size_t) std::count(mountinfo.begin(), mountinfo.end(), '\n') + 1);
    const auto supply = ggml_hugepages_supply_read(root, PAGE, {});
    FUZZ_CHECK(supply.usable() <= supply.usable_of_pool());
    const auto * tightest = supply.tightest();
    FUZZ_CHECK((tightest == nullptr) == supply.limits.empty());
    return tightest != nullptr;
}

std::vector<std::string> fuzz_seeds() {
    const auto seed = [](const std::vector<std::string> & texts) {
        std::string result;
        for (const auto & text : texts) {
            result += text + '\0';
        }
        return result;
    };
    const std::string v2 = "29 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const std::string v1 = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 master:2 - cgroup cgroup rw,hugetlb\n";
    return {
        seed({ v2, "0::/a/b\n", "8388608\n", "2097152\n", "8\n" }),
        seed({ v1, "7:hugetlb:/a/b\n0::/\n", "9223372036854771712\n", "0\n", "8\n" }),
        seed({ v1 + v2, "7:hugetlb,cpu:/\n0::/a\n", "4194304\n", "4194304\n", "8\n" }),
        seed({ "30 24 0:27 /a /sys/fs/cgroup/a rw - cgroup2 cgroup2 rw\n", "0::/a/b\n", "8388608\n", "0\n", "8\n" }),
        seed({ "24 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n31 24 0:28 / /dev/huge\\040pages rw - hugetlbfs none rw,pagesize=2M\n", "0::/\n", "max\n", "0\n", "0\n" }),
    };
}
