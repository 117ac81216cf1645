/* The bits of ids in a bitmap; dpq_bits_of_ids for instruction sets that cannot load from many addresses at once. */
#ifndef DPQ_BITS_OF_IDS_H
#define DPQ_BITS_OF_IDS_H

#include "dpq_bitmap.h"

#define DPQ_TESTED 16u

#ifndef DPQ_LOADS_FAR
/* Bit i: that of ids[i], of DPQ_TESTED. */
static inline uint32_t dpq_bits_of_ids(const uint8_t *bitmap, size_t size, const int64_t *ids)
{
    uint32_t bits = 0;
    for (uint32_t i = 0; i < DPQ_TESTED; i++)
        bits |= dpq_bit_of_id(bitmap, size, ids[i]) << i;
    return bits;
}
#endif

#endif
