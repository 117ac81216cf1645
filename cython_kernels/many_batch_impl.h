/* Codes of many levels for a group of queries: their tables as bytes, and sums of 16 bits.
 *
 * In: the interleaved float tables of batch_rows_impl.h, a sample, every query's threshold. Out: which queries each
 * vector of a chunk may be near to. Why the result is exact: see many_bound.h.
 *
 *   rows8  [level][codeword][DPQ_QW]    byte 2 i is of query i, byte 2 i + 1 of query DPQ_QW / 2 + i
 *
 * One load a level serves all queries. Levels are taken in groups whose entries add up to 255 at most; a group's sum is
 * made of bytes, and only then split into words of 16 bits, even bytes and odd ones. So in structured codes the first,
 * large levels make a group each, and of the small ones many share one. MANY_AT_ONCE vectors are summed side by side.
 */
#ifndef DPQ_MANY_BATCH_IMPL_H
#define DPQ_MANY_BATCH_IMPL_H

#include "batch_sums_impl.h"
#include "many_bound.h"

/* The value of function(nbits, ...), with a constant for nbits where it is 8 or 4. */
#define MANY_BY_BITS(function, nbits, ...) \
    ((nbits) == 8 ? function(8, __VA_ARGS__) : (nbits) == 4 ? function(4, __VA_ARGS__) : function(nbits, __VA_ARGS__))

/* What many_bound_choose needs to know of the tables of a group. */
typedef struct {
    double minima[DPQ_QW], widest[DPQ_QW], magnitude[DPQ_QW];
} many_tables;

/* Looks at a strip's tables, and notes every level's least entries. */
static void many_look_at(const dpq_database *db, batch_group *g, uint32_t strip, many_tables *seen)
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
            seen->minima[q] += least[i];
            seen->magnitude[q] += fmaxf(fabsf(least[i]), fabsf(most));
            seen->widest[q] = fmax(seen->widest[q], many_median(high[0][i], high[1][i], high[2][i]) - least[i]);
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

/* Packs the levels by what rows8 holds. */
static void many_pack_rows(const dpq_database *db, batch_group *g)
{
    uint8_t most[DPQ_MAX_LEVELS], lane[DPQ_QW];
    const uint8_t *rows = g->rows8;
    for (uint32_t l = 0; l < db->levels; l++) {
        dpq_u8s highest = dpq_u8_load(rows);
        for (size_t i = 0; i < dpq_codewords(db); i++, rows += DPQ_QW)
            highest = dpq_u8_max(highest, dpq_u8_load(rows));
        dpq_u8_store(lane, highest);
        most[l] = 0;
        for (uint32_t i = 0; i < DPQ_QW; i++)
            most[l] = lane[i] > most[l] ? lane[i] : most[l];
    }
    g->many.groups = many_pack(most, db->levels, g->many.ends);
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
    many_tables seen = {0};
    for (uint32_t strip = 0; strip < BATCH_STRIPS; strip++)
        many_look_at(db, g, strip, &seen);
    many_sample(db, g, w);
    for (uint32_t q = 0; q < DPQ_QW; q++) {
        float sums[MANY_QUARTILES];
        for (uint32_t i = 0; i < MANY_QUARTILES; i++)
            sums[i] = g->many.sampled[i * DPQ_QW + q];
        g->many.bound[q] = many_bound_choose(db, seen.minima[q], seen.widest[q], seen.magnitude[q], sums,
                                                g->threshold[q < g->lanes ? q : 0]);
        g->many.slope[q] = g->many.bound[q].slope;
        g->many.limit[q] = 0;
        if (!(g->many.bound[q].scale > 0))
            memset(g->float_spans, 0xff, sizeof g->float_spans);
    }
    for (uint32_t strip = 0; strip < BATCH_STRIPS / 2; strip++)
        many_fill_rows8(db, g, strip);
    many_pack_rows(db, g);
}

/* Adds the entries of vectors i .. i + MANY_AT_ONCE - 1 of a chunk, whose codes begin at `row`. */
DPQ_INLINE void many_add(uint32_t nbits, const dpq_database *db, const batch_group *g, const batch_workspace *w,
                         size_t i, const uint8_t *row, dpq_u8s *even, dpq_u8s *odd)
{
    size_t K = (size_t)1 << nbits, code_size = db->code_size;
    const uint8_t *rows8 = g->rows8;
    uint32_t l = 0;
    for (uint32_t group = 0; group < g->many.groups; group++) {
        uint32_t end = g->many.ends[group];
        dpq_u8s sum[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++)
            sum[j] = dpq_u8_all(0);
        for (; l < end; l++, rows8 += K * DPQ_QW)
            DPQ_UNROLL
            for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
                size_t code = nbits == 8 || nbits == 4 ? dpq_code(row + j * code_size, nbits, l)
                                                       : w->code[(i + j) * db->levels + l];
                sum[j] = dpq_u8_add(sum[j], dpq_u8_load(rows8 + code * DPQ_QW));
            }
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            even[j] = dpq_u16_add_saturating(even[j], dpq_u16_even(sum[j]));
            odd[j] = dpq_u16_add_saturating(odd[j], dpq_u16_odd(sum[j]));
        }
    }
}

/* within[i] = the queries whose limit the sum of vector first + i does not exceed. n >= MANY_AT_ONCE. */
DPQ_INLINE void many_sums_of(uint32_t nbits, const dpq_database *db, const batch_group *g, batch_workspace *w,
                             size_t first, size_t n)
{
    const batch_many *many = &g->many;
    dpq_u8s even_limit = dpq_u8_load(many->limit), odd_limit = dpq_u8_load(many->limit + DPQ_QW / 2);
    dpq_u8s even_slope = dpq_u8_load(many->slope), odd_slope = dpq_u8_load(many->slope + DPQ_QW / 2);
    if (nbits != 8 && nbits != 4)
        batch_unpack(db, w, first, 1, n, 0);
    for (size_t at = 0; at < n; at += MANY_AT_ONCE) {
        size_t i = at + MANY_AT_ONCE <= n ? at : n - MANY_AT_ONCE;
        dpq_u8s even[MANY_AT_ONCE], odd[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            dpq_u8s grid = dpq_u16_all(w->grid[i + j]);
            even[j] = dpq_u16_mul_high(grid, even_slope);
            odd[j] = dpq_u16_mul_high(grid, odd_slope);
        }
        many_add(nbits, db, g, w, i, dpq_row(db, first + i), even, odd);
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++)
            w->within[i + j] = dpq_u16_le(even[j], even_limit, odd[j], odd_limit);
    }
}

/* The last vectors of a database may be too few: they are summed with some before them. */
static void many_sums(const dpq_database *db, const batch_group *g, batch_workspace *w, size_t first, size_t n)
{
    size_t before = n < MANY_AT_ONCE ? MANY_AT_ONCE - n : 0;
    int outliers = db->terms && many_grid(db, first - before, n + before, w->grid);
    MANY_BY_BITS(many_sums_of, db->nbits, db, g, w, first - before, n + before);
    memmove(w->within, w->within + before, n * sizeof *w->within);
    for (size_t i = 0; outliers && i < n; i++)
        if (many_is_outlier(db, first + i))
            w->within[i] = UINT64_MAX;
}

#endif
