/* NEON of AArch64: 32 bytes in two registers, 16 floats in four. */
#include "bits_of_ids.h"
#include "nonzero8.h"
#include <arm_neon.h>
#include <string.h>

#define DPQ_QW 32u
#define DPQ_FW 16u

typedef uint8x16x2_t dpq_u8s;
#define DPQ_U8_PAIR(lo, hi) ((dpq_u8s){{(lo), (hi)}})
static inline dpq_u8s dpq_u8_load(const void *p)
{
    const uint8_t *bytes = p;
    return DPQ_U8_PAIR(vld1q_u8(bytes), vld1q_u8(bytes + 16));
}
static inline dpq_u8s dpq_u8_all(uint8_t a) { return DPQ_U8_PAIR(vdupq_n_u8(a), vdupq_n_u8(a)); }
static inline dpq_u8s dpq_u8_add(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U8_PAIR(vaddq_u8(a.val[0], b.val[0]), vaddq_u8(a.val[1], b.val[1]));
}
static inline dpq_u8s dpq_u8_add_saturating(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U8_PAIR(vqaddq_u8(a.val[0], b.val[0]), vqaddq_u8(a.val[1], b.val[1]));
}
static inline dpq_u8s dpq_u8_and(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U8_PAIR(vandq_u8(a.val[0], b.val[0]), vandq_u8(a.val[1], b.val[1]));
}
/* A bit a lane: each byte keeps one bit of eight, its own, and three pairwise additions put them together. */
static inline uint64_t dpq_u8_le(dpq_u8s a, dpq_u8s b)
{
    const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8x16_t sum = vpaddq_u8(vandq_u8(vcleq_u8(a.val[0], b.val[0]), bit),
                               vandq_u8(vcleq_u8(a.val[1], b.val[1]), bit));
    sum = vpaddq_u8(sum, sum);
    sum = vpaddq_u8(sum, sum);
    return vgetq_lane_u32(vreinterpretq_u32_u8(sum), 0);
}
static inline uint8x16_t dpq_u32_shift(uint8x16_t a, int left)
{
    return vreinterpretq_u8_u32(vshlq_u32(vreinterpretq_u32_u8(a), vdupq_n_s32(left)));
}
static inline dpq_u8s dpq_u32_shr(dpq_u8s a, int bits)
{
    return DPQ_U8_PAIR(dpq_u32_shift(a.val[0], -bits), dpq_u32_shift(a.val[1], -bits));
}
/* Bytes at .. at + 15 of rows[0], rows[16], ..., each in a lane of 16. */
static inline dpq_u8s dpq_u8_of_rows(const uint8_t *const *rows, size_t at)
{
    return DPQ_U8_PAIR(vld1q_u8(rows[0] + at), vld1q_u8(rows[16] + at));
}
/* Interleaves every 16 bytes of a with those of b. The first half goes to a, the other to b. */
static inline void dpq_u8_zip(dpq_u8s *a, dpq_u8s *b)
{
    dpq_u8s low = DPQ_U8_PAIR(vzip1q_u8(a->val[0], b->val[0]), vzip1q_u8(a->val[1], b->val[1]));
    *b = DPQ_U8_PAIR(vzip2q_u8(a->val[0], b->val[0]), vzip2q_u8(a->val[1], b->val[1]));
    *a = low;
}
/* a * slope / 256 modulo 256, rounded down: the high byte of a 16-bit product */
static inline uint8x16_t dpq_u8_scale_half(uint8x16_t a, uint16_t slope)
{
    uint16x8_t pairs = vreinterpretq_u16_u8(a);
    uint8x16_t even = vreinterpretq_u8_u16(vmulq_n_u16(vandq_u16(pairs, vdupq_n_u16(255)), slope));
    uint8x16_t odd = vreinterpretq_u8_u16(vmulq_n_u16(vshrq_n_u16(pairs, 8), slope));
    return vtrn2q_u8(even, odd);
}
static inline dpq_u8s dpq_u8_scale(dpq_u8s a, uint16_t slope)
{
    return DPQ_U8_PAIR(dpq_u8_scale_half(a.val[0], slope), dpq_u8_scale_half(a.val[1], slope));
}
/* The same bytes as 16 words, for sums of more than 8 bits: byte 2 i is in word i of `even`, byte 2 i + 1 in word i of
 * `odd`. */
