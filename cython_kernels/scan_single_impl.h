/* The scan for one query, by several threads.
 *
 * In: codes, and the tables of each query. Out: every query's k nearest, as in dpq_scan.h. Three steps:
 *
 *   sample   float sums of vectors spaced over the database, from the upper edges of their terms' bins. They give the
 *            first threshold (scan_sample.h), and the range that the bytes have to resolve.
 *   scan     chunks of vectors by byte look-ups (lookups_impl.h), or in float. What passes is a hit. Of a masked view,
 *            chunks without a vector that takes part are skipped, and where few do, these are put together first.
 *   rescore  hits by their float sums from the lower edges of their bins, and those left by their distances. Where
 *            terms are stored, the first step is left out.
 *
 * All threads offer what they find to one list of the k best, and the worst of these is the threshold for all. Why the
 * result is exact: as in scan_batch_impl.h; and since keys are distinct, the k best are the same whatever the order in
 * which threads offer them.
 */
#ifndef DPQ_SCAN_SINGLE_IMPL_H
#define DPQ_SCAN_SINGLE_IMPL_H

#include "scan_sample.h"
#include "single_few_impl.h"
#include "single_ordered_impl.h"

#define SINGLE_MIN_SAMPLED_N 8192u   /* smaller databases are scanned in float, without a sample */
#define SINGLE_PIECE 16384u          /* vectors that a thread takes at a time */
/* Where fewer than one in so many vectors of a chunk take part, they are put together. */
#define SINGLE_GATHERED 7u
#define SINGLE_SHARE 4096u           /* a thread's share is a multiple of so many vectors */

/* ---- byte tables ---- */

/* Fills the first worker's byte tables, which the other threads copy: the tables are small, and what a thread finds is
 * written beside them. The edges of bins are evenly spaced, so a bin's byte needs no table: it is bin * slope / 256,
 * rounded down. The slope is rounded down to an integer too, and both together lose the one spare unit of S at most.
 * It is below 2^16 because the span of the bound, less than 256 units, includes the width of a bin. */
static void single_build_tables(single_search *search, const dpq_queries *qs, size_t q, float high)
{
    const dpq_database *db = search->db;
    dpq_lookups *look = &search->workers[0].look;
    size_t K = dpq_codewords(db);
    dpq_bound bound = dpq_bound_choose(db, dpq_low(db, qs, q), high, table_magnitude(search->table, K, db->levels), 1);
    float base = db->term_bins ? bound.base - db->term_min * bound.scale : bound.base;
    search->bound = bound;
    look->start = 0;
    look->slope = db->term_bins ? (uint16_t)((double)db->term_step * bound.scale * 256) : 0;
    for (uint32_t l = 0; l < db->levels; l++)
        for (size_t i = 0; i < K; i += DPQ_FW)
            table_bytes(look->table8 + l * 256 + i, search->table + l * K + i, dpq_f32_all(bound.scale),
                        dpq_f32_all(l ? 0.0f : base));
    lookups_finish(look, db->nbits, db->levels);
}

/* The same for codes of many levels, by some of the sampled sums. Returns 0 where there is no bound. */
static int single_build_many(single_search *search)
{
    float sums[MANY_QUARTILES], threshold = dpq_sum_within(dpq_topk_threshold(&search->top), search->constant);
    for (uint32_t i = 0; i < MANY_QUARTILES; i++)
        sums[i] = search->upper[i * (search->n_sampled / MANY_QUARTILES)];
    many_build(search->db, search->table, sums, threshold, &search->many, &search->workers[0].look);
    return search->many.bound.scale > 0;
}

static void single_begin_worker(const single_search *search, single_worker *s)
{
    const dpq_lookups *built = &search->workers[0].look;
    s->pendings = 0;
    if (search->db->allowed_before)
        gather_begin(&s->gathered, search->db, search->bytes && !search->has_many_levels,
                     atomic_load(&search->limit) < dpq_key(INFINITY, 0) ? LOOKUPS_AT_ONCE : GATHER_FIRST);
    if (search->has_many_levels)
        s->many = search->many;
    if (search->bytes && &s->look != built) {
        memcpy(s->look.table8, built->table8, lookups_levels(search->db->levels) * 256);
        s->look.slope = built->slope;
        s->look.start = built->start;
    }
}

