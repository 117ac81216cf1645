/* The kernels, written once on the vectors of simd.h. cython_kernels/README.md tells what they compute. */
#include <float.h>
#include <math.h>

#include "kernels.h"
#include "simd.h"
#include "topk.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- linear: x times a packed matrix ---------------------------------------------------------------------------- */

enum {
    PANEL_VECTORS = DPQ_PANEL / VF_W,
    /* Accumulators that fit the register file beside one broadcast and one load: rows of x times panels. */
#if defined(DPQ_AVX512)
    BLOCK_ROWS = 12,
    SINGLE_ROW_PANELS = 8,
#elif defined(DPQ_NEON)
    BLOCK_ROWS = 6,
    SINGLE_ROW_PANELS = 4,
#elif defined(DPQ_AVX2)
    BLOCK_ROWS = 6,
    SINGLE_ROW_PANELS = 4,
#else
    BLOCK_ROWS = 2,
    SINGLE_ROW_PANELS = 2,
#endif
};

ALWAYS_INLINE void linear_tile(size_t rows, size_t panels_here, const float *x, size_t d, const float *panels,
                               const float *bias, float scale, float *out, size_t ldo)
{
    vf sum[BLOCK_ROWS > SINGLE_ROW_PANELS ? BLOCK_ROWS : SINGLE_ROW_PANELS][PANEL_VECTORS];
    const size_t tiles = rows * panels_here; /* one of the two is 1 */
    for (size_t t = 0; t < tiles; t++)
        for (size_t v = 0; v < PANEL_VECTORS; v++)
            sum[t][v] = vf_set1(0);
    for (size_t i = 0; i < d; i++)
        for (size_t p = 0; p < panels_here; p++)
            for (size_t v = 0; v < PANEL_VECTORS; v++) {
                const vf column = vf_load(panels + (p * d + i) * DPQ_PANEL + v * VF_W);
                for (size_t r = 0; r < rows; r++)
                    sum[p + r][v] = vf_fma(vf_set1(x[r * d + i]), column, sum[p + r][v]);
            }
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++)
            for (size_t v = 0; v < PANEL_VECTORS; v++) {
                const size_t j = p * DPQ_PANEL + v * VF_W;
                vf_store(out + r * ldo + j, vf_fma(vf_set1(scale), sum[p + r][v], vf_load(bias + j)));
            }
}

