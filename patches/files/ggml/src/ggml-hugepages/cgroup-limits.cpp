// Limits of cgroups on huge pages and on memory, in v1 and v2 hierarchies.

#ifdef __linux__

#include "cgroup-limits.h"
#include "kernel.h"
#include "names.h"

#include <algorithm>
#include <cstdio>
#include <set>
#include <sstream>

// the size in the names of the cgroup's files
static std::string cgroup_size_name(size_t page_size) {
    if (page_size >= GGML_HUGEPAGES_GIB) {
        return std::to_string(page_size/GGML_HUGEPAGES_GIB) + "GB";
    }
    return page_size >= GGML_HUGEPAGES_MIB ? std::to_string(page_size/GGML_HUGEPAGES_MIB) + "MB" : std::to_string(page_size/GGML_HUGEPAGES_KIB) + "KB";
}

// A mounted hierarchy with a controller, and the cgroup of this process in it. cgroup2 is listed without a controller check.
struct hierarchy {
    bool        is_v2;
    bool        memory_has_huge_pages; // since Linux 6.7, a mount option can make huge pages count as memory
    std::string mount;  // with root
    std::string cgroup; // relative to the mount
    bool        is_outside; // the cgroup is outside the mounted tree: cgroup_namespaces(7) shows it as /..
};

static std::vector<hierarchy> read_hierarchies(const char * root, const std::string & controller) {
    std::vector<hierarchy> result;
    const std::string listed = "," + controller + ",";
    const std::string cgroups = ggml_hugepages_read_text(std::string(root) + "/proc/self/cgroup");
    std::set<std::string> seen;
    for (const auto & mount : ggml_hugepages_mounts(root)) {
        if (!seen.insert(mount.device + " " + mount.fs_root).second) {
            continue; // mounted twice
        }
        const bool is_v2 = mount.type == "cgroup2";
        if (!is_v2 && (mount.type != "cgroup" || mount.options.find(listed) == std::string::npos)) {
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
            if (is_v2 ? controllers != ",," : controllers.find(listed) == std::string::npos) {
                continue;
            }
            std::string cgroup = line.substr(second + 1);
            // a container may mount only a part of the hierarchy
            const auto & part = mount.fs_root;
            if (part != "/" && (cgroup + "/").compare(0, part.size() + 1, part + "/") == 0) {
                cgroup = cgroup.substr(part.size());
            }
            const bool is_outside = part.compare(0, 3, "/..") == 0 || cgroup.compare(0, 3, "/..") == 0;
            const bool has_huge_pages = is_v2 && mount.options.find(",memory_hugetlb_accounting,") != std::string::npos;
            result.push_back({ is_v2, has_huge_pages, std::string(root) + mount.path, cgroup, is_outside });
        }
    }
    return result;
}

// Calls f with the name and the folder of each cgroup from that of the process up to the root: the limit of each applies.
template <typename F> static void for_each_cgroup(const hierarchy & h, F f) {
    for (std::string cgroup = h.cgroup; ; cgroup = cgroup.substr(0, cgroup.rfind('/'))) {
        f(cgroup.empty() ? "/" : cgroup, h.mount + (cgroup == "/" ? "" : cgroup) + "/");
        if (cgroup.empty() || cgroup == "/" || cgroup.rfind('/') == std::string::npos) {
            break;
        }
    }
}

// "max" is no number; cgroup v1 shows "no limit" as a huge number
static bool read_limit(const std::string & limit_file, const std::string & used_file, ggml_hugepages_limit & result) {
    return ggml_hugepages_read_u64(limit_file, &result.limit) && result.limit < UINT64_MAX/4 && ggml_hugepages_read_u64(used_file, &result.used);
}

// the page cache of a cgroup, which the kernel takes back before it refuses memory
static uint64_t cached_bytes(const std::string & dir, bool is_v2) {
    std::istringstream stat(ggml_hugepages_read_text(dir + "memory.stat"));
    std::string name;
    uint64_t value = 0, sum = 0;
    while (stat >> name >> value) {
        name = !is_v2 && name.compare(0, 6, "total_") == 0 ? name.substr(6) : is_v2 ? name : "";
        sum += name == "inactive_file" || name == "active_file" ? value : 0;
    }
    return sum;
}

static void add_memory_limits(const hierarchy & h, std::vector<ggml_hugepages_limit> & result) {
    const std::string limit = h.is_v2 ? "memory.max"     : "memory.limit_in_bytes";
    const std::string used  = h.is_v2 ? "memory.current" : "memory.usage_in_bytes";
    for_each_cgroup(h, [&](const std::string & cgroup, const std::string & dir) {
        ggml_hugepages_limit found = { cgroup, limit, 0, 0, true };
        if (read_limit(dir + limit, dir + used, found)) {
            found.used -= std::min(found.used, cached_bytes(dir, h.is_v2));
            result.push_back(found);
        }
    });
}

std::vector<ggml_hugepages_limit> ggml_hugepages_limits(const char * root, size_t page_size) {
    struct pair { const char * limit; const char * used; };
    static const pair v1[] = { { "limit_in_bytes", "usage_in_bytes" }, { "rsvd.limit_in_bytes", "rsvd.usage_in_bytes" } };
    static const pair v2[] = { { "max",            "current"        }, { "rsvd.max",            "rsvd.current"        } };

    std::vector<ggml_hugepages_limit> result;
    const std::string prefix = "hugetlb." + cgroup_size_name(page_size) + ".";
    for (const auto & h : read_hierarchies(root, "hugetlb")) {
        for_each_cgroup(h, [&](const std::string & cgroup, const std::string & dir) {
            for (const auto & names : h.is_v2 ? v2 : v1) {
                ggml_hugepages_limit found = { cgroup, prefix + names.limit, 0, 0, false };
                if (read_limit(dir + prefix + names.limit, dir + prefix + names.used, found)) {
                    result.push_back(found);
                }
            }
        });
        if (h.memory_has_huge_pages) {
            add_memory_limits(h, result);
        }
    }
    return result;
}

uint64_t ggml_hugepages_memory_left(const char * root, uint64_t planned) {
    uint64_t left = ggml_hugepages_mem_available(root);
    if (left == 0) {
        return 0;
    }
    for (const auto & h : read_hierarchies(root, "memory")) {
        std::vector<ggml_hugepages_limit> limits;
        add_memory_limits(h, limits);
        for (const auto & limit : limits) {
            const uint64_t used = limit.used + (h.memory_has_huge_pages ? planned : 0);
            left = std::min(left, limit.limit - std::min(limit.limit, used));
        }
    }
    return std::max<uint64_t>(left, 1);
}

uint64_t ggml_hugepages_memory_available() noexcept try {
    return ggml_hugepages_memory_left("", 0);
} catch (...) {
    return 0;
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
    if (ggml_hugepages_read_text(std::string(root) + "/proc/cgroups").find("\nhugetlb\t") == std::string::npos) {
        return false;
    }
    const auto hierarchies = read_hierarchies(root, "hugetlb");
    bool is_seen = false;
    for (const auto & h : hierarchies) {
        // The root of the machine's tree has no cgroup.events (v2), and only this root has release_agent (v1).
        const bool is_root = h.is_v2 ? !exists(h.mount + "/cgroup.events") : exists(h.mount + "/release_agent");
        if (!is_root || h.is_outside) {
            return true;
        }
        const bool has_controller = !h.is_v2 || (" " + ggml_hugepages_read_text(h.mount + "/cgroup.controllers")).find("hugetlb") != std::string::npos;
        is_seen = is_seen || has_controller;
    }
    return !is_seen;
}

#endif // __linux__
