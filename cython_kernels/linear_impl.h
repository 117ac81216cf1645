/* Linear: rows of x times a matrix packed in panels of DPQ_FW of its rows.
 *
 * A tile of accumulators stays in registers while columns pass: LINEAR_ROWS rows of x by one panel, or one row by
 * LINEAR_PANELS panels. Every output is the same chain of multiply-adds over d in either, so that results depend
 * neither on the number of rows nor on how they are cut among threads. (A BLAS promises no such thing, and runs its own
 * threads beside ours.) */
#include "kernels.h"

/* Columns [begin, end) of a tile; `bias` begins the sum, at the first of them. */
DPQ_INLINE void linear_tile(size_t rows, size_t panels_here, const float *x, size_t d, size_t begin, size_t end,
                            const float *panels, const float *bias, float scale, float *out, size_t ldo)
{
    dpq_f32s sum[LINEAR_ROWS > LINEAR_PANELS ? LINEAR_ROWS : LINEAR_PANELS]; /* one of the two counts is 1 */
    for (size_t t = 0; t < rows * panels_here; t++)
        sum[t] = dpq_f32_all(0);
    for (size_t i = begin; i < end; i++)
        for (size_t p = 0; p < panels_here; p++) {
            const dpq_f32s column = dpq_f32_load(panels + (p * d + i) * DPQ_FW);
            for (size_t r = 0; r < rows; r++)
                sum[p + r] = dpq_f32_fma(dpq_f32_all(x[r * d + i]), column, sum[p + r]);
        }
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++) {
            float *to = out + r * ldo + p * DPQ_FW;
            const dpq_f32s before = dpq_f32_load(begin ? to : bias + p * DPQ_FW);
            dpq_f32_store(to, dpq_f32_fma(dpq_f32_all(scale), sum[p + r], before));
        }
}

/* A tile's columns, DPQ_LINEAR_DEPTH at a time. */
DPQ_INLINE void linear_columns(size_t rows, size_t panels_here, const float *x, size_t d, const float *panels,
                               const float *bias, float scale, float *out, size_t ldo)
{
    for (size_t begin = 0; begin < d; begin += DPQ_LINEAR_DEPTH)
        linear_tile(rows, panels_here, x, d, begin, begin + DPQ_LINEAR_DEPTH < d ? begin + DPQ_LINEAR_DEPTH : d, panels, bias,
                    scale, out, ldo);
}

static void linear_some_rows(const float *x, size_t n, size_t d, const float *panels, size_t n_panels,
                             const float *bias, float scale, float *out, size_t ldo)
{
    const size_t whole = n - n % LINEAR_ROWS;
    for (size_t p = 0; p < n_panels; p++)
        for (size_t i = 0; i < whole; i += LINEAR_ROWS)
            linear_columns(LINEAR_ROWS, 1, x + i * d, d, panels + p * d * DPQ_FW, bias + p * DPQ_FW, scale,
                           out + i * ldo + p * DPQ_FW, ldo);
    for (size_t i = whole; i < n; i++) {
        size_t p = 0;
        for (; p + LINEAR_PANELS <= n_panels; p += LINEAR_PANELS)
            linear_columns(1, LINEAR_PANELS, x + i * d, d, panels + p * d * DPQ_FW, bias + p * DPQ_FW, scale,
                           out + i * ldo + p * DPQ_FW, ldo);
        for (; p < n_panels; p++)
            linear_columns(1, 1, x + i * d, d, panels + p * d * DPQ_FW, bias + p * DPQ_FW, scale,
                           out + i * ldo + p * DPQ_FW, ldo);
    }
}

/* As many rows at a time as stay in L2 while all panels pass. */
static void linear(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo)
{
    const size_t rows = ((1 << 16) / d / LINEAR_ROWS + 1) * LINEAR_ROWS;
    for (size_t i = 0; i < n; i += rows)
        linear_some_rows(x + i * d, n - i < rows ? n - i : rows, d, panels, n_panels, bias, scale, out + i * ldo, ldo);
}
