/* Queries that probe the same list scan it together, DPQ_GROUP at a time.
 *
 * Each query has its byte tables from its own nearest lists (scan_lists_impl.h). For a list, those of the queries that
 * probe it are interleaved,
 *
 *     rows [level][codeword][DPQ_GROUP]     their tables' entries
 *          [bin][DPQ_GROUP]                 start + floor(bin slope / 256): the sum's beginning, of each query's own
 *
 * so that a load and an add a level serve them all. The sums, the limits and the proof are those of scan_lists_impl.h.
 */

#define DPQ_GROUP 32u
#define DPQ_GROUP_CHUNK 256u     /* vectors between two updates of the limits */
#define DPQ_LEAST_GROUP 4u       /* fewer queries scan a list one by one; measured */
#define DPQ_LEAST_GROUP_LIST 64u /* so are shorter lists scanned: interleaving costs as much as many vectors */

/* A probe that is still to be scanned. */
typedef struct {
    uint32_t query, probe, position;
} dpq_lists_pair;

typedef struct {
    uint32_t vector, lane;
} dpq_group_hit;

typedef struct {
    uint8_t limit[DPQ_GROUP];
    uint32_t lanes;
    dpq_lists_query *query[DPQ_GROUP];
    dpq_lists_part part[DPQ_GROUP];
    uint32_t within[DPQ_GROUP_CHUNK];
    dpq_group_hit hits[DPQ_GROUP_CHUNK * DPQ_GROUP];
    uint8_t *rows; /* [rows + 256][DPQ_GROUP] */
} dpq_together;

/* Rounds of interleaving row i with row i + 8 transpose 16 x 16 bytes. */
static inline void lists_transpose16(const uint8_t *const from[16], size_t at, uint8_t *to, size_t to_stride)
{
    dpq_u8x16 a[16], b[16];
    for (uint32_t i = 0; i < 16; i++)
        a[i] = dpq_u8x16_load(from[i] + at);
    for (uint32_t round = 0; round < 2; round++) {
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

/* Unused lanes repeat the first query. */
static void lists_interleave(const dpq_lists *lists, dpq_together *g)
{
    size_t rows = (size_t)lists->levels << lists->nbits;
    for (uint32_t half = 0; half < g->lanes; half += 16) {
        const uint8_t *from[16];
        for (uint32_t i = 0; i < 16; i++)
            from[i] = g->query[half + i < g->lanes ? half + i : 0]->table8;
        for (size_t r = 0; r < rows; r += 16)
            lists_transpose16(from, r, g->rows + r * DPQ_GROUP + half, DPQ_GROUP);
    }
    uint16_t sum[DPQ_GROUP], slope[DPQ_GROUP];
    for (uint32_t i = 0; i < DPQ_GROUP; i++) {
        const dpq_lists_part *part = &g->part[i < g->lanes ? i : 0];
        sum[i] = (uint16_t)(part->start << 8);
        slope[i] = part->slope;
    }
    uint8_t *to = g->rows + rows * DPQ_GROUP;
    for (uint32_t bin = 0; bin < (lists->terms ? 256u : 1u); bin++, to += DPQ_GROUP)
        for (uint32_t i = 0; i < DPQ_GROUP; i++) {
            to[i] = (uint8_t)(sum[i] >> 8);
            sum[i] = (uint16_t)(sum[i] + slope[i]);
        }
}

static inline void lists_group_sums(const dpq_database *db, dpq_together *g, size_t first, size_t n, uint32_t levels,
                                    uint32_t nbits)
{
    size_t K = (size_t)1 << nbits;
    const uint8_t *row = dpq_row(db, first), *rows = g->rows, *bin_rows = rows + levels * K * DPQ_GROUP;
    dpq_u8g limit = dpq_u8g_load(g->limit);
    for (size_t i = 0; i < n; i++, row += db->code_size) {
        size_t bin = db->term_bins ? db->term_bins[first + i] : 0;
        dpq_u8g sum = dpq_u8g_load(bin_rows + bin * DPQ_GROUP);
        for (uint32_t l = 0; l < levels; l++) {
            size_t code = nbits == 8 ? row[l] : row[l / 2] >> (l % 2 * 4) & 15;
            sum = dpq_u8g_add(sum, dpq_u8g_load(rows + (l * K + code) * DPQ_GROUP));
        }
        g->within[i] = dpq_u8g_le(sum, limit);
    }
}

static void lists_group_scan_chunk(const dpq_database *db, dpq_together *g, size_t first, size_t n)
{
    if (db->nbits == 8 && db->levels == 4)
        lists_group_sums(db, g, first, n, 4, 8);
    else if (db->nbits == 8 && db->levels == 8)
        lists_group_sums(db, g, first, n, 8, 8);
    else if (db->nbits == 8)
        lists_group_sums(db, g, first, n, db->levels, 8);
    else if (db->levels == 8)
        lists_group_sums(db, g, first, n, 8, 4);
    else if (db->levels == 16)
        lists_group_sums(db, g, first, n, 16, 4);
    else
        lists_group_sums(db, g, first, n, db->levels, 4);
}

/* The hits of a chunk; their queries' table entries, in megabytes of tables, are fetched meanwhile. */
static size_t lists_group_hits(const dpq_database *db, dpq_together *g, size_t first, size_t n, uint32_t live)
{
    size_t found = 0;
    for (size_t i = 0; i < n; i++)
        for (uint32_t within = g->within[i] & live; within; within &= within - 1) {
            uint32_t lane = (uint32_t)__builtin_ctz(within);
            const float *table = g->query[lane]->table;
            const uint8_t *row = dpq_row(db, first + i);
            for (uint32_t l = 0; l < db->levels; l++) {
                size_t code = db->nbits == 8 ? row[l] : row[l / 2] >> (l % 2 * 4) & 15;
                __builtin_prefetch(table + ((size_t)l << db->nbits) + code);
            }
            g->hits[found++] = (dpq_group_hit){(uint32_t)(first + i), lane};
        }
    return found;
}

static void lists_set_limit(dpq_together *g, uint32_t lane, uint32_t *live)
{
    double limit = lists_limit(g->query[lane], &g->part[lane]);
    if (limit < 0)
        *live &= ~(1u << lane);
    else
        g->limit[lane] = (uint8_t)limit;
}

static void lists_group_scan(const dpq_lists *lists, dpq_lists_scan *s, dpq_together *g)
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
        n = dpq_min(DPQ_GROUP_CHUNK, count - v);
        lists_group_scan_chunk(db, g, v, n);
        size_t found = lists_group_hits(db, g, v, n, live);
        s->counters->rescored += found;
        s->counters->bounded += n * g->lanes;
        for (size_t h = 0; h < found; h++) {
            uint32_t lane = g->hits[h].lane;
            /* `max_codes` may end a query's share of the list early. */
            if (g->hits[h].vector < g->part[lane].count && lists_offer(&g->part[lane], g->query[lane], g->hits[h].vector))
                lists_set_limit(g, lane, &live);
        }
    }
}

