/* Scan for one query: byte look-ups in registers, DPQ_QW vectors at a time.
 *
 * Codes stay row-major. Four bytes of each of DPQ_QW consecutive vectors are read as four registers of
 * dwords, register r holding vectors r Q .. r Q + Q - 1 (Q = DPQ_QW / 4), and their bytes transposed
 * across registers by shifts and picks alone, which leaves the shuffle port to the look-ups:
 *
 *      register r, dword j: b0 b1 b2 b3 of vector r Q + j
 *   -> plane b, byte 4 j + r: byte b of vector r Q + j
 *
 * The order within a plane does not matter as long as term bins get the same one; only a hit's
 * position is translated back. The bound, and what is done with hits, are the batch scan's.
 */
#include "dpq_topk.h"
#include "scan_bound.h"
#include "scan_codes.h"

#define DPQ_QUARTER (DPQ_QW / 4)
#define DPQ_ONE_CHUNK 1024u       /* vectors between two updates of the limit */
#define DPQ_ONE_SAMPLE 1024u
#define DPQ_ONE_MIN_SAMPLED_N 8192u

typedef struct {
    uint8_t table8[DPQ_MAX_LEVELS * 256]; /* [level][codeword] */
    uint16_t slope;                       /* of the bins' entries */
    uint8_t start;                        /* what every byte sum begins with */
    uint32_t hits[DPQ_ONE_CHUNK];
    uint32_t pending[DPQ_ONE_CHUNK]; /* of an earlier chunk, to be rescored exactly */
    size_t pendings;
    const float *table;
    float threshold;
    uint8_t limit;
    dpq_bound bound;
    dpq_topk top;
} dpq_single;

static inline float dpq_one_sum(const dpq_database *db, const float *table, const uint16_t *code, float start)
{
    for (uint32_t l = 0; l < db->levels; l++)
        start += table[((size_t)l << db->nbits) + code[l]];
    return start;
}

static inline void dpq_one_offer(dpq_single *s, float distance, size_t v)
{
    uint64_t key = dpq_key(distance, (uint32_t)v);
    if (key < s->top.limit && dpq_topk_push(&s->top, key)) {
        s->threshold = dpq_topk_threshold(&s->top);
        s->limit = dpq_bound_limit(&s->bound, s->threshold);
    }
}

static void dpq_one_rescore_pending(const dpq_database *db, dpq_single *s)
{
    for (size_t h = 0; h < s->pendings; h++) {
        uint16_t code[DPQ_MAX_LEVELS];
        dpq_unpack(db, s->pending[h], code);
        dpq_one_offer(s, dpq_one_sum(db, s->table, code, dpq_term(db, s->pending[h], code)), s->pending[h]);
    }
    s->pendings = 0;
}

/* Float lower bounds now; exact terms after the next chunk, their cross entries fetched meanwhile. */
static void dpq_one_rescore(const dpq_database *db, dpq_single *s, size_t hits)
{
    dpq_one_rescore_pending(db, s);
    for (size_t h = 0; h < hits; h++) {
        uint16_t code[DPQ_MAX_LEVELS];
        uint32_t v = s->hits[h];
        dpq_unpack(db, v, code);
        float edge = db->term_bins ? dpq_term_edge(db, db->term_bins[v]) : 0.0f;
        if (!(dpq_one_sum(db, s->table, code, edge) <= s->threshold) || !dpq_is_allowed(db, v))
            continue;
        dpq_prefetch_term(db, code);
        s->pending[s->pendings++] = v;
    }
}

/* Float lower bounds straight from the codes. */
static inline size_t dpq_one_float_hits(const dpq_database *db, dpq_single *s, size_t first, size_t n, uint32_t levels)
{
    uint32_t nbits = db->nbits;
    const float *table = s->table, threshold = s->threshold;
    size_t found = 0;
    for (size_t v = first; v < first + n; v++) {
        const uint8_t *row = dpq_row(db, v);
        float sum = db->term_bins ? dpq_term_edge(db, db->term_bins[v]) : 0.0f;
        for (uint32_t l = 0; l < levels; l++)
            sum += table[((size_t)l << nbits) + dpq_code(row, nbits, l)];
        s->hits[found] = (uint32_t)v;
        found += sum <= threshold;
    }
    return found;
}

