/* Hash: tells whether stored codes are still those that bins and radii were derived from.
 *
 * Two vectors of 32-bit words, in each lane Fletcher's pair of sums (of the words, and of the sums so far), once of the words as
 * they are and once of their halves exchanged. A changed word changes the first sum. Words that trade places change
 * the second by their difference times their distance, which is 0 modulo 2^32 only for words that differ in their
 * highest bits alone; with halves exchanged these are no longer the highest. It costs a few additions a vector,
 * because a search by one query pays for it beside its own scan of the codes. */
#include "kernels.h"
#include <string.h>

typedef uint32_t dpq_words __attribute__((vector_size(DPQ_HASH_VECTOR)));

enum { HASH_VECTORS = 2, HASH_STEP = HASH_VECTORS * sizeof(dpq_words) };

typedef struct {
    dpq_words sum[HASH_VECTORS], sums[HASH_VECTORS], swapped_sum[HASH_VECTORS], swapped_sums[HASH_VECTORS];
} dpq_fletcher;

DPQ_INLINE void hash_step(dpq_fletcher *state, const uint8_t *bytes)
{
    for (size_t i = 0; i < HASH_VECTORS; i++) {
        dpq_words words;
        memcpy(&words, bytes + i * sizeof words, sizeof words);
        state->sum[i] += words;
        state->sums[i] += state->sum[i];
        state->swapped_sum[i] += words << 16 | words >> 16;
        state->swapped_sums[i] += state->swapped_sum[i];
    }
}

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    dpq_fletcher state;
    uint8_t rest[HASH_STEP] = {0};
    uint64_t word, hash = n;
    const size_t whole = n - n % HASH_STEP;
    memset(&state, 0, sizeof state);
    for (size_t at = 0; at < whole; at += HASH_STEP)
        hash_step(&state, bytes + at);
    memcpy(rest, bytes + whole, n - whole);
    hash_step(&state, rest);
    for (size_t at = 0; at < sizeof state; at += sizeof word) {
        memcpy(&word, (const char *)&state + at, sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}
