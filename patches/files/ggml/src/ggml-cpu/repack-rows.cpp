// The layouts of repack.cpp at the speed of memory: reads the rows in place, interleaves them in registers, writes past the caches.

#include "repack-rows.h"

#include "repack.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// Without vector registers the compiler would split each vector into bytes. GCC knows the builtin since version 12.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && (defined(__SSE2__) || defined(__ARM_NEON) || defined(__VEC__) || defined(__riscv_vector))
#define GGML_REPACK_VECTORS
#endif
#endif

namespace {

#if defined(GGML_REPACK_VECTORS)

constexpr int VEC = 16;

typedef uint8_t  vec   __attribute__((vector_size(VEC)));
typedef uint16_t vec16 __attribute__((vector_size(VEC)));
typedef uint32_t vec32 __attribute__((vector_size(VEC)));
typedef uint64_t vec64 __attribute__((vector_size(VEC)));

// Alternates the units of a and b (punpckl and punpckh, zip1 and zip2).
template <int UNIT> inline void zip(vec a, vec b, vec & lo, vec & hi) {
    if constexpr (UNIT == 1) {
        lo = __builtin_shufflevector(a, b, 0, 16, 1, 17,  2, 18,  3, 19,  4, 20,  5, 21,  6, 22,  7, 23);
        hi = __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    } else if constexpr (UNIT == 2) {
        lo = (vec) __builtin_shufflevector((vec16) a, (vec16) b, 0,  8, 1,  9, 2, 10, 3, 11);
        hi = (vec) __builtin_shufflevector((vec16) a, (vec16) b, 4, 12, 5, 13, 6, 14, 7, 15);
    } else if constexpr (UNIT == 4) {
        lo = (vec) __builtin_shufflevector((vec32) a, (vec32) b, 0, 4, 1, 5);
        hi = (vec) __builtin_shufflevector((vec32) a, (vec32) b, 2, 6, 3, 7);
    } else {
        lo = (vec) __builtin_shufflevector((vec64) a, (vec64) b, 0, 2);
        hi = (vec) __builtin_shufflevector((vec64) a, (vec64) b, 1, 3);
    }
}

// Interleaves ROWS vectors. A zip makes two neighbours one row of twice the unit; all lo halves come before all hi halves.
template <int ROWS, int UNIT> inline void store_interleaved(uint8_t * dst, const vec * v) {
    if constexpr (ROWS > 1 && UNIT < VEC) {
        vec lo[ROWS / 2], hi[ROWS / 2];
        #pragma GCC unroll 8
        for (int i = 0; i < ROWS / 2; i++) {
            zip<UNIT>(v[2 * i], v[2 * i + 1], lo[i], hi[i]);
        }
        store_interleaved<ROWS / 2, UNIT * 2>(dst, lo);
        store_interleaved<ROWS / 2, UNIT * 2>(dst + ROWS / 2 * VEC, hi);
    } else {
        #pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) {
            memcpy(dst + i * VEC, &v[i], VEC);
        }
    }
}

#endif // GGML_REPACK_VECTORS

// Interleaves SIZE bytes of each of ROWS rows in units of UNIT bytes, each byte xor flip. Returns the end of the output.
template <int ROWS, int UNIT, int SIZE, int FLIP = 0> inline uint8_t * interleave(uint8_t * dst, const uint8_t * src, size_t stride) {
#if defined(GGML_REPACK_VECTORS)
    if constexpr (SIZE % VEC == 0) {
        for (int offset = 0; offset < SIZE; offset += VEC, dst += ROWS * VEC) {
            vec v[ROWS];
            #pragma GCC unroll 16
            for (int row = 0; row < ROWS; row++) {
                memcpy(&v[row], src + row * stride + offset, VEC);
                v[row] ^= (uint8_t) FLIP;
            }
            store_interleaved<ROWS, UNIT>(dst, v);
        }
        return dst;
    }
#endif
    for (int offset = 0; offset < SIZE; offset += UNIT) {
        for (int row = 0; row < ROWS; row++, dst += UNIT) {
            uint8_t unit[UNIT];
            memcpy(unit, src + row * stride + offset, UNIT);
            for (uint8_t & byte : unit) {
                byte ^= FLIP;
            }
            memcpy(dst, unit, UNIT);
        }
    }
    return dst;
}

