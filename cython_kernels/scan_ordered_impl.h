/* Codes in their own order (dpq_order.h), bounded for one query: which vectors of a block may be near.
 *
 * In: an order, a query's tables, a threshold for float sums. Out: the vectors of a bucket that are within it. In a
 * bucket, two bits of the numbers of some levels are known, so that of 256 entries 64 are left, which one or a few
 * instructions look up. Of other levels the entry looked up is the least of two or four near codewords.
 *
 *     m          the least entry that a level has in the bucket
 *     entry      e = min(255, floor((T[k] - m) scale)), or the least of near codewords
 *     S          the sum of all, at most 255
 *
 * Why the result is exact. As in many_bound.h, all that is rounded or cut off makes S less, and the float32 sum d of a
 * vector within the threshold is within Ed = L u B of the real sum of its term and entries. So with `low` = the sum of
 * all m in the bucket, and a block's least term,
 *
 *     S  <=  (threshold + Ed - low - least term) scale (1 + u)^2
 *
 * `low` is a float32 sum of L numbers, and off by at most Ed, too. What ordered_reach gives has both, and what its own
 * rounding, and that of subtracting the term, can be: with scale <= ORDERED_FINEST / (u B) that is a part of a unit. A
 * block for which the right side is below 0 holds no such vector, nor do those after it in its bucket, whose terms are
 * greater.
 *
 * The scale is such that the right side is below 255 in every bucket: it depends on the threshold. So the buckets with
 * the least bounds are scored in float32 first, and give one that is nearly the last.
 */
#ifndef DPQ_SCAN_ORDERED_IMPL_H
#define DPQ_SCAN_ORDERED_IMPL_H

#include "dpq_order.h"
#include "query_tables_impl.h"

#define ORDERED_REGISTERS (DPQ_ORDER_BLOCK / DPQ_QW)
#define ORDERED_FINEST 0x1p-6
#define ORDERED_SHARE 16u

typedef struct {
    float table[DPQ_FEW_LEVELS * 256];   /* [level][number]: the entries */
    float nearby[DPQ_FEW_LEVELS * 256];  /* the same, of near codewords the least, less m */
    uint8_t bytes[DPQ_FEW_LEVELS * 256]; /* e, prepared for look-ups */
    float least[DPQ_FEW_LEVELS * 4];     /* m of a level; of one that is known, m of every group */
    float lows[DPQ_ORDER_BUCKETS];       /* `low` of every bucket; +inf once it has been scored */
    double error;                        /* 2 Ed, and the rounding of ordered_reach by `scale` */
    double magnitude;                    /* B */
    float scale;
} ordered_query;

/* A bucket's tables. */
typedef struct {
    const float *table[DPQ_FEW_LEVELS];
    const uint8_t *bytes[DPQ_FEW_LEVELS];
} ordered_bucket;

/* ---- tables of a query ---- */

DPQ_INLINE float ordered_least(dpq_f32s a)
{
    float lanes[DPQ_FW], least = INFINITY;
    dpq_f32_store(lanes, a);
    for (uint32_t i = 0; i < DPQ_FW; i++)
        least = lanes[i] < least ? lanes[i] : least;
    return least;
}

/* Subtracts the least of n entries, a multiple of DPQ_FW, and returns it. */
DPQ_INLINE float ordered_lower(float *entries, uint32_t n)
{
    dpq_f32s lowest = dpq_f32_load(entries);
    for (uint32_t i = DPQ_FW; i < n; i += DPQ_FW)
        lowest = dpq_f32_min(lowest, dpq_f32_load(entries + i));
    float least = ordered_least(lowest);
    lowest = dpq_f32_all(least);
    for (uint32_t i = 0; i < n; i += DPQ_FW)
        dpq_f32_store(entries + i, dpq_f32_sub(dpq_f32_load(entries + i), lowest));
    return least;
}

/* near, of which the first DPQ_ORDER_ENTRIES are used: the least of the entries that share their low bits. */
DPQ_INLINE void ordered_near(const float *table, float *nearby)
{
    for (uint32_t i = 0; i < DPQ_ORDER_ENTRIES; i += DPQ_FW) {
        dpq_f32s least = dpq_f32_load(table + i);
        for (uint32_t j = i + DPQ_ORDER_ENTRIES; j < 256; j += DPQ_ORDER_ENTRIES)
            least = dpq_f32_min(least, dpq_f32_load(table + j));
        dpq_f32_store(nearby + i, least);
    }
}

