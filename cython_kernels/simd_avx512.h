/* AVX-512 (F, BW, VL, DQ, VBMI, VBMI2, VNNI): 64 uint8 lanes, 16 float lanes. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi,popcnt,avx512f,avx512bw,avx512vl,avx512dq," \
                                                    "avx512vbmi,avx512vbmi2,avx512vnni"))), \
                             apply_to = function)
#define DPQ_SIMD_END _Pragma("clang attribute pop")
#else
#pragma GCC target("avx2,fma,bmi,popcnt,avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi,avx512vbmi2,avx512vnni")
#endif

enum { LINEAR_ROWS = 6, LINEAR_PANELS = 4, LINEAR_ROW_PANELS = 8 }; /* sums take one of 32 registers a panel */
enum { EXTEND_VECTORS = 16 }; /* of codewords that a beam entry is extended by at a time: 256 in all */
enum { DPQ_LEAST_BATCH = 12, DPQ_LEAST_BATCH_MANY = 20 };

/* With 64 queries the interleaved tables of 4 levels of 8 bits, 80 KB, no longer fit the L1 cache. They are still 1.6
 * times as fast as with 32: each query has half the reads of codes and half the additions. */
#define DPQ_QW 64u
#define DPQ_FW 16u

typedef __m512i dpq_u8s;
static inline dpq_u8s dpq_u8_load(const void *p) { return _mm512_loadu_si512(p); }
static inline dpq_u8s dpq_u8_all(uint8_t a) { return _mm512_set1_epi8((char)a); }
static inline dpq_u8s dpq_u8_add(dpq_u8s a, dpq_u8s b) { return _mm512_add_epi8(a, b); }
static inline dpq_u8s dpq_u8_add_saturating(dpq_u8s a, dpq_u8s b) { return _mm512_adds_epu8(a, b); }
static inline dpq_u8s dpq_u8_and(dpq_u8s a, dpq_u8s b) { return _mm512_and_si512(a, b); }
static inline uint64_t dpq_u8_le(dpq_u8s a, dpq_u8s b) { return _mm512_cmple_epu8_mask(a, b); }
static inline dpq_u8s dpq_u32_shr(dpq_u8s a, int bits) { return _mm512_srli_epi32(a, (unsigned)bits); }
/* Bytes at .. at + 15 of rows[0], rows[16], ..., each in a lane of 16. */
static inline dpq_u8s dpq_u8_of_rows(const uint8_t *const *rows, size_t at)
{
    __m512i a = _mm512_castsi128_si512(_mm_loadu_si128((const void *)(rows[0] + at)));
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const void *)(rows[16] + at)), 1);
    a = _mm512_inserti32x4(a, _mm_loadu_si128((const void *)(rows[32] + at)), 2);
    return _mm512_inserti32x4(a, _mm_loadu_si128((const void *)(rows[48] + at)), 3);
}
/* Interleaves every 16 bytes of a with those of b. The first half goes to a, the other to b. */
static inline void dpq_u8_zip(dpq_u8s *a, dpq_u8s *b)
{
    dpq_u8s low = _mm512_unpacklo_epi8(*a, *b);
    *b = _mm512_unpackhi_epi8(*a, *b);
    *a = low;
}


/* a * slope / 256 modulo 256, rounded down: the high byte of a 16-bit product */
static inline dpq_u8s dpq_u8_scale(dpq_u8s a, uint16_t slope)
{
    __m512i slopes = _mm512_set1_epi16((short)slope), low_byte = _mm512_set1_epi16(255);
    __m512i even = _mm512_mullo_epi16(_mm512_and_si512(a, low_byte), slopes);
    __m512i odd = _mm512_mullo_epi16(_mm512_srli_epi16(a, 8), slopes);
    return _mm512_or_si512(_mm512_srli_epi16(even, 8), _mm512_andnot_si512(low_byte, odd));
}
/* The same register as 32 words, for sums of more than 8 bits: byte 2 i is in word i of `even`, byte 2 i + 1 in word i
 * of `odd`. */
static inline void dpq_u8_store(void *p, dpq_u8s a) { _mm512_storeu_si512(p, a); }
static inline dpq_u8s dpq_u8_max(dpq_u8s a, dpq_u8s b) { return _mm512_max_epu8(a, b); }
static inline dpq_u8s dpq_u16_all(uint16_t a) { return _mm512_set1_epi16((short)a); }
static inline dpq_u8s dpq_u16_even(dpq_u8s a) { return _mm512_and_si512(a, _mm512_set1_epi16(255)); }
static inline dpq_u8s dpq_u16_odd(dpq_u8s a) { return _mm512_srli_epi16(a, 8); }
static inline dpq_u8s dpq_u16_add_saturating(dpq_u8s a, dpq_u8s b) { return _mm512_adds_epu16(a, b); }
static inline dpq_u8s dpq_u16_mul_high(dpq_u8s a, dpq_u8s b) { return _mm512_mulhi_epu16(a, b); }
/* A bit a word: those of a <= a_limit, then those of b <= b_limit. */
static inline uint64_t dpq_u16_le(dpq_u8s a, dpq_u8s a_limit, dpq_u8s b, dpq_u8s b_limit)
{
    return _mm512_cmple_epu16_mask(a, a_limit) | (uint64_t)_mm512_cmple_epu16_mask(b, b_limit) << 32;
}
/* Four bytes, at .. at + 3, of each of 16 rows. */
static inline dpq_u8s dpq_u32_column(const uint8_t *rows, size_t code_size, size_t at)
{
    __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_i32gather_epi32(_mm512_mullo_epi32(lane, _mm512_set1_epi32((int)code_size)), rows + at, 1);
}

