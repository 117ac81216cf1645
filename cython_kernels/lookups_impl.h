/* Byte look-ups: which of many vectors are within one query's limit, by byte tables looked up in registers.
 *
 * In: codes, row-major as they are stored, the byte tables of one query, and the limit of byte sums. Out: the vectors
 * whose byte sum is within the limit. Why the result is exact: see scan_bound.h; no vector is left out but by its byte
 * sum.
 *
 * DPQ_QW vectors are looked at together. Codes of 4, 8 or 16 bytes are read as so many registers, which hold w = 16 /
 * bytes vectors in every lane of 16 bytes. Codes of other sizes are read four bytes of each vector at a time, as if
 * these four were all. Zipping two registers, that is, interleaving their bytes, moves one bit of a byte's register
 * number to the end of the byte's place in the lane, and the first bit of the place into the register number. Four
 * turns of zipping all registers in pairs make planes of them:
 *
 *      register r, lane, byte p s + b:   byte b of vector (r lanes + lane) w + p        (s = 16 / w bytes)
 *   -> plane b, lane, byte r w + p
 *
 * A plane holds byte b of all vectors. The order within planes does not matter, as long as the bins of terms are put
 * in the same one; only a hit's position is translated back. Where few planes are wanted, the compiler leaves out what
 * makes the others.
 */
#ifndef DPQ_LOOKUPS_IMPL_H
#define DPQ_LOOKUPS_IMPL_H

#include "dpq_shapes.h"
#include "query_tables_impl.h"

#define LOOKUPS_AT_ONCE 1024u /* vectors of one call, at most */

/* The byte tables of a query, and what looking up found. */
typedef struct {
    uint8_t table8[DPQ_MAX_LEVELS * 256]; /* [level][256]: of every codeword, prepared by lookups_finish */
    uint16_t slope;                       /* what a bin of terms adds: bin * slope / 256, rounded down */
    uint8_t start;                        /* what every byte sum begins with */
    uint8_t limit;
    uint32_t hits[LOOKUPS_AT_ONCE];
} dpq_lookups;

/* Look-ups know 8- and 4-bit codes of at least four bytes, of as many levels as bytes can bound. */
static inline int lookups_know(uint32_t nbits, uint32_t code_size, uint32_t levels)
{
    return (nbits == 8 || nbits == 4) && code_size >= 4 && levels <= DPQ_BOUND_MOST_LEVELS;
}

/* Levels whose tables exist: those beyond the code's are zero, so that one shape of dpq_shapes.h serves all codes of
 * fewer levels. */
static inline uint32_t lookups_levels(uint32_t levels)
{
    uint32_t filled = 8;
    while (filled < levels)
        filled *= 2;
    return filled;
}

/* Prepares tables whose `levels` levels have been written. */
static void lookups_finish(dpq_lookups *look, uint32_t nbits, uint32_t levels)
{
    for (uint32_t l = 0; nbits == 8 && l < levels; l++)
        dpq_lookup256_prepare(look->table8 + l * 256);
    memset(look->table8 + levels * 256, 0, (lookups_levels(levels) - levels) * 256);
}

/* n registers to n planes, n being 4, 8 or 16; in the order of `lookups_plane`. */
DPQ_INLINE void lookups_transpose(dpq_u8s *r, uint32_t n)
{
    DPQ_UNROLL
    for (uint32_t turn = 0, step = n / 2; turn < 4; turn++, step = step > 1 ? step / 2 : n / 2) {
        DPQ_UNROLL
        for (uint32_t i = 0; i < n; i++)
            if (!(i & step))
                dpq_u8_zip(&r[i], &r[i + step]);
    }
}

/* The register of plane b: among eight, the first bit of a register's number has had two turns. */
DPQ_INLINE uint32_t lookups_plane(uint32_t n, uint32_t b)
{
    return n == 8 ? b % 2 * 4 + b / 2 : b;
}

/* Adds to `sum` the entries of n planes, which are bytes first .. first + n - 1 of the codes; of bytes before `from`
 * nothing. */
