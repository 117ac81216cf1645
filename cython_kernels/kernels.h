/* The kernels that are compiled once per instruction set, as a table of functions. */
#ifndef DPQ_KERNELS_H
#define DPQ_KERNELS_H

#include "dpq_lists.h"

#define DPQ_INLINE static inline __attribute__((always_inline))

/* Columns whose products `linear` sums in registers before they join the output: rounding errors grow with the length of
 * a chain of additions. */
enum { DPQ_LINEAR_DEPTH = 64 };

/* How many vectors had a guessed limit that was enough, or too low: see encode_impl.h. */
typedef struct {
    uint64_t enough, too_low;
} dpq_guesses;

/* One beam search step of a block of vectors: see encode_impl.h. */
typedef struct {
    size_t n, K, level, beam_in, beam_out;
    const float *tables; /* score of every codeword: at tables + vector * vector_stride + beam * beam_stride */
    size_t vector_stride, beam_stride;
    const float *cross;       /* [pair][K][K], doubled; NULL where `tables` already holds the residual's scores */
    size_t code_stride;       /* M: room for a whole code in every beam entry */
    const uint16_t *codes_in; /* [n][beam_in][code_stride] */
    const float *scores_in;   /* [n][beam_in]: squared errors less the vectors' squared norms, plus the debts and the
                               * squares of the parallel errors */
    const float *norms;       /* [n]: these, roughly; NULL where `scores_in` are the errors themselves */
    float prefix_weight;      /* >= 0 */
    const float *debts_in;    /* [n][beam_in]: prefix_weight * the sum of such errors at all lengths up to this one's; */
    float *debts_out;         /* [n][beam_out]; neither is used where prefix_weight is 0 */
    const float *directions;  /* [n]: what takes <x, .> to the parallel error; NULL where that does not count */
    const float *own_tables;  /* [n][own_stride]: score of every codeword against x itself */
    size_t own_stride;
    const float *own_offsets;  /* [K]: less half that score, <x, c> */
    const float *parallels_in; /* [n][beam_in]: parallel errors */
    float *parallels_out;      /* [n][beam_out] */
    float *products;           /* scratch [K] */
    uint16_t *codes_out;      /* [n][beam_out][code_stride] */
    float *scores_out;        /* [n][beam_out] */
    uint32_t *parents_out;    /* [n][beam_out]: the beam entry extended; may be NULL */
    const float **rows;       /* scratch [level] */
    float *partial;           /* scratch [level][K] */
    uint32_t *slots;          /* scratch [beam_out + beam_in * K] */
    float *scores;            /* scratch [beam_in * K + 16 + 4 * (beam_out + 16)] */
    dpq_guesses *guesses;     /* added to */
} dpq_encode_step;

typedef struct {
    /* out[i][j] = bias[j] + scale * <x[i], row j of the packed matrix>.
     * panels: [n_panels][d][16]; bias: [n_panels * 16]; rows of out are ldo >= n_panels * 16 apart. */
    void (*linear)(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo);
    void (*encode_level)(const dpq_encode_step *step);
    /* The scans. scratch: that many bytes, any alignment, one a call. distances, ids: nq x k, ascending by
     * (distance, id); where fewer than k vectors are allowed, +inf and UINT32_MAX. counters are added to. */
    size_t (*batch_scratch)(const dpq_database *db, size_t k);
    void (*scan_batch)(const dpq_database *db, const dpq_queries *queries, size_t k, float *distances, uint32_t *ids,
                       void *scratch, dpq_counters *counters);
    size_t (*single_scratch)(size_t k, size_t n_threads);
    void (*scan_single)(const dpq_database *db, const dpq_queries *queries, size_t k, size_t n_threads,
                        float *distances, uint32_t *ids, void *scratch, dpq_counters *counters);
    /* The same for inverted lists; positions number what a query scans, in the order of its probes. */
    size_t (*lists_scratch)(const dpq_lists *lists, const dpq_probes *probes, size_t k);
    void (*scan_lists)(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                       uint32_t *positions, void *scratch, dpq_counters *counters);
    size_t batch_width;      /* queries that scan_batch takes together */
    size_t least_batch;      /* fewer queries than this are faster one by one; measured */
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
