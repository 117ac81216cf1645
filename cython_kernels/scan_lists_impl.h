/* The scan of inverted lists for one query, whose tables serve every list that it probes (dpq_lists.h).
 *
 * In: the lists, their derived data, a query's tables, and the lists that it probes. Out: its k nearest.
 *
 * The first lists, which are the nearest, are scanned in float until k vectors are found. The k-th distance, the
 * threshold, then fixes the step of the byte tables for all lists that are left. Each of these is scanned by look-ups
 * (lookups_impl.h), with a start byte and a limit of its own.
 *
 * Why the result is exact. For a list let s be the float sum term + T[0] + ..., without the offset A. A neighbour has
 * fl(s + A) <= threshold, hence s <= above = threshold - A + 2u |threshold|. By the triangle inequality the real value
 * of s is at least low = max(0, dist - R)^2 - dist^2 - errors, dist being the real ||u - w|| and R the list's radius
 * (-||q|| R for inner products). So a list with above + Ed < low holds no neighbour, Ed being what the additions of s
 * err by. Otherwise, as in scan_bound.h, let e be the lower edge of the term's bin and `width` the bin's width, and
 *
 *     S = start + floor(bin slope / 256) + sum_l floor(T[l] scale),     start = floor(term_min scale - base)
 *
 * A neighbour has S <= (above + Ed) scale - base + E = limit, because e is not above its term. It has S > (low - Ed -
 * width) scale - base - P - E too, where P = levels + 3 counts the floors: one an entry, one of the start, two of the
 * bin's product, whose slope is rounded down as well. The base is chosen so that the right side is -1. So a
 * neighbour's S is in 0..limit, and while limit <= 255, its byte is S itself. (The step of the byte tables is such
 * that no list's limit is larger.)
 */
#ifndef DPQ_SCAN_LISTS_IMPL_H
#define DPQ_SCAN_LISTS_IMPL_H

#include "dpq_lists.h"
#include "dpq_mask.h"
#include "dpq_topk.h"
#include "lookups_impl.h"

#define LISTS_WORTH_BYTES 512u /* vectors left to scan, below which byte tables are not worth making */
#define LISTS_FIRST 256u       /* vectors of the nearest list that are scanned in float */
#define LISTS_SPARSE 16u       /* where fewer than one in so many vectors take part, they are scored one by one */
#define LISTS_HIGH 1.4         /* the range of s that bytes resolve, over that of vectors scanned in float; measured */

/* What a query knows of a list that it probes, before the list is scanned. */
typedef struct {
    float offset; /* A of the head */
    double low;
} lists_probed;

/* A query and what has been found for it. */
typedef struct {
    const float *table;
    uint8_t *table8; /* [level][codeword], once `scale` is set */
    lists_probed *probed;
    const int64_t *keys, *counts;
    dpq_topk top;
    float threshold;
    float high;  /* the greatest s that a float scan met */
    float scale; /* of table8; 0: there is none yet */
    double magnitude, error, norm;
} lists_query;

/* What the queries of a call share. */
typedef struct {
    dpq_lookups look;
    int inner_product;
    size_t nprobe;
    dpq_counters *counters;
} lists_scan;

/* A list as one query scans it. The limit of its byte sums is scale * above + constant: see the head. */
typedef struct {
    dpq_database db;
    int is_sparse; /* few of its vectors take part */
    size_t count;
    uint32_t position; /* of the list's first vector among all that the query scans */
    float offset;
    uint8_t start;
    uint16_t slope;
    double scale, constant;
} lists_part;