/* ---- scanning ---- */

static void single_float_chunk(single_search *search, single_worker *s, size_t first, size_t n)
{
    float unread = 0;
    size_t found = table_hits(search->db, search->table, first, n, 0.0f, s->threshold, &unread, s->look.hits);
    single_rescore(search, s, found);
    s->counters.floated += n;
}

/* By look-ups. */
static void single_byte_scan(single_search *search, single_worker *s, size_t first, size_t end)
{
    const dpq_database *db = search->db;
    for (size_t n, v = first; v < end; v += n) {
        n = dpq_min(end - v, SINGLE_CHUNK);
        size_t found, whole = search->has_many_levels ? n : n / DPQ_QW * DPQ_QW;
        single_follow(search, s);
        if (search->has_many_levels) {
            found = many_find(db, &s->many, &s->look, v, n);
            single_rescore_columns(search, s, found);
        } else {
            found = lookups_find(db, &s->look, v, whole);
            single_rescore(search, s, found);
        }
        s->counters.bounded += whole;
        s->counters.rescored += found;
        if (whole < n)
            single_float_chunk(search, s, v + whole, n - whole);
    }
}

static void single_float_scan(single_search *search, single_worker *s, size_t first, size_t end)
{
    for (size_t n, v = first; v < end; v += n) {
        n = dpq_min(end - v, dpq_first_chunks(v, SINGLE_CHUNK));
        single_rescore_pending(search, s); /* now, not a chunk later: the first threshold is worth more than the wait */
        single_follow(search, s);
        single_float_chunk(search, s, v, n);
    }
}

/* Scans as many of the vectors put together as are waited for, or all. */
static void single_gathered_scan(single_search *search, single_worker *s, int all)
{
    gathered *g = &s->gathered;
    while (g->n >= g->at_once || (all && g->n)) {
        size_t found, n = dpq_min(g->n, g->at_once);
        if (!g->code_size)
            single_rescore_pending(search, s); /* now, as in a float scan */
        single_follow(search, s);
        if (g->code_size) {
            found = gather_look_up(g, search->db, &s->look, n);
            s->counters.bounded += n;
            s->counters.rescored += found;
        } else {
            found = gather_float_hits(g, search->db, search->table, n, s->threshold, s->look.hits);
            s->counters.floated += n;
        }
        single_rescore(search, s, found);
        gather_drop(g, n);
        g->at_once = dpq_min(2 * g->at_once, LOOKUPS_AT_ONCE);
    }
}

/* The same of a masked view; first is a multiple of DPQ_MASK_CHUNK. */
static void single_masked_scan(single_search *search, single_worker *s, size_t first, size_t end)
{
    const dpq_database *db = search->db;
    for (size_t n, v = first; v < end; v += n) {
        size_t allowed = dpq_allowed_in(db, v / DPQ_MASK_CHUNK);
        n = dpq_min(end - v, DPQ_MASK_CHUNK);
        if (!allowed)
            continue;
        if (search->bytes && allowed * SINGLE_GATHERED >= n)
            single_byte_scan(search, s, v, v + n);
        else {
            gather_chunk(&s->gathered, db, v / DPQ_MASK_CHUNK);
            single_gathered_scan(search, s, 0);
        }
    }
}

static void single_work(void *context, size_t thread)
{
    single_search *search = context;
    single_worker *s = search->workers + thread;
    single_begin_worker(search, s);
    for (size_t n, first; (n = single_take(search, thread, SINGLE_PIECE, &first));) {
        first += search->begin;
        if (search->db->allowed_before)
            single_masked_scan(search, s, first, first + n);
        else if (search->bytes)
            single_byte_scan(search, s, first, first + n);
        else
            single_float_scan(search, s, first, first + n);
    }
    if (search->db->allowed_before)
        single_gathered_scan(search, s, 1);
    single_rescore_pending(search, s);
}

/* ---- a call ---- */

