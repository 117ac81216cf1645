/* Scan of inverted lists for one query: its tables serve every list that it probes (dpq_lists.h).
 *
 * The first lists, the nearest, are scanned in float until k vectors are found. Their k-th distance, the threshold, then
 * fixes the step of the byte tables for all lists that are left, and each of these goes through the look-ups of
 * scan_single_impl.h, with a start byte and a limit of its own.
 *
 * Exactness. For a list let s be the float sum term + T[0] + ..., without the offset A. A neighbour has
 * fl(s + A) <= threshold, hence s <= above = threshold - A + 2u |threshold|. The real value of s is at least
 * low = max(0, dist - R)^2 - dist^2 - errors, dist the real ||u - w||, by the triangle inequality (-||q|| R for inner
 * products). So a list with above + Ed < low holds no neighbour. Otherwise, as in scan_bound.h, with e the lower
 * edge of the term's bin, width its width and Ed what the additions of s err by,
 *
 *     S = start + floor(bin slope / 256) + sum_l floor(T[l] scale),     start = floor(term_min scale - base)
 *
 * has  S <= (above + Ed) scale - base + E = limit  for a neighbour, because e is not above its term, and
 * S > (low - Ed - width) scale - base - P - E, where P = levels + 3 counts the floors: one an entry, one the start, two
 * the bin's product, whose slope is rounded down too. base makes the right side -1. So a neighbour's S is in 0..limit;
 * while limit <= 255, its byte is S itself. Lists whose limit is larger are scanned in float.
 */
#include "dpq_lists.h"

#define DPQ_LISTS_WORTH_BYTES 512u /* vectors left to scan, below which byte tables are not worth making */

typedef struct {
    float offset;
    double low; /* below every real s */
} dpq_probed;

/* limit = slope * above + constant */
typedef struct {
    float offset;
    double slope, constant;
} dpq_lists_bound;

typedef struct {
    dpq_single one; /* its threshold, top, table, table8, start, slope, limit and hits are used */
    double magnitude, query_error, norm;
    uint64_t rescored;
    float high; /* largest s that a float scan met */
    uint32_t position; /* of the list's first vector */
    int inner_product, has_bytes;
    dpq_probed *probed; /* [nprobe] */
} dpq_lists_scan;

static inline dpq_database lists_database(const dpq_lists *lists, size_t list)
{
    dpq_database db = {0};
    db.codes = (const uint8_t *)(uintptr_t)lists->codes[list];
    db.n = (size_t)lists->sizes[list];
    db.code_size = lists->code_size;
    db.nbits = lists->nbits;
    db.levels = lists->levels;
    if (lists->terms) {
        db.terms = (const float *)(uintptr_t)lists->terms[list];
        db.term_bins = (const uint8_t *)(uintptr_t)lists->bins[list];
        db.term_min = lists->term_min[list];
        db.term_step = lists->term_step[list];
    }
    return db;
}

static inline double lists_width(const dpq_lists *lists, size_t list)
{
    return lists->terms ? lists->term_step[list] : 0;
}

static inline double lists_term_magnitude(const dpq_lists *lists, size_t list)
{
    return lists->terms ? lists->term_magnitude[list] : 0;
}

static float lists_offset(const float *u, const float *w, size_t stride, int inner_product)
{
    float lane[DPQ_FW], total = 0;
    dpq_f32s sum = dpq_f32_all(0.0f);
    for (size_t i = 0; i < stride; i += DPQ_FW) {
        dpq_f32s a = dpq_f32_load(u + i), b = dpq_f32_load(w + i), difference = dpq_f32_sub(a, b);
        sum = inner_product ? dpq_f32_fma(a, b, sum) : dpq_f32_fma(difference, difference, sum);
    }
    dpq_f32_store(lane, sum);
    for (uint32_t i = 0; i < DPQ_FW; i++)
        total += lane[i];
    return inner_product ? -total : total;
}

