// Compares ggml_repack_rows() with the functions of repack.cpp, byte for byte; --bench measures both.
//
//     repack-rows-test                      every layout, awkward shapes, exits 1 at the first difference
//     repack-rows-test --bench [layout]     8 MiB pieces of 512 MiB, upstream and kernel in turn; --threads N, --rounds N, --mib N, --ne0 N,
//                                           --window KIB (all pieces lie in the first so many KiB: the kernels without the memory)

#include "repack-rows.h"

#include "repack.cpp"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <sys/mman.h>
#include <time.h>

struct layout {
    const char *  name;
    ggml_type     type;
    int           inter_size;
    int           nb_cols;
    int           qk;
    size_t        block_size;
    std::function<int(ggml_tensor *, const void *, size_t)> upstream;
};

#define LAYOUT(TYPE, name, qk, U, N, fn) \
    { #name "_" #N "x" #U, TYPE, U, N, qk, sizeof(block_##name), [](ggml_tensor * t, const void * p, size_t n) { return fn(t, U, p, n); } }

static const std::vector<layout> layouts = {
    LAYOUT(GGML_TYPE_Q4_0,   q4_0,   QK4_0,    4,  4, repack_q4_0_to_q4_0_4_bl),
    LAYOUT(GGML_TYPE_Q4_0,   q4_0,   QK4_0,    8,  4, repack_q4_0_to_q4_0_4_bl),
    LAYOUT(GGML_TYPE_Q4_0,   q4_0,   QK4_0,    8,  8, repack_q4_0_to_q4_0_8_bl),
    LAYOUT(GGML_TYPE_Q4_0,   q4_0,   QK4_0,    1, 16, repack_q4_0_to_q4_0_16_bl),
    LAYOUT(GGML_TYPE_Q4_K,   q4_K,   QK_K,     4,  8, repack_q4_K_to_q4_K_8_bl),
    LAYOUT(GGML_TYPE_Q4_K,   q4_K,   QK_K,     8,  8, repack_q4_K_to_q4_K_8_bl),
    LAYOUT(GGML_TYPE_Q4_K,   q4_K,   QK_K,     1, 16, repack_q4_K_to_q4_K_16_bl),
    LAYOUT(GGML_TYPE_Q5_K,   q5_K,   QK_K,     4,  8, repack_q5_K_to_q5_K_8_bl),
    LAYOUT(GGML_TYPE_Q5_K,   q5_K,   QK_K,     8,  8, repack_q5_K_to_q5_K_8_bl),
    LAYOUT(GGML_TYPE_Q6_K,   q6_K,   QK_K,     4,  8, repack_q6_K_to_q6_K_8_bl),
    LAYOUT(GGML_TYPE_Q6_K,   q6_K,   QK_K,     8,  8, repack_q6_K_to_q6_K_8_bl),
    LAYOUT(GGML_TYPE_Q2_K,   q2_K,   QK_K,     8,  8, repack_q2_K_to_q2_K_8_bl),
    LAYOUT(GGML_TYPE_Q2_K,   q2_K,   QK_K,     1, 16, repack_q2_K_to_q2_K_16_bl),
    LAYOUT(GGML_TYPE_IQ4_NL, iq4_nl, QK4_NL,   4,  4, repack_iq4_nl_to_iq4_nl_4_bl),
    LAYOUT(GGML_TYPE_IQ4_NL, iq4_nl, QK4_NL,   8,  8, repack_iq4_nl_to_iq4_nl_8_bl),
    LAYOUT(GGML_TYPE_IQ4_NL, iq4_nl, QK4_NL,   1, 16, repack_iq4_nl_to_iq4_nl_16_bl),
    LAYOUT(GGML_TYPE_MXFP4,  mxfp4,  QK_MXFP4, 4,  4, repack_mxfp4_to_mxfp4_4_bl),
    LAYOUT(GGML_TYPE_MXFP4,  mxfp4,  QK_MXFP4, 8,  8, repack_mxfp4_to_mxfp4_8_bl),
    LAYOUT(GGML_TYPE_Q8_0,   q8_0,   QK8_0,    4,  4, repack_q8_0_to_q8_0_4_bl),
    LAYOUT(GGML_TYPE_Q8_0,   q8_0,   QK8_0,    8,  4, repack_q8_0_to_q8_0_4_bl),
    LAYOUT(GGML_TYPE_Q8_0,   q8_0,   QK8_0,    1, 16, repack_q8_0_to_q8_0_16_bl),
};

static ggml_tensor tensor(const layout & l, int64_t nblocks, int64_t ne1, int64_t ne2, void * data) {
    ggml_tensor t = {};
    t.type  = l.type;
    t.ne[0] = nblocks * l.qk;
    t.ne[1] = ne1;
    t.ne[2] = ne2;
    t.ne[3] = 1;
    t.nb[0] = l.block_size;
    t.nb[1] = l.block_size * nblocks;
    t.nb[2] = t.nb[1] * ne1;
    t.nb[3] = t.nb[2] * ne2;
    t.data  = data;
    return t;
}

static constexpr size_t GUARD = 128;

static uint8_t * align_64(std::vector<uint8_t> & v) {
    return v.data() + (64 - (uintptr_t) v.data() % 64) % 64;
}

// A shape, filled with random bytes, or with `fill` if it is not negative. The source lies at its buffer's very end, so that a sanitizer sees a read too far.
static bool same(const layout & l, int64_t nblocks, int64_t ne1, int64_t ne2, size_t src_shift, size_t dst_shift, int fill, uint32_t seed) {
    const size_t size = nblocks * ne1 * ne2 * l.block_size;
    std::mt19937 random(seed);

    std::vector<uint64_t> aligned(size / 8 + 1);
    uint8_t * bytes = (uint8_t *) aligned.data();
    for (uint64_t & x : aligned) {
        x = (uint64_t) random() << 32 | random();
    }
    if (fill >= 0) {
        memset(bytes, fill, size);
    }
    uint8_t * src = (uint8_t *) malloc(src_shift + size);
    memcpy(src + src_shift, bytes, size);

    std::vector<uint8_t> want_buf(size + 2 * GUARD + 128, 0xa5), got_buf(size + 2 * GUARD + 128, 0xa5);
    uint8_t * want = align_64(want_buf) + GUARD;
    uint8_t * got  = align_64(got_buf) + GUARD;

    // upstream needs its alignment, the kernel must not
    ggml_tensor up = tensor(l, nblocks, ne1, ne2, want);
    if (l.upstream(&up, bytes, size) != 0) {
        printf("%s: upstream refuses the shape %d x %d x %d\n", l.name, (int) up.ne[0], (int) ne1, (int) ne2);
        exit(1);
    }
    ggml_tensor t = tensor(l, nblocks, ne1, ne2, got + dst_shift);
    const bool done = ggml_repack_rows(&t, l.inter_size, l.nb_cols, src + src_shift, size);

    const char * what = nullptr;
    size_t at = 0;
    if (!done) {
        what = "refused";
    }
    for (at = 0; !what && at < size; at++) {
        if (got[dst_shift + at] != want[at]) {
            what = "differs";
            break;
        }
    }
    for (size_t i = 0; !what && i < GUARD; i++) {
        if (got[(ptrdiff_t) (dst_shift - 1 - i)] != 0xa5 || got[dst_shift + size + i] != 0xa5) {
            what = "writes outside";
        }
    }
    if (what) {
        printf("%s: %s, shape %d x %d x %d, source + %d, destination + %d, fill %d, seed %u, offset %zu of %zu (byte %zu of its block)\n", l.name, what,
               (int) t.ne[0], (int) ne1, (int) ne2, (int) src_shift, (int) dst_shift, fill, seed, at, size, at % (l.block_size * l.nb_cols));
    }
    free(src);
    return !what;
}

static bool refuses(const layout & l) {
    std::vector<uint8_t> src(l.block_size * l.nb_cols * 4), dst(src.size(), 0xa5);
    ggml_tensor whole = tensor(l, 2, l.nb_cols, 1, dst.data());
    ggml_tensor short_of_rows = tensor(l, 1, l.nb_cols + 1, 1, dst.data());
    const size_t size = 2 * l.nb_cols * l.block_size;
    const bool refused = !ggml_repack_rows(&whole, l.inter_size, l.nb_cols, src.data(), size - l.block_size) &&
                         !ggml_repack_rows(&whole, l.inter_size, 3, src.data(), size) &&
                         !ggml_repack_rows(&whole, 16, l.nb_cols, src.data(), size) &&
                         !ggml_repack_rows(&short_of_rows, l.inter_size, l.nb_cols, src.data(), (l.nb_cols + 1) * l.block_size);
    for (uint8_t b : dst) {
        if (!refused || b != 0xa5) {
            printf("%s: accepts a wrong size, layout or row count\n", l.name);
            return false;
        }
    }
    return true;
}

static int compare(bool brief) {
    int n = 0;
    for (const layout & l : layouts) {
        if (!refuses(l)) {
            return 1;
        }
        uint32_t seed = 1;
        for (int64_t nblocks : { 1, 2, 3, 4, 5, 7, 8, 16, 17, 33, 64, 129 }) {
            for (int64_t groups : { 1, 2, 3, 5, 8 }) {
                if (brief && nblocks * groups > 40) {
                    continue;
                }
                for (size_t src_shift : { 0, 1, 2, 4, 6, 8, 18, 32, 62 }) {
                    // pieces begin at any whole group, so at any multiple of 4 bytes
                    for (size_t dst_shift : { 0, 4, 8, 16, 36, 60 }) {
                        for (int fill : { -1, 0x00, 0xff }) {
                            if (fill >= 0 && (src_shift || dst_shift % 8)) {
                                continue;
                            }
                            for (int64_t ne2 : { 1, 2 }) {
                                if (!same(l, nblocks, groups * l.nb_cols, ne2, src_shift, dst_shift, fill, seed++)) {
                                    return 1;
                                }
                                n++;
                            }
                        }
                    }
                }
            }
        }
        printf("%-12s same\n", l.name);
    }
    printf("%d comparisons, no difference\n", n);
    return 0;
}

static void * map(size_t size) {
    void * p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    GGML_ASSERT(p != MAP_FAILED);
    return p;
}

static double cpu_seconds() {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

// Seconds of processor time a thread: other jobs on the machine would spoil the time of the wall clock.
static double run(int threads, int64_t pieces, const std::function<void(int64_t)> & piece) {
    const double begin = cpu_seconds();
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++) {
        pool.emplace_back([&, i] { for (int64_t p = i; p < pieces; p += threads) { piece(p); } });
    }
    for (int64_t p = 0; p < pieces; p += threads) {
        piece(p);
    }
    for (auto & t : pool) {
        t.join();
    }
    return (cpu_seconds() - begin) / threads;
}

static int bench(const char * only, int threads, int rounds, size_t mib, size_t window, int64_t ne0) {
    const size_t total = mib << 20, piece = std::min<size_t>(8 << 20, window);
    uint8_t * src = (uint8_t *) map(total);
    uint8_t * dst = (uint8_t *) map(total);
    madvise(dst, total, MADV_HUGEPAGE);
    std::mt19937_64 random(1);
    for (size_t i = 0; i < total / 8; i++) {
        ((uint64_t *) src)[i] = random();
    }
    memset(dst, 1, total);

    printf("%-12s %29s   %29s   %s\n", "", "upstream GB/s", "kernel GB/s", "ns/block");
    printf("%-12s %9s %9s %9s   %9s %9s %9s   %8s %8s %7s\n", "layout", "min", "median", "max", "min", "median", "max", "upstream", "kernel", "ratio");
    auto report = [&](const char * name, std::vector<double> & a, std::vector<double> & b, size_t bytes, size_t block) {
        std::sort(a.begin(), a.end());
        std::sort(b.begin(), b.end());
        auto gbs = [&](double s) { return bytes / s / 1e9; };
        auto ns  = [&](double s) { return s * 1e9 / (bytes / block); };
        printf("%-12s %9.2f %9.2f %9.2f   %9.2f %9.2f %9.2f   %8.2f %8.2f %7.2f\n", name,
               gbs(a.back()), gbs(a[a.size() / 2]), gbs(a[0]), gbs(b.back()), gbs(b[b.size() / 2]), gbs(b[0]), ns(a[0]), ns(b[0]), a[0] / b[0]);
        fflush(stdout);
    };
    if (!only || !strcmp(only, "memcpy")) {
        std::vector<double> a, b;
        for (int r = 0; r < rounds; r++) {
            a.push_back(run(threads, total / piece, [&](int64_t p) { memcpy(dst + p * piece, src + p * piece, piece); }));
            b.push_back(run(threads, total / piece, [&](int64_t p) {
                for (size_t i = 0; i < piece; i += 32768) { memcpy(dst + p * piece + i, src + p * piece + i, 32768); } }));
        }
        report("memcpy 8M/32K", a, b, total, 64);
    }
    for (const layout & l : layouts) {
        if (only && strcmp(l.name, only)) {
            continue;
        }
        const int64_t nblocks = ne0 / l.qk;
        const size_t group = nblocks * l.block_size * l.nb_cols;
        const int64_t groups = std::max<int64_t>(1, piece / group);
        const size_t used = groups * group;
        const int64_t pieces = total / used, wrap = std::max<size_t>(1, std::min(total, window) / used);
        std::vector<double> a, b;
        for (int r = 0; r < rounds; r++) {
            auto one = [&](bool ours) {
                auto s = run(threads, pieces, [&](int64_t p) {
                    ggml_tensor t = tensor(l, nblocks, groups * l.nb_cols, 1, dst + p % wrap * used);
                    if (ours) {
                        GGML_ASSERT(ggml_repack_rows(&t, l.inter_size, l.nb_cols, src + p % wrap * used, used));
                    } else {
                        l.upstream(&t, src + p % wrap * used, used);
                    }
                });
                (ours ? b : a).push_back(s);
            };
            one(r % 2);
            one(!(r % 2));
        }
        report(l.name, a, b, pieces * used, l.block_size);
    }
    return 0;
}

int main(int argc, char ** argv) {
    const char * only = nullptr;
    bool measure = false, brief = false;
    int threads = 1, rounds = 5, mib = 512;
    int64_t ne0 = 4096;
    size_t window = SIZE_MAX;
    for (int i = 1; i < argc; i++) {
        const std::string arg = argv[i];
        auto number = [&] { return i + 1 < argc ? atoi(argv[++i]) : 0; };
        if (arg == "--bench") {
            measure = true;
        } else if (arg == "--brief") {
            brief = true;
        } else if (arg == "--threads") {
            threads = number();
        } else if (arg == "--rounds") {
            rounds = number();
        } else if (arg == "--mib") {
            mib = number();
        } else if (arg == "--window") {
            window = (size_t) number() << 10;
        } else if (arg == "--ne0") {
            ne0 = number();
        } else {
            only = argv[i];
        }
    }
    return measure ? bench(only, threads, rounds, mib, window, ne0) : compare(brief);
}
