/* The threshold that a scan begins with: guessed from a sample of the vectors, and proven only where the guess fails.
 *
 * In: how many vectors are sampled of how many. Out: which they are, and the rank in the sample of the vector whose
 * distance is the first threshold.
 *
 * The k-th nearest of the sample proves a threshold, since k vectors are that near. But n / size times k vectors are
 * within it, and where k is large most of the time went into rescoring them. The k nearest of all vectors have k size /
 * n of themselves in the sample, give or take its root: so a little further back in the sample stands one that is
 * farther than all of these. In one search of some hundred thousand it is not. Then fewer than k vectors are found, and
 * the search is done again from a proven threshold. So results are exact whatever the sample is.
 *
 * Sampled vectors are spaced evenly, and then moved by less than the space between them, so that a database whose order
 * has a period is sampled as well as any.
 */
#ifndef DPQ_SCAN_SAMPLE_H
#define DPQ_SCAN_SAMPLE_H

#include "dpq_base.h"
#include <math.h>
#include <stddef.h>
#include <stdint.h>

/* The rank of a guess, of results of which so many are expected in a sample; spread: their variance. */
static inline size_t dpq_rank_with_spread(double expected, double spread)
{
    return (size_t)(expected + 4 * sqrt(spread) + 4);
}

/* The rank of the guess among `size` sampled vectors of n; k, which is proven, where the guess is no better. */
static inline size_t dpq_guessed_rank(size_t size, size_t n, size_t k)
{
    double expected = (double)k * (double)size / (double)n;
    return dpq_min(k, dpq_rank_with_spread(expected, expected));
}

/* Sampled vector number i. stride 1: vector i. */
static inline size_t dpq_sampled(size_t i, size_t stride)
{
    uint32_t random = (uint32_t)i * 0x9e3779b1u;
    random = (random ^ random >> 15) * 0x85ebca6bu;
    random ^= random >> 13;
    return i * stride + (size_t)((uint64_t)random * stride >> 32);
}

#endif
