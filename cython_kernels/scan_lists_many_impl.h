/* Inverted lists of codes of many levels: look-ups of queries' byte tables, in sums of 16 bits.
 *
 * In: a list, as queries scan it, and their tables. Out: the vectors that may be neighbours are scored and offered.
 * Some vectors at a time are turned into columns (many_columns.h), which all queries that scan the list look up.
 *
 * Why the result is exact. What many_bound.h proves of codes and of a threshold of float sums holds for every list,
 * with the list's own grid of terms, and with `above` of lists_query_impl.h as the threshold: a neighbour's s is within
 * it.
 * The scale is free. It is the same for all lists of a query, whose byte tables it has made.
 */
#ifndef DPQ_SCAN_LISTS_MANY_IMPL_H
#define DPQ_SCAN_LISTS_MANY_IMPL_H

#include "lists_query_impl.h"

#define LISTS_TURNED LOOKUPS_AT_ONCE /* vectors whose columns are made together */

static inline size_t lists_code_bytes(const dpq_lists *lists)
{
    return ((size_t)lists->levels * lists->nbits + 7) / 8;
}

/* Bytes at .. at + 15 of DPQ_QW rows, turned: to[b to_stride + i] is byte b of row i. */
static inline void lists_planes(const uint8_t *const rows[DPQ_QW], size_t at, uint8_t *to, size_t to_stride)
{
    dpq_u8s r[16];
    DPQ_UNROLL
    for (uint32_t i = 0; i < 16; i++)
        r[i] = dpq_u8_of_rows(rows + i, at);
    lookups_transpose(r, 16);
    DPQ_UNROLL
    for (uint32_t b = 0; b < 16; b++)
        dpq_u8_store(to + b * to_stride, r[lookups_plane(16, b)]);
}

/* The columns of n > 0 vectors, as many_fill_columns makes them; but behind the last vector anything may stand. */
static void lists_turn(const dpq_database *db, size_t n, uint8_t *columns)
{
    size_t bytes = db->column_bytes;
    if (bytes < 16) {
        many_fill_columns(db, 0, n, columns);
        return;
    }
    for (size_t first = 0; first < (n + 63) / 64 * 64; first += DPQ_QW) {
        const uint8_t *rows[DPQ_QW];
        uint8_t *to = columns + first / DPQ_COLUMN * DPQ_COLUMN * bytes + first % DPQ_COLUMN;
        for (size_t i = first; i < first + DPQ_QW; i++) /* of every 64: vector j, then vector 32 + j */
            rows[i - first] = dpq_row(db, dpq_min(i / 64 * 64 + i % 2 * 32 + i % 64 / 2, n - 1));
        for (size_t i = 0; i < DPQ_QW * (size_t)db->code_size; i += 64)
            __builtin_prefetch(dpq_row(db, first) + MANY_AHEAD + i);
        for (size_t at = 0; at < bytes; at += 16) {
            size_t begin = dpq_min(at, bytes - 16); /* nothing beyond the codes is read */
            lists_planes(rows, begin, to + begin * DPQ_COLUMN, DPQ_COLUMN);
        }
    }
}

/* ---- byte tables ---- */

/* The distance between the quartiles of some s of a list. */
static double lists_many_spread(const dpq_lists *lists, const lists_query *q, size_t p)
{
    dpq_database db = lists_database(lists, (size_t)q->keys[p]);
    float sums[MANY_QUARTILES];
    for (size_t i = 0; i < MANY_QUARTILES; i += TABLE_TOGETHER) {
        uint32_t vectors[TABLE_TOGETHER];
        for (size_t j = 0; j < TABLE_TOGETHER; j++) {
            vectors[j] = (uint32_t)((i + j) * (size_t)q->counts[p] / MANY_QUARTILES);
            sums[i + j] = dpq_stored_term(&db, vectors[j]);
        }
        table_vector_sums(&db, q->table, vectors, TABLE_TOGETHER, sums + i);
    }
    return many_spread(sums);
}

/* Makes the query's byte tables, by what it has met in the list of its probe `first`. Their scale serves all lists from
 * there on. */