/* Fills all but the bytes. Returns 0 where there is no bound, as the entries are too large. */
static int ordered_begin(const dpq_order *order, const float *table, ordered_query *q)
{
    float rest = 0;
    q->magnitude = table_magnitude(table, 256, order->levels) + order->term_magnitude;
    if (!(q->magnitude < 1e30))
        return 0;
    q->magnitude = fmax(q->magnitude, 1e-30);
    for (uint32_t l = 0; l < order->levels; l++, table += 256) {
        float *entries = q->table + l * 256, *nearby = q->nearby + l * 256, *least = q->least + l * 4;
        for (uint32_t k = 0; k < 256; k++)
            entries[order->numbers[l * 256 + k]] = table[k];
        if (l < order->known) {
            memcpy(nearby, entries, 256 * sizeof *nearby);
            for (uint32_t g = 0; g < 4; g++)
                least[g] = ordered_lower(nearby + g * 64, 64);
        } else {
            ordered_near(entries, nearby);
            rest += *least = ordered_lower(nearby, DPQ_ORDER_ENTRIES);
        }
    }
    q->lows[0] = rest;
    for (uint32_t l = order->known, n = 1; l-- > 0; n *= 4) /* the first level's group counts most in a bucket's number */
        for (uint32_t g = 4; g-- > 0;)
            for (uint32_t i = 0; i < n; i++)
                q->lows[g * n + i] = q->lows[i] + q->least[l * 4 + g];
    return 1;
}

/* The bucket whose bound, with its least term, is the least; *bound is +inf if all buckets have been scored. */
static uint32_t ordered_nearest(const dpq_order *order, const ordered_query *q, float *bound)
{
    uint32_t buckets = dpq_order_buckets(order), bucket = 0;
    dpq_f32s least = dpq_f32_all(INFINITY);
    for (uint32_t b = 0; b < buckets; b += DPQ_FW)
        least = dpq_f32_min(least, dpq_f32_add(dpq_f32_load(q->lows + b), dpq_f32_load(order->bucket_terms + b)));
    *bound = ordered_least(least);
    while (bucket + 1 < buckets && q->lows[bucket] + order->bucket_terms[bucket] > *bound)
        bucket++;
    return bucket;
}

/* A bound that about a share of 1 / ORDERED_SHARE of the buckets does not exceed. nearest: the least one. */
static float ordered_share(const dpq_order *order, const ordered_query *q, float nearest, float threshold)
{
    enum { STEPS = 64 };
    uint32_t counts[STEPS + 1] = {0}, buckets = dpq_order_buckets(order), sum = 0, step = 0;
    float width = (threshold - nearest) / STEPS, per_step = width > 0 ? 1 / width : 0;
    for (uint32_t b = 0; b < buckets; b++)
        counts[(uint32_t)fminf((q->lows[b] + order->bucket_terms[b] - nearest) * per_step, STEPS)]++;
    while (step < STEPS && (sum += counts[step]) < buckets / ORDERED_SHARE)
        step++;
    return nearest + width * (float)step;
}

/* Fills the bytes, for a threshold of float sums. nearest: of ordered_nearest. */
static void ordered_scale(const dpq_order *order, ordered_query *q, float threshold, float nearest)
{
    double sums = 2.02 * order->levels * q->magnitude / (1 << 24), span = (double)threshold - nearest + sums;
    q->scale = (float)fmin(254 / fmax(span, 1e-30), ORDERED_FINEST * (1 << 24) / q->magnitude);
    q->error = sums + 8 * q->magnitude / (1 << 24);
    dpq_f32s zero = dpq_f32_all(0.0f), scale = dpq_f32_all(q->scale);
    for (uint32_t l = 0; l < order->levels; l++) {
        uint32_t n = l < order->known ? 256 : DPQ_ORDER_ENTRIES;
        for (uint32_t i = 0; i < n; i += DPQ_FW)
            table_bytes_from(q->bytes + l * 256 + i, q->nearby + l * 256 + i, zero, scale);
        for (uint32_t i = 0; i < n; i += 64)
            dpq_lookup64_prepare(q->bytes + l * 256 + i);
    }
}

