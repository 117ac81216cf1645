/* Choosing among the scores of a few thousand things, such as the centres of inverted lists. */
#ifndef DPQ_LEAST_SCORES_H
#define DPQ_LEAST_SCORES_H

#include "dpq_topk.h"

/* numbers = of n scores the k least, least first, the lower number first where scores are equal; -1 where k > n. keys:
 * scratch, [dpq_topk_capacity(k)]. */
static void dpq_least_scores(const float *scores, size_t n, size_t k, uint64_t *keys, int64_t *numbers)
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
        numbers[i] = i < found ? (int64_t)(uint32_t)keys[i] : -1;
}

#endif
