/* What becomes of hits in the scan for many queries: their distances are computed and offered to the k best.
 *
 * In: the hits of a chunk of vectors. Out: every query's k best so far, and the threshold and limit that follow from
 * them. Why the result is exact: see scan_batch_impl.h.
 *
 * Where terms are stored or zero, a query's hits are noted, and scored some at a time. A scan of hundreds of thousands
 * of vectors comes back to a query when neither its table nor the codes that it noted are in the L2 cache any more.
 * So codes are copied when they are noted, side by side, and the more are noted, the more of them a table that has been
 * fetched serves. Where the tables of all queries stay in the cache, that does not pay.
 */
#ifndef DPQ_BATCH_RESCORE_IMPL_H
#define DPQ_BATCH_RESCORE_IMPL_H

#include "batch_rows_impl.h"
#include "batch_sums_impl.h"
#include "many_batch_impl.h"

/* Of codes that a query notes: those of all queries fit the L2 cache. An odd number of lines, so that the queries do
 * not compete for the same places of the L1 cache. */
#define BATCH_NOTED_BYTES (133u * 64u)
#define BATCH_LEAST_NOTED 64u   /* but so many there is room for */
#define BATCH_CACHED_ROWS 2048u /* floats of a query's table; half a megabyte for 64 queries */

/* Cuts what hits are noted in from address *at on. */
static void batch_layout_noted(const dpq_database *db, uintptr_t *at, batch_noted *noted)
{
    noted->copies = batch_rows(db) > BATCH_CACHED_ROWS;
    noted->stride = (db->levels * db->nbits + 7) / 8;
    noted->room = BATCH_NOTED_BYTES / noted->stride;
    noted->room = noted->room < BATCH_LEAST_NOTED ? BATCH_LEAST_NOTED : noted->room;
    noted->vector = dpq_take(at, DPQ_QW * noted->room * sizeof *noted->vector);
    noted->term = dpq_take(at, DPQ_QW * noted->room * sizeof *noted->term);
    noted->code = dpq_take(at, DPQ_QW * noted->room * noted->stride + sizeof(uint32_t)); /* dpq_code reads ahead */
}

/* How many hits of a query are scored together. Thresholds follow later where more are; but beyond DPQ_HEAP_MAX_K
 * results they follow only after k more anyway (dpq_topk.h). */
static uint32_t batch_noted_at_once(const batch_noted *noted, size_t k)
{
    size_t few = k / 16 * TABLE_TOGETHER + TABLE_TOGETHER;
    return (uint32_t)dpq_min(noted->copies && k > DPQ_HEAP_MAX_K ? k : few, noted->room);
}

/* Copies a code by words, since a call of memcpy takes longer. */
static inline void batch_copy_code(uint8_t *to, const uint8_t *from, size_t bytes)
{
    size_t b = 0;
    for (; b + 8 <= bytes; b += 8)
        memcpy(to + b, from + b, 8);
    for (; b < bytes; b++)
        to[b] = from[b];
}

/* Takes over the threshold that the k best have reached. Not inlined: few hits get here, and the loops over hits need
 * the registers. */
static __attribute__((noinline)) void batch_follow(batch_group *g, uint32_t q)
{
    g->threshold[q] = dpq_sum_within(dpq_topk_threshold(&g->top[q]), g->constant[q]);
    if (g->has_many_levels)
        g->many.rows.limit[q] = many_limit(&g->many.bound[q], g->threshold[q]);
    else
        g->limit[q] = dpq_bound_limit(&g->bound[q], g->threshold[q]);
}

static inline void batch_offer(batch_group *g, uint32_t q, float sum, size_t v)
{
    uint64_t key = dpq_result_key(dpq_distance(sum, g->constant[q], g->inner_product), (uint32_t)v);
    if (key < g->top[q].limit && dpq_topk_push(&g->top[q], key))
        batch_follow(g, q);
}

/* The float sum of an unpacked code for the query of one lane. */
DPQ_INLINE float batch_lane_sum(const dpq_database *db, const batch_group *g, uint32_t q, const uint16_t *code,
                                float start)
{
    return table_sum(db, batch_strip(db, g, q / DPQ_FW) + q % DPQ_FW, DPQ_FW, code, start);
}

/* Hits whose lower bound in float is within the threshold become pending, and the cross terms that their distances
 * need are fetched. Those are spread over megabytes: so the next chunk is scanned before they are read. */
