/* Scan for one query: byte look-ups in registers, DPQ_QW vectors at a time.
 *
 * Codes stay row-major. Those of 4, 8 or 16 bytes are read as so many registers, which hold w = 16 / bytes of the vectors
 * in every lane of 16 bytes; of other sizes, four bytes at a time of each vector, as if these were all. Zipping the bytes
 * of two registers, which moves one bit of a byte's register number to the end of its place in the lane, and the first bit
 * of its place to the register number, makes planes of them in four turns:
 *
 *      register r, lane, byte p s + b:   byte b of vector (r lanes + lane) w + p        (s = 16 / w bytes)
 *   -> plane b, lane, byte r w + p
 *
 * The order within a plane does not matter as long as term bins get the same one; only a hit's position is translated
 * back. Where few planes are wanted, the compiler leaves out what makes the others. The bound, and what is done with hits,
 * are the batch scan's.
 */
#include "dpq_threads.h"
#include "dpq_topk.h"
#include "scan_bound.h"
#include "scan_codes.h"
#include <pthread.h>
#include <stdatomic.h>

#define DPQ_QUARTER (DPQ_QW / 4)
#define DPQ_ONE_CHUNK 1024u       /* vectors between two updates of the limit */
#define DPQ_ONE_SAMPLE 1024u
#define DPQ_ONE_SAMPLE_PIECE 128u /* of the sample, that a thread takes at a time */
#define DPQ_ONE_MIN_SAMPLED_N 8192u
#define DPQ_ONE_PIECE 16384u      /* vectors that a thread takes at a time */
#define DPQ_ONE_SHARE 4096u       /* of multiples of so many are the shares that threads begin with */

/* Look-ups, and what they found. */
typedef struct {
    uint8_t table8[DPQ_MAX_LEVELS * 256]; /* [level][codeword] */
    uint16_t slope;                       /* of the bins' entries */
    uint8_t start;                        /* what every byte sum begins with */
    uint8_t limit;
    uint32_t hits[DPQ_ONE_CHUNK];
} dpq_lookups;

/* A thread's own. */
typedef struct {
    dpq_lookups look;
    uint32_t pending[DPQ_ONE_CHUNK]; /* of an earlier chunk, to be rescored exactly */
    uint64_t keys[DPQ_ONE_CHUNK];    /* of those rescored */
    size_t pendings;
    float threshold;
    dpq_counters counters;
    _Atomic size_t next; /* what no thread has taken, of this one's share, which ends at: */
    size_t end;
} __attribute__((aligned(64))) dpq_single;

/* Of one search; shared by its threads. What they write is apart from what they only read. */
typedef struct {
    const dpq_database *db;
    const float *table;
    size_t n_threads;
    dpq_single *singles; /* one a thread */
    int bytes;           /* scanned by look-ups? */
    dpq_bound bound;
    float upper[DPQ_ONE_SAMPLE]; /* bounds of the sample's distances */
    dpq_topk top;                /* of several threads, its owner has the lock */
    pthread_mutex_t lock;
    _Atomic uint64_t limit; /* top.limit, for all to see */
} dpq_single_search;

static inline float dpq_one_sum(const dpq_database *db, const float *table, const uint16_t *code, float start)
{
    for (uint32_t l = 0; l < db->levels; l++)
        start += table[((size_t)l << db->nbits) + code[l]];
    return start;
}

/* What the threads have found by now. */
static inline void dpq_one_follow(const dpq_single_search *search, dpq_single *s)
{
    s->threshold = dpq_key_distance(atomic_load_explicit(&search->limit, memory_order_relaxed));
    s->look.limit = dpq_bound_limit(&search->bound, s->threshold);
}

static void dpq_one_offer(dpq_single_search *search, const uint64_t *keys, size_t n)
{
    if (search->n_threads > 1)
        pthread_mutex_lock(&search->lock);
    for (size_t i = 0; i < n; i++)
        if (keys[i] < search->top.limit)
            dpq_topk_push(&search->top, keys[i]);
    atomic_store_explicit(&search->limit, search->top.limit, memory_order_relaxed);
    if (search->n_threads > 1)
        pthread_mutex_unlock(&search->lock);
}