inline uint32_t load_32(const uint8_t * p) {
    uint32_t x;
    memcpy(&x, p, sizeof(x));
    return x;
}

inline void store_32(uint8_t * p, uint32_t x) {
    memcpy(p, &x, sizeof(x));
}

// The eight 6-bit scales and mins of Q4_K or Q5_K blocks, by sub-block; a word has a byte of four rows. No shift crosses a byte.
struct scales_and_mins {
    uint32_t s[8][2];
    uint32_t m[8][2];

    scales_and_mins(const uint8_t * src, size_t stride) {
        constexpr size_t d_size = offsetof(block_q4_K, scales);
        static_assert(d_size + K_SCALE_SIZE == 16 && offsetof(block_q5_K, scales) == d_size, "d, dmin and the scales fill a vector");

        uint8_t bytes[16][8];
        interleave<8, 1, 16>(bytes[0], src, stride);

        for (int i = 0; i < 4; i++) {
            for (int h = 0; h < 2; h++) {
                const uint32_t a = load_32(&bytes[d_size + i    ][4 * h]);
                const uint32_t b = load_32(&bytes[d_size + i + 4][4 * h]);
                const uint32_t c = load_32(&bytes[d_size + i + 8][4 * h]);
                s[i    ][h] = a & 0x3f3f3f3f;
                m[i    ][h] = b & 0x3f3f3f3f;
                s[i + 4][h] = (c        & 0x0f0f0f0f) | ((a >> 2) & 0x30303030);
                m[i + 4][h] = ((c >> 4) & 0x0f0f0f0f) | ((b >> 2) & 0x30303030);
            }
        }
    }
};

// A sub-block has 12 bytes: s and m of rows 0 to 3, with the high bits of rows 4 to 7, then the low bits of rows 4 to 7.
inline uint8_t * pack_scales_x8(uint8_t * dst, const uint8_t * src, size_t stride) {
    const scales_and_mins x(src, stride);
    for (int i = 0; i < 8; i++, dst += 12) {
        store_32(dst,     x.s[i][0] | ((x.s[i][1] & 0x30303030) << 2));
        store_32(dst + 4, x.m[i][0] | ((x.m[i][1] & 0x30303030) << 2));
        store_32(dst + 8, (x.s[i][1] & 0x0f0f0f0f) | ((x.m[i][1] & 0x0f0f0f0f) << 4));
    }
    return dst;
}

// A sub-block has 16 bytes with the low bits of s and m; then sub-blocks i and i + 4 have 16 bytes with their high bits.
inline uint8_t * pack_scales_x16(uint8_t * dst, const uint8_t * src, size_t stride) {
    for (int row = 0; row < 16; row += 8) {
        const scales_and_mins x(src + row * stride, stride);
        for (int h = 0; h < 2; h++) {
            uint8_t * low = dst + row + 4 * h, * high = low + 8 * 16;
            for (int i = 0; i < 8; i++) {
                store_32(low + i * 16, (x.s[i][h] & 0x0f0f0f0f) | ((x.m[i][h] & 0x0f0f0f0f) << 4));
            }
            for (int i = 0; i < 4; i++) {
                store_32(high + i * 16, ((x.s[i][h] >> 4) & 0x03030303) | ((x.m[i    ][h] >> 2) & 0x0c0c0c0c) |
                                        (x.s[i + 4][h] & 0x30303030)    | ((x.m[i + 4][h] & 0x30303030) << 2));
            }
        }
    }
    return dst + 12 * 16;
}

#define INTERLEAVE(field, unit) dst = interleave<ROWS, unit, sizeof(BLOCK::field)>(dst, src + offsetof(BLOCK, field), stride)

