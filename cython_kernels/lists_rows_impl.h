/* Lists of codes of many levels that several queries scan together, by rows of their tables (many_rows_impl.h).
 *
 * In: a list, as up to DPQ_QW queries scan it, and their byte tables. Out: the vectors that may be neighbours are
 * scored and offered. Why the result is exact: the bounds are those of scan_lists_many_impl.h.
 *
 * To interleave the tables takes as long as to scan some thousand vectors. So queries have fixed places: query q is in
 * block q / DPQ_QW, and where most queries of a block probe a list, they scan it by the rows of the block, which are
 * made once a call. What is left of a list's queries is put together for that list alone, if that pays, and otherwise
 * looks up its columns one by one.
 */
#ifndef DPQ_LISTS_ROWS_IMPL_H
#define DPQ_LISTS_ROWS_IMPL_H

#include "many_rows_impl.h"
#include "scan_lists_many_impl.h"

#define LISTS_ROWS_CHUNK 256u /* vectors between two updates of the limits */
#define LISTS_ROWS_DENSE (DPQ_QW / 2) /* so many queries of a block scan by its rows */
/* What the sums of a vector take, and what to interleave the tables of 32 queries takes, where looking up a vector for
 * one query takes DPQ_LOOK_UP_COST. Rough estimates: they decide the way, not the result. */
#define LISTS_ROWS_COST 128u
#define LISTS_INTERLEAVE_COST 100000u
#define LISTS_NOTED 16u /* hits of a query that are scored together */

/* The interleaved tables of a block of queries. */
typedef struct {
    many_rows rows;
    uint8_t *rows8;
    int made;
} lists_rows;

/* The queries that scan a list together; each has a lane. */
typedef struct {
    uint64_t live; /* lanes in use */
    lists_query *query[DPQ_QW];
    lists_part part[DPQ_QW];
    uint64_t within[LISTS_ROWS_CHUNK];
    uint16_t grid[LISTS_ROWS_CHUNK];
    uint32_t noted[DPQ_QW][LISTS_NOTED];
    uint32_t n_noted[DPQ_QW];
    lists_query *left[2 * DPQ_QW]; /* queries that the rows of their blocks do not serve */
    lists_part left_part[2 * DPQ_QW];
    uint32_t n_left;
} lists_lanes;

/* Interleaves byte tables: query i is in lane i. Lanes without a query repeat the first. */
static void lists_make_rows(const dpq_lists *lists, lists_query *const *queries, uint32_t n, lists_rows *to)
{
    size_t K = (size_t)1 << lists->nbits, entries = lists->levels * K;
    const uint8_t *tables[DPQ_QW];
    for (uint32_t i = 0; i < DPQ_QW; i++) { /* byte 2 j is of query j, byte 2 j + 1 of query DPQ_QW / 2 + j */
        uint32_t query = i % 2 * DPQ_QW / 2 + i / 2;
        tables[i] = queries[query < n ? query : 0]->table8;
    }
    for (size_t r = 0; r < entries; r += 16)
        lists_planes(tables, r, to->rows8 + r * DPQ_QW, DPQ_QW);
    to->rows.rows8 = to->rows8;
    many_pack_rows(&to->rows, lists->levels, K);
    to->made = 1;
}

/* The rows of the block of up to DPQ_QW queries that begins with `queries`. Some may have no byte tables, and nothing
 * left to scan. */
static void lists_make_block(const dpq_lists *lists, lists_query *queries, size_t n, lists_rows *to)
{
    lists_query *with[DPQ_QW], *any = queries;
    uint32_t size = (uint32_t)dpq_min(DPQ_QW, n);
    while (!(any->scale > 0))
        any++;
    for (uint32_t i = 0; i < size; i++)
        with[i] = queries[i].scale > 0 ? queries + i : any;
    lists_make_rows(lists, with, size, to);
}

static void lists_lane_limit(lists_lanes *g, uint32_t lane, many_rows *rows)
{
    if (lists_many_most(g->query[lane], &g->part[lane]) < 0)
        g->live &= ~(1ull << lane);
    rows->limit[lane] = many_limit(&g->part[lane].many, lists_above(g->query[lane], g->part[lane].offset));
}

/* Scores what is noted for a lane. */
static void lists_score_noted(lists_scan *s, lists_lanes *g, uint32_t lane, many_rows *rows)
{
    float threshold = g->query[lane]->threshold;
    memcpy(s->look.hits, g->noted[lane], g->n_noted[lane] * sizeof *g->noted[lane]);
    lists_rescore(&g->part[lane], s, g->query[lane], g->n_noted[lane]);
    g->n_noted[lane] = 0;
    if (g->query[lane]->threshold < threshold)
        lists_lane_limit(g, lane, rows);
}

