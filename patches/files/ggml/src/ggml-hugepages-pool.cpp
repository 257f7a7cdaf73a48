// The kernel's page sizes, pools, nodes and limits, and the command that grows a pool. This file only reads.

#include "ggml-hugepages-impl.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <set>
#include <sstream>

#ifdef __linux__
#include <dirent.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static const size_t KIB = 1024;
static const size_t MIB = 1024*KIB;
static const size_t GIB = 1024*MIB;

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

bool ggml_hugepages_size_from_str(const char * str, size_t * page_size) noexcept try {
    if (strcmp(str, "auto") == 0) {
        *page_size = GGML_HUGEPAGES_SIZE_AUTO;
        return true;
    }
    if (strcmp(str, "thp") == 0) {
        *page_size = GGML_HUGEPAGES_SIZE_THP;
        return true;
    }
    if (*str < '0' || *str > '9') {
        return false;
    }
    char * end = nullptr;
    const uint64_t value = strtoull(str, &end, 10);
    // page sizes are powers of two, so M and MB can only mean MiB
    uint64_t unit = 0;
    for (const auto & [name, bytes] : std::map<std::string, uint64_t>{
            { "", 1 }, { "k", KIB }, { "kb", KIB }, { "kib", KIB }, { "m", MIB }, { "mb", MIB }, { "mib", MIB }, { "g", GIB }, { "gb", GIB }, { "gib", GIB } }) {
        std::string suffix = end;
        std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return (char) tolower(c); });
        if (suffix == name) {
            unit = bytes;
        }
    }
    if (unit == 0 || value == 0 || value > SIZE_MAX/unit) {
        return false;
    }
    const uint64_t bytes = value*unit;
    if (bytes < 64*KIB || (bytes & (bytes - 1)) != 0) {
        return false;
    }
    *page_size = bytes;
    return true;
} catch (...) {
    return false;
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

static std::string read_text(const std::string & path) {
    std::string text;
    if (FILE * file = fopen(path.c_str(), "r")) {
        char buf[4096];
        while (const size_t n = fread(buf, 1, sizeof(buf), file)) {
            text.append(buf, n);
        }
        fclose(file);
    }
    return text;
}

// the numbers in the names of a folder's entries, ascending, e.g. 0 and 1 for node0 and node1
static std::vector<size_t> numbered_entries(const std::string & path, const char * fmt) {
    std::vector<size_t> result;
#ifdef __linux__
    if (DIR * dir = opendir(path.c_str())) {
        while (const dirent * entry = readdir(dir)) {
            size_t number = 0;
            if (sscanf(entry->d_name, fmt, &number) == 1) {
                result.push_back(number);
            }
        }
        closedir(dir);
    }
#else
    GGML_UNUSED(path);
    GGML_UNUSED(fmt);
#endif
    std::sort(result.begin(), result.end());
    return result;
}

size_t ggml_hugepages_page_sizes(const char * root, size_t * page_sizes, size_t n) noexcept try {
    const auto kibs = numbered_entries(std::string(root) + "/sys/kernel/mm/hugepages", "hugepages-%zukB");
    for (size_t i = 0; i < std::min(n, kibs.size()); i++) {
        page_sizes[i] = kibs[i]*KIB;
    }
    return kibs.size();
} catch (...) {
    return 0;
}

size_t ggml_hugepages_page_size(const char * root) noexcept {
    size_t sizes[16];
    const size_t n = std::min<size_t>(16, ggml_hugepages_page_sizes(root, sizes, 16));
    // arm64 also has 64 KiB pages: they save page table entries, but no level of the walk
    const auto * it = std::find_if(sizes, sizes + n, [](size_t size) { return size >= 2*MIB; });
    return it == sizes + n ? 0 : *it;
}

bool ggml_hugepages_pool_read(const char * root, size_t page_size, ggml_hugepages_pool * pool) noexcept try {
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
} catch (...) {
    *pool = {};
    return false;
}

uint64_t ggml_hugepages_pool_usable(const ggml_hugepages_pool * pool) noexcept {
    const uint64_t ready  = pool->free       - std::min(pool->free,       pool->reserved);
    const uint64_t growth = pool->overcommit - std::min(pool->overcommit, pool->surplus);
    return ready + growth;
}

//
// nodes
//

static std::string node_dir(const char * root, int node) {
    return std::string(root) + "/sys/devices/system/node/node" + std::to_string(node);
}

std::vector<int> ggml_hugepages_all_nodes(const char * root) {
    std::vector<int> result;
    for (const size_t node : numbered_entries(std::string(root) + "/sys/devices/system/node", "node%zu")) {
        result.push_back((int) node);
    }
    return result;
}

// a list such as "0-3,8"
static bool list_has(const std::string & list, int number) {
    std::istringstream in(list);
    std::string part;
    while (std::getline(in, part, ',')) {
        int first = 0;
        int last  = 0;
        const int n = sscanf(part.c_str(), "%d-%d", &first, &last);
        if (n >= 1 && number >= first && number <= (n == 2 ? last : first)) {
            return true;
        }
    }
    return false;
}

std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement) {
    std::vector<int> result;
#ifdef __linux__
    const auto nodes = ggml_hugepages_all_nodes(root);
    if (placement == GGML_HUGEPAGES_PLACEMENT_LOCAL) {
        // once, because the scheduler may move the process, and its memory must stay on one node
        static const int current = [] {
            unsigned cpu  = 0;
            unsigned node = 0;
            return ggml_hugepages_call(SYS_getcpu, (long) &cpu, (long) &node) == 0 ? (int) node : -1;
        }();
        if (current != -1) {
            result.push_back(current);
        }
    } else if (placement == GGML_HUGEPAGES_PLACEMENT_BIND) {
        // a memory policy from numactl is more exact than the CPUs
        int mode = 0;
        const int MPOL_DEFAULT = 0;
        if (ggml_hugepages_call(SYS_get_mempolicy, (long) &mode) == 0 && mode != MPOL_DEFAULT) {
            return {};
        }
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        if (!ggml_hugepages_is_killing(SYS_sched_getaffinity) && sched_getaffinity(0, sizeof(cpus), &cpus) == 0) {
            for (const int node : nodes) {
                const std::string list = read_text(node_dir(root, node) + "/cpulist");
                for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
                    if (CPU_ISSET(cpu, &cpus) && list_has(list, cpu)) {
                        result.push_back(node);
                        break;
                    }
                }
            }
        }
    }
    if (result.size() == nodes.size()) {
        result.clear();
    }
