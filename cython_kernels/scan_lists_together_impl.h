/* The scan of inverted lists for the queries of a call: those that probe the same list scan it together, up to
 * LISTS_GROUP.
 *
 * In: as in scan_lists_impl.h, for all queries. Out: every query's k nearest.
 *
 * Each query first scans its own nearest lists (lists_begin), which gives it byte tables. What is left, (query, list)
 * pairs, is sorted by list. For a list, the byte tables of the queries that probe it are interleaved,
 *
 *     rows [level][codeword][LISTS_GROUP]     the entries of their tables
 *          [bin][LISTS_GROUP]                 start + floor(bin slope / 256), by the start and slope of each: with it
 *                                             their sums begin
 *
 * so that one load and one addition a level serve them all. Why the result is exact: the sums and limits are those of
 * scan_lists_impl.h, and so is the proof.
 */
#ifndef DPQ_SCAN_LISTS_TOGETHER_IMPL_H
#define DPQ_SCAN_LISTS_TOGETHER_IMPL_H

#include "kernels.h"
#include "lists_rows_impl.h"
#include "scan_lists_impl.h"

#define LISTS_GROUP 32u
#define LISTS_CHUNK 256u      /* vectors between two updates of the limits */
#define LISTS_LEAST_GROUP 4u  /* fewer queries scan a list one by one; measured */
#define LISTS_LEAST_SHARED 64u /* shorter lists are scanned one by one: interleaving costs as much as many vectors */

/* A query's probe that is still to be scanned. */
typedef struct {
    uint32_t query, probe, position;
} lists_pair;

typedef struct {
    uint32_t vector, lane;
} lists_hit;

/* The queries that scan a list together; each has a lane. */
typedef struct {
    uint8_t limit[LISTS_GROUP];
    uint32_t lanes; /* in use */
    lists_query *query[LISTS_GROUP];
    lists_part part[LISTS_GROUP];
    uint32_t within[LISTS_CHUNK];
    lists_hit hits[LISTS_CHUNK * LISTS_GROUP];
    uint8_t *rows; /* [rows + 256][LISTS_GROUP] */
} lists_group;

/* Transposes 16 x 16 bytes: after four rounds of interleaving row i with row i + 8, rows are columns. */
static inline void lists_transpose16(const uint8_t *const from[16], size_t at, uint8_t *to, size_t to_stride)
{
    dpq_u8x16 a[16], b[16];
    for (uint32_t i = 0; i < 16; i++)
        a[i] = dpq_u8x16_load(from[i] + at);
    for (uint32_t two_rounds = 0; two_rounds < 2; two_rounds++) {
        for (uint32_t i = 0; i < 8; i++) {
            b[2 * i] = dpq_u8x16_zip_low(a[i], a[i + 8]);
            b[2 * i + 1] = dpq_u8x16_zip_high(a[i], a[i + 8]);
        }
        for (uint32_t i = 0; i < 8; i++) {
            a[2 * i] = dpq_u8x16_zip_low(b[i], b[i + 8]);
            a[2 * i + 1] = dpq_u8x16_zip_high(b[i], b[i + 8]);
        }
    }
    for (uint32_t i = 0; i < 16; i++)
        dpq_u8x16_store(to + i * to_stride, a[i]);
}

/* Fills `rows`. Lanes not in use repeat the first query. */
static void lists_interleave(const dpq_lists *lists, lists_group *g)
{
    size_t rows = (size_t)lists->levels << lists->nbits;
    for (uint32_t half = 0; half < g->lanes; half += 16) {
        const uint8_t *from[16];
        for (uint32_t i = 0; i < 16; i++)
            from[i] = g->query[half + i < g->lanes ? half + i : 0]->table8;
        for (size_t r = 0; r < rows; r += 16)
            lists_transpose16(from, r, g->rows + r * LISTS_GROUP + half, LISTS_GROUP);
    }
    uint16_t sum[LISTS_GROUP], slope[LISTS_GROUP];
    for (uint32_t i = 0; i < LISTS_GROUP; i++) {
        const lists_part *part = &g->part[i < g->lanes ? i : 0];
        sum[i] = (uint16_t)(part->start << 8);
        slope[i] = part->slope;
    }
    uint8_t *to = g->rows + rows * LISTS_GROUP;
    for (uint32_t bin = 0; bin < (lists->terms ? 256u : 1u); bin++, to += LISTS_GROUP)
        for (uint32_t i = 0; i < LISTS_GROUP; i++) {
            to[i] = (uint8_t)(sum[i] >> 8);
            sum[i] = (uint16_t)(sum[i] + slope[i]);
        }
}

