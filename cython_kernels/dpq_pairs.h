/* Pairs of levels, and the table of cross terms that each of them has.
 *
 * Pair (i, l) of levels i < l has number l (l - 1) / 2 + i, so that the pairs of the first levels come first. `cross`
 * holds one table of K x K floats a pair:
 *
 *     cross[pair][k_i][k_l] = 2<c_i(k_i), c_l(k_l)>
 */
#ifndef DPQ_PAIRS_H
#define DPQ_PAIRS_H

#include "dpq_base.h"

/* cross[pair (i, l)][k]: the cross terms of codeword k of level i with every codeword of level l. */
DPQ_INLINE const float *dpq_pair_row(const float *cross, size_t K, size_t i, size_t l, size_t k)
{
    return cross + (l * (l - 1) / 2 + i) * (K * K) + k * K;
}

/* Runs the statement after it for every pair (i, l) of the first `levels` levels, in the order of their numbers.
 * `table`, a variable that begins as `cross`, points to the pair's table. (Stepping is faster than computing where a
 * table begins.) */
#define DPQ_FOR_PAIRS(i, l, levels, table, K)        \
    for (uint32_t l = 1; l < (levels); l++)          \
        for (uint32_t i = 0; i < l; i++, (table) += (K) * (K))

/* The sum of a code's cross terms, added in the order of the pairs. */
DPQ_INLINE float dpq_cross_term(const float *cross, size_t K, const uint16_t *code, uint32_t levels)
{
    float sum = 0.0f;
    DPQ_FOR_PAIRS(i, l, levels, cross, K)
        sum += cross[code[i] * K + code[l]];
    return sum;
}

/* Starts to fetch what dpq_cross_term will read. */
DPQ_INLINE void dpq_prefetch_cross(const float *cross, size_t K, const uint16_t *code, uint32_t levels)
{
    DPQ_FOR_PAIRS(i, l, levels, cross, K)
        __builtin_prefetch(cross + code[i] * K + code[l]);
}

/* out[v] = dpq_cross_term of code v, whose codeword numbers begin at codes[v * code_stride]. */
static inline void dpq_cross_terms(const uint16_t *codes, size_t n, size_t code_stride, uint32_t levels, size_t K,
                                   const float *cross, float *out)
{
    for (size_t v = 0; v < n; v++)
        out[v] = dpq_cross_term(cross, K, codes + v * code_stride, levels);
}

#endif