#else
    GGML_UNUSED(root);
    GGML_UNUSED(placement);
#endif
    return result;
}

//
// limits
//

// the size in the names of the cgroup's files
static std::string cgroup_size_name(size_t page_size) {
    if (page_size >= GIB) {
        return std::to_string(page_size/GIB) + "GB";
    }
    return page_size >= MIB ? std::to_string(page_size/MIB) + "MB" : std::to_string(page_size/KIB) + "KB";
}

std::vector<ggml_hugepages_mount> ggml_hugepages_mounts(const char * root) {
    std::vector<ggml_hugepages_mount> result;
    std::istringstream lines(read_text(std::string(root) + "/proc/self/mountinfo"));
    std::string line;
    while (std::getline(lines, line)) {
        // proc_pid_mountinfo(5): id parent major:minor root mount_point options [tags] - type source super_options
        std::istringstream fields(line);
        std::string id, parent, word, source, super;
        ggml_hugepages_mount m;
        fields >> id >> parent >> m.device >> m.fs_root >> m.path;
        while (fields >> word && word != "-") {
        }
        fields >> m.type >> source >> super;
        m.options = "," + super + ",";
        result.push_back(m);
    }
    return result;
}

// A mounted hierarchy with the hugetlb controller, and the cgroup of this process in it. cgroup2 is listed without a controller check.
struct hierarchy {
    bool        is_v2;
    std::string mount;  // with root
    std::string cgroup; // relative to the mount
    bool        is_outside; // the cgroup is outside the mounted tree: cgroup_namespaces(7) shows it as /..
};