/* within[i] = the lanes whose limit the byte sum of vector first + i does not exceed. */
DPQ_INLINE void lists_byte_sums_of_shape(uint32_t nbits, uint32_t levels, const dpq_database *db, lists_group *g,
                                         size_t first, size_t n)
{
    size_t K = (size_t)1 << nbits;
    const uint8_t *row = dpq_row(db, first), *rows = g->rows, *bin_rows = rows + levels * K * LISTS_GROUP;
    dpq_u8g limit = dpq_u8g_load(g->limit);
    for (size_t i = 0; i < n; i++, row += db->code_size) {
        size_t bin = db->term_bins ? db->term_bins[first + i] : 0;
        dpq_u8g sum = dpq_u8g_load(bin_rows + bin * LISTS_GROUP);
        for (uint32_t l = 0; l < levels; l++)
            sum = dpq_u8g_add(sum, dpq_u8g_load(rows + (l * K + dpq_code(row, nbits, l)) * LISTS_GROUP));
        g->within[i] = dpq_u8g_le(sum, limit);
    }
}

static void lists_byte_sums(const dpq_database *db, lists_group *g, size_t first, size_t n)
{
    DPQ_BY_SHAPE(lists_byte_sums_of_shape, db->nbits, db->levels, db, g, first, n);
}

/* Collects the hits of a chunk, and fetches their entries in the queries' float tables, which are spread over
 * megabytes. Of many levels, to fetch them takes longer than to wait for them. Returns how many hits there are. */
static size_t lists_collect(const dpq_database *db, lists_group *g, size_t first, size_t n, uint32_t live)
{
    uint32_t fetched = db->levels <= DPQ_FEW_LEVELS ? db->levels : 0;
    size_t found = 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t within = dpq_is_allowed(db, first + i) ? g->within[i] & live : 0; within; within &= within - 1) {
            uint32_t lane = (uint32_t)__builtin_ctz(within);
            const float *table = g->query[lane]->table;
            const uint8_t *row = dpq_row(db, first + i);
            for (uint32_t l = 0; l < fetched; l++)
                __builtin_prefetch(table + l * dpq_codewords(db) + dpq_code(row, db->nbits, l));
            g->hits[found++] = (lists_hit){(uint32_t)(first + i), lane};
        }
    return found;
}

/* Sets a lane's limit, or takes it out of `live` if the list holds no neighbour for it any more. */
static void lists_set_limit(lists_group *g, uint32_t lane, uint32_t *live)
{
    double limit = lists_limit(g->query[lane], &g->part[lane]);
    if (limit < 0)
        *live &= ~(1u << lane);
    else
        g->limit[lane] = (uint8_t)limit;
}

/* The sums of n <= TABLE_TOGETHER hits from number `first` on, side by side. */
static void lists_hit_sums(const dpq_database *db, const lists_group *g, size_t first, size_t n, float *sums)
{
    table_item items[TABLE_TOGETHER];
    for (size_t i = 0; i < n; i++) {
        lists_hit hit = g->hits[first + i];
        items[i] = (table_item){db, g->query[hit.lane]->table, hit.vector};
        sums[i] = dpq_stored_term(db, hit.vector);
    }
    table_sums(items, n, sums);
}

