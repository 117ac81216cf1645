/* Sums of table entries for a chunk of vectors and a group of queries.
 *
 * In: the interleaved tables of batch_rows_impl.h, a chunk of codes, every query's limit or threshold. Out: which
 * queries each vector may be near to; for sampled vectors the distances' extremes. Why the result is exact: a byte sum
 * within the limit, or a float sum from the lower edge of the term's bin within the threshold, is necessary for a
 * neighbour (scan_bound.h), and every vector that passes becomes a hit.
 */
#ifndef DPQ_BATCH_SUMS_IMPL_H
#define DPQ_BATCH_SUMS_IMPL_H

#include "batch_rows_impl.h"
#include "dpq_mask.h"
#include "scan_sample.h"

#define BATCH_CHUNK 256u /* vectors between two updates of the limits */
#define BATCH_AHEAD 16u  /* sampled vectors that are fetched before their turn */

/* Vectors, and the queries that they may be near to: a bit a lane. */
typedef struct {
    uint64_t queries[BATCH_CHUNK + 8]; /* + 8: dpq_nonzero8 writes ahead */
    uint32_t vector[BATCH_CHUNK + 8];
} batch_hits;

typedef struct {
    uint16_t code[BATCH_CHUNK * DPQ_MAX_LEVELS]; /* the chunk's codes, unpacked */
    float start[BATCH_CHUNK];                    /* what their float sums begin with */
    uint64_t within[BATCH_CHUNK + 8];            /* + 8: dpq_nonzero8 reads ahead */
    uint16_t grid[BATCH_CHUNK];                  /* of many levels: what many_grid says; 0 without terms */
    batch_hits hits, pending; /* pending: hits of an earlier chunk, whose distances are to be computed */
    size_t pendings;
} batch_workspace;

/* Unpacks n sampled vectors from number `first` on. upper: sums begin with the upper edges of the terms' bins. */
static void batch_unpack(const dpq_database *db, batch_workspace *w, size_t first, size_t stride, size_t n,
                         uint32_t upper)
{
    for (size_t i = 0; i < n; i++) {
        size_t v = dpq_sampled(first + i, stride);
        if (stride > 1)
            dpq_prefetch_vector(db, dpq_sampled(first + dpq_min(i + BATCH_AHEAD, n - 1), stride));
        dpq_unpack(db, v, w->code + i * db->levels);
        w->start[i] = dpq_term_bound(db, v, upper);
    }
}

/* Makes hits of those vectors first + i, i < n, whose within[i] has queries in common with `live`. Returns how many. */
static inline size_t batch_collect(batch_workspace *w, size_t first, size_t n, uint64_t live)
{
    size_t found = 0;
    memset(w->within + n, 0, 8 * sizeof *w->within);
    for (size_t i = 0; i < n; i += 8)
        found += dpq_nonzero8(w->within + i, live, (uint32_t)(first + i), w->hits.queries + found,
                              w->hits.vector + found);
    return found;
}

/* The float sums of one unpacked code for the queries of a strip. */
DPQ_INLINE dpq_f32s batch_strip_sum(const float *rows, size_t K, const uint16_t *code, float start, uint32_t levels)
{
    dpq_f32s sum = dpq_f32_all(start);
    for (uint32_t l = 0; l < levels; l++)
        sum = dpq_f32_add(sum, dpq_f32_load(rows + (l * K + code[l]) * DPQ_FW));
    return sum;
}

/* within[i] = the queries of a strip whose threshold the float sum of unpacked vector i does not exceed. */
DPQ_INLINE void batch_float_sums_of_shape(uint32_t nbits, uint32_t levels, const dpq_database *db,
                                          const batch_group *g, batch_workspace *w, uint32_t strip, size_t n)
{
    const float *rows = batch_strip(db, g, strip);
    dpq_f32s threshold = dpq_f32_load(g->threshold + strip * DPQ_FW);
    for (size_t i = 0; i < n; i++) {
        dpq_f32s sum = batch_strip_sum(rows, (size_t)1 << nbits, w->code + i * levels, w->start[i], levels);
        w->within[i] = dpq_f32_le(sum, threshold);
    }
}