static std::vector<hierarchy> read_hierarchies(const char * root) {
    std::vector<hierarchy> result;
    const std::string cgroups = read_text(std::string(root) + "/proc/self/cgroup");
    std::set<std::string> seen;
    for (const auto & mount : ggml_hugepages_mounts(root)) {
        if (!seen.insert(mount.device + " " + mount.fs_root).second) {
            continue; // mounted twice
        }
        const bool is_v2 = mount.type == "cgroup2";
        if (!is_v2 && (mount.type != "cgroup" || mount.options.find(",hugetlb,") == std::string::npos)) {
            continue;
        }
        // cgroups(7): hierarchy-id:controllers:path
        std::istringstream lines(cgroups);
        std::string line;
        while (std::getline(lines, line)) {
            const size_t first  = line.find(':');
            const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
            if (second == std::string::npos) {
                continue;
            }
            const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
            if (is_v2 ? controllers != ",," : controllers.find(",hugetlb,") == std::string::npos) {
                continue;
            }
            std::string cgroup = line.substr(second + 1);
            // a container may mount only a part of the hierarchy
            const auto & part = mount.fs_root;
            if (part != "/" && (cgroup + "/").compare(0, part.size() + 1, part + "/") == 0) {
                cgroup = cgroup.substr(part.size());
            }
            const bool is_outside = part.compare(0, 3, "/..") == 0 || cgroup.compare(0, 3, "/..") == 0;
            result.push_back({ is_v2, std::string(root) + mount.path, cgroup, is_outside });
        }
    }
    return result;
}

static std::vector<ggml_hugepages_limit> read_limits(const char * root, size_t page_size) {
    struct pair { const char * limit; const char * used; };
    static const pair v1[] = { { "limit_in_bytes", "usage_in_bytes" }, { "rsvd.limit_in_bytes", "rsvd.usage_in_bytes" } };
    static const pair v2[] = { { "max",            "current"        }, { "rsvd.max",            "rsvd.current"        } };

    std::vector<ggml_hugepages_limit> result;
    const std::string prefix = "hugetlb." + cgroup_size_name(page_size) + ".";
    for (const auto & h : read_hierarchies(root)) {
        // from the cgroup of the process up to the root: the limit of each cgroup applies
        for (std::string cgroup = h.cgroup; ; cgroup = cgroup.substr(0, cgroup.rfind('/'))) {
            const std::string dir = h.mount + (cgroup == "/" ? "" : cgroup) + "/";
            for (const auto & names : h.is_v2 ? v2 : v1) {
                // "max" is no number; cgroup v1 shows "no limit" as a huge number
                uint64_t limit = 0;
                uint64_t used  = 0;
                if (read_u64(dir + prefix + names.limit, &limit) && limit < UINT64_MAX/4 &&
                    read_u64(dir + prefix + names.used,  &used)) {
                    result.push_back({ cgroup.empty() ? "/" : cgroup, prefix + names.limit, limit, used });
                }
            }
            if (cgroup.empty() || cgroup == "/" || cgroup.rfind('/') == std::string::npos) {
                break;
            }
        }
    }
    return result;
}

static bool exists(const std::string & path) {
    FILE * file = fopen(path.c_str(), "r");
    if (file) {
        fclose(file);
    }
    return file != nullptr;
}

bool ggml_hugepages_limits_may_hide(const char * root) {
    // cgroups(7): a kernel without the controller has no limit
    if (read_text(std::string(root) + "/proc/cgroups").find("\nhugetlb\t") == std::string::npos) {
        return false;
    }
    const auto hierarchies = read_hierarchies(root);
    bool is_seen = false;
    for (const auto & h : hierarchies) {
        // The root of the machine's tree has no cgroup.events (v2), and only this root has release_agent (v1).
        const bool is_root = h.is_v2 ? !exists(h.mount + "/cgroup.events") : exists(h.mount + "/release_agent");
        if (!is_root || h.is_outside) {
            return true;
        }
        const bool has_controller = !h.is_v2 || (" " + read_text(h.mount + "/cgroup.controllers")).find("hugetlb") != std::string::npos;
        is_seen = is_seen || has_controller;
    }
    return !is_seen;
}