/* Scans the vectors from search->begin on. taking_part: how many of them do. rank: see single_sample. */
static void single_scan_rest(single_search *search, const dpq_queries *qs, size_t q, size_t taking_part, size_t rank,
                             dpq_counters *counters)
{
    const dpq_database *db = search->db;
    float high = INFINITY;
    search->has_many_levels = many_lookups_know(db);
    search->bytes = taking_part >= SINGLE_MIN_SAMPLED_N
                    && (search->has_many_levels
                        || (DPQ_LOOKS_UP && lookups_know(db->nbits, db->code_size, db->levels) && !many_is_known(db)));
    search->bound = (dpq_bound){0, 0, 0};
    if (taking_part >= SINGLE_MIN_SAMPLED_N) {
        single_choose_sample(search, single_sample_size(db));
        high = single_sample(search, rank);
    }
    if (search->bytes && search->has_many_levels)
        search->bytes = single_build_many(search);
    else if (search->bytes)
        single_build_tables(search, qs, q, high);
    atomic_store(&search->limit, search->top.limit);
    single_share(search, db->n - search->begin, SINGLE_SHARE);
    single_run(search, single_work, counters);
}

/* Scans all codes in float, by a mask that is not counted. */
static void single_scan_uncounted(single_search *search, dpq_counters *counters)
{
    search->has_many_levels = search->bytes = 0;
    search->bound = (dpq_bound){0, 0, 0};
    atomic_store(&search->limit, search->top.limit);
    single_share(search, search->db->n, SINGLE_SHARE);
    single_run(search, single_work, counters);
}

static void single_scan_query(single_search *search, const dpq_queries *qs, size_t q, dpq_counters *counters)
{
    const dpq_database *db = search->db;
    size_t k = search->top.k;
    for (size_t t = 0; t < search->n_threads; t++)
        search->workers[t].counters = (dpq_counters){0}; /* of threads that do not come */
    search->begin = db->listed ? 0 : single_scan_ordered(search, counters);
    size_t n = db->n - search->begin, taking_part = n ? dpq_min(n, dpq_allowed_of(db)) : 0;
    if (n && !dpq_is_counted(db))
        single_scan_uncounted(search, counters);
    else if (db->listed || (taking_part <= SINGLE_FEW && !search->begin))
        single_scan_few(search, taking_part);
    else if (n) {
        /* By vectors before there is a proven threshold, and nothing to guess. */
        size_t rank = search->begin ? k : dpq_guessed_rank(single_sample_size(db), taking_part, k);
        single_scan_rest(search, qs, q, taking_part, rank, counters);
        if (rank < k && search->top.size < k && dpq_topk_threshold(&search->top) < INFINITY)
            single_scan_rest(search, qs, q, taking_part, k, counters);
    }
    for (size_t t = 0; t < search->n_threads; t++) {
        counters->bounded += search->workers[t].counters.bounded;
        counters->rescored += search->workers[t].counters.rescored;
        counters->floated += search->workers[t].counters.floated;
    }
}

static size_t single_scratch(size_t k, size_t n_threads)
{
    return 3 * DPQ_SLACK + sizeof(single_search) + n_threads * sizeof(single_worker)
           + dpq_topk_capacity(k) * sizeof(uint64_t);
}

static void scan_single(const dpq_database *db, const dpq_queries *qs, size_t k, size_t n_threads, float *distances,
                        uint32_t *ids, void *scratch, dpq_counters *counters)
{
    uintptr_t at = (uintptr_t)scratch;
    single_search *search = dpq_take(&at, sizeof *search);
    search->workers = dpq_take(&at, n_threads * sizeof *search->workers);
    uint64_t *keys = dpq_take(&at, dpq_topk_capacity(k) * sizeof *keys);
    search->db = db;
    search->n_threads = n_threads;
    dpq_lock_init(&search->lock);
    for (size_t q = 0; q < qs->nq; q++) {
        search->table = qs->tables + q * db->levels * dpq_codewords(db);
        search->constant = qs->constants[q];
        search->inner_product = qs->inner_product;
        dpq_topk_begin(&search->top, keys, k, INFINITY);
        single_scan_query(search, qs, q, counters);
        dpq_topk_write(&search->top, k, !qs->in_any_order, distances + q * k, ids + q * k);
    }
}

#endif
