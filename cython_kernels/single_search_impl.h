/* A search of one query, by several threads: what they share, and how they share the work.
 *
 * All threads offer what they find to one list of the k best, and the worst of these is the threshold for all. Why the
 * result is exact: since keys are distinct, the k best are the same whatever the order in which threads offer them.
 */
#ifndef DPQ_SINGLE_SEARCH_IMPL_H
#define DPQ_SINGLE_SEARCH_IMPL_H

#include "dpq_system.h"
#include "dpq_threads.h"
#include "dpq_topk.h"
#include "gather_impl.h"
#include "kernels.h"
#include "lookups_impl.h"
#include "many_lookups_impl.h"
#include "scan_ordered_impl.h"
#include <stdatomic.h>

#define SINGLE_CHUNK LOOKUPS_AT_ONCE /* vectors between two updates of the limit */
#define SINGLE_SAMPLE 1024u
#define SINGLE_FEW 2048u /* vectors of which all are sampled, at most */
/* Where fewer than one in so many vectors take part, codes are not scanned in their order. */
#define SINGLE_SPARSE 12u /* measured, with masks that change from search to search */

/* What one thread works with. */
typedef struct {
    dpq_lookups look;
    uint32_t pending[SINGLE_CHUNK]; /* hits of an earlier chunk, whose distances are to be computed */
    uint64_t keys[SINGLE_CHUNK];    /* their keys, for dpq_topk */
    size_t pendings;
    float threshold; /* of float sums */
    many_query many; /* where levels are many */
    gathered gathered;
    ordered_bucket in; /* where codes have an order */
    dpq_counters counters;
    _Atomic size_t next; /* of the thread's share, the first vector that no thread has taken */
    size_t end;          /* of the share */
} __attribute__((aligned(64))) single_worker;

/* What the threads of one search share. */
typedef struct {
    const dpq_database *db;
    const float *table;
    float constant; /* A of dpq_scan.h */
    int inner_product;
    size_t n_threads;
    single_worker *workers; /* [n_threads] */
    int bytes;              /* whether vectors are scanned by look-ups */
    dpq_bound bound;
    int has_many_levels;    /* then bytes are those of `many`, and limits of 16 bits */
    many_query many;        /* but for the limit, which every worker has */
    size_t begin;           /* vectors before this one have been scanned in their order */
    ordered_query ordered;
    size_t n_sampled;
    uint32_t sampled[SINGLE_FEW + 64]; /* + 64: mask_all writes ahead */
    float upper[SINGLE_FEW];           /* upper bounds of the sampled vectors' sums */
    dpq_topk top;               /* if there are several threads, changed with the lock held */
    dpq_lock lock;
    _Atomic uint64_t limit; /* top.limit, read by all threads without the lock */
} single_search;

/* How many vectors are sampled. Of many levels fewer, since each takes longer; mask_sample knows one number only. */
static inline size_t single_sample_size(const dpq_database *db)
{
    return many_is_known(db) && !db->allowed ? SINGLE_SAMPLE / 2 : SINGLE_SAMPLE;
}

static void single_offer(single_search *search, const uint64_t *keys, size_t n)
{
    if (search->n_threads > 1)
        dpq_lock_take(&search->lock);
    for (size_t i = 0; i < n; i++)
        if (keys[i] < search->top.limit)
            dpq_topk_push(&search->top, keys[i]);
    atomic_store_explicit(&search->limit, search->top.limit, memory_order_relaxed);
    if (search->n_threads > 1)
        dpq_lock_give(&search->lock);
}

/* ---- shares of the work ---- */

/* Gives every thread an even share of n vectors, or of n sampled ones, in multiples of `unit`. A thread begins with
 * its own share: its core's cache may still hold these codes from the search before. */
static void single_share(single_search *search, size_t n, size_t unit)
{
    size_t units = (n + unit - 1) / unit, n_threads = search->n_threads;
    for (size_t t = 0, end = 0; t < n_threads; t++) {
        single_worker *s = search->workers + t;
        atomic_store_explicit(&s->next, end, memory_order_relaxed);
        end = units * (t + 1) / n_threads * unit;
        s->end = end = end < n ? end : n;
    }
}

/* Takes the next `most` of a thread's own share, or if that is used up of another's. Returns how many there are. */
static size_t single_take(single_search *search, size_t thread, size_t most, size_t *first)
{
    for (size_t i = 0; i < search->n_threads; i++) {
        single_worker *s = search->workers + (thread + i) % search->n_threads;
        if (atomic_load_explicit(&s->next, memory_order_relaxed) >= s->end)
            continue;
        *first = atomic_fetch_add_explicit(&s->next, most, memory_order_relaxed);
        if (*first < s->end)
            return dpq_min(s->end - *first, most);
    }
    return 0;
}

static inline void single_run(single_search *search, dpq_job job, dpq_counters *counters)
{
    size_t threads = dpq_run_together(search->n_threads, job, search);
    counters->threads = threads > counters->threads ? threads : counters->threads;
}

#endif
