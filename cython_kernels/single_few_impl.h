/* What the scan of one query does with single vectors: it samples them, rescores hits, and scores few.
 *
 * In: a search (single_search_impl.h), and numbers of vectors. Out: upper bounds, a first threshold, distances. Of few
 * vectors, all distances are computed where their terms are stored; otherwise first the upper bounds of all, by the
 * bins of their terms, so that hardly any but results need their cross terms. Why the result is exact: nothing is left
 * out but what a threshold of scan_single_impl.h leaves out.
 */
#ifndef DPQ_SINGLE_FEW_IMPL_H
#define DPQ_SINGLE_FEW_IMPL_H

#include "scan_sample.h"
#include "single_search_impl.h"

#define SINGLE_SAMPLE_PIECE 128u /* of the sample, that a thread takes at a time */
#define SINGLE_AHEAD 16u         /* sampled vectors that are fetched before their turn */
#define SINGLE_LISTED_AHEAD 32u  /* the same of vectors that are listed */

/* ---- rescoring ---- */

/* Takes over the threshold that all threads together have reached. */
static inline void single_follow(const single_search *search, single_worker *s)
{
    float distance = dpq_key_distance(atomic_load_explicit(&search->limit, memory_order_relaxed));
    s->threshold = dpq_sum_within(distance, search->constant);
    if (search->has_many_levels)
        s->many.limit = many_limit(&search->many.bound, s->threshold);
    else
        s->look.limit = dpq_bound_limit(&search->bound, s->threshold);
}

/* The sum of vector v. */
static float single_sum(const single_search *search, uint32_t v)
{
    uint16_t code[DPQ_MAX_LEVELS];
    dpq_unpack(search->db, v, code);
    return table_sum(search->db, search->table, 1, code, dpq_term(search->db, v, code));
}

/* The sums of n <= TABLE_TOGETHER pending vectors from number `first` on. */
static void single_pending_sums(const single_search *search, const single_worker *s, size_t first, size_t n,
                                float *sums)
{
    int has_terms = dpq_has_terms(search->db);
    for (size_t i = 0; i < n; i++) {
        uint32_t v = s->pending[first + i];
        sums[i] = has_terms ? dpq_stored_term(search->db, v) : single_sum(search, v);
    }
    if (has_terms)
        table_vector_sums(search->db, search->table, s->pending + first, n, sums);
}

/* Appends those of n <= TABLE_TOGETHER vectors to s->keys that may be results. Returns how many keys there are. */
static size_t single_keep(const single_search *search, single_worker *s, const uint32_t *vectors, const float *sums,
                          size_t n, size_t keys)
{
    uint64_t limit = atomic_load_explicit(&search->limit, memory_order_relaxed);
    for (size_t i = 0; i < n; i++) {
        float distance = dpq_distance(sums[i], search->constant, search->inner_product);
        s->keys[keys] = dpq_result_key(distance, vectors[i]);
        keys += s->keys[keys] < limit;
    }
    return keys;
}

static void single_offer_kept(single_search *search, single_worker *s, size_t keys)
{
    if (!keys)
        return;
    single_offer(search, s->keys, keys);
    single_follow(search, s);
}

/* Computes the distances of pending vectors. */
static void single_rescore_pending(single_search *search, single_worker *s)
{
    size_t keys = 0;
    for (size_t h = 0; h < s->pendings; h += TABLE_TOGETHER) {
        float sums[TABLE_TOGETHER];
        size_t some = dpq_min(s->pendings - h, TABLE_TOGETHER);
        single_pending_sums(search, s, h, some, sums);
        keys = single_keep(search, s, s->pending + h, sums, some, keys);
    }
    s->pendings = 0;
    single_offer_kept(search, s, keys);
}

/* Computes the distances of hits of codes of many levels at once, by their columns: these are still in the cache, where
 * the codes themselves would have to be fetched. */
