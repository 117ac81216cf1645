/* What is computed once from the codes of one inverted list: its terms, their bins, and its radius.
 *
 * In: the list's codes, and the products of its centre with all codewords. Out: as in scan_derived.h, of this list
 * alone. The proof of the scan (scan_lists_impl.h) rests on the bins' edges enclosing the terms, and on the radius. */
#ifndef DPQ_LISTS_DERIVED_H
#define DPQ_LISTS_DERIVED_H

#include "scan_derived.h"

/* terms[v] = the cross terms of vector v plus the products 2<w, c_l> of the list's centre w with its codewords, for the
 * vectors from `first` on; `terms` is NULL where none are wanted. Where cross is NULL, terms[v] already holds the cross
 * terms. Returns the radius of these vectors. */
static float dpq_list_terms(const dpq_database *db, const float *cross, const float *products,
                            const float *codeword_norms, float error, size_t first, float *terms)
{
    return dpq_norms_and_terms(db, cross, products, codeword_norms, error, first, db->n - first, terms);
}

/* Sets the grid of the terms' bins, and the bins. Returns the largest magnitude of a term or an edge. */
static float dpq_list_bins(dpq_database *db, uint8_t *bins)
{
    float low = INFINITY, high = -INFINITY;
    dpq_term_range(db, 0, db->n, &low, &high);
    dpq_term_grid(db, low, high);
    dpq_term_bins(db, 0, db->n, bins);
    return fmaxf(fabsf(low), fabsf(dpq_term_edge(db, 257)));
}

/* Sets the bins of the vectors from `first` on, which were added to a list that has a grid; a new grid and all bins, if
 * the terms of some are beyond it. Takes and returns the largest magnitude, as dpq_list_bins. */
static float dpq_more_list_bins(dpq_database *db, size_t first, float magnitude, uint8_t *bins)
{
    float low = INFINITY, high = -INFINITY;
    dpq_term_range(db, first, db->n - first, &low, &high);
    if (first == 0 || low < db->term_min || high > dpq_term_edge(db, 256))
        return dpq_list_bins(db, bins);
    dpq_term_bins(db, first, db->n - first, bins);
    return magnitude;
}

#endif
