/* Batch scan: DPQ_QW queries at a time, tables interleaved by query.
 *
 *   rows8   [level][codeword][DPQ_QW]                   uint8 entries of the lower bound; the term's
 *                                                       bins are one more level, of 256 rows
 *   rows32  [DPQ_QW / DPQ_FW][level][codeword][DPQ_FW]  float32, a `strip` of DPQ_FW queries each
 *
 * A row load and an add per level then serve DPQ_QW queries. A vector whose byte sum is within some
 * query's limit is a hit; those queries' float32 distances decide. Two facts keep float work exact
 * without the term's L(L-1)/2 look-ups: float addition is monotone, so the same sum started from the
 * lower (upper) edge of the term's bin is a lower (upper) bound of the float distance itself.
 *
 *   sample     strided over the database, so that its order does not matter: upper bounds give every
 *              query a first threshold and the range that its byte step has to resolve. The threshold
 *              is the k-th least of the least bounds of buckets
 *   byte scan  per chunk: hits, rescoring, limits tightened
 *   float scan of the strips whose queries let too many vectors through, and of small databases
 */
#include "dpq_topk.h"
#include "scan_bound.h"
#include "scan_codes.h"

#define DPQ_CHUNK 256u            /* vectors between two updates of the limits */
#define DPQ_SPAN 4096u            /* vectors between two choices of byte or float scan */
#define DPQ_MIN_SAMPLED_N 16384u  /* smaller databases go by float alone */
#define DPQ_INTERLEAVED 16u       /* entries of a query's table that are one cache line */
#define DPQ_LEAST_SAMPLE 4096u
#define DPQ_SAMPLED_A_RESULT 200u /* measured flat within 2x */
#define DPQ_STRIPS (DPQ_QW / DPQ_FW)
/* Measured flat within 2x; a quarter of it costs 7 % at k = 1000. */
#define DPQ_MAX_HITS_PER_SPAN (DPQ_SPAN * 2)
#define DPQ_FLOAT_SPANS 3u       /* then the bytes get another try: thresholds have fallen */

/* Vectors, and the queries that they may be near to. */
typedef struct {
    uint64_t queries[DPQ_CHUNK + 8]; /* + 8: dpq_nonzero8 writes ahead */
    uint32_t vector[DPQ_CHUNK + 8];
} dpq_hits;

typedef struct {
    uint8_t limit[DPQ_QW];
    float threshold[DPQ_QW];
    float high[DPQ_QW];
    dpq_bound bound[DPQ_QW];
    dpq_topk top[DPQ_QW];
    size_t first; /* query of lane 0 */
    uint32_t lanes;
    uint32_t hits_in_span[DPQ_STRIPS];
    uint32_t float_spans[DPQ_STRIPS]; /* > 0: the strip is scanned in float */
    float *rows32;
    uint8_t *rows8;
    uint64_t *keys;
    size_t buckets;  /* of sampled vectors */
    float *least;    /* [buckets][DPQ_QW], of the sampled distances */
    uint64_t *order; /* [buckets] */
} dpq_group;

typedef struct {
    uint16_t code[DPQ_CHUNK * DPQ_MAX_LEVELS];
    float start[DPQ_CHUNK];
    uint64_t within[DPQ_CHUNK + 8]; /* + 8: dpq_nonzero8 reads ahead */
    dpq_hits hits, pending; /* pending: of an earlier chunk, to be rescored exactly */
    size_t pendings;
} dpq_workspace;

static inline size_t dpq_codewords(const dpq_database *db)
{
    return (size_t)1 << db->nbits;
}

static inline size_t dpq_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

static inline uint64_t dpq_lane_mask(uint32_t lanes)
{
    return lanes >= 64 ? ~0ull : (1ull << lanes) - 1;
}