/* The float offset's chains of stride / 16 + 16 additions of positive numbers are off by u that many times itself. */
static double lists_low(const dpq_lists *lists, const dpq_lists_scan *s, size_t list, float offset)
{
    double error = s->query_error + lists->errors[list], radius = lists->radius[list];
    if (s->inner_product)
        return -s->norm * radius - error;
    double relative = (lists->stride / 16 + 20.0) / (1 << 23);
    double gap = sqrt(offset * fmax(0, 1 - relative)) - radius;
    return (gap > 0 ? gap * gap : 0) - offset * (1 + relative) - error;
}

/* Ed: s is a chain of `levels` additions. */
static inline double lists_sum_error(const dpq_lists *lists, const dpq_lists_scan *s, size_t list)
{
    return 1.01 * lists->levels * (s->magnitude + lists_term_magnitude(lists, list)) / (1 << 24);
}

static inline double lists_above(const dpq_lists_scan *s, float offset)
{
    return (double)s->one.threshold - offset + fabs((double)s->one.threshold) / (1 << 22);
}

static inline void lists_offer(dpq_lists_scan *s, float distance, size_t v)
{
    uint64_t key = dpq_key(distance, s->position + (uint32_t)v);
    if (key < s->one.top.limit && dpq_topk_push(&s->one.top, key))
        s->one.threshold = dpq_topk_threshold(&s->one.top);
}

static inline float lists_distance(const dpq_database *db, const dpq_lists_scan *s, size_t v, float offset)
{
    uint16_t code[DPQ_MAX_LEVELS];
    dpq_unpack(db, v, code);
    return dpq_one_sum(db, s->one.table, code, db->terms ? db->terms[v] : 0.0f) + offset;
}

static void lists_rescore(const dpq_database *db, dpq_lists_scan *s, const uint8_t *allowed, size_t hits, float offset)
{
    s->rescored += hits;
    for (size_t h = 0; h < hits; h++) {
        uint32_t v = s->one.hits[h];
        if (!allowed || allowed[v])
            lists_offer(s, lists_distance(db, s, v, offset), v);
    }
}

static inline size_t lists_float_hits(const dpq_database *db, dpq_lists_scan *s, size_t first, size_t n, float offset,
                                      uint32_t levels, uint32_t nbits)
{
    const float *table = s->one.table, threshold = s->one.threshold;
    float high = s->high;
    size_t found = 0;
    for (size_t v = first; v < first + n; v++) {
        const uint8_t *row = dpq_row(db, v);
        float sum = db->terms ? db->terms[v] : 0.0f;
        for (uint32_t l = 0; l < levels; l++)
            sum += table[((size_t)l << nbits) + (nbits == 8 ? row[l] : dpq_code(row, nbits, l))];
        high = sum > high ? sum : high;
        s->one.hits[found] = (uint32_t)v;
        found += sum + offset <= threshold;
    }
    s->high = high;
    return found;
}

static void lists_float_chunk(const dpq_database *db, dpq_lists_scan *s, const uint8_t *allowed, size_t first,
                              size_t n, float offset)
{
    size_t found = 0, end = first + n;
    while (n && db->nbits != 8 && dpq_is_end(db, first + n - 1))
        n--;
    if (db->nbits == 8 && db->levels == 4)
        found = lists_float_hits(db, s, first, n, offset, 4, 8);
    else if (db->nbits == 8 && db->levels == 8)
        found = lists_float_hits(db, s, first, n, offset, 8, 8);
    else if (db->nbits == 8)
        found = lists_float_hits(db, s, first, n, offset, db->levels, 8);
    else
        found = lists_float_hits(db, s, first, n, offset, db->levels, db->nbits);
    for (size_t v = first + n; v < end; v++)
        s->one.hits[found++] = (uint32_t)v;
    lists_rescore(db, s, allowed, found, offset);
}

static void lists_float_scan(const dpq_database *db, dpq_lists_scan *s, const uint8_t *allowed, size_t count,
                             float offset)
{
    for (size_t n, v = 0; v < count; v += n) {
        n = dpq_min(dpq_first_chunks(s->one.threshold < INFINITY ? DPQ_ONE_CHUNK : v, DPQ_ONE_CHUNK), count - v);
        lists_float_chunk(db, s, allowed, v, n, offset);
    }
}

