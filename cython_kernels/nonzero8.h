/* For instruction sets that cannot close gaps in a register. */
#ifndef DPQ_NONZERO8_H
#define DPQ_NONZERO8_H

#include <stddef.h>
#include <stdint.h>

/* Which of eight masks are not zero under `live`, and their numbers first, first + 1, ...; how many. Up to eight places
 * are written whatever counts. Most eights have none. */
static inline size_t dpq_nonzero8(const uint64_t *masks, uint64_t live, uint32_t first, uint64_t *kept,
                                  uint32_t *numbers)
{
    size_t found = 0;
    uint64_t any = 0;
    for (uint32_t i = 0; i < 8; i++)
        any |= masks[i];
    for (uint32_t i = 0; (any & live) && i < 8; i++) {
        kept[found] = masks[i] & live;
        numbers[found] = first + i;
        found += kept[found] != 0;
    }
    return found;
}

#endif
