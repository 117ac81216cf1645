/* What one instruction set offers: a table of its functions. Every set has one, compiled from the same source. */
#ifndef DPQ_KERNELS_H
#define DPQ_KERNELS_H

#include "dpq_lists.h"

/* `linear` sums the products of so many columns in registers, adds that sum to the output, and begins anew: rounding
 * errors grow with the length of a chain of additions. */
enum { DPQ_LINEAR_DEPTH = 64 };

/* What vectors are lengthened to before they are rounded to 16 bits. */
enum { DPQ_ROUNDED_LENGTH = 32767 };

/* How many vectors had a guessed limit that was enough, or too low: see encode_impl.h. */
typedef struct {
    uint64_t enough, too_low;
} dpq_guesses;

/* The limits that would have been right for the vectors before, as multiples of the mean error of their beams: a
 * running mean, and the running mean of deviations from it. */
typedef struct {
    float mean, deviation;
    int known;
} dpq_limit_guess;

/* One step of the beam search: every vector of a block gets its codewords of one level. See encode_impl.h.
 *
 * The score of a beam entry is its squared error less the vector's squared norm (of its own residual, where `cross` is
 * NULL: its squared error), plus the square of its parallel error and plus its debt, where these are in use. */
typedef struct {
    size_t n, K, level, beam_in, beam_out;
    const float *tables; /* score of every codeword, ||c||^2 - 2<x, c>, at tables + vector * vector_stride
                          * + entry * beam_stride */
    size_t vector_stride, beam_stride;
    const float *cross;       /* cross terms (dpq_pairs.h); NULL where `tables` scores each beam entry's own residual */
    size_t code_stride;       /* numbers from one beam entry's code to the next's: M, room for a whole code */
    const uint16_t *codes_in; /* [n][beam_in][code_stride] */
    const float *scores_in;   /* [n][beam_in] */
    const float *norms;       /* [n]: squared norms of the vectors, roughly; NULL where `cross` is NULL */
    float prefix_weight;      /* >= 0: what the errors of shorter prefixes count; at 0 there are no debts */
    const float *debts_in;    /* [n][beam_in]: prefix_weight * the sum of the entry's errors at its own and all
                               * shorter lengths */
    float *debts_out;         /* [n][beam_out] */
    const float *directions;  /* [n]: the factor from <x, c> to c's part of the parallel error; NULL: none is counted */
    const float *own_tables;  /* [n][own_stride]: score of every codeword against x itself */
    size_t own_stride;
    const float *own_offsets;  /* [K]: <x, c> = own_offsets - own_tables / 2 */
    const float *parallels_in; /* [n][beam_in]: parallel errors */
    float *parallels_out;      /* [n][beam_out] */
    float *products;           /* scratch [K] */
    uint16_t *codes_out;      /* [n][beam_out][code_stride] */
    float *scores_out;        /* [n][beam_out] */
    uint32_t *parents_out;    /* [n][beam_out]: the beam entry extended; may be NULL */
    const float **rows;       /* scratch [level] */
    float *partial;           /* scratch [level][K] */
    uint32_t *slots;          /* scratch [beam_out + beam_in * K + 16] */
    float *scores;            /* scratch [beam_in * K + 16 + 4 * (beam_out + 16)] */
    dpq_limit_guess *guess;   /* of vectors before, at this level; brought up to date; NULL: begin without */
    dpq_guesses *guesses;     /* added to */
} dpq_encode_step;

/* What the global levels leave of vectors in one block; see encode_blocks_impl.h. All pointers are to the first of the
 * block's coordinates. */
typedef struct {
    size_t n, dims;       /* dims: a multiple of 16 */
    const float *turned;  /* [n] rows of all turned coordinates, `stride` numbers apart */
    const float *own;     /* likewise: the vectors along which errors count; may be `turned` */
    size_t stride;
    const uint16_t *codes;  /* [n][levels] */
    const float *codewords; /* [levels][K], `width` numbers apart; aligned or not */
    size_t levels, K, width;
    float *own_out;  /* [n][dims] */
    float *left;     /* [n][dims]: the turned vectors less their codewords */
    float *products; /* [n]: <own_out, left> */
} dpq_leave;

