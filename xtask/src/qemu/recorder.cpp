// Records which rows of the weights each thread reads, and whether they are on the node of its CPU.
//
// The linker replaces each call of the functions below by a call of the functions here (--wrap), so upstream's code stays as it is. They
// multiply rows when a token is generated. LLAMA_READS names a file that always contains the bytes of all rows read so far, on the node of
// their reader and on other nodes: "LOCAL REMOTE". A row counts once for each thread that reads it.

#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <fcntl.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>

namespace {

const uintptr_t PAGE_SIZE = 2u << 20;

struct reads {
    std::mutex mutex;
    // End of each known mapping, and whether it contains weights, by its start.
    std::map<uintptr_t, std::pair<uintptr_t, bool>> mappings;
    uint64_t local  = 0;
    uint64_t remote = 0;
    int      file   = -1;

    reads() {
        if (const char * path = std::getenv("LLAMA_READS")) {
            file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
        }
    }

    bool is_weights(uintptr_t address) {
        const auto known = [&]() {
            auto it = mappings.upper_bound(address);
            return it == mappings.begin() || std::prev(it)->second.first <= address ? mappings.end() : std::prev(it);
        };
        if (known() == mappings.end()) {
            mappings.clear();
            std::ifstream maps("/proc/self/maps");
            for (std::string line; std::getline(maps, line);) {
                char *          end   = nullptr;
                const uintptr_t first = std::strtoull(line.c_str(), &end, 16);
                const uintptr_t last  = std::strtoull(end + 1, nullptr, 16);
                const bool      is    = line.find("/memfd:llama-weights") != line.npos || line.find("/memfd:llama-repacked") != line.npos;
                mappings[first] = { last, is };
            }
        }
        const auto it = known();
        return it != mappings.end() && it->second.second;
    }

    // A row can cross the border of two pages.
    void add(uintptr_t address, uintptr_t bytes, unsigned node) {
        const std::lock_guard<std::mutex> lock(mutex);
        if (!is_weights(address)) {
            return;
        }
        for (const uintptr_t end = address + bytes; address < end;) {
            const uintptr_t page = address / PAGE_SIZE * PAGE_SIZE;
            const uintptr_t next = page + PAGE_SIZE < end ? page + PAGE_SIZE : end;
            void * const    one  = reinterpret_cast<void *>(page);
            int             on   = -1;
            // Without target nodes, the call only asks.
            syscall(SYS_move_pages, 0, 1ul, &one, nullptr, &on, 0);
            (on == int(node) ? local : remote) += next - address;
            address = next;
        }
        char text[64];
        const int n = std::snprintf(text, sizeof text, "%020llu %020llu\n", (unsigned long long) local, (unsigned long long) remote);
        if (pwrite(file, text, n, 0) != n) {
            std::perror("LLAMA_READS");
            std::abort();
        }
    }
};

void read_rows(const void * rows, size_t bytes) {
    static reads all;
    if (all.file < 0) {
        return;
    }
    thread_local std::set<std::pair<const void *, size_t>> known;
    if (known.emplace(rows, bytes).second) {
        unsigned cpu = 0, node = 0;
        getcpu(&cpu, &node);
        all.add(reinterpret_cast<uintptr_t>(rows), bytes, node);
    }
}

}

// name, type of rows, values in a block, bytes of a block
#define DOT(name, type, values, block)                                                                                                       \
    extern "C" void __real_##name(int n, float * s, size_t bs, const type * x, size_t bx, const type * y, size_t by, int nrc);              \
    extern "C" void __wrap_##name(int n, float * s, size_t bs, const type * x, size_t bx, const type * y, size_t by, int nrc) {             \
        read_rows(x, size_t(n)/(values)*(block));                                                                                            \
        __real_##name(n, s, bs, x, bx, y, by, nrc);                                                                                          \
    }

#define ROWS(name, values, block)                                                                                                            \
    extern "C" void __real_##name(int n, float * s, size_t bs, const void * x, const void * y, int nr, int nc);                              \
    extern "C" void __wrap_##name(int n, float * s, size_t bs, const void * x, const void * y, int nr, int nc) {                             \
        read_rows(x, size_t(n)/(values)*(block)*size_t(nc));                                                                                 \
        __real_##name(n, s, bs, x, y, nr, nc);                                                                                               \
    }

// The types of the models of `cases.rs`, in the layouts of an emulated CPU. If one is missing, a dense model has fewer recorded bytes than
// its report, and its case fails.
DOT(ggml_vec_dot_f32,       float,  1,  4)
DOT(ggml_vec_dot_q8_0_q8_0, void,  32, 34)
DOT(ggml_vec_dot_q4_0_q8_0, void,  32, 18)
ROWS(ggml_gemv_q4_0_8x8_q8_0,      32, 18)
ROWS(ggml_gemm_q4_0_8x8_q8_0,      32, 18)
