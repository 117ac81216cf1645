/* The bound of a distance for codes of many levels, in sums of 16 bits, and the proof that no neighbour is missed.
 *
 * In: a query's tables, stored terms, and a few sampled sums. Out: `scale` (units of the sums a unit of distance),
 * and for any threshold the greatest 16-bit sum that a neighbour can have.
 *
 * 8 bits resolve too little of what 17 or more levels can add up to, and the M^2 / 2 cross terms take too long for
 * rescoring: so every vector's term is stored as a float. All entries are rounded down, so all that can go wrong makes
 * a sum too small, and its vector is rescored in vain:
 *
 *     entry of a level    e = min(255, floor((T[k] - m) scale)),        m = the least entry of the level's table
 *     entry of the term   floor(g slope / 65536),                       g = min(65535, floor((term - term_min) / step))
 *     S                   the sum of all, at most 65535; what some levels add to it, at most 255
 *
 * Why the result is exact. Let u = 2^-24. T - m >= 0 is rounded once, and once more times the scale: so e is at most
 * (T - m) scale (1 + u)^2. g is at most (term - term_min) / step (1 + u)^3, and slope / 65536 at most step scale (1 -
 * 2^-20): so the term's entry is at most (term - term_min) scale. Saturation only lessens S. With base = the sum of all
 * m + term_min,
 *
 *     S  <=  (sum T + term - base) scale (1 + u)^2
 *
 * The float32 sum d is a chain of L additions, each of which errs by u times the magnitude B of any partial sum at
 * most: d is within Ed = L u B of the real sum. A neighbour has d <= threshold, hence
 *
 *     S  <=  (threshold + Ed - base) scale (1 + u)^2  <=  limit                                 (many_limit)
 *
 * So a neighbour's S is within the limit, whatever the scale is. A vector whose term is not in [term_min, term_min +
 * 65535 step] is an outlier: it has no g, is always rescored, and B need not bound its term.
 *
 * The scale decides how many others are. A sum loses half a unit a level by rounding down; so a level is given
 * MANY_UNITS units of the spread that sums have, measured between the quartiles of some sampled ones, which outliers
 * do not move. It is less where the entries of the widest level would not fit a byte, or the limit 16 bits. The
 * greatest entry of a level is taken as the median of those of three thirds of its codebook, so that one far codeword
 * does not make the scale coarse for all others.
 */
#ifndef DPQ_MANY_BOUND_H
#define DPQ_MANY_BOUND_H

#include "dpq_topk.h"
#include "scan_codes.h"
#include <math.h>

#define MANY_UNITS 4.0      /* of the quartiles' distance, a level; measured */
#define MANY_MOST 60000.0   /* what sums that may be near should not exceed */
/* What the greatest entries of the levels whose bytes are added up may come to: a sum of bytes stops at 255, and those
 * of near vectors are far below the greatest. Measured. */
#define MANY_ROOM_OF_ONE 380u /* of one query's levels */
#define MANY_ROOM 510u        /* of the greatest of many queries' */
#define MANY_AT_ONCE 4u     /* registers, or vectors, summed side by side; a multiple of DPQ_LOOKED_UP */
#define MANY_QUARTILES 64u  /* sampled sums whose quartiles are taken */

typedef struct {
    float scale;
    uint16_t slope;
    double base;  /* less Ed: what the threshold is compared with */
} many_bound;

/* Whether sums of 16 bits bound these codes. */
static inline int many_is_known(const dpq_database *db)
{
    return db->wide;
}

/* The greatest term that has a g. */
static inline float many_term_max(const dpq_database *db)
{
    return (float)(db->term_min + 65535.0 * db->term_step);
}

