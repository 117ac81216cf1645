/* The tables of a group of DPQ_QW queries, interleaved by query.
 *
 * In: the tables of the queries, one after the other; for the bytes, the range of each query's distances. Out:
 *
 *   rows32  [DPQ_QW / DPQ_FW][level][codeword][DPQ_FW]  the floats; a `strip` holds DPQ_FW queries
 *   rows8   [level][codeword][DPQ_QW]                   the bytes of scan_bound.h; one more level of 256 rows has those
 *                                                       of the terms' bins
 *
 * So one row load serves all queries. Why the result is exact: the floats are copies, the bytes are what scan_bound.h
 * says.
 */
#ifndef DPQ_BATCH_ROWS_IMPL_H
#define DPQ_BATCH_ROWS_IMPL_H

#include "dpq_topk.h"
#include "many_rows_impl.h"
#include "query_tables_impl.h"

#define BATCH_STRIPS (DPQ_QW / DPQ_FW)
#define BATCH_CACHE_LINE 16u /* floats */

/* What a group has for codes of many levels (many_batch_impl.h). */
typedef struct {
    many_rows rows;
    many_bound bound[DPQ_QW];
    float sampled[MANY_QUARTILES * DPQ_QW]; /* some sampled sums */
    float *least; /* [level][DPQ_QW]: the least entry of the level's table */
} batch_many;

/* Of codes whose terms are stored: the hits of each query that are still to be scored. Terms, and codes where that
 * pays, are copied while they are in the cache. */
typedef struct {
    uint32_t n[DPQ_QW];
    uint32_t at_once; /* hits of a query that are scored together */
    uint32_t room;    /* the most */
    int copies;       /* whether codes are copied */
    uint32_t stride;  /* bytes of a copied code */
    uint32_t *vector; /* [DPQ_QW][room] */
    float *term;      /* [DPQ_QW][room] */
    uint8_t *code;    /* [DPQ_QW][room][stride] */
} batch_noted;

/* A group of queries and what has been found for them. Query `first` + i has lane i. */
typedef struct {
    uint8_t limit[DPQ_QW];
    float threshold[DPQ_QW]; /* of float sums */
    float constant[DPQ_QW];  /* A of dpq_scan.h */
    float high[DPQ_QW];      /* the greatest sum in the sample */
    dpq_bound bound[DPQ_QW];
    dpq_topk top[DPQ_QW];
    size_t first;
    uint32_t lanes; /* in use */
    int bytes;      /* whether vectors are judged by bytes; otherwise all are scanned in float */
    int inner_product;
    int has_many_levels; /* then bytes are those of `many`, and limits of 16 bits */
    batch_many many;
    const float *tables; /* of query `first`, one after the other */
    batch_noted noted;
    uint32_t hits_in_span[BATCH_STRIPS];
    uint32_t float_spans[BATCH_STRIPS]; /* > 0: so many more spans of the strip are scanned in float */
    float *rows32;
    uint8_t *rows8;
    uint64_t *keys;
    size_t buckets;  /* of sampled vectors */
    float *least;    /* [buckets][DPQ_QW]: the least sums in the sample */
    uint64_t *order; /* [buckets] */
} __attribute__((aligned(64))) batch_group;

static inline size_t batch_rows(const dpq_database *db)
{
    return db->levels * dpq_codewords(db);
}

static inline float *batch_strip(const dpq_database *db, const batch_group *g, uint32_t strip)
{
    return g->rows32 + strip * batch_rows(db) * DPQ_FW;
}

/* Fills rows32. Lanes not in use repeat the first query, so that nothing depends on what was there before. The tables
 * of many queries lie in the L3 cache, and one line after the other of 16 tables is no stream that the processor
 * fetches ahead. */
static void batch_interleave(const dpq_database *db, const dpq_queries *qs, batch_group *g)
{
    size_t rows = batch_rows(db);
    for (uint32_t strip = 0; strip < BATCH_STRIPS; strip++) {
        const float *from[DPQ_FW];
        float *to = batch_strip(db, g, strip);
        for (uint32_t i = 0; i < DPQ_FW; i++) {
            uint32_t q = strip * DPQ_FW + i;
            from[i] = qs->tables + (g->first + (q < g->lanes ? q : 0)) * rows;
        }
        for (size_t r = 0; r < rows; r += BATCH_CACHE_LINE)
            for (uint32_t i = 0; i < DPQ_FW; i++) {
                __builtin_prefetch(from[i] + r + 4 * BATCH_CACHE_LINE);
                for (size_t j = r; j < dpq_min(r + BATCH_CACHE_LINE, rows); j++)
                    to[j * DPQ_FW + i] = from[i][j];
            }
    }
}

/* Chooses every query's bound from the range of its sums. */
static void batch_choose_bounds(const dpq_database *db, const dpq_queries *qs, batch_group *g)
{
    for (uint32_t i = 0; i < DPQ_QW; i++) {
        size_t q = g->first + i;
        const float *table = qs->tables + q * batch_rows(db);
        g->bound[i] = i < g->lanes ? dpq_bound_choose(db, dpq_low(db, qs, q), g->high[i],
                                                      table_magnitude(table, dpq_codewords(db), db->levels), 0)
                                   : g->bound[0];
    }
}

/* Fills a strip of rows8. */
static void batch_fill_rows8(const dpq_database *db, batch_group *g, uint32_t strip)
{
    size_t K = dpq_codewords(db), rows = batch_rows(db);
    float scale[DPQ_FW], base[DPQ_FW];
    const float *from = batch_strip(db, g, strip);
    uint8_t *to = g->rows8 + strip * DPQ_FW;
    for (uint32_t i = 0; i < DPQ_FW; i++) {
        scale[i] = g->bound[strip * DPQ_FW + i].scale;
        base[i] = g->bound[strip * DPQ_FW + i].base;
    }
    dpq_f32s scales = dpq_f32_load(scale), bases = dpq_f32_load(base), zeros = dpq_f32_all(0.0f);
    for (size_t i = 0; i < rows; i++)
        table_bytes(to + i * DPQ_QW, from + i * DPQ_FW, scales, i < K ? bases : zeros);
    for (uint32_t i = 0; db->term_bins && i < 256; i++)
        dpq_f32_floor_u8(to + (rows + i) * DPQ_QW, dpq_f32_mul(dpq_f32_all(dpq_term_edge(db, i)), scales));
}

#endif
