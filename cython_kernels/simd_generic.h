/* No instruction set in particular: plain loops over lanes, of which the compiler makes what it can. Always there, and
 * always tested beside the others. */
#include "bits_of_ids.h"
#include "nonzero8.h"
#include <math.h>
#include <string.h>

#define DPQ_QW 32u
#define DPQ_FW 16u

enum { LINEAR_ROWS = 2, LINEAR_PANELS = 1, LINEAR_ROW_PANELS = 2 };
enum { EXTEND_VECTORS = 4 }; /* of codewords that a beam entry is extended by at a time */
enum { DPQ_LEAST_BATCH = 2, DPQ_LEAST_BATCH_MANY = 2 };

typedef struct { uint8_t lane[DPQ_QW]; } dpq_u8s;
static inline dpq_u8s dpq_u8_load(const void *p)
{
    dpq_u8s a;
    memcpy(a.lane, p, DPQ_QW);
    return a;
}
static inline dpq_u8s dpq_u8_add(dpq_u8s a, dpq_u8s b)
{
    for (uint32_t i = 0; i < DPQ_QW; i++)
        a.lane[i] = (uint8_t)(a.lane[i] + b.lane[i]);
    return a;
}
static inline dpq_u8s dpq_u8_add_saturating(dpq_u8s a, dpq_u8s b)
{
    for (uint32_t i = 0; i < DPQ_QW; i++) {
        uint8_t sum = (uint8_t)(a.lane[i] + b.lane[i]);
        a.lane[i] = (uint8_t)(sum | -(sum < b.lane[i]));
    }
    return a;
}
static inline uint64_t dpq_u8_le(dpq_u8s a, dpq_u8s b)
{
    uint64_t mask = 0;
    uint8_t any = 0;
    for (uint32_t i = 0; i < DPQ_QW; i++)
        any |= (uint8_t)(a.lane[i] <= b.lane[i]);
    if (any)
        for (uint32_t i = 0; i < DPQ_QW; i++)
            mask |= (uint64_t)(a.lane[i] <= b.lane[i]) << i;
    return mask;
}