// Packs the block at src with those of the next ROWS - 1 rows, stride bytes apart. The fields are in the order of repack.h.
template <typename BLOCK, int UNIT, int ROWS> inline void pack_blocks(uint8_t * dst, const uint8_t * src, size_t stride) {
    if constexpr (std::is_same_v<BLOCK, block_q2_K>) {
        dst = interleave<ROWS, 2, 4>(dst, src + offsetof(BLOCK, GGML_COMMON_AGGR_S), stride); // d, dmin
        if constexpr (ROWS == 8) {
            INTERLEAVE(scales, 2);
        } else {
            uint8_t scales[sizeof(BLOCK::scales)][ROWS];
            interleave<ROWS, 1, sizeof(BLOCK::scales)>(scales[0], src + offsetof(BLOCK, scales), stride);
            for (int sub_block : { 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15 }) {
                memcpy(dst, scales[sub_block], ROWS);
                dst += ROWS;
            }
        }
        INTERLEAVE(qs, UNIT);
    } else if constexpr (std::is_same_v<BLOCK, block_q4_K> || std::is_same_v<BLOCK, block_q5_K>) {
        dst = interleave<ROWS, 2, 4>(dst, src + offsetof(BLOCK, GGML_COMMON_AGGR_S), stride); // d, dmin
        dst = (ROWS == 8 ? pack_scales_x8 : pack_scales_x16)(dst, src, stride);
        if constexpr (std::is_same_v<BLOCK, block_q5_K>) {
            INTERLEAVE(qh, UNIT);
        }
        INTERLEAVE(qs, UNIT);
    } else if constexpr (std::is_same_v<BLOCK, block_q6_K>) {
        INTERLEAVE(d, 2);
        INTERLEAVE(scales, 1);
        INTERLEAVE(ql, UNIT);
        INTERLEAVE(qh, UNIT);
    } else if constexpr (std::is_same_v<BLOCK, block_mxfp4>) {
        INTERLEAVE(e, 1);
        INTERLEAVE(qs, UNIT);
    } else {
        INTERLEAVE(d, 2);
        if constexpr (std::is_same_v<BLOCK, block_q4_0>) {
            // the kernels want signed nibbles
            interleave<ROWS, UNIT, sizeof(BLOCK::qs), 0x88>(dst, src + offsetof(BLOCK, qs), stride);
        } else {
            INTERLEAVE(qs, UNIT);
        }
    }
}

#undef INTERLEAVE

// packed_blocks: the destination, filled with one packed block of SIZE bytes after another.

#if defined(__SSE2__)

// A tile in L1 collects the blocks. Its whole lines are streamed to memory, so memory need not read the destination first.
template <size_t SIZE> class packed_blocks {
  public:
    explicit packed_blocks(void * dst) : line((uint8_t *) dst - (uintptr_t) dst % LINE), used((uintptr_t) dst % LINE), skip(used) {}

    uint8_t * next() {
        if (used >= FULL) {
            flush();
        }
        used += SIZE;
        return tile + used - SIZE;
    }

    void finish() {
        flush();
        memcpy(line + skip, tile + skip, used - skip);
        _mm_sfence();
    }

  private:
    static constexpr size_t LINE = 64, FULL = 2048;

    uint8_t * line;  // where tile[0] belongs
    size_t    used;
    size_t    skip;  // bytes of the first line that are not ours: another thread may write them

    // in one page: some blocks are no multiple of 16 bytes, and a store across two pages takes hundreds of cycles
    alignas(4096) uint8_t tile[FULL + SIZE + LINE];

    void flush() {
        size_t i = 0;
        if (skip > 0 && used >= LINE) {
            memcpy(line + skip, tile + skip, LINE - skip);
            skip = 0;
            i = LINE;
        }
        for (; i + LINE <= used; i += LINE) {
            for (size_t k = i; k < i + LINE; k += sizeof(__m128i)) {
                _mm_stream_si128((__m128i *) (line + k), _mm_load_si128((const __m128i *) (tile + k)));
            }
        }
        memmove(tile, tile + i, LINE);
        line += i;
        used -= i;
    }
};

#else

template <size_t SIZE> class packed_blocks {
  public:
    explicit packed_blocks(void * dst) : dst((uint8_t *) dst) {}

    uint8_t * next() {
        dst += SIZE;
        return dst - SIZE;
    }

    void finish() {}

  private:
    uint8_t * dst;
};

#endif // __SSE2__