static void single_rescore_columns(single_search *search, single_worker *s, size_t hits)
{
    size_t keys = 0, n = 0;
    for (size_t h = 0; h < hits; h++) {
        s->look.hits[n] = s->look.hits[h];
        n += dpq_is_allowed(search->db, s->look.hits[h]);
    }
    for (size_t h = 0; h < n; h += TABLE_TOGETHER) {
        float sums[TABLE_TOGETHER];
        size_t some = dpq_min(n - h, TABLE_TOGETHER);
        many_column_sums(search->db, search->table, s->look.hits + h, some, sums);
        keys = single_keep(search, s, s->look.hits + h, sums, some, keys);
    }
    single_offer_kept(search, s, keys);
}

/* Finishes the hits of the chunk before, and looks at the lower bounds in float of this one's. Those within the
 * threshold become pending: the next chunk is scanned while their cross terms are fetched. */
static void single_rescore(single_search *search, single_worker *s, size_t hits)
{
    const dpq_database *db = search->db;
    single_rescore_pending(search, s);
    for (size_t h = 0; h < hits; h++) {
        uint16_t code[DPQ_MAX_LEVELS];
        uint32_t v = s->look.hits[h];
        if (!dpq_is_allowed(db, v))
            continue;
        if (dpq_has_terms(db)) {
            dpq_prefetch_vector(db, v);
            s->pending[s->pendings++] = v;
            continue;
        }
        if (!(table_vector_sum(db, search->table, v, dpq_term_bound(db, v, 0)) <= s->threshold))
            continue;
        dpq_unpack(db, v, code);
        dpq_prefetch_term(db, v, code);
        s->pending[s->pendings++] = v;
    }
}

/* ---- the sample ---- */

/* Upper bounds of n sampled vectors from number `first` on. */
DPQ_INLINE void single_upper_of_shape(uint32_t nbits, uint32_t levels, dpq_database db, single_search *search,
                                      size_t first, size_t n)
{
    db.nbits = nbits;
    db.levels = levels;
    for (size_t i = first; i < first + n; i++) {
        uint16_t code[DPQ_MAX_LEVELS];
        dpq_prefetch_vector(&db, search->sampled[dpq_min(i + SINGLE_AHEAD, search->n_sampled - 1)]);
        dpq_unpack(&db, search->sampled[i], code);
        search->upper[i] = table_sum(&db, search->table, 1, code, dpq_term_bound(&db, search->sampled[i], 1));
    }
}

/* The same, where they are the sums themselves: side by side. */
static void single_upper_of_terms(single_search *search, size_t first, size_t n)
{
    for (size_t i = first; i < first + n; i += TABLE_TOGETHER) {
        size_t some = dpq_min(first + n - i, TABLE_TOGETHER);
        float sums[TABLE_TOGETHER];
        for (size_t j = 0; j < some; j++) {
            dpq_prefetch_vector(search->db, search->sampled[dpq_min(i + j + SINGLE_AHEAD, search->n_sampled - 1)]);
            sums[j] = dpq_stored_term(search->db, search->sampled[i + j]);
        }
        table_vector_sums(search->db, search->table, search->sampled + i, some, sums);
        memcpy(search->upper + i, sums, some * sizeof *sums);
    }
}

static void single_sample_pieces(void *context, size_t thread)
{
    single_search *search = context;
    const dpq_database *db = search->db;
    for (size_t n, first; (n = single_take(search, thread, SINGLE_SAMPLE_PIECE, &first));)
        if (!db->term_bins && dpq_has_terms(db))
            single_upper_of_terms(search, first, n);
        else
            DPQ_BY_SHAPE(single_upper_of_shape, db->nbits, db->levels, *db, search, first, n);
}

/* Chooses the n vectors from search->begin on that are sampled: single_sample_size, or all of few that take part. */
static void single_choose_sample(single_search *search, size_t n)
{
    const dpq_database *db = search->db;
    size_t stride = n ? (db->n - search->begin) / n : 0;
    search->n_sampled = n;
    if (db->listed)
        memcpy(search->sampled, db->listed, n * sizeof *db->listed);
    else if (!db->allowed)
        for (size_t i = 0; i < n; i++)
            search->sampled[i] = (uint32_t)(search->begin + dpq_sampled(i, stride));
    else if (n == SINGLE_SAMPLE)
        mask_sample(db, SINGLE_SAMPLE, search->sampled);
    else
        mask_all(db, search->sampled);
}

