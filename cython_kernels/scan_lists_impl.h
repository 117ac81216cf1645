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
#define DPQ_LISTS_FIRST 256u       /* vectors of the nearest list that are scanned in float */
#define DPQ_LISTS_HIGH 1.4         /* the range of s that bytes resolve, over that of the lists scanned in float; measured */

typedef struct {
    float offset;
    double low; /* below every real s */
} dpq_probed;

/* A query and what has been found for it. */
typedef struct {
    const float *table;
    uint8_t *table8; /* [level][codeword], once `scale` is set */
    dpq_probed *probed;
    const int64_t *keys, *counts;
    dpq_topk top;
    float threshold;
    float high;  /* largest s that a float scan met */
    float scale; /* of table8; 0: none yet */
    double magnitude, error, norm;
} dpq_lists_query;

typedef struct {
    dpq_lookups one; /* its table8, start, slope, limit and hits are used */
    int inner_product;
    size_t nprobe;
    dpq_counters *counters;
} dpq_lists_scan;

/* What a query and a list make of each other: see the head. limit = scale * above + constant. */
typedef struct {
    dpq_database db;
    const uint8_t *allowed;
    size_t count;
    uint32_t position; /* of the list's first vector in what the query scans */
    float offset;
    uint8_t start;
    uint16_t slope;
    double scale, constant;
} dpq_lists_part;

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
static double lists_low(const dpq_lists *lists, const dpq_lists_query *q, size_t list, float offset, int inner_product)
{
    double error = q->error + lists->errors[list], radius = lists->radius[list];
    if (inner_product)
        return -q->norm * radius - error;
    double relative = (lists->stride / 16 + 20.0) / (1 << 23);
    double gap = sqrt(offset * fmax(0, 1 - relative)) - radius;
    return (gap > 0 ? gap * gap : 0) - offset * (1 + relative) - error;
}

/* Ed: s is a chain of `levels` additions. */
static inline double lists_sum_error(const dpq_lists *lists, const dpq_lists_query *q, size_t list)
{
    return 1.01 * lists->levels * (q->magnitude + lists_term_magnitude(lists, list)) / (1 << 24);
}

static inline double lists_above(const dpq_lists_query *q, float offset)
{
    return (double)q->threshold - offset + fabs((double)q->threshold) / (1 << 22);
}

static inline int lists_is_too_far(const dpq_lists *lists, const dpq_lists_query *q, size_t list, dpq_probed probed)
{
    return lists_above(q, probed.offset) + lists_sum_error(lists, q, list) < probed.low;
}

/* Negative: no neighbour left in the list. */
static inline double lists_limit(const dpq_lists_query *q, const dpq_lists_part *part)
{
    return part->scale * lists_above(q, part->offset) + part->constant;
}

static inline float lists_distance(const dpq_lists_part *part, const dpq_lists_query *q, size_t v)
{
    uint16_t code[DPQ_MAX_LEVELS];
    dpq_unpack(&part->db, v, code);
    return dpq_one_sum(&part->db, q->table, code, part->db.terms ? part->db.terms[v] : 0.0f) + part->offset;
}

/* True when the threshold moved. */
static inline int lists_offer(const dpq_lists_part *part, dpq_lists_query *q, size_t v)
{
    if (part->allowed && !part->allowed[v])
        return 0;
    uint64_t key = dpq_key(lists_distance(part, q, v), part->position + (uint32_t)v);
    if (key >= q->top.limit || !dpq_topk_push(&q->top, key))
        return 0;
    q->threshold = dpq_topk_threshold(&q->top);
    return 1;
}

static void lists_rescore(const dpq_lists_part *part, dpq_lists_scan *s, dpq_lists_query *q, size_t hits)
{
    s->counters->rescored += hits;
    for (size_t h = 0; h < hits; h++)
        lists_offer(part, q, s->one.hits[h]);
}

/* ---- in float ---- */

static inline size_t lists_float_hits(const dpq_lists_part *part, dpq_lists_scan *s, dpq_lists_query *q, size_t first,
                                      size_t n, uint32_t levels, uint32_t nbits)
{
    const float *table = q->table, *terms = part->db.terms;
    float threshold = q->threshold, high = q->high;
    size_t found = 0;
    for (size_t v = first; v < first + n; v++) {
        const uint8_t *row = dpq_row(&part->db, v);
        float sum = terms ? terms[v] : 0.0f;
        for (uint32_t l = 0; l < levels; l++)
            sum += table[((size_t)l << nbits) + (nbits == 8 ? row[l] : dpq_code(row, nbits, l))];
        high = sum > high ? sum : high;
        s->one.hits[found] = (uint32_t)v;
        found += sum + part->offset <= threshold;
    }
    q->high = high;
    return found;
}

