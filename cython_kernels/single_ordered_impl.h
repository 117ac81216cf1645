/* The scan for one query of codes in their own order (dpq_order.h), by several threads.
 *
 * Three steps, each by the threshold of those before: the first blocks of the nearest buckets in float32; a sixteenth
 * of the buckets, the nearest, by look-ups; all others likewise, shared among threads. A better threshold not only
 * leaves less to rescore: the bytes' scale follows it. What scan_ordered_impl.h finds within the threshold is noted, and
 * scored when the bucket ends: its term and id, which only few vectors need, have been fetched by then.
 */
#ifndef DPQ_SINGLE_ORDERED_IMPL_H
#define DPQ_SINGLE_ORDERED_IMPL_H

#include "single_search_impl.h"

#define SINGLE_FIRST 512u  /* vectors scored in float32 first, and two a result */
#define SINGLE_BUCKETS 16u /* that a thread takes at a time */
#define SINGLE_BLOCKS_AHEAD 12u   /* blocks whose codes are fetched meanwhile */

static inline void single_ordered_follow(const single_search *search, single_worker *s)
{
    float distance = dpq_key_distance(atomic_load_explicit(&search->limit, memory_order_relaxed));
    s->threshold = dpq_sum_within(distance, search->constant);
}

/* Scores the noted places of a bucket, and offers what is near. */
DPQ_INLINE void single_score_places(uint32_t levels, single_search *search, single_worker *s)
{
    const dpq_order *order = search->db->order;
    uint64_t limit = atomic_load_explicit(&search->limit, memory_order_relaxed);
    size_t n = 0;
    for (size_t h = 0; h < s->pendings; h++) {
        uint32_t place = s->pending[h], v = order->ids[place];
        float sum = ordered_sum(levels, order, &s->in, place);
        s->keys[n] = dpq_result_key(dpq_distance(sum, search->constant, search->inner_product), v);
        n += (s->keys[n] < limit) & (v != DPQ_ORDER_NOBODY) && dpq_is_allowed(search->db, v);
    }
    s->counters.rescored += s->pendings;
    s->pendings = 0;
    if (n) {
        single_offer(search, s->keys, n);
        single_ordered_follow(search, s);
    }
}

/* Scans blocks of a bucket, from block number `first` to before number `end` of it: by look-ups if search->bytes says
 * so, or in float32. What is near is scored in the end, when it has been fetched. */
DPQ_INLINE void single_blocks_of(uint32_t levels, uint32_t known, single_search *search, single_worker *s,
                                 uint32_t bucket, size_t first, size_t end)
{
    const dpq_order *order = search->db->order;
    const ordered_query *q = &search->ordered;
    float reach = search->bytes ? ordered_reach(q, bucket, s->threshold) : 0, limit = INFINITY;
    ordered_enter(order, q, bucket, 0, known, &s->in);
    for (size_t block = order->starts[bucket] + first; block < order->starts[bucket] + end; block++) {
        uint64_t within = UINT64_MAX;
        if (search->bytes)
            limit = reach - order->block_terms[block] * q->scale;
        if (limit < 0)
            break;
        for (uint32_t l = 0; l < levels; l++)
            __builtin_prefetch(order->planes + ((block + SINGLE_BLOCKS_AHEAD) * levels + l) * DPQ_ORDER_BLOCK, 0, 2);
        if (limit < 255)
            within = ordered_within(levels, known, &s->in, order->planes + block * DPQ_ORDER_BLOCK * levels,
                                    (uint8_t)limit);
        if (within)
            s->pendings += ordered_note(order, block, within, s->pending + s->pendings);
        if (s->pendings > SINGLE_CHUNK - DPQ_ORDER_BLOCK)
            single_score_places(levels, search, s);
    }
    if (s->pendings)
        single_score_places(levels, search, s);
}

static void single_blocks(single_search *search, single_worker *s, uint32_t bucket, size_t first, size_t end)
{
    const dpq_order *order = search->db->order;
    ORDERED_BY_LEVELS(single_blocks_of, order->levels, order->known, search, s, bucket, first, end);
}

