/* Counts what a mask lets through (dpq_mask.h).
 *
 * In: bits of n vectors, those behind the last 0. Out: before[c] for every chunk, and for the end. Here because bits are
 * counted by an instruction of the processor: in portable C that takes as long as a search of few vectors. */
#ifndef DPQ_MASK_IMPL_H
#define DPQ_MASK_IMPL_H

#include "dpq_mask.h"
#include "simd.h"

static void mask_count(const uint64_t *bits, size_t n, uint32_t *before)
{
    size_t words = (n + 63) / 64, word = 0;
    uint32_t count = 0;
    for (size_t c = 0; c < dpq_mask_chunks(n); c++) {
        before[c] = count;
        for (; word < dpq_min(words, (c + 1) * DPQ_MASK_WORDS); word++)
            count += (uint32_t)__builtin_popcountll(bits[word]);
    }
    before[dpq_mask_chunks(n)] = count;
}

#endif
