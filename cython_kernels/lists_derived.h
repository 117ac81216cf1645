/* What a search of inverted lists derives from the codes of one list. */
#ifndef DPQ_LISTS_DERIVED_H
#define DPQ_LISTS_DERIVED_H

#include "scan_derived.h"

/* terms[v], or NULL: the cross terms, from `cross` (or as they stand in `terms` already, where cross is NULL), plus the
 * products 2<w, c_l> of the list's centre; summed in double, so that one rounding is left. Returns the largest norm of
 * a sum of codewords, rounded up; needs `cross`. */
static float dpq_list_terms(const dpq_database *db, const float *cross, const float *products,
                            const float *codeword_norms, float error, float *terms)
{
    double largest = 0;
    for (size_t v = 0; v < db->n; v++) {
        uint16_t code[DPQ_MAX_LEVELS];
        const float *table = cross;
        double norm = 0, term = cross ? 0 : terms ? terms[v] : 0;
        dpq_unpack(db, v, code);
        for (uint32_t l = 0; l < db->levels; l++) {
            size_t at = ((size_t)l << db->nbits) + code[l];
            norm += codeword_norms[at];
            if (terms)
                term += products[at];
            for (uint32_t j = 0; cross && j < l; j++, table += (size_t)1 << 2 * db->nbits) {
                double pair = table[((size_t)code[j] << db->nbits) + code[l]];
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

/* The grid of the terms' bins, and the bins. Returns the largest magnitude of a term or an edge. */
static float dpq_list_bins(dpq_database *db, uint8_t *bins)
{
    float low = INFINITY, high = -INFINITY;
    for (size_t v = 0; v < db->n; v++) {
        low = db->terms[v] < low ? db->terms[v] : low;
        high = db->terms[v] > high ? db->terms[v] : high;
    }
    dpq_term_grid(db, low, high);
    dpq_term_bins(db, 0, db->n, bins);
    return fmaxf(fabsf(low), fabsf(dpq_term_edge(db, 257)));
}

#endif