#define DPQ_U16(a, i) vreinterpretq_u16_u8((a).val[i])
#define DPQ_U16_PAIR(lo, hi) DPQ_U8_PAIR(vreinterpretq_u8_u16(lo), vreinterpretq_u8_u16(hi))
static inline void dpq_u8_store(void *p, dpq_u8s a)
{
    uint8_t *bytes = p;
    vst1q_u8(bytes, a.val[0]);
    vst1q_u8(bytes + 16, a.val[1]);
}
static inline dpq_u8s dpq_u8_max(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U8_PAIR(vmaxq_u8(a.val[0], b.val[0]), vmaxq_u8(a.val[1], b.val[1]));
}
static inline dpq_u8s dpq_u16_all(uint16_t a) { return DPQ_U16_PAIR(vdupq_n_u16(a), vdupq_n_u16(a)); }
static inline dpq_u8s dpq_u16_even(dpq_u8s a) { return dpq_u8_and(a, dpq_u16_all(255)); }
static inline dpq_u8s dpq_u16_odd(dpq_u8s a)
{
    return DPQ_U16_PAIR(vshrq_n_u16(DPQ_U16(a, 0), 8), vshrq_n_u16(DPQ_U16(a, 1), 8));
}
static inline dpq_u8s dpq_u16_add_saturating(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U16_PAIR(vqaddq_u16(DPQ_U16(a, 0), DPQ_U16(b, 0)), vqaddq_u16(DPQ_U16(a, 1), DPQ_U16(b, 1)));
}
static inline uint16x8_t dpq_u16_mul_high_half(uint16x8_t a, uint16x8_t b)
{
    uint16x8_t low = vreinterpretq_u16_u32(vmull_u16(vget_low_u16(a), vget_low_u16(b)));
    return vuzp2q_u16(low, vreinterpretq_u16_u32(vmull_high_u16(a, b)));
}
static inline dpq_u8s dpq_u16_mul_high(dpq_u8s a, dpq_u8s b)
{
    return DPQ_U16_PAIR(dpq_u16_mul_high_half(DPQ_U16(a, 0), DPQ_U16(b, 0)),
                        dpq_u16_mul_high_half(DPQ_U16(a, 1), DPQ_U16(b, 1)));
}
/* 0 or 255 a word, as bytes. */
static inline uint8x16_t dpq_u16_le_bytes(dpq_u8s a, dpq_u8s limit)
{
    return vcombine_u8(vmovn_u16(vcleq_u16(DPQ_U16(a, 0), DPQ_U16(limit, 0))),
                       vmovn_u16(vcleq_u16(DPQ_U16(a, 1), DPQ_U16(limit, 1))));
}
/* A bit a word: those of a <= a_limit, then those of b <= b_limit. */
static inline uint64_t dpq_u16_le(dpq_u8s a, dpq_u8s a_limit, dpq_u8s b, dpq_u8s b_limit)
{
    return dpq_u8_le(dpq_u8_all(1), DPQ_U8_PAIR(dpq_u16_le_bytes(a, a_limit), dpq_u16_le_bytes(b, b_limit)));
}
/* Four bytes, at .. at + 3, of each of 8 rows. */
static inline dpq_u8s dpq_u32_column(const uint8_t *rows, size_t code_size, size_t at)
{
    uint32_t dwords[8];
    for (uint32_t i = 0; i < 8; i++)
        memcpy(dwords + i, rows + i * code_size + at, 4);
    return dpq_u8_load(dwords);
}
#define DPQ_LOOKED_UP 4u
/* 256 entries are four tables of 64; TBX leaves a lane as it is if its index is out of range. */
static inline void dpq_lookup256_prepare(uint8_t *table) { (void)table; }
static inline uint8x16_t dpq_lookup256_half(const uint8_t *table, uint8x16_t index)
{
    uint8x16_t row = vdupq_n_u8(64), entry = vqtbl4q_u8(vld1q_u8_x4(table), index);
    for (int r = 1; r < 4; r++) {
        index = vsubq_u8(index, row);
        entry = vqtbx4q_u8(entry, vld1q_u8_x4(table + 64 * r), index);
    }
    return entry;
}
static inline void dpq_lookup256(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = DPQ_U8_PAIR(dpq_lookup256_half(table, index[i].val[0]), dpq_lookup256_half(table, index[i].val[1]));
}
/* index < 64 */
static inline void dpq_lookup64_prepare(uint8_t *table) { (void)table; }
static inline void dpq_lookup64(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    uint8x16x4_t rows = vld1q_u8_x4(table);
    for (uint32_t i = 0; i < n; i++)
        index[i] = DPQ_U8_PAIR(vqtbl4q_u8(rows, index[i].val[0]), vqtbl4q_u8(rows, index[i].val[1]));
}
/* The entries of the indices' low bits, as many as DPQ_ORDER_ENTRIES has. */
#define DPQ_LOOKS_UP 1 /* bytes, by registers: one query's scan */
#define DPQ_LOOK_UP_COST 40 /* for one query: see lists_rows_impl.h */
#define DPQ_MOST_ORDERED 16u /* levels of codes that are put in order */
#define DPQ_ORDER_ENTRIES 64u
static inline void dpq_lookup_near(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        index[i] = dpq_u8_and(index[i], dpq_u8_all(63));
    dpq_lookup64(table, index, n);
}
/* index < 16 */
static inline dpq_u8s dpq_lookup16(const uint8_t *table, dpq_u8s index)
{
    uint8x16_t row = vld1q_u8(table);
    return DPQ_U8_PAIR(vqtbl1q_u8(row, index.val[0]), vqtbl1q_u8(row, index.val[1]));
}
/* Reorders bytes from [16 / w][2][w] to [2][16 / w][w], for w = 1, 2, 4. */
static inline dpq_u8s dpq_u8_by_lanes(dpq_u8s a, uint32_t w)
{
    uint16x8_t word0 = vreinterpretq_u16_u8(a.val[0]), word1 = vreinterpretq_u16_u8(a.val[1]);
    uint32x4_t dword0 = vreinterpretq_u32_u8(a.val[0]), dword1 = vreinterpretq_u32_u8(a.val[1]);
    if (w == 1)
        return DPQ_U8_PAIR(vuzp1q_u8(a.val[0], a.val[1]), vuzp2q_u8(a.val[0], a.val[1]));
    if (w == 2)
        return DPQ_U8_PAIR(vreinterpretq_u8_u16(vuzp1q_u16(word0, word1)),
                           vreinterpretq_u8_u16(vuzp2q_u16(word0, word1)));
    return DPQ_U8_PAIR(vreinterpretq_u8_u32(vuzp1q_u32(dword0, dword1)),
                       vreinterpretq_u8_u32(vuzp2q_u32(dword0, dword1)));
}