static void lists_many_build(const dpq_lists *lists, const lists_scan *s, lists_query *q, size_t first)
{
    size_t K = (size_t)1 << lists->nbits;
    float least[DPQ_MAX_LEVELS];
    uint8_t most[DPQ_MAX_LEVELS];
    double near = 0, step = 0, left = 0;
    q->seen = many_look_at_table(q->table, K, lists->levels, q->magnitude, least);
    for (size_t p = first; p < s->nprobe; p++) {
        if (lists_is_out(lists, q, p))
            continue;
        dpq_database db = lists_database(lists, (size_t)q->keys[p]);
        near = fmax(near, lists_above(q, q->probed[p].offset) - many_base(&db, &q->seen));
        step = fmax(step, db.term_step);
        left += (double)q->counts[p];
    }
    if (left < LISTS_WORTH_BYTES)
        return;
    q->scale = many_scale(lists->levels, &q->seen, lists_many_spread(lists, q, first), near, step);
    many_table_bytes(q->table, K, lists->levels, least, q->scale, q->table8, K, most);
    q->many.groups = many_pack(most, lists->levels, MANY_ROOM_OF_ONE, q->many.ends);
}

/* Copies a query's byte tables to where the look-ups read them. */
static void lists_load_tables(const dpq_lists *lists, const lists_query *q, dpq_lookups *look)
{
    size_t K = (size_t)1 << lists->nbits;
    for (uint32_t l = 0; l < lists->levels; l++)
        memcpy(look->table8 + l * 256, q->table8 + l * K, K);
    lookups_finish(look, lists->nbits, lists->levels);
}

/* ---- look-ups ---- */

/* What no S of a neighbour exceeds. Negative: no neighbour is left in the list. */
static inline double lists_many_most(const lists_query *q, const lists_part *part)
{
    return many_most(&part->many, lists_above(q, part->offset));
}

/* The vectors of a list from v on, as many as are turned together; v is a multiple of LISTS_TURNED. */
static lists_part lists_chunk_of(const dpq_lists *lists, const lists_scan *s, const lists_part *part, size_t v)
{
    lists_part chunk = *part;
    chunk.db.codes += v * chunk.db.code_size;
    chunk.db.n -= v;
    if (chunk.db.terms)
        chunk.db.terms += v;
    if (chunk.db.ids)
        chunk.db.ids += v;
    else if (chunk.db.allowed)
        chunk.db.allowed += v / 64;
    chunk.db.columns = s->columns;
    chunk.db.column_bytes = lists_code_bytes(lists);
    chunk.count = dpq_min(LISTS_TURNED, part->count - v);
    chunk.position += (uint32_t)v;
    return chunk;
}

/* From vector `first` of a chunk on, whose columns are made, with the query's byte tables loaded. */
static void lists_many_chunk(const lists_part *chunk, lists_scan *s, lists_query *q, size_t first)
{
    size_t n = chunk->count - first;
    q->many.bound = chunk->many;
    q->many.limit = many_limit(&chunk->many, lists_above(q, chunk->offset));
    lists_rescore(chunk, s, q, many_find(&chunk->db, &q->many, &s->look, first, n));
    s->counters->bounded += n;
}

/* From `first` on, with the query's byte tables loaded. */
static void lists_many_scan(const dpq_lists *lists, const lists_part *part, lists_scan *s, lists_query *q, size_t first)
{
    for (size_t v = first - first % LISTS_TURNED; v < part->count; v += LISTS_TURNED) {
        if (lists_many_most(q, part) < 0)
            return;
        lists_part chunk = lists_chunk_of(lists, s, part, v);
        lists_turn(&chunk.db, chunk.count, s->columns);
        lists_many_chunk(&chunk, s, q, v < first ? first - v : 0);
    }
}

/* A list for several queries, each with its part: columns are made once. */
static void lists_many_share(const dpq_lists *lists, lists_scan *s, lists_query *const *queries,
                             const lists_part *parts, uint32_t n)
{
    size_t count = 0;
    for (uint32_t i = 0; i < n; i++)
        count = parts[i].count > count ? parts[i].count : count;
    for (size_t v = 0; v < count; v += LISTS_TURNED) {
        int turned = 0;
        for (uint32_t i = 0; i < n; i++) {
            if (v >= parts[i].count || lists_many_most(queries[i], &parts[i]) < 0)
                continue;
            lists_part chunk = lists_chunk_of(lists, s, &parts[i], v);
            if (!turned++)
                lists_turn(&chunk.db, dpq_min(LISTS_TURNED, count - v), s->columns);
            lists_load_tables(lists, queries[i], &s->look);
            lists_many_chunk(&chunk, s, queries[i], 0);
        }
    }
}

#endif
