/* The kernels, written once on the vectors of simd.h. cython_kernels/README.md tells what they compute. */
#include <math.h>

#include "kernels.h"
#include "simd.h"
#include "topk.h"

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* ---- linear: x times a packed matrix ---------------------------------------------------------------------------- */

enum {
    PANEL_VECTORS = DPQ_PANEL / VF_W,
    /* Accumulators that fit the register file beside one broadcast and one load: rows of x times panels. */
#if defined(DPQ_AVX512)
    BLOCK_ROWS = 12,
    SINGLE_ROW_PANELS = 8,
#elif defined(DPQ_NEON)
    BLOCK_ROWS = 6,
    SINGLE_ROW_PANELS = 4,
#elif defined(DPQ_AVX2)
    BLOCK_ROWS = 6,
    SINGLE_ROW_PANELS = 4,
#else
    BLOCK_ROWS = 2,
    SINGLE_ROW_PANELS = 2,
#endif
};

ALWAYS_INLINE void linear_tile(size_t rows, size_t panels_here, const float *x, size_t d, const float *panels,
                               const float *bias, float scale, float *out, size_t ldo)
{
    vf sum[BLOCK_ROWS > SINGLE_ROW_PANELS ? BLOCK_ROWS : SINGLE_ROW_PANELS][PANEL_VECTORS];
    const size_t tiles = rows * panels_here; /* one of the two is 1 */
    for (size_t t = 0; t < tiles; t++)
        for (size_t v = 0; v < PANEL_VECTORS; v++)
            sum[t][v] = vf_set1(0);
    for (size_t i = 0; i < d; i++)
        for (size_t p = 0; p < panels_here; p++)
            for (size_t v = 0; v < PANEL_VECTORS; v++) {
                const vf column = vf_load(panels + (p * d + i) * DPQ_PANEL + v * VF_W);
                for (size_t r = 0; r < rows; r++)
                    sum[p + r][v] = vf_fma(vf_set1(x[r * d + i]), column, sum[p + r][v]);
            }
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++)
            for (size_t v = 0; v < PANEL_VECTORS; v++) {
                const size_t j = p * DPQ_PANEL + v * VF_W;
                vf_store(out + r * ldo + j, vf_fma(vf_set1(scale), sum[p + r][v], vf_load(bias + j)));
            }
}

