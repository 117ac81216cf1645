/* The k least of n scores, ascending, ties to the lower number; -1 where fewer are numbers. keys: scratch,
 * dpq_topk_capacity(k). */
#ifndef DPQ_NEAREST_H
#define DPQ_NEAREST_H

#include "dpq_topk.h"
#include <math.h>

static void dpq_nearest(const float *scores, size_t n, size_t k, uint64_t *keys, int64_t *out)
{
    dpq_topk top;
    float threshold = INFINITY;
    dpq_topk_begin(&top, keys, k, INFINITY);
    for (size_t i = 0; i < n; i++) {
        if (!(scores[i] <= threshold))
            continue;
        uint64_t key = dpq_key(scores[i], (uint32_t)i);
        if (key < top.limit && dpq_topk_push(&top, key))
            threshold = dpq_topk_threshold(&top);
    }
    size_t found = dpq_topk_end(&top);
    for (size_t i = 0; i < k; i++)
        out[i] = i < found ? (int64_t)(uint32_t)keys[i] : -1;
}

#endif
