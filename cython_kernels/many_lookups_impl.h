/* Codes of many levels for one query: byte look-ups, and sums of 16 bits.
 *
 * In: codes by columns, the byte tables of one query, and the limit of its sums. Out: the vectors whose sum is within
 * the limit. Why the result is exact: see many_bound.h.
 *
 * Turning codes from rows to columns takes as long as looking them up, so it is done once (many_columns.h). A level's
 * table is looked up for MANY_AT_ONCE registers of vectors. As in many_batch_impl.h, a group of levels is added up in
 * bytes, and then split into words.
 */
#ifndef DPQ_MANY_LOOKUPS_IMPL_H
#define DPQ_MANY_LOOKUPS_IMPL_H

#include "lookups_impl.h"
#include "many_columns.h"
#include "many_grid_impl.h"

#define MANY_AHEAD 8192u /* bytes of columns, at least, to be fetched meanwhile: the processor alone fetches too late */
#define MANY_TERMS_AHEAD 1024u /* the same of terms */
#define MANY_LINE 16u          /* terms a line of the cache */

/* What a query needs beside the tables in dpq_lookups. */
typedef struct {
    many_bound bound;
    uint16_t limit;
    uint32_t groups;
    uint16_t ends[DPQ_MAX_LEVELS]; /* of groups of levels */
} many_query;

/* Whether there are look-ups for these codes. */
static inline int many_lookups_know(const dpq_database *db)
{
    return many_is_known(db) && db->columns;
}

/* Looks at a query's tables of K codewords, of this magnitude. least[l]: the least entry of level l. */
static many_seen many_look_at_table(const float *table, size_t K, uint32_t levels, double magnitude, float *least)
{
    many_seen seen = {.magnitude = magnitude};
    for (uint32_t l = 0; l < levels; l++) {
        double highest[3];
        least[l] = INFINITY;
        for (size_t third = 0; third < 3; third++) {
            float low = INFINITY, high = -INFINITY;
            table_extremes(table + l * K + third * K / 3, (third + 1) * K / 3 - third * K / 3, &low, &high);
            least[l] = fminf(least[l], low);
            highest[third] = high;
        }
        seen.minima += least[l];
        seen.widest = fmax(seen.widest, many_median(highest[0], highest[1], highest[2]) - least[l]);
    }
    return seen;
}

/* The tables as bytes, each level's `stride` behind the one before. most[l]: the greatest of level l. */
static void many_table_bytes(const float *table, size_t K, uint32_t levels, const float *least, float scale,
                             uint8_t *bytes, size_t stride, uint8_t *most)
{
    for (uint32_t l = 0; l < levels; l++, table += K, bytes += stride) {
        for (size_t i = 0; i < K; i += DPQ_FW)
            table_bytes_from(bytes + i, table + i, dpq_f32_all(least[l]), dpq_f32_all(scale));
        most[l] = 0;
        for (size_t i = 0; i < K; i++)
            most[l] = bytes[i] > most[l] ? bytes[i] : most[l];
    }
}

/* Chooses the bound, and fills look->table8. sums: MANY_QUARTILES sampled ones. threshold: as in many_bound_choose. */
static void many_build(const dpq_database *db, const float *table, const float *sums, float threshold,
                       many_query *query, dpq_lookups *look)
{
    size_t K = dpq_codewords(db);
    float least[DPQ_MAX_LEVELS];
    uint8_t most[DPQ_MAX_LEVELS];
    many_seen seen = many_look_at_table(table, K, db->levels, table_magnitude(table, K, db->levels), least);
    query->bound = many_bound_choose(db, &seen, sums, threshold);
    many_table_bytes(table, K, db->levels, least, query->bound.scale, look->table8, 256, most);
    query->groups = many_pack(most, db->levels, MANY_ROOM_OF_ONE, query->ends);
    lookups_finish(look, db->nbits, db->levels);
}

/* Adds the entries of MANY_AT_ONCE registers, whose codes begin at `columns`. ahead: what is fetched meanwhile. */
DPQ_INLINE void many_look_up(uint32_t nbits, const many_query *query, const dpq_lookups *look, const uint8_t *columns,
                             size_t ahead, dpq_u8s *even, dpq_u8s *odd)
{
    const uint8_t *table = look->table8;
    uint32_t l = 0;
    for (uint32_t group = 0; group < query->groups; group++) {
        uint32_t end = query->ends[group];
        dpq_u8s sum[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++)
            sum[j] = dpq_u8_all(0);
        for (; l < end; l++, table += 256)
            DPQ_UNROLL
            for (uint32_t j = 0; j < MANY_AT_ONCE; j += DPQ_LOOKED_UP) {
                const uint8_t *column = columns + l * nbits / 8 * DPQ_COLUMN + j * DPQ_QW;
                dpq_u8s some[DPQ_LOOKED_UP];
                for (uint32_t i = 0; i < DPQ_LOOKED_UP; i++, column += DPQ_QW) {
                    some[i] = dpq_u8_load(column);
                    __builtin_prefetch(column + ahead, 0, 2); /* to L2: few lines can be on their way to L1 */
                }
                if (nbits == 8)
                    dpq_lookup256(table, some, DPQ_LOOKED_UP);
                for (uint32_t i = 0; i < DPQ_LOOKED_UP; i++) {
                    if (nbits == 4)
                        some[i] = dpq_lookup16(
                            table, dpq_u8_and(l % 2 ? dpq_u32_shr(some[i], 4) : some[i], dpq_u8_all(15)));
                    sum[j + i] = dpq_u8_add_saturating(sum[j + i], some[i]);
                }
            }
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            even[j] = dpq_u16_add_saturating(even[j], dpq_u16_even(sum[j]));
            odd[j] = dpq_u16_add_saturating(odd[j], dpq_u16_odd(sum[j]));
        }
    }
}