enum { LINEAR_ROWS = 6, LINEAR_PANELS = 1, LINEAR_ROW_PANELS = 4 };
enum { EXTEND_VECTORS = 4 }; /* of codewords that a beam entry is extended by at a time */
enum { DPQ_LEAST_BATCH = 3, DPQ_LEAST_BATCH_MANY = 3 }; /* not measured: AVX2's */

typedef float32x4x4_t dpq_f32s;
#define DPQ_F32_EACH(f, a, b)                                           \
    ((dpq_f32s){{f((a).val[0], (b).val[0]), f((a).val[1], (b).val[1]),  \
                 f((a).val[2], (b).val[2]), f((a).val[3], (b).val[3])}})
static inline dpq_f32s dpq_f32_load(const float *p)
{
    return (dpq_f32s){{vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)}};
}
static inline void dpq_f32_store(float *p, dpq_f32s a)
{
    for (int i = 0; i < 4; i++)
        vst1q_f32(p + 4 * i, a.val[i]);
}
static inline dpq_f32s dpq_f32_all(float a)
{
    float32x4_t all = vdupq_n_f32(a);
    return (dpq_f32s){{all, all, all, all}};
}
static inline dpq_f32s dpq_f32_add(dpq_f32s a, dpq_f32s b) { return DPQ_F32_EACH(vaddq_f32, a, b); }
static inline dpq_f32s dpq_f32_sub(dpq_f32s a, dpq_f32s b) { return DPQ_F32_EACH(vsubq_f32, a, b); }
static inline dpq_f32s dpq_f32_mul(dpq_f32s a, dpq_f32s b) { return DPQ_F32_EACH(vmulq_f32, a, b); }
static inline dpq_f32s dpq_f32_max(dpq_f32s a, dpq_f32s b) { return DPQ_F32_EACH(vmaxq_f32, a, b); }
static inline dpq_f32s dpq_f32_abs(dpq_f32s a)
{
    return (dpq_f32s){{vabsq_f32(a.val[0]), vabsq_f32(a.val[1]), vabsq_f32(a.val[2]), vabsq_f32(a.val[3])}};
}
static inline dpq_f32s dpq_f32_min(dpq_f32s a, dpq_f32s b) { return DPQ_F32_EACH(vminq_f32, a, b); }
typedef int32x4x4_t dpq_i32s;
typedef struct { int16x8x2_t lo, hi; } dpq_i16s; /* first and second numbers of 8 pairs */
static inline dpq_i32s dpq_i32_zero(void)
{
    const int32x4_t zero = vdupq_n_s32(0);
    return (dpq_i32s){{zero, zero, zero, zero}};
}
static inline dpq_i16s dpq_i16_load(const int16_t *p) { return (dpq_i16s){vld2q_s16(p), vld2q_s16(p + 16)}; }
/* sum + a's pairs times the pair at b */
static inline dpq_i32s dpq_i16_dot(dpq_i32s sum, dpq_i16s a, const int16_t *b)
{
    for (int i = 0; i < 2; i++) {
        sum.val[0] = vmlal_n_s16(sum.val[0], vget_low_s16(a.lo.val[i]), b[i]);
        sum.val[1] = vmlal_n_s16(sum.val[1], vget_high_s16(a.lo.val[i]), b[i]);
        sum.val[2] = vmlal_n_s16(sum.val[2], vget_low_s16(a.hi.val[i]), b[i]);
        sum.val[3] = vmlal_n_s16(sum.val[3], vget_high_s16(a.hi.val[i]), b[i]);
    }
    return sum;
}
static inline dpq_f32s dpq_i32_to_f32(dpq_i32s a)
{
    return (dpq_f32s){{vcvtq_f32_s32(a.val[0]), vcvtq_f32_s32(a.val[1]), vcvtq_f32_s32(a.val[2]),
                       vcvtq_f32_s32(a.val[3])}};
}
static inline dpq_f32s dpq_f32_fma(dpq_f32s a, dpq_f32s b, dpq_f32s c)
{
    for (int i = 0; i < 4; i++)
        c.val[i] = vfmaq_f32(c.val[i], a.val[i], b.val[i]);
    return c;
}
static inline uint32_t dpq_f32_lt(dpq_f32s a, dpq_f32s b)
{
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int i = 0; i < 4; i++)
        mask |= vaddvq_u32(vandq_u32(vcltq_f32(a.val[i], b.val[i]), bit)) << 4 * i;
    return mask;
}
static inline uint32_t dpq_f32_le(dpq_f32s a, dpq_f32s b)
{
    const uint32x4_t bit = {1, 2, 4, 8};
    uint32_t mask = 0;
    for (int i = 0; i < 4; i++)
        mask |= vaddvq_u32(vandq_u32(vcleq_f32(a.val[i], b.val[i]), bit)) << 4 * i;
    return mask;
}
/* floor(a) modulo 256, of |a| < 2^31, a byte a lane: narrowing moves drop the high bits */
static inline void dpq_f32_floor_u8(uint8_t *p, dpq_f32s a)
{
    uint16x4_t word[4];
    for (int i = 0; i < 4; i++)
        word[i] = vmovn_u32(vreinterpretq_u32_s32(vcvtmq_s32_f32(a.val[i])));
    vst1_u8(p, vmovn_u16(vcombine_u16(word[0], word[1])));
    vst1_u8(p + 8, vmovn_u16(vcombine_u16(word[2], word[3])));
}
/* floor(a), of 0 <= a < 65536, a word a lane; of other a, any word */
static inline void dpq_f32_floor_u16(uint16_t *p, dpq_f32s a)
{
    for (int i = 0; i < 4; i++)
        vst1_u16(p + 4 * i, vmovn_u32(vcvtq_u32_f32(a.val[i])));
}

/* 16 bytes, and 32 bytes: for queries that scan an inverted list together. */
typedef uint8x16_t dpq_u8x16;
static inline dpq_u8x16 dpq_u8x16_load(const void *p) { return vld1q_u8(p); }
static inline void dpq_u8x16_store(void *p, dpq_u8x16 a) { vst1q_u8(p, a); }
static inline dpq_u8x16 dpq_u8x16_zip_low(dpq_u8x16 a, dpq_u8x16 b) { return vzip1q_u8(a, b); }
static inline dpq_u8x16 dpq_u8x16_zip_high(dpq_u8x16 a, dpq_u8x16 b) { return vzip2q_u8(a, b); }
typedef dpq_u8s dpq_u8g;
static inline dpq_u8g dpq_u8g_load(const void *p) { return dpq_u8_load(p); }
static inline dpq_u8g dpq_u8g_add(dpq_u8g a, dpq_u8g b) { return dpq_u8_add(a, b); }
static inline uint32_t dpq_u8g_le(dpq_u8g a, dpq_u8g b) { return (uint32_t)dpq_u8_le(a, b); }