static void lists_scan_alone(const dpq_lists *lists, dpq_lists_scan *s, dpq_lists_query *q, const dpq_lists_part *part)
{
    lists_load_table8(lists, q, &s->one);
    lists_byte_scan(part, s, q, 0);
}

/* All pairs of one list. */
static void lists_scan_list(const dpq_lists *lists, dpq_lists_scan *s, dpq_together *g, dpq_lists_query *queries,
                            const dpq_lists_pair *pairs, size_t n)
{
    for (size_t i = 0; i < n;) {
        for (g->lanes = 0; i < n && g->lanes < DPQ_GROUP; i++) {
            dpq_lists_query *q = queries + pairs[i].query;
            size_t p = pairs[i].probe;
            if (lists_is_too_far(lists, q, (size_t)q->keys[p], q->probed[p]))
                continue;
            g->query[g->lanes] = q;
            g->part[g->lanes++] = lists_part(lists, q, p, pairs[i].position);
        }
        if (g->lanes >= DPQ_LEAST_GROUP && g->part[0].db.n >= DPQ_LEAST_GROUP_LIST)
            lists_group_scan(lists, s, g);
        else
            for (uint32_t lane = 0; lane < g->lanes; lane++)
                lists_scan_alone(lists, s, g->query[lane], &g->part[lane]);
    }
}

/* Scratch of a call, in the order that it is laid out. */
typedef struct {
    dpq_lists_scan *scan;
    dpq_together *together;
    dpq_lists_query *queries; /* [nq] */
    dpq_probed *probed;       /* [nq][nprobe] */
    dpq_lists_pair *pairs, *sorted; /* [nq * nprobe] */
    uint32_t *begins;         /* [nlist + 1]: of each list's pairs */
    uint64_t *keys;           /* [nq][capacity] */
    uint8_t *table8;          /* [nq][rows] */
} dpq_lists_scratch;

static int lists_are_shared(const dpq_lists *lists, const dpq_probes *probes)
{
    return probes->queries.nq >= DPQ_LEAST_GROUP && lists_may_have_bytes(lists)
           && lists->nlist <= 16 * probes->queries.nq * probes->nprobe;
}