/* Decodes n vectors first, first + stride, ...; start: the edge of each one's term. */
static void dpq_decode_chunk(const dpq_database *db, dpq_workspace *w, size_t first, size_t stride,
                             size_t n, uint32_t upper)
{
    for (size_t i = 0; i < n; i++) {
        size_t v = first + i * stride;
        dpq_unpack(db, v, w->code + i * db->levels);
        w->start[i] = db->term_bins ? dpq_term_edge(db, db->term_bins[v] + upper) : 0.0f;
    }
}

/* Vectors first + i, i < n, with queries of `live` in within[i] are hits. */
static inline size_t dpq_collect(dpq_workspace *w, size_t first, size_t n, uint64_t live)
{
    size_t found = 0;
    memset(w->within + n, 0, 8 * sizeof *w->within);
    for (size_t i = 0; i < n; i += 8)
        found += dpq_nonzero8(w->within + i, live, (uint32_t)(first + i), w->hits.queries + found,
                              w->hits.vector + found);
    return found;
}

/* A decoded vector's distances from a strip's queries. */
DPQ_INLINE dpq_f32s dpq_strip_sum(const float *rows, size_t K, const uint16_t *code, float start, uint32_t levels)
{
    dpq_f32s sum = dpq_f32_all(start);
    for (uint32_t l = 0; l < levels; l++)
        sum = dpq_f32_add(sum, dpq_f32_load(rows + (l * K + code[l]) * DPQ_FW));
    return sum;
}

/* within[i]: lanes at or below their thresholds. */
DPQ_INLINE void dpq_strip_sums(const dpq_database *db, const dpq_group *g, dpq_workspace *w,
                                  uint32_t strip, size_t n, uint32_t levels)
{
    size_t K = dpq_codewords(db);
    const float *rows = g->rows32 + strip * levels * K * DPQ_FW;
    dpq_f32s threshold = dpq_f32_load(g->threshold + strip * DPQ_FW);
    for (size_t i = 0; i < n; i++) {
        dpq_f32s distance = dpq_strip_sum(rows, K, w->code + i * levels, w->start[i], levels);
        w->within[i] = dpq_f32_le(distance, threshold);
    }
}

static void dpq_strip_scan(const dpq_database *db, const dpq_group *g, dpq_workspace *w, uint32_t strip,
                           size_t n)
{
    if (db->levels == 2)
        dpq_strip_sums(db, g, w, strip, n, 2);
    else if (db->levels == 4)
        dpq_strip_sums(db, g, w, strip, n, 4);
    else if (db->levels == 8)
        dpq_strip_sums(db, g, w, strip, n, 8);
    else
        dpq_strip_sums(db, g, w, strip, n, db->levels);
}

static inline void dpq_offer(dpq_group *g, uint32_t q, float distance, size_t v)
{
    uint64_t key = dpq_key(distance, (uint32_t)v);
    if (key < g->top[q].limit && dpq_topk_push(&g->top[q], key)) {
        g->threshold[q] = dpq_topk_threshold(&g->top[q]);
        g->limit[q] = dpq_bound_limit(&g->bound[q], g->threshold[q]);
    }
}

/* Of a strip's distances from the decoded vectors first, first + stride, ...: the greatest, and the least of every
 * bucket. */
static inline void dpq_strip_extremes(const dpq_database *db, dpq_group *g, const dpq_workspace *w, uint32_t strip,
                                      size_t first, size_t stride, uint32_t levels)
{
    const size_t K = dpq_codewords(db);
    const float *rows = g->rows32 + strip * levels * K * DPQ_FW;
    dpq_f32s high = dpq_f32_load(g->high + strip * DPQ_FW);
    size_t bucket = first / stride % g->buckets;
    for (size_t i = 0; i < DPQ_CHUNK; i++) {
        float *least = g->least + bucket * DPQ_QW + strip * DPQ_FW;
        dpq_f32s distance = dpq_strip_sum(rows, K, w->code + i * levels, w->start[i], levels);
        high = dpq_f32_max(high, distance);
        if (dpq_is_allowed(db, first + i * stride))
            dpq_f32_store(least, dpq_f32_min(dpq_f32_load(least), distance));
        bucket = bucket + 1 < g->buckets ? bucket + 1 : 0;
    }
    dpq_f32_store(g->high + strip * DPQ_FW, high);
}