static void lists_scan_group(const dpq_lists *lists, lists_scan *s, lists_group *g)
{
    uint32_t live = g->lanes < 32 ? (1u << g->lanes) - 1 : UINT32_MAX;
    const dpq_database *db = &g->part[0].db;
    size_t count = 0;
    memset(g->limit, 0, sizeof g->limit);
    for (uint32_t lane = 0; lane < g->lanes; lane++) {
        lists_set_limit(g, lane, &live);
        count = g->part[lane].count > count ? g->part[lane].count : count;
    }
    if (live)
        lists_interleave(lists, g);
    s->counters->together++;
    for (size_t n, v = 0; v < count && live; v += n) {
        n = dpq_min(LISTS_CHUNK, count - v);
        lists_byte_sums(db, g, v, n);
        size_t found = lists_collect(db, g, v, n, live);
        s->counters->rescored += found;
        s->counters->bounded += n * g->lanes;
        for (size_t h = 0; h < found; h += TABLE_TOGETHER) {
            size_t some = dpq_min(found - h, TABLE_TOGETHER);
            float sums[TABLE_TOGETHER];
            lists_hit_sums(db, g, h, some, sums);
            for (size_t i = 0; i < some; i++) {
                lists_hit hit = g->hits[h + i];
                /* A query may scan the first part of a list only, because of `max_codes`. */
                if (hit.vector < g->part[hit.lane].count &&
                    lists_offer_sum(&g->part[hit.lane], g->query[hit.lane], hit.vector, sums[i]))
                    lists_set_limit(g, hit.lane, &live);
            }
        }
    }
}

/* Scans a list for all of its n pairs. */
static void lists_scan_list(const dpq_lists *lists, lists_scan *s, lists_group *g, lists_query *queries,
                            const lists_pair *pairs, size_t n)
{
    for (size_t i = 0; i < n;) {
        for (g->lanes = 0; i < n && g->lanes < LISTS_GROUP; i++) {
            lists_query *q = queries + pairs[i].query;
            if (lists_is_out(lists, q, pairs[i].probe))
                continue;
            g->query[g->lanes] = q;
            g->part[g->lanes++] = lists_part_of(lists, q, pairs[i].probe, pairs[i].position);
        }
        if (g->lanes >= LISTS_LEAST_GROUP && g->part[0].db.n >= LISTS_LEAST_SHARED && !g->part[0].is_sparse)
            lists_scan_group(lists, s, g);
        else
            for (uint32_t lane = 0; lane < g->lanes; lane++) {
                if (!g->part[lane].is_sparse)
                    lists_load_tables(lists, g->query[lane], &s->look);
                lists_byte_scan(lists, &g->part[lane], s, g->query[lane], 0);
            }
    }
}

/* ---- a call ---- */

/* A call's scratch memory. Where lists are not shared there is one query at a time, and no pairs. */
typedef struct {
    lists_scan *scan;
    lists_group *group;
    lists_query *queries;       /* [nq] */
    lists_probed *probed;       /* [nq][nprobe] */
    lists_pair *pairs, *sorted; /* [nq * nprobe] */
    uint32_t *begins;           /* [nlist + 2]: where each list's pairs begin in `sorted` */
    uint64_t *keys;             /* [nq][dpq_topk_capacity(k)] */
    uint8_t *table8;            /* [nq][level][codeword] */
    uint8_t *rows;              /* the group's */
    /* Of many levels, instead of the group: */
    lists_lanes *lanes;
    lists_rows *own, *blocks; /* for one list; [n_blocks] */
    uint8_t *columns;
    size_t nq, n_blocks;
} lists_memory;

/* Takes those of n pairs of a list, all of one block, that are to be scanned into the lanes of their queries. */
static void lists_take_lanes(const dpq_lists *lists, lists_scan *s, lists_lanes *g, lists_query *queries,
                             const lists_pair *pairs, size_t n)
{
    g->live = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t lane = pairs[i].query % DPQ_QW;
        lists_query *q = queries + pairs[i].query;
        if (lists_is_out(lists, q, pairs[i].probe))
            continue;
        g->query[lane] = q;
        g->part[lane] = lists_part_of(lists, q, pairs[i].probe, pairs[i].position);
        if (g->part[lane].is_sparse)
            lists_scan_sparse(&g->part[lane], s, q);
        else
            g->live |= 1ull << lane;
    }
}

