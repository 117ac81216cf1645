/* Inverted lists of additive codes by residual: what their scanner takes.
 *
 * A vector of a list is its centre plus its codewords, so the distance splits into what query and list give, what
 * query and codewords give (one table a query, whatever the list), and what list and code give:
 *
 *     ||u - w - sum c_l||^2 = ||u - w||^2                                    offset(query, list)
 *                           + sum_l (||c_l||^2 - 2<u, c_l>)                  T of the query
 *                           + sum_{l<l'} 2<c_l, c_l'> + sum_l 2<w, c_l>      term(vector)
 *
 * u, w: query and list centre after centring. For inner products T = -<q, c_l>, offset = -<q, w>, and no terms.
 * distance(v, q) = (((term(v) + T[0][k_0]) + T[1][k_1]) + ...) + offset   in float32, in this order.
 */
#ifndef DPQ_LISTS_H
#define DPQ_LISTS_H

#include "dpq_scan.h"

/* All lists of an index, by number; only entries of probed lists are read. Addresses are kept as integers. */
typedef struct {
    const uint64_t *codes;   /* of the list's rows of code_size bytes */
    const uint64_t *bins;    /* of a byte a vector: the bin of its term; as `terms`, unused for inner products */
    const uint64_t *terms;   /* of a float a vector */
    const uint64_t *allowed; /* of a byte a vector, 0: leave it out; NULL: all take part */
    const int64_t *sizes;
    const float *term_min, *term_step; /* of the list's bins; see scan_bound.h */
    const float *term_magnitude;       /* >= every |term| and bin edge */
    const float *radius;               /* >= the norm of every sum of codewords */
    const float *errors;               /* bounds on |terms - their real values| */
    const float *centres;              /* nlist x stride, zero-padded */
    size_t nlist;
    size_t stride;                     /* a multiple of 16 */
    uint32_t code_size, nbits, levels;
} dpq_lists;

/* What a search asks of them. */
typedef struct {
    dpq_queries queries;
    size_t table_stride;   /* floats from one query's tables to the next's */
    const float *vectors;  /* nq x stride: u, zero-padded (q, for inner products) */
    const int64_t *keys;   /* nq x nprobe: lists, nearest first */
    const int64_t *counts; /* nq x nprobe: how many vectors of each; sums below 2^32 - 1 */
    size_t nprobe;
} dpq_probes;

#endif