static void dpq_strip_sample(const dpq_database *db, dpq_group *g, const dpq_workspace *w, uint32_t strip, size_t first,
                             size_t stride)
{
    if (db->levels == 4)
        dpq_strip_extremes(db, g, w, strip, first, stride, 4);
    else if (db->levels == 8)
        dpq_strip_extremes(db, g, w, strip, first, stride, 8);
    else
        dpq_strip_extremes(db, g, w, strip, first, stride, db->levels);
}

/* k buckets, so k vectors at least, are as near as this. A heap of the sampled distances would be tighter by few ranks
 * and costs several times as much. */
static float dpq_sample_threshold(dpq_group *g, uint32_t q, size_t k)
{
    float threshold = -INFINITY;
    if (g->buckets < k)
        return INFINITY;
    for (size_t i = 0; i < g->buckets; i++)
        g->order[i] = dpq_key(g->least[i * DPQ_QW + q], (uint32_t)i);
    dpq_select(g->order, g->buckets, k);
    for (size_t i = 0; i < k; i++)
        threshold = fmaxf(threshold, dpq_key_distance(g->order[i]));
    return threshold;
}

static inline float dpq_lane_sum(const dpq_database *db, const dpq_group *g, uint32_t q, const uint16_t *code,
                                 float start)
{
    size_t K = dpq_codewords(db);
    const float *table = g->rows32 + (q / DPQ_FW) * db->levels * K * DPQ_FW + q % DPQ_FW;
    for (uint32_t l = 0; l < db->levels; l++)
        start += table[(l * K + code[l]) * DPQ_FW];
    return start;
}

/* Hits whose float lower bound is within the threshold become pending, and the cross entries that their
 * terms need are fetched: these lie apart in megabytes, so the scan of another chunk goes in between. */
DPQ_INLINE void dpq_rescore_bounds(const dpq_database *db, dpq_group *g, dpq_workspace *w, size_t n)
{
    uint16_t code[DPQ_MAX_LEVELS];
    for (size_t h = 0; h < n; h++) {
        size_t v = w->hits.vector[h];
        uint64_t near = 0;
        if (!dpq_is_allowed(db, v))
            continue;
        dpq_unpack(db, v, code);
        float edge = db->term_bins ? dpq_term_edge(db, db->term_bins[v]) : 0.0f;
        for (uint64_t queries = w->hits.queries[h]; queries; queries &= queries - 1) {
            uint32_t q = (uint32_t)__builtin_ctzll(queries);
            near |= (uint64_t)(dpq_lane_sum(db, g, q, code, edge) <= g->threshold[q]) << q;
            g->hits_in_span[q / DPQ_FW]++;
        }
        w->pending.vector[w->pendings] = (uint32_t)v;
        w->pending.queries[w->pendings] = near;
        w->pendings += near != 0;
    }
    for (size_t h = 0; h < w->pendings; h++) {
        dpq_unpack(db, w->pending.vector[h], code);
        dpq_prefetch_term(db, code);
    }
}

DPQ_INLINE void dpq_rescore_pending(const dpq_database *db, dpq_group *g, dpq_workspace *w)
{
    uint16_t code[DPQ_MAX_LEVELS];
    for (size_t h = 0; h < w->pendings; h++) {
        size_t v = w->pending.vector[h];
        dpq_unpack(db, v, code);
        float term = dpq_term(db, v, code);
        for (uint64_t queries = w->pending.queries[h]; queries; queries &= queries - 1) {
            uint32_t q = (uint32_t)__builtin_ctzll(queries);
            dpq_offer(g, q, dpq_lane_sum(db, g, q, code, term), v);
        }
    }
    w->pendings = 0;
}

