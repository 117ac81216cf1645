/* Bits of ids in a bitmap, that of a faiss.IDSelectorBitmap. */
#ifndef DPQ_BITMAP_H
#define DPQ_BITMAP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The bit of an id in a bitmap of `size` bytes; 0 of an id that has none. */
static inline uint32_t dpq_bit_of_id(const uint8_t *bitmap, size_t size, int64_t id)
{
    return (uint64_t)id >> 3 < size ? bitmap[id >> 3] >> (id & 7) & 1u : 0;
}

/* About how many of the first n bits are set, by some that are spread evenly. */
static inline size_t dpq_estimated_bits(const uint8_t *bitmap, size_t n)
{
    enum { SAMPLED = 256 };
    size_t words = n / 64, step = words / SAMPLED + 1, looked_at = 0, set = 0;
    for (size_t w = 0; w < words; w += step, looked_at++) {
        uint64_t word;
        memcpy(&word, bitmap + 8 * w, 8);
        set += (size_t)__builtin_popcountll(word);
    }
    return looked_at ? (size_t)((double)n * (double)set / (64 * (double)looked_at)) : 0;
}

#endif
