/* Which vectors take part in a search: a bit each, and how many they are.
 *
 * allowed[v >> 6] has the bit v & 63 of vector v; bits behind the last vector are 0. allowed_before[c] is how many
 * vectors take part before chunk c of DPQ_MASK_CHUNK vectors, plus what the view begins with; the last entry is that of
 * all. So a scan knows of every chunk, without a look at its bits, whether it can be skipped.
 *
 * A mask that serves one search is not worth counting, nor copying: allowed_before is NULL, and allowed is the bitmap of
 * whoever searches, of which nothing but the bytes that have the bits of vectors may be read. By such a mask one query
 * scans codes in an order of their own, and a bit is read of those vectors only that are near. Lists are scanned
 * likewise by a bitmap of ids that lets many through. */
#ifndef DPQ_MASK_H
#define DPQ_MASK_H

#include "dpq_base.h"
#include "dpq_bitmap.h"
#include "dpq_scan.h"

#define DPQ_MASK_CHUNK 1024u
#define DPQ_MASK_WORDS (DPQ_MASK_CHUNK / 64)
#define DPQ_LIST_AHEAD 576u /* numbers that listing writes behind the last one asked for: of 512 bits, and 64 */

static inline int dpq_is_allowed(const dpq_database *db, size_t v)
{
    const uint8_t *bitmap = (const uint8_t *)db->allowed;
    if (!bitmap)
        return 1;
    return db->ids ? (int)dpq_bit_of_id(bitmap, db->allowed_size, db->ids[v]) : bitmap[v >> 3] >> (v & 7) & 1;
}

static inline int dpq_is_counted(const dpq_database *db)
{
    return !db->allowed || db->allowed_before;
}

static inline size_t dpq_mask_chunks(size_t n)
{
    return (n + DPQ_MASK_CHUNK - 1) / DPQ_MASK_CHUNK;
}

/* How many vectors of chunk c take part, of a view that is masked. */
static inline size_t dpq_allowed_in(const dpq_database *db, size_t c)
{
    return db->allowed_before[c + 1] - db->allowed_before[c];
}

/* How many vectors take part; all of them, for what is known, where nobody has counted. */
static inline size_t dpq_allowed_of(const dpq_database *db)
{
    if (db->listed)
        return db->n_listed;
    return db->allowed_before ? db->allowed_before[dpq_mask_chunks(db->n)] - db->allowed_before[0] : db->n;
}

/* Whether none of n vectors from `first` on takes part, nor of those before in the same word. */
static inline int dpq_none_allowed(const dpq_database *db, size_t first, size_t n)
{
    uint64_t any = 0;
    if (!db->allowed)
        return 0;
    for (size_t word = first / 64; word * 64 < first + n; word++)
        any |= db->allowed[word];
    return !any;
}

/* The next vector that takes part, of those whose bits are left in *bits; these are the bits from vector `first` on. */
static inline size_t dpq_next_allowed(uint64_t *bits, size_t first)
{
    size_t v = first + (size_t)__builtin_ctzll(*bits);
    *bits &= *bits - 1;
    return v;
}

#endif
