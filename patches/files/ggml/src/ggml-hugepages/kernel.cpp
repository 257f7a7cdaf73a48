// What /sys and /proc say about nodes, memory and mounts.

#ifdef __linux__

#include "kernel.h"
#include "names.h"
#include "syscalls.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>

#include <dirent.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

std::string ggml_hugepages_read_text(const std::string & path) {
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

bool ggml_hugepages_read_u64(const std::string & path, uint64_t * value) {
    FILE * file = fopen(path.c_str(), "r");
    if (!file) {
        return false;
    }
    const bool ok = fscanf(file, "%" SCNu64, value) == 1;
    fclose(file);
    return ok;
}

std::vector<size_t> ggml_hugepages_numbered_entries(const std::string & path, const char * fmt) {
    std::vector<size_t> result;
    errno = 0;
    if (DIR * dir = opendir(path.c_str())) {
        while (const dirent * entry = readdir(dir)) {
            size_t number = 0;
            if (sscanf(entry->d_name, fmt, &number) == 1) {
                result.push_back(number);
            }
        }
        const int err = errno;
        closedir(dir);
        errno = err;
    }
    std::sort(result.begin(), result.end());
    return result;
}

std::string ggml_hugepages_node_dir(const char * root, int node) {
    return std::string(root) + "/sys/devices/system/node/node" + std::to_string(node);
}

std::vector<int> ggml_hugepages_all_nodes(const char * root) {
    std::vector<int> result;
    for (const size_t node : ggml_hugepages_numbered_entries(std::string(root) + "/sys/devices/system/node", "node%zu")) {
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

std::vector<int> ggml_hugepages_nodes_with_cpus(const char * root) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    const bool is_known = !ggml_hugepages_is_killing(SYS_sched_getaffinity) && sched_getaffinity(0, sizeof(cpus), &cpus) == 0;
    std::vector<int> result;
    for (const int node : ggml_hugepages_all_nodes(root)) {
        const std::string list = ggml_hugepages_read_text(ggml_hugepages_node_dir(root, node) + "/cpulist");
        for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
            if ((!is_known || CPU_ISSET(cpu, &cpus)) && list_has(list, cpu)) {
                result.push_back(node);
                break;
            }
        }
    }
    return result;
}

std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement) {
    std::vector<int> result;
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
        result = ggml_hugepages_nodes_with_cpus(root);
    }
    if (result.size() == nodes.size()) {
        result.clear();
    }
    return result;
}

size_t ggml_hugepages_thp_size(const char * root, bool * enabled) {
    const std::string dir = std::string(root) + "/sys/kernel/mm/transparent_hugepage";
    *enabled = ggml_hugepages_read_text(dir + "/enabled").find("[never]") == std::string::npos;
    uint64_t size = 0;
    return ggml_hugepages_read_u64(dir + "/hpage_pmd_size", &size) ? size : 0;
}

// a line such as "MemAvailable:   1234 kB", in bytes
static uint64_t read_line(const std::string & path, const char * name) {
    std::istringstream in(ggml_hugepages_read_text(path));
    std::string line;
    while (std::getline(in, line)) {
        if (line.compare(0, strlen(name), name) == 0 && line[strlen(name)] == ':') {
            return strtoull(line.c_str() + strlen(name) + 1, nullptr, 10)*GGML_HUGEPAGES_KIB;
        }
    }
    return 0;
}

static uint64_t read_meminfo(const char * root, const char * name) {
    return read_line(std::string(root) + "/proc/meminfo", name);
}

uint64_t ggml_hugepages_mem_available(const char * root) {
    return read_meminfo(root, "MemAvailable");
}

uint64_t ggml_hugepages_swap_free(const char * root) {
    return read_meminfo(root, "SwapFree");
}

uint64_t ggml_hugepages_mem_anonymous() {
    return read_line("/proc/self/status", "RssAnon");
}

uint64_t ggml_hugepages_default_size(const char * root) {
    return read_meminfo(root, "Hugepagesize");
}

std::string ggml_hugepages_overcommit(const char * root) {
    uint64_t mode = 0;
    if (!ggml_hugepages_read_u64(std::string(root) + "/proc/sys/vm/overcommit_memory", &mode) || mode != 2) {
        return "";
    }
    char buf[128];
    snprintf(buf, sizeof(buf), "vm.overcommit_memory is 2, CommitLimit %" PRIu64 " MiB, Committed_AS %" PRIu64 " MiB",
        read_meminfo(root, "CommitLimit")/GGML_HUGEPAGES_MIB, read_meminfo(root, "Committed_AS")/GGML_HUGEPAGES_MIB);
    return buf;
}

std::vector<ggml_hugepages_mount> ggml_hugepages_mounts(const char * root) {
    std::vector<ggml_hugepages_mount> result;
    std::istringstream lines(ggml_hugepages_read_text(std::string(root) + "/proc/self/mountinfo"));
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

#endif // __linux__