static void single_ordered_work(void *context, size_t thread)
{
    single_search *search = context;
    const dpq_order *order = search->db->order;
    single_worker *s = search->workers + thread;
    s->pendings = 0;
    ordered_enter(order, &search->ordered, 0, order->known, order->levels, &s->in);
    for (size_t n, first; (n = single_take(search, thread, SINGLE_BUCKETS, &first));)
        for (size_t b = first; b < first + n; b++)
            if (search->ordered.lows[b] + order->bucket_terms[b] < INFINITY) {
                single_ordered_follow(search, s);
                single_blocks(search, s, (uint32_t)b, 0, dpq_order_blocks(order, b));
            }
}

/* Scores the first blocks of the nearest buckets in float32, for a first threshold. Returns the bucket that was not
 * scored whole, and *first, the first of its blocks that was not; of the others, q->lows becomes +inf. */
static uint32_t single_first_blocks(single_search *search, single_worker *s, size_t *first)
{
    const dpq_order *order = search->db->order;
    size_t wanted = (SINGLE_FIRST + 2 * search->top.k + DPQ_ORDER_BLOCK - 1) / DPQ_ORDER_BLOCK;
    float bound;
    for (;;) {
        uint32_t bucket = ordered_nearest(order, &search->ordered, &bound);
        size_t blocks = bound < INFINITY ? dpq_order_blocks(order, bucket) : 0;
        *first = 0;
        do {
            size_t n = dpq_min(blocks - *first, wanted);
            single_blocks(search, s, bucket, *first, *first + n);
            *first += n;
            wanted = wanted > n ? wanted - n : search->top.size < search->top.k; /* one by one, with a selector */
        } while (wanted && *first < blocks);
        if (!blocks || !wanted)
            return bucket;
        search->ordered.lows[bucket] = INFINITY;
    }
}

/* Whether codes are scanned in their order: not if that takes longer, nor if few take part in a masked view, nor if such
 * a view has codes that are not in the order, as a mask is looked at from its beginning. */
static inline int single_may_be_ordered(const dpq_database *db)
{
    if (db->levels > DPQ_MOST_ORDERED)
        return 0;
    return !db->allowed || (db->order->n == db->n && dpq_allowed_of(db) * SINGLE_SPARSE >= db->n);
}

/* Scans the codes that have an order. Returns how many these are: 0 if there is no bound. */
static size_t single_scan_ordered(single_search *search, dpq_counters *counters)
{
    const dpq_order *order = search->db->order;
    ordered_query *q = &search->ordered;
    single_worker *s = search->workers;
    float bound;
    size_t first;
    if (!order || !single_may_be_ordered(search->db) || !ordered_begin(order, search->table, q))
        return 0;
    search->bytes = 0;
    s->pendings = 0;
    atomic_store(&search->limit, search->top.limit);
    single_ordered_follow(search, s);
    ordered_enter(order, q, 0, order->known, order->levels, &s->in);
    uint32_t bucket = single_first_blocks(search, s, &first);
    if (search->top.k > DPQ_HEAP_MAX_K && search->top.size >= search->top.k)
        dpq_topk_cut(&search->top);
    atomic_store(&search->limit, search->top.limit);
    single_ordered_follow(search, s);
    search->bytes = 1;
    ordered_nearest(order, q, &bound);
    if (bound < INFINITY) { /* the nearest buckets, for a better one */
        float nearby = ordered_share(order, q, bound, s->threshold);
        ordered_scale(order, q, s->threshold, bound);
        single_blocks(search, s, bucket, first, dpq_order_blocks(order, bucket));
        q->lows[bucket] = INFINITY;
        for (uint32_t b = 0; b < dpq_order_buckets(order); b++)
            if (q->lows[b] + order->bucket_terms[b] <= nearby) {
                single_blocks(search, s, b, 0, dpq_order_blocks(order, b));
                q->lows[b] = INFINITY;
            }
        ordered_nearest(order, q, &bound);
    }
    if (bound < INFINITY) {
        ordered_scale(order, q, s->threshold, bound);
        single_share(search, dpq_order_buckets(order), SINGLE_BUCKETS);
        single_run(search, single_ordered_work, counters);
    }
    counters->ordered += order->n;
    return order->n;
}

#endif