/* The last `wanted` of the vectors before `end`, whose register overlaps vectors that are done. */
static size_t lists_last_hits(const dpq_database *db, dpq_lists_scan *s, size_t end, size_t wanted)
{
    size_t found = dpq_one_filter(db, &s->one, end - DPQ_QW, DPQ_QW), kept = 0;
    for (size_t h = 0; h < found; h++) {
        s->one.hits[kept] = s->one.hits[h];
        kept += s->one.hits[h] >= end - wanted;
    }
    return kept;
}

static void lists_byte_scan(const dpq_database *db, dpq_lists_scan *s, const uint8_t *allowed, size_t count,
                            const dpq_lists_bound *b)
{
    for (size_t n, v = 0; v < count; v += n) {
        n = dpq_min(DPQ_ONE_CHUNK, count - v);
        double limit = b->slope * lists_above(s, b->offset) + b->constant;
        if (limit < 0)
            return;
        s->one.limit = (uint8_t)limit;
        size_t whole = n - n % DPQ_QW;
        lists_rescore(db, s, allowed, dpq_one_filter(db, &s->one, v, whole), b->offset);
        if (n < DPQ_QW)
            lists_float_chunk(db, s, allowed, v, n, b->offset);
        else if (whole < n)
            lists_rescore(db, s, allowed, lists_last_hits(db, s, v + n, n - whole), b->offset);
    }
}

static inline double lists_span(const dpq_lists *lists, const dpq_lists_scan *s, size_t list, dpq_probed probed)
{
    double above = lists_above(s, probed.offset), high = s->high > above ? s->high : above;
    return high + 2 * lists_sum_error(lists, s, list) - probed.low + lists_width(lists, list);
}

static inline int lists_is_too_far(const dpq_lists *lists, const dpq_lists_scan *s, size_t list, dpq_probed probed)
{
    return lists_above(s, probed.offset) + lists_sum_error(lists, s, list) < probed.low;
}

/* One step for all lists that are left: the widest of them has to fit. Returns whether it is worthwhile. */
static int lists_calibrate(const dpq_lists *lists, const int64_t *keys, const int64_t *counts, size_t nprobe,
                           const dpq_probed *probed, dpq_lists_scan *s)
{
    double span = 1e-30, magnitude = s->magnitude;
    size_t left = 0;
    for (size_t p = 0; p < nprobe; p++) {
        if (!counts[p] || lists_is_too_far(lists, s, (size_t)keys[p], probed[p]))
            continue;
        span = fmax(span, lists_span(lists, s, (size_t)keys[p], probed[p]));
        magnitude = fmax(magnitude, s->magnitude + lists_term_magnitude(lists, (size_t)keys[p]));
        left += (size_t)counts[p];
    }
    if (left < DPQ_LISTS_WORTH_BYTES || !(span < INFINITY))
        return 0;
    double units = 255.0 - (lists->levels + 3) - 2;
    dpq_database codes = {.nbits = lists->nbits, .levels = lists->levels};
    s->one.bound = (dpq_bound){(float)fmin(units / span, 0.0625 * (1 << 24) / magnitude), 0, 0};
    dpq_one_build(&codes, &s->one);
    return 1;
}

/* Also sets start and slope of the list's sums. */
static dpq_lists_bound lists_bound(const dpq_lists *lists, dpq_lists_scan *s, size_t list, dpq_probed probed)
{
    double scale = s->one.bound.scale, sum_error = lists_sum_error(lists, s, list);
    double magnitude = s->magnitude + lists_term_magnitude(lists, list);
    double error = (8 * magnitude * scale + 512) / (1 << 24);
    double base = (probed.low - sum_error - lists_width(lists, list)) * scale - (lists->levels + 2) - error;
    double term_min = lists->terms ? lists->term_min[list] : 0;
    s->one.start = (uint8_t)(int64_t)floor(term_min * scale - base);
    s->one.slope = (uint16_t)(lists_width(lists, list) * scale * 256);
    return (dpq_lists_bound){probed.offset, scale, sum_error * scale - base + error};
}

