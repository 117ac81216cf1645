/* Reading stored codes and their terms. */
#ifndef DPQ_SCAN_CODES_H
#define DPQ_SCAN_CODES_H

#include "dpq_base.h"
#include "dpq_pairs.h"
#include "dpq_scan.h"
#include <string.h>

static inline size_t dpq_codewords(const dpq_database *db)
{
    return (size_t)1 << db->nbits;
}

static inline const uint8_t *dpq_row(const dpq_database *db, size_t v)
{
    return db->codes + v * db->code_size;
}

/* The codeword number of `level`. Of widths other than 8 and 4 bits, four bytes are read at once: these hold any
 * number of up to 16 bits at any bit offset, but may reach beyond the row. */
DPQ_INLINE uint16_t dpq_code(const uint8_t *row, uint32_t nbits, uint32_t level)
{
    if (nbits == 8)
        return row[level];
    if (nbits == 4)
        return row[level / 2] >> (level % 2 * 4) & 15;
    uint32_t bit = level * nbits, word;
    memcpy(&word, row + (bit >> 3), 4);
    return (uint16_t)(word >> (bit & 7) & ((1u << nbits) - 1));
}

/* Whether dpq_code may read beyond the end of all codes when it reads vector v. */
static inline int dpq_is_end(const dpq_database *db, size_t v)
{
    return db->nbits != 8 && db->nbits != 4 && (db->n - v) * db->code_size < db->code_size + 4u;
}

DPQ_INLINE void dpq_unpack_row(const uint8_t *row, uint32_t nbits, uint32_t levels, uint16_t *code)
{
    for (uint32_t l = 0; l < levels; l++)
        code[l] = dpq_code(row, nbits, l);
}

/* dpq_unpack at the end of all codes: from a copy that is long enough. Apart, so that dpq_unpack stays small. */
static inline void dpq_unpack_end(const dpq_database *db, size_t v, uint16_t *code)
{
    uint8_t copy[2 * DPQ_MAX_LEVELS + 4] = {0};
    memcpy(copy, dpq_row(db, v), db->code_size);
    dpq_unpack_row(copy, db->nbits, db->levels, code);
}

/* code = the codeword numbers of vector v. */
DPQ_INLINE void dpq_unpack(const dpq_database *db, size_t v, uint16_t *code)
{
    if (db->nbits == 8)
        dpq_unpack_row(dpq_row(db, v), 8, db->levels, code);
    else if (db->nbits == 4)
        dpq_unpack_row(dpq_row(db, v), 4, db->levels, code);
    else if (dpq_is_end(db, v))
        dpq_unpack_end(db, v, code);
    else
        dpq_unpack_row(dpq_row(db, v), db->nbits, db->levels, code);
}

/* The term of vector v, whose codeword numbers are `code`: as stored, or else the sum of its cross terms. */
DPQ_INLINE float dpq_term(const dpq_database *db, size_t v, const uint16_t *code)
{
    if (db->terms)
        return db->terms[v];
    return db->cross ? dpq_cross_term(db->cross, dpq_codewords(db), code, db->levels) : 0.0f;
}

/* Whether the terms of codes are stored, or all zero: then the next function gives them. */
static inline int dpq_has_terms(const dpq_database *db)
{
    return db->terms || !db->cross;
}

static inline float dpq_stored_term(const dpq_database *db, size_t v)
{
    return db->terms ? db->terms[v] : 0.0f;
}

/* dpq_term of vector v, whose code is unpacked only where that is needed. */
static inline float dpq_term_of(const dpq_database *db, size_t v)
{
    uint16_t code[DPQ_MAX_LEVELS];
    if (dpq_has_terms(db))
        return dpq_stored_term(db, v);
    dpq_unpack(db, v, code);
    return dpq_term(db, v, code);
}

/* Starts to fetch what dpq_term will read. */
DPQ_INLINE void dpq_prefetch_term(const dpq_database *db, size_t v, const uint16_t *code)
{
    if (db->terms)
        __builtin_prefetch(db->terms + v);
    else if (db->cross)
        dpq_prefetch_cross(db->cross, dpq_codewords(db), code, db->levels);
}

/* Starts to fetch what dpq_term_bound looks up of vector v, and the beginning of its code. */
static inline void dpq_prefetch_vector(const dpq_database *db, size_t v)
{
    __builtin_prefetch(dpq_row(db, v));
    if (db->code_size > 16)
        __builtin_prefetch(dpq_row(db, v) + db->code_size - 1);
    if (db->term_bins)
        __builtin_prefetch(db->term_bins + v);
    else if (db->terms)
        __builtin_prefetch(db->terms + v);
}

/* How many vectors to scan next where no sample has given a threshold. Until the first vectors have given one, all are
 * rescored: so chunks begin small and double. */
static inline size_t dpq_first_chunks(size_t scanned, size_t chunk)
{
    return scanned < 32 ? 32 : scanned < chunk ? scanned : chunk;
}

#endif