static size_t lists_layout(const dpq_lists *lists, const dpq_probes *probes, size_t k, char *at, dpq_lists_scratch *to)
{
    char *begin = at;
    int shared = lists_are_shared(lists, probes);
    size_t nq = shared ? probes->queries.nq : 1, n_pairs = shared ? nq * probes->nprobe : 0;
    size_t rows = (size_t)lists->levels << lists->nbits;
    at = (char *)(((uintptr_t)at + 63) & ~(uintptr_t)63);
    to->scan = dpq_take(&at, sizeof *to->scan);
    to->queries = dpq_take(&at, nq * sizeof *to->queries);
    to->probed = dpq_take(&at, nq * probes->nprobe * sizeof *to->probed);
    to->keys = dpq_take(&at, nq * dpq_topk_capacity(k) * sizeof *to->keys);
    to->table8 = dpq_take(&at, nq * (lists_may_have_bytes(lists) ? rows : 0));
    to->pairs = dpq_take(&at, n_pairs * sizeof *to->pairs);
    to->sorted = dpq_take(&at, n_pairs * sizeof *to->sorted);
    to->begins = dpq_take(&at, shared ? (lists->nlist + 2) * sizeof *to->begins : 0);
    to->together = dpq_take(&at, shared ? sizeof *to->together : 0);
    char *interleaved = dpq_take(&at, shared ? (rows + 256) * DPQ_GROUP : 0);
    if (begin && shared)
        to->together->rows = (uint8_t *)interleaved;
    return (size_t)(at - begin) + 64;
}

static size_t lists_scratch(const dpq_lists *lists, const dpq_probes *probes, size_t k)
{
    dpq_lists_scratch unused;
    return lists_layout(lists, probes, k, NULL, &unused);
}

static void lists_init_query(const dpq_lists *lists, const dpq_probes *probes, size_t number, size_t k,
                             const dpq_lists_scratch *scratch, size_t slot)
{
    const dpq_queries *qs = &probes->queries;
    dpq_lists_query *q = scratch->queries + slot;
    size_t rows = (size_t)lists->levels << lists->nbits;
    dpq_database codes = {.nbits = lists->nbits, .levels = lists->levels};
    q->table = qs->tables + number * probes->table_stride;
    q->table8 = scratch->table8 + slot * rows;
    q->probed = scratch->probed + slot * probes->nprobe;
    q->keys = probes->keys + number * probes->nprobe;
    q->counts = probes->counts + number * probes->nprobe;
    q->threshold = INFINITY;
    q->high = -INFINITY;
    q->scale = 0;
    q->error = qs->table_errors[number];
    q->norm = sqrt(qs->norms[number]);
    /* Below four bits no register fits a level: no list is too far then. */
    q->magnitude = lists->nbits >= 4 ? dpq_one_magnitude(&codes, q->table) : INFINITY;
    dpq_topk_begin(&q->top, scratch->keys + slot * dpq_topk_capacity(k), k, INFINITY);
}

/* Every query's nearest lists; what is left to scan goes to `pairs`. Returns their number. */
static size_t lists_begin_all(const dpq_lists *lists, const dpq_probes *probes, size_t k, const dpq_lists_scratch *w)
{
    size_t found = 0;
    for (size_t i = 0; i < probes->queries.nq; i++) {
        uint32_t position;
        dpq_lists_query *q = w->queries + i;
        lists_init_query(lists, probes, i, k, w, i);
        size_t p = lists_begin(lists, probes->vectors + i * lists->stride, w->scan, q, &position);
        for (; p < probes->nprobe; p++) {
            w->pairs[found] = (dpq_lists_pair){(uint32_t)i, (uint32_t)p, position};
            found += q->counts[p] > 0;
            position += (uint32_t)q->counts[p];
        }
    }
    return found;
}

/* Counting sort by list. */
static void lists_sort_pairs(const dpq_lists *lists, const dpq_lists_scratch *w, size_t n)
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
                                uint32_t *positions, const dpq_lists_scratch *w)
{
    size_t n = lists_begin_all(lists, probes, k, w);
    lists_sort_pairs(lists, w, n);
    for (size_t list = 0; list < lists->nlist; list++) {
        size_t first = w->begins[list], of_list = w->begins[list + 1] - first;
        if (of_list)
            lists_scan_list(lists, w->scan, w->together, w->queries, w->sorted + first, of_list);
    }
    for (size_t i = 0; i < probes->queries.nq; i++)
        dpq_write(&w->queries[i].top, k, distances + i * k, positions + i * k);
}

static void scan_lists(const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances,
                       uint32_t *positions, void *scratch, dpq_counters *counters)
{
    dpq_lists_scratch w;
    lists_layout(lists, probes, k, scratch, &w);
    w.scan->inner_product = probes->queries.inner_product;
    w.scan->nprobe = probes->nprobe;
    w.scan->counters = counters;
    if (lists_are_shared(lists, probes)) {
        lists_scan_together(lists, probes, k, distances, positions, &w);
        return;
    }
    for (size_t i = 0; i < probes->queries.nq; i++) {
        uint32_t position;
        lists_init_query(lists, probes, i, k, &w, 0);
        size_t p = lists_begin(lists, probes->vectors + i * lists->stride, w.scan, w.queries, &position);
        lists_finish_alone(lists, w.scan, w.queries, p, position);
        dpq_write(&w.queries->top, k, distances + i * k, positions + i * k);
    }
}