DPQ_INLINE void dpq_rescore_shape(dpq_database db, uint32_t nbits, uint32_t levels, dpq_group *g, dpq_workspace *w,
                                  size_t hits)
{
    db.nbits = nbits;
    db.levels = levels;
    dpq_rescore_pending(&db, g, w);
    dpq_rescore_bounds(&db, g, w, hits);
}

/* The shape is a constant of each call: with variables, a hit took twice the time. */
static void dpq_rescore(const dpq_database *db, dpq_group *g, dpq_workspace *w, size_t hits)
{
    if (db->nbits == 8 && db->levels == 4)
        dpq_rescore_shape(*db, 8, 4, g, w, hits);
    else if (db->nbits == 8 && db->levels == 8)
        dpq_rescore_shape(*db, 8, 8, g, w, hits);
    else
        dpq_rescore_shape(*db, db->nbits, db->levels, g, w, hits);
}

/* within[i]: queries whose limit the byte sum of vector first + i does not pass. `kind` and `levels`
 * are constants of each call: 8 and 4 read the codes in place, 16 the decoded ones. */
DPQ_INLINE void dpq_byte_sums(const dpq_database *db, const dpq_group *g, dpq_workspace *w, size_t first,
                                 size_t n, uint32_t kind, uint32_t levels)
{
    size_t K = kind == 16 ? dpq_codewords(db) : (size_t)1 << kind;
    const uint8_t *row = dpq_row(db, first), *rows8 = g->rows8;
    const uint8_t *bins = db->term_bins + first, *bin_rows = rows8 + levels * K * DPQ_QW;
    dpq_u8s limit = dpq_u8_load(g->limit);
    for (size_t i = 0; i < n; i++, row += db->code_size) {
        dpq_u8s sum = dpq_u8_load(rows8); 
        for (uint32_t l = 0; l < levels; l++) {
            size_t code = kind == 8 ? row[l] : kind == 4 ? row[l / 2] >> (l % 2 * 4) & 15 : w->code[i * levels + l];
            dpq_u8s entry = dpq_u8_load(rows8 + (l * K + code) * DPQ_QW);
            sum = l ? dpq_u8_add(sum, entry) : entry;
        }
        if (db->term_bins)
            sum = dpq_u8_add(sum, dpq_u8_load(bin_rows + (size_t)bins[i] * DPQ_QW));
        w->within[i] = dpq_u8_le(sum, limit);
    }
}

static void dpq_byte_scan(const dpq_database *db, const dpq_group *g, dpq_workspace *w, size_t first, size_t n)
{
    if (db->nbits == 8 && db->levels == 2)
        dpq_byte_sums(db, g, w, first, n, 8, 2);
    else if (db->nbits == 8 && db->levels == 4)
        dpq_byte_sums(db, g, w, first, n, 8, 4);
    else if (db->nbits == 8 && db->levels == 8)
        dpq_byte_sums(db, g, w, first, n, 8, 8);
    else if (db->nbits == 8)
        dpq_byte_sums(db, g, w, first, n, 8, db->levels);
    else if (db->nbits == 4 && db->levels == 8)
        dpq_byte_sums(db, g, w, first, n, 4, 8);
    else if (db->nbits == 4 && db->levels == 16)
        dpq_byte_sums(db, g, w, first, n, 4, 16);
    else if (db->nbits == 4)
        dpq_byte_sums(db, g, w, first, n, 4, db->levels);
    else {
        dpq_decode_chunk(db, w, first, 1, n, 0);
        dpq_byte_sums(db, g, w, first, n, 16, db->levels);
    }
}

static void dpq_byte_chunk(const dpq_database *db, dpq_group *g, dpq_workspace *w, size_t first, size_t n)
{
    uint64_t live = 0;
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++)
        if (!g->float_spans[strip])
            live |= 0xffffull << (strip * DPQ_FW);
    live &= dpq_lane_mask(g->lanes);
    if (!live)
        return;
    dpq_byte_scan(db, g, w, first, n);
    dpq_rescore(db, g, w, dpq_collect(w, first, n, live));
}

