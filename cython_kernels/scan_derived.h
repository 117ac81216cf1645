/* What is computed once from stored codes, for one prefix length, and serves every search: the terms' bins, and the
 * radius.
 *
 * In: codes and their terms. Out: a grid of 256 bins and the bin of every term, whose two edges enclose the term
 * whatever was rounded; a bound on the norms of all reconstructed vectors. The byte bounds (scan_bound.h) rest on
 * both. */
#ifndef DPQ_SCAN_DERIVED_H
#define DPQ_SCAN_DERIVED_H

#include "scan_bound.h"
#include "scan_codes.h"

enum { AHEAD_OF_TERMS = 2 }; /* vectors whose cross terms are fetched early: they are far apart in memory */

/* Widens [*low, *high] so that it holds the terms of n vectors from `first` on; begin with [+inf, -inf]. */
static void dpq_term_range(const dpq_database *db, size_t first, size_t n, float *low, float *high)
{
    for (size_t v = first; v < first + n; v++) {
        float term = dpq_term_of(db, v);
        *low = term < *low ? term : *low;
        *high = term > *high ? term : *high;
    }
}

/* Sets term_min and term_step. Every bin's upper edge has to be above what falls into the bin: so the last edge is
 * made to reach `high` in spite of rounding. */
static void dpq_term_grid(dpq_database *db, float low, float high)
{
    db->term_min = low;
    db->term_step = (high - low) / 256;
    while (dpq_term_edge(db, 256) < high)
        db->term_step = nextafterf(db->term_step, INFINITY);
}

/* bins[v] = the bin of the term of vector v, of n vectors from `first` on. */
static void dpq_term_bins(const dpq_database *db, size_t first, size_t n, uint8_t *bins)
{
    float per_step = db->term_step > 0 ? 1 / db->term_step : 0;
    for (size_t v = first; v < first + n; v++) {
        float term = dpq_term_of(db, v);
        float guess = fminf(fmaxf((term - db->term_min) * per_step, 0.0f), 255.0f);
        uint32_t bin = (uint32_t)guess;
        while (bin > 0 && dpq_term_edge(db, bin) > term)
            bin--;
        while (bin < 255 && dpq_term_edge(db, bin + 1) < term)
            bin++;
        bins[v] = (uint8_t)bin;
    }
}

/* Returns the largest norm of a sum of codewords among n vectors from `first` on, rounded up.
 *
 * cross: NULL, no cross terms are added. codeword_norms: levels x K squared norms. error: bound on the rounding error
 * of a squared norm computed from these. terms: if not NULL, terms[v] becomes the sum of the cross terms (of what
 * terms[v] held, where cross is NULL) and of products[level][codeword]. Sums are in double, so that a term is rounded
 * once. */
static float dpq_norms_and_terms(const dpq_database *db, const float *cross, const float *products,
                                 const float *codeword_norms, float error, size_t first, size_t n, float *terms)
{
    size_t K = dpq_codewords(db);
    double largest = 0;
    for (size_t v = first; v < first + n; v++) {
        uint16_t code[DPQ_MAX_LEVELS];
        double norm = 0, term = terms && !cross ? terms[v] : 0;
        const float *table = cross; /* of the pair (i, l) */
        if (cross && v + AHEAD_OF_TERMS < first + n) {
            dpq_unpack(db, v + AHEAD_OF_TERMS, code);
            dpq_prefetch_cross(cross, K, code, db->levels);
        }
        dpq_unpack(db, v, code);
        for (uint32_t l = 0; l < db->levels; l++) {
            norm += codeword_norms[l * K + code[l]];
            if (terms)
                term += products[l * K + code[l]];
            for (uint32_t i = 0; cross && i < l; i++, table += K * K) {
                double pair = table[code[i] * K + code[l]];
                norm += pair;
                term += pair;
            }
        }
        largest = norm > largest ? norm : largest;
        if (terms)
            terms[v] = (float)term;
    }
    return nextafterf((float)sqrt(largest + error), INFINITY);
}

/* The radius alone. */
static float dpq_radius(const dpq_database *db, const float *cross, const float *codeword_norms, float error,
                        size_t first, size_t n)
{
    return dpq_norms_and_terms(db, cross, NULL, codeword_norms, error, first, n, NULL);
}

#endif
