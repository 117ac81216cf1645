/* The few vectors of a masked view that take part, put together.
 *
 * In: codes and their mask. Out: the numbers of those vectors that take part, and if wanted copies of their codes and
 * bins of terms, one behind the other, so that look-ups (lookups_impl.h) are as fast as among all vectors. Copying a
 * code takes as long as looking up several, so this pays where few take part.
 */
#ifndef DPQ_GATHER_IMPL_H
#define DPQ_GATHER_IMPL_H

#include "lookups_impl.h"
#include "mask_impl.h"

#define GATHER_ROOM (LOOKUPS_AT_ONCE + DPQ_MASK_CHUNK + 64) /* + 64: mask_vectors_of writes ahead */
#define GATHER_CODE 16u   /* bytes of a copy, at most: that of DPQ_FEW_LEVELS levels */
#define GATHER_FIRST 32u  /* vectors that are scanned at once as long as there is no threshold */

typedef struct {
    uint8_t codes[LOOKUPS_AT_ONCE * GATHER_CODE];
    uint8_t bins[LOOKUPS_AT_ONCE];
    uint32_t vector[GATHER_ROOM];
    size_t n;
    size_t at_once;   /* how many are waited for before they are scanned, at most LOOKUPS_AT_ONCE */
    size_t code_size; /* of the copies: 4, 8 or 16; 0: there are none */
} gathered;

/* Begins with no vectors. copies: whether look-ups want copies. */
static void gather_begin(gathered *g, const dpq_database *db, int copies, size_t at_once)
{
    size_t bytes = ((size_t)db->levels * db->nbits + 7) / 8;
    g->n = 0;
    g->at_once = at_once;
    g->code_size = !copies ? 0 : bytes <= 4 ? 4 : bytes <= 8 ? 8 : GATHER_CODE;
    if (copies) { /* look-ups read whole registers, so also what is behind the last vector */
        memset(g->codes, 0, sizeof g->codes);
        memset(g->bins, 0, sizeof g->bins);
    }
}

/* Adds what takes part of chunk c of the mask. Codes are spread over memory: they are fetched while others are looked
 * for, and copied as late as can be, which was faster than 48 vectors later. */
static void gather_chunk(gathered *g, const dpq_database *db, size_t c)
{
    uint32_t *vector = g->vector + g->n;
    size_t found = mask_vectors_of(db, c, vector);
    for (size_t i = 0; i < found; i++)
        dpq_prefetch_vector(db, vector[i]);
    g->n += found;
}

/* Takes the first n out. */
static void gather_drop(gathered *g, size_t n)
{
    memmove(g->vector, g->vector + n, (g->n - n) * sizeof *g->vector);
    g->n -= n;
}

/* Copies the codes of the first n. size: bytes to copy of a code; stride: those of a copy. */
DPQ_INLINE void gather_copies(gathered *g, const dpq_database *db, size_t n, size_t size, size_t stride)
{
    const uint8_t *codes = db->codes, *bins = db->term_bins;
    const uint32_t *vector = g->vector;
    size_t code_size = db->code_size;
    for (size_t i = 0; i < n; i++)
        memcpy(g->codes + i * stride, codes + vector[i] * code_size, size);
    for (size_t i = 0; bins && i < n; i++)
        g->bins[i] = bins[vector[i]];
}

/* Those of the first n whose byte sum is within the limit: writes look->hits, and returns how many there are. */
static size_t gather_look_up(gathered *g, const dpq_database *db, dpq_lookups *look, size_t n)
{
    dpq_database copies = *db;
    size_t kept = 0;
    if (db->code_size < g->code_size)
        gather_copies(g, db, n, db->code_size, g->code_size);
    else if (g->code_size == 4)
        gather_copies(g, db, n, 4, 4);
    else if (g->code_size == 8)
        gather_copies(g, db, n, 8, 8);
    else
        gather_copies(g, db, n, GATHER_CODE, GATHER_CODE);
    copies.codes = g->codes;
    copies.code_size = (uint32_t)g->code_size;
    copies.term_bins = db->term_bins ? g->bins : NULL;
    size_t found = lookups_find(&copies, look, 0, (n + DPQ_QW - 1) / DPQ_QW * DPQ_QW);
    for (size_t h = 0; h < found; h++)
        if (look->hits[h] < n)
            look->hits[kept++] = g->vector[look->hits[h]];
    return kept;
}

/* Those of the first n whose float sum is within the threshold; see table_hits. */
static size_t gather_float_hits(const gathered *g, const dpq_database *db, const float *table, size_t n,
                                float threshold, uint32_t *hits)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++) {
        size_t v = g->vector[i];
        hits[found] = (uint32_t)v;
        found += table_vector_sum(db, table, v, dpq_term_bound(db, v, 0)) <= threshold;
    }
    return found;
}

#endif
