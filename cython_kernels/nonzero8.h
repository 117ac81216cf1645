/* dpq_nonzero8 for instruction sets that cannot move the chosen elements of a register together. */
#ifndef DPQ_NONZERO8_H
#define DPQ_NONZERO8_H

#include <stddef.h>
#include <stdint.h>

/* Of eight masks, numbered first, first + 1, ...: copies those that have bits in common with `live`, cut to these
 * bits, to `kept` and their numbers to `numbers`. Returns how many there are. Up to eight places are written, whatever
 * their number. Mostly there are none, which takes one comparison. */
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
