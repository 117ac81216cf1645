/* AVX2 and FMA: 32 bytes in a register, 16 floats in two. */
#include "bits_of_ids.h"
#include "nonzero8.h"
#include <immintrin.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,popcnt"))), apply_to = function)
#define DPQ_SIMD_END _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,fma,bmi,popcnt")
#endif

enum { LINEAR_ROWS = 6, LINEAR_PANELS = 1, LINEAR_ROW_PANELS = 4 }; /* sums take two of 16 registers a panel */
enum { EXTEND_VECTORS = 4 }; /* of codewords that a beam entry is extended by at a time; sums as above */
enum { DPQ_LEAST_BATCH = 3, DPQ_LEAST_BATCH_MANY = 6 };

#define DPQ_QW 32u
#define DPQ_FW 16u

typedef __m256i dpq_u8s;
static inline dpq_u8s dpq_u8_load(const void *p) { return _mm256_loadu_si256(p); }
static inline dpq_u8s dpq_u8_all(uint8_t a) { return _mm256_set1_epi8((char)a); }
static inline dpq_u8s dpq_u8_add(dpq_u8s a, dpq_u8s b) { return _mm256_add_epi8(a, b); }
static inline dpq_u8s dpq_u8_add_saturating(dpq_u8s a, dpq_u8s b) { return _mm256_adds_epu8(a, b); }
static inline dpq_u8s dpq_u8_and(dpq_u8s a, dpq_u8s b) { return _mm256_and_si256(a, b); }
static inline uint64_t dpq_u8_le(dpq_u8s a, dpq_u8s b)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(a, b), a));
}
static inline dpq_u8s dpq_u32_shr(dpq_u8s a, int bits) { return _mm256_srli_epi32(a, bits); }
/* Bytes at .. at + 15 of rows[0], rows[16], ..., each in a lane of 16. */
static inline dpq_u8s dpq_u8_of_rows(const uint8_t *const *rows, size_t at)
{
    __m128i a = _mm_loadu_si128((const void *)(rows[0] + at)), b = _mm_loadu_si128((const void *)(rows[16] + at));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1);
}
/* Interleaves every 16 bytes of a with those of b. The first half goes to a, the other to b. */
static inline void dpq_u8_zip(dpq_u8s *a, dpq_u8s *b)
{
    dpq_u8s low = _mm256_unpacklo_epi8(*a, *b);
    *b = _mm256_unpackhi_epi8(*a, *b);
    *a = low;
}

/* a * slope / 256 modulo 256, rounded down: the high byte of a 16-bit product */
static inline dpq_u8s dpq_u8_scale(dpq_u8s a, uint16_t slope)
{
    __m256i slopes = _mm256_set1_epi16((short)slope), low_byte = _mm256_set1_epi16(255);
    __m256i even = _mm256_mullo_epi16(_mm256_and_si256(a, low_byte), slopes);
    __m256i odd = _mm256_mullo_epi16(_mm256_srli_epi16(a, 8), slopes);
    return _mm256_or_si256(_mm256_srli_epi16(even, 8), _mm256_andnot_si256(low_byte, odd));
}
/* The same register as 16 words, for sums of more than 8 bits: byte 2 i is in word i of `even`, byte 2 i + 1 in word i
 * of `odd`. */
static inline void dpq_u8_store(void *p, dpq_u8s a) { _mm256_storeu_si256((__m256i *)p, a); }
static inline dpq_u8s dpq_u8_max(dpq_u8s a, dpq_u8s b) { return _mm256_max_epu8(a, b); }
static inline dpq_u8s dpq_u16_all(uint16_t a) { return _mm256_set1_epi16((short)a); }
static inline dpq_u8s dpq_u16_even(dpq_u8s a) { return _mm256_and_si256(a, _mm256_set1_epi16(255)); }
static inline dpq_u8s dpq_u16_odd(dpq_u8s a) { return _mm256_srli_epi16(a, 8); }
static inline dpq_u8s dpq_u16_add_saturating(dpq_u8s a, dpq_u8s b) { return _mm256_adds_epu16(a, b); }
static inline dpq_u8s dpq_u16_mul_high(dpq_u8s a, dpq_u8s b) { return _mm256_mulhi_epu16(a, b); }
/* A bit a word: those of a <= a_limit, then those of b <= b_limit. */
static inline uint64_t dpq_u16_le(dpq_u8s a, dpq_u8s a_limit, dpq_u8s b, dpq_u8s b_limit)
{
    __m256i a_le = _mm256_cmpeq_epi16(_mm256_min_epu16(a, a_limit), a);
    __m256i b_le = _mm256_cmpeq_epi16(_mm256_min_epu16(b, b_limit), b);
    return (uint32_t)_mm256_movemask_epi8(_mm256_permute4x64_epi64(_mm256_packs_epi16(a_le, b_le), 0xd8));
}
/* Four bytes, at .. at + 3, of each of 8 rows. */
static inline dpq_u8s dpq_u32_column(const uint8_t *rows, size_t code_size, size_t at)
{
    __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_i32gather_epi32((const int *)(const void *)(rows + at),
                                  _mm256_mullo_epi32(lane, _mm256_set1_epi32((int)code_size)), 1);
}

