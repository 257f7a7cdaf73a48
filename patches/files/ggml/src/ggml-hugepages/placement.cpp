// Placement of weights by rows.
//
//   rows of a matrix   |--- node 0: threads 0 to n/2 ---|--- node 1: threads n/2 to n ---|
//   pages              [  0  ][  0  ][  0  ][  0  ][ 0|1 ][  1  ][  1  ][  1  ][  1  ]
//
// A page on the border goes to the node that reads more of it. The policy of the populating thread places a page. A policy for each run of
// pages (mbind) would split the mapping, and the number of mappings is limited (vm.max_map_count).

#ifdef __linux__

#include "placement.h"
#include "kernel.h"
#include "syscalls.h"
#include "ggml-impl.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>

#include <sys/syscall.h>

// The nodes that ggml-cpu.c knows: GGML_NUMA_MAX_NODES, up to the first missing number.
static int n_known_nodes(const char * root) {
    const auto all = ggml_hugepages_all_nodes(root);
    int n = 0;
    while (n < GGML_HUGEPAGES_MAX_NODES && n < (int) all.size() && all[n] == n) {
        n++;
    }
    return n;
}

std::vector<int> ggml_hugepages_thread_nodes(const char * root) {
    std::vector<int> result;
    const int n_known = n_known_nodes(root);
    if (n_known < 2 && ggml_hugepages_all_nodes(root).size() > 1) {
        return result; // ggml-cpu.c pins no thread
    }
    for (const int node : ggml_hugepages_nodes_with_cpus(root)) {
        if (node < n_known) {
            result.push_back(node);
        }
    }
    return result;
}

// once, because ggml-cpu pins the threads that ask later
const std::vector<int> & ggml_hugepages_own_thread_nodes() {
    static const std::vector<int> nodes = ggml_hugepages_thread_nodes("");
    return nodes;
}

std::vector<int> ggml_hugepages_nodes_of_rows(const char * root, ggml_hugepages_placement placement) {
    if (placement != GGML_HUGEPAGES_PLACEMENT_ROWS) {
        return {};
    }
    return root[0] == '\0' ? ggml_hugepages_own_thread_nodes() : ggml_hugepages_thread_nodes(root);
}

static std::atomic<bool> g_deals_threads{false};

void ggml_hugepages_deal_threads() {
    g_deals_threads = true;
}

int ggml_hugepages_node_of_thread(int ith, int nth, int other) noexcept {
    if (!g_deals_threads || ggml_hugepages_own_thread_nodes().empty()) {
        return other;
    }
    return ggml_hugepages_own_thread_nodes()[(size_t) ith*ggml_hugepages_own_thread_nodes().size()/nth];
}

// Whole groups of repack.cpp move a border by less than a group.
size_t ggml_hugepages_first_row(size_t n_rows, size_t node, size_t n_nodes, size_t n_threads, bool is_exact) {
    const size_t thread = (node*n_threads + n_nodes - 1)/n_nodes;
    return is_exact ? n_rows*thread/n_threads : std::min(n_rows, thread*((n_rows + n_threads - 1)/n_threads));
}

std::vector<uint64_t> ggml_hugepages_read_bytes(const ggml_hugepages_image & image, size_t first, size_t last, size_t n_nodes) {
    std::vector<uint64_t> result(n_nodes);
    const size_t n_threads = image.params.n_compute_threads > 0 ? image.params.n_compute_threads : n_nodes;
    const auto end_of = [](const ggml_hugepages_matrices & m) { return m.first + m.n*m.n_rows*m.row_size; };
    const auto overlap = [](size_t a_first, size_t a_last, size_t b_first, size_t b_last) {
        const size_t begin = std::max(a_first, b_first);
        const size_t end   = std::min(a_last,  b_last);
        return end > begin ? end - begin : 0;
    };
    auto it = std::partition_point(image.matrices.begin(), image.matrices.end(), [&](const auto & m) { return end_of(m) <= first; });
    for (; it != image.matrices.end() && it->first < last; ++it) {
        const size_t size = it->n_rows*it->row_size; // of one matrix
        const size_t from = std::max(first, it->first);
        const size_t to   = std::min(last, end_of(*it));
        if (it->node_rows[0] > 0) {
            size_t at = it->first;
            for (size_t node = 0; node < n_nodes; node++) {
                const size_t n_bytes = it->n*it->node_rows[node]*it->row_size;
                result[node] += overlap(from, to, at, at + n_bytes);
                at += n_bytes;
            }
            continue;
        }
        const bool is_exact = image.kind == GGML_HUGEPAGES_KIND_REPACKED && it->n > 1;
        for (size_t at = it->first + ggml_hugepages_align_down(from - it->first, size); at < to; at += size) {
            for (size_t node = 0; node < n_nodes; node++) {
                const auto border = [&](size_t n) { return at + it->row_size*ggml_hugepages_first_row(it->n_rows, n, n_nodes, n_threads, is_exact); };
                result[node] += overlap(from, to, border(node), border(node + 1));
            }
        }
    }
    return result;
}

