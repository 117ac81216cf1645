/* The bits of ids in a bitmap, and whether ids are within a range, for instruction sets that cannot load from many
 * addresses at once, nor compare many numbers of 64 bits. */
#ifndef DPQ_BITS_OF_IDS_H
#define DPQ_BITS_OF_IDS_H

#include "dpq_bitmap.h"

#define DPQ_TESTED 16u

/* Whether an id is one of first, first + 1, ..., first + span - 1. */
static inline uint32_t dpq_id_is_within(int64_t first, uint64_t span, int64_t id)
{
    return (uint64_t)id - (uint64_t)first < span;
}

#ifndef DPQ_LOADS_FAR
/* Bit i: that of ids[i], of DPQ_TESTED. */
static inline uint32_t dpq_bits_of_ids(const uint8_t *bitmap, size_t size, const int64_t *ids)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < DPQ_TESTED; i++)
        bits |= dpq_bit_of_id(bitmap, size, ids[i]) << i;
    return bits;
}

/* Bit i: whether ids[i], of DPQ_TESTED, is within. */
static inline uint32_t dpq_ids_within(int64_t first, uint64_t span, const int64_t *ids)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < DPQ_TESTED; i++)
        bits |= dpq_id_is_within(first, span, ids[i]) << i;
    return bits;
}
#endif

#endif
