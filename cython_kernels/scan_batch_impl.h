/* The scan for many queries, DPQ_QW at a time.
 *
 * In: codes, and the tables of the queries. Out: every query's k nearest, as in dpq_scan.h. The steps for one group:
 *
 *   sample     float sums of vectors spaced over the database, so that its order does not matter. They begin with the
 *              upper edges of the terms' bins. They give every query a first threshold (scan_sample.h), and the range
 *              that its bytes have to resolve.
 *   byte scan  of a chunk of vectors: those whose byte sum is within some query's limit are hits. They are rescored,
 *              and the limits are tightened. Where results are many, some chunks come first, and give a threshold that
 *              is guessed better than a sample could (batch_guess).
 *   float scan of the strips of queries for which bytes let too many vectors through, and of small databases
 *
 * Why the result is exact. A neighbour is always a hit (batch_sums_impl.h). A hit is dropped only if its float sum
 * from the lower edge of its term's bin, a lower bound of its sum, exceeds the threshold of sums; this needs none of
 * the L(L-1)/2 cross terms. What is left gets its distance computed in the order of dpq_scan.h. The first threshold is
 * exceeded by none of the k nearest either, where k vectors are found within it; otherwise the group is scanned again.
 */
#ifndef DPQ_SCAN_BATCH_IMPL_H
#define DPQ_SCAN_BATCH_IMPL_H

#include "batch_rescore_impl.h"
#include "kernels.h"

#define BATCH_SPAN 4096u           /* vectors between two choices of byte or float scan */
#define BATCH_MIN_SAMPLED_N 16384u /* smaller databases are scanned in float, without a sample */
#define BATCH_LEAST_SAMPLE 4096u
#define BATCH_SAMPLED_A_RESULT 8u
#define BATCH_BUCKETS_A_RANK 4u
#define BATCH_EARLY 8u        /* of so many chunks one is scanned first */
#define BATCH_EARLY_K 128u    /* results from which on early chunks pay: measured; at 100 they cost 3 to 5 % */
#define BATCH_COUNTED 4096u   /* early chunks that are told apart */
/* More hits of a strip in a span: float is faster. Measured: so it is at twice or half; a quarter costs 7 % at k =
 * 1000. */
#define BATCH_MAX_HITS_IN_SPAN (BATCH_SPAN * 2)
#define BATCH_FLOAT_SPANS 3u /* then bytes are tried again: thresholds have fallen by then */

static inline uint64_t batch_lane_mask(uint32_t lanes)
{
    return lanes >= 64 ? ~0ull : (1ull << lanes) - 1;
}

/* ---- scanning ---- */

static void batch_byte_chunk(const dpq_database *db, batch_group *g, batch_workspace *w, size_t first, size_t n)
{
    uint64_t live = 0;
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++)
        if (!g->float_spans[strip])
            live |= 0xffffull << (strip * DPQ_FW);
    live &= batch_lane_mask(g->lanes);
    if (!live)
        return;
    if (g->has_many_levels)
        many_sums(db, g, w, first, n);
    else
        batch_byte_sums(db, g, w, first, n);
    batch_rescore(db, g, w, batch_collect(w, first, n, live));
}

static void batch_float_chunk(const dpq_database *db, batch_group *g, batch_workspace *w, size_t first, size_t n)
{
    int unpacked = 0;
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++) {
        if (!g->float_spans[strip])
            continue;
        if (!unpacked++)
            batch_unpack(db, w, first, 1, n, 0);
        batch_float_sums(db, g, w, strip, n);
        size_t found = batch_collect(w, first, n, batch_lane_mask(g->lanes - strip * DPQ_FW) & 0xffff);
        for (size_t h = 0; h < found; h++)
            w->hits.queries[h] <<= strip * DPQ_FW;
        batch_rescore(db, g, w, found);
    }
}

/* Whether a chunk is among those that are scanned first: one of every BATCH_EARLY. */
static inline int batch_is_early(size_t chunk)
{
    return dpq_sampled(chunk / BATCH_EARLY, BATCH_EARLY) == chunk;
}