static void dpq_one_float_chunk(const dpq_database *db, dpq_single *s, size_t first, size_t n)
{
    size_t found = 0, end = first + n;
    while (n && dpq_is_end(db, first + n - 1))
        n--;
    if (db->levels == 4)
        found = dpq_one_float_hits(db, s, first, n, 4);
    else if (db->levels == 8)
        found = dpq_one_float_hits(db, s, first, n, 8);
    else
        found = dpq_one_float_hits(db, s, first, n, db->levels);
    for (size_t v = first + n; v < end; v++)
        s->hits[found++] = (uint32_t)v;
    dpq_one_rescore(db, s, found);
}

/* Upper bounds of a strided sample's distances give the first threshold and the range in use. */
static void dpq_one_sample(const dpq_database *db, dpq_single *s, float *high)
{
    size_t size = DPQ_ONE_SAMPLE, stride = db->n / size;
    *high = -INFINITY;
    for (size_t i = 0; i < size; i++) {
        uint16_t code[DPQ_MAX_LEVELS];
        size_t v = i * stride;
        dpq_unpack(db, v, code);
        float edge = db->term_bins ? dpq_term_edge(db, db->term_bins[v] + 1u) : 0.0f;
        float d = dpq_one_sum(db, s->table, code, edge);
        *high = d > *high ? d : *high;
        if (dpq_is_allowed(db, v))
            dpq_one_offer(s, d, v);
    }
}

static double dpq_one_magnitude(const dpq_database *db, const float *table)
{
    size_t K = (size_t)1 << db->nbits;
    double sum = 0;
    for (uint32_t l = 0; l < db->levels; l++) {
        float lane[DPQ_FW], most = 0;
        dpq_f32s largest = dpq_f32_all(0.0f);
        for (size_t i = 0; i < K; i += DPQ_FW)
            largest = dpq_f32_max(largest, dpq_f32_abs(dpq_f32_load(table + l * K + i)));
        dpq_f32_store(lane, largest);
        for (uint32_t i = 0; i < DPQ_FW; i++)
            most = lane[i] > most ? lane[i] : most;
        sum += most;
    }
    return sum;
}

/* Edges are evenly spaced, so a bin's entry needs no table: bin * slope / 256 rounded down, slope itself
 * rounded down to an integer, loses the one spare unit at most. slope < 2^16 because the bound's span
 * of less than 256 units includes a bin's width. */
static void dpq_one_build(const dpq_database *db, dpq_single *s)
{
    size_t K = (size_t)1 << db->nbits;
    float start = db->term_bins ? s->bound.base - db->term_min * s->bound.scale : s->bound.base;
    s->slope = db->term_bins ? (uint16_t)((double)db->term_step * s->bound.scale * 256) : 0;
    for (uint32_t l = 0; l < db->levels; l++) {
        dpq_f32s scale = dpq_f32_all(s->bound.scale), base = dpq_f32_all(l ? 0.0f : start);
        for (size_t i = 0; i < K; i += DPQ_FW)
            dpq_f32_floor_u8(s->table8 + l * 256 + i,
                             dpq_f32_sub(dpq_f32_mul(dpq_f32_load(s->table + l * K + i), scale), base));
        if (K == 256)
            dpq_lookup256_prepare(s->table8 + l * 256);
    }
}

/* In: four registers of dwords; out: their four byte planes (layout above). */
static inline void dpq_transpose4(dpq_u8s r[4])
{
    dpq_u8s a = dpq_u32_pick(0x0000ffff, r[0], dpq_u32_shl(r[2], 16));
    dpq_u8s b = dpq_u32_pick(0x0000ffff, r[1], dpq_u32_shl(r[3], 16));
    dpq_u8s c = dpq_u32_pick(0x0000ffff, dpq_u32_shr(r[0], 16), r[2]);
    dpq_u8s d = dpq_u32_pick(0x0000ffff, dpq_u32_shr(r[1], 16), r[3]);
    r[0] = dpq_u32_pick(0x00ff00ff, a, dpq_u32_shl(b, 8));
    r[1] = dpq_u32_pick(0x00ff00ff, dpq_u32_shr(a, 8), b);
    r[2] = dpq_u32_pick(0x00ff00ff, c, dpq_u32_shl(d, 8));
    r[3] = dpq_u32_pick(0x00ff00ff, dpq_u32_shr(c, 8), d);
}