/* The distance between the quartiles of MANY_QUARTILES sums. */
static inline float many_spread(const float *sums)
{
    uint64_t keys[MANY_QUARTILES];
    float quartile[2];
    for (uint32_t half = 0; half < 2; half++) {
        size_t rank = half ? MANY_QUARTILES * 3 / 4 : MANY_QUARTILES / 4;
        for (uint32_t i = 0; i < MANY_QUARTILES; i++)
            keys[i] = dpq_key(sums[i], i);
        dpq_select(keys, MANY_QUARTILES, rank);
        quartile[half] = -INFINITY;
        for (size_t i = 0; i < rank; i++)
            quartile[half] = fmaxf(quartile[half], dpq_key_distance(keys[i]));
    }
    return quartile[1] - quartile[0];
}

/* What is known of a query's tables. */
typedef struct {
    double minima;    /* the sum of every level's least entry */
    double widest;    /* the greatest span of a level's entries but for far ones, which should fit a byte */
    double magnitude; /* B of the head, for the tables alone */
} many_seen;

/* base of the head, less Ed. */
static inline double many_base(const dpq_database *db, const many_seen *seen)
{
    double base = seen->minima, magnitude = seen->magnitude;
    if (db->terms) {
        base += db->term_min;
        magnitude += fmax(fabs(db->term_min), fabs(many_term_max(db)));
    }
    return base - 1.02 * db->levels * magnitude / (1 << 24);
}

/* The scale for vectors whose float sums spread so far, and of which neighbours have up to `near` more than the base;
 * +inf: it is not known how much. term_step: the greatest. 0: no bound can be had. */
static inline float many_scale(uint32_t levels, const many_seen *seen, double spread, double near, double term_step)
{
    if (!(seen->magnitude < 1e30 && spread < 1e30))
        return 0;
    double scale = fmin(MANY_UNITS * levels / fmax(spread, 1e-30), 255 / fmax(seen->widest, 1e-30));
    scale = fmin(scale, MANY_MOST / fmax(near + spread, 1e-30));
    return (float)fmin(scale, 65000 / fmax(65536.0 * term_step, 1e-30));
}

static inline many_bound many_bound_of(const dpq_database *db, const many_seen *seen, float scale)
{
    double slope = db->terms ? db->term_step * scale * 65536 * (1 - 0x1p-20) : 0;
    return (many_bound){scale, (uint16_t)fmin(slope, 65535), many_base(db, seen)};
}

/* sums: MANY_QUARTILES sampled ones. threshold: that a neighbour's float sum does not exceed. The scale is 0 where no
 * bound can be had. */
static inline many_bound many_bound_choose(const dpq_database *db, const many_seen *seen, const float *sums,
                                           float threshold)
{
    double near = threshold < INFINITY ? threshold - many_base(db, seen) : 0;
    float scale = many_scale(db->levels, seen, many_spread(sums), near, db->terms ? db->term_step : 0);
    return many_bound_of(db, seen, scale);
}

/* What no S of a vector exceeds whose float sum is at most `threshold`. */
static inline double many_most(const many_bound *b, double threshold)
{
    return (threshold - b->base) * b->scale * (1 + 0x1p-22);
}

/* The same for sums of 16 bits; 65535: any may be. */
static inline uint16_t many_limit(const many_bound *b, double threshold)
{
    double limit = many_most(b, threshold);
    return limit <= 0 ? 0 : limit < 65535 ? (uint16_t)limit : 65535; /* 65535 of NaN, too */
}

static inline int many_is_outlier(const dpq_database *db, size_t v)
{
    return db->terms[v] < db->term_min || db->terms[v] > many_term_max(db);
}

static inline double many_median(double a, double b, double c)
{
    return fmax(fmin(a, b), fmin(fmax(a, b), c));
}

/* Packs levels into groups whose greatest byte entries do not add up to more than `room`: most[l] is that of level l.
 * ends[g]: the level behind group g. Returns how many groups there are. */
static inline uint32_t many_pack(const uint8_t *most, uint32_t levels, uint32_t room, uint16_t *ends)
{
    uint32_t groups = 0, sum = 0;
    for (uint32_t l = 0; l < levels; l++) {
        if (l && sum + most[l] > room) {
            ends[groups++] = (uint16_t)l;
            sum = 0;
        }
        sum += most[l];
    }
    ends[groups++] = (uint16_t)levels;
    return groups;
}

#endif