/* Which chunks of a span are scanned. */
typedef enum { BATCH_ALL, BATCH_THE_EARLY, BATCH_THE_OTHERS } batch_which;

/* Scans those of n vectors from `first` on, every strip by bytes or in float, and chooses which for the next span.
 * Returns how many they are. */
static size_t batch_scan_span(const dpq_database *db, batch_group *g, batch_workspace *w, size_t first, size_t n,
                              batch_which which, dpq_counters *counters)
{
    size_t scanned = 0;
    memset(g->hits_in_span, 0, sizeof g->hits_in_span);
    for (size_t rows, end = first + n, v = first; v < end; v += rows) {
        rows = dpq_min(dpq_first_chunks(db->n >= BATCH_MIN_SAMPLED_N ? BATCH_CHUNK : v, BATCH_CHUNK), end - v);
        if (which != BATCH_ALL && batch_is_early(v / BATCH_CHUNK) != (which == BATCH_THE_EARLY))
            continue;
        scanned += rows;
        if (dpq_none_allowed(db, v, rows))
            continue;
        batch_byte_chunk(db, g, w, v, rows);
        batch_float_chunk(db, g, w, v, rows);
    }
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++) {
        uint64_t pairs = scanned * dpq_min(DPQ_FW, g->lanes - strip * DPQ_FW);
        if (g->float_spans[strip]) {
            g->float_spans[strip] -= g->float_spans[strip] != UINT32_MAX;
            counters->floated += pairs;
            continue;
        }
        counters->bounded += pairs;
        counters->rescored += g->hits_in_span[strip];
        if (g->hits_in_span[strip] > BATCH_MAX_HITS_IN_SPAN)
            g->float_spans[strip] = BATCH_FLOAT_SPANS;
    }
    return scanned;
}

/* Finishes all hits. */
static void batch_finish(const dpq_database *db, batch_group *g, batch_workspace *w)
{
    batch_rescore(db, g, w, 0);
    for (uint32_t q = 0; q < g->lanes; q++)
        batch_score_noted(db, g, q);
}

/* ---- the sample ---- */

/* Whether early chunks give thresholds. */
static int batch_has_early(const dpq_database *db, size_t k)
{
    return db->n >= BATCH_MIN_SAMPLED_N && !db->allowed && k >= BATCH_EARLY_K;
}

/* A smaller sample leaves more hits to the scan, in proportion to k; a larger one costs more than these hits. With
 * early chunks it has less to do: one hit in BATCH_EARLY is its own. proven: no guess will do. */
static size_t batch_sample_size(const dpq_database *db, size_t k, int proven)
{
    size_t wanted = proven || !batch_has_early(db, k) ? BATCH_SAMPLED_A_RESULT * k : 0;
    size_t size = dpq_min(wanted < BATCH_LEAST_SAMPLE ? BATCH_LEAST_SAMPLE : wanted, db->n / 8);
    return (size + BATCH_CHUNK - 1) / BATCH_CHUNK * BATCH_CHUNK;
}

/* About a tenth of the nearest sampled vectors, up to a rank, share a bucket with a nearer one and go unseen. */
static size_t batch_buckets(const dpq_database *db, size_t k, size_t rank)
{
    return db->n < BATCH_MIN_SAMPLED_N
               ? 0
               : dpq_min(BATCH_BUCKETS_A_RANK * rank, batch_sample_size(db, k, rank == k));
}

/* The least of the buckets' least sums but for rank - 1: as many buckets, and so at least as many vectors, are that
 * near. A heap of all sampled distances would give a threshold a few ranks tighter, for several times the work. */
static float batch_sample_threshold(batch_group *g, uint32_t q, size_t rank)
{
    float threshold = -INFINITY;
    if (g->buckets < rank)
        return INFINITY;
    for (size_t i = 0; i < g->buckets; i++)
        g->order[i] = dpq_key(g->least[i * DPQ_QW + q], (uint32_t)i);
    dpq_select(g->order, g->buckets, rank);
    for (size_t i = 0; i < rank; i++)
        threshold = fmaxf(threshold, dpq_key_distance(g->order[i]));
    return threshold;
}

