/* The scan of inverted lists: what it takes.
 *
 * A vector of a list is the list's centre w plus the vector's codewords c_l. Its distance to a query u therefore has
 * three parts: one of the query and the list, one of the query and the codewords, and one of the list and the code.
 *
 *     ||u - w - sum c_l||^2 = ||u - w||^2                                    offset(query, list)
 *                           + sum_l (||c_l||^2 - 2<u, c_l>)                  the query's tables T
 *                           + sum_{l<l'} 2<c_l, c_l'> + sum_l 2<w, c_l>      term(vector)
 *
 * The tables do not depend on the list, so that a query needs them once. u and w are what is left of the query and the
 * list's centre after centring. For inner products T = -<q, c_l>, offset = -<q, w>, and there are no terms.
 *
 * distance(v, q) = (((term(v) + T[0][k_0]) + T[1][k_1]) + ...) + offset   in float32, added in this order
 */
#ifndef DPQ_LISTS_H
#define DPQ_LISTS_H

#include "dpq_scan.h"

/* All lists of an index, as arrays over them. Only the entries of probed lists are read. Addresses are integers. */
typedef struct {
    const uint64_t *codes;   /* addresses of rows of code_size bytes */
    const uint64_t *bins;    /* addresses of a byte a vector, the bin of its term; not read for inner products */
    const uint64_t *terms;   /* addresses of a float a vector; NULL: inner products */
    const uint64_t *allowed; /* addresses of a bit a vector, as in dpq_mask.h; NULL: all take part */
    const uint8_t *bitmap;   /* in place of `allowed`: has a bit of every id that is below 8 bitmap_size; or NULL */
    size_t bitmap_size;
    const uint64_t *ids;     /* addresses of the ids; not read without `bitmap` */
    const int64_t *admitted; /* how many of each list take part; not read without `allowed` */
    const int64_t *sizes;
    const float *term_min, *term_step; /* the grid of the list's bins; see scan_bound.h */
    const float *term_magnitude;       /* >= the magnitude of every term and bin edge */
    const float *radius;               /* >= the norm of every sum of codewords */
    const float *errors;               /* bounds on the rounding errors of terms */
    const float *centres;              /* nlist x stride, zero-padded */
    size_t nlist;
    size_t stride;                     /* a multiple of 16 */
    uint32_t code_size, nbits, levels;
} dpq_lists;

/* The queries, and the lists that each of them scans. */
typedef struct {
    dpq_queries queries;
    size_t table_stride;   /* floats from one query's tables to the next's */
    const float *vectors;  /* nq x stride: u (for inner products q), zero-padded */
    const int64_t *keys;   /* nq x nprobe: numbers of lists, nearest first */
    const int64_t *counts; /* nq x nprobe: how many of the list's vectors to scan; a query's sum is below 2^32 - 1 */
    size_t nprobe;
} dpq_probes;

#endif