static inline dpq_u8s dpq_u8_all(uint8_t x)
{
    dpq_u8s a;
    memset(a.lane, x, DPQ_QW);
    return a;
}
static inline dpq_u8s dpq_u8_and(dpq_u8s a, dpq_u8s b)
{
    for (uint32_t i = 0; i < DPQ_QW; i++)
        a.lane[i] &= b.lane[i];
    return a;
}
static inline dpq_u8s dpq_u32_shr(dpq_u8s a, int bits)
{
    uint32_t words[DPQ_QW / 4];
    memcpy(words, a.lane, DPQ_QW);
    for (uint32_t i = 0; i < DPQ_QW / 4; i++)
        words[i] >>= bits;
    memcpy(a.lane, words, DPQ_QW);
    return a;
}
/* Bytes of two vectors in a new order, written so because compilers make no vector code of a loop that does that. */
typedef uint8_t dpq_bytes __attribute__((vector_size(16)));
#ifdef __clang__
#define DPQ_SHUFFLE __builtin_shufflevector
#else
#define DPQ_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (dpq_bytes){__VA_ARGS__})
#endif
/* Bytes at .. at + 15 of rows[0], rows[16], ..., each in a lane of 16. */
static inline dpq_u8s dpq_u8_of_rows(const uint8_t *const *rows, size_t at)
{
    dpq_u8s a;
    for (uint32_t lane = 0; lane < DPQ_QW; lane += 16)
        memcpy(a.lane + lane, rows[lane] + at, 16);
    return a;
}
/* Interleaves every 16 bytes of a with those of b. The first half goes to a, the other to b. */
static inline void dpq_u8_zip(dpq_u8s *a, dpq_u8s *b)
{
    for (uint32_t lane = 0; lane < DPQ_QW; lane += 16) {
        dpq_bytes x, y, low, high;
        memcpy(&x, a->lane + lane, 16);
        memcpy(&y, b->lane + lane, 16);
        low = DPQ_SHUFFLE(x, y, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        high = DPQ_SHUFFLE(x, y, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        memcpy(a->lane + lane, &low, 16);
        memcpy(b->lane + lane, &high, 16);
    }
}
/* a * slope / 256 modulo 256, rounded down */
static inline dpq_u8s dpq_u8_scale(dpq_u8s a, uint16_t slope)
{
    for (uint32_t i = 0; i < DPQ_QW; i++)
        a.lane[i] = (uint8_t)((uint32_t)a.lane[i] * slope >> 8);
    return a;
}
/* The same lanes as DPQ_QW / 2 words, for sums of more than 8 bits: byte 2 i is in word i of `even`, byte 2 i + 1 in
 * word i of `odd`. */
typedef struct { uint16_t word[DPQ_QW / 2]; } dpq_words;
static inline dpq_words dpq_u16_of(dpq_u8s a)
{
    dpq_words words;
    memcpy(words.word, a.lane, DPQ_QW);
    return words;
}
static inline void dpq_u8_store(void *p, dpq_u8s a) { memcpy(p, a.lane, DPQ_QW); }
static inline dpq_u8s dpq_u8_max(dpq_u8s a, dpq_u8s b)
{
    for (uint32_t i = 0; i < DPQ_QW; i++)
        a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
static inline dpq_u8s dpq_u16_all(uint16_t x)
{
    dpq_words words;
    for (uint32_t i = 0; i < DPQ_QW / 2; i++)
        words.word[i] = x;
    return dpq_u8_load(words.word);
}
static inline dpq_u8s dpq_u16_even(dpq_u8s a)
{
    dpq_words words = dpq_u16_of(a);
    for (uint32_t i = 0; i < DPQ_QW / 2; i++)
        words.word[i] &= 255;
    return dpq_u8_load(words.word);
}
static inline dpq_u8s dpq_u16_odd(dpq_u8s a)
{
    dpq_words words = dpq_u16_of(a);
    for (uint32_t i = 0; i < DPQ_QW / 2; i++)
        words.word[i] >>= 8;
    return dpq_u8_load(words.word);
}
static inline dpq_u8s dpq_u16_add_saturating(dpq_u8s a, dpq_u8s b)
{
    dpq_words x = dpq_u16_of(a), y = dpq_u16_of(b);
    for (uint32_t i = 0; i < DPQ_QW / 2; i++) {
        uint16_t sum = (uint16_t)(x.word[i] + y.word[i]);
        x.word[i] = sum < x.word[i] ? UINT16_MAX : sum;
    }
    return dpq_u8_load(x.word);
}
static inline dpq_u8s dpq_u16_mul_high(dpq_u8s a, dpq_u8s b)
{
    dpq_words x = dpq_u16_of(a), y = dpq_u16_of(b);
    for (uint32_t i = 0; i < DPQ_QW / 2; i++)
        x.word[i] = (uint16_t)((uint32_t)x.word[i] * y.word[i] >> 16);
    return dpq_u8_load(x.word);
}
/* A bit a word: those of a <= a_limit, then those of b <= b_limit. */
static inline uint64_t dpq_u16_le(dpq_u8s a, dpq_u8s a_limit, dpq_u8s b, dpq_u8s b_limit)
{
    dpq_words x = dpq_u16_of(a), y = dpq_u16_of(b), x_limit = dpq_u16_of(a_limit), y_limit = dpq_u16_of(b_limit);
    uint64_t mask = 0;
    for (uint32_t i = 0; i < DPQ_QW / 2; i++)
        mask |= (uint64_t)(x.word[i] <= x_limit.word[i]) << i
                | (uint64_t)(y.word[i] <= y_limit.word[i]) << (i + DPQ_QW / 2);
    return mask;
}
/* Four bytes, at .. at + 3, of each of DPQ_QW / 4 rows. */
static inline dpq_u8s dpq_u32_column(const uint8_t *rows, size_t code_size, size_t at)
{
    dpq_u8s a;
    for (uint32_t i = 0; i < DPQ_QW / 4; i++)
        memcpy(a.lane + 4 * i, rows + i * code_size + at, 4);
    return a;
}
/* Look-ups in a table of 256 entries, which `prepare` puts into the form that dpq_lookup256 reads: of n <= DPQ_LOOKED_UP
 * registers, in place. n is a constant. */
#define DPQ_LOOKED_UP 4u
static inline void dpq_lookup256_prepare(uint8_t *table) { (void)table; }
static inline void dpq_lookup256(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    for (uint32_t r = 0; r < n; r++)
        for (uint32_t i = 0; i < DPQ_QW; i++)
            index[r].lane[i] = table[index[r].lane[i]];
}
/* index < 16; the table is not prepared */
static inline dpq_u8s dpq_lookup16(const uint8_t *table, dpq_u8s index)
{
    dpq_lookup256(table, &index, 1);
    return index;
}
#define DPQ_LOOKS_UP 0 /* one query's scan adds up floats, which takes half the time of looking up bytes one by one */
#define DPQ_LOOK_UP_COST 60 /* for one query: see lists_rows_impl.h */
/* Codes of more levels are not put in order: looked up one by one, they take no less time. */
#define DPQ_MOST_ORDERED 4u
/* index < 64 */
static inline void dpq_lookup64_prepare(uint8_t *table) { (void)table; }
static inline void dpq_lookup64(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    dpq_lookup256(table, index, n);
}
/* The entries of the indices' low bits, as many as DPQ_ORDER_ENTRIES has: here all. */
#define DPQ_ORDER_ENTRIES 256u
static inline void dpq_lookup_near(const uint8_t *table, dpq_u8s *index, uint32_t n)
{
    dpq_lookup256(table, index, n);
}
/* Reorders bytes from [16 / w][2][w] to [2][16 / w][w], for w = 1, 2, 4. */
static inline dpq_u8s dpq_u8_by_lanes(dpq_u8s a, uint32_t w)
{
    dpq_u8s b;
    for (uint32_t i = 0; i < DPQ_QW; i++)
        b.lane[i] = a.lane[(i % 16 / w * 2 + i / 16) * w + i % w];
    return b;
}

typedef struct { float lane[DPQ_FW]; } dpq_f32s;
static inline dpq_f32s dpq_f32_load(const float *p)
{
    dpq_f32s a;
    memcpy(a.lane, p, sizeof a);
    return a;
}
static inline void dpq_f32_store(float *p, dpq_f32s a) { memcpy(p, a.lane, sizeof a); }
static inline dpq_f32s dpq_f32_all(float x)
{
    dpq_f32s a;
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] = x;
    return a;
}
static inline dpq_f32s dpq_f32_add(dpq_f32s a, dpq_f32s b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] += b.lane[i];
    return a;
}
static inline dpq_f32s dpq_f32_sub(dpq_f32s a, dpq_f32s b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] -= b.lane[i];
    return a;
}
static inline dpq_f32s dpq_f32_mul(dpq_f32s a, dpq_f32s b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] *= b.lane[i];
    return a;
}
static inline dpq_f32s dpq_f32_max(dpq_f32s a, dpq_f32s b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] = a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
static inline dpq_f32s dpq_f32_abs(dpq_f32s a)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] = fabsf(a.lane[i]);
    return a;
}
static inline dpq_f32s dpq_f32_min(dpq_f32s a, dpq_f32s b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        a.lane[i] = a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i];
    return a;
}
typedef struct { int32_t lane[DPQ_FW]; } dpq_i32s;
typedef struct { int16_t lane[2 * DPQ_FW]; } dpq_i16s;
static inline dpq_i32s dpq_i32_zero(void) { return (dpq_i32s){{0}}; }
static inline dpq_i16s dpq_i16_load(const int16_t *p)
{
    dpq_i16s a;
    memcpy(a.lane, p, sizeof a);
    return a;
}
/* sum + a's pairs times the pair at b */
static inline dpq_i32s dpq_i16_dot(dpq_i32s sum, dpq_i16s a, const int16_t *b)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        sum.lane[i] += a.lane[2 * i] * b[0] + a.lane[2 * i + 1] * b[1];
    return sum;
}
static inline dpq_f32s dpq_i32_to_f32(dpq_i32s a)
{
    dpq_f32s b;
    for (uint32_t i = 0; i < DPQ_FW; i++)
        b.lane[i] = (float)a.lane[i];
    return b;
}
static inline dpq_f32s dpq_f32_fma(dpq_f32s a, dpq_f32s b, dpq_f32s c)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        c.lane[i] += a.lane[i] * b.lane[i];
    return c;
}
static inline uint32_t dpq_f32_lt(dpq_f32s a, dpq_f32s b)
{
    uint32_t mask = 0;
    for (uint32_t i = 0; i < DPQ_FW; i++)
        mask |= (uint32_t)(a.lane[i] < b.lane[i]) << i;
    return mask;
}
static inline uint32_t dpq_f32_le(dpq_f32s a, dpq_f32s b)
{
    uint32_t mask = 0;
    for (uint32_t i = 0; i < DPQ_FW; i++)
        mask |= (uint32_t)(a.lane[i] <= b.lane[i]) << i;
    return mask;
}
/* floor(a) modulo 256, of |a| < 2^31, a byte a lane */
static inline void dpq_f32_floor_u8(uint8_t *p, dpq_f32s a)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        p[i] = (uint8_t)(int32_t)floorf(a.lane[i]);
}
/* floor(a), of 0 <= a < 65536, a word a lane; of other a, any word */
static inline void dpq_f32_floor_u16(uint16_t *p, dpq_f32s a)
{
    for (uint32_t i = 0; i < DPQ_FW; i++)
        p[i] = (uint16_t)(int32_t)fminf(fmaxf(a.lane[i], 0.0f), 65535.0f);
}