DPQ_INLINE void many_block_of(uint32_t nbits, const many_query *query, const dpq_lookups *look, const uint8_t *columns,
                              size_t ahead, const uint16_t *grid, uint64_t *within)
{
    dpq_u8s limit = dpq_u16_all(query->limit), slope = dpq_u16_all(query->bound.slope);
    memset(within, 0, DPQ_COLUMN / 8);
    for (uint32_t r = 0; r < DPQ_COLUMN / DPQ_QW; r += MANY_AT_ONCE) {
        dpq_u8s even[MANY_AT_ONCE], odd[MANY_AT_ONCE];
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            /* Where the register's even bytes are in the order of vectors; odd ones are 32 behind. */
            uint32_t at = (r + j) * DPQ_QW / 64 * 64 + (r + j) * DPQ_QW % 64 / 2;
            even[j] = dpq_u16_mul_high(dpq_u8_load(grid + at), slope);
            odd[j] = dpq_u16_mul_high(dpq_u8_load(grid + at + 32), slope);
        }
        many_look_up(nbits, query, look, columns + r * DPQ_QW, ahead, even, odd);
        DPQ_UNROLL
        for (uint32_t j = 0; j < MANY_AT_ONCE; j++) {
            uint64_t bits = dpq_u16_le(even[j], limit, odd[j], limit), low = (1ull << DPQ_QW / 2) - 1;
            uint32_t byte = (r + j) * DPQ_QW;
            within[byte / 64] |= ((bits & low) | bits >> DPQ_QW / 2 << 32) << byte % 64 / 2;
        }
    }
}

/* Which vectors of a block of columns are within the limit: a bit each, DPQ_COLUMN / 64 words. Not inlined: it needs all
 * registers. */
static __attribute__((noinline)) void many_block(uint32_t nbits, const many_query *query, const dpq_lookups *look,
                                                 const uint8_t *columns, size_t ahead, const uint16_t *grid,
                                                 uint64_t *within)
{
    if (nbits == 8)
        many_block_of(8, query, look, columns, ahead, grid, within);
    else
        many_block_of(4, query, look, columns, ahead, grid, within);
}

/* The sums of n <= TABLE_TOGETHER vectors, whose codes are read from columns. */
static void many_column_sums(const dpq_database *db, const float *table, const uint32_t *vectors, size_t n, float *sums)
{
    uint8_t codes[TABLE_TOGETHER][DPQ_MAX_LEVELS];
    const uint8_t *rows[TABLE_TOGETHER];
    const float *tables[TABLE_TOGETHER];
    size_t bytes = (db->levels * db->nbits + 7) / 8;
    for (size_t i = 0; i < TABLE_TOGETHER; i++) {
        rows[i] = codes[i < n ? i : 0];
        tables[i] = table;
        sums[i] = i < n ? dpq_stored_term(db, vectors[i]) : 0;
    }
    for (size_t i = 0; i < n; i++) {
        const uint8_t *column = many_first_column(db, vectors[i]);
        for (size_t b = 0; b < bytes; b++)
            codes[i][b] = column[b * DPQ_COLUMN];
    }
    DPQ_BY_SHAPE(table_row_sums, db->nbits, db->levels, tables, rows, sums);
}

/* Writes look->hits, and returns how many there are, among n <= LOOKUPS_AT_ONCE vectors from `first` on. Blocks of
 * columns may begin before these, and end behind. */
static size_t many_find(const dpq_database *db, const many_query *query, dpq_lookups *look, size_t first, size_t n)
{
    size_t bytes = db->column_bytes, found = 0, begin = db->column + first, end = begin + n;
    size_t looked_up = (db->levels * db->nbits + 7) / 8 * DPQ_COLUMN;
    size_t ahead = (MANY_AHEAD / looked_up + 1) * bytes * DPQ_COLUMN;
    for (size_t block = begin / DPQ_COLUMN; block * DPQ_COLUMN < end; block++) {
        size_t start = block * DPQ_COLUMN, from = start > begin ? start : begin;
        size_t some = dpq_min(end, start + DPQ_COLUMN) - from;
        uint16_t grid[DPQ_COLUMN] = {0};
        uint64_t within[DPQ_COLUMN / 64];
        for (size_t i = 0; db->terms && i < DPQ_COLUMN; i += MANY_LINE)
            __builtin_prefetch(db->terms + (from - db->column) + MANY_TERMS_AHEAD + i, 0, 2);
        int outliers = db->terms && many_grid(db, from - db->column, some, grid + (from - start));
        many_block(db->nbits, query, look, db->columns + start * bytes, ahead, grid, within);
        for (size_t i = from - start; outliers && i < from - start + some; i++)
            within[i / 64] |= (uint64_t)many_is_outlier(db, start + i - db->column) << i % 64;
        for (size_t i = 0; i < DPQ_COLUMN / 64; i++)
            for (uint64_t bits = within[i]; bits; bits &= bits - 1) {
                size_t v = start + 64 * i + (size_t)__builtin_ctzll(bits);
                if (v >= begin && v < end)
                    look->hits[found++] = (uint32_t)(v - db->column);
            }
    }
    return found;
}

#endif