static void dpq_float_chunk(const dpq_database *db, dpq_group *g, dpq_workspace *w, size_t first, size_t n)
{
    int decoded = 0;
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++) {
        if (!g->float_spans[strip])
            continue;
        if (!decoded++)
            dpq_decode_chunk(db, w, first, 1, n, 0);
        dpq_strip_scan(db, g, w, strip, n);
        size_t found = dpq_collect(w, first, n, dpq_lane_mask(g->lanes - strip * DPQ_FW) & 0xffff);
        for (size_t h = 0; h < found; h++)
            w->hits.queries[h] <<= strip * DPQ_FW;
        dpq_rescore(db, g, w, found);
    }
}

static void dpq_scan_span(const dpq_database *db, dpq_group *g, dpq_workspace *w, size_t first, size_t n,
                          dpq_counters *counters)
{
    memset(g->hits_in_span, 0, sizeof g->hits_in_span);
    for (size_t rows, end = first + n, v = first; v < end; v += rows) {
        rows = dpq_min(dpq_first_chunks(db->n >= DPQ_MIN_SAMPLED_N ? DPQ_CHUNK : v, DPQ_CHUNK), end - v);
        dpq_byte_chunk(db, g, w, v, rows);
        dpq_float_chunk(db, g, w, v, rows);
    }
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++) {
        uint64_t pairs = n * dpq_min(DPQ_FW, g->lanes - strip * DPQ_FW);
        if (g->float_spans[strip]) {
            g->float_spans[strip] -= g->float_spans[strip] != UINT32_MAX;
            counters->floated += pairs;
            continue;
        }
        counters->bounded += pairs;
        counters->rescored += g->hits_in_span[strip];
        if (g->hits_in_span[strip] > DPQ_MAX_HITS_PER_SPAN)
            g->float_spans[strip] = DPQ_FLOAT_SPANS;
    }
}

/* Unused lanes repeat the first query, so that nothing depends on what was there. Tables of many queries lie in L3,
 * and the lines of 16 of them are no stream that the processor would fetch by itself. */
static void dpq_interleave(const dpq_database *db, const dpq_queries *qs, dpq_group *g)
{
    size_t rows = db->levels * dpq_codewords(db);
    for (uint32_t strip = 0; strip < DPQ_STRIPS; strip++) {
        const float *from[DPQ_FW];
        float *to = g->rows32 + strip * rows * DPQ_FW;
        for (uint32_t i = 0; i < DPQ_FW; i++) {
            uint32_t q = strip * DPQ_FW + i;
            from[i] = qs->tables + (g->first + (q < g->lanes ? q : 0)) * rows;
        }
        for (size_t r = 0; r < rows; r += DPQ_INTERLEAVED)
            for (uint32_t i = 0; i < DPQ_FW; i++) {
                __builtin_prefetch(from[i] + r + 4 * DPQ_INTERLEAVED);
                for (size_t j = r; j < dpq_min(r + DPQ_INTERLEAVED, rows); j++)
                    to[j * DPQ_FW + i] = from[i][j];
            }
    }
}

/* magnitude[lane] >= |any partial sum of table entries| */
static void dpq_strip_magnitude(const dpq_database *db, const float *rows, float *magnitude)
{
    size_t K = dpq_codewords(db);
    dpq_f32s sum = dpq_f32_all(0.0f);
    for (uint32_t l = 0; l < db->levels; l++) {
        dpq_f32s largest = dpq_f32_all(0.0f);
        for (size_t i = 0; i < K; i++)
            largest = dpq_f32_max(largest, dpq_f32_abs(dpq_f32_load(rows + (l * K + i) * DPQ_FW)));
        sum = dpq_f32_add(sum, largest);
    }
    dpq_f32_store(magnitude, dpq_f32_mul(sum, dpq_f32_all(1.00001f)));
}