/* Bytes at .. at + 3 of DPQ_QW rows. */
static inline void dpq_load_planes(const uint8_t *row, size_t code_size, size_t at, dpq_u8s plane[4])
{
    for (size_t r = 0; r < 4; r++)
        plane[r] = dpq_u32_column(row + r * DPQ_QUARTER * code_size, code_size, at);
    dpq_transpose4(plane);
}

/* Sums of the bytes at .. at + bytes - 1 (at most 4), `skip` of the loaded four being none of these. */
static inline dpq_u8s dpq_add_planes(dpq_u8s sum, const dpq_single *s, const uint8_t *row, size_t code_size,
                                     uint32_t at, uint32_t skip, uint32_t levels, uint32_t nbits)
{
    dpq_u8s plane[4], low = dpq_u8_all(15);
    dpq_load_planes(row, code_size, at - skip, plane);
    for (uint32_t b = skip; b < 4; b++) {
        uint32_t byte = at - skip + b;
        if (nbits == 8 && byte < levels)
            sum = dpq_u8_add(sum, dpq_lookup256(s->table8 + byte * 256, plane[b]));
        if (nbits == 4 && 2 * byte < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(s->table8 + 2 * byte * 256, dpq_u8_and(plane[b], low)));
        if (nbits == 4 && 2 * byte + 1 < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(s->table8 + (2 * byte + 1) * 256,
                                               dpq_u8_and(dpq_u32_shr(plane[b], 4), low)));
    }
    return sum;
}

/* Hits among DPQ_QW vectors, in plane order; code_size >= 4. The last group of four bytes is moved back
 * to end with the row, so that nothing beyond the codes is read. */
static inline uint64_t dpq_one_block(const dpq_database *db, const dpq_single *s, size_t first, dpq_u8s limit,
                                     size_t code_size, uint32_t levels, uint32_t nbits)
{
    const uint8_t *row = db->codes + first * code_size;
    uint32_t bytes = (levels * nbits + 7) / 8;
    dpq_u8s sum = dpq_u8_all(s->start);
    for (uint32_t at = 0; at < bytes; at += 4) {
        uint32_t skip = at + 4 > code_size ? at + 4 - (uint32_t)code_size : 0;
        sum = dpq_add_planes(sum, s, row, code_size, at, skip, levels, nbits);
    }
    if (db->term_bins) {
        dpq_u8s bins = dpq_u8_interleave4(dpq_u8_load(db->term_bins + first));
        sum = dpq_u8_add(sum, dpq_u8_scale(bins, s->slope));
    }
    return dpq_u8_le(sum, limit);
}

static inline size_t dpq_one_blocks(const dpq_database *db, dpq_single *s, size_t first, size_t n,
                                    size_t code_size, uint32_t levels, uint32_t nbits)
{
    dpq_u8s limit = dpq_u8_all(s->limit);
    size_t found = 0;
    for (size_t v = first; v < first + n; v += DPQ_QW) {
        uint64_t within = dpq_one_block(db, s, v, limit, code_size, levels, nbits);
        for (; within; within &= within - 1) {
            uint32_t position = (uint32_t)__builtin_ctzll(within);
            s->hits[found++] = (uint32_t)v + position % 4 * DPQ_QUARTER + position / 4;
        }
    }
    return found;
}

/* n is a multiple of DPQ_QW. */
static size_t dpq_one_filter(const dpq_database *db, dpq_single *s, size_t first, size_t n)
{
    size_t size = db->code_size;
    uint32_t levels = db->levels;
    if (db->nbits == 8) {
        if (size == 4 && levels == 4)
            return dpq_one_blocks(db, s, first, n, 4, 4, 8);
        if (size == 8 && levels == 8)
            return dpq_one_blocks(db, s, first, n, 8, 8, 8);
        if (size == 16 && levels == 16)
            return dpq_one_blocks(db, s, first, n, 16, 16, 8);
        return dpq_one_blocks(db, s, first, n, size, levels, 8);
    }
    if (size == 4 && levels == 8)
        return dpq_one_blocks(db, s, first, n, 4, 8, 4);
    if (size == 8 && levels == 16)
        return dpq_one_blocks(db, s, first, n, 8, 16, 4);
    return dpq_one_blocks(db, s, first, n, size, levels, 4);
}