/* index < 16 */
static inline dpq_u8s dpq_lookup16(const uint8_t *table, dpq_u8s index)
{
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)table)), index);
}
#define DPQ_LOOKED_UP 2u /* with more there are too few registers */
/* 256 entries are two halves of eight rows; each row is one 16-entry shuffle, and the index's high bit chooses the
 * half. Within a half, `prepare` stores row r xored with row r - 1. A look-up subtracts 16 from the index row after
 * row. A shuffle gives 0 once the index is negative, so what is xored together are the rows up to the index's own, and
 * that leaves its own. */
static inline void dpq_lookup256_prepare(uint8_t *table)
{
    for (int half = 0; half < 256; half += 128)
        for (int i = 127; i >= 16; i--)
            table[half + i] ^= table[half + i - 16];
}
/* Row after row, and each for all registers. The empty assembly keeps it so: gcc would read all rows first, of several
 * tables even, and store them for want of registers. */
static inline void dpq_lookup256(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    dpq_u8s at[DPQ_LOOKED_UP], lo[DPQ_LOOKED_UP], hi[DPQ_LOOKED_UP];
    for (uint32_t i = 0; i < n; i++) {
        at[i] = _mm256_and_si256(index[i], _mm256_set1_epi8(127));
        lo[i] = dpq_lookup16(table, at[i]);
        hi[i] = dpq_lookup16(table + 128, at[i]);
    }
    for (int r = 1; r < 8; r++) {
        table += 16;
        __asm__ volatile("" : "+r"(table));
        for (uint32_t i = 0; i < n; i++) {
            at[i] = _mm256_sub_epi8(at[i], _mm256_set1_epi8(16));
            lo[i] = _mm256_xor_si256(lo[i], dpq_lookup16(table, at[i]));
            hi[i] = _mm256_xor_si256(hi[i], dpq_lookup16(table + 128, at[i]));
            __asm__("" : "+x"(at[i]), "+x"(lo[i]), "+x"(hi[i]));
        }
    }
    for (uint32_t i = 0; i < n; i++)
        index[i] = _mm256_blendv_epi8(lo[i], hi[i], index[i]);
}
/* 64 entries, prepared as 256 are. index < 64 */
#define DPQ_LOOKS_UP 1 /* bytes, by registers: one query's scan */
#define DPQ_LOOK_UP_COST 60 /* for one query: see lists_rows_impl.h */
#define DPQ_MOST_ORDERED 16u /* levels of codes that are put in order */
#define DPQ_ORDER_ENTRIES 64u
static inline void dpq_lookup64_prepare(uint8_t *table)
{
    for (int i = 63; i >= 16; i--)
        table[i] ^= table[i - 16];
}
static inline void dpq_lookup64(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    dpq_u8s entry[DPQ_LOOKED_UP];
    for (uint32_t i = 0; i < n; i++)
        entry[i] = dpq_lookup16(table, index[i]);
    for (int r = 1; r < 4; r++) {
        table += 16;
        __asm__ volatile("" : "+r"(table));
        for (uint32_t i = 0; i < n; i++) {
            index[i] = _mm256_sub_epi8(index[i], _mm256_set1_epi8(16));
            entry[i] = _mm256_xor_si256(entry[i], dpq_lookup16(table, index[i]));
            __asm__("" : "+x"(index[i]), "+x"(entry[i]));
        }
    }
    for (uint32_t i = 0; i < n; i++)
        index[i] = entry[i];
}
/* The entries of the indices' low bits, as many as DPQ_ORDER_ENTRIES has. */
static inline void dpq_lookup_near(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = _mm256_and_si256(index[i], _mm256_set1_epi8(63));
    dpq_lookup64(table, index, n);
}
/* Reorders bytes from [16 / w][2][w] to [2][16 / w][w], for w = 1, 2, 4: first within each lane, then the lanes'
 * halves. */
static inline dpq_u8s dpq_u8_by_lanes(dpq_u8s a, uint32_t w)
{
    __m256i step = _mm256_set1_epi32(w == 4 ? 0x03020100 : w == 2 ? 0x05040100 : 0x06040200);
    __m256i lane = _mm256_setr_epi32(0, 0, 1, 1, 0, 0, 1, 1), half = _mm256_setr_epi32(0, 8, 0, 8, 0, 8, 0, 8);
    __m256i first = _mm256_add_epi32(half, _mm256_mullo_epi32(lane, _mm256_set1_epi32((int)w)));
    __m256i each = _mm256_mullo_epi32(first, _mm256_set1_epi32(0x01010101));
    return _mm256_permute4x64_epi64(_mm256_shuffle_epi8(a, _mm256_add_epi8(step, each)), 0xd8);
}