static void linear(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo)
{
    const size_t whole = n - n % BLOCK_ROWS;
    /* Panels outside: a panel stays in L1 (L2 for large d) while all rows pass. */
    for (size_t p = 0; whole && p < n_panels; p++)
        for (size_t i = 0; i < whole; i += BLOCK_ROWS)
            linear_tile(BLOCK_ROWS, 1, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
    for (size_t i = whole; i < n; i++) {
        size_t p = 0;
        for (; p + SINGLE_ROW_PANELS <= n_panels; p += SINGLE_ROW_PANELS)
            linear_tile(1, SINGLE_ROW_PANELS, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
        for (; p < n_panels; p++)
            linear_tile(1, 1, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
    }
}

/* ---- encode_level: one step of the beam search ------------------------------------------------------------------- */

/* Of the beam_in * K extensions of a vector's beam, the beam_out best are wanted. A sorted list of the best so far
 * would mispredict a branch at every insertion, which costs more than the scores themselves. Instead:
 *   1. all scores go to a buffer, and the least of every lane into one of a few `minima` vectors;
 *   2. at least beam_out scores are not above the beam_out-th least of these minima, and few more than that are:
 *      with twice as many minima as wanted scores, about 1.4 beam_out;
 *   3. these are collected, and put in order by counting, for each, those before it. */

enum { EXTEND_VECTORS = 4, EXTEND_WIDTH = EXTEND_VECTORS * VF_W };

typedef struct {
    float *scores;  /* [beam_in * K] */
    float *minima;  /* [n_minima * VF_W] */
    size_t n_minima; /* a power of two */
    size_t group;   /* groups of vectors reduced to minima so far */
} extension_scores;

ALWAYS_INLINE void keep_minimum(extension_scores *all, vf least)
{
    float *slot = all->minima + (all->group++ & (all->n_minima - 1)) * VF_W;
    vf_store(slot, vf_min(vf_load(slot), least));
}

/* The extensions of one beam entry. The scores of all codewords against x, plus the rows of cross terms with the
 * entry's codewords, are sums that entries with a common prefix share: `partial` keeps them by prefix length, and the
 * beam stands in the order of its tree, so that an entry goes on where its prefix in common with the last one ends. */
typedef struct {
    const float *const *rows; /* [n_rows]: of the entry's codewords */
    size_t n_rows, common;    /* length of its prefix in common with the entry before */
    const float *table;
    float *partial; /* [n_rows][K]: table + the first i rows, from i = 1 on */
    float score;    /* of the entry itself */
} beam_entry;

/* `vectors` (a constant) vectors of codewords from k on. */
ALWAYS_INLINE void extend_by(size_t vectors, size_t k, size_t K, const beam_entry *entry, float *scores,
                             extension_scores *all)
{
    const float *start = entry->common ? entry->partial + entry->common * K : entry->table;
    vf sum[EXTEND_VECTORS];
    for (size_t j = 0; j < vectors; j++)
        sum[j] = vf_load(start + k + j * VF_W);
    for (size_t i = entry->common; i < entry->n_rows; i++)
        for (size_t j = 0; j < vectors; j++) {
            if (i > entry->common)
                vf_store(entry->partial + i * K + k + j * VF_W, sum[j]);
            sum[j] = vf_add(sum[j], vf_load(entry->rows[i] + k + j * VF_W));
        }
    for (size_t j = 0; j < vectors; j++) {
        sum[j] = vf_add(sum[j], vf_set1(entry->score));
        vf_store(scores + k + j * VF_W, sum[j]);
    }
    vf least = sum[0];
    for (size_t j = 1; j < vectors; j++)
        least = vf_min(least, sum[j]);
    keep_minimum(all, least);
}

ALWAYS_INLINE void extend_entry(size_t K, const beam_entry *entry, float *scores, extension_scores *all)
{
    size_t k = 0;
    for (; k + EXTEND_WIDTH <= K; k += EXTEND_WIDTH)
        extend_by(EXTEND_VECTORS, k, K, entry, scores, all);
    for (; k + VF_W <= K; k += VF_W)
        extend_by(1, k, K, entry, scores, all);
    for (; k < K; k++) { /* K < VF_W */
        scores[k] = entry->table[k];
        for (size_t i = 0; i < entry->n_rows; i++)
            scores[k] += entry->rows[i][k];
        scores[k] += entry->score;
    }
}

/* A score that at least `wanted` of all scores do not exceed: FLT_MAX if there are too few minima to tell. */
ALWAYS_INLINE float upper_bound_of_best(const extension_scores *all, size_t wanted)
{
    float bound = FLT_MAX;
    const size_t n = all->n_minima * VF_W;
    for (size_t i = 0; i < n; i++) {
        size_t not_above = 0;
        for (size_t j = 0; j < n; j += VF_W)
            not_above += (size_t)__builtin_popcount(vf_less_equal(vf_load(all->minima + j), vf_set1(all->minima[i])));
        if (not_above >= wanted && all->minima[i] < bound)
            bound = all->minima[i];
    }
    return bound;
}

/* Appends the scores <= bound of scores[begin, begin + n) and their places. */
ALWAYS_INLINE size_t collect(const float *scores, size_t begin, size_t n, float bound, size_t count, float *found,
                             uint32_t *places)
{
    for (size_t k = begin; k < begin + n; k++)
        if (scores[k] <= bound) {
            found[count] = scores[k];
            places[count++] = (uint32_t)k;
        }
    return count;
}

ALWAYS_INLINE size_t collect_best(const float *scores, size_t n, float bound, float *found, uint32_t *places)
{
    const vf limit = vf_set1(bound);
    size_t count = 0, k = 0;
    for (; k + EXTEND_WIDTH <= n; k += EXTEND_WIDTH) {
        vf least = vf_load(scores + k);
        for (size_t j = 1; j < EXTEND_VECTORS; j++)
            least = vf_min(least, vf_load(scores + k + j * VF_W));
        if (!vf_less_equal(least, limit))
            continue;
        for (size_t j = 0; j < EXTEND_VECTORS; j++)
            for (unsigned mask = vf_less_equal(vf_load(scores + k + j * VF_W), limit); mask; mask &= mask - 1) {
                places[count] = (uint32_t)(k + j * VF_W) + (unsigned)__builtin_ctz(mask);
                found[count] = scores[places[count]];
                count++;
            }
    }
    return collect(scores, k, n - k, bound, count, found, places);
}

/* How many of found[0, n) come before number i, in the order of (score, place); found is padded with infinity. */
ALWAYS_INLINE size_t rank_of(const float *found, size_t n, size_t i)
{
    const vf score = vf_set1(found[i]);
    size_t rank = 0;
    for (size_t j = 0; j < n; j += VF_W) {
        const unsigned less = vf_less(vf_load(found + j), score);
        const unsigned not_above = vf_less_equal(vf_load(found + j), score);
        const unsigned earlier = i >= j + VF_W ? ~0u : i <= j ? 0u : (1u << (i - j)) - 1;
        rank += (size_t)__builtin_popcount((not_above & earlier) | (less & ~earlier));
    }
    return rank;
}

/* The beam_out best of the scores, in the order of their places: their scores, and their places in `slots`. */
ALWAYS_INLINE void select_best(const dpq_encode_step *step, extension_scores *all, float *scores_out)
{
    const size_t wanted = step->beam_out, n = step->beam_in * step->K;
    float *const found = all->scores + n + VF_W;
    uint32_t *const places = step->slots + wanted;
    const size_t count = collect_best(all->scores, n, upper_bound_of_best(all, wanted), found, places);
    size_t kept = 0;
    for (size_t j = 0; j < VF_W; j++)
        found[count + j] = INFINITY;
    for (size_t i = 0; i < count && kept < wanted; i++) {
        scores_out[kept] = found[i];
        step->slots[kept] = places[i];
        kept += rank_of(found, count, i) < wanted;
    }
    for (; kept < wanted; kept++) { /* NaN, or input that overflows: even that gets a valid code */
        scores_out[kept] = FLT_MAX;
        step->slots[kept] = (uint32_t)kept;
    }
}

/* Minima for about twice the wanted scores, but not more groups of minima than there will be groups of scores. */
ALWAYS_INLINE size_t choose_n_minima(size_t wanted, size_t n)
{
    size_t n_minima = 1;
    while (n_minima * VF_W < 2 * wanted && 2 * n_minima * EXTEND_WIDTH <= n)
        n_minima *= 2;
    return n_minima;
}

ALWAYS_INLINE size_t common_prefix(const uint16_t *a, const uint16_t *b, size_t length)
{
    size_t i = 0;
    while (i < length && a[i] == b[i])
        i++;
    return i;
}

ALWAYS_INLINE void extend_beam(const dpq_encode_step *step, size_t v, const uint16_t *codes, extension_scores *all)
{
    const size_t K = step->K, n_rows = step->cross ? step->level : 0;
    const float *cross = n_rows ? step->cross + n_rows * (n_rows - 1) / 2 * K * K : NULL; /* pairs (0, level), ... */
    beam_entry entry = {.rows = step->rows, .n_rows = n_rows, .partial = step->partial};
    for (size_t b = 0; b < step->beam_in; b++, codes += step->code_stride) {
        entry.common = b ? common_prefix(codes, codes - step->code_stride, n_rows) : 0;
        for (size_t i = entry.common; i < n_rows; i++)
            step->rows[i] = cross + (i * K + codes[i]) * K;
        entry.table = step->tables + v * step->vector_stride + b * step->beam_stride;
        entry.score = step->scores_in[v * step->beam_in + b];
        extend_entry(K, &entry, all->scores + b * K, all);
    }
}

static void encode_level(const dpq_encode_step *step)
{
    const size_t K = step->K, code_stride = step->code_stride, n = step->beam_in * K;
    extension_scores all = {step->scores, step->scores + 2 * (n + VF_W), choose_n_minima(step->beam_out, n), 0};
    for (size_t v = 0; v < step->n; v++) {
        const uint16_t *codes_in = step->codes_in + v * step->beam_in * code_stride;
        all.group = 0;
        for (size_t j = 0; j < all.n_minima * VF_W; j++)
            all.minima[j] = INFINITY;
        extend_beam(step, v, codes_in, &all);
        select_best(step, &all, step->scores_out + v * step->beam_out);
        for (size_t b = 0; b < step->beam_out; b++) {
            uint16_t *code = step->codes_out + (v * step->beam_out + b) * code_stride;
            const size_t parent = step->slots[b] / K;
            for (size_t i = 0; i < step->level; i++)
                code[i] = codes_in[parent * code_stride + i];
            code[step->level] = (uint16_t)(step->slots[b] % K);
            if (step->parents_out)
                step->parents_out[v * step->beam_out + b] = (uint32_t)parent;
        }
    }
}

/* ---- scan: the float32 tables of DPQ_LANES queries, interleaved ---------------------------------------------------- */

enum { LANE_VECTORS = DPQ_LANES / VF_W };

static __attribute__((noinline)) void push_lanes(const vf *sum, unsigned mask, int64_t id, dpq_heaps *heaps)
{
    float distances[DPQ_LANES];
    for (size_t j = 0; j < LANE_VECTORS; j++)
        vf_store(distances + j * VF_W, sum[j]);
    for (; mask; mask &= mask - 1) {
        const unsigned q = (unsigned)__builtin_ctz(mask);
        float *heap = heaps->distances + q * heaps->k;
        topk_push(heaps->k, heap, heaps->ids + q * heaps->k, distances[q], id);
        heaps->thresholds[q] = heap[0];
    }
}

ALWAYS_INLINE void scan_levels(const float *tables, const uint16_t *codes, const float *terms, const int64_t *ids,
                               int64_t first_id, size_t n, size_t levels, size_t K, dpq_heaps *heaps)
{
    for (size_t i = 0; i < n; i++, codes += levels) {
        vf sum[LANE_VECTORS];
        for (size_t j = 0; j < LANE_VECTORS; j++)
            sum[j] = vf_set1(terms ? terms[i] : 0.0f);
        for (size_t l = 0; l < levels; l++)
            for (size_t j = 0; j < LANE_VECTORS; j++)
                sum[j] = vf_add(sum[j], vf_load(tables + (l * K + codes[l]) * DPQ_LANES + j * VF_W));
        unsigned mask = 0;
        for (size_t j = 0; j < LANE_VECTORS; j++)
            mask |= vf_less(sum[j], vf_load(heaps->thresholds + j * VF_W)) << (j * VF_W);
        if (mask)
            push_lanes(sum, mask, ids ? ids[i] : first_id + (int64_t)i, heaps);
    }
}

static void scan(const float *tables, const uint16_t *codes, const float *terms, const int64_t *ids, int64_t first_id,
                 size_t n, size_t levels, size_t K, dpq_heaps *heaps)
{
    /* The usual lengths, unrolled. */
    if (levels == 4)
        scan_levels(tables, codes, terms, ids, first_id, n, 4, K, heaps);
    else if (levels == 8)
        scan_levels(tables, codes, terms, ids, first_id, n, 8, K, heaps);
    else
        scan_levels(tables, codes, terms, ids, first_id, n, levels, K, heaps);
}

const dpq_kernels DPQ_PASTE(dpq_kernels_, DPQ_SUFFIX) = {linear, encode_level, scan};

#ifdef __clang__
#if defined(DPQ_AVX512) || defined(DPQ_AVX2)
#pragma clang attribute pop
#endif
#endif