DPQ_INLINE dpq_u8s lookups_add(dpq_u8s sum, const dpq_lookups *look, dpq_u8s *r, uint32_t n, uint32_t first,
                               uint32_t from, uint32_t nbits, uint32_t levels)
{
    dpq_u8s low = dpq_u8_all(15);
    lookups_transpose(r, n);
    DPQ_UNROLL
    for (uint32_t b = 0; b < n; b++) {
        uint32_t byte = first + b;
        dpq_u8s plane = r[lookups_plane(n, b)];
        if (byte < from)
            continue;
        if (nbits == 8 && byte < levels) {
            dpq_lookup256(look->table8 + byte * 256, &plane, 1);
            sum = dpq_u8_add(sum, plane);
        }
        if (nbits == 4 && 2 * byte < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(look->table8 + 2 * byte * 256, dpq_u8_and(plane, low)));
        if (nbits == 4 && 2 * byte + 1 < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(look->table8 + (2 * byte + 1) * 256,
                                               dpq_u8_and(dpq_u32_shr(plane, 4), low)));
    }
    return sum;
}

/* Codes of any size from 4 on, four bytes at a time. The last four are moved back so that they end with the row:
 * nothing beyond the codes is read. */
static inline dpq_u8s lookups_add_columns(dpq_u8s sum, const dpq_lookups *look, const uint8_t *row, size_t code_size,
                                          uint32_t nbits, uint32_t levels)
{
    uint32_t bytes = (levels * nbits + 7) / 8;
    for (uint32_t at = 0; at < bytes; at += 4) {
        uint32_t begin = at + 4 > code_size ? (uint32_t)code_size - 4 : at;
        dpq_u8s r[4];
        for (uint32_t i = 0; i < 4; i++)
            r[i] = dpq_u32_column(row + i * (DPQ_QW / 4) * code_size, code_size, begin);
        sum = lookups_add(sum, look, r, 4, begin, at, nbits, levels);
    }
    return sum;
}

/* Hits among DPQ_QW vectors, a bit each, in the order of planes. whole: code_size is 4, 8 or 16, and a
 * constant. */
DPQ_INLINE uint64_t lookups_block(const dpq_database *db, const dpq_lookups *look, size_t first, dpq_u8s limit,
                                  size_t code_size, int whole, uint32_t nbits, uint32_t levels)
{
    const uint8_t *row = db->codes + first * code_size;
    dpq_u8s sum = dpq_u8_all(look->start);
    if (whole) {
        dpq_u8s r[16];
        DPQ_UNROLL
        for (uint32_t i = 0; i < code_size; i++)
            r[i] = dpq_u8_load(row + i * DPQ_QW);
        sum = lookups_add(sum, look, r, (uint32_t)code_size, 0, 0, nbits, levels);
    } else
        sum = lookups_add_columns(sum, look, row, code_size, nbits, levels);
    if (db->term_bins) {
        dpq_u8s bins = dpq_u8_by_lanes(dpq_u8_load(db->term_bins + first), whole ? 16 / (uint32_t)code_size : 4);
        sum = dpq_u8_add(sum, dpq_u8_scale(bins, look->slope));
    }
    return dpq_u8_le(sum, limit);
}

DPQ_INLINE size_t lookups_blocks(const dpq_database *db, dpq_lookups *look, size_t first, size_t n, size_t code_size,
                                 int whole, uint32_t nbits, uint32_t levels)
{
    const uint32_t w = whole ? 16 / (uint32_t)code_size : 4, lanes = DPQ_QW / 16;
    dpq_u8s limit = dpq_u8_all(look->limit);
    size_t found = 0;
    for (size_t v = first; v < first + n; v += DPQ_QW) {
        uint64_t within = lookups_block(db, look, v, limit, code_size, whole, nbits, levels);
        for (; within; within &= within - 1) {
            uint32_t position = (uint32_t)__builtin_ctzll(within), lane = position / 16, in_lane = position % 16;
            look->hits[found++] = (uint32_t)v + (in_lane / w * lanes + lane) * w + in_lane % w;
        }
    }
    return found;
}

/* Writes look->hits and returns how many there are among n vectors, a multiple of DPQ_QW, from `first` on. Fewer
 * levels than a shape has are looked up as if they were all of them. */
static size_t lookups_find(const dpq_database *db, dpq_lookups *look, size_t first, size_t n)
{
#define LOOKUPS_CASE(NBITS, LEVELS, SIZE)                                                                          \
    if (NBITS * LEVELS <= 8 * SIZE && db->code_size == SIZE && db->nbits == NBITS && db->levels <= LEVELS)         \
        return lookups_blocks(db, look, first, n, SIZE, 1, NBITS, LEVELS);
    DPQ_SHAPES(LOOKUPS_CASE, 4)
    DPQ_SHAPES(LOOKUPS_CASE, 8)
    DPQ_SHAPES(LOOKUPS_CASE, 16)
#undef LOOKUPS_CASE
    return lookups_blocks(db, look, first, n, db->code_size, 0, db->nbits == 8 ? 8 : 4, db->levels);
}

#endif
