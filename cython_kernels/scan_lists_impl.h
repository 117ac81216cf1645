/* The scan of inverted lists for one query, whose tables serve every list that it probes (dpq_lists.h).
 *
 * In: the lists, their derived data, a query's tables, and the lists that it probes. Out: its k nearest.
 *
 * The first lists, which are the nearest, are scanned in float until k vectors are found. The k-th distance, the
 * threshold, then fixes the step of the byte tables for all lists that are left. Each of these is scanned by look-ups
 * (lookups_impl.h), with a start byte and a limit of its own; codes of many levels as scan_lists_many_impl.h says.
 *
 * Why the result is exact. s, above, low and Ed are those of lists_query_impl.h. As in scan_bound.h, let e be the lower
 * edge of the term's bin and `width` the bin's width, and
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

#include "lists_query_impl.h"
#include "scan_lists_many_impl.h"

#define LISTS_SPARSE 16u       /* where fewer than one in so many vectors take part, they are scored one by one */
#define LISTS_HIGH 1.4         /* the range of s that bytes resolve, over that of vectors scanned in float; measured */

/* ---- byte tables ---- */

/* Negative: no neighbour is left in the list. */
static inline double lists_limit(const lists_query *q, const lists_part *part)
{
    return part->scale * lists_above(q, part->offset) + part->constant;
}

/* How wide a range of s the bytes must resolve: from below any vector of the list to where most vectors end. */
static inline double lists_span(const dpq_lists *lists, const lists_query *q, size_t list, lists_probed probed)
{
    double above = lists_above(q, probed.offset), seen = LISTS_HIGH * (q->high - probed.low) + probed.low;
    return fmax(above, seen) + 2 * lists_sum_error(lists, q, list) - probed.low + lists_width(lists, list);
}

/* Whether there are look-ups for these codes. */
static inline int lists_may_have_bytes(const dpq_lists *lists)
{
    return lists_are_many(lists) || lookups_know(lists->nbits, lists->code_size, lists->levels);
}

/* Makes the query's byte tables, if they are worthwhile. Their step serves all lists from probe `first` on, so it
 * follows the widest of these. Not of many levels. */
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
    if (q->scale > 0 && lists_are_many(lists)) {
        part.many = many_bound_of(&part.db, &q->seen, q->scale);
    } else if (q->scale > 0) {
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
static void lists_byte_scan(const dpq_lists *lists, const lists_part *part, lists_scan *s, lists_query *q, size_t first)
{
    if (part->is_sparse) {
        lists_scan_sparse(part, s, q);
        return;
    }
    if (part->many.scale > 0) {
        lists_many_scan(lists, part, s, q, first);
        return;
    }
    s->look.start = part->start;
    s->look.slope = part->slope;
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
        (lists_are_many(lists) ? lists_many_build : lists_build_tables)(lists, s, q, p);
    if (q->scale > 0) {
        part = lists_part_of(lists, q, p, position);
        lists_load_tables(lists, q, &s->look);
        lists_byte_scan(lists, &part, s, q, v);
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
            lists_byte_scan(lists, &part, s, q, 0);
        }
        position += (uint32_t)q->counts[p];
    }
}

#endif
