/* Hash: tells whether stored codes are still those that bins and radii were derived from.
 *
 * With a round of AES (DPQ_HAS_STIR): every lane of 16 bytes goes through the round, and is xored with the next 16 bytes.
 * The round is one to one, so that a changed word changes the lane, and spreads differences, so that the words after it do
 * not change it back but by chance.
 *
 * Elsewhere two vectors of 32-bit words, in each lane Fletcher's pair of sums (of the words, and of the sums so far), once
 * of the words as they are and once of their halves exchanged. A changed word changes the first sum. Words that trade
 * places change the second by their difference times their distance, which is 0 modulo 2^32 only for words that differ in
 * their highest bits alone; with halves exchanged these are no longer the highest.
 *
 * Either costs a few instructions a vector, because a search by one query pays for it beside its own scan of the codes. */
#ifndef DPQ_HASH_IMPL_H
#define DPQ_HASH_IMPL_H

#include "dpq_base.h"
#include "simd.h"
#include <string.h>

#ifdef DPQ_HAS_STIR

enum { HASH_VECTORS = 4 };

typedef struct {
    dpq_u8s lanes[HASH_VECTORS];
} dpq_hash;

/* Register i of HASH_VECTORS. */
DPQ_INLINE void hash_register(dpq_hash *state, size_t i, dpq_u8s bytes)
{
    state->lanes[i] = dpq_u8_stir(state->lanes[i], bytes);
}

#else

enum { HASH_VECTORS = 2 };

typedef uint32_t dpq_words __attribute__((vector_size(sizeof(dpq_u8s))));

typedef struct {
    dpq_words sum[HASH_VECTORS], sums[HASH_VECTORS], swapped_sum[HASH_VECTORS], swapped_sums[HASH_VECTORS];
} dpq_hash;

/* Register i of HASH_VECTORS. */
DPQ_INLINE void hash_register(dpq_hash *state, size_t i, dpq_u8s bytes)
{
    dpq_words words;
    memcpy(&words, &bytes, sizeof words);
    state->sum[i] += words;
    state->sums[i] += state->sum[i];
    state->swapped_sum[i] += words << 16 | words >> 16;
    state->swapped_sums[i] += state->swapped_sum[i];
}

#endif

enum { HASH_STEP = HASH_VECTORS * sizeof(dpq_u8s) };

DPQ_INLINE void hash_step(dpq_hash *state, const uint8_t *bytes)
{
    for (size_t i = 0; i < HASH_VECTORS; i++)
        hash_register(state, i, dpq_u8_load(bytes + i * sizeof(dpq_u8s)));
}

DPQ_INLINE void hash_begin(dpq_hash *state)
{
    memset(state, 0, sizeof *state);
}

/* n is a multiple of HASH_STEP. */
DPQ_INLINE void hash_more(dpq_hash *state, const uint8_t *bytes, size_t n)
{
    dpq_hash in_registers = *state;
    for (size_t at = 0; at < n; at += HASH_STEP)
        hash_step(&in_registers, bytes + at);
    *state = in_registers;
}

/* The hash of `total` bytes, of which these n are the last. Several chains of products, since each waits for the one
 * before it. */
static uint64_t hash_end(dpq_hash *state, const uint8_t *bytes, size_t n, size_t total)
{
    enum { CHAINS = 8 };
    uint8_t rest[HASH_STEP] = {0};
    uint64_t words[sizeof *state / sizeof(uint64_t)], chain[CHAINS] = {0}, hash = total;
    const size_t whole = n - n % HASH_STEP;
    hash_more(state, bytes, whole);
    memcpy(rest, bytes + whole, n - whole);
    hash_step(state, rest);
    memcpy(words, state, sizeof *state);
    for (size_t i = 0; i < sizeof *state / sizeof(uint64_t); i++) {
        chain[i % CHAINS] = (chain[i % CHAINS] ^ words[i]) * 0x9e3779b97f4a7c15u;
        chain[i % CHAINS] ^= chain[i % CHAINS] >> 32;
    }
    for (size_t i = 0; i < CHAINS; i++) {
        hash = (hash ^ chain[i]) * 0x9e3779b97f4a7c15u;
        hash ^= hash >> 32;
    }
    return hash;
}

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    dpq_hash state;
    hash_begin(&state);
    return hash_end(&state, bytes, n, n);
}

#endif
