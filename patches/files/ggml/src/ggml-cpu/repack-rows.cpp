// The layouts of repack.cpp, written for the speed of memory: rows are read in place, blocks are interleaved in registers.

#include "repack-rows.h"

#include "repack.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// GCC 12 and clang; on a target without vectors the compiler would take each vector apart
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

// lo, hi: the units of a and b in turn (punpckl/punpckh, zip1/zip2)
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

// Stores ROWS vectors, interleaved. Neighbours become one row of twice the unit: first the halves lo, then the halves hi.
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

// The eight 6-bit scales and mins of a Q4_K or Q5_K block, a byte each, four to a word. No shift crosses a byte.
struct scales_and_mins {
    uint32_t s[2], m[2];

    explicit scales_and_mins(const uint8_t * p) {
        const uint32_t s_low = load_32(p), m_low = load_32(p + 4), rest = load_32(p + 8);
        s[0] = s_low & 0x3f3f3f3f;
        m[0] = m_low & 0x3f3f3f3f;
        s[1] = (rest        & 0x0f0f0f0f) | ((s_low >> 2) & 0x30303030);
        m[1] = ((rest >> 4) & 0x0f0f0f0f) | ((m_low >> 2) & 0x30303030);
    }
};

// 12 bytes a sub-block: s and m of rows 0 to 3, each with two bits of row + 4; then the low halves of rows 4 to 7
inline uint8_t * pack_scales_x8(uint8_t * dst, const uint8_t * src, size_t stride) {
    uint8_t rows[12][8];
    for (int i = 0; i < 4; i++) {
        const scales_and_mins a(src + i * stride), b(src + (i + 4) * stride);
        for (int h = 0; h < 2; h++) {
            store_32(&rows[i    ][4 * h], a.s[h] | ((b.s[h] & 0x30303030) << 2));
            store_32(&rows[i + 4][4 * h], a.m[h] | ((b.m[h] & 0x30303030) << 2));
            store_32(&rows[i + 8][4 * h], (b.s[h] & 0x0f0f0f0f) | ((b.m[h] & 0x0f0f0f0f) << 4));
        }
    }
    return interleave<12, 1, 8>(dst, rows[0], sizeof(rows[0]));
}

// 16 bytes a sub-block with the low halves of s and m, then 16 bytes a pair of sub-blocks h and h + 4 with the high bits
inline uint8_t * pack_scales_x16(uint8_t * dst, const uint8_t * src, size_t stride) {
    uint8_t rows[16][12];
    for (int i = 0; i < 16; i++) {
        const scales_and_mins a(src + i * stride);
        for (int h = 0; h < 2; h++) {
            store_32(&rows[i][4 * h], (a.s[h] & 0x0f0f0f0f) | ((a.m[h] & 0x0f0f0f0f) << 4));
        }
        store_32(&rows[i][8], ((a.s[0] >> 4) & 0x03030303) | ((a.m[0] >> 2) & 0x0c0c0c0c) | (a.s[1] & 0x30303030) | ((a.m[1] & 0x30303030) << 2));
    }
    return interleave<16, 1, 12>(dst, rows[0], sizeof(rows[0]));
}

#define INTERLEAVE(field, unit, ...) \
    dst = interleave<ROWS, unit, sizeof(BLOCK::field), ##__VA_ARGS__>(dst, src + offsetof(BLOCK, field), stride)

// Packs the block at src with those of the next ROWS - 1 rows, stride bytes apart. The fields are in the order of repack.h.
template <typename BLOCK, int UNIT, int ROWS> inline void pack_blocks(uint8_t * dst, const uint8_t * src, size_t stride) {
    if constexpr (std::is_same_v<BLOCK, block_q2_K>) {
        dst = interleave<ROWS, 2, 4>(dst, src + offsetof(BLOCK, GGML_COMMON_AGGR_S), stride); // d, dmin
        if constexpr (ROWS == 8) {
            INTERLEAVE(scales, 2);
        } else {
            for (int sub_block : { 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15 }) {
                dst = interleave<ROWS, 1, 1>(dst, src + offsetof(BLOCK, scales) + sub_block, stride);
            }
        }
        INTERLEAVE(qs, UNIT);
    } else if constexpr (std::is_same_v<BLOCK, block_q4_K> || std::is_same_v<BLOCK, block_q5_K>) {
        dst = interleave<ROWS, 2, 4>(dst, src + offsetof(BLOCK, GGML_COMMON_AGGR_S), stride); // d, dmin
        dst = (ROWS == 8 ? pack_scales_x8 : pack_scales_x16)(dst, src + offsetof(BLOCK, scales), stride);
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
            INTERLEAVE(qs, UNIT, 0x88); // unsigned nibbles become signed
        } else {
            INTERLEAVE(qs, UNIT);
        }
    }
}

#undef INTERLEAVE

// Packed blocks of SIZE bytes, one after another.
#if defined(__SSE2__)
// They pass the caches: a tile in L1 collects them, whole lines go from there to memory.
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
    size_t    skip;  // bytes of the first line that belong to somebody else
    alignas(LINE) uint8_t tile[FULL + SIZE + LINE];

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
        memcpy(tile, tile + i, LINE);
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
#endif

template <typename BLOCK, int QK, int UNIT, int ROWS> bool repack_rows(struct ggml_tensor * t, const void * data, size_t data_size) {
    constexpr size_t packed_size = ROWS * sizeof(BLOCK);

    const int64_t nrows  = ggml_nrows(t);
    const size_t  stride = t->ne[0] / QK * sizeof(BLOCK);

    if (t->ne[0] % QK != 0 || t->ne[1] % ROWS != 0 || data_size != nrows * stride) {
        return false;
    }

    const uint8_t * src = (const uint8_t *) data;
    packed_blocks<packed_size> out(t->data);

    for (int64_t row = 0; row < nrows; row += ROWS, src += ROWS * stride) {
        // The hardware follows ROWS short streams badly. The next group of rows is one stream, so fetch it into L2 while this one is packed.
        const uint8_t * ahead = row + ROWS < nrows ? src + ROWS * stride : src;
        for (size_t offset = 0; offset < stride; offset += sizeof(BLOCK), ahead += packed_size) {
            for (size_t i = 0; i < packed_size; i += 64) {
                __builtin_prefetch(ahead + i, 0, 2);
            }
            pack_blocks<BLOCK, UNIT, ROWS>(out.next(), src + offset, stride);
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
