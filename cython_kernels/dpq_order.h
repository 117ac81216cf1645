/* Codes in an order of their own, for searches of one query: what scan_ordered_impl.h scans.
 *
 * Codewords are renumbered so that near ones have near numbers: a number is a path in a tree that halves the codebook
 * again and again. The first two bits of the paths of the first `known` levels are the vector's bucket; what is left
 * of a number in a bucket is one of 64. Vectors stand by buckets, in a bucket by ascending terms, in blocks of 64; the
 * last block of a bucket is filled up with places that hold no vector.
 *
 *     number of a known level     64 g + p         g: the first two bits of the path, p: the six others
 *     number of another level     p + 64 f         p: the first six bits, f: the last two, the seventh as the lower one
 *
 * So the low six (or seven) bits of a number always tell codewords apart that are not near.
 */
#ifndef DPQ_ORDER_H
#define DPQ_ORDER_H

#include "dpq_base.h"
#include <string.h>

#define DPQ_ORDER_BLOCK 64u
#define DPQ_ORDER_MOST_KNOWN 6u
#define DPQ_ORDER_BUCKETS (1u << 2 * DPQ_ORDER_MOST_KNOWN)
#define DPQ_ORDER_NOBODY UINT32_MAX /* the id of a place without a vector */

/* Of 8-bit codes of at most DPQ_FEW_LEVELS levels. */
typedef struct dpq_order {
    size_t n;                  /* vectors in it: the first of the database */
    uint32_t levels;
    uint32_t known;            /* levels of which two bits are known in a bucket, at least two; 4^known buckets */
    const uint8_t *numbers;    /* [levels][256]: of every codeword */
    const uint32_t *starts;    /* [4^known + 1]: the first block of every bucket */
    const float *bucket_terms; /* [4^known]: the least term; +inf of no vectors */
    const float *block_terms;  /* [blocks]: the least term */
    const uint8_t *planes;     /* [blocks][levels][64]: p and f of every number */
    const float *terms;        /* [blocks][64]; NULL: all are 0 */
    const uint32_t *ids;       /* [blocks][64] */
    float term_magnitude;      /* no term is greater, nor its negative */
} dpq_order;

static inline uint32_t dpq_order_buckets(const dpq_order *order)
{
    return 1u << 2 * order->known;
}

static inline size_t dpq_order_blocks(const dpq_order *order, size_t bucket)
{
    return order->starts[bucket + 1] - order->starts[bucket];
}

/* Writes the planes, and the terms if there are any, of blocks first .. end - 1. vectors: ids, as in the order. */
static inline void dpq_order_fill(const dpq_order *order, const uint8_t *codes, size_t code_size, const float *terms,
                                  size_t first, size_t end, uint8_t *planes, float *ordered_terms)
{
    for (size_t place = first * DPQ_ORDER_BLOCK; place < end * DPQ_ORDER_BLOCK; place++) {
        uint8_t *plane = planes + place / DPQ_ORDER_BLOCK * DPQ_ORDER_BLOCK * order->levels + place % DPQ_ORDER_BLOCK;
        uint32_t v = order->ids[place];
        for (uint32_t l = 0; l < order->levels; l++) {
            uint8_t number = v == DPQ_ORDER_NOBODY ? 0 : order->numbers[l * 256 + codes[v * code_size + l]];
            plane[l * DPQ_ORDER_BLOCK] = l < order->known ? number & 63 : number;
        }
        if (ordered_terms)
            ordered_terms[place] = v == DPQ_ORDER_NOBODY ? 0.0f : terms[v];
    }
}

#endif
