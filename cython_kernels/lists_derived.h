/* What is computed once from the codes of one inverted list: its terms, their bins, and its radius.
 *
 * In: the list's codes, and the products of its centre with all codewords. Out: as in scan_derived.h, of this list
 * alone. The proof of the scan (scan_lists_impl.h) rests on the bins' edges enclosing the terms, and on the radius. */
#ifndef DPQ_LISTS_DERIVED_H
#define DPQ_LISTS_DERIVED_H

#include "scan_derived.h"

/* terms[v] = the cross terms of vector v plus the products 2<w, c_l> of the list's centre w with its codewords;
 * `terms` is NULL where none are wanted. Where cross is NULL, terms[v] already holds the cross terms. Returns the
 * radius. */
static float dpq_list_terms(const dpq_database *db, const float *cross, const float *products,
                            const float *codeword_norms, float error, float *terms)
{
    return dpq_norms_and_terms(db, cross, products, codeword_norms, error, 0, db->n, terms);
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

#endif
