/* Encode: one step of the beam search over the levels.
 *
 * Of the beam_in * K extensions of a vector's beam, the beam_out best are wanted. A sorted list of the best so far
 * would mispredict a branch at every insertion, which costs more than the scores themselves. Instead:
 *   1. all scores go to a buffer, and the least of every lane into one of a few `minima` vectors;
 *   2. at least beam_out scores are not above the beam_out-th least of these minima, and few more than that are:
 *      with twice as many minima as wanted scores, about 1.4 beam_out;
 *   3. these are collected, and put in order by counting, for each, those before it. */

#include <float.h>
#include <math.h>

#include "kernels.h"

enum { EXTEND_VECTORS = 4, EXTEND_WIDTH = EXTEND_VECTORS * DPQ_FW };

typedef struct {
    float *scores;  /* [beam_in * K] */
    float *minima;  /* [n_minima * DPQ_FW] */
    size_t n_minima; /* a power of two */
    size_t group;   /* groups of vectors reduced to minima so far */
} extension_scores;

DPQ_INLINE void keep_minimum(extension_scores *all, dpq_f32s least)
{
    float *slot = all->minima + (all->group++ & (all->n_minima - 1)) * DPQ_FW;
    dpq_f32_store(slot, dpq_f32_min(dpq_f32_load(slot), least));
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
DPQ_INLINE void extend_by(size_t vectors, size_t k, size_t K, const beam_entry *entry, float *scores,
                             extension_scores *all)
{
    const float *start = entry->common ? entry->partial + entry->common * K : entry->table;
    dpq_f32s sum[EXTEND_VECTORS];
    for (size_t j = 0; j < vectors; j++)
        sum[j] = dpq_f32_load(start + k + j * DPQ_FW);
    for (size_t i = entry->common; i < entry->n_rows; i++)
        for (size_t j = 0; j < vectors; j++) {
            if (i > entry->common)
                dpq_f32_store(entry->partial + i * K + k + j * DPQ_FW, sum[j]);
            sum[j] = dpq_f32_add(sum[j], dpq_f32_load(entry->rows[i] + k + j * DPQ_FW));
        }
    for (size_t j = 0; j < vectors; j++) {
        sum[j] = dpq_f32_add(sum[j], dpq_f32_all(entry->score));
        dpq_f32_store(scores + k + j * DPQ_FW, sum[j]);
    }
    dpq_f32s least = sum[0];
    for (size_t j = 1; j < vectors; j++)
        least = dpq_f32_min(least, sum[j]);
    keep_minimum(all, least);
}

DPQ_INLINE void extend_entry(size_t K, const beam_entry *entry, float *scores, extension_scores *all)
{
    size_t k = 0;
    for (; k + EXTEND_WIDTH <= K; k += EXTEND_WIDTH)
        extend_by(EXTEND_VECTORS, k, K, entry, scores, all);
    for (; k + DPQ_FW <= K; k += DPQ_FW)
        extend_by(1, k, K, entry, scores, all);
    for (; k < K; k++) { /* K < DPQ_FW */
        scores[k] = entry->table[k];
        for (size_t i = 0; i < entry->n_rows; i++)
            scores[k] += entry->rows[i][k];
        scores[k] += entry->score;
    }
}

/* A score that at least `wanted` of all scores do not exceed: FLT_MAX if there are too few minima to tell. */
DPQ_INLINE float upper_bound_of_best(const extension_scores *all, size_t wanted)
{
    float bound = FLT_MAX;
    const size_t n = all->n_minima * DPQ_FW;
    for (size_t i = 0; i < n; i++) {
        size_t not_above = 0;
        for (size_t j = 0; j < n; j += DPQ_FW)
            not_above += (size_t)__builtin_popcount(dpq_f32_le(dpq_f32_load(all->minima + j), dpq_f32_all(all->minima[i])));
        if (not_above >= wanted && all->minima[i] < bound)
            bound = all->minima[i];
    }
    return bound;
}

/* Appends the scores <= bound of scores[begin, begin + n) and their places. */
DPQ_INLINE size_t collect(const float *scores, size_t begin, size_t n, float bound, size_t count, float *found,
                             uint32_t *places)
{
    for (size_t k = begin; k < begin + n; k++)
        if (scores[k] <= bound) {
            found[count] = scores[k];
            places[count++] = (uint32_t)k;
        }
    return count;
}

DPQ_INLINE size_t collect_best(const float *scores, size_t n, float bound, float *found, uint32_t *places)
{
    const dpq_f32s limit = dpq_f32_all(bound);
    size_t count = 0, k = 0;
    for (; k + EXTEND_WIDTH <= n; k += EXTEND_WIDTH) {
        dpq_f32s least = dpq_f32_load(scores + k);
        for (size_t j = 1; j < EXTEND_VECTORS; j++)
            least = dpq_f32_min(least, dpq_f32_load(scores + k + j * DPQ_FW));
        if (!dpq_f32_le(least, limit))
            continue;
        for (size_t j = 0; j < EXTEND_VECTORS; j++)
            for (unsigned mask = dpq_f32_le(dpq_f32_load(scores + k + j * DPQ_FW), limit); mask; mask &= mask - 1) {
                places[count] = (uint32_t)(k + j * DPQ_FW) + (unsigned)__builtin_ctz(mask);
                found[count] = scores[places[count]];
                count++;
            }
    }
    return collect(scores, k, n - k, bound, count, found, places);
}

/* How many of found[0, n) come before number i, in the order of (score, place); found is padded with infinity. */
DPQ_INLINE size_t rank_of(const float *found, size_t n, size_t i)
{
    const dpq_f32s score = dpq_f32_all(found[i]);
    size_t rank = 0;
    for (size_t j = 0; j < n; j += DPQ_FW) {
        const unsigned less = dpq_f32_lt(dpq_f32_load(found + j), score);
        const unsigned not_above = dpq_f32_le(dpq_f32_load(found + j), score);
        const unsigned earlier = i >= j + DPQ_FW ? ~0u : i <= j ? 0u : (1u << (i - j)) - 1;
        rank += (size_t)__builtin_popcount((not_above & earlier) | (less & ~earlier));
    }
    return rank;
}

/* The beam_out best of the scores, in the order of their places: their scores, and their places in `slots`. */
DPQ_INLINE void select_best(const dpq_encode_step *step, extension_scores *all, float *scores_out)
{
    const size_t wanted = step->beam_out, n = step->beam_in * step->K;
    float *const found = all->scores + n + DPQ_FW;
    uint32_t *const places = step->slots + wanted;
    const size_t count = collect_best(all->scores, n, upper_bound_of_best(all, wanted), found, places);
    size_t kept = 0;
    for (size_t j = 0; j < DPQ_FW; j++)
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
DPQ_INLINE size_t choose_n_minima(size_t wanted, size_t n)
{
    size_t n_minima = 1;
    while (n_minima * DPQ_FW < 2 * wanted && 2 * n_minima * EXTEND_WIDTH <= n)
        n_minima *= 2;
    return n_minima;
}

DPQ_INLINE size_t common_prefix(const uint16_t *a, const uint16_t *b, size_t length)
{
    size_t i = 0;
    while (i < length && a[i] == b[i])
        i++;
    return i;
}

DPQ_INLINE void extend_beam(const dpq_encode_step *step, size_t v, const uint16_t *codes, extension_scores *all)
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
    extension_scores all = {step->scores, step->scores + 2 * (n + DPQ_FW), choose_n_minima(step->beam_out, n), 0};
    for (size_t v = 0; v < step->n; v++) {
        const uint16_t *codes_in = step->codes_in + v * step->beam_in * code_stride;
        all.group = 0;
        for (size_t j = 0; j < all.n_minima * DPQ_FW; j++)
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
