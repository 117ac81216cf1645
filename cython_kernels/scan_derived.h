/* What a search derives from the codes once, for one prefix length: term bins and the radius. */
#ifndef DPQ_SCAN_DERIVED_H
#define DPQ_SCAN_DERIVED_H

#include "scan_bound.h"
#include "scan_codes.h"

/* Widens [*low, *high] by the terms of vectors first .. first + n - 1; start from [+inf, -inf]. */
static void dpq_term_range(const dpq_database *db, size_t first, size_t n, float *low, float *high)
{
    for (size_t v = first; v < first + n; v++) {
        uint16_t code[DPQ_MAX_LEVELS];
        dpq_unpack(db, v, code);
        float term = dpq_term(db, v, code);
        *low = term < *low ? term : *low;
        *high = term > *high ? term : *high;
    }
}

/* Sets term_min and term_step so that every bin's upper edge is above what falls into it: the last bin
 * has to reach high in spite of rounding. */
static void dpq_term_grid(dpq_database *db, float low, float high)
{
    db->term_min = low;
    db->term_step = (high - low) / 256;
    while (dpq_term_edge(db, 256) < high)
        db->term_step = nextafterf(db->term_step, INFINITY);
}

static void dpq_term_bins(const dpq_database *db, size_t first, size_t n, uint8_t *bins)
{
    float per_step = db->term_step > 0 ? 1 / db->term_step : 0;
    for (size_t v = first; v < first + n; v++) {
        uint16_t code[DPQ_MAX_LEVELS];
        dpq_unpack(db, v, code);
        float term = dpq_term(db, v, code);
        float guess = fminf(fmaxf((term - db->term_min) * per_step, 0.0f), 255.0f);
        uint32_t bin = (uint32_t)guess;
        while (bin > 0 && dpq_term_edge(db, bin) > term)
            bin--;
        while (bin < 255 && dpq_term_edge(db, bin + 1) < term)
            bin++;
        bins[v] = (uint8_t)bin;
    }
}

/* Largest ||xhat|| of vectors first .. first + n - 1, rounded up. codeword_norms: levels x K squared
 * norms; error: absolute bound on a squared norm computed from them and the cross tables. */
static float dpq_radius(const dpq_database *db, const float *cross, const float *codeword_norms, float error,
                        size_t first, size_t n)
{
    double largest = 0;
    for (size_t v = first; v < first + n; v++) {
        uint16_t code[DPQ_MAX_LEVELS];
        const float *table = cross;
        double norm = 0;
        dpq_unpack(db, v, code);
        for (uint32_t l = 0; l < db->levels; l++) {
            norm += codeword_norms[((size_t)l << db->nbits) + code[l]];
            for (uint32_t j = 0; j < l; j++, table += (size_t)1 << 2 * db->nbits)
                norm += table[((size_t)code[j] << db->nbits) + code[l]];
        }
        largest = norm > largest ? norm : largest;
    }
    return nextafterf((float)sqrt(largest + error), INFINITY);
}

#endif
