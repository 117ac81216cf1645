/* dpq_nonzero8 and dpq_places for instruction sets that cannot move the chosen elements of a register together. */
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

/* Writes `first` plus the place of every bit that is set, ascending, and returns how many there are. Up to 64 places
 * are written, whatever their number: four at a time, since a branch a bit would mostly be guessed wrong. */
static inline size_t dpq_places(uint64_t bits, uint32_t first, uint32_t *places)
{
    size_t n = (size_t)__builtin_popcountll(bits);
    for (size_t i = 0; i < n; i += 4)
        for (size_t j = i; j < i + 4; j++) {
            places[j] = first + (uint32_t)__builtin_ctzll(bits | (uint64_t)1 << 63);
            bits &= bits - 1;
        }
    return n;
}

#endif
