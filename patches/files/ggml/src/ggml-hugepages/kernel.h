#pragma once

// files of /sys and /proc. root: prefix of both, "" for this machine

#include "ggml-hugepages.h"

#include <cstdint>
#include <string>
#include <vector>

// empty if the file cannot be read
std::string ggml_hugepages_read_text(const std::string & path);

// false if the file is missing or does not start with a number
bool ggml_hugepages_read_u64(const std::string & path, uint64_t * value);

// The numbers in the names of a folder's entries, ascending, e.g. 0 and 1 for node0 and node1. Sets errno, to 0 if the folder was read.
std::vector<size_t> ggml_hugepages_numbered_entries(const std::string & path, const char * fmt);

// the nodes that a placement binds to, empty for all
std::vector<int> ggml_hugepages_placement_nodes(const char * root, ggml_hugepages_placement placement);

// the nodes with a CPU that the process may use; if this is unknown, with any CPU
std::vector<int> ggml_hugepages_nodes_with_cpus(const char * root);

// every node of the machine
std::vector<int> ggml_hugepages_all_nodes(const char * root);

// the folder of a node in /sys
std::string ggml_hugepages_node_dir(const char * root, int node);

// bytes of a THP, 0 if the kernel has none; enabled: false if THP is off
size_t ggml_hugepages_thp_size(const char * root, bool * enabled);

// MemAvailable in bytes
uint64_t ggml_hugepages_mem_available(const char * root);

// SwapFree in bytes
uint64_t ggml_hugepages_swap_free(const char * root);

// anonymous memory of this process, in bytes, without huge pages of a pool
uint64_t ggml_hugepages_mem_anonymous();

// bytes of the default page size
uint64_t ggml_hugepages_default_size(const char * root);

// "CommitLimit ..., Committed_AS ..." if vm.overcommit_memory is 2, else empty
std::string ggml_hugepages_overcommit(const char * root);

struct ggml_hugepages_mount {
    std::string device; // major:minor
    std::string fs_root;
    std::string path;
    std::string type;
    std::string options; // of the file system, with a comma before and after each
};

// all lines of /proc/self/mountinfo
std::vector<ggml_hugepages_mount> ggml_hugepages_mounts(const char * root);
