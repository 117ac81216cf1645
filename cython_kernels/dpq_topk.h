/* The k least (distance, id) pairs of many, which come one by one.
 *
 * A pair is one 64-bit key: above, the bits of the distance, changed so that they sort as the floats do; below, the
 * id. So "less distance, then lower id" is a comparison of integers. For small k the keys are a heap with the greatest
 * on top, and the limit is tight after every push. For large k there is room for 2k keys: a push only appends, and
 * when the room is full the k least are kept. The looser limit costs less than a heap's log k moves a push would: at k
 * = 100 these take a tenth of a scan.
 */
#ifndef DPQ_TOPK_H
#define DPQ_TOPK_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define DPQ_HEAP_MAX_K 32u

typedef struct {
    uint64_t *keys; /* dpq_topk_capacity(k) */
    uint64_t limit; /* a key enters if key < limit */
    uint32_t k, size;
} dpq_topk;

static inline size_t dpq_topk_capacity(size_t k)
{
    return k <= DPQ_HEAP_MAX_K ? k : 2 * k;
}

static inline uint64_t dpq_key(float distance, uint32_t id)
{
    uint32_t bits;
    float d = distance + 0.0f; /* -0 ties with +0 */
    memcpy(&bits, &d, 4);
    bits ^= (uint32_t)((int32_t)bits >> 31) | 0x80000000u;
    return (uint64_t)bits << 32 | id;
}

/* The key of a result; none enters for a distance that is infinite or NaN. */
static inline uint64_t dpq_result_key(float distance, uint32_t id)
{
    return distance < INFINITY ? dpq_key(distance, id) : UINT64_MAX;
}

static inline float dpq_key_distance(uint64_t key)
{
    uint32_t bits = (uint32_t)(key >> 32);
    float d;
    bits ^= bits & 0x80000000u ? 0x80000000u : 0xffffffffu;
    memcpy(&d, &bits, 4);
    return d;
}

/* Begins with no pairs. Only pairs at or below `distance` will enter; INFINITY lets all enter but NaN. */
static inline void dpq_topk_begin(dpq_topk *t, uint64_t *keys, size_t k, float distance)
{
    t->keys = keys;
    t->k = (uint32_t)k;
    t->size = 0;
    t->limit = dpq_key(distance, UINT32_MAX);
}

static inline float dpq_topk_threshold(const dpq_topk *t)
{
    return dpq_key_distance(t->limit);
}

static inline void dpq_sift_down(uint64_t *heap, size_t n, size_t i, uint64_t key)
{
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        child += child + 1 < n && heap[child + 1] > heap[child];
        if (heap[child] <= key)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = key;
}

static inline void dpq_heapify(uint64_t *heap, size_t n)
{
    for (size_t i = n / 2; i-- > 0;)
        dpq_sift_down(heap, n, i, heap[i]);
}

static inline uint64_t dpq_median3(uint64_t a, uint64_t b, uint64_t c)
{
    uint64_t lo = a < b ? a : b, hi = a < b ? b : a;
    return c < lo ? lo : c > hi ? hi : c;
}

/* Moves the k least of n distinct keys to the front: quickselect, by a partition without branches, since on random
 * keys a branch would be mispredicted half of the time. The pivot is the median of three distinct keys, so that a
 * lesser and a greater one exist and both sides shrink. */
static inline void dpq_select(uint64_t *keys, size_t n, size_t k)
{
    size_t lo = 0, hi = n;
    while (hi - lo > 2) {
        uint64_t pivot = dpq_median3(keys[lo], keys[lo + (hi - lo) / 2], keys[hi - 1]);
        size_t mid = lo;
        for (size_t i = lo; i < hi; i++) {
            uint64_t key = keys[i];
            keys[i] = keys[mid];
            keys[mid] = key;
            mid += key < pivot;
        }
        if (mid > k)
            hi = mid;
        else
            lo = mid;
    }
    if (hi - lo == 2 && keys[lo] > keys[lo + 1]) {
        uint64_t key = keys[lo];
        keys[lo] = keys[lo + 1];
        keys[lo + 1] = key;
    }
}

/* Keeps the k least keys. Never inlined: in loops that push, it made choosing among centres take half as long again. */
static __attribute__((noinline)) void dpq_topk_cut(dpq_topk *t)
{
    uint64_t largest = 0;
    dpq_select(t->keys, t->size, t->k);
    for (size_t i = 0; i < t->k; i++)
        largest = t->keys[i] > largest ? t->keys[i] : largest;
    t->size = t->k;
    t->limit = largest;
}

/* Adds a key below the limit. Returns 1 if the limit moved. */
static inline int dpq_topk_push(dpq_topk *t, uint64_t key)
{
    if (t->k <= DPQ_HEAP_MAX_K && t->size == t->k) {
        dpq_sift_down(t->keys, t->k, 0, key);
        t->limit = t->keys[0];
        return 1;
    }
    t->keys[t->size++] = key;
    if (t->k <= DPQ_HEAP_MAX_K && t->size == t->k) {
        dpq_heapify(t->keys, t->k);
        t->limit = t->keys[0] < t->limit ? t->keys[0] : t->limit;
        return 1;
    }
    if (t->size == 2 * t->k) {
        dpq_topk_cut(t);
        return 1;
    }
    return 0;
}

/* Leaves the k least keys, or as many as were pushed. */
static inline void dpq_topk_settle(dpq_topk *t)
{
    if (t->size > t->k)
        dpq_topk_cut(t);
}

/* Sorts the keys, least first. Returns how many there are: k, or as many as were pushed. */
static inline size_t dpq_topk_end(dpq_topk *t)
{
    dpq_topk_settle(t);
    dpq_heapify(t->keys, t->size);
    for (size_t n = t->size; n > 1; n--) {
        uint64_t last = t->keys[n - 1];
        t->keys[n - 1] = t->keys[0];
        dpq_sift_down(t->keys, n - 1, 0, last);
    }
    return t->size;
}

/* Writes the k least, sorted or not, and then +inf and UINT32_MAX in place of those that are missing. */
static inline void dpq_topk_write(dpq_topk *t, size_t k, int sorted, float *distances, uint32_t *ids)
{
    if (sorted)
        dpq_topk_end(t);
    else
        dpq_topk_settle(t);
    size_t n = t->size;
    for (size_t i = 0; i < k; i++) {
        distances[i] = i < n ? dpq_key_distance(t->keys[i]) : INFINITY;
        ids[i] = i < n ? (uint32_t)t->keys[i] : UINT32_MAX;
    }
}

#endif
