/* What all scans do with a query's tables: float sums of their entries, their magnitude, and their entries as bytes.
 *
 * In: tables [level][codeword] of floats, one query's or several queries' interleaved, and codes. Out: see each
 * function. Why the result is exact: the float sums add in the order of dpq_scan.h, so that from the term on they are
 * the distance itself; the bytes are the floors that the proofs in scan_bound.h and scan_lists_impl.h count with.
 */
#ifndef DPQ_QUERY_TABLES_IMPL_H
#define DPQ_QUERY_TABLES_IMPL_H

#include "dpq_base.h"
#include "dpq_shapes.h"
#include "scan_bound.h"
#include "scan_codes.h"
#include "simd.h"

/* start, plus the entries of an unpacked code; neighbouring codewords' entries are `stride` floats apart. */
DPQ_INLINE float table_sum(const dpq_database *db, const float *table, size_t stride, const uint16_t *code, float start)
{
    for (uint32_t l = 0; l < db->levels; l++)
        start += table[(l * dpq_codewords(db) + code[l]) * stride];
    return start;
}

/* The same of a packed code. */
DPQ_INLINE float table_row_sum(uint32_t nbits, uint32_t levels, const float *table, const uint8_t *row, float start)
{
    for (uint32_t l = 0; l < levels; l++)
        start += table[((size_t)l << nbits) + dpq_code(row, nbits, l)];
    return start;
}

#define TABLE_TOGETHER 4u /* codes summed side by side: an addition waits for the one before, but not for the others' */

/* The same of TABLE_TOGETHER codes, each by a table of its own: sums[i] begins as it is. */
DPQ_INLINE void table_row_sums(uint32_t nbits, uint32_t levels, const float *const *tables, const uint8_t *const *rows,
                               float *sums)
{
    const float *table[TABLE_TOGETHER];
    const uint8_t *row[TABLE_TOGETHER];
    float sum[TABLE_TOGETHER];
    for (uint32_t i = 0; i < TABLE_TOGETHER; i++)
        table[i] = tables[i], row[i] = rows[i], sum[i] = sums[i];
    for (uint32_t l = 0; l < levels; l++)
        DPQ_UNROLL
        for (uint32_t i = 0; i < TABLE_TOGETHER; i++)
            sum[i] += table[i][((size_t)l << nbits) + dpq_code(row[i], nbits, l)];
    for (uint32_t i = 0; i < TABLE_TOGETHER; i++)
        sums[i] = sum[i];
}

/* The same of the stored vector v. */
static float table_vector_sum(const dpq_database *db, const float *table, size_t v, float start)
{
    uint16_t code[DPQ_MAX_LEVELS];
    if (!dpq_is_end(db, v))
        return DPQ_BY_SHAPE(table_row_sum, db->nbits, db->levels, table, dpq_row(db, v), start);
    dpq_unpack_end(db, v, code);
    return table_sum(db, table, 1, code, start);
}

/* A stored vector, and the table to sum it up by. */
typedef struct {
    const dpq_database *db;
    const float *table;
    size_t vector;
} table_item;

/* The same of n <= TABLE_TOGETHER vectors of databases of one shape: sums[i] begins as it is; what stands behind the
 * n-th is overwritten. */
DPQ_INLINE void table_sums(const table_item *items, size_t n, float *sums)
{
    const float *tables[TABLE_TOGETHER];
    const uint8_t *rows[TABLE_TOGETHER];
    int in_place = n > 0;
    for (size_t i = 0; i < n; i++) {
        tables[i] = items[i].table;
        rows[i] = dpq_row(items[i].db, items[i].vector);
        in_place &= !dpq_is_end(items[i].db, items[i].vector);
    }
    if (in_place) {
        for (size_t i = n; i < TABLE_TOGETHER; i++)
            tables[i] = tables[0], rows[i] = rows[0], sums[i] = 0;
        DPQ_BY_SHAPE(table_row_sums, items->db->nbits, items->db->levels, tables, rows, sums);
        return;
    }
    for (size_t i = 0; i < n; i++)
        sums[i] = table_vector_sum(items[i].db, items[i].table, items[i].vector, sums[i]);
}

/* The same of vectors of one database by one table. */
static void table_vector_sums(const dpq_database *db, const float *table, const uint32_t *vectors, size_t n,
                              float *sums)
{
    table_item items[TABLE_TOGETHER];
    for (size_t i = 0; i < n; i++)
        items[i] = (table_item){db, table, vectors[i]};
    table_sums(items, n, sums);
}

