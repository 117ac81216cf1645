/* The few vectors of a masked view that take part, put together.
 *
 * In: codes and their mask. Out: the numbers of those vectors that take part, and if wanted copies of their codes and
 * bins of terms, one behind the other, so that look-ups (lookups_impl.h) are as fast as among all vectors. Copying a
 * code takes as long as looking up several, so this pays where few take part.
 */
#ifndef DPQ_GATHER_IMPL_H
#define DPQ_GATHER_IMPL_H

#include "dpq_mask.h"
#include "lookups_impl.h"

#define GATHER_ROOM (LOOKUPS_AT_ONCE + DPQ_MASK_CHUNK)
#define GATHER_CODE 16u   /* bytes of a copy, at most: that of DPQ_FEW_LEVELS levels */
#define GATHER_FIRST 32u  /* vectors that are scanned at once as long as there is no threshold */

typedef struct {
    uint8_t codes[GATHER_ROOM * GATHER_CODE];
    uint8_t bins[GATHER_ROOM];
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

/* size: bytes to copy of a code; stride: those of a copy. */
DPQ_INLINE void gather_copies(gathered *g, const dpq_database *db, size_t first, size_t n, size_t size, size_t stride)
{
    const uint8_t *from = db->codes, *term_bins = db->term_bins;
    const uint64_t *allowed = db->allowed;
    uint8_t *codes = g->codes + g->n * stride, *bins = g->bins + g->n;
    uint32_t *vector = g->vector + g->n;
    size_t found = 0, code_size = db->code_size;
    for (size_t at = first; at < first + n; at += 64)
        for (uint64_t bits = allowed[at / 64]; bits; found++) {
            size_t v = dpq_next_allowed(&bits, at);
            memcpy(codes + found * stride, from + v * code_size, size);
            if (term_bins)
                bins[found] = term_bins[v];
            vector[found] = (uint32_t)v;
        }
    g->n += found;
}

/* Their numbers alone; their codes are fetched meanwhile. */
static void gather_numbers(gathered *g, const dpq_database *db, size_t first, size_t n)
{
    for (size_t at = first; at < first + n; at += 64)
        for (uint64_t bits = db->allowed[at / 64]; bits;) {
            size_t v = dpq_next_allowed(&bits, at);
            dpq_prefetch_vector(db, v);
            g->vector[g->n++] = (uint32_t)v;
        }
}

/* Adds what takes part among n <= DPQ_MASK_CHUNK vectors from `first` on, a multiple of 64. */
static void gather_chunk(gathered *g, const dpq_database *db, size_t first, size_t n)
{
    if (!g->code_size)
        gather_numbers(g, db, first, n);
    else if (db->code_size < g->code_size)
        gather_copies(g, db, first, n, db->code_size, g->code_size);
    else if (g->code_size == 4)
        gather_copies(g, db, first, n, 4, 4);
    else if (g->code_size == 8)
        gather_copies(g, db, first, n, 8, 8);
    else
        gather_copies(g, db, first, n, GATHER_CODE, GATHER_CODE);
}

/* Takes the first n out. */
static void gather_drop(gathered *g, size_t n)
{
    size_t left = g->n - n;
    memmove(g->codes, g->codes + n * g->code_size, left * g->code_size);
    memmove(g->bins, g->bins + n, left);
    memmove(g->vector, g->vector + n, left * sizeof *g->vector);
    g->n = left;
}

/* Those of the first n whose byte sum is within the limit: writes look->hits, and returns how many there are. */
static size_t gather_look_up(const gathered *g, const dpq_database *db, dpq_lookups *look, size_t n)
{
    dpq_database copies = *db;
    size_t kept = 0;
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
        found += table_vector_sum(db, table, v, db->terms ? db->terms[v] : dpq_term_bound(db, v, 0)) <= threshold;
    }
    return found;
}

#endif