DPQ_INLINE void batch_rescore_bounds(const dpq_database *db, batch_group *g, batch_workspace *w, size_t n)
{
    uint16_t code[DPQ_MAX_LEVELS];
    for (size_t h = 0; h < n; h++) {
        size_t v = w->hits.vector[h];
        uint64_t near = 0;
        if (!dpq_is_allowed(db, v))
            continue;
        dpq_unpack(db, v, code);
        float start = dpq_term_bound(db, v, 0);
        for (uint64_t queries = w->hits.queries[h]; queries; queries &= queries - 1) {
            uint32_t q = (uint32_t)__builtin_ctzll(queries);
            near |= (uint64_t)(batch_lane_sum(db, g, q, code, start) <= g->threshold[q]) << q;
            g->hits_in_span[q / DPQ_FW]++;
        }
        w->pending.vector[w->pendings] = (uint32_t)v;
        w->pending.queries[w->pendings] = near;
        w->pendings += near != 0;
    }
    for (size_t h = 0; h < w->pendings; h++) {
        dpq_unpack(db, w->pending.vector[h], code);
        dpq_prefetch_term(db, w->pending.vector[h], code);
    }
}

/* Computes the distances of pending vectors. */
DPQ_INLINE void batch_rescore_pending(const dpq_database *db, batch_group *g, batch_workspace *w)
{
    uint16_t code[DPQ_MAX_LEVELS];
    for (size_t h = 0; h < w->pendings; h++) {
        size_t v = w->pending.vector[h];
        dpq_unpack(db, v, code);
        float term = dpq_term(db, v, code);
        for (uint64_t queries = w->pending.queries[h]; queries; queries &= queries - 1) {
            uint32_t q = (uint32_t)__builtin_ctzll(queries);
            batch_offer(g, q, batch_lane_sum(db, g, q, code, term), v);
        }
    }
    w->pendings = 0;
}

DPQ_INLINE void batch_rescore_of_shape(uint32_t nbits, uint32_t levels, dpq_database db, batch_group *g,
                                       batch_workspace *w, size_t hits)
{
    db.nbits = nbits;
    db.levels = levels;
    batch_rescore_pending(&db, g, w);
    batch_rescore_bounds(&db, g, w, hits);
}

/* Scores the vectors noted for a query, whose terms are stored or zero: float sums are exact at once. A query's own
 * table takes fewer lines of the cache than the interleaved one, and the more vectors are noted, the more of its lines
 * serve several. */
static void batch_score_noted(const dpq_database *db, batch_group *g, uint32_t q)
{
    const float *table = g->tables + q * batch_rows(db), *term = g->noted.term + q * g->noted.room;
    const uint32_t *vector = g->noted.vector + q * g->noted.room;
    dpq_database codes = *db;
    if (g->noted.copies) {
        codes.codes = g->noted.code + (size_t)q * g->noted.room * g->noted.stride;
        codes.code_size = g->noted.stride;
        codes.n = g->noted.room + 1; /* so that all are read in place */
    }
    for (uint32_t h = 0; h < g->noted.n[q]; h += TABLE_TOGETHER) {
        float sums[TABLE_TOGETHER];
        uint32_t some = (uint32_t)dpq_min(g->noted.n[q] - h, TABLE_TOGETHER), numbers[TABLE_TOGETHER];
        for (uint32_t i = 0; i < some; i++) {
            numbers[i] = g->noted.copies ? h + i : vector[h + i];
            sums[i] = term[h + i];
        }
        table_vector_sums(&codes, table, numbers, some, sums);
        for (uint32_t i = 0; i < some; i++)
            if (sums[i] <= g->threshold[q])
                batch_offer(g, q, sums[i], vector[h + i]);
    }
    g->noted.n[q] = 0;
}

/* Notes hits, and scores a query's when they are as many as are scored together. */
static void batch_note(const dpq_database *db, batch_group *g, batch_workspace *w, size_t hits)
{
    batch_noted *noted = &g->noted;
    for (size_t h = 0; h < hits; h++) {
        size_t v = w->hits.vector[h];
        if (!dpq_is_allowed(db, v))
            continue;
        for (uint64_t queries = w->hits.queries[h]; queries; queries &= queries - 1) {
            uint32_t q = (uint32_t)__builtin_ctzll(queries);
            size_t at = (size_t)q * noted->room + noted->n[q]++;
            g->hits_in_span[q / DPQ_FW]++;
            noted->vector[at] = (uint32_t)v;
            noted->term[at] = dpq_stored_term(db, v);
            if (noted->copies)
                batch_copy_code(noted->code + at * noted->stride, dpq_row(db, v), noted->stride);
            if (noted->n[q] == noted->at_once)
                batch_score_noted(db, g, q);
        }
    }
}

/* Finishes the hits of the chunk before, and begins those of this one. */
static void batch_rescore(const dpq_database *db, batch_group *g, batch_workspace *w, size_t hits)
{
    if (dpq_has_terms(db)) {
        batch_note(db, g, w, hits);
        return;
    }
    DPQ_BY_SHAPE(batch_rescore_of_shape, db->nbits, db->levels, *db, g, w, hits);
}

#endif