/* Finds, among n vectors from `first` on, those whose float sum plus `offset` is within the threshold. The sum begins
 * with the term where it is stored, otherwise with the lower edge of its bin. Raises *high to the greatest sum. */
DPQ_INLINE size_t table_hits_of_shape(uint32_t nbits, uint32_t levels, const dpq_database *db, const float *table,
                                      size_t first, size_t n, float offset, float threshold, float *high,
                                      uint32_t *hits)
{
    const uint8_t *row = dpq_row(db, first);
    const float *terms = db->terms;
    float highest = *high;
    size_t found = 0, code_size = db->code_size; /* a copy: for all the compiler knows, hits might overwrite db */
    for (size_t v = first; v < first + n; v++, row += code_size) {
        float sum = table_row_sum(nbits, levels, table, row, terms ? terms[v] : dpq_term_bound(db, v, 0));
        highest = sum > highest ? sum : highest;
        hits[found] = (uint32_t)v;
        found += sum + offset <= threshold;
    }
    *high = highest;
    return found;
}

/* The same; vectors whose codes cannot be read in place are hits without a look. */
static size_t table_hits(const dpq_database *db, const float *table, size_t first, size_t n, float offset,
                         float threshold, float *high, uint32_t *hits)
{
    size_t end = first + n;
    while (n && dpq_is_end(db, first + n - 1))
        n--;
    size_t found = DPQ_BY_SHAPE(table_hits_of_shape, db->nbits, db->levels, db, table, first, n, offset, threshold,
                                high, hits);
    for (size_t v = first + n; v < end; v++)
        hits[found++] = (uint32_t)v;
    return found;
}

/* Widens [*low, *high] so that it holds n entries. */
static void table_extremes(const float *entries, size_t n, float *low, float *high)
{
    size_t i = 0;
    if (n >= DPQ_FW) {
        float least[DPQ_FW], most[DPQ_FW];
        dpq_f32s lows = dpq_f32_load(entries), highs = lows;
        for (i = DPQ_FW; i + DPQ_FW <= n; i += DPQ_FW) {
            dpq_f32s some = dpq_f32_load(entries + i);
            lows = dpq_f32_min(lows, some);
            highs = dpq_f32_max(highs, some);
        }
        dpq_f32_store(least, lows);
        dpq_f32_store(most, highs);
        for (uint32_t j = 0; j < DPQ_FW; j++) {
            *low = least[j] < *low ? least[j] : *low;
            *high = most[j] > *high ? most[j] : *high;
        }
    }
    for (; i < n; i++) {
        *low = entries[i] < *low ? entries[i] : *low;
        *high = entries[i] > *high ? entries[i] : *high;
    }
}

/* A bound on the magnitude of every sum of entries, one a level. */
static double table_magnitude(const float *table, size_t K, uint32_t levels)
{
    double sum = 0;
    for (uint32_t l = 0; l < levels; l++, table += K) {
        float lane[DPQ_FW], most = 0;
        dpq_f32s largest = dpq_f32_all(0.0f);
        for (size_t i = 0; i + DPQ_FW <= K; i += DPQ_FW)
            largest = dpq_f32_max(largest, dpq_f32_abs(dpq_f32_load(table + i)));
        dpq_f32_store(lane, largest);
        for (uint32_t i = 0; i < DPQ_FW; i++)
            most = lane[i] > most ? lane[i] : most;
        for (size_t i = K - K % DPQ_FW; i < K; i++)
            most = fmaxf(most, fabsf(table[i]));
        sum += most;
    }
    return sum;
}

/* DPQ_FW entries as bytes: floor(entry scale - base) modulo 256. */
DPQ_INLINE void table_bytes(uint8_t *to, const float *entries, dpq_f32s scale, dpq_f32s base)
{
    dpq_f32_floor_u8(to, dpq_f32_sub(dpq_f32_mul(dpq_f32_load(entries), scale), base));
}

/* DPQ_FW entries as the bytes of many_bound.h: floor((entry - least) scale), at most 255. */
DPQ_INLINE void table_bytes_from(uint8_t *to, const float *entries, dpq_f32s least, dpq_f32s scale)
{
    dpq_f32s scaled = dpq_f32_mul(dpq_f32_sub(dpq_f32_load(entries), least), scale);
    dpq_f32_floor_u8(to, dpq_f32_min(scaled, dpq_f32_all(255.0f)));
}

#endif