size_t ggml_hugepages_page_node(const ggml_hugepages_image & image, size_t first, size_t last, size_t n_nodes) {
    const auto bytes = ggml_hugepages_read_bytes(image, first, last, n_nodes);
    const auto most  = *std::max_element(bytes.begin(), bytes.end());
    // Nodes that read about as much take turns. Pages of small experts would else pile up on the node that reads a little more of each.
    std::vector<size_t> equal;
    for (size_t node = 0; node < n_nodes; node++) {
        if (bytes[node] + (last - first)/16 >= most) {
            equal.push_back(node);
        }
    }
    return equal[first/(last - first) % equal.size()];
}

bool ggml_hugepages_is_placed(const ggml_hugepages_image & image) {
    return image.params.placement == GGML_HUGEPAGES_PLACEMENT_ROWS && ggml_hugepages_is_of_weights(image.kind) && !ggml_hugepages_own_thread_nodes().empty();
}

// linux/mempolicy.h, which some libcs lack
static const int    MPOL_PREFERRED  = 1;
static const int    MPOL_INTERLEAVE = 3;
static const size_t POLICY_BITS     = 1024; // a kernel with more nodes refuses the call

ggml_hugepages_thread_policy::ggml_hugepages_thread_policy(bool interleave, const std::vector<int> & nodes) {
    static_assert(sizeof(mask) == POLICY_BITS/8, "one bit for each node");
    const char * call   = "get_mempolicy";
    int          before = 0;
    if (ggml_hugepages_call(SYS_get_mempolicy, (long) &before, (long) mask, POLICY_BITS) == 0) {
        unsigned long wanted[sizeof(mask)/sizeof(mask[0])] = {};
        for (const int node : nodes) {
            wanted[node/(8*sizeof(mask[0]))] |= 1ul << node % (8*sizeof(mask[0]));
        }
        call = "set_mempolicy";
        bool ok = ggml_hugepages_call(SYS_set_mempolicy, interleave ? MPOL_INTERLEAVE : MPOL_PREFERRED, (long) wanted, POLICY_BITS) == 0;
        if (!ok && errno == EINVAL && !interleave) {
            // these nodes have CPUs, but no memory that this process may use
            for (const int node : ggml_hugepages_all_nodes("")) {
                wanted[node/(8*sizeof(mask[0]))] |= 1ul << node % (8*sizeof(mask[0]));
            }
            ok = ggml_hugepages_call(SYS_set_mempolicy, MPOL_INTERLEAVE, (long) wanted, POLICY_BITS) == 0;
        }
        if (ok) {
            mode = before;
            return;
        }
    }
    // the default seccomp profiles of containers forbid both
    static std::atomic<bool> is_told{false};
    if (!is_told.exchange(true)) {
        GGML_LOG_WARN("%s: cannot choose the nodes of huge pages (%s: %s), the kernel chooses them\n", __func__, call, strerror(errno));
    }
}

ggml_hugepages_thread_policy::~ggml_hugepages_thread_policy() {
    const int err = errno; // of the caller
    if (mode != -1) {
        ggml_hugepages_call(SYS_set_mempolicy, mode, (long) mask, POLICY_BITS);
    }
    errno = err;
}

bool ggml_hugepages_populate_placed(const ggml_hugepages_image & image, size_t first, size_t last, size_t page_size) {
    if (!ggml_hugepages_is_placed(image)) {
        return ggml_hugepages_populate(image.addr + first, last - first);
    }
    const auto & nodes = ggml_hugepages_own_thread_nodes();
    const auto node_at = [&](size_t at) { return ggml_hugepages_page_node(image, at, at + page_size, nodes.size()); };
    while (first < last) {
        const size_t node = node_at(first);
        size_t end = first + page_size;
        while (end < last && node_at(end) == node) {
            end += page_size;
        }
        // if this node has no page, the kernel takes the nearest one
        const ggml_hugepages_thread_policy policy(false, { nodes[node] });
        if (!ggml_hugepages_populate(image.addr + first, end - first)) {
            return false;
        }
        first = end;
    }
    return true;
}

void ggml_hugepages_add_locality(const ggml_hugepages_image & image, const ggml_hugepages_run & run, uint64_t * local, uint64_t * remote) {
    if (!ggml_hugepages_is_placed(image) || image.matrices.empty()) {
        return;
    }
    const auto & nodes = ggml_hugepages_own_thread_nodes();
    std::vector<void *> pages; // a buffer in a shared range may begin and end inside a page
    const size_t begin = ggml_hugepages_align_down((size_t) image.addr + run.first, run.page_size);
    for (size_t page = begin; page < (size_t) image.addr + run.last; page += run.page_size) {
        pages.push_back((void *) page);
    }
    // move_pages(2): without target nodes it moves nothing, and returns the node of each page or a negative errno
    std::vector<int> status(pages.size(), -1);
    if (ggml_hugepages_call(SYS_move_pages, 0, (long) pages.size(), (long) pages.data(), 0, (long) status.data(), 0) != 0) {
        return;
    }
    for (size_t i = 0; i < pages.size(); i++) {
        const size_t page  = (size_t) pages[i];
        const size_t first = std::max((size_t) image.addr + run.first, page)                - (size_t) image.addr;
        const size_t last  = std::min((size_t) image.addr + run.last, page + run.page_size) - (size_t) image.addr;
        const auto   bytes = ggml_hugepages_read_bytes(image, first, last, nodes.size());
        for (size_t node = 0; node < nodes.size() && status[i] >= 0; node++) {
            *(nodes[node] == status[i] ? local : remote) += bytes[node];
        }
    }
}

#endif // __linux__