/* 16 bytes, and 32 bytes: for queries that scan an inverted list together. */
typedef struct { uint8_t lane[16]; } dpq_u8x16;
static inline dpq_u8x16 dpq_u8x16_load(const void *p)
{
    dpq_u8x16 a;
    memcpy(a.lane, p, 16);
    return a;
}
static inline void dpq_u8x16_store(void *p, dpq_u8x16 a) { memcpy(p, a.lane, 16); }
/* a[0] b[0] a[1] b[1] ... of the first (for `high` the second) halves */
static inline dpq_u8x16 dpq_u8x16_zip_low(dpq_u8x16 a, dpq_u8x16 b)
{
    dpq_u8x16 c;
    for (uint32_t i = 0; i < 8; i++) {
        c.lane[2 * i] = a.lane[i];
        c.lane[2 * i + 1] = b.lane[i];
    }
    return c;
}
static inline dpq_u8x16 dpq_u8x16_zip_high(dpq_u8x16 a, dpq_u8x16 b)
{
    memcpy(a.lane, a.lane + 8, 8);
    memcpy(b.lane, b.lane + 8, 8);
    return dpq_u8x16_zip_low(a, b);
}
typedef dpq_u8s dpq_u8g;
static inline dpq_u8g dpq_u8g_load(const void *p) { return dpq_u8_load(p); }
static inline dpq_u8g dpq_u8g_add(dpq_u8g a, dpq_u8g b) { return dpq_u8_add(a, b); }
static inline uint32_t dpq_u8g_le(dpq_u8g a, dpq_u8g b) { return (uint32_t)dpq_u8_le(a, b); }
