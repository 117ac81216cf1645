/* The k nearest of given candidates, by all levels: what a coarse-to-fine search does last.
 *
 * In: for every query the numbers of n vectors, among which -1 stands for none. Out: the k nearest of them, with the
 * distances of dpq_scan.h and dpq_lists.h, and in the order of these. The candidates' codes are spread over memory, so
 * they are fetched some candidates ahead.
 */
#ifndef DPQ_RESCORE_IMPL_H
#define DPQ_RESCORE_IMPL_H

#include "kernels.h"
#include "scan_lists_impl.h"

#define RESCORE_AHEAD 16u

/* Starts to fetch the code and the term of vector v. */
static inline void rescore_prefetch(const dpq_database *db, size_t v)
{
    const uint8_t *row = dpq_row(db, v);
    for (size_t at = 0; at < db->code_size; at += 64)
        __builtin_prefetch(row + at);
    __builtin_prefetch(row + db->code_size - 1);
    if (db->terms)
        __builtin_prefetch(db->terms + v);
}

static float rescore_term(const dpq_database *db, size_t v)
{
    uint16_t code[DPQ_MAX_LEVELS];
    if (db->terms || !db->cross)
        return db->terms ? db->terms[v] : 0.0f;
    dpq_unpack(db, v, code);
    return dpq_term(db, v, code);
}

/* keys: scratch, [dpq_topk_capacity(k)]. distances, ids: nq x k, as in kernels.h. */
static void rescore_codes(const dpq_database *db, const dpq_queries *qs, const int64_t *candidates, size_t n, size_t k,
                          uint64_t *keys, float *distances, uint32_t *ids)
{
    for (size_t q = 0; q < qs->nq; q++, candidates += n) {
        const float *table = qs->tables + q * (db->levels * dpq_codewords(db));
        dpq_topk top;
        dpq_topk_begin(&top, keys, k, INFINITY);
        for (size_t i = 0; i < n; i++) {
            if (i + RESCORE_AHEAD < n && candidates[i + RESCORE_AHEAD] >= 0)
                rescore_prefetch(db, (size_t)candidates[i + RESCORE_AHEAD]);
            if (candidates[i] < 0)
                continue;
            size_t v = (size_t)candidates[i];
            float sum = table_vector_sum(db, table, v, rescore_term(db, v));
            uint64_t key = dpq_result_key(dpq_distance(sum, qs->constants[q], qs->inner_product), (uint32_t)v);
            if (key < top.limit)
                dpq_topk_push(&top, key);
        }
        dpq_topk_write(&top, k, distances + q * k, ids + q * k);
    }
}

/* Where a position, of a query's vectors in the order of its lists, is: the probe, and *v in the probe's list. */
static size_t rescore_probe(const int64_t *counts, uint32_t position, size_t *v)
{
    size_t p = 0;
    int64_t left = position;
    while (left >= counts[p])
        left -= counts[p++];
    *v = (size_t)left;
    return p;
}

/* The same for vectors of lists: candidates are positions, UINT32_MAX for none. Positions [nq][k] are written. */
static void rescore_lists(const dpq_lists *lists, const dpq_probes *probes, const uint32_t *candidates, size_t n,
                          size_t k, uint64_t *keys, float *distances, uint32_t *positions)
{
    const dpq_queries *qs = &probes->queries;
    for (size_t q = 0; q < qs->nq; q++, candidates += n) {
        const float *table = qs->tables + q * probes->table_stride, *u = probes->vectors + q * lists->stride;
        const int64_t *list = probes->keys + q * probes->nprobe, *counts = probes->counts + q * probes->nprobe;
        size_t known = SIZE_MAX, v;
        float offset = 0;
        dpq_database db = {0};
        dpq_topk top;
        dpq_topk_begin(&top, keys, k, INFINITY);
        for (size_t i = 0; i < n; i++) {
            if (candidates[i] == UINT32_MAX)
                continue;
            size_t p = rescore_probe(counts, candidates[i], &v);
            if (p != known) {
                db = lists_database(lists, (size_t)list[p]);
                offset = lists_offset(u, lists->centres + list[p] * (int64_t)lists->stride, lists->stride,
                                      qs->inner_product);
                known = p;
            }
            float sum = table_vector_sum(&db, table, v, db.terms ? db.terms[v] : 0.0f);
            uint64_t key = dpq_result_key(dpq_distance(sum, offset, qs->inner_product), candidates[i]);
            if (key < top.limit)
                dpq_topk_push(&top, key);
        }
        dpq_topk_write(&top, k, distances + q * k, positions + q * k);
    }
}

#endif
