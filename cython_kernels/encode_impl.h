/* Encoding: one step of the beam search over the levels.
 *
 * In: for each vector of a block, a beam of beam_in codes of the levels before, with their scores; the scores of this
 * level's codewords. Out: the beam_out codes of the least scores among the beam_in * K extensions, one codeword
 * longer, in the order of the entries that they extend.
 *
 * A sorted list of the best so far would mispredict a branch at every insertion, and that costs more than the scores
 * themselves. Instead:
 *   1. A limit is guessed from the vectors before, such that somewhat more than beam_out scores should be within it.
 *      Scores are compared with it as they are computed, and those within it are kept: the scores are all stored, and
 *      the places of those within it are noted, which takes no branch that would be guessed wrong.
 *   2. If too many are kept, the limit is lowered to a value that at least beam_out of them are still within. This
 *      value is the beam_out-th least of some minima of the kept.
 *   3. If fewer than beam_out are kept, which happens to one vector in thirty, the vector is done again without a
 *      limit.
 *   4. The kept are put in order by counting, for each, how many come before it.
 * So the guess decides how fast the best are found, and never which.
 *
 * Prefixes. If the prefix weight is above 0, the score of an entry is its error plus this weight times its errors at
 * all shorter lengths. That sum over shorter lengths is its debt, and its extensions inherit it.
 *
 * Parallel errors. An error e along the vector x changes x's inner products with the queries that x is near to. If
 * they are to count more, the error is |e|^2 + w <x / |x|, e>^2, with a weight w. The number sqrt(w) <x / |x|, e> is
 * the entry's parallel error. A codeword c takes direction * <x, c> from its parent's, with direction = sqrt(w) / |x|,
 * and <x, c> is in the tables already: it is own_offsets - own_tables / 2. */
#ifndef DPQ_ENCODE_IMPL_H
#define DPQ_ENCODE_IMPL_H

#include <float.h>
#include <math.h>

#include "dpq_base.h"
#include "dpq_pairs.h"
#include "kernels.h"
#include "simd.h"

enum {
    FEW_VECTORS = 4, /* so many vectors find most rows of cross terms far away in memory, and fetch them early: */
    AHEAD = 2,       /* so many beam entries ahead */
};

/* Scores within the limit, in the order of their places: place b * K + k extends beam entry b by codeword k. */
typedef struct {
    float *scores;    /* [beam_in * K + DPQ_FW]: of the kept; while an entry is extended, its own begin at its place */
    uint32_t *places; /* [beam_in * K + DPQ_FW] */
    float *minima;    /* scratch [4 * (beam_out + DPQ_FW)] */
    size_t count;
    float limit;
} candidates;

/* The extensions of one beam entry. Their scores are its own score, plus those of all codewords against x, plus one
 * row of cross terms for each codeword that the entry has. Beam entries stand in the order of the tree of their codes,
 * so that those with a common prefix are neighbours: `partial` keeps the sums of the scores and the first rows, and an
 * entry goes on from where its prefix in common with the entry before ends. */
typedef struct {
    const float *const *rows; /* [n_rows]: of cross terms */
    size_t n_rows;
    size_t common, common_with_next; /* lengths of the prefixes in common with the entries before and after */
    const float *table;
    float *partial;         /* [n_rows][K]: row i is `table` plus the first i rows; row 0 is not used */
    float score;            /* the entry's own, without the square of its parallel error */
    float parallel;         /* its parallel error */
    const float *products;  /* [K]: what the codewords take from it */
    uint32_t place;         /* of its first extension */
} beam_entry;

/* Scores the extensions by `vectors` * DPQ_FW codewords from k on, and keeps those within the limit. parallel: whether
 * parallel errors count. Both are constants. */
