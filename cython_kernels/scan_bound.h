/* The byte bound of a distance: the choice of its step and offset, and the proof that no neighbour is missed.
 *
 * In: the range in which sums lie. Out: `scale` (bytes a unit of distance) and `base` (what is subtracted), by
 * which tables of bytes are made, and for any threshold the greatest byte sum that a neighbour can have.
 *
 * All of it is about sums, that is, distances without the query's constant (dpq_scan.h): dpq_sum_within says which sums
 * a threshold for distances allows.
 *
 * Why the result is exact. For every vector P entries are added: those of L levels and, for L2, that of the term's
 * bin, whose edges are e <= term < e + w. An entry is floor(t scale), that of level 0 is floor(t scale - base), and
 * all are kept modulo 256. Let S be their sum before anything is taken modulo 256, and E a bound on the float32
 * rounding of all entries together:
 *
 *     (sum t + e) scale - base - P - E  <  S  <=  (sum t + e) scale - base + E
 *
 * Let d be the float32 sum. Its L additions err by at most Ed = L u B, with u = 2^-24 and B not below any partial
 * sum's magnitude, so sum t + term is within Ed of d.
 *  - A neighbour has d <= threshold, hence S <= (threshold + Ed) scale - base + E. This is dpq_bound_limit.
 *  - It has sum t + term >= low too, by geometry (dpq_low), hence S > (low - w) scale - base - P - E. The base is
 *    chosen so that the right side is at least -1: S >= 0.
 * So a neighbour's S is in 0..limit. While limit <= 255, the byte that the scan sees is S itself, and the neighbour
 * passes the test byte <= limit. Of other vectors nothing is needed: a sum above 255 wraps, and at worst the vector
 * passes and is rescored in vain. So the step may follow the distances of a sample, and be several times finer than
 * one that covers all that geometry allows.
 */
#ifndef DPQ_SCAN_BOUND_H
#define DPQ_SCAN_BOUND_H

#include "dpq_scan.h"
#include <math.h>

/* Beyond, rounding down takes as much from a byte sum as bytes have to tell sums apart, and from 254 on there is no
 * unit left: such codes are scanned in float. */
#define DPQ_BOUND_MOST_LEVELS 128u

typedef struct {
    float scale, base;
    float slack; /* Ed scale + E */
} dpq_bound;

/* The lower edge of a bin; that of bin + 1 is its upper edge. Exactness needs edges to be those that the bins were made
 * with, on every instruction set: in double the product is exact, so that it does not matter whether the compiler fuses
 * it with the addition. */
static inline float dpq_term_edge(const dpq_database *db, uint32_t bin)
{
    return (float)((double)db->term_min + (double)bin * (double)db->term_step);
}

/* What float sums of vector v begin with if its term is not looked up: the lower edge of its bin (upper: 1, the upper
 * edge). Rounded addition is monotone, so the sum is a lower (an upper) bound of the float32 distance. Without bins it
 * begins with the term itself, or with 0 if there are no terms. */
static inline float dpq_term_bound(const dpq_database *db, size_t v, uint32_t upper)
{
    if (db->term_bins)
        return dpq_term_edge(db, db->term_bins[v] + upper);
    return db->terms ? db->terms[v] : 0.0f;
}

/* What is returned for a float sum, or for a bound of one: rounding may leave -1e-7 where a code is the query itself. */
static inline float dpq_distance(float sum, float constant, int inner_product)
{
    float distance = sum + constant;
    return !inner_product && distance < 0 ? 0.0f : distance;
}

/* No sum above this gives a distance within `threshold`: fl(sum + A) <= T implies sum <= T - A + u |T|. What is added
 * beyond that is for the roundings of this function. For L2 the threshold is at least 0, as distances are. */
static inline float dpq_sum_within(float threshold, float constant)
{
    double sum = (double)threshold - constant;
    sum += fabs((double)threshold) / (1 << 22) + fabs((double)constant) * 0x1p-50;
    return (float)(sum + fabs(sum) / (1 << 23) + 1e-44);
}

/* A lower bound of all sums for query q. Without ||q||^2 distances are at least max(0, ||q|| - R)^2 - ||q||^2, R being
 * the radius; for inner products -||q|| R. Balls around the first codewords give a tighter bound on paper, but left
 * the share of hits as it was (clustered vectors, Fashion-MNIST). */
static inline double dpq_low(const dpq_database *db, const dpq_queries *qs, size_t q)
{
    double norm2 = qs->norms[q], norm = sqrt(norm2), gap = norm - db->radius;
    if (qs->inner_product)
        return -norm * db->radius - qs->table_errors[q];
    return (gap > 0 ? gap * gap : 0) - norm2 - qs->table_errors[q];
}

/* low: lower bound of all sums. high: where most sums end; the search is exact whatever it is. magnitude: B
 * of the head, for the tables alone. spare: how much S may lose beyond one a row. */
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
    /* Products, differences and bin edges round by u times a value below magnitude + |bottom| each. */
    double entry_error = u * (8 * magnitude * scale + 512);
    return (dpq_bound){(float)scale, (float)(bottom * scale - (rows - 1) - 2 * entry_error),
                       (float)(sum_error * scale + 2 * entry_error)};
}

/* The greatest byte sum of a vector whose float sum is at most `threshold`; 255: any may be. */
static inline uint8_t dpq_bound_limit(const dpq_bound *b, float threshold)
{
    double limit = (double)threshold * b->scale - b->base + b->slack;
    return limit <= 0 ? 0 : limit < 255 ? (uint8_t)limit : 255; /* 255 of NaN, too */
}

#endif