/* Every query's first threshold is that of a rank in the sample. */
static void batch_sample(const dpq_database *db, const dpq_queries *qs, batch_group *g, batch_workspace *w, size_t k,
                         size_t rank)
{
    size_t size = batch_sample_size(db, k, rank == k), stride = db->n / size;
    for (size_t i = 0; i < g->buckets * DPQ_QW; i++)
        g->least[i] = INFINITY;
    for (size_t i = 0; i < size; i += BATCH_CHUNK) {
        batch_unpack(db, w, i, stride, BATCH_CHUNK, 1);
        for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++)
            batch_extremes(db, g, w, strip, i, stride);
    }
    if (g->bytes && !g->has_many_levels) {
        batch_choose_bounds(db, qs, g);
        for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++)
            batch_fill_rows8(db, g, strip);
    }
    for (uint32_t q = 0; q < g->lanes; q++) {
        float threshold = dpq_distance(batch_sample_threshold(g, q, rank), g->constant[q], g->inner_product);
        dpq_topk_begin(&g->top[q], g->top[q].keys, k, threshold);
        g->threshold[q] = dpq_sum_within(dpq_topk_threshold(&g->top[q]), g->constant[q]);
    }
    if (g->has_many_levels)
        many_begin(db, g, w);
    for (uint32_t q = 0; q < g->lanes; q++)
        batch_follow(g, q);
}

/* ---- early chunks ---- */

/* Lowers a query's threshold to a guess by what `early` of n vectors gave, whole chunks. Near vectors may stand in few
 * chunks, of which more than their share may be early: so the root of the sum of the squares of how many a chunk has
 * says how far the guess may be off. What is farther is let go of. */
static void batch_guess(batch_group *g, uint32_t q, size_t early, size_t n, size_t k)
{
    dpq_topk *top = &g->top[q];
    size_t some = dpq_guessed_rank(early, n, k), squares = 0;
    uint16_t counts[BATCH_COUNTED] = {0};
    if (some >= k || top->size < some)
        return;
    dpq_select(top->keys, top->size, some);
    for (size_t i = 0; i < some; i++)
        counts[(uint32_t)top->keys[i] / (BATCH_CHUNK * BATCH_EARLY) % BATCH_COUNTED]++;
    for (size_t i = 0; i < BATCH_COUNTED; i++)
        squares += (size_t)counts[i] * counts[i];
    size_t rank = dpq_rank_with_spread((double)k * (double)early / (double)n, (double)squares);
    if (rank >= k || top->size < rank)
        return;
    dpq_select(top->keys, top->size, rank);
    top->limit = 0;
    for (size_t i = 0; i < rank; i++)
        top->limit = top->keys[i] >= top->limit ? top->keys[i] + 1 : top->limit;
    top->size = (uint32_t)rank;
    batch_follow(g, q);
}

/* Scans the early chunks. */
static void batch_scan_early(const dpq_database *db, batch_group *g, batch_workspace *w, size_t k,
                             dpq_counters *counters)
{
    size_t span = BATCH_SPAN * BATCH_EARLY, early = 0;
    for (size_t v = 0; v < db->n; v += span)
        early += batch_scan_span(db, g, w, v, dpq_min(span, db->n - v), BATCH_THE_EARLY, counters);
    batch_finish(db, g, w);
    for (uint32_t q = 0; q < g->lanes; q++)
        batch_guess(g, q, early, db->n, k);
}

/* ---- a call ---- */

