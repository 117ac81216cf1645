/* Encoding in blocks: what the global levels of a code leave of vectors in the dimensions of one block.
 *
 * In: turned vectors, their codewords on the global levels, and these codewords in turned coordinates. Out: the block's
 * part of every vector, copied together, the same less the codewords, and the product of both.
 *
 * The codewords lie far apart in memory, and most are not in the L1 cache: those of the next vector are fetched
 * meanwhile. A coordinate loses the codewords in the order of the levels, one rounded subtraction each. */
#ifndef DPQ_ENCODE_BLOCKS_IMPL_H
#define DPQ_ENCODE_BLOCKS_IMPL_H

#include "dpq_base.h"
#include "kernels.h"
#include "simd.h"

DPQ_INLINE const float *leave_codeword(const dpq_leave *task, const uint16_t *code, size_t level)
{
    return task->codewords + (level * task->K + code[level]) * task->width;
}

static void leave_block(const dpq_leave *task)
{
    const size_t dims = task->dims, levels = task->levels;
    for (size_t v = 0; v < task->n; v++) {
        const uint16_t *code = task->codes + v * levels, *next = v + 1 < task->n ? code + levels : code;
        const float *of_own = task->own + v * task->stride;
        float *own = task->own_out + v * dims, *left = task->left + v * dims;
        dpq_f32s product = dpq_f32_all(0.0f);
        float lane[DPQ_FW];
        for (size_t i = 0; i < dims; i += DPQ_FW) {
            dpq_f32s rest = dpq_f32_load(task->turned + v * task->stride + i), along = dpq_f32_load(of_own + i);
            for (size_t level = 0; level < levels; level++) {
                rest = dpq_f32_sub(rest, dpq_f32_load(leave_codeword(task, code, level) + i));
                __builtin_prefetch(leave_codeword(task, next, level) + i);
            }
            dpq_f32_store(own + i, along);
            dpq_f32_store(left + i, rest);
            product = dpq_f32_fma(along, rest, product);
        }
        dpq_f32_store(lane, product);
        task->products[v] = 0;
        for (size_t i = 0; i < DPQ_FW; i++)
            task->products[v] += lane[i];
    }
}

#endif