/* The same as lists_scan_list where codes have many levels. */
static void lists_scan_many(const dpq_lists *lists, lists_scan *s, const lists_memory *w, const lists_pair *pairs,
                            size_t n)
{
    lists_lanes *g = w->lanes;
    for (size_t i = 0, end; i < n; i = end) {
        size_t block = pairs[i].query / DPQ_QW;
        if (g->n_left >= LISTS_ROWS_DENSE)
            lists_scan_left(lists, s, g, w->own);
        for (end = i + 1; end < n && pairs[end].query / DPQ_QW == block; end++)
            ;
        lists_take_lanes(lists, s, g, w->queries, pairs + i, end - i);
        if ((uint32_t)__builtin_popcountll(g->live) >= LISTS_ROWS_DENSE
            && g->part[__builtin_ctzll(g->live)].db.n >= LISTS_LEAST_SHARED) {
            lists_rows *rows = w->blocks + block;
            if (!rows->made)
                lists_make_block(lists, w->queries + block * DPQ_QW, w->nq - block * DPQ_QW, rows);
            lists_scan_rows(s, g, &rows->rows);
        } else
            lists_leave_lanes(g);
    }
    lists_scan_left(lists, s, g, w->own);
}

/* Whether queries may scan lists together: there are enough of them, and bytes to look up. */
static int lists_are_shared(const dpq_lists *lists, const dpq_probes *probes)
{
    return probes->queries.nq >= LISTS_LEAST_GROUP && lists_may_have_bytes(lists)
           && lists->nlist <= 16 * probes->queries.nq * probes->nprobe;
}

/* The part of lists_layout that only codes of many levels have. nq: the queries that may share lists. */
static uintptr_t lists_layout_many(const dpq_lists *lists, size_t nq, uintptr_t at, lists_memory *w)
{
    w->nq = nq;
    w->n_blocks = nq < LISTS_ROWS_DENSE ? 0 : (nq + DPQ_QW - 1) / DPQ_QW;
    w->lanes = dpq_take(&at, (nq > 0) * sizeof *w->lanes);
    w->own = dpq_take(&at, (w->n_blocks + 1) * sizeof *w->own);
    w->blocks = w->own + 1;
    w->rows = dpq_take(&at, (w->n_blocks + (nq > 0)) * ((size_t)lists->levels << lists->nbits) * DPQ_QW);
    w->columns = dpq_take(&at, LISTS_TURNED * lists_code_bytes(lists));
    return at;
}

/* Writes to such memory what a call begins with. */
static void lists_begin_many(const dpq_lists *lists, const lists_memory *w)
{
    w->scan->columns = w->columns;
    for (size_t i = 0; w->nq && i < w->n_blocks + 1; i++)
        w->own[i] = (lists_rows){.rows8 = w->rows + i * ((size_t)lists->levels << lists->nbits) * DPQ_QW};
    if (w->nq)
        w->lanes->n_left = 0;
}

/* Cuts scratch memory from address `at` on, and returns where it ends. */
static uintptr_t lists_layout(const dpq_lists *lists, const dpq_probes *probes, size_t k, uintptr_t at,
                              lists_memory *w)
{
    size_t shared = (size_t)lists_are_shared(lists, probes), nq = shared ? probes->queries.nq : 1;
    size_t n_pairs = shared * nq * probes->nprobe, rows = (size_t)lists->levels << lists->nbits;
    w->scan = dpq_take(&at, sizeof *w->scan);
    w->queries = dpq_take(&at, nq * sizeof *w->queries);
    w->probed = dpq_take(&at, nq * probes->nprobe * sizeof *w->probed);
    w->keys = dpq_take(&at, nq * dpq_topk_capacity(k) * sizeof *w->keys);
    w->table8 = dpq_take(&at, lists_may_have_bytes(lists) ? nq * rows : 0);
    w->pairs = dpq_take(&at, n_pairs * sizeof *w->pairs);
    w->sorted = dpq_take(&at, n_pairs * sizeof *w->sorted);
    w->begins = dpq_take(&at, shared * (lists->nlist + 2) * sizeof *w->begins);
    if (lists_are_many(lists))
        return lists_layout_many(lists, shared * nq, at, w);
    w->group = dpq_take(&at, shared * sizeof *w->group);
    w->rows = dpq_take(&at, shared * (rows + 256) * LISTS_GROUP);
    return at;
}

static size_t lists_scratch(const dpq_lists *lists, const dpq_probes *probes, size_t k)
{
    lists_memory unused;
    return lists_layout(lists, probes, k, 0, &unused) + DPQ_SLACK;
}

