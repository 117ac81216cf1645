/* Exact exhaustive ADC over additive (residual) codes: what the scanners take and give back.
 *
 * distance(v, q) = ((term(v) + T[0][k_0]) + T[1][k_1]) + ...   in float32, in this order
 * term(v)        = sum over pairs l' < l, in pair order l(l-1)/2 + l', of cross[pair][k_l'][k_l]
 *
 * The ids and distances returned are those of the plain loop, bit for bit (ties: lowest id).
 */
#ifndef DPQ_SCAN_H
#define DPQ_SCAN_H

#include <stddef.h>
#include <stdint.h>

#define DPQ_MAX_LEVELS 1024u

/* A database as one search sees it: the first `levels` levels of row-major codes. */
typedef struct {
    const uint8_t *codes;     /* n rows of code_size bytes, packed as FAISS's BitstringWriter packs */
    size_t n;                 /* < 2^32 - 1 */
    uint32_t code_size;       /* <= 2 DPQ_MAX_LEVELS */
    uint32_t nbits;           /* 1..16 */
    uint32_t levels;          /* searched prefix, 1..DPQ_MAX_LEVELS */
    const float *cross;       /* pairs x K x K */
    const float *terms;       /* n, in place of `cross` where its tables would be too large */
    const uint8_t *term_bins; /* n, from dpq_term_bins; NULL: all terms are 0 (inner product) */
    float term_min, term_step;/* from dpq_term_range */
    float radius;             /* >= every ||xhat|| */
    const uint8_t *allowed;   /* bit v & 7 of byte v >> 3, as IDSelectorBitmap; NULL: all */
} dpq_database;

typedef struct {
    const float *tables;      /* nq x levels x K */
    const float *norms;       /* nq: ||q||^2; the distance's own additive constant, which it bounds */
    const float *table_errors;/* nq: bounds on |tables and term - their real values|, summed over levels */
    int inner_product;        /* tables are -<q, c>: distances lie in [-||q|| R, ||q|| R] */
    size_t nq;
} dpq_queries;

/* How a call went. */
typedef struct {
    uint64_t bounded;  /* (vector, query) pairs judged by their uint8 bound */
    uint64_t rescored; /* of these, how many survived */
    uint64_t floated;  /* pairs scanned in float32 */
    uint64_t together; /* groups of queries that scanned an inverted list together */
    uint64_t threads;  /* the most that took part in the scan of one query; 0 where there is only ever one */
} dpq_counters;

#endif
