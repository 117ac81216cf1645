/* The scan of all codes: what it takes and what it returns.
 *
 * sum(v, q)      = ((term(v) + T[0][k_0]) + T[1][k_1]) + ...   in float32, added in this order
 * distance(v, q) = sum(v, q) + A, but at least 0 for L2
 * term(v)        = the sum of the cross terms of v's code (dpq_pairs.h), in the order of the pairs
 *
 * T: the query's tables; A: the query's constant; k_l: the codeword number of v at level l. The ids and distances
 * returned are those of a plain loop over all vectors, bit for bit; of equal distances the lower id comes first. Where
 * a distance is infinite or NaN, because the query is, the vector is not found.
 */
#ifndef DPQ_SCAN_H
#define DPQ_SCAN_H

#include <stddef.h>
#include <stdint.h>

#define DPQ_MAX_LEVELS 1024u
/* Codes of more levels have terms that are stored and no bins, and are bounded by sums of 16 bits: many_bound.h. So are
 * shorter prefixes of such codes where one query's coarse-to-fine search scans them by the columns of all levels. */
#define DPQ_FEW_LEVELS 16u

/* The codes that a search scans, and what was derived from them. It compares the first `levels` levels of codes. */
typedef struct {
    const uint8_t *codes;     /* n rows of code_size bytes, packed as FAISS's BitstringWriter packs */
    size_t n;                 /* < 2^32 - 1 */
    uint32_t code_size;       /* <= 2 DPQ_MAX_LEVELS */
    uint32_t nbits;           /* 1..16 */
    uint32_t levels;          /* 1..DPQ_MAX_LEVELS */
    const float *cross;       /* pairs x K x K; see dpq_pairs.h */
    const float *terms;       /* n, instead of `cross`: of more levels than DPQ_FEW_LEVELS, and of large codebooks */
    int wide;                 /* whether sums of 16 bits bound the codes (many_bound.h); always of many levels */
    const uint8_t *term_bins; /* n, from dpq_term_bins; NULL: all terms are 0 (inner product), or `wide` */
    float term_min, term_step;/* of bins from dpq_term_grid; where `wide` those of many_bound.h */
    const uint8_t *columns;   /* codes by levels, where `wide`: see many_columns.h; NULL: there are none */
    size_t column;            /* where the view's first vector is in these */
    size_t column_bytes;      /* bytes of a code that they hold: of `levels` levels, or of more */
    float radius;             /* >= the norm of every reconstructed vector */
    const struct dpq_order *order; /* of the first vectors: see dpq_order.h; NULL: there is none */
    const uint64_t *allowed;  /* bit v & 63 of word v >> 6: whether v takes part (dpq_mask.h); NULL: all do */
    const uint32_t *allowed_before; /* see dpq_mask.h; not read of lists; NULL: nobody has counted, see there */
    const int64_t *ids;       /* of vectors of a list, by which `allowed` has its bits, if it is a bitmap of ids; or NULL */
    size_t allowed_size;      /* then, bytes of the bitmap */
    const uint32_t *listed;   /* instead of a mask, the vectors that take part, n_listed of them; NULL: there is no list */
    size_t n_listed;
} dpq_database;

typedef struct {
    const float *tables;      /* nq x levels x K */
    const float *norms;       /* nq: ||q||^2, which sums leave out; the lower bound of sums needs it */
    const float *constants;   /* nq: A */
    const float *table_errors;/* nq: bounds on the rounding errors of the tables and the term, summed over levels */
    int inner_product;        /* 1: tables are -<q, c>, and sums lie in [-||q|| radius, ||q|| radius] */
    int in_any_order;         /* 1: a query's results need not be sorted; not read of lists */
    size_t nq;
} dpq_queries;

/* How much work a call did. */
typedef struct {
    uint64_t bounded;  /* (vector, query) pairs judged by their byte bound */
    uint64_t rescored; /* those of them that passed and were scored in float32 */
    uint64_t floated;  /* pairs scanned in float32 */
    uint64_t ordered;  /* pairs of codes in an order of their own, whether bounded, or left out with their block */
    uint64_t together; /* groups of queries that scanned an inverted list together */
    uint64_t threads;  /* the most that took part in the scan of one query; 0 where there is only ever one */
} dpq_counters;

#endif