DPQ_INLINE void extend_by(size_t vectors, int parallel, size_t k, size_t K, const beam_entry *entry, candidates *kept)
{
    const float *start = entry->common ? entry->partial + entry->common * K : entry->table;
    dpq_f32s sum[EXTEND_VECTORS];
    DPQ_UNROLL
    for (size_t j = 0; j < vectors; j++)
        sum[j] = dpq_f32_load(start + k + j * DPQ_FW);
    for (size_t i = entry->common; i < entry->n_rows; i++) {
        const float *row = entry->rows[i] + k;
        DPQ_ONE_POINTER(row);
        if (i > entry->common && i <= entry->common_with_next) {
            float *partial = entry->partial + i * K + k;
            DPQ_ONE_POINTER(partial);
            DPQ_UNROLL
            for (size_t j = 0; j < vectors; j++)
                dpq_f32_store(partial + j * DPQ_FW, sum[j]);
        }
        DPQ_UNROLL
        for (size_t j = 0; j < vectors; j++)
            sum[j] = dpq_f32_add(sum[j], dpq_f32_load(row + j * DPQ_FW));
    }
    uint64_t within[(EXTEND_VECTORS + 3) / 4] = {0};
    DPQ_UNROLL
    for (size_t j = 0; j < vectors; j++) {
        sum[j] = dpq_f32_add(sum[j], dpq_f32_all(entry->score));
        if (parallel) {
            const dpq_f32s product = dpq_f32_load(entry->products + k + j * DPQ_FW);
            const dpq_f32s error = dpq_f32_sub(dpq_f32_all(entry->parallel), product);
            sum[j] = dpq_f32_fma(error, error, sum[j]);
        }
        dpq_f32_store(kept->scores + entry->place + k + j * DPQ_FW, sum[j]);
        within[j / 4] |= (uint64_t)dpq_f32_le(sum[j], dpq_f32_all(kept->limit)) << j % 4 * DPQ_FW;
    }
    for (size_t j = 0; j < vectors; j += 4)
        kept->count += dpq_places(within[j / 4], entry->place + (uint32_t)(k + j * DPQ_FW), kept->places + kept->count);
}

/* Scores all extensions of an entry. */
DPQ_INLINE void extend_entry(int parallel, size_t K, const beam_entry *entry, candidates *kept)
{
    size_t k = 0;
    for (; k + EXTEND_VECTORS * DPQ_FW <= K; k += EXTEND_VECTORS * DPQ_FW)
        extend_by(EXTEND_VECTORS, parallel, k, K, entry, kept);
    for (; k + 4 * DPQ_FW <= K; k += 4 * DPQ_FW)
        extend_by(4, parallel, k, K, entry, kept);
    for (; k + DPQ_FW <= K; k += DPQ_FW)
        extend_by(1, parallel, k, K, entry, kept);
    for (; k < K; k++) { /* only where K < DPQ_FW */
        float score = entry->table[k];
        for (size_t i = 0; i < entry->n_rows; i++)
            score += entry->rows[i][k];
        score += entry->score;
        if (parallel)
            score += (entry->parallel - entry->products[k]) * (entry->parallel - entry->products[k]);
        kept->scores[entry->place + k] = score;
        kept->places[kept->count] = entry->place + (uint32_t)k;
        kept->count += score <= kept->limit;
    }
}

/* Moves the scores of the kept from number `first` on to where they belong: never behind their places. */
DPQ_INLINE void gather(candidates *kept, size_t first)
{
    for (size_t i = first; i < kept->count; i++)
        kept->scores[i] = kept->scores[kept->places[i]];
}

/* Lowers the limit to a value that at least `wanted` of the kept are within, and drops the others. The kept scores are
 * dealt to n >= 2 * wanted minima; with so many, about 1.4 times the wanted are left. */
static void tighten(candidates *kept, size_t wanted)
{
    size_t n = DPQ_FW;
    while (n < 2 * wanted)
        n *= 2;
    for (size_t i = 0; i < n; i++)
        kept->minima[i] = INFINITY;
    for (size_t i = 0; i < DPQ_FW; i++)
        kept->scores[kept->count + i] = INFINITY;
    for (size_t i = 0; i < kept->count; i += DPQ_FW) {
        float *slot = kept->minima + (i & (n - 1));
        dpq_f32_store(slot, dpq_f32_min(dpq_f32_load(slot), dpq_f32_load(kept->scores + i)));
    }
    float limit = kept->limit;
    for (size_t i = 0; i < n; i++) {
        size_t not_above = 0;
        for (size_t j = 0; j < n; j += DPQ_FW)
            not_above += (size_t)__builtin_popcount(
                dpq_f32_le(dpq_f32_load(kept->minima + j), dpq_f32_all(kept->minima[i])));
        if (not_above >= wanted && kept->minima[i] < limit)
            limit = kept->minima[i];
    }
    const size_t count = kept->count;
    kept->limit = limit;
    kept->count = 0;
    for (size_t i = 0; i < count; i++) { /* no branch depends on the scores */
        const float score = kept->scores[i];
        kept->scores[kept->count] = score;
        kept->places[kept->count] = kept->places[i];
        kept->count += score <= limit;
    }
}