#define DPQ_LOOKED_UP 4u
/* A two-register permute looks up 128 entries by the index's low 7 bits: two of them, and a blend by its eighth bit. */
static inline void dpq_lookup256_prepare(uint8_t *table) { (void)table; }
static inline void dpq_lookup256(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        __m512i at = index[i];
        __asm__("" : "+v"(at)); /* gcc would read it from memory again for each use, and loads are what takes longest */
        __m512i lo = _mm512_permutex2var_epi8(dpq_u8_load(table), at, dpq_u8_load(table + 64));
        __m512i hi = _mm512_permutex2var_epi8(dpq_u8_load(table + 128), at, dpq_u8_load(table + 192));
        index[i] = _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), lo, hi);
    }
}
/* index < 64 */
static inline void dpq_lookup64_prepare(uint8_t *table) { (void)table; }
static inline void dpq_lookup64(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = _mm512_permutexvar_epi8(index[i], dpq_u8_load(table));
}
/* The entries of the indices' low bits, as many as DPQ_ORDER_ENTRIES has. */
#define DPQ_LOOKS_UP 1 /* bytes, by registers: one query's scan */
#define DPQ_LOOK_UP_COST 4 /* for one query: see lists_rows_impl.h */
#define DPQ_MOST_ORDERED 16u /* levels of codes that are put in order */
#define DPQ_ORDER_ENTRIES 128u
static inline void dpq_lookup_near(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = _mm512_permutex2var_epi8(dpq_u8_load(table), index[i], dpq_u8_load(table + 64));
}
/* index < 16 */
static inline dpq_u8s dpq_lookup16(const uint8_t *table, dpq_u8s index)
{
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)table)), index);
}
/* Reorders bytes from [16 / w][4][w] to [4][16 / w][w], for w = 1, 2, 4: four bytes of the result come from places 4 w
 * apart, w from each. */
static inline dpq_u8s dpq_u8_by_lanes(dpq_u8s a, uint32_t w)
{
    __m512i step = _mm512_set1_epi32(w == 4 ? 0x03020100 : w == 2 ? 0x09080100 : 0x0c080400);
    __m512i lane = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    __m512i quarter = _mm512_set_epi32(48, 32, 16, 0, 48, 32, 16, 0, 48, 32, 16, 0, 48, 32, 16, 0);
    __m512i first = _mm512_add_epi32(quarter, _mm512_mullo_epi32(lane, _mm512_set1_epi32((int)w)));
    __m512i each = _mm512_mullo_epi32(first, _mm512_set1_epi32(0x01010101));
    return _mm512_permutexvar_epi8(_mm512_add_epi8(step, each), a);
}

/* As in nonzero8.h, without branches. */
static inline size_t dpq_nonzero8(const uint64_t *masks, uint64_t live, uint32_t first, uint64_t *kept,
                                  uint32_t *numbers)
{
    __m512i eight = _mm512_and_si512(_mm512_loadu_si512(masks), _mm512_set1_epi64((long long)live));
    __mmask8 some = _mm512_test_epi64_mask(eight, eight);
    __m256i number = _mm256_add_epi32(_mm256_set1_epi32((int)first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    _mm512_storeu_si512(kept, _mm512_maskz_compress_epi64(some, eight));
    _mm256_storeu_si256((__m256i *)numbers, _mm256_maskz_compress_epi32(some, number));
    return (size_t)_mm_popcnt_u32(some);
}
static inline size_t dpq_places(uint64_t bits, uint32_t first, uint32_t *places)
{
    static const uint8_t numbers[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                        16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31,
                                        32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47,
                                        48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i set = _mm512_maskz_compress_epi8(bits, _mm512_loadu_si512(numbers)), begin = _mm512_set1_epi32((int)first);
    size_t n = (size_t)_mm_popcnt_u64(bits);
    _mm512_storeu_si512(places, _mm512_add_epi32(begin, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(set))));
    for (size_t i = 16; i < n; i += 16) {
        set = _mm512_alignr_epi64(set, set, 2);
        _mm512_storeu_si512(places + i, _mm512_add_epi32(begin, _mm512_cvtepu8_epi32(_mm512_castsi512_si128(set))));
    }
    return n;
}

#define DPQ_LOADS_FAR
#include "bits_of_ids.h"
/* As in bits_of_ids.h. Four bytes are loaded at once, and the last ones of a bitmap that are fewer one by one. */
static inline uint32_t dpq_bits_of_ids(const uint8_t *bitmap, size_t size, const int64_t *ids)
{
    __m512i low = _mm512_loadu_si512(ids), high = _mm512_loadu_si512(ids + 8);
    __m512i end = _mm512_set1_epi64((long long)(size / 4 * 32));
    __mmask16 far = (__mmask16)(_mm512_cmplt_epu64_mask(low, end) | _mm512_cmplt_epu64_mask(high, end) << 8);
    __m512i place = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(_mm512_srli_epi64(low, 5))),
                                       _mm512_cvtepi64_epi32(_mm512_srli_epi64(high, 5)), 1);
    __m512i id = _mm512_inserti64x4(_mm512_castsi256_si512(_mm512_cvtepi64_epi32(low)), _mm512_cvtepi64_epi32(high), 1);
    __m512i words = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), far, place, (const int *)bitmap, 4);
    __m512i bit = _mm512_sllv_epi32(_mm512_set1_epi32(1), _mm512_and_si512(id, _mm512_set1_epi32(31)));
    uint32_t bits = _mm512_test_epi32_mask(words, bit);
    for (uint32_t i = 0; far != 0xffff && size % 4 && i < DPQ_TESTED; i++)
        bits |= far >> i & 1 ? 0 : dpq_bit_of_id(bitmap, size, ids[i]) << i;
    return bits;
}