typedef struct { __m256 lo, hi; } dpq_f32s;
static inline dpq_f32s dpq_f32_load(const float *p)
{
    return (dpq_f32s){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
static inline void dpq_f32_store(float *p, dpq_f32s a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
static inline dpq_f32s dpq_f32_all(float a) { return (dpq_f32s){_mm256_set1_ps(a), _mm256_set1_ps(a)}; }
static inline dpq_f32s dpq_f32_add(dpq_f32s a, dpq_f32s b)
{
    return (dpq_f32s){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
static inline dpq_f32s dpq_f32_sub(dpq_f32s a, dpq_f32s b)
{
    return (dpq_f32s){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
static inline dpq_f32s dpq_f32_mul(dpq_f32s a, dpq_f32s b)
{
    return (dpq_f32s){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
static inline dpq_f32s dpq_f32_max(dpq_f32s a, dpq_f32s b)
{
    return (dpq_f32s){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
static inline dpq_f32s dpq_f32_abs(dpq_f32s a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (dpq_f32s){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
static inline dpq_f32s dpq_f32_min(dpq_f32s a, dpq_f32s b)
{
    return (dpq_f32s){_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
typedef int32_t dpq_i32x8 __attribute__((vector_size(32))); /* of __m256i, which may alias, gcc keeps arrays in memory */
typedef struct { dpq_i32x8 lo, hi; } dpq_i32s;
typedef struct { __m256i lo, hi; } dpq_i16s;
static inline dpq_i32s dpq_i32_zero(void) { return (dpq_i32s){{0}, {0}}; }
static inline dpq_i16s dpq_i16_load(const int16_t *p)
{
    const __m256i *half = (const void *)p;
    return (dpq_i16s){_mm256_loadu_si256(half), _mm256_loadu_si256(half + 1)};
}
/* sum + a's pairs times the pair at b */
static inline dpq_i32s dpq_i16_dot(dpq_i32s sum, dpq_i16s a, const int16_t *b)
{
    int32_t pair;
    __builtin_memcpy(&pair, b, sizeof pair);
    const __m256i pairs = _mm256_set1_epi32(pair);
    return (dpq_i32s){sum.lo + (dpq_i32x8)_mm256_madd_epi16(a.lo, pairs),
                      sum.hi + (dpq_i32x8)_mm256_madd_epi16(a.hi, pairs)};
}
static inline dpq_f32s dpq_i32_to_f32(dpq_i32s a)
{
    return (dpq_f32s){_mm256_cvtepi32_ps((__m256i)a.lo), _mm256_cvtepi32_ps((__m256i)a.hi)};
}
static inline dpq_f32s dpq_f32_fma(dpq_f32s a, dpq_f32s b, dpq_f32s c)
{
    return (dpq_f32s){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
static inline uint32_t dpq_f32_lt(dpq_f32s a, dpq_f32s b)
{
    uint32_t lo = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ));
    return lo | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)) << 8;
}
static inline uint32_t dpq_f32_le(dpq_f32s a, dpq_f32s b)
{
    uint32_t lo = (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.lo, b.lo, _CMP_LE_OQ));
    return lo | (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a.hi, b.hi, _CMP_LE_OQ)) << 8;
}
/* floor(a) modulo 256, of |a| < 2^31, a byte a lane: the mask keeps both packs from saturating */
static inline void dpq_f32_floor_u8(uint8_t *p, dpq_f32s a)
{
    __m256i low_byte = _mm256_set1_epi32(255);
    __m256i lo = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_floor_ps(a.lo)), low_byte);
    __m256i hi = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_floor_ps(a.hi)), low_byte);
    __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    _mm_storeu_si128((__m128i *)p,
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
/* floor(a), of 0 <= a < 65536, a word a lane; of other a, any word */
static inline void dpq_f32_floor_u16(uint16_t *p, dpq_f32s a)
{
    __m256i words = _mm256_packus_epi32(_mm256_cvttps_epi32(a.lo), _mm256_cvttps_epi32(a.hi));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(words, 0xd8));
}

/* 16 bytes, and 32 bytes: for queries that scan an inverted list together. */
typedef __m128i dpq_u8x16;
static inline dpq_u8x16 dpq_u8x16_load(const void *p) { return _mm_loadu_si128(p); }
static inline void dpq_u8x16_store(void *p, dpq_u8x16 a) { _mm_storeu_si128(p, a); }
static inline dpq_u8x16 dpq_u8x16_zip_low(dpq_u8x16 a, dpq_u8x16 b) { return _mm_unpacklo_epi8(a, b); }
static inline dpq_u8x16 dpq_u8x16_zip_high(dpq_u8x16 a, dpq_u8x16 b) { return _mm_unpackhi_epi8(a, b); }
typedef __m256i dpq_u8g;
static inline dpq_u8g dpq_u8g_load(const void *p) { return _mm256_loadu_si256(p); }
static inline dpq_u8g dpq_u8g_add(dpq_u8g a, dpq_u8g b) { return _mm256_add_epi8(a, b); }
static inline uint32_t dpq_u8g_le(dpq_u8g a, dpq_u8g b)
{
    return (uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_min_epu8(a, b), a));
}
