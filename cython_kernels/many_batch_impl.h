/* Codes of many levels in the scan for many queries: the bounds and rows of a group.
 *
 * In: the interleaved float tables of batch_rows_impl.h, a sample, every query's threshold. Out: the rows of
 * many_rows_impl.h; and which queries each vector of a chunk may be near to. Why the result is exact: see many_bound.h.
 */
#ifndef DPQ_MANY_BATCH_IMPL_H
#define DPQ_MANY_BATCH_IMPL_H

#include "batch_sums_impl.h"

/* Looks at a strip's tables, and notes every level's least entries. seen: of all queries of the group. */
static void many_look_at(const dpq_database *db, batch_group *g, uint32_t strip, many_seen *seen)
{
    size_t K = dpq_codewords(db);
    const float *rows = batch_strip(db, g, strip);
    float *least = g->many.least + strip * DPQ_FW;
    for (uint32_t l = 0; l < db->levels; l++, least += DPQ_QW) {
        float low[3][DPQ_FW], high[3][DPQ_FW];
        for (size_t third = 0; third < 3; third++) {
            dpq_f32s lowest = dpq_f32_load(rows + third * K / 3 * DPQ_FW), highest = lowest;
            for (size_t i = third * K / 3; i < (third + 1) * K / 3; i++) {
                dpq_f32s entries = dpq_f32_load(rows + i * DPQ_FW);
                lowest = dpq_f32_min(lowest, entries);
                highest = dpq_f32_max(highest, entries);
            }
            dpq_f32_store(low[third], lowest);
            dpq_f32_store(high[third], highest);
        }
        rows += K * DPQ_FW;
        for (uint32_t i = 0; i < DPQ_FW; i++) {
            uint32_t q = strip * DPQ_FW + i;
            float most = fmaxf(high[0][i], fmaxf(high[1][i], high[2][i]));
            least[i] = fminf(low[0][i], fminf(low[1][i], low[2][i]));
            seen[q].minima += least[i];
            seen[q].magnitude += fmaxf(fabsf(least[i]), fabsf(most));
            seen[q].widest = fmax(seen[q].widest, many_median(high[0][i], high[1][i], high[2][i]) - least[i]);
        }
    }
}

DPQ_INLINE dpq_u8x16 many_bytes(const float *entries, dpq_f32s least, dpq_f32s scale)
{
    uint8_t bytes[DPQ_FW];
    table_bytes_from(bytes, entries, least, scale);
    return dpq_u8x16_load(bytes);
}

/* Fills the columns of rows8 that two strips share, `strip` and the one half of all behind it. */
static void many_fill_rows8(const dpq_database *db, batch_group *g, uint32_t strip)
{
    uint32_t other = strip + BATCH_STRIPS / 2;
    size_t K = dpq_codewords(db);
    const float *a = batch_strip(db, g, strip), *b = batch_strip(db, g, other);
    uint8_t *to = g->rows8 + 2 * strip * DPQ_FW;
    float scale[2 * DPQ_FW];
    for (uint32_t i = 0; i < DPQ_FW; i++) {
        scale[i] = g->many.bound[strip * DPQ_FW + i].scale;
        scale[DPQ_FW + i] = g->many.bound[other * DPQ_FW + i].scale;
    }
    dpq_f32s scale_a = dpq_f32_load(scale), scale_b = dpq_f32_load(scale + DPQ_FW);
    for (uint32_t l = 0; l < db->levels; l++) {
        const float *least = g->many.least + l * DPQ_QW;
        dpq_f32s least_a = dpq_f32_load(least + strip * DPQ_FW), least_b = dpq_f32_load(least + other * DPQ_FW);
        for (size_t i = 0; i < K; i++, a += DPQ_FW, b += DPQ_FW, to += DPQ_QW) {
            dpq_u8x16 bytes_a = many_bytes(a, least_a, scale_a), bytes_b = many_bytes(b, least_b, scale_b);
            dpq_u8x16_store(to, dpq_u8x16_zip_low(bytes_a, bytes_b));
            dpq_u8x16_store(to + DPQ_FW, dpq_u8x16_zip_high(bytes_a, bytes_b));
        }
    }
}

/* The float sums of MANY_QUARTILES vectors spaced evenly over the database. */
static void many_sample(const dpq_database *db, batch_group *g, batch_workspace *w)
{
    size_t stride = db->n / MANY_QUARTILES;
    batch_unpack(db, w, 0, stride, MANY_QUARTILES, 0);
    for (uint32_t strip = 0; strip < BATCH_STRIPS; strip++)
        for (uint32_t i = 0; i < MANY_QUARTILES; i++) {
            const uint16_t *code = w->code + i * db->levels;
            dpq_f32s sum = batch_strip_sum(batch_strip(db, g, strip), dpq_codewords(db), code, w->start[i], db->levels);
            dpq_f32_store(g->many.sampled + i * DPQ_QW + strip * DPQ_FW, sum);
        }
}

/* Chooses every query's bound by its threshold, and makes rows8. Where a query has no bound, all is scanned in
 * float. */
static void many_begin(const dpq_database *db, batch_group *g, batch_workspace *w)
{
    many_seen seen[DPQ_QW] = {0};
    for (uint32_t strip = 0; strip < BATCH_STRIPS; strip++)
        many_look_at(db, g, strip, seen);
    many_sample(db, g, w);
    for (uint32_t q = 0; q < DPQ_QW; q++) {
        float sums[MANY_QUARTILES];
        for (uint32_t i = 0; i < MANY_QUARTILES; i++)
            sums[i] = g->many.sampled[i * DPQ_QW + q];
        g->many.bound[q] = many_bound_choose(db, &seen[q], sums, g->threshold[q < g->lanes ? q : 0]);
        g->many.rows.slope[q] = g->many.bound[q].slope;
        g->many.rows.limit[q] = 0;
        if (!(g->many.bound[q].scale > 0))
            memset(g->float_spans, 0xff, sizeof g->float_spans);
    }
    for (uint32_t strip = 0; strip < BATCH_STRIPS / 2; strip++)
        many_fill_rows8(db, g, strip);
    g->many.rows.rows8 = g->rows8;
    many_pack_rows(&g->many.rows, db->levels, dpq_codewords(db));
}

/* The last vectors of a database may be too few: they are summed with some before them. */
static void many_sums(const dpq_database *db, const batch_group *g, batch_workspace *w, size_t first, size_t n)
{
    size_t before = n < MANY_AT_ONCE ? MANY_AT_ONCE - n : 0;
    int outliers = db->terms && many_grid(db, first - before, n + before, w->grid);
    if (db->nbits != 8 && db->nbits != 4)
        batch_unpack(db, w, first - before, 1, n + before, 0);
    many_sums_within(db, &g->many.rows, w->code, w->grid, first - before, n + before, w->within);
    memmove(w->within, w->within + before, n * sizeof *w->within);
    for (size_t i = 0; outliers && i < n; i++)
        if (many_is_outlier(db, first + i))
            w->within[i] = UINT64_MAX;
}

#endif
