/* Squared lengths of the vectors that codes stand for, summed in double.
 *
 * In: codes, and codewords in coordinates of which each level has a range. Out: as at dpq_kernels.lengths_of_codes.
 *
 * LENGTHS_WIDTH coordinates of all codewords at a time: so many of twenty global levels fit into the L2 cache, which
 * whole codewords do not. The order of additions is the same in every instruction set. */
#ifndef DPQ_LENGTHS_IMPL_H
#define DPQ_LENGTHS_IMPL_H

#include "dpq_base.h"
#include "kernels.h"
#include "simd.h"

#define LENGTHS_WIDTH 64u
#define LENGTHS_AHEAD 1u  /* vectors whose codewords are fetched meanwhile */
#define LENGTHS_CHAINS 8u /* additions side by side: each waits for the one before */

/* What one level adds to some coordinates. */
typedef struct {
    const float *codewords; /* from the first of these coordinates on */
    size_t level, stride, first, n;
} lengths_share;

static void lengths_of_codes(const uint16_t *codes, size_t n, size_t levels, const float *rows, const int64_t *places,
                             size_t width, double *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = 0;
    for (size_t begin = 0; begin < width; begin += LENGTHS_WIDTH) {
        lengths_share shares[DPQ_MAX_LEVELS];
        size_t n_shares = 0, end = dpq_min(begin + LENGTHS_WIDTH, width);
        for (size_t level = 0; level < levels; level++) {
            const int64_t *place = places + 3 * level;
            size_t stride = (size_t)place[1], to = (size_t)place[2];
            size_t low = to > begin ? to : begin, high = dpq_min(to + stride, end);
            if (low < high)
                shares[n_shares++] =
                    (lengths_share){rows + place[0] + (low - to), level, stride, low - begin, high - low};
        }
        for (size_t i = 0; i < n; i++) {
            double total[LENGTHS_WIDTH] = {0}, chains[LENGTHS_CHAINS] = {0};
            const uint16_t *ahead = codes + dpq_min(i + LENGTHS_AHEAD, n - 1) * levels;
            for (size_t s = 0; s < n_shares; s++) {
                const lengths_share *share = shares + s;
                const float *codeword = share->codewords + codes[i * levels + share->level] * share->stride;
                const float *coming = share->codewords + ahead[share->level] * share->stride;
                double *to = total + share->first;
                for (size_t j = 0; j < share->n; j += 16)
                    __builtin_prefetch(coming + j);
                for (size_t j = 0; j < share->n; j++)
                    to[j] += codeword[j];
            }
            for (size_t j = 0; j < LENGTHS_WIDTH; j++)
                total[j] *= total[j]; /* on its own: added at once, some processors would round it later than others */
            for (size_t j = 0; j < LENGTHS_WIDTH; j += LENGTHS_CHAINS)
                for (size_t c = 0; c < LENGTHS_CHAINS; c++)
                    chains[c] += total[j + c];
            for (size_t c = 0; c < LENGTHS_CHAINS; c++)
                out[i] += chains[c];
        }
    }
}

#endif