static void dpq_one_rescore_pending(dpq_single_search *search, dpq_single *s)
{
    const dpq_database *db = search->db;
    uint64_t limit = atomic_load_explicit(&search->limit, memory_order_relaxed);
    size_t n = 0;
    for (size_t h = 0; h < s->pendings; h++) {
        uint16_t code[DPQ_MAX_LEVELS];
        uint32_t v = s->pending[h];
        dpq_unpack(db, v, code);
        s->keys[n] = dpq_key(dpq_one_sum(db, search->table, code, dpq_term(db, v, code)), v);
        n += s->keys[n] < limit;
    }
    s->pendings = 0;
    if (n) {
        dpq_one_offer(search, s->keys, n);
        dpq_one_follow(search, s);
    }
}

/* Float lower bounds now; exact terms after the next chunk, their cross entries fetched meanwhile. */
static void dpq_one_rescore(dpq_single_search *search, dpq_single *s, size_t hits)
{
    const dpq_database *db = search->db;
    dpq_one_rescore_pending(search, s);
    for (size_t h = 0; h < hits; h++) {
        uint16_t code[DPQ_MAX_LEVELS];
        uint32_t v = s->look.hits[h];
        dpq_unpack(db, v, code);
        float edge = db->term_bins ? dpq_term_edge(db, db->term_bins[v]) : 0.0f;
        if (!(dpq_one_sum(db, search->table, code, edge) <= s->threshold) || !dpq_is_allowed(db, v))
            continue;
        dpq_prefetch_term(db, code);
        s->pending[s->pendings++] = v;
    }
}

/* Float lower bounds straight from the codes. */
static inline size_t dpq_one_float_hits(const dpq_single_search *search, dpq_single *s, size_t first, size_t n,
                                        uint32_t levels)
{
    const dpq_database *db = search->db;
    uint32_t nbits = db->nbits;
    const float *table = search->table, threshold = s->threshold;
    size_t found = 0;
    for (size_t v = first; v < first + n; v++) {
        const uint8_t *row = dpq_row(db, v);
        float sum = db->term_bins ? dpq_term_edge(db, db->term_bins[v]) : 0.0f;
        for (uint32_t l = 0; l < levels; l++)
            sum += table[((size_t)l << nbits) + dpq_code(row, nbits, l)];
        s->look.hits[found] = (uint32_t)v;
        found += sum <= threshold;
    }
    return found;
}

static void dpq_one_float_chunk(dpq_single_search *search, dpq_single *s, size_t first, size_t n)
{
    const dpq_database *db = search->db;
    size_t found = 0, end = first + n;
    while (n && dpq_is_end(db, first + n - 1))
        n--;
    if (db->levels == 4)
        found = dpq_one_float_hits(search, s, first, n, 4);
    else if (db->levels == 8)
        found = dpq_one_float_hits(search, s, first, n, 8);
    else
        found = dpq_one_float_hits(search, s, first, n, db->levels);
    for (size_t v = first + n; v < end; v++)
        s->look.hits[found++] = (uint32_t)v;
    dpq_one_rescore(search, s, found);
    s->counters.floated += end - first;
}

/* Even shares of n vectors, or of a sample of all, in multiples of `unit`. A thread begins with its own, whose codes its
 * core's cache may have from the search before. */
static void dpq_one_share(dpq_single_search *search, size_t n, size_t unit)
{
    size_t units = (n + unit - 1) / unit, n_threads = search->n_threads;
    for (size_t t = 0, end = 0; t < n_threads; t++) {
        dpq_single *s = search->singles + t;
        atomic_store_explicit(&s->next, end, memory_order_relaxed);
        end = units * (t + 1) / n_threads * unit;
        s->end = end = end < n ? end : n;
    }
}