template <typename BLOCK, int QK, int UNIT, int ROWS> bool repack_rows(struct ggml_tensor * t, const void * data, size_t data_size) {
    constexpr size_t packed_size = ROWS * sizeof(BLOCK);

    const int64_t nrows  = ggml_nrows(t);
    const size_t  stride = t->ne[0] / QK * sizeof(BLOCK);

    if (t->ne[0] % QK != 0 || t->ne[1] % ROWS != 0 || data_size != nrows * stride) {
        return false;
    }

    const uint8_t * src = (const uint8_t *) data;
    packed_blocks<packed_size> out(t->data);

    // The hardware prefetches ROWS short streams badly, so fetch the next group of rows into L2 while this group is packed.
    size_t ahead = ROWS * stride, ahead_end = ahead;

    for (int64_t row = 0; row < nrows; row += ROWS) {
        for (size_t offset = 0; offset < stride; offset += sizeof(BLOCK)) {
            ahead_end = std::min(ahead_end + packed_size, data_size);
            for (; ahead < ahead_end; ahead += 64) {
                __builtin_prefetch(src + ahead, 0, 2);
            }
            pack_blocks<BLOCK, UNIT, ROWS>(out.next(), src + row * stride + offset, stride);
        }
    }
    out.finish();
    return true;
}

const struct {
    enum ggml_type type;
    int            inter_size;
    int            nb_cols;
    bool           (*repack)(struct ggml_tensor * t, const void * data, size_t data_size);
} kernels[] = {
    { GGML_TYPE_Q4_0,   4,  4, repack_rows<block_q4_0,   QK4_0,    4,  4> },
    { GGML_TYPE_Q4_0,   8,  4, repack_rows<block_q4_0,   QK4_0,    8,  4> },
    { GGML_TYPE_Q4_0,   8,  8, repack_rows<block_q4_0,   QK4_0,    8,  8> },
    { GGML_TYPE_Q4_0,   1, 16, repack_rows<block_q4_0,   QK4_0,    1, 16> },
    { GGML_TYPE_Q4_K,   4,  8, repack_rows<block_q4_K,   QK_K,     4,  8> },
    { GGML_TYPE_Q4_K,   8,  8, repack_rows<block_q4_K,   QK_K,     8,  8> },
    { GGML_TYPE_Q4_K,   1, 16, repack_rows<block_q4_K,   QK_K,     1, 16> },
    { GGML_TYPE_Q5_K,   4,  8, repack_rows<block_q5_K,   QK_K,     4,  8> },
    { GGML_TYPE_Q5_K,   8,  8, repack_rows<block_q5_K,   QK_K,     8,  8> },
    { GGML_TYPE_Q6_K,   4,  8, repack_rows<block_q6_K,   QK_K,     4,  8> },
    { GGML_TYPE_Q6_K,   8,  8, repack_rows<block_q6_K,   QK_K,     8,  8> },
    { GGML_TYPE_Q2_K,   8,  8, repack_rows<block_q2_K,   QK_K,     8,  8> },
    { GGML_TYPE_Q2_K,   1, 16, repack_rows<block_q2_K,   QK_K,     1, 16> },
    { GGML_TYPE_IQ4_NL, 4,  4, repack_rows<block_iq4_nl, QK4_NL,   4,  4> },
    { GGML_TYPE_IQ4_NL, 8,  8, repack_rows<block_iq4_nl, QK4_NL,   8,  8> },
    { GGML_TYPE_IQ4_NL, 1, 16, repack_rows<block_iq4_nl, QK4_NL,   1, 16> },
    { GGML_TYPE_MXFP4,  4,  4, repack_rows<block_mxfp4,  QK_MXFP4, 4,  4> },
    { GGML_TYPE_MXFP4,  8,  8, repack_rows<block_mxfp4,  QK_MXFP4, 8,  8> },
    { GGML_TYPE_Q8_0,   4,  4, repack_rows<block_q8_0,   QK8_0,    4,  4> },
    { GGML_TYPE_Q8_0,   8,  4, repack_rows<block_q8_0,   QK8_0,    8,  4> },
    { GGML_TYPE_Q8_0,   1, 16, repack_rows<block_q8_0,   QK8_0,    1, 16> },
};

} // namespace

bool ggml_repack_rows(struct ggml_tensor * t, int inter_size, int nb_cols, const void * data, size_t data_size) {
    for (const auto & kernel : kernels) {
        if (kernel.type == t->type && kernel.inter_size == inter_size && kernel.nb_cols == nb_cols) {
            return kernel.repack(t, data, data_size);
        }
    }
    return false;
}