static inline dpq_database lists_database(const dpq_lists *lists, size_t list)
{
    dpq_database db = {0};
    db.codes = (const uint8_t *)(uintptr_t)lists->codes[list];
    db.n = (size_t)lists->sizes[list];
    db.code_size = lists->code_size;
    db.nbits = lists->nbits;
    db.levels = lists->levels;
    if (lists->allowed)
        db.allowed = (const uint64_t *)(uintptr_t)lists->allowed[list];
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

/* A bound on the magnitude of every partial sum of s. */
static inline double lists_magnitude(const dpq_lists *lists, const lists_query *q, size_t list)
{
    return q->magnitude + (lists->terms ? lists->term_magnitude[list] : 0);
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

/* The offset is a float sum of positive numbers by chains of stride / 16 + 16 additions, each of which errs by u times
 * the offset at most. */
static double lists_low(const dpq_lists *lists, const lists_query *q, size_t list, float offset, int inner_product)
{
    double error = q->error + lists->errors[list], radius = lists->radius[list];
    if (inner_product)
        return -q->norm * radius - error;
    double relative = (lists->stride / 16 + 20.0) / (1 << 23);
    double gap = sqrt(offset * fmax(0, 1 - relative)) - radius;
    return (gap > 0 ? gap * gap : 0) - offset * (1 + relative) - error;
}

/* Ed: s is a chain of `levels` additions. */
static inline double lists_sum_error(const dpq_lists *lists, const lists_query *q, size_t list)
{
    return 1.01 * lists->levels * lists_magnitude(lists, q, list) / (1 << 24);
}

static inline double lists_above(const lists_query *q, float offset)
{
    return (double)q->threshold - offset + fabs((double)q->threshold) / (1 << 22);
}

/* Whether probe p of the query need not be scanned: the list holds no neighbour, or there is nothing to scan. */
static inline int lists_is_out(const dpq_lists *lists, const lists_query *q, size_t p)
{
    lists_probed probed = q->probed[p];
    size_t list = (size_t)q->keys[p];
    if (!q->counts[p] || (lists->allowed && !lists->admitted[list]))
        return 1;
    return lists_above(q, probed.offset) + lists_sum_error(lists, q, list) < probed.low;
}

/* Negative: no neighbour is left in the list. */
static inline double lists_limit(const lists_query *q, const lists_part *part)
{
    return part->scale * lists_above(q, part->offset) + part->constant;
}

static inline float lists_sum(const lists_part *part, const lists_query *q, size_t v)
{
    const float *terms = part->db.terms; /* NULL: inner products */
    return table_vector_sum(&part->db, q->table, v, terms ? terms[v] : 0.0f);
}

/* Offers a vector by its s. Returns 1 if the threshold moved. */
static inline int lists_offer_sum(const lists_part *part, lists_query *q, size_t v, float sum)
{
    uint64_t key = dpq_result_key(dpq_distance(sum, part->offset, !part->db.terms), part->position + (uint32_t)v);
    if (key >= q->top.limit || !dpq_topk_push(&q->top, key))
        return 0;
    q->threshold = dpq_topk_threshold(&q->top);
    return 1;
}

/* Computes the distances of those hits that take part, some side by side, and offers them. */
static void lists_rescore(const lists_part *part, lists_scan *s, lists_query *q, size_t hits)
{
    s->counters->rescored += hits;
    for (size_t h = 0; h < hits;) {
        uint32_t vectors[TABLE_TOGETHER], n = 0;
        float sums[TABLE_TOGETHER];
        for (; n < TABLE_TOGETHER && h < hits; h++)
            if (dpq_is_allowed(&part->db, s->look.hits[h])) {
                vectors[n] = s->look.hits[h];
                sums[n++] = dpq_stored_term(&part->db, s->look.hits[h]);
            }
        table_vector_sums(&part->db, q->table, vectors, n, sums);
        for (uint32_t i = 0; i < n; i++)
            lists_offer_sum(part, q, vectors[i], sums[i]);
    }
}

/* ---- in float ---- */

static void lists_float_chunk(const lists_part *part, lists_scan *s, lists_query *q, size_t first, size_t n)
{
    lists_rescore(part, s, q, table_hits(&part->db, q->table, first, n, part->offset, q->threshold, &q->high,
                                         s->look.hits));
}

/* From `first` on, until k vectors are found and `enough` are scanned. Returns where it ended. */
static size_t lists_float_scan(const lists_part *part, lists_scan *s, lists_query *q, size_t first, size_t enough)
{
    size_t v = first;
    for (size_t n; v < part->count && !(v >= enough && q->threshold < INFINITY); v += n) {
        n = dpq_first_chunks(q->threshold < INFINITY ? LISTS_FIRST : v, LISTS_FIRST);
        n = dpq_min(n, part->count - v);
        lists_float_chunk(part, s, q, v, n);
    }
    s->counters->floated += v - first;
    return v;
}

/* Scores those vectors of a masked list that take part. */
static void lists_scan_sparse(const lists_part *part, lists_scan *s, lists_query *q)
{
    for (size_t at = 0; at < part->count; at += 64)
        for (uint64_t bits = part->db.allowed[at / 64]; bits;) {
            size_t v = dpq_next_allowed(&bits, at);
            if (v >= part->count)
                return;
            float sum = lists_sum(part, q, v);
            q->high = sum > q->high ? sum : q->high;
            s->counters->floated++;
            lists_offer_sum(part, q, v, sum);
        }
}

/* ---- byte tables ---- */

/* How wide a range of s the bytes must resolve: from below any vector of the list to where most vectors end. */
static inline double lists_span(const dpq_lists *lists, const lists_query *q, size_t list, lists_probed probed)
{
    double above = lists_above(q, probed.offset), seen = LISTS_HIGH * (q->high - probed.low) + probed.low;
    return fmax(above, seen) + 2 * lists_sum_error(lists, q, list) - probed.low + lists_width(lists, list);
}

/* Whether there are look-ups for these codes. */
static inline int lists_may_have_bytes(const dpq_lists *lists)
{
    return lookups_know(lists->nbits, lists->code_size, lists->levels);
}

/* Makes the query's byte tables, if they are worthwhile. Their step serves all lists from probe `first` on, so it
 * follows the widest of these. */
static void lists_build_tables(const dpq_lists *lists, const lists_scan *s, lists_query *q, size_t first)
{
    double span = 1e-30, magnitude = q->magnitude;
    size_t left = 0, rows = (size_t)lists->levels << lists->nbits;
    for (size_t p = first; p < s->nprobe; p++) {
        if (lists_is_out(lists, q, p))
            continue;
        span = fmax(span, lists_span(lists, q, (size_t)q->keys[p], q->probed[p]));
        magnitude = fmax(magnitude, lists_magnitude(lists, q, (size_t)q->keys[p]));
        left += (size_t)q->counts[p];
    }
    if (left < LISTS_WORTH_BYTES || !(span < INFINITY))
        return;
    double units = 255.0 - (lists->levels + 3) - 2;
    q->scale = (float)fmin(units / span, 0.0625 * (1 << 24) / magnitude);
    for (size_t i = 0; i < rows; i += DPQ_FW)
        table_bytes(q->table8 + i, q->table + i, dpq_f32_all(q->scale), dpq_f32_all(0.0f));
}

/* The list of the query's probe p. position: of the list's first vector among all that the query scans. */
static lists_part lists_part_of(const dpq_lists *lists, const lists_query *q, size_t p, uint32_t position)
{
    size_t list = (size_t)q->keys[p];
    lists_part part = {.db = lists_database(lists, list), .count = (size_t)q->counts[p], .position = position};
    part.is_sparse = lists->allowed && (size_t)lists->admitted[list] * LISTS_SPARSE < part.db.n;
    part.offset = q->probed[p].offset;
    if (q->scale > 0) {
        double sum_error = lists_sum_error(lists, q, list), width = lists_width(lists, list);
        double error = (8 * lists_magnitude(lists, q, list) * q->scale + 512) / (1 << 24); /* E */
        double base = (q->probed[p].low - sum_error - width) * q->scale - (lists->levels + 2) - error;
        part.start = (uint8_t)(int64_t)floor((double)part.db.term_min * q->scale - base);
        part.slope = (uint16_t)(width * q->scale * 256);
        part.scale = q->scale;
        part.constant = sum_error * q->scale - base + error;
    }
    return part;
}

/* ---- one query ---- */

/* Copies a query's byte tables to where the look-ups read them. */
static void lists_load_tables(const dpq_lists *lists, const lists_query *q, dpq_lookups *look)
{
    size_t K = (size_t)1 << lists->nbits;
    for (uint32_t l = 0; l < lists->levels; l++)
        memcpy(look->table8 + l * 256, q->table8 + l * K, K);
    lookups_finish(look, lists->nbits, lists->levels);
}

/* The hits among the last `wanted` vectors before `end`. They are too few for a register, which therefore begins with
 * vectors that are done already. */
static size_t lists_last_hits(const dpq_database *db, dpq_lookups *look, size_t end, size_t wanted)
{
    size_t found = lookups_find(db, look, end - DPQ_QW, DPQ_QW), kept = 0;
    for (size_t h = 0; h < found; h++) {
        look->hits[kept] = look->hits[h];
        kept += look->hits[h] >= end - wanted;
    }
    return kept;
}

/* From `first` on, with the query's byte tables loaded. */
static void lists_byte_scan(const lists_part *part, lists_scan *s, lists_query *q, size_t first)
{
    s->look.start = part->start;
    s->look.slope = part->slope;
    if (part->is_sparse) {
        lists_scan_sparse(part, s, q);
        return;
    }
    for (size_t n, v = first; v < part->count; v += n) {
        double limit = lists_limit(q, part);
        if (limit < 0)
            return;
        n = dpq_min(LOOKUPS_AT_ONCE, part->count - v);
        size_t whole = n - n % DPQ_QW;
        s->look.limit = (uint8_t)limit;
        lists_rescore(part, s, q, lookups_find(&part->db, &s->look, v, whole));
        if (v + n < DPQ_QW)
            lists_float_chunk(part, s, q, v, n);
        else if (whole < n)
            lists_rescore(part, s, q, lists_last_hits(&part->db, &s->look, v + n, n - whole));
        s->counters->bounded += n;
    }
}

/* Scans one list before there are byte tables: its first vectors in float, the others by the tables that these made
 * possible. */
static void lists_begin_list(const dpq_lists *lists, lists_scan *s, lists_query *q, size_t p, uint32_t position)
{
    lists_part part = lists_part_of(lists, q, p, position);
    if (part.is_sparse) {
        lists_scan_sparse(&part, s, q);
        return;
    }
    int may_have_bytes = lists_may_have_bytes(lists);
    size_t v = lists_float_scan(&part, s, q, 0, may_have_bytes ? LISTS_FIRST : part.count);
    if (may_have_bytes && q->threshold < INFINITY)
        lists_build_tables(lists, s, q, p);
    if (q->scale > 0) {
        part = lists_part_of(lists, q, p, position);
        lists_load_tables(lists, q, &s->look);
        lists_byte_scan(&part, s, q, v);
    } else
        lists_float_scan(&part, s, q, v, part.count);
}

/* Begins a query: scans its nearest lists until there are byte tables. Returns how many probes are done, and in
 * *position how many vectors these had. */
static size_t lists_begin(const dpq_lists *lists, const float *vector, lists_scan *s, lists_query *q,
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
        if (!lists_is_out(lists, q, p))
            lists_begin_list(lists, s, q, p, *position);
        *position += (uint32_t)q->counts[p];
    }
    return p;
}

/* Scans what is left from probe p on; its byte tables are loaded still. */
static void lists_finish_alone(const dpq_lists *lists, lists_scan *s, lists_query *q, size_t p, uint32_t position)
{
    for (; p < s->nprobe; p++) {
        if (!lists_is_out(lists, q, p)) {
            lists_part part = lists_part_of(lists, q, p, position);
            lists_byte_scan(&part, s, q, 0);
        }
        position += (uint32_t)q->counts[p];
    }
}

#endif