typedef struct {
    /* out[i][j] = bias[j] + scale * <x[i], row j of the packed matrix>.
     * panels: [n_panels][d][16]; bias: [n_panels * 16]; rows of out are ldo >= n_panels * 16 apart. */
    void (*linear)(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo);
    /* The same, of whole numbers: x[i] stands for a vector factors[i] times as long. x: [n][pairs][2]; panels:
     * [n_panels][pairs][16][2]; rows and vectors are no longer than DPQ_ROUNDED_LENGTH, but for rounding. */
    void (*linear_rounded)(const int16_t *x, const float *factors, size_t n, size_t pairs, const int16_t *panels,
                           size_t n_panels, const float *bias, float scale, float *out, size_t ldo);
    void (*round_vector)(const float *x, size_t d, float scale, int16_t *out); /* scale * x */
    void (*encode_level)(const dpq_encode_step *step);
    /* out[i] = ||sum of the codewords of code i||^2; codes: [n][levels]. Codeword k of a level stands in `rows` from
     * places[level][0] + k * places[level][1] on, has places[level][1] numbers, and is added to coordinates from
     * places[level][2] on, of `width`. */
    void (*lengths_of_codes)(const uint16_t *codes, size_t n, size_t levels, const float *rows, const int64_t *places,
                             size_t width, double *out);
    void (*leave_block)(const dpq_leave *task);
    /* The scans. scratch: memory of any alignment, as many bytes as the function before says; calls at the same time
     * need their own. distances, ids: nq x k, ascending by (distance, id); where fewer than k vectors take part, the
     * rest is +inf and UINT32_MAX. counters: the work done is added to them. */
    size_t (*batch_scratch)(const dpq_database *db, size_t k);
    void (*scan_batch)(const dpq_database *db, const dpq_queries *queries, size_t k, float *distances, uint32_t *ids,
                       void *scratch, dpq_counters *counters);
    size_t (*single_scratch)(size_t k, size_t n_threads);
    void (*scan_single)(const dpq_database *db, const dpq_queries *queries, size_t k, size_t n_threads,
                        float *distances, uint32_t *ids, void *scratch, dpq_counters *counters);
    /* The same for inverted lists. Positions take the place of ids: they number the vectors that a query scans, list
     * after list in the order of its keys. */
    size_t (*lists_scratch)(const dpq_lists *lists, const dpq_probes *probes, size_t k);
    void (*scan_lists)(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                       uint32_t *positions, void *scratch, dpq_counters *counters);
    /* The k nearest of n candidates a query: see rescore_impl.h. */
    void (*rescore_codes)(const dpq_database *db, const dpq_queries *queries, const int64_t *candidates, size_t n,
                          size_t k, uint64_t *keys, float *distances, uint32_t *ids);
    void (*rescore_lists)(const dpq_lists *lists, const dpq_probes *probes, const uint32_t *candidates, size_t n,
                          size_t k, uint64_t *keys, float *distances, uint32_t *positions);
    /* How many of n vectors a mask lets through before every chunk, and which: see mask_impl.h. */
    void (*mask_count)(const uint64_t *bits, size_t n, uint32_t *before);
    size_t (*mask_of_ids)(const uint8_t *bitmap, size_t size, const int64_t *ids, size_t n, uint64_t *bits);
    size_t (*mask_of_range)(int64_t first, uint64_t span, const int64_t *ids, size_t n, uint64_t *bits);
    size_t (*mask_list)(const uint8_t *bitmap, size_t n, size_t most, uint32_t *vectors);
    size_t most_ordered;     /* levels of codes that scan_single is faster with an order of */
    size_t batch_width;      /* queries that scan_batch takes together */
    size_t least_batch;      /* fewer queries than this are faster one by one by scan_single; measured */
    size_t least_batch_many; /* the same of codes of many levels */
} dpq_kernels;

extern const dpq_kernels dpq_kernels_generic;
extern const dpq_kernels dpq_kernels_avx2;
extern const dpq_kernels dpq_kernels_avx512;
extern const dpq_kernels dpq_kernels_neon;

/* The name of the best set that this processor runs. */
const char *dpq_best_simd_level(void);
/* The kernels of a set, or NULL if this build or this processor lacks it. */
const dpq_kernels *dpq_find_kernels(const char *name);

#endif
