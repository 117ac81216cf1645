/* Inverted lists as one query sees them (dpq_lists.h), and their scan in float.
 *
 * In: the lists, what is derived from them, a query's tables, and the lists that it probes. Out: which lists may hold a
 * neighbour, and the k nearest of what is scanned.
 *
 * For a list let s be the float sum term + T[0] + ..., without the offset A. A neighbour has fl(s + A) <= threshold,
 * hence s <= above = threshold - A + 2u |threshold|. By the triangle inequality the real value of s is at least low =
 * max(0, dist - R)^2 - dist^2 - errors, dist being the real ||u - w|| and R the list's radius (-||q|| R for inner
 * products). So a list with above + Ed < low holds no neighbour, Ed being what the additions of s err by. */
#ifndef DPQ_LISTS_QUERY_IMPL_H
#define DPQ_LISTS_QUERY_IMPL_H

#include "dpq_lists.h"
#include "dpq_mask.h"
#include "dpq_topk.h"
#include "many_lookups_impl.h"

#define LISTS_WORTH_BYTES 512u /* vectors left to scan, below which byte tables are not worth making */
#define LISTS_FIRST 256u       /* vectors of the nearest list that are scanned in float */

/* What a query knows of a list that it probes, before the list is scanned. */
typedef struct {
    float offset; /* A of the head */
    double low;
} lists_probed;

/* A query and what has been found for it. */
typedef struct {
    const float *table;
    uint8_t *table8; /* [level][codeword], once `scale` is set */
    lists_probed *probed;
    const int64_t *keys, *counts;
    dpq_topk top;
    float threshold;
    float high;  /* the greatest s that a float scan met */
    float scale; /* of table8; 0: there is none yet */
    double magnitude, error, norm;
    many_seen seen;  /* of many levels: what bounds are made of */
    many_query many; /* likewise; its bound and limit are set for every list */
} lists_query;

/* What the queries of a call share. */
typedef struct {
    dpq_lookups look;
    int inner_product;
    size_t nprobe;
    dpq_counters *counters;
    uint8_t *columns; /* of many levels: room for some codes by columns */
} lists_scan;

/* A list as one query scans it. The limit of its byte sums is scale * above + constant: see scan_lists_impl.h. */
typedef struct {
    dpq_database db;
    int is_sparse; /* few of its vectors take part */
    size_t count;
    uint32_t position; /* of the list's first vector among all that the query scans */
    float offset;
    uint8_t start;
    uint16_t slope;
    double scale, constant;
    many_bound many; /* of many levels, instead of the four before */
} lists_part;

/* Whether sums of 16 bits bound these codes, by look-ups. */
static inline int lists_are_many(const dpq_lists *lists)
{
    return lists->levels > DPQ_FEW_LEVELS && (lists->nbits == 8 || lists->nbits == 4);
}

static inline dpq_database lists_database(const dpq_lists *lists, size_t list)
{
    dpq_database db = {0};
    db.codes = (const uint8_t *)(uintptr_t)lists->codes[list];
    db.n = (size_t)lists->sizes[list];
    db.code_size = lists->code_size;
    db.nbits = lists->nbits;
    db.levels = lists->levels;
    if (lists->allowed)
        db.allowed = (const uint64_t *)(uintptr_t)lists->allowed[list];
    if (lists->bitmap) {
        db.allowed = (const uint64_t *)(const void *)lists->bitmap;
        db.allowed_size = lists->bitmap_size;
        db.ids = (const int64_t *)(uintptr_t)lists->ids[list];
    }
    if (lists->terms) {
        db.terms = (const float *)(uintptr_t)lists->terms[list];
        db.term_bins = (const uint8_t *)(uintptr_t)lists->bins[list];
        db.term_min = lists->term_min[list];
        db.term_step = lists->term_step[list];
        if (lists_are_many(lists)) /* its grid is as wide, and finer */
            db.term_step = (float)(db.term_step * (256.0 / 65535) * (1 + 0x1p-20));
    }
    return db;
}

static inline double lists_width(const dpq_lists *lists, size_t list)
{
    return lists->terms ? lists->term_step[list] : 0;
}

/* A bound on the magnitude of every partial sum of s. */
static inline double lists_magnitude(const dpq_lists *lists, const lists_query *q, size_t list)
{
    return q->magnitude + (lists->terms ? lists->term_magnitude[list] : 0);
}

static float lists_offset(const float *u, const float *w, size_t stride, int inner_product)
{
    float lane[DPQ_FW], total = 0;
    dpq_f32s sum = dpq_f32_all(0.0f);
    for (size_t i = 0; i < stride; i += DPQ_FW) {
        dpq_f32s a = dpq_f32_load(u + i), b = dpq_f32_load(w + i), difference = dpq_f32_sub(a, b);
        sum = inner_product ? dpq_f32_fma(a, b, sum) : dpq_f32_fma(difference, difference, sum);
    }
    dpq_f32_store(lane, sum);
    for (uint32_t i = 0; i < DPQ_FW; i++)
        total += lane[i];
    return inner_product ? -total : total;
}