/* Look-ups know 8- and 4-bit codes; other widths, and databases too small for a sample, go by float. */
static int dpq_one_has_bytes(const dpq_database *db)
{
    return (db->nbits == 8 || db->nbits == 4) && db->code_size >= 4 && db->n >= DPQ_ONE_MIN_SAMPLED_N;
}

static float dpq_one_first_threshold(const dpq_database *db, dpq_single *s, size_t k, float *high)
{
    dpq_one_sample(db, s, high);
    float threshold = dpq_topk_end(&s->top) == k ? dpq_key_distance(s->top.keys[k - 1]) : INFINITY;
    dpq_topk_begin(&s->top, s->top.keys, k, threshold);
    return threshold;
}

static void dpq_one_calibrate(const dpq_database *db, const dpq_queries *qs, size_t q, dpq_single *s, float high)
{
    s->bound = dpq_bound_choose(db, dpq_low(db, qs, q), high, dpq_one_magnitude(db, s->table), 1);
    s->limit = dpq_bound_limit(&s->bound, s->threshold);
    dpq_one_build(db, s);
}

/* While its codes are on their way to the cache for the scan anyway. */
static uint64_t hash_codes(const dpq_database *db, size_t first)
{
    size_t n = db->n - first < DPQ_HASH_BLOCK ? db->n - first : DPQ_HASH_BLOCK;
    return hash_bytes(dpq_row(db, first), n * db->code_size);
}

static void dpq_one_scan(const dpq_database *db, const dpq_queries *qs, size_t q, dpq_single *s, size_t k,
                         dpq_counters *counters)
{
    int bytes = dpq_one_has_bytes(db);
    float high;
    if (db->n >= DPQ_ONE_MIN_SAMPLED_N)
        s->threshold = dpq_one_first_threshold(db, s, k, &high);
    if (bytes)
        dpq_one_calibrate(db, qs, q, s, high);
    for (size_t n, v = 0; v < db->n; v += n) {
        n = dpq_first_chunks(bytes ? DPQ_ONE_CHUNK : v, DPQ_ONE_CHUNK);
        n = db->n - v < n ? db->n - v : n;
        if (db->hashes && v % DPQ_HASH_BLOCK == 0)
            db->hashes[v / DPQ_HASH_BLOCK] = hash_codes(db, v);
        size_t whole = bytes ? n / DPQ_QW * DPQ_QW : 0;
        size_t found = dpq_one_filter(db, s, v, whole);
        dpq_one_rescore(db, s, found);
        dpq_one_float_chunk(db, s, v + whole, n - whole);
        counters->bounded += whole;
        counters->rescored += found;
        counters->floated += n - whole;
    }
    dpq_one_rescore_pending(db, s);
}

static size_t single_scratch(size_t k)
{
    return 64 + sizeof(dpq_single) + dpq_topk_capacity(k) * sizeof(uint64_t);
}

static void scan_single(const dpq_database *db, const dpq_queries *qs, size_t k, float *distances,
                               uint32_t *ids, void *scratch, dpq_counters *counters)
{
    dpq_single *s = (dpq_single *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    uint64_t *keys = (uint64_t *)(s + 1);
    for (size_t q = 0; q < qs->nq; q++) {
        s->table = qs->tables + ((q * db->levels) << db->nbits);
        s->threshold = INFINITY;
        s->pendings = 0;
        s->bound = (dpq_bound){0, 0, 0};
        s->start = 0;
        dpq_topk_begin(&s->top, keys, k, INFINITY);
        dpq_one_scan(db, qs, q, s, k, counters);
        dpq_write(&s->top, k, distances + q * k, ids + q * k);
    }
}