static void dpq_strip_calibrate(const dpq_database *db, const dpq_queries *qs, dpq_group *g, uint32_t strip)
{
    float magnitude[DPQ_FW];
    dpq_strip_magnitude(db, g->rows32 + strip * db->levels * dpq_codewords(db) * DPQ_FW, magnitude);
    for (uint32_t i = 0; i < DPQ_FW; i++) {
        uint32_t q = strip * DPQ_FW + i;
        double low = dpq_low(db, qs, g->first + (q < g->lanes ? q : 0));
        g->bound[q] = dpq_bound_choose(db, low, g->high[q], magnitude[i], 0);
    }
}

static void dpq_strip_rows8(const dpq_database *db, dpq_group *g, uint32_t strip)
{
    size_t K = dpq_codewords(db), rows = db->levels * K;
    float scale[DPQ_FW], base[DPQ_FW];
    const float *from = g->rows32 + strip * rows * DPQ_FW;
    uint8_t *to = g->rows8 + strip * DPQ_FW;
    for (uint32_t i = 0; i < DPQ_FW; i++) {
        scale[i] = g->bound[strip * DPQ_FW + i].scale;
        base[i] = g->bound[strip * DPQ_FW + i].base;
    }
    dpq_f32s scales = dpq_f32_load(scale), bases = dpq_f32_load(base);
    for (size_t i = 0; i < rows; i++) {
        dpq_f32s entry = dpq_f32_mul(dpq_f32_load(from + i * DPQ_FW), scales);
        dpq_f32_floor_u8(to + i * DPQ_QW, i < K ? dpq_f32_sub(entry, bases) : entry);
    }
    for (uint32_t i = 0; db->term_bins && i < 256; i++)
        dpq_f32_floor_u8(to + (rows + i) * DPQ_QW, dpq_f32_mul(dpq_f32_all(dpq_term_edge(db, i)), scales));
}

/* Fewer vectors leave more hits to the scan, in proportion to k; a larger part costs more than the hits. */
static size_t dpq_sample_size(const dpq_database *db, size_t k)
{
    size_t wanted = DPQ_SAMPLED_A_RESULT * k;
    size_t size = dpq_min(wanted < DPQ_LEAST_SAMPLE ? DPQ_LEAST_SAMPLE : wanted, db->n / 8);
    return (size + DPQ_CHUNK - 1) / DPQ_CHUNK * DPQ_CHUNK;
}

/* Of so many, a tenth of k is lost by two of the k nearest in one bucket. */
static size_t dpq_buckets(const dpq_database *db, size_t k)
{
    return db->n < DPQ_MIN_SAMPLED_N ? 0 : dpq_min(4 * k, dpq_sample_size(db, k));
}

static void dpq_group_sample(const dpq_database *db, const dpq_queries *qs, dpq_group *g, dpq_workspace *w, size_t k)
{
    size_t size = dpq_sample_size(db, k), stride = db->n / size;
    for (size_t i = 0; i < g->buckets * DPQ_QW; i++)
        g->least[i] = INFINITY;
    for (size_t i = 0; i < size; i += DPQ_CHUNK) {
        dpq_decode_chunk(db, w, i * stride, stride, DPQ_CHUNK, 1);
        for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++)
            dpq_strip_sample(db, g, w, strip, i * stride, stride);
    }
    for (uint32_t strip = 0; strip * DPQ_FW < g->lanes; strip++) {
        dpq_strip_calibrate(db, qs, g, strip);
        dpq_strip_rows8(db, g, strip);
    }
    for (uint32_t q = 0; q < g->lanes; q++) {
        g->threshold[q] = dpq_sample_threshold(g, q, k);
        g->limit[q] = dpq_bound_limit(&g->bound[q], g->threshold[q]);
        dpq_topk_begin(&g->top[q], g->top[q].keys, k, g->threshold[q]);
    }
}