static inline uint32_t dpq_ids_within(int64_t first, uint64_t span, const int64_t *ids)
{
    __m512i begin = _mm512_set1_epi64(first), size = _mm512_set1_epi64((long long)span);
    __m512i low = _mm512_loadu_si512(ids), high = _mm512_loadu_si512(ids + 8);
    return (uint32_t)_mm512_cmplt_epu64_mask(_mm512_sub_epi64(low, begin), size) |
           (uint32_t)_mm512_cmplt_epu64_mask(_mm512_sub_epi64(high, begin), size) << 8;
}

typedef __m512 dpq_f32s;
static inline dpq_f32s dpq_f32_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void dpq_f32_store(float *p, dpq_f32s a) { _mm512_storeu_ps(p, a); }
static inline dpq_f32s dpq_f32_all(float a) { return _mm512_set1_ps(a); }
static inline dpq_f32s dpq_f32_add(dpq_f32s a, dpq_f32s b) { return _mm512_add_ps(a, b); }
static inline dpq_f32s dpq_f32_sub(dpq_f32s a, dpq_f32s b) { return _mm512_sub_ps(a, b); }
static inline dpq_f32s dpq_f32_mul(dpq_f32s a, dpq_f32s b) { return _mm512_mul_ps(a, b); }
static inline dpq_f32s dpq_f32_max(dpq_f32s a, dpq_f32s b) { return _mm512_max_ps(a, b); }
static inline dpq_f32s dpq_f32_abs(dpq_f32s a) { return _mm512_abs_ps(a); }
static inline dpq_f32s dpq_f32_min(dpq_f32s a, dpq_f32s b) { return _mm512_min_ps(a, b); }
typedef int32_t dpq_i32s __attribute__((vector_size(64))); /* of __m512i, which may alias, gcc keeps arrays in memory */
typedef __m512i dpq_i16s;
static inline dpq_i32s dpq_i32_zero(void) { return (dpq_i32s){0}; }
static inline dpq_i16s dpq_i16_load(const int16_t *p) { return _mm512_loadu_si512(p); }
/* sum + a's pairs times the pair at b */
static inline dpq_i32s dpq_i16_dot(dpq_i32s sum, dpq_i16s a, const int16_t *b)
{
    int32_t pair;
    __builtin_memcpy(&pair, b, sizeof pair);
    return (dpq_i32s)_mm512_dpwssd_epi32((__m512i)sum, a, _mm512_set1_epi32(pair));
}
static inline dpq_f32s dpq_i32_to_f32(dpq_i32s a) { return _mm512_cvtepi32_ps((__m512i)a); }
static inline dpq_f32s dpq_f32_fma(dpq_f32s a, dpq_f32s b, dpq_f32s c) { return _mm512_fmadd_ps(a, b, c); }
static inline uint32_t dpq_f32_lt(dpq_f32s a, dpq_f32s b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline uint32_t dpq_f32_le(dpq_f32s a, dpq_f32s b) { return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ); }
/* floor(a) modulo 256, of |a| < 2^31, a byte a lane */
static inline void dpq_f32_floor_u8(uint8_t *p, dpq_f32s a)
{
    __m512i i = _mm512_cvt_roundps_epi32(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(i));
}
/* floor(a), of 0 <= a < 65536, a word a lane; of other a, any word */
static inline void dpq_f32_floor_u16(uint16_t *p, dpq_f32s a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_cvttps_epi32(a)));
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