static void lists_float_chunk(const dpq_lists_part *part, dpq_lists_scan *s, dpq_lists_query *q, size_t first, size_t n)
{
    uint32_t levels = part->db.levels, nbits = part->db.nbits;
    size_t found = 0, end = first + n;
    while (n && nbits != 8 && dpq_is_end(&part->db, first + n - 1))
        n--;
    if (nbits == 8 && levels == 4)
        found = lists_float_hits(part, s, q, first, n, 4, 8);
    else if (nbits == 8 && levels == 8)
        found = lists_float_hits(part, s, q, first, n, 8, 8);
    else if (nbits == 8)
        found = lists_float_hits(part, s, q, first, n, levels, 8);
    else
        found = lists_float_hits(part, s, q, first, n, levels, nbits);
    for (size_t v = first + n; v < end; v++)
        s->one.hits[found++] = (uint32_t)v;
    lists_rescore(part, s, q, found);
}

/* From `first` on, until k are found and `enough` are scanned; returns where it ended. */
static size_t lists_float_scan(const dpq_lists_part *part, dpq_lists_scan *s, dpq_lists_query *q, size_t first,
                               size_t enough)
{
    size_t v = first;
    for (size_t n; v < part->count && !(v >= enough && q->threshold < INFINITY); v += n) {
        n = dpq_first_chunks(q->threshold < INFINITY ? DPQ_LISTS_FIRST : v, DPQ_LISTS_FIRST);
        n = dpq_min(n, part->count - v);
        lists_float_chunk(part, s, q, v, n);
    }
    s->counters->floated += v - first;
    return v;
}

/* ---- byte tables ---- */

/* The range of s from below what any vector of the list has, to where most end. */
static inline double lists_span(const dpq_lists *lists, const dpq_lists_query *q, size_t list, dpq_probed probed)
{
    double above = lists_above(q, probed.offset), seen = DPQ_LISTS_HIGH * (q->high - probed.low) + probed.low;
    return fmax(above, seen) + 2 * lists_sum_error(lists, q, list) - probed.low + lists_width(lists, list);
}

/* Look-ups know 8- and 4-bit codes of at least four bytes; many levels leave no units to resolve. */
static inline int lists_may_have_bytes(const dpq_lists *lists)
{
    return (lists->nbits == 8 || lists->nbits == 4) && lists->code_size >= 4 && lists->levels <= 128;
}

static void lists_build_table8(const dpq_lists *lists, dpq_lists_query *q)
{
    size_t rows = (size_t)lists->levels << lists->nbits;
    dpq_f32s scale = dpq_f32_all(q->scale);
    for (size_t i = 0; i < rows; i += DPQ_FW)
        dpq_f32_floor_u8(q->table8 + i, dpq_f32_mul(dpq_f32_load(q->table + i), scale));
}

/* One step for all lists from the first on: the widest of them has to fit. Sets the query's scale, if it is worthwhile. */
static void lists_calibrate(const dpq_lists *lists, const dpq_lists_scan *s, dpq_lists_query *q, size_t first)
{
    double span = 1e-30, magnitude = q->magnitude;
    size_t left = 0;
    for (size_t p = first; p < s->nprobe; p++) {
        size_t list = (size_t)q->keys[p];
        if (!q->counts[p] || lists_is_too_far(lists, q, list, q->probed[p]))
            continue;
        span = fmax(span, lists_span(lists, q, list, q->probed[p]));
        magnitude = fmax(magnitude, q->magnitude + lists_term_magnitude(lists, list));
        left += (size_t)q->counts[p];
    }
    if (left < DPQ_LISTS_WORTH_BYTES || !(span < INFINITY))
        return;
    double units = 255.0 - (lists->levels + 3) - 2;
    q->scale = (float)fmin(units / span, 0.0625 * (1 << 24) / magnitude);
    lists_build_table8(lists, q);
}

static dpq_lists_part lists_part(const dpq_lists *lists, const dpq_lists_query *q, size_t p, uint32_t position)
{
    size_t list = (size_t)q->keys[p];
    dpq_lists_part part = {.db = lists_database(lists, list), .count = (size_t)q->counts[p], .position = position};
    part.allowed = lists->allowed ? (const uint8_t *)(uintptr_t)lists->allowed[list] : NULL;
    part.offset = q->probed[p].offset;
    if (q->scale > 0) {
        double sum_error = lists_sum_error(lists, q, list), width = lists_width(lists, list);
        double magnitude = q->magnitude + lists_term_magnitude(lists, list);
        double error = (8 * magnitude * q->scale + 512) / (1 << 24); /* E */
        double base = (q->probed[p].low - sum_error - width) * q->scale - (lists->levels + 2) - error;
        part.start = (uint8_t)(int64_t)floor((double)part.db.term_min * q->scale - base);
        part.slope = (uint16_t)(width * q->scale * 256);
        part.scale = q->scale;
        part.constant = sum_error * q->scale - base + error;
    }
    return part;
}