static void dpq_group_scan(const dpq_database *db, const dpq_queries *qs, dpq_group *g, dpq_workspace *w, size_t k,
                           dpq_counters *counters)
{
    dpq_interleave(db, qs, g);
    w->pendings = 0;
    for (uint32_t q = 0; q < DPQ_QW; q++) {
        dpq_topk_begin(&g->top[q], g->keys + q * dpq_topk_capacity(k), k, INFINITY);
        g->threshold[q] = INFINITY;
        g->high[q] = -INFINITY;
        g->bound[q] = (dpq_bound){0, 0, 0};
    }
    memset(g->float_spans, db->n < DPQ_MIN_SAMPLED_N ? 0xff : 0, sizeof g->float_spans);
    if (g->buckets)
        dpq_group_sample(db, qs, g, w, k);
    for (size_t v = 0; v < db->n; v += DPQ_SPAN)
        dpq_scan_span(db, g, w, v, dpq_min(DPQ_SPAN, db->n - v), counters);
    dpq_rescore(db, g, w, 0);
}

/* Missing neighbours (fewer than k allowed vectors): +inf and UINT32_MAX. */
static void dpq_write(dpq_topk *t, size_t k, float *distances, uint32_t *ids)
{
    size_t n = dpq_topk_end(t);
    for (size_t i = 0; i < k; i++) {
        distances[i] = i < n ? dpq_key_distance(t->keys[i]) : INFINITY;
        ids[i] = i < n ? (uint32_t)t->keys[i] : UINT32_MAX;
    }
}

static inline void *dpq_take(char **at, size_t bytes)
{
    void *taken = *at;
    *at += (bytes + 63) & ~(size_t)63;
    return taken;
}

static void dpq_batch_layout(const dpq_database *db, size_t k, char **at, dpq_group **g, dpq_workspace **w)
{
    size_t rows = db->levels * dpq_codewords(db);
    *at = (char *)(((uintptr_t)*at + 63) & ~(uintptr_t)63);
    dpq_group *group = dpq_take(at, sizeof *group);
    dpq_workspace *work = dpq_take(at, sizeof *work);
    float *rows32 = dpq_take(at, rows * DPQ_QW * sizeof(float));
    uint8_t *rows8 = dpq_take(at, (rows + 256) * DPQ_QW);
    uint64_t *keys = dpq_take(at, dpq_topk_capacity(k) * DPQ_QW * sizeof(uint64_t));
    size_t buckets = dpq_buckets(db, k);
    float *least = dpq_take(at, buckets * DPQ_QW * sizeof(float));
    uint64_t *order = dpq_take(at, buckets * sizeof(uint64_t));
    if (g) {
        group->rows32 = rows32;
        group->rows8 = rows8;
        group->keys = keys;
        group->buckets = buckets;
        group->least = least;
        group->order = order;
        *g = group;
        *w = work;
    }
}

static size_t batch_scratch(const dpq_database *db, size_t k)
{
    char *at = (char *)64;
    dpq_batch_layout(db, k, &at, NULL, NULL);
    return (size_t)at;
}

static void scan_batch(const dpq_database *db, const dpq_queries *qs, size_t k, float *distances,
                              uint32_t *ids, void *scratch, dpq_counters *counters)
{
    char *at = scratch;
    dpq_group *g;
    dpq_workspace *w;
    dpq_batch_layout(db, k, &at, &g, &w);
    for (g->first = 0; g->first < qs->nq; g->first += DPQ_QW) {
        g->lanes = (uint32_t)dpq_min(DPQ_QW, qs->nq - g->first);
        dpq_group_scan(db, qs, g, w, k, counters);
        for (uint32_t q = 0; q < g->lanes; q++)
            dpq_write(&g->top[q], k, distances + (g->first + q) * k, ids + (g->first + q) * k);
    }
}