/* Computes the upper bounds of the sample, and returns the greatest one. Begins search->top with the upper bound of a
 * rank as threshold, unless it has one by vectors before. */
static float single_sample(single_search *search, size_t rank)
{
    size_t k = search->top.k, n = search->n_sampled;
    float high = -INFINITY, limit = search->begin ? -INFINITY : INFINITY; /* pushes are in vain from here on */
    single_share(search, n, SINGLE_SAMPLE_PIECE);
    dpq_run_together(search->n_threads, single_sample_pieces, search);
    if (!search->begin)
        dpq_topk_begin(&search->top, search->top.keys, rank, INFINITY);
    for (size_t i = 0; i < n; i++) {
        float upper = search->upper[i];
        high = upper > high ? upper : high;
        if (upper < limit && dpq_topk_push(&search->top, dpq_key(upper, search->sampled[i])))
            limit = dpq_topk_threshold(&search->top);
    }
    if (search->begin)
        return high;
    float threshold = INFINITY;
    if (dpq_topk_end(&search->top) == rank)
        threshold = dpq_distance(dpq_key_distance(search->top.keys[rank - 1]), search->constant, search->inner_product);
    dpq_topk_begin(&search->top, search->top.keys, k, threshold);
    return high;
}

/* ---- few ---- */

/* Few vectors whose terms are stored: all are scored. Most of the time goes into fetching codes and terms. */
static void single_score_few(single_search *search, const uint32_t *vectors, size_t n)
{
    const dpq_database *db = search->db;
    for (size_t i = 0; i < n; i += TABLE_TOGETHER) {
        float sums[TABLE_TOGETHER];
        size_t some = dpq_min(n - i, TABLE_TOGETHER);
        for (size_t j = 0; j < some; j++) {
            uint32_t ahead = vectors[dpq_min(i + j + SINGLE_LISTED_AHEAD, n - 1)];
            __builtin_prefetch(dpq_row(db, ahead));
            if (db->terms)
                __builtin_prefetch(db->terms + ahead);
            sums[j] = dpq_stored_term(db, vectors[i + j]);
        }
        table_vector_sums(db, search->table, vectors + i, some, sums);
        for (size_t j = 0; j < some; j++) {
            float distance = dpq_distance(sums[j], search->constant, search->inner_product);
            uint64_t key = dpq_result_key(distance, vectors[i + j]);
            if (key < search->top.limit)
                dpq_topk_push(&search->top, key);
        }
    }
    search->workers->counters.floated += n;
}

/* Few vectors, none of which has been looked at: by the upper bounds of all, hardly any but results are rescored. */
static void single_scan_few(single_search *search, size_t n)
{
    single_worker *s = search->workers;
    if (dpq_has_terms(search->db) && search->db->listed) {
        single_score_few(search, search->db->listed, n);
        return;
    }
    single_choose_sample(search, n);
    if (dpq_has_terms(search->db)) {
        single_score_few(search, search->sampled, n);
        return;
    }
    search->has_many_levels = search->bytes = 0;
    search->bound = (dpq_bound){0, 0, 0};
    if (n)
        single_sample(search, search->top.k);
    atomic_store(&search->limit, search->top.limit);
    s->pendings = 0;
    single_follow(search, s);
    for (size_t at = 0; at < n; at += SINGLE_CHUNK) {
        size_t hits = dpq_min(n - at, SINGLE_CHUNK);
        memcpy(s->look.hits, search->sampled + at, hits * sizeof *s->look.hits);
        single_rescore(search, s, hits);
    }
    single_rescore_pending(search, s);
    s->counters.floated += n;
}

#endif