/* ---- one query ---- */

/* Copies a query's byte tables to where, and as, the look-ups want them. */
static void lists_load_table8(const dpq_lists *lists, const dpq_lists_query *q, dpq_lookups *one)
{
    size_t K = (size_t)1 << lists->nbits;
    for (uint32_t l = 0; l < lists->levels; l++) {
        memcpy(one->table8 + l * 256, q->table8 + l * K, K);
        if (K == 256)
            dpq_lookup256_prepare(one->table8 + l * 256);
    }
    memset(one->table8 + lists->levels * 256, 0, (dpq_filled_levels(lists->levels) - lists->levels) * 256);
}

/* The last `wanted` of the vectors before `end`, whose register overlaps vectors that are done. */
static size_t lists_last_hits(const dpq_database *db, dpq_lookups *one, size_t end, size_t wanted)
{
    size_t found = dpq_one_filter(db, one, end - DPQ_QW, DPQ_QW), kept = 0;
    for (size_t h = 0; h < found; h++) {
        one->hits[kept] = one->hits[h];
        kept += one->hits[h] >= end - wanted;
    }
    return kept;
}

/* From `first` on, with the query's tables loaded. */
static void lists_byte_scan(const dpq_lists_part *part, dpq_lists_scan *s, dpq_lists_query *q, size_t first)
{
    s->one.start = part->start;
    s->one.slope = part->slope;
    for (size_t n, v = first; v < part->count; v += n) {
        double limit = lists_limit(q, part);
        if (limit < 0)
            return;
        n = dpq_min(DPQ_ONE_CHUNK, part->count - v);
        size_t whole = n - n % DPQ_QW;
        s->one.limit = (uint8_t)limit;
        lists_rescore(part, s, q, dpq_one_filter(&part->db, &s->one, v, whole));
        if (v + n < DPQ_QW)
            lists_float_chunk(part, s, q, v, n);
        else if (whole < n)
            lists_rescore(part, s, q, lists_last_hits(&part->db, &s->one, v + n, n - whole));
        s->counters->bounded += n;
    }
}

/* One list, before there are byte tables: the first vectors in float, the others by tables that these calibrate. */
static void lists_begin_list(const dpq_lists *lists, dpq_lists_scan *s, dpq_lists_query *q, size_t p, uint32_t position)
{
    dpq_lists_part part = lists_part(lists, q, p, position);
    int may_have_bytes = lists_may_have_bytes(lists);
    size_t v = lists_float_scan(&part, s, q, 0, may_have_bytes ? DPQ_LISTS_FIRST : part.count);
    if (may_have_bytes && q->threshold < INFINITY)
        lists_calibrate(lists, s, q, p);
    if (q->scale > 0) {
        part = lists_part(lists, q, p, position);
        lists_load_table8(lists, q, &s->one);
        lists_byte_scan(&part, s, q, v);
    } else
        lists_float_scan(&part, s, q, v, part.count);
}

/* Begins a query: the nearest lists, until there are byte tables. Returns how many probes are done, and their vectors. */
static size_t lists_begin(const dpq_lists *lists, const float *vector, dpq_lists_scan *s, dpq_lists_query *q,
                          uint32_t *position)
{
    size_t p;
    for (p = 0; p < s->nprobe; p++) {
        const float *centre = lists->centres + q->keys[p] * (int64_t)lists->stride;
        if (!q->counts[p])
            continue;
        q->probed[p].offset = lists_offset(vector, centre, lists->stride, s->inner_product);
        q->probed[p].low = lists_low(lists, q, (size_t)q->keys[p], q->probed[p].offset, s->inner_product);
    }
    *position = 0;
    for (p = 0; p < s->nprobe && !(q->scale > 0); p++) {
        if (q->counts[p] && !lists_is_too_far(lists, q, (size_t)q->keys[p], q->probed[p]))
            lists_begin_list(lists, s, q, p, *position);
        *position += (uint32_t)q->counts[p];
    }
    return p;
}

static void lists_finish_alone(const dpq_lists *lists, dpq_lists_scan *s, dpq_lists_query *q, size_t p,
                               uint32_t position)
{
    for (; p < s->nprobe; p++) {
        if (q->counts[p] && !lists_is_too_far(lists, q, (size_t)q->keys[p], q->probed[p])) {
            dpq_lists_part part = lists_part(lists, q, p, position);
            lists_byte_scan(&part, s, q, 0);
        }
        position += (uint32_t)q->counts[p];
    }
}

