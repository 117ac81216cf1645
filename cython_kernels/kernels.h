/* The kernels that are compiled once per instruction set, as a table of functions. */
#ifndef DPQ_KERNELS_H
#define DPQ_KERNELS_H

#include <stddef.h>
#include <stdint.h>

enum {
    DPQ_PANEL = 16, /* outputs that `linear` computes together; the width of a panel of its packed matrix */
    DPQ_LANES = 16, /* queries whose tables `scan` interleaves */
};

/* Max-heaps of the k nearest vectors so far, one per query of a group; see topk.h. */
typedef struct {
    size_t k;
    float *distances;  /* [DPQ_LANES][k] */
    int64_t *ids;      /* [DPQ_LANES][k] */
    float *thresholds; /* [DPQ_LANES]: the distance to beat; -inf in unused lanes */
} dpq_heaps;

/* One beam search step of a block of vectors: see `encode_level`. */
typedef struct {
    size_t n, K, level, beam_in, beam_out;
    const float *tables; /* score of every codeword: at tables + vector * vector_stride + beam * beam_stride */
    size_t vector_stride, beam_stride;
    const float *cross;       /* [pair][K][K], doubled; NULL where `tables` already holds the residual's scores */
    size_t code_stride;       /* M: room for a whole code in every beam entry */
    const uint16_t *codes_in; /* [n][beam_in][code_stride] */
    const float *scores_in;   /* [n][beam_in] */
    uint16_t *codes_out;      /* [n][beam_out][code_stride] */
    float *scores_out;        /* [n][beam_out] */
    uint32_t *parents_out;    /* [n][beam_out]: the beam entry extended; may be NULL */
    const float **rows;       /* scratch [level] */
    float *partial;           /* scratch [level][K] */
    uint32_t *slots;          /* scratch [beam_out + beam_in * K] */
    float *scores;            /* scratch [2 * (beam_in * K + 16) + 4 * (beam_out + 16)] */
} dpq_encode_step;

typedef struct {
    /* out[i][j] = bias[j] + scale * <x[i], row j of the packed matrix>. Every output is the same sequence of
     * operations whatever the block it is computed in, so results do not depend on blocks or threads.
     * panels: [n_panels][d][DPQ_PANEL]; bias: [n_panels * DPQ_PANEL]; out rows are ldo >= n_panels * DPQ_PANEL. */
    void (*linear)(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo);
    void (*encode_level)(const dpq_encode_step *step);
    /* tables: [levels * K][DPQ_LANES]; codes: [n][levels]; terms: [n] or NULL; ids: [n], or NULL for first_id + i. */
    void (*scan)(const float *tables, const uint16_t *codes, const float *terms, const int64_t *ids, int64_t first_id,
                 size_t n, size_t levels, size_t K, dpq_heaps *heaps);
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