/* What the right side of the head's inequality is without the term; rounded up. */
static inline float ordered_reach(const ordered_query *q, uint32_t bucket, float threshold)
{
    return (float)(((double)threshold + q->error - q->lows[bucket]) * q->scale * (1 + 0x1p-20) + 0x1p-10);
}

/* ---- buckets and blocks ---- */

/* The tables of levels first .. end - 1; those of levels that are not known are the same in all buckets. */
static inline void ordered_enter(const dpq_order *order, const ordered_query *q, uint32_t bucket, uint32_t first,
                                 uint32_t end, ordered_bucket *in)
{
    for (uint32_t l = first; l < end; l++) {
        uint32_t group = l < order->known ? bucket >> 2 * (order->known - 1 - l) & 3 : 0;
        in->table[l] = q->table + l * 256 + group * 64;
        in->bytes[l] = q->bytes + l * 256 + group * 64;
    }
}

/* A bit a vector of a block whose S is within the limit. */
DPQ_INLINE uint64_t ordered_within(uint32_t levels, uint32_t known, const ordered_bucket *in, const uint8_t *planes,
                                   uint8_t limit)
{
    dpq_u8s sums[ORDERED_REGISTERS], limits = dpq_u8_all(limit);
    uint64_t within = 0;
    for (uint32_t r = 0; r < ORDERED_REGISTERS; r++)
        sums[r] = dpq_u8_all(0);
    DPQ_UNROLL
    for (uint32_t l = 0; l < levels; l++) {
        dpq_u8s entries[ORDERED_REGISTERS];
        for (uint32_t r = 0; r < ORDERED_REGISTERS; r++)
            entries[r] = dpq_u8_load(planes + l * DPQ_ORDER_BLOCK + r * DPQ_QW);
        if (l < known)
            dpq_lookup64(in->bytes[l], entries, ORDERED_REGISTERS);
        else
            dpq_lookup_near(in->bytes[l], entries, ORDERED_REGISTERS);
        for (uint32_t r = 0; r < ORDERED_REGISTERS; r++)
            sums[r] = dpq_u8_add_saturating(sums[r], entries[r]);
    }
    for (uint32_t r = 0; r < ORDERED_REGISTERS; r++)
        within |= dpq_u8_le(sums[r], limits) << r * DPQ_QW;
    return within;
}

/* Writes the places of the vectors of a block that `within` names, and begins to fetch what rescoring needs of them
 * besides the planes. Returns how many there are. */
static inline size_t ordered_note(const dpq_order *order, size_t block, uint64_t within, uint32_t *places)
{
    size_t found = 0;
    for (; within; within &= within - 1) {
        size_t place = block * DPQ_ORDER_BLOCK + (size_t)__builtin_ctzll(within);
        places[found++] = (uint32_t)place;
        __builtin_prefetch(order->ids + place);
        if (order->terms)
            __builtin_prefetch(order->terms + place);
    }
    return found;
}

/* The float sum of the vector at a place of the bucket. */
DPQ_INLINE float ordered_sum(uint32_t levels, const dpq_order *order, const ordered_bucket *in, uint32_t place)
{
    const uint8_t *plane = order->planes + (size_t)(place / DPQ_ORDER_BLOCK) * DPQ_ORDER_BLOCK * levels
                           + place % DPQ_ORDER_BLOCK;
    float sum = order->terms ? order->terms[place] : 0.0f;
    DPQ_UNROLL
    for (uint32_t l = 0; l < levels; l++)
        sum += in->table[l][plane[l * DPQ_ORDER_BLOCK]];
    return sum;
}

/* By the numbers of levels for which the compiler makes code of its own. */
#define ORDERED_BY_LEVELS(function, levels, ...)              \
    ((levels) == 4    ? function(4, __VA_ARGS__)              \
     : (levels) == 8  ? function(8, __VA_ARGS__)              \
     : (levels) == 16 ? function(16, __VA_ARGS__)             \
                      : function(levels, __VA_ARGS__))

#endif