static void linear(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo)
{
    const size_t whole = n - n % BLOCK_ROWS;
    /* Panels outside: a panel stays in L1 (L2 for large d) while all rows pass. */
    for (size_t p = 0; whole && p < n_panels; p++)
        for (size_t i = 0; i < whole; i += BLOCK_ROWS)
            linear_tile(BLOCK_ROWS, 1, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
    for (size_t i = whole; i < n; i++) {
        size_t p = 0;
        for (; p + SINGLE_ROW_PANELS <= n_panels; p += SINGLE_ROW_PANELS)
            linear_tile(1, SINGLE_ROW_PANELS, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
        for (; p < n_panels; p++)
            linear_tile(1, 1, x + i * d, d, panels + p * d * DPQ_PANEL, bias + p * DPQ_PANEL, scale,
                        out + i * ldo + p * DPQ_PANEL, ldo);
    }
}

/* ---- encode_level: one step of the beam search ------------------------------------------------------------------- */

/* The beam_out best extensions so far, best first; slot = beam entry * K + codeword. */
typedef struct {
    size_t capacity, count;
    float threshold; /* the score to beat */
    float *scores;
    uint32_t *slots;
} best_slots;

ALWAYS_INLINE void best_slots_insert(best_slots *best, float score, uint32_t slot)
{
    size_t i = best->count < best->capacity ? best->count++ : best->capacity - 1;
    for (; i > 0 && best->scores[i - 1] > score; i--) {
        best->scores[i] = best->scores[i - 1];
        best->slots[i] = best->slots[i - 1];
    }
    best->scores[i] = score;
    best->slots[i] = slot;
    if (best->count == best->capacity)
        best->threshold = best->scores[best->capacity - 1];
}

/* Scores of K codewords after one beam entry: its own, the table's, and the cross terms with its codewords. */
ALWAYS_INLINE void extend_entry(const dpq_encode_step *step, float entry_score, const float *table, size_t n_rows,
                                uint32_t first_slot, best_slots *best)
{
    const size_t K = step->K;
    if (K < VF_W) {
        for (size_t k = 0; k < K; k++) {
            float score = entry_score + table[k];
            for (size_t i = 0; i < n_rows; i++)
                score += step->rows[i][k];
            if (score < best->threshold)
                best_slots_insert(best, score, first_slot + (uint32_t)k);
        }
        return;
    }
    const vf base = vf_set1(entry_score);
    for (size_t k = 0; k < K; k += VF_W) {
        vf sum = vf_add(base, vf_load(table + k));
        for (size_t i = 0; i < n_rows; i++)
            sum = vf_add(sum, vf_load(step->rows[i] + k));
        unsigned mask = vf_less(sum, vf_set1(best->threshold));
        if (!mask)
            continue;
        float scores[VF_W];
        vf_store(scores, sum);
        for (; mask; mask &= mask - 1) {
            const unsigned lane = (unsigned)__builtin_ctz(mask);
            if (scores[lane] < best->threshold)
                best_slots_insert(best, scores[lane], first_slot + (uint32_t)k + lane);
        }
    }
}

static void encode_level(const dpq_encode_step *step)
{
    const size_t K = step->K, level = step->level, code_stride = step->code_stride;
    const size_t n_rows = step->cross ? level : 0;
    const float *cross = step->cross + level * (level - 1) / 2 * K * K; /* pairs (0, level), (1, level), ... */
    for (size_t v = 0; v < step->n; v++) {
        const uint16_t *codes_in = step->codes_in + v * step->beam_in * code_stride;
        best_slots best = {step->beam_out, 0, INFINITY, step->scores_out + v * step->beam_out, step->slots};
        for (size_t b = 0; b < step->beam_in; b++) {
            for (size_t i = 0; i < n_rows; i++)
                step->rows[i] = cross + (i * K + codes_in[b * code_stride + i]) * K;
            extend_entry(step, step->scores_in[v * step->beam_in + b],
                         step->tables + v * step->vector_stride + b * step->beam_stride, n_rows, (uint32_t)(b * K),
                         &best);
        }
        /* NaN or overflowing input beats no threshold: it still gets a valid code. */
        for (uint32_t slot = 0; best.count < best.capacity; slot++)
            best_slots_insert(&best, INFINITY, slot);
        for (size_t b = 0; b < step->beam_out; b++) {
            uint16_t *code = step->codes_out + (v * step->beam_out + b) * code_stride;
            const size_t parent = best.slots[b] / K;
            for (size_t i = 0; i < level; i++)
                code[i] = codes_in[parent * code_stride + i];
            code[level] = (uint16_t)(best.slots[b] % K);
            if (step->parents_out)
                step->parents_out[v * step->beam_out + b] = (uint32_t)parent;
        }
    }
}

/* ---- scan: the float32 tables of DPQ_LANES queries, interleaved ---------------------------------------------------- */

enum { LANE_VECTORS = DPQ_LANES / VF_W };

static __attribute__((noinline)) void push_lanes(const vf *sum, unsigned mask, int64_t id, dpq_heaps *heaps)
{
    float distances[DPQ_LANES];
    for (size_t j = 0; j < LANE_VECTORS; j++)
        vf_store(distances + j * VF_W, sum[j]);
    for (; mask; mask &= mask - 1) {
        const unsigned q = (unsigned)__builtin_ctz(mask);
        float *heap = heaps->distances + q * heaps->k;
        topk_push(heaps->k, heap, heaps->ids + q * heaps->k, distances[q], id);
        heaps->thresholds[q] = heap[0];
    }
}

ALWAYS_INLINE void scan_levels(const float *tables, const uint16_t *codes, const float *terms, const int64_t *ids,
                               int64_t first_id, size_t n, size_t levels, size_t K, dpq_heaps *heaps)
{
    for (size_t i = 0; i < n; i++, codes += levels) {
        vf sum[LANE_VECTORS];
        for (size_t j = 0; j < LANE_VECTORS; j++)
            sum[j] = vf_set1(terms ? terms[i] : 0.0f);
        for (size_t l = 0; l < levels; l++)
            for (size_t j = 0; j < LANE_VECTORS; j++)
                sum[j] = vf_add(sum[j], vf_load(tables + (l * K + codes[l]) * DPQ_LANES + j * VF_W));
        unsigned mask = 0;
        for (size_t j = 0; j < LANE_VECTORS; j++)
            mask |= vf_less(sum[j], vf_load(heaps->thresholds + j * VF_W)) << (j * VF_W);
        if (mask)
            push_lanes(sum, mask, ids ? ids[i] : first_id + (int64_t)i, heaps);
    }
}

static void scan(const float *tables, const uint16_t *codes, const float *terms, const int64_t *ids, int64_t first_id,
                 size_t n, size_t levels, size_t K, dpq_heaps *heaps)
{
    /* The usual lengths, unrolled. */
    if (levels == 4)
        scan_levels(tables, codes, terms, ids, first_id, n, 4, K, heaps);
    else if (levels == 8)
        scan_levels(tables, codes, terms, ids, first_id, n, 8, K, heaps);
    else
        scan_levels(tables, codes, terms, ids, first_id, n, levels, K, heaps);
}

const dpq_kernels DPQ_PASTE(dpq_kernels_, DPQ_SUFFIX) = {linear, encode_level, scan};

#ifdef __clang__
#if defined(DPQ_AVX512) || defined(DPQ_AVX2)
#pragma clang attribute pop
#endif
#endif
