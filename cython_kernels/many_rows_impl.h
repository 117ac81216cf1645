/* Codes of many levels for a group of queries: their tables as bytes, side by side, and sums of 16 bits.
 *
 * In: the tables, and every query's limit. Out: which queries each vector of a chunk may be near to. Why the result is
 * exact: see many_bound.h.
 *
 *   rows8  [level][codeword][DPQ_QW]    byte 2 i is of query i, byte 2 i + 1 of query DPQ_QW / 2 + i
 *
 * One load a level serves all queries. Levels are taken in groups (many_pack); a group's sum is made of bytes, stops at
 * 255, and is only then split into words of 16 bits, even bytes and odd ones. So in structured codes two of the first,
 * large levels make a group, and of the small ones many share one. MANY_AT_ONCE vectors are summed side by side.
 */
#ifndef DPQ_MANY_ROWS_IMPL_H
#define DPQ_MANY_ROWS_IMPL_H

#include "many_grid_impl.h"

/* The tables of a group, and its limits. */
typedef struct {
    uint16_t limit[DPQ_QW], slope[DPQ_QW];
    uint16_t ends[DPQ_MAX_LEVELS]; /* of groups of levels, whose byte entries are added up as bytes */
    uint32_t groups;
    const uint8_t *rows8;
} many_rows;

/* Packs the levels by what rows8 holds. */
static void many_pack_rows(many_rows *rows, uint32_t levels, size_t K)
{
    uint8_t most[DPQ_MAX_LEVELS], lane[DPQ_QW];
    const uint8_t *row = rows->rows8;
    for (uint32_t l = 0; l < levels; l++) {
        dpq_u8s highest = dpq_u8_load(row);
        for (size_t i = 0; i < K; i++, row += DPQ_QW)
            highest = dpq_u8_max(highest, dpq_u8_load(row));
        dpq_u8_store(lane, highest);
        most[l] = 0;
        for (uint32_t i = 0; i < DPQ_QW; i++)
            most[l] = lane[i] > most[l] ? lane[i] : most[l];
    }
    rows->groups = many_pack(most, levels, MANY_ROOM, rows->ends);
}

/* Adds the entries of MANY_AT_ONCE vectors, whose codes begin at `row`; where these are not read in place, unpacked at
 * `code`. */
DPQ_INLINE void many_add(uint32_t nbits, const dpq_database *db, const many_rows *rows, const uint8_t *row,
                         const uint16_t *code, dpq_u8s *even, dpq_u8s *odd)
{
    size_t K = (size_t)1 << nbits, code_size = db->code_size;
    const uint8_t *rows8 = rows->rows8;
    uint32_t l = 0;
    for (uint32_t group = 0; group < rows->groups; group++) {
        uint32_t end = rows->ends[group];
        dpq_u8s sum[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++)
            sum[j] = dpq_u8_all(0);
        for (; l < end; l++, rows8 += K * DPQ_QW)
            DPQ_UNROLL
            for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
                size_t number = nbits == 8 || nbits == 4 ? dpq_code(row + j * code_size, nbits, l)
                                                         : code[j * db->levels + l];
                sum[j] = dpq_u8_add_saturating(sum[j], dpq_u8_load(rows8 + number * DPQ_QW));
            }
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            even[j] = dpq_u16_add_saturating(even[j], dpq_u16_even(sum[j]));
            odd[j] = dpq_u16_add_saturating(odd[j], dpq_u16_odd(sum[j]));
        }
    }
}

DPQ_INLINE void many_sums_of(uint32_t nbits, const dpq_database *db, const many_rows *rows, const uint16_t *code,
                             const uint16_t *grid, size_t first, size_t n, uint64_t *within)
{
    dpq_u8s even_limit = dpq_u8_load(rows->limit), odd_limit = dpq_u8_load(rows->limit + DPQ_QW / 2);
    dpq_u8s even_slope = dpq_u8_load(rows->slope), odd_slope = dpq_u8_load(rows->slope + DPQ_QW / 2);
    for (size_t at = 0; at < n; at += MANY_AT_ONCE) {
        size_t i = at + MANY_AT_ONCE <= n ? at : n - MANY_AT_ONCE;
        dpq_u8s even[MANY_AT_ONCE], odd[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            dpq_u8s term = dpq_u16_all(grid[i + j]);
            even[j] = dpq_u16_mul_high(term, even_slope);
            odd[j] = dpq_u16_mul_high(term, odd_slope);
        }
        many_add(nbits, db, rows, dpq_row(db, first + i), nbits == 8 || nbits == 4 ? code : code + i * db->levels, even,
                 odd);
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++)
            within[i + j] = dpq_u16_le(even[j], even_limit, odd[j], odd_limit);
    }
}

/* within[i] = the queries whose limit the sum of vector first + i does not exceed. n >= MANY_AT_ONCE. grid: of these
 * vectors, by many_grid. code: their unpacked codes; not read where they have 8 or 4 bits a level. */
static void many_sums_within(const dpq_database *db, const many_rows *rows, const uint16_t *code, const uint16_t *grid,
                             size_t first, size_t n, uint64_t *within)
{
    if (db->nbits == 8)
        many_sums_of(8, db, rows, code, grid, first, n, within);
    else if (db->nbits == 4)
        many_sums_of(4, db, rows, code, grid, first, n, within);
    else
        many_sums_of(db->nbits, db, rows, code, grid, first, n, within);
}

#endif