static void lists_scan_list(const dpq_lists *lists, size_t list, size_t count, dpq_probed probed, dpq_lists_scan *s,
                            dpq_counters *counters)
{
    dpq_database db = lists_database(lists, list);
    const uint8_t *allowed = lists->allowed ? (const uint8_t *)(uintptr_t)lists->allowed[list] : NULL;
    if (!s->has_bytes) {
        lists_float_scan(&db, s, allowed, count, probed.offset);
        counters->floated += count;
        return;
    }
    dpq_lists_bound bound = lists_bound(lists, s, list, probed);
    lists_byte_scan(&db, s, allowed, count, &bound);
    counters->bounded += count;
}

/* Look-ups know 8- and 4-bit codes of at least four bytes; many levels leave no units to resolve. */
static inline int lists_may_have_bytes(const dpq_lists *lists)
{
    return (lists->nbits == 8 || lists->nbits == 4) && lists->code_size >= 4 && lists->levels <= 128;
}

static void lists_scan_query(const dpq_lists *lists, const dpq_probes *probes, size_t q, dpq_lists_scan *s,
                             dpq_counters *counters)
{
    const int64_t *keys = probes->keys + q * probes->nprobe, *counts = probes->counts + q * probes->nprobe;
    for (size_t p = 0; p < probes->nprobe; p++) {
        if (!counts[p])
            continue;
        s->probed[p].offset = lists_offset(probes->vectors + q * lists->stride, lists->centres + keys[p] * lists->stride,
                                           lists->stride, s->inner_product);
        s->probed[p].low = lists_low(lists, s, (size_t)keys[p], s->probed[p].offset);
    }
    s->position = 0;
    s->has_bytes = 0;
    for (size_t p = 0; p < probes->nprobe; p++) {
        if (!counts[p])
            continue;
        size_t list = (size_t)keys[p], count = (size_t)counts[p];
        if (!s->has_bytes && s->one.threshold < INFINITY && lists_may_have_bytes(lists))
            s->has_bytes = lists_calibrate(lists, keys + p, counts + p, probes->nprobe - p, s->probed + p, s);
        if (!lists_is_too_far(lists, s, list, s->probed[p]))
            lists_scan_list(lists, list, count, s->probed[p], s, counters);
        s->position += (uint32_t)count;
    }
}

static size_t lists_scratch(size_t nprobe, size_t k)
{
    return 64 + sizeof(dpq_lists_scan) + dpq_topk_capacity(k) * sizeof(uint64_t) + nprobe * sizeof(dpq_probed);
}

static void scan_lists(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                       uint32_t *positions, void *scratch, dpq_counters *counters)
{
    const dpq_queries *qs = &probes->queries;
    dpq_lists_scan *s = (dpq_lists_scan *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    uint64_t *keys = (uint64_t *)(s + 1);
    dpq_database codes = {.nbits = lists->nbits, .levels = lists->levels};
    s->probed = (dpq_probed *)(keys + dpq_topk_capacity(k));
    s->inner_product = qs->inner_product;
    for (size_t q = 0; q < qs->nq; q++) {
        s->one.table = qs->tables + ((q * lists->levels) << lists->nbits);
        s->one.threshold = INFINITY;
        s->rescored = 0;
        s->high = -INFINITY;
        s->query_error = qs->table_errors[q];
        s->norm = sqrt(qs->norms[q]);
        /* Below four bits no register fits a level: no list is too far then. */
        s->magnitude = lists->nbits >= 4 ? dpq_one_magnitude(&codes, s->one.table) : INFINITY;
        dpq_topk_begin(&s->one.top, keys, k, INFINITY);
        lists_scan_query(lists, probes, q, s, counters);
        dpq_write(&s->one.top, k, distances + q * k, positions + q * k);
        counters->rescored += s->rescored;
    }
}