ggml_hugepages_supply ggml_hugepages_supply_read(const char * root, size_t page_size, const std::vector<int> & nodes) {
    ggml_hugepages_supply supply;
    if (!ggml_hugepages_pool_read(root, page_size, &supply.pool)) {
        return supply;
    }
    supply.is_bound = !nodes.empty();
    for (const int id : nodes.empty() ? ggml_hugepages_all_nodes(root) : nodes) {
        const std::string dir = node_dir(root, id) + "/hugepages/hugepages-" + std::to_string(page_size/KIB) + "kB";
        ggml_hugepages_node node = { id, 0, 0 };
        if (read_u64(dir + "/nr_hugepages", &node.total) && read_u64(dir + "/free_hugepages", &node.free)) {
            supply.nodes.push_back(node);
        }
    }
    supply.limits = read_limits(root, page_size);
    return supply;
}

uint64_t ggml_hugepages_supply::usable_of_pool() const {
    uint64_t result = ggml_hugepages_pool_usable(&pool);
    // Reservations belong to no node, so pages that others reserved may be on these nodes or on others. Surplus pages come from any node
    // with memory.
    if (is_bound && !nodes.empty()) {
        uint64_t free = 0;
        for (const auto & node : nodes) {
            free += node.free;
        }
        result = std::min(result, free + (pool.overcommit - std::min(pool.overcommit, pool.surplus)));
    }
    return result;
}

// bytes below a limit
static uint64_t left_of(const ggml_hugepages_limit & l, const ggml_hugepages_supply & supply) {
    const uint64_t left = l.limit - std::min(l.limit, l.used);
    // a limit on reservations counts reserved pages already, a limit on pages counts them on touch
    const bool is_of_reservations = l.file.find(".rsvd.") != std::string::npos;
    const uint64_t more = is_of_reservations ? supply.held*supply.pool.page_size : 0;
    const uint64_t less = is_of_reservations ? 0 : supply.promised*supply.pool.page_size;
    return left + more - std::min(left + more, less);
}

const ggml_hugepages_limit * ggml_hugepages_supply::tightest() const {
    const auto it = std::min_element(limits.begin(), limits.end(), [&](const auto & a, const auto & b) { return left_of(a, *this) < left_of(b, *this); });
    return it == limits.end() ? nullptr : &*it;
}

uint64_t ggml_hugepages_supply::usable() const {
    uint64_t result = usable_of_pool() + held;
    if (const auto * limit = tightest()) {
        result = std::min(result, left_of(*limit, *this)/pool.page_size);
    }
    return result;
}

//
// without a pool
//

size_t ggml_hugepages_thp_size(const char * root, bool * enabled) {
    const std::string dir = std::string(root) + "/sys/kernel/mm/transparent_hugepage";
    *enabled = read_text(dir + "/enabled").find("[never]") == std::string::npos;
    uint64_t size = 0;
    return read_u64(dir + "/hpage_pmd_size", &size) ? size : 0;
}

// a line such as "MemAvailable:   1234 kB", in bytes
static uint64_t read_meminfo(const char * root, const char * name) {
    std::istringstream in(read_text(std::string(root) + "/proc/meminfo"));
    std::string line;
    while (std::getline(in, line)) {
        if (line.compare(0, strlen(name), name) == 0 && line[strlen(name)] == ':') {
            return strtoull(line.c_str() + strlen(name) + 1, nullptr, 10)*KIB;
        }
    }
    return 0;
}

uint64_t ggml_hugepages_mem_available(const char * root) {
    return read_meminfo(root, "MemAvailable");
}

std::string ggml_hugepages_overcommit(const char * root) {
    uint64_t mode = 0;
    if (!read_u64(std::string(root) + "/proc/sys/vm/overcommit_memory", &mode) || mode != 2) {
        return "";
    }
    char buf[128];
    snprintf(buf, sizeof(buf), "vm.overcommit_memory is 2, CommitLimit %" PRIu64 " MiB, Committed_AS %" PRIu64 " MiB",
        read_meminfo(root, "CommitLimit")/MIB, read_meminfo(root, "Committed_AS")/MIB);
    return buf;
}

std::string ggml_hugepages_pool_command(const char * root, size_t page_size, uint64_t total) {
    // vm.nr_hugepages sets only the pool of the default size
    if (page_size == read_meminfo(root, "Hugepagesize")) {
        return "sysctl vm.nr_hugepages=" + std::to_string(total);
    }
    return "echo " + std::to_string(total) + " > " + pool_dir("", page_size) + "/nr_hugepages";
}
