/* Counts and lists what a mask lets through (dpq_mask.h).
 *
 * In: bits of n vectors, those behind the last 0; of mask_list anything. Out: before[c] for every chunk, and for the
 * end; numbers of vectors.
 * Here because the processor has instructions for it: portable C takes as long as a search of few vectors. */
#ifndef DPQ_MASK_IMPL_H
#define DPQ_MASK_IMPL_H

#include "dpq_mask.h"
#include "simd.h"
#include <string.h>

#define MASK_KEPT (DPQ_MASK_WORDS + 8) /* + 8: dpq_nonzero8 writes ahead */

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

/* Lists the vectors whose bits are set among the first n of a bitmap, ascending. Returns how many there are; or, of
 * more than `most`, that there are more, once that is known. Up to DPQ_LIST_AHEAD more are written. */
static size_t mask_list(const uint8_t *bitmap, size_t n, size_t most, uint32_t *vectors)
{
    size_t found = 0;
    for (size_t first = 0; first < n && found <= most; first += 512) {
        uint64_t eight[8] = {0}, kept[16];
        uint32_t numbers[16];
        if (n - first >= 512)
            memcpy(eight, bitmap + first / 8, sizeof eight);
        else {
            memcpy(eight, bitmap + first / 8, (n - first + 7) / 8);
            eight[(n - first) / 64] &= ((uint64_t)1 << (n - first) % 64) - 1;
        }
        size_t words = dpq_nonzero8(eight, UINT64_MAX, (uint32_t)(first / 64), kept, numbers);
        for (size_t i = 0; i < words; i++)
            found += dpq_places(kept[i], numbers[i] * 64, vectors + found);
    }
    return found;
}

/* bits = whether each of n ids is one whose bit is set in a bitmap of `size` bytes. Returns how many are. */
static size_t mask_of_ids(const uint8_t *bitmap, size_t size, const int64_t *ids, size_t n, uint64_t *bits)
{
    size_t admitted = 0;
    for (size_t first = 0; first < n; first += 64) {
        uint64_t word = 0;
        size_t some = dpq_min(n - first, 64), whole = some / DPQ_TESTED * DPQ_TESTED;
        for (size_t i = 0; i < whole; i += DPQ_TESTED)
            word |= (uint64_t)dpq_bits_of_ids(bitmap, size, ids + first + i) << i;
        for (size_t i = whole; i < some; i++)
            word |= (uint64_t)dpq_bit_of_id(bitmap, size, ids[first + i]) << i;
        bits[first / 64] = word;
        admitted += (size_t)__builtin_popcountll(word);
    }
    return admitted;
}

/* bits = whether each of n ids is one of first, first + 1, ..., first + span - 1. Returns how many are. */
static size_t mask_of_range(int64_t first, uint64_t span, const int64_t *ids, size_t n, uint64_t *bits)
{
    size_t admitted = 0;
    for (size_t begin = 0; begin < n; begin += 64) {
        uint64_t word = 0;
        size_t some = dpq_min(n - begin, 64), whole = some / DPQ_TESTED * DPQ_TESTED;
        for (size_t i = 0; i < whole; i += DPQ_TESTED)
            word |= (uint64_t)dpq_ids_within(first, span, ids + begin + i) << i;
        for (size_t i = whole; i < some; i++)
            word |= (uint64_t)dpq_id_is_within(first, span, ids[begin + i]) << i;
        bits[begin / 64] = word;
        admitted += (size_t)__builtin_popcountll(word);
    }
    return admitted;
}

/* The words of chunk c that are not 0, and the number of the first vector of each. Returns how many there are. */
DPQ_INLINE size_t mask_words_of(const dpq_database *db, size_t c, uint64_t *words, uint32_t *firsts)
{
    uint64_t all[DPQ_MASK_WORDS] = {0};
    size_t first = c * DPQ_MASK_WORDS, kept = 0;
    memcpy(all, db->allowed + first, dpq_min(DPQ_MASK_WORDS, (db->n + 63) / 64 - first) * sizeof *all);
    for (size_t w = 0; w < DPQ_MASK_WORDS; w += 8)
        kept += dpq_nonzero8(all + w, UINT64_MAX, (uint32_t)(first + w), words + kept, firsts + kept);
    for (size_t i = 0; i < kept; i++)
        firsts[i] *= 64;
    return kept;
}

/* Writes the vectors of chunk c that take part, ascending, and returns how many there are. Up to 64 more are written. */
DPQ_INLINE size_t mask_vectors_of(const dpq_database *db, size_t c, uint32_t *vectors)
{
    uint64_t words[MASK_KEPT];
    uint32_t firsts[MASK_KEPT];
    size_t kept = mask_words_of(db, c, words, firsts), found = 0;
    for (size_t i = 0; i < kept; i++)
        found += dpq_places(words[i], firsts[i], vectors + found);
    return found;
}

/* Writes n vectors that take part, spaced evenly over those that do, ascending but for those of one chunk; there are n
 * at least. Of a chunk, words take turns to give one. n: a constant power of two, or the divisions take most of the
 * time. */
DPQ_INLINE void mask_sample(const dpq_database *db, size_t n, uint32_t *sampled)
{
    size_t all = dpq_allowed_of(db), taken = 0;
    for (size_t c = 0; taken < n; c++) {
        size_t end = db->allowed_before[c + 1] - db->allowed_before[0];
        uint64_t words[MASK_KEPT];
        uint32_t firsts[MASK_KEPT];
        if (taken * all / n >= end) /* before the next one due, so many that take part have to go */
            continue;
        uint32_t kept = (uint32_t)mask_words_of(db, c, words, firsts);
        for (uint32_t w = (uint32_t)c % kept; taken < n && taken * all / n < end; w = w + 1 < kept ? w + 1 : 0)
            if (words[w])
                sampled[taken++] = (uint32_t)dpq_next_allowed(&words[w], firsts[w]);
    }
}

/* Writes all vectors that take part, ascending. Up to 64 more are written. */
static void mask_all(const dpq_database *db, uint32_t *vectors)
{
    for (size_t c = 0; c < dpq_mask_chunks(db->n); c++)
        if (dpq_allowed_in(db, c))
            vectors += mask_vectors_of(db, c, vectors);
}

#endif