/* The next `most` for a thread: of its own share, else of another's. Returns how many there are. */
static size_t dpq_one_take(dpq_single_search *search, size_t thread, size_t most, size_t *first)
{
    for (size_t i = 0; i < search->n_threads; i++) {
        dpq_single *s = search->singles + (thread + i) % search->n_threads;
        if (atomic_load_explicit(&s->next, memory_order_relaxed) >= s->end)
            continue;
        *first = atomic_fetch_add_explicit(&s->next, most, memory_order_relaxed);
        if (*first < s->end)
            return s->end - *first < most ? s->end - *first : most;
    }
    return 0;
}

/* Upper bounds of the distances of a strided sample. */
static void dpq_one_sample_pieces(void *context, size_t thread)
{
    dpq_single_search *search = context;
    const dpq_database *db = search->db;
    size_t stride = db->n / DPQ_ONE_SAMPLE;
    for (size_t n, first; (n = dpq_one_take(search, thread, DPQ_ONE_SAMPLE_PIECE, &first));) {
        for (size_t i = first; i < first + n; i++) {
            uint16_t code[DPQ_MAX_LEVELS];
            size_t v = i * stride;
            dpq_unpack(db, v, code);
            float edge = db->term_bins ? dpq_term_edge(db, db->term_bins[v] + 1u) : 0.0f;
            search->upper[i] = dpq_one_sum(db, search->table, code, edge);
        }
    }
}