/* Notes the hits of a chunk, and scores a lane's when they are LISTS_NOTED. */
static void lists_note(lists_scan *s, lists_lanes *g, size_t first, size_t n, many_rows *rows)
{
    for (size_t i = 0; i < n; i++)
        for (uint64_t within = g->within[i] & g->live; within; within &= within - 1) {
            uint32_t lane = (uint32_t)__builtin_ctzll(within);
            /* A query may scan the first part of a list only, because of `max_codes`. */
            if (first + i >= g->part[lane].count)
                continue;
            g->noted[lane][g->n_noted[lane]++] = (uint32_t)(first + i);
            if (g->n_noted[lane] == LISTS_NOTED)
                lists_score_noted(s, g, lane, rows);
        }
}

/* Scans a list of LISTS_LEAST_SHARED vectors or more for the lanes in g->live. */
static void lists_scan_rows(lists_scan *s, lists_lanes *g, many_rows *rows)
{
    const uint64_t lanes = g->live;
    const dpq_database *db = &g->part[__builtin_ctzll(lanes)].db;
    size_t count = 0;
    memset(rows->limit, 0, sizeof rows->limit);
    for (uint64_t left = lanes; left; left &= left - 1) {
        uint32_t lane = (uint32_t)__builtin_ctzll(left);
        rows->slope[lane] = g->part[lane].many.slope;
        lists_lane_limit(g, lane, rows);
        count = g->part[lane].count > count ? g->part[lane].count : count;
        g->n_noted[lane] = 0;
    }
    s->counters->together++;
    memset(g->grid, 0, sizeof g->grid);
    for (size_t v = 0; v < count && g->live; v += LISTS_ROWS_CHUNK) {
        size_t n = dpq_min(LISTS_ROWS_CHUNK, count - v), before = n < MANY_AT_ONCE ? dpq_min(v, MANY_AT_ONCE - n) : 0;
        size_t some = n + before < MANY_AT_ONCE ? MANY_AT_ONCE : n + before;
        int outliers = db->terms && many_grid(db, v - before, n + before, g->grid);
        many_sums_within(db, rows, NULL, g->grid, v - before, some, g->within);
        for (size_t i = 0; outliers && i < n; i++)
            if (many_is_outlier(db, v + i))
                g->within[before + i] = UINT64_MAX;
        memmove(g->within, g->within + before, n * sizeof *g->within);
        lists_note(s, g, v, n, rows);
        s->counters->bounded += n * (size_t)__builtin_popcountll(lanes);
    }
    for (uint64_t left = lanes; left; left &= left - 1)
        lists_score_noted(s, g, (uint32_t)__builtin_ctzll(left), rows);
}

/* Leaves the lanes in use to lists_scan_left. */
static void lists_leave_lanes(lists_lanes *g)
{
    for (; g->live; g->live &= g->live - 1) {
        uint32_t lane = (uint32_t)__builtin_ctzll(g->live);
        g->left[g->n_left] = g->query[lane];
        g->left_part[g->n_left++] = g->part[lane];
    }
}

/* Whether n queries had better interleave their tables for a list of `count` vectors than look up one by one. */
static inline int lists_are_worth_rows(uint32_t n, size_t count)
{
    double one_by_one = (double)n * (double)count * DPQ_LOOK_UP_COST;
    return n <= DPQ_QW && count >= MANY_AT_ONCE
           && one_by_one > (double)count * LISTS_ROWS_COST + (n + 31.0) / 32 * LISTS_INTERLEAVE_COST;
}

/* Scans a list for the queries that are left. own: rows for them. */
static void lists_scan_left(const dpq_lists *lists, lists_scan *s, lists_lanes *g, lists_rows *own)
{
    uint32_t n = g->n_left;
    g->n_left = 0;
    if (!n)
        return;
    if (lists_are_worth_rows(n, g->left_part[0].db.n)) {
        lists_make_rows(lists, g->left, n, own);
        memcpy(g->query, g->left, n * sizeof *g->left);
        memcpy(g->part, g->left_part, n * sizeof *g->left_part);
        g->live = n < 64 ? (1ull << n) - 1 : UINT64_MAX;
        lists_scan_rows(s, g, &own->rows);
        return;
    }
    lists_many_share(lists, s, g->left, g->left_part, n);
}

#endif