/* How many of the n scores come before number i, in the order of (score, place). Infinity follows them. */
DPQ_INLINE size_t rank_of(const float *scores, size_t n, size_t i)
{
    const dpq_f32s score = dpq_f32_all(scores[i]);
    const size_t own = i / DPQ_FW * DPQ_FW;
    const unsigned earlier = (1u << (i - own)) - 1;
    size_t rank = 0;
    for (size_t j = 0; j < own; j += DPQ_FW)
        rank += (size_t)__builtin_popcount(dpq_f32_le(dpq_f32_load(scores + j), score));
    rank += (size_t)__builtin_popcount((dpq_f32_le(dpq_f32_load(scores + own), score) & earlier)
                                       | dpq_f32_lt(dpq_f32_load(scores + own), score));
    for (size_t j = own + DPQ_FW; j < n; j += DPQ_FW)
        rank += (size_t)__builtin_popcount(dpq_f32_lt(dpq_f32_load(scores + j), score));
    return rank;
}

/* Writes the `wanted` best of the kept, in the order of their places: places to `slots`, and their scores. */
DPQ_INLINE void select_best(candidates *kept, size_t wanted, uint32_t *slots, float *scores_out)
{
    size_t chosen = 0;
    for (size_t j = 0; j < DPQ_FW; j++)
        kept->scores[kept->count + j] = INFINITY;
    for (size_t i = 0; i < kept->count && chosen < wanted; i++) {
        scores_out[chosen] = kept->scores[i];
        slots[chosen] = kept->places[i];
        chosen += rank_of(kept->scores, kept->count, i) < wanted;
    }
    for (; chosen < wanted; chosen++) { /* x with NaN, or that overflows, gets a valid code too */
        scores_out[chosen] = FLT_MAX;
        slots[chosen] = (uint32_t)chosen;
    }
}

DPQ_INLINE size_t common_prefix(const uint16_t *a, const uint16_t *b, size_t length)
{
    size_t i = 0;
    while (i < length && a[i] == b[i])
        i++;
    return i;
}

/* Starts to fetch the rows by which entry b of a beam is extended, at level `level`, except those of the entry before.
 * codes: of entry b. */
DPQ_INLINE void prefetch_rows(const dpq_encode_step *step, size_t level, size_t b, const uint16_t *codes)
{
    for (size_t i = b ? common_prefix(codes - step->code_stride, codes, level) : 0; i < level; i++) {
        const float *row = dpq_pair_row(step->cross, step->K, i, level, codes[i]);
        for (size_t k = 0; k < step->K; k += DPQ_FW)
            __builtin_prefetch(row + k);
    }
}

/* products[k] = what codeword k takes from the parallel error of vector v. */
DPQ_INLINE void find_products(const dpq_encode_step *step, size_t v)
{
    const float *table = step->own_tables + v * step->own_stride, direction = step->directions[v];
    for (size_t k = 0; k < step->K; k++)
        step->products[k] = direction * (step->own_offsets[k] - table[k] / 2);
}

/* Keeps the extensions of vector v's beam that are within the limit. */
DPQ_INLINE void extend_beam(const dpq_encode_step *step, size_t v, const uint16_t *codes, candidates *kept)
{
    const size_t K = step->K, n_rows = step->cross ? step->level : 0;
    const size_t many = 3 * step->beam_out + 2 * DPQ_FW;
    beam_entry entry = {.rows = step->rows, .n_rows = n_rows, .partial = step->partial, .products = step->products};
    const int few = step->n <= FEW_VECTORS && n_rows;
    size_t gathered = 0; /* of the kept */
    kept->count = 0;
    for (size_t b = 0; b < step->beam_in; b++, codes += step->code_stride) {
        if (few && b + AHEAD < step->beam_in)
            prefetch_rows(step, n_rows, b + AHEAD, codes + AHEAD * step->code_stride);
        entry.common = entry.common_with_next;
        entry.common_with_next = b + 1 < step->beam_in ? common_prefix(codes, codes + step->code_stride, n_rows) : 0;
        for (size_t i = entry.common; i < n_rows; i++)
            step->rows[i] = dpq_pair_row(step->cross, K, i, n_rows, codes[i]);
        entry.table = step->tables + v * step->vector_stride + b * step->beam_stride;
        entry.score = step->scores_in[v * step->beam_in + b];
        entry.place = (uint32_t)(b * K);
        if (step->directions) {
            entry.parallel = step->parallels_in[v * step->beam_in + b];
            entry.score -= entry.parallel * entry.parallel;
            extend_entry(1, K, &entry, kept);
        } else {
            extend_entry(0, K, &entry, kept);
        }
        if (kept->count > many) {
            gather(kept, gathered);
            tighten(kept, step->beam_out);
            gathered = kept->count;
        }
    }
    gather(kept, gathered);
}

