/* The uint8 lower bound: choice of step and offset, and the proof that no neighbour is missed.
 *
 * P rows are added per vector: L levels and, for L2, the term's bin (edge e <= term < e + w).
 * With scale = 1 / delta, an entry is floor(t * scale), level 0's is floor(t * scale - base), all kept
 * modulo 256; S is their true integer sum, E bounds the float32 rounding of all entries together:
 *     (sum t + e) scale - base - P - E  <  S  <=  (sum t + e) scale - base + E.
 * Let d be the float32 distance. Its L additions err by at most Ed = L u B (u = 2^-24, B >= any partial
 * sum's magnitude), so sum t + term lies within Ed of d.
 *  - A neighbour has d <= threshold, hence S <= (threshold + Ed) scale - base + E: `dpq_bound_limit`.
 *  - It also has sum t + term >= low (a geometric bound), hence
 *    S > (low - w) scale - base - P - E, and base is chosen to make the right side >= -1: S >= 0.
 * So a neighbour's S is within 0..limit; while limit <= 255 its byte is S itself, and
 * it survives `byte <= limit`. Nothing is asked of larger distances: one beyond 256 steps wraps and
 * at worst survives in vain. The step may therefore follow the distances seen in a sample, several
 * times finer than one that must cover all that geometry allows.
 */
#ifndef DPQ_SCAN_BOUND_H
#define DPQ_SCAN_BOUND_H

#include "dpq_scan.h"
#include <math.h>

typedef struct {
    float scale, base;
    float slack; /* Ed scale + E, which dpq_bound_limit adds */
} dpq_bound;

/* Monotone in bin; bin + 1 gives the bin's upper edge. In double the product is exact, so that every
 * instruction set gets the same edge whether or not the compiler fuses multiply and add: exactness
 * rests on edges being those that the bins were made with. */
static inline float dpq_term_edge(const dpq_database *db, uint32_t bin)
{
    return (float)((double)db->term_min + (double)bin * (double)db->term_step);
}

/* A distance, ||q||^2 left out, is at least max(0, ||q|| - R)^2 - ||q||^2 (-||q|| R, inner product). Balls
 * around first codewords bound it more tightly on paper, yet left the share of hits as it was (clustered
 * set, Fashion-MNIST). */
static inline double dpq_low(const dpq_database *db, const dpq_queries *qs, size_t q)
{
    double norm2 = qs->norms[q], norm = sqrt(norm2), gap = norm - db->radius;
    if (qs->inner_product)
        return -norm * db->radius - qs->table_errors[q];
    return (gap > 0 ? gap * gap : 0) - norm2 - qs->table_errors[q];
}

/* low: bound below every distance. high: where distances end for practical purposes; whatever it is,
 * the search is exact. magnitude: B above, terms left out. spare: further units that S may lose. */
static inline dpq_bound dpq_bound_choose(const dpq_database *db, double low, double high, double magnitude,
                                         double spare)
{
    const double u = 1.0 / (1 << 24);
    double rows = db->levels + spare, width = 0;
    if (db->term_bins) {
        rows += 1;
        width = db->term_step;
        magnitude += fmax(fabs(db->term_min), fabs(db->term_min + 257 * width));
    }
    magnitude = fmax(magnitude, 1e-30);
    double sum_error = 1.01 * db->levels * u * magnitude;
    double bottom = fmax(low, -magnitude) - width;
    double span = fmax(high - bottom, 1e-30);
    double scale = (float)fmin((255 - rows) / span, 0.0625 / u / magnitude);
    /* Products, differences and bin edges each round by u times a value below magnitude + |bottom|. */
    double entry_error = u * (8 * magnitude * scale + 512);
    return (dpq_bound){(float)scale, (float)(bottom * scale - (rows - 1) - 2 * entry_error),
                       (float)(sum_error * scale + 2 * entry_error)};
}

static inline uint8_t dpq_bound_limit(const dpq_bound *b, float threshold)
{
    double limit = (double)threshold * b->scale - b->base + b->slack;
    return limit >= 255 ? 255 : limit <= 0 ? 0 : (uint8_t)limit;
}

#endif
