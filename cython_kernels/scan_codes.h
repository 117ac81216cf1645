/* Reading codes and terms outside the inner loops. */
#ifndef DPQ_SCAN_CODES_H
#define DPQ_SCAN_CODES_H

#include "dpq_scan.h"
#include <string.h>

static inline const uint8_t *dpq_row(const dpq_database *db, size_t v)
{
    return db->codes + v * db->code_size;
}

/* Code of `level` from four bytes at once, which hold any code of up to 16 bits at any bit offset. */
static inline uint16_t dpq_code(const uint8_t *row, uint32_t nbits, uint32_t level)
{
    uint32_t bit = level * nbits, word;
    memcpy(&word, row + (bit >> 3), 4);
    return (uint16_t)(word >> (bit & 7) & ((1u << nbits) - 1));
}

/* A row whose last code's four bytes may lie beyond the codes is read from a copy. */
static inline void dpq_unpack_end(const dpq_database *db, size_t v, uint16_t *code)
{
    uint8_t copy[2 * DPQ_MAX_LEVELS + 4] = {0};
    memcpy(copy, dpq_row(db, v), db->code_size);
    for (uint32_t l = 0; l < db->levels; l++)
        code[l] = dpq_code(copy, db->nbits, l);
}

static inline int dpq_is_end(const dpq_database *db, size_t v)
{
    return (db->n - v) * db->code_size < db->code_size + 4u;
}

static inline void dpq_unpack(const dpq_database *db, size_t v, uint16_t *code)
{
    const uint8_t *row = dpq_row(db, v);
    uint32_t nbits = db->nbits, levels = db->levels;
    if (nbits == 8)
        for (uint32_t l = 0; l < levels; l++)
            code[l] = row[l];
    else if (dpq_is_end(db, v))
        dpq_unpack_end(db, v, code);
    else
        for (uint32_t l = 0; l < levels; l++)
            code[l] = dpq_code(row, nbits, l);
}

/* term(v), summed in pair order where it is not given. */
static inline float dpq_term(const dpq_database *db, size_t v, const uint16_t *code)
{
    size_t K = (size_t)1 << db->nbits;
    const float *table = db->cross;
    float term = 0.0f;
    if (db->terms)
        return db->terms[v];
    if (!table)
        return term;
    for (uint32_t l = 1; l < db->levels; l++)
        for (uint32_t j = 0; j < l; j++, table += K * K)
            term += table[code[j] * K + code[l]];
    return term;
}

static inline void dpq_prefetch_term(const dpq_database *db, const uint16_t *code)
{
    size_t K = (size_t)1 << db->nbits;
    const float *table = db->cross;
    for (uint32_t l = 1; table && l < db->levels; l++)
        for (uint32_t j = 0; j < l; j++, table += K * K)
            __builtin_prefetch(table + code[j] * K + code[l]);
}

/* Without a sample there is no threshold at first, and all is rescored: chunks begin small and double. */
static inline size_t dpq_first_chunks(size_t scanned, size_t chunk)
{
    return scanned < 32 ? 32 : scanned < chunk ? scanned : chunk;
}

static inline int dpq_is_allowed(const dpq_database *db, size_t v)
{
    return !db->allowed || db->allowed[v >> 3] >> (v & 7) & 1;
}

#endif