/* They give the first threshold, and the range in use: its end is returned. */
static float dpq_one_sample(dpq_single_search *search)
{
    const dpq_database *db = search->db;
    size_t stride = db->n / DPQ_ONE_SAMPLE, k = search->top.k;
    float high = -INFINITY, least = INFINITY; /* that is no use */
    dpq_one_share(search, DPQ_ONE_SAMPLE, DPQ_ONE_SAMPLE_PIECE);
    dpq_run_together(search->n_threads, dpq_one_sample_pieces, search);
    for (size_t i = 0; i < DPQ_ONE_SAMPLE; i++) {
        float upper = search->upper[i];
        high = upper > high ? upper : high;
        if (upper < least && dpq_is_allowed(db, i * stride) &&
            dpq_topk_push(&search->top, dpq_key(upper, (uint32_t)(i * stride))))
            least = dpq_topk_threshold(&search->top);
    }
    float threshold = dpq_topk_end(&search->top) == k ? dpq_key_distance(search->top.keys[k - 1]) : INFINITY;
    dpq_topk_begin(&search->top, search->top.keys, k, threshold);
    return high;
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

/* Levels that the tables are filled up to with zeros, so that the compiler needs to know few numbers of them: those of
 * dpq_one_filter. */
static inline uint32_t dpq_filled_levels(uint32_t levels)
{
    uint32_t filled = 8;
    while (filled < levels)
        filled *= 2;
    return filled;
}

/* Edges are evenly spaced, so a bin's entry needs no table: bin * slope / 256 rounded down, slope itself
 * rounded down to an integer, loses the one spare unit at most. slope < 2^16 because the bound's span
 * of less than 256 units includes a bin's width. */
static void dpq_one_build(const dpq_database *db, const float *table, const dpq_bound *bound, dpq_lookups *look)
{
    size_t K = (size_t)1 << db->nbits;
    float start = db->term_bins ? bound->base - db->term_min * bound->scale : bound->base;
    look->start = 0;
    look->slope = db->term_bins ? (uint16_t)((double)db->term_step * bound->scale * 256) : 0;
    for (uint32_t l = 0; l < db->levels; l++) {
        dpq_f32s scale = dpq_f32_all(bound->scale), base = dpq_f32_all(l ? 0.0f : start);
        for (size_t i = 0; i < K; i += DPQ_FW)
            dpq_f32_floor_u8(look->table8 + l * 256 + i,
                             dpq_f32_sub(dpq_f32_mul(dpq_f32_load(table + l * K + i), scale), base));
        if (K == 256)
            dpq_lookup256_prepare(look->table8 + l * 256);
    }
    memset(look->table8 + db->levels * 256, 0, (dpq_filled_levels(db->levels) - db->levels) * 256);
}

/* n registers to n planes, n being 4, 8 or 16; in the order of `dpq_plane`. */
DPQ_INLINE void dpq_transpose(dpq_u8s *r, uint32_t n)
{
#pragma GCC unroll 4
    for (uint32_t turn = 0, step = n / 2; turn < 4; turn++, step = step > 1 ? step / 2 : n / 2) {
#pragma GCC unroll 16
        for (uint32_t i = 0; i < n; i++)
            if (!(i & step))
                dpq_u8_zip(&r[i], &r[i + step]);
    }
}

/* Where plane b is: of eight, the first bit of the register number has had two turns. */
DPQ_INLINE uint32_t dpq_plane(uint32_t n, uint32_t b)
{
    return n == 8 ? b % 2 * 4 + b / 2 : b;
}

/* Adds the entries of n planes, bytes first .. first + n - 1 of the codes; of these before `from` nothing. */
DPQ_INLINE dpq_u8s dpq_add_planes(dpq_u8s sum, const dpq_lookups *look, dpq_u8s *r, uint32_t n, uint32_t first,
                                  uint32_t from, uint32_t levels, uint32_t nbits)
{
    dpq_u8s low = dpq_u8_all(15);
    dpq_transpose(r, n);
#pragma GCC unroll 16
    for (uint32_t b = 0; b < n; b++) {
        uint32_t byte = first + b;
        dpq_u8s plane = r[dpq_plane(n, b)];
        if (byte < from)
            continue;
        if (nbits == 8 && byte < levels)
            sum = dpq_u8_add(sum, dpq_lookup256(look->table8 + byte * 256, plane));
        if (nbits == 4 && 2 * byte < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(look->table8 + 2 * byte * 256, dpq_u8_and(plane, low)));
        if (nbits == 4 && 2 * byte + 1 < levels)
            sum = dpq_u8_add(sum, dpq_lookup16(look->table8 + (2 * byte + 1) * 256,
                                               dpq_u8_and(dpq_u32_shr(plane, 4), low)));
    }
    return sum;
}

/* Of codes of any size but `whole` ones, 4 bytes at a time, and at least 4. The last four are moved back to end with the
 * row, so that nothing beyond the codes is read. */
static inline dpq_u8s dpq_add_columns(dpq_u8s sum, const dpq_lookups *look, const uint8_t *row, size_t code_size,
                                      uint32_t levels, uint32_t nbits)
{
    uint32_t bytes = (levels * nbits + 7) / 8;
    for (uint32_t at = 0; at < bytes; at += 4) {
        uint32_t begin = at + 4 > code_size ? (uint32_t)code_size - 4 : at;
        dpq_u8s r[4];
        for (uint32_t i = 0; i < 4; i++)
            r[i] = dpq_u32_column(row + i * DPQ_QUARTER * code_size, code_size, begin);
        sum = dpq_add_planes(sum, look, r, 4, begin, at, levels, nbits);
    }
    return sum;
}

/* Hits among DPQ_QW vectors, in plane order. whole: code_size is 4, 8 or 16, and known to the compiler. */
DPQ_INLINE uint64_t dpq_one_block(const dpq_database *db, const dpq_lookups *look, size_t first, dpq_u8s limit,
                                  size_t code_size, int whole, uint32_t levels, uint32_t nbits)
{
    const uint8_t *row = db->codes + first * code_size;
    dpq_u8s sum = dpq_u8_all(look->start);
    if (whole) {
        dpq_u8s r[16];
#pragma GCC unroll 16
        for (uint32_t i = 0; i < code_size; i++)
            r[i] = dpq_u8_load(row + i * DPQ_QW);
        sum = dpq_add_planes(sum, look, r, (uint32_t)code_size, 0, 0, levels, nbits);
    } else
        sum = dpq_add_columns(sum, look, row, code_size, levels, nbits);
    if (db->term_bins) {
        dpq_u8s bins = dpq_u8_by_lanes(dpq_u8_load(db->term_bins + first), whole ? 16 / (uint32_t)code_size : 4);
        sum = dpq_u8_add(sum, dpq_u8_scale(bins, look->slope));
    }
    return dpq_u8_le(sum, limit);
}

DPQ_INLINE size_t dpq_one_blocks(const dpq_database *db, dpq_lookups *look, size_t first, size_t n, size_t code_size,
                                 int whole, uint32_t levels, uint32_t nbits)
{
    const uint32_t w = whole ? 16 / (uint32_t)code_size : 4, lanes = DPQ_QW / 16;
    dpq_u8s limit = dpq_u8_all(look->limit);
    size_t found = 0;
    for (size_t v = first; v < first + n; v += DPQ_QW) {
        uint64_t within = dpq_one_block(db, look, v, limit, code_size, whole, levels, nbits);
        for (; within; within &= within - 1) {
            uint32_t position = (uint32_t)__builtin_ctzll(within), lane = position / 16, in_lane = position % 16;
            look->hits[found++] = (uint32_t)v + (in_lane / w * lanes + lane) * w + in_lane % w;
        }
    }
    return found;
}

/* n is a multiple of DPQ_QW. */
static size_t dpq_one_filter(const dpq_database *db, dpq_lookups *look, size_t first, size_t n)
{
#define DPQ_WHOLE(SIZE, LEVELS, NBITS)                                          \
    if (db->code_size == SIZE && db->nbits == NBITS && db->levels <= LEVELS)    \
        return dpq_one_blocks(db, look, first, n, SIZE, 1, LEVELS, NBITS)
    DPQ_WHOLE(4, 2, 8);
    DPQ_WHOLE(4, 4, 8);
    DPQ_WHOLE(8, 2, 8);
    DPQ_WHOLE(8, 4, 8);
    DPQ_WHOLE(8, 8, 8);
    DPQ_WHOLE(16, 2, 8);
    DPQ_WHOLE(16, 4, 8);
    DPQ_WHOLE(16, 8, 8);
    DPQ_WHOLE(16, 16, 8);
    DPQ_WHOLE(4, 8, 4);
    DPQ_WHOLE(8, 8, 4);
    DPQ_WHOLE(8, 16, 4);
#undef DPQ_WHOLE
    return dpq_one_blocks(db, look, first, n, db->code_size, 0, db->levels, db->nbits == 8 ? 8 : 4);
}

/* Look-ups know 8- and 4-bit codes; other widths, and databases too small for a sample, go by float. */
static int dpq_one_has_bytes(const dpq_database *db)
{
    return (db->nbits == 8 || db->nbits == 4) && db->code_size >= 4 && db->n >= DPQ_ONE_MIN_SAMPLED_N;
}

/* Threads have copies of the byte tables, which are small: what they find is written beside. */
static void dpq_one_calibrate(dpq_single_search *search, const dpq_queries *qs, size_t q, float high)
{
    const dpq_database *db = search->db;
    search->bound = dpq_bound_choose(db, dpq_low(db, qs, q), high, dpq_one_magnitude(db, search->table), 1);
    dpq_one_build(db, search->table, &search->bound, &search->singles[0].look);
}

static void dpq_one_begin_thread(const dpq_single_search *search, dpq_single *s)
{
    const dpq_lookups *made = &search->singles[0].look;
    s->pendings = 0;
    if (search->bytes && &s->look != made) {
        memcpy(s->look.table8, made->table8, dpq_filled_levels(search->db->levels) * 256);
        s->look.slope = made->slope;
        s->look.start = made->start;
    }
}

/* By look-ups. */
static void dpq_one_byte_scan(dpq_single_search *search, dpq_single *s, size_t first, size_t end)
{
    const dpq_database *db = search->db;
    for (size_t n, v = first; v < end; v += n) {
        n = end - v < DPQ_ONE_CHUNK ? end - v : DPQ_ONE_CHUNK;
        size_t whole = n / DPQ_QW * DPQ_QW;
        dpq_one_follow(search, s);
        size_t found = dpq_one_filter(db, &s->look, v, whole);
        dpq_one_rescore(search, s, found);
        s->counters.bounded += whole;
        s->counters.rescored += found;
        if (whole < n)
            dpq_one_float_chunk(search, s, v + whole, n - whole);
    }
}

static void dpq_one_float_scan(dpq_single_search *search, dpq_single *s, size_t first, size_t end)
{
    for (size_t n, v = first; v < end; v += n) {
        n = dpq_first_chunks(v, DPQ_ONE_CHUNK);
        n = end - v < n ? end - v : n;
        dpq_one_rescore_pending(search, s); /* at once: the first threshold is worth more than the time to fetch */
        dpq_one_follow(search, s);
        dpq_one_float_chunk(search, s, v, n);
    }
}

static void dpq_one_work(void *context, size_t thread)
{
    dpq_single_search *search = context;
    dpq_single *s = search->singles + thread;
    dpq_one_begin_thread(search, s);
    for (size_t n, first; (n = dpq_one_take(search, thread, DPQ_ONE_PIECE, &first));)
        if (search->bytes)
            dpq_one_byte_scan(search, s, first, first + n);
        else
            dpq_one_float_scan(search, s, first, first + n);
    dpq_one_rescore_pending(search, s);
}

static void dpq_one_search(dpq_single_search *search, const dpq_queries *qs, size_t q, dpq_counters *counters)
{
    const dpq_database *db = search->db;
    float high = INFINITY;
    search->bytes = dpq_one_has_bytes(db);
    search->bound = (dpq_bound){0, 0, 0};
    if (db->n >= DPQ_ONE_MIN_SAMPLED_N)
        high = dpq_one_sample(search);
    if (search->bytes)
        dpq_one_calibrate(search, qs, q, high);
    atomic_store(&search->limit, search->top.limit);
    dpq_one_share(search, db->n, DPQ_ONE_SHARE);
    for (size_t t = 0; t < search->n_threads; t++)
        search->singles[t].counters = (dpq_counters){0}; /* of threads that do not come */
    size_t threads = dpq_run_together(search->n_threads, dpq_one_work, search);
    counters->threads = threads > counters->threads ? threads : counters->threads;
    for (size_t t = 0; t < search->n_threads; t++) {
        counters->bounded += search->singles[t].counters.bounded;
        counters->rescored += search->singles[t].counters.rescored;
        counters->floated += search->singles[t].counters.floated;
    }
}

static size_t single_scratch(size_t k, size_t n_threads)
{
    return 2 * 64 + sizeof(dpq_single_search) + n_threads * sizeof(dpq_single) + dpq_topk_capacity(k) * sizeof(uint64_t);
}

static void scan_single(const dpq_database *db, const dpq_queries *qs, size_t k, size_t n_threads, float *distances,
                        uint32_t *ids, void *scratch, dpq_counters *counters)
{
    dpq_single_search *search = (dpq_single_search *)(((uintptr_t)scratch + 63) & ~(uintptr_t)63);
    search->singles = (dpq_single *)(((uintptr_t)(search + 1) + 63) & ~(uintptr_t)63);
    uint64_t *keys = (uint64_t *)(search->singles + n_threads);
    search->db = db;
    search->n_threads = n_threads;
    pthread_mutex_init(&search->lock, NULL);
    for (size_t q = 0; q < qs->nq; q++) {
        search->table = qs->tables + ((q * db->levels) << db->nbits);
        dpq_topk_begin(&search->top, keys, k, INFINITY);
        dpq_one_search(search, qs, q, counters);
        dpq_write(&search->top, k, distances + q * k, ids + q * k);
    }
    pthread_mutex_destroy(&search->lock);
}
