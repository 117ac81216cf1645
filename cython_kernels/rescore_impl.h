/* The k nearest of given candidates, by all levels: what a coarse-to-fine search does last.
 *
 * In: for every query the numbers of n vectors, behind which -1 stands for none. Out: the k nearest of them, with the
 * distances of dpq_scan.h and dpq_lists.h, and in the order of these. The candidates' codes are spread over memory, so
 * they are fetched some candidates ahead.
 */
#ifndef DPQ_RESCORE_IMPL_H
#define DPQ_RESCORE_IMPL_H

#include "kernels.h"
#include "scan_lists_impl.h"

#define RESCORE_AHEAD 16u
#define RESCORE_PROBES 64u /* whose offsets are computed once */

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

/* keys: scratch, [dpq_topk_capacity(k)]. distances, ids: nq x k, as in kernels.h. */
static void rescore_codes(const dpq_database *db, const dpq_queries *qs, const int64_t *candidates, size_t n, size_t k,
                          uint64_t *keys, float *distances, uint32_t *ids)
{
    for (size_t q = 0; q < qs->nq; q++, candidates += n) {
        const float *table = qs->tables + q * (db->levels * dpq_codewords(db));
        dpq_topk top;
        dpq_topk_begin(&top, keys, k, INFINITY);
        for (size_t i = 0; i < n && candidates[i] >= 0;) { /* what is missing stands at the end */
            uint32_t vectors[TABLE_TOGETHER];
            float sums[TABLE_TOGETHER];
            size_t some = 0;
            for (; some < TABLE_TOGETHER && i < n && candidates[i] >= 0; some++, i++) {
                if (i + RESCORE_AHEAD < n && candidates[i + RESCORE_AHEAD] >= 0)
                    rescore_prefetch(db, (size_t)candidates[i + RESCORE_AHEAD]);
                vectors[some] = (uint32_t)candidates[i];
                sums[some] = dpq_term_of(db, vectors[some]);
            }
            table_vector_sums(db, table, vectors, some, sums);
            for (size_t j = 0; j < some; j++) {
                float distance = dpq_distance(sums[j], qs->constants[q], qs->inner_product);
                uint64_t key = dpq_result_key(distance, vectors[j]);
                if (key < top.limit)
                    dpq_topk_push(&top, key);
            }
        }
        dpq_topk_write(&top, k, 1, distances + q * k, ids + q * k);
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

/* Candidates of lists, and where they are. */
typedef struct {
    dpq_database db[RESCORE_AHEAD]; /* its list */
    size_t v[RESCORE_AHEAD];
    float offset[RESCORE_AHEAD];    /* of the query from the list's centre */
    size_t n;
} rescore_block;

/* The offsets of a query from the centres of its first lists, each once it is known. */
typedef struct {
    float offset[RESCORE_PROBES];
    uint64_t known;
} rescore_offsets;

static float rescore_offset(const dpq_lists *lists, const dpq_probes *probes, size_t q, size_t p,
                            rescore_offsets *offsets)
{
    if (p < RESCORE_PROBES && offsets->known >> p & 1)
        return offsets->offset[p];
    const float *centre = lists->centres + probes->keys[q * probes->nprobe + p] * (int64_t)lists->stride;
    float offset = lists_offset(probes->vectors + q * lists->stride, centre, lists->stride,
                                probes->queries.inner_product);
    if (p < RESCORE_PROBES) {
        offsets->offset[p] = offset;
        offsets->known |= 1ull << p;
    }
    return offset;
}

/* Finds up to RESCORE_AHEAD candidates, and starts to fetch them. */
static void rescore_find(const dpq_lists *lists, const dpq_probes *probes, size_t q, const uint32_t *candidates,
                         size_t n, rescore_offsets *offsets, rescore_block *block)
{
    const int64_t *list = probes->keys + q * probes->nprobe, *counts = probes->counts + q * probes->nprobe;
    block->n = 0;
    for (size_t i = 0; i < dpq_min(n, RESCORE_AHEAD) && candidates[i] != UINT32_MAX; i++, block->n++) {
        size_t p = rescore_probe(counts, candidates[i], &block->v[i]);
        block->db[i] = lists_database(lists, (size_t)list[p]);
        block->offset[i] = rescore_offset(lists, probes, q, p, offsets);
        rescore_prefetch(&block->db[i], block->v[i]);
    }
}

/* The sums of n <= TABLE_TOGETHER candidates of a block from number `first` on. */
static void rescore_sums(const rescore_block *block, const float *table, size_t first, size_t n, float *sums)
{
    table_item items[TABLE_TOGETHER];
    for (size_t i = 0; i < n; i++) {
        items[i] = (table_item){&block->db[first + i], table, block->v[first + i]};
        sums[i] = dpq_stored_term(items[i].db, items[i].vector);
    }
    table_sums(items, n, sums);
}

/* The same for vectors of lists: candidates are positions, behind which UINT32_MAX stands for none. Positions [nq][k]
 * are written. */
static void rescore_lists(const dpq_lists *lists, const dpq_probes *probes, const uint32_t *candidates, size_t n,
                          size_t k, uint64_t *keys, float *distances, uint32_t *positions)
{
    const dpq_queries *qs = &probes->queries;
    for (size_t q = 0; q < qs->nq; q++, candidates += n) {
        rescore_offsets offsets = {.known = 0};
        rescore_block block;
        dpq_topk top;
        dpq_topk_begin(&top, keys, k, INFINITY);
        for (size_t begin = 0; begin < n; begin += RESCORE_AHEAD) {
            rescore_find(lists, probes, q, candidates + begin, n - begin, &offsets, &block);
            for (size_t i = 0; i < block.n; i += TABLE_TOGETHER) {
                float sums[TABLE_TOGETHER];
                size_t some = dpq_min(block.n - i, TABLE_TOGETHER);
                rescore_sums(&block, qs->tables + q * probes->table_stride, i, some, sums);
                for (size_t j = 0; j < some; j++) {
                    float distance = dpq_distance(sums[j], block.offset[i + j], qs->inner_product);
                    uint64_t key = dpq_result_key(distance, candidates[begin + i + j]);
                    if (key < top.limit)
                        dpq_topk_push(&top, key);
                }
            }
        }
        dpq_topk_write(&top, k, 1, distances + q * k, positions + q * k);
    }
}

#endif