static void batch_float_sums(const dpq_database *db, const batch_group *g, batch_workspace *w, uint32_t strip, size_t n)
{
    DPQ_BY_SHAPE(batch_float_sums_of_shape, db->nbits, db->levels, db, g, w, strip, n);
}

/* Of the float sums of the unpacked sampled vectors from number `first` on, for the queries of a strip: raises `high`
 * to the greatest and lowers every bucket's `least` to its least. Vector after vector goes to the next bucket. */
DPQ_INLINE void batch_extremes_of_shape(uint32_t nbits, uint32_t levels, const dpq_database *db, batch_group *g,
                                        const batch_workspace *w, uint32_t strip, size_t first, size_t stride)
{
    const float *rows = batch_strip(db, g, strip);
    dpq_f32s high = dpq_f32_load(g->high + strip * DPQ_FW);
    size_t bucket = first % g->buckets;
    for (size_t i = 0; i < BATCH_CHUNK; i++) {
        float *least = g->least + bucket * DPQ_QW + strip * DPQ_FW;
        dpq_f32s sum = batch_strip_sum(rows, (size_t)1 << nbits, w->code + i * levels, w->start[i], levels);
        high = dpq_f32_max(high, sum);
        if (dpq_is_allowed(db, dpq_sampled(first + i, stride)))
            dpq_f32_store(least, dpq_f32_min(dpq_f32_load(least), sum));
        bucket = bucket + 1 < g->buckets ? bucket + 1 : 0;
    }
    dpq_f32_store(g->high + strip * DPQ_FW, high);
}

static void batch_extremes(const dpq_database *db, batch_group *g, const batch_workspace *w, uint32_t strip,
                           size_t first, size_t stride)
{
    DPQ_BY_SHAPE(batch_extremes_of_shape, db->nbits, db->levels, db, g, w, strip, first, stride);
}

/* within[i] = the queries whose limit the byte sum of vector first + i does not exceed. Codes of 8 and 4 bits are read
 * in place, others unpacked. */
DPQ_INLINE void batch_byte_sums_of_shape(uint32_t nbits, uint32_t levels, const dpq_database *db, const batch_group *g,
                                         batch_workspace *w, size_t first, size_t n)
{
    size_t K = (size_t)1 << nbits;
    const uint8_t *row = dpq_row(db, first), *rows8 = g->rows8;
    const uint8_t *bins = db->term_bins + first, *bin_rows = rows8 + levels * K * DPQ_QW;
    dpq_u8s limit = dpq_u8_load(g->limit);
    if (nbits != 8 && nbits != 4)
        batch_unpack(db, w, first, 1, n, 0);
    for (size_t i = 0; i < n; i++, row += db->code_size) {
        dpq_u8s sum = dpq_u8_load(rows8);
        for (uint32_t l = 0; l < levels; l++) {
            size_t code = nbits == 8 ? row[l] : nbits == 4 ? dpq_code(row, 4, l) : w->code[i * levels + l];
            dpq_u8s entry = dpq_u8_load(rows8 + (l * K + code) * DPQ_QW);
            sum = l ? dpq_u8_add(sum, entry) : entry;
        }
        if (db->term_bins)
            sum = dpq_u8_add(sum, dpq_u8_load(bin_rows + (size_t)bins[i] * DPQ_QW));
        w->within[i] = dpq_u8_le(sum, limit);
    }
}

static void batch_byte_sums(const dpq_database *db, const batch_group *g, batch_workspace *w, size_t first, size_t n)
{
    DPQ_BY_SHAPE(batch_byte_sums_of_shape, db->nbits, db->levels, db, g, w, first, n);
}

#endif