/* rank: see batch_sample. */
static void batch_scan_group(const dpq_database *db, const dpq_queries *qs, batch_group *g, batch_workspace *w,
                             size_t k, size_t rank, dpq_counters *counters)
{
    g->buckets = batch_buckets(db, k, rank);
    batch_interleave(db, qs, g);
    w->pendings = 0;
    memset(w->grid, 0, sizeof w->grid);
    memset(g->noted.n, 0, sizeof g->noted.n);
    g->noted.at_once = batch_noted_at_once(&g->noted, k);
    for (uint32_t q = 0; q < DPQ_QW; q++) {
        dpq_topk_begin(&g->top[q], g->keys + q * dpq_topk_capacity(k), k, INFINITY);
        g->threshold[q] = INFINITY;
        g->constant[q] = q < g->lanes ? qs->constants[g->first + q] : 0.0f;
        g->high[q] = -INFINITY;
        g->bound[q] = (dpq_bound){0, 0, 0};
    }
    g->has_many_levels = many_is_known(db);
    g->tables = qs->tables + g->first * batch_rows(db);
    g->bytes = g->buckets && (g->has_many_levels || db->levels <= DPQ_BOUND_MOST_LEVELS);
    g->inner_product = qs->inner_product;
    memset(g->float_spans, g->bytes ? 0 : 0xff, sizeof g->float_spans);
    if (g->buckets)
        batch_sample(db, qs, g, w, k, rank);
    batch_which which = BATCH_ALL;
    if (rank < k && batch_has_early(db, k)) {
        batch_scan_early(db, g, w, k, counters);
        which = BATCH_THE_OTHERS;
    }
    for (size_t v = 0; v < db->n; v += BATCH_SPAN)
        batch_scan_span(db, g, w, v, dpq_min(BATCH_SPAN, db->n - v), which, counters);
    batch_finish(db, g, w);
}

/* Whether a query has fewer than k results although its threshold left vectors out. */
static int batch_has_missed(const batch_group *g, size_t k)
{
    int missed = 0;
    for (uint32_t q = 0; q < g->lanes; q++)
        missed |= g->top[q].size < k && dpq_topk_threshold(&g->top[q]) < INFINITY;
    return missed;
}

/* Cuts scratch memory from address `at` on, and returns where it ends. */
static uintptr_t batch_layout(const dpq_database *db, size_t k, uintptr_t at, batch_group *g, batch_workspace **w)
{
    size_t rows = batch_rows(db), buckets = batch_buckets(db, k, k);
    *w = dpq_take(&at, sizeof **w);
    g->rows32 = dpq_take(&at, rows * DPQ_QW * sizeof *g->rows32);
    g->rows8 = dpq_take(&at, (rows + 256) * DPQ_QW);
    g->keys = dpq_take(&at, dpq_topk_capacity(k) * DPQ_QW * sizeof *g->keys);
    g->least = dpq_take(&at, buckets * DPQ_QW * sizeof *g->least);
    g->order = dpq_take(&at, buckets * sizeof *g->order);
    batch_layout_noted(db, &at, &g->noted);
    g->many.least = dpq_take(&at, many_is_known(db) ? db->levels * DPQ_QW * sizeof *g->many.least : 0);
    return at;
}

static size_t batch_scratch(const dpq_database *db, size_t k)
{
    batch_group g;
    batch_workspace *w;
    return batch_layout(db, k, 0, &g, &w) + DPQ_SLACK;
}

static void scan_batch(const dpq_database *db, const dpq_queries *qs, size_t k, float *distances, uint32_t *ids,
                       void *scratch, dpq_counters *counters)
{
    batch_group g;
    batch_workspace *w;
    size_t rank = dpq_guessed_rank(batch_sample_size(db, k, 0), db->n, k);
    batch_layout(db, k, (uintptr_t)scratch, &g, &w);
    for (g.first = 0; g.first < qs->nq; g.first += DPQ_QW) {
        g.lanes = (uint32_t)dpq_min(DPQ_QW, qs->nq - g.first);
        batch_scan_group(db, qs, &g, w, k, rank, counters);
        if (rank < k && batch_has_missed(&g, k))
            batch_scan_group(db, qs, &g, w, k, k, counters);
        for (uint32_t q = 0; q < g.lanes; q++)
            dpq_topk_write(&g.top[q], k, !qs->in_any_order, distances + (g.first + q) * k, ids + (g.first + q) * k);
    }
}

#endif
