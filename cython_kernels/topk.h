/* The k nearest vectors of one query: a binary max-heap of (distance, id), ordered by distance, then id.
 *
 * The order is total, so the k that remain do not depend on how vectors were cut into blocks or threads. */
#ifndef DPQ_TOPK_H
#define DPQ_TOPK_H

#include <stddef.h>
#include <stdint.h>

static inline int topk_worse(float da, int64_t ia, float db, int64_t ib) { return da > db || (da == db && ia > ib); }

/* Puts (distance, id) into the hole at the heap's root, of a heap of k entries. */
static inline void topk_sift_down(size_t k, float *distances, int64_t *ids, float distance, int64_t id)
{
    size_t hole = 0;
    for (;;) {
        size_t child = 2 * hole + 1;
        if (child >= k)
            break;
        if (child + 1 < k && topk_worse(distances[child + 1], ids[child + 1], distances[child], ids[child]))
            child++;
        if (!topk_worse(distances[child], ids[child], distance, id))
            break;
        distances[hole] = distances[child];
        ids[hole] = ids[child];
        hole = child;
    }
    distances[hole] = distance;
    ids[hole] = id;
}

/* Replaces the worst entry if (distance, id) comes before it. */
static inline void topk_push(size_t k, float *distances, int64_t *ids, float distance, int64_t id)
{
    if (topk_worse(distances[0], ids[0], distance, id))
        topk_sift_down(k, distances, ids, distance, id);
}

/* Heapsort in place: nearest first. */
static inline void topk_sort(size_t k, float *distances, int64_t *ids)
{
    for (size_t end = k; end > 1; end--) {
        float distance = distances[end - 1];
        int64_t id = ids[end - 1];
        distances[end - 1] = distances[0];
        ids[end - 1] = ids[0];
        topk_sift_down(end - 1, distances, ids, distance, id);
    }
}

#endif