/* The offset is a float sum of positive numbers by chains of stride / 16 + 16 additions, each of which errs by u times
 * the offset at most. */
static double lists_low(const dpq_lists *lists, const lists_query *q, size_t list, float offset, int inner_product)
{
    double error = q->error + lists->errors[list], radius = lists->radius[list];
    if (inner_product)
        return -q->norm * radius - error;
    double relative = (lists->stride / 16 + 20.0) / (1 << 23);
    double gap = sqrt(offset * fmax(0, 1 - relative)) - radius;
    return (gap > 0 ? gap * gap : 0) - offset * (1 + relative) - error;
}

/* Ed: s is a chain of `levels` additions. */
static inline double lists_sum_error(const dpq_lists *lists, const lists_query *q, size_t list)
{
    return 1.01 * lists->levels * lists_magnitude(lists, q, list) / (1 << 24);
}

static inline double lists_above(const lists_query *q, float offset)
{
    return (double)q->threshold - offset + fabs((double)q->threshold) / (1 << 22);
}

/* Whether probe p of the query need not be scanned: the list holds no neighbour, or there is nothing to scan. */
static inline int lists_is_out(const dpq_lists *lists, const lists_query *q, size_t p)
{
    lists_probed probed = q->probed[p];
    size_t list = (size_t)q->keys[p];
    if (!q->counts[p] || (lists->allowed && !lists->admitted[list]))
        return 1;
    return lists_above(q, probed.offset) + lists_sum_error(lists, q, list) < probed.low;
}

static inline float lists_sum(const lists_part *part, const lists_query *q, size_t v)
{
    const float *terms = part->db.terms; /* NULL: inner products */
    return table_vector_sum(&part->db, q->table, v, terms ? terms[v] : 0.0f);
}

/* Offers a vector by its s. Returns 1 if the threshold moved. */
static inline int lists_offer_sum(const lists_part *part, lists_query *q, size_t v, float sum)
{
    uint64_t key = dpq_result_key(dpq_distance(sum, part->offset, !part->db.terms), part->position + (uint32_t)v);
    if (key >= q->top.limit || !dpq_topk_push(&q->top, key))
        return 0;
    q->threshold = dpq_topk_threshold(&q->top);
    return 1;
}

/* Computes the distances of those hits that take part, some side by side, and offers them. */
static void lists_rescore(const lists_part *part, lists_scan *s, lists_query *q, size_t hits)
{
    s->counters->rescored += hits;
    for (size_t h = 0; part->db.ids && h < hits; h++)
        __builtin_prefetch(part->db.ids + s->look.hits[h]);
    for (size_t h = 0; h < hits;) {
        uint32_t vectors[TABLE_TOGETHER], n = 0;
        float sums[TABLE_TOGETHER];
        for (; n < TABLE_TOGETHER && h < hits; h++)
            if (dpq_is_allowed(&part->db, s->look.hits[h])) {
                vectors[n] = s->look.hits[h];
                sums[n++] = dpq_stored_term(&part->db, s->look.hits[h]);
            }
        table_vector_sums(&part->db, q->table, vectors, n, sums);
        for (uint32_t i = 0; i < n; i++)
            lists_offer_sum(part, q, vectors[i], sums[i]);
    }
}

/* ---- in float ---- */

static void lists_float_chunk(const lists_part *part, lists_scan *s, lists_query *q, size_t first, size_t n)
{
    lists_rescore(part, s, q, table_hits(&part->db, q->table, first, n, part->offset, q->threshold, &q->high,
                                         s->look.hits));
}

/* From `first` on, until k vectors are found and `enough` are scanned. Returns where it ended. */
static size_t lists_float_scan(const lists_part *part, lists_scan *s, lists_query *q, size_t first, size_t enough)
{
    size_t v = first;
    for (size_t n; v < part->count && !(v >= enough && q->threshold < INFINITY); v += n) {
        n = dpq_first_chunks(q->threshold < INFINITY ? LISTS_FIRST : v, LISTS_FIRST);
        n = dpq_min(n, part->count - v);
        lists_float_chunk(part, s, q, v, n);
    }
    s->counters->floated += v - first;
    return v;
}

/* Scores those vectors of a masked list that take part. */
static void lists_scan_sparse(const lists_part *part, lists_scan *s, lists_query *q)
{
    for (size_t at = 0; at < part->count; at += 64)
        for (uint64_t bits = part->db.allowed[at / 64]; bits;) {
            size_t v = dpq_next_allowed(&bits, at);
            if (v >= part->count)
                return;
            float sum = lists_sum(part, q, v);
            q->high = sum > q->high ? sum : q->high;
            s->counters->floated++;
            lists_offer_sum(part, q, v, sum);
        }
}

#endif