DPQ_INLINE float guessed_limit(const dpq_limit_guess *guess, float error, float norm)
{
    return guess->known ? (guess->mean + 2.25f * guess->deviation) * error - norm : INFINITY;
}

/* `multiple` would have been right for one more vector. */
DPQ_INLINE void learn(dpq_limit_guess *guess, float multiple)
{
    const float rate = guess->known ? 1.0f / 32 : 1;
    const float surprise = multiple - guess->mean;
    if (!isfinite(multiple))
        return;
    guess->mean += rate * surprise;
    guess->deviation += (guess->known ? rate : 0.1f) * (fabsf(surprise) - guess->deviation);
    guess->known = 1;
}

DPQ_INLINE float mean_of(const float *x, size_t n)
{
    float sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i];
    return sum / (float)n;
}

DPQ_INLINE float greatest_of(const float *x, size_t n)
{
    float greatest = x[0];
    for (size_t i = 1; i < n; i++)
        greatest = x[i] > greatest ? x[i] : greatest;
    return greatest;
}

static void encode_level(const dpq_encode_step *step)
{
    const size_t K = step->K, code_stride = step->code_stride, n = step->beam_in * K, wanted = step->beam_out;
    candidates kept = {.scores = step->scores, .places = step->slots + wanted, .minima = step->scores + n + DPQ_FW};
    dpq_limit_guess none = {0}, *guess = step->guess ? step->guess : &none;
    for (size_t v = 0; v < step->n; v++) {
        const uint16_t *codes_in = step->codes_in + v * step->beam_in * code_stride;
        float *const scores_out = step->scores_out + v * wanted;
        const float norm = step->norms ? step->norms[v] * (1 + step->prefix_weight * (float)step->level) : 0;
        const float error = mean_of(step->scores_in + v * step->beam_in, step->beam_in) + norm;
        if (step->directions)
            find_products(step, v);
        kept.limit = guessed_limit(guess, error, norm);
        extend_beam(step, v, codes_in, &kept);
        if (guess->known)
            *(kept.count < wanted ? &step->guesses->too_low : &step->guesses->enough) += 1;
        if (kept.count < wanted) {
            kept.limit = INFINITY;
            extend_beam(step, v, codes_in, &kept);
        }
        select_best(&kept, wanted, step->slots, scores_out);
        learn(guess, (greatest_of(scores_out, wanted) + norm) / error);
        for (size_t b = 0; b < wanted; b++) {
            uint16_t *code = step->codes_out + (v * wanted + b) * code_stride;
            const size_t parent = step->slots[b] / K;
            for (size_t i = 0; i < step->level; i++)
                code[i] = codes_in[parent * code_stride + i];
            code[step->level] = (uint16_t)(step->slots[b] % K);
            if (step->parents_out)
                step->parents_out[v * wanted + b] = (uint32_t)parent;
            if (step->prefix_weight > 0) {
                const float debt = step->debts_in[v * step->beam_in + parent];
                const float more = step->prefix_weight * (scores_out[b] - debt);
                step->debts_out[v * wanted + b] = debt + more;
                scores_out[b] += more;
            }
            if (step->directions) {
                const float before = step->parallels_in[v * step->beam_in + parent];
                step->parallels_out[v * wanted + b] = before - step->products[code[step->level]];
            }
            if (b < AHEAD && step->cross && step->n <= FEW_VECTORS && step->level + 1 < code_stride)
                prefetch_rows(step, step->level + 1, b, code);
        }
    }
}

#endif