/* Query `number` takes place `slot` of the memory. */
static void lists_init_query(const dpq_lists *lists, const dpq_probes *probes, size_t number, size_t k,
                             const lists_memory *w, size_t slot)
{
    const dpq_queries *qs = &probes->queries;
    lists_query *q = w->queries + slot;
    size_t rows = (size_t)lists->levels << lists->nbits;
    q->table = qs->tables + number * probes->table_stride;
    q->table8 = w->table8 + slot * rows;
    q->probed = w->probed + slot * probes->nprobe;
    q->keys = probes->keys + number * probes->nprobe;
    q->counts = probes->counts + number * probes->nprobe;
    q->threshold = INFINITY;
    q->high = -INFINITY;
    q->scale = 0;
    q->error = qs->table_errors[number];
    q->norm = sqrt(qs->norms[number]);
    q->magnitude = table_magnitude(q->table, (size_t)1 << lists->nbits, lists->levels);
    dpq_topk_begin(&q->top, w->keys + slot * dpq_topk_capacity(k), k, INFINITY);
}

/* Begins every query. What is left to scan goes to `pairs`; returns how many these are. */
static size_t lists_begin_all(const dpq_lists *lists, const dpq_probes *probes, size_t k, const lists_memory *w)
{
    size_t found = 0;
    for (size_t i = 0; i < probes->queries.nq; i++) {
        uint32_t position;
        lists_query *q = w->queries + i;
        lists_init_query(lists, probes, i, k, w, i);
        size_t p = lists_begin(lists, probes->vectors + i * lists->stride, w->scan, q, &position);
        for (; p < probes->nprobe; p++) {
            w->pairs[found] = (lists_pair){(uint32_t)i, (uint32_t)p, position};
            found += q->counts[p] > 0;
            position += (uint32_t)q->counts[p];
        }
    }
    return found;
}

/* Sorts the n pairs by list: counts those of every list, and from that knows where each list's begin. */
static void lists_sort_pairs(const dpq_lists *lists, const lists_memory *w, size_t n)
{
    uint32_t *begins = w->begins;
    memset(begins, 0, (lists->nlist + 2) * sizeof *begins);
    for (size_t i = 0; i < n; i++)
        begins[w->queries[w->pairs[i].query].keys[w->pairs[i].probe] + 2]++;
    for (size_t list = 1; list < lists->nlist + 2; list++)
        begins[list] += begins[list - 1];
    for (size_t i = 0; i < n; i++)
        w->sorted[begins[w->queries[w->pairs[i].query].keys[w->pairs[i].probe] + 1]++] = w->pairs[i];
}

static void lists_scan_together(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                                uint32_t *positions, const lists_memory *w)
{
    lists_sort_pairs(lists, w, lists_begin_all(lists, probes, k, w));
    const int many = lists_are_many(lists);
    if (!many)
        w->group->rows = w->rows;
    for (size_t list = 0; list < lists->nlist; list++) {
        size_t first = w->begins[list], of_list = w->begins[list + 1] - first;
        if (of_list && many)
            lists_scan_many(lists, w->scan, w, w->sorted + first, of_list);
        else if (of_list)
            lists_scan_list(lists, w->scan, w->group, w->queries, w->sorted + first, of_list);
    }
    for (size_t i = 0; i < probes->queries.nq; i++)
        dpq_topk_write(&w->queries[i].top, k, 1, distances + i * k, positions + i * k);
}

static void scan_lists(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                       uint32_t *positions, void *scratch, dpq_counters *counters)
{
    lists_memory w;
    lists_layout(lists, probes, k, (uintptr_t)scratch, &w);
    w.scan->inner_product = probes->queries.inner_product;
    w.scan->nprobe = probes->nprobe;
    w.scan->counters = counters;
    if (lists_are_many(lists))
        lists_begin_many(lists, &w);
    if (lists_are_shared(lists, probes)) {
        lists_scan_together(lists, probes, k, distances, positions, &w);
        return;
    }
    for (size_t i = 0; i < probes->queries.nq; i++) {
        uint32_t position;
        lists_init_query(lists, probes, i, k, &w, 0);
        size_t p = lists_begin(lists, probes->vectors + i * lists->stride, w.scan, w.queries, &position);
        lists_finish_alone(lists, w.scan, w.queries, p, position);
        dpq_topk_write(&w.queries->top, k, 1, distances + i * k, positions + i * k);
    }
}

#endif
