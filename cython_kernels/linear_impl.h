/* Products of vectors with all rows of a matrix.
 *
 * In: rows of x, and the matrix packed in panels of DPQ_FW of its rows. Out: as at dpq_kernels.linear.
 *
 * The sums of a tile, LINEAR_ROWS rows of x by LINEAR_PANELS panels, stay in registers while the columns pass: so a
 * column takes fewer loads than multiply-adds. Of a single row the tile is LINEAR_ROW_PANELS panels wide. In every
 * tile an output is the same chain of multiply-adds over the columns, so that it depends neither on the number of rows
 * nor on how they are divided among threads. (A BLAS does not promise that, and would run its own threads beside
 * ours.) */
#ifndef DPQ_LINEAR_IMPL_H
#define DPQ_LINEAR_IMPL_H

#include "dpq_base.h"
#include "kernels.h"
#include "simd.h"

/* Adds columns [begin, end) of a tile to the outputs, which begin with `bias`. */
DPQ_INLINE void linear_tile(size_t rows, size_t panels_here, const float *x, size_t d, size_t begin, size_t end,
                            const float *panels, const float *bias, float scale, float *out, size_t ldo)
{
    dpq_f32s sum[LINEAR_ROWS][LINEAR_ROW_PANELS], column[LINEAR_ROW_PANELS];
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++)
            sum[r][p] = dpq_f32_all(0);
    for (size_t i = begin; i < end; i++) {
        for (size_t p = 0; p < panels_here; p++)
            column[p] = dpq_f32_load(panels + (p * d + i) * DPQ_FW);
        for (size_t r = 0; r < rows; r++)
            for (size_t p = 0; p < panels_here; p++)
                sum[r][p] = dpq_f32_fma(dpq_f32_all(x[r * d + i]), column[p], sum[r][p]);
    }
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++) {
            float *to = out + r * ldo + p * DPQ_FW;
            const dpq_f32s before = dpq_f32_load(begin ? to : bias + p * DPQ_FW);
            dpq_f32_store(to, dpq_f32_fma(dpq_f32_all(scale), sum[r][p], before));
        }
}

/* A function for all columns of a tile. It is never inlined: together with the variables of the loops around it,
 * compilers run out of registers for the sums. */
#define LINEAR_TILE(name, rows, panels_here) \
    static __attribute__((noinline)) void name(const float *x, size_t d, const float *panels, const float *bias, \
                                               float scale, float *out, size_t ldo) \
    { \
        for (size_t begin = 0; begin < d; begin += DPQ_LINEAR_DEPTH) \
            linear_tile(rows, panels_here, x, d, begin, begin + DPQ_LINEAR_DEPTH < d ? begin + DPQ_LINEAR_DEPTH : d, \
                        panels, bias, scale, out, ldo); \
    }
LINEAR_TILE(linear_rows_by_panels, LINEAR_ROWS, LINEAR_PANELS)
LINEAR_TILE(linear_rows_by_one, LINEAR_ROWS, 1)
LINEAR_TILE(linear_one_by_panels, 1, LINEAR_ROW_PANELS)
LINEAR_TILE(linear_one_by_one, 1, 1)

/* Covers n rows by n_panels with tiles. The last tile of a row or column of tiles begins where it still fits, and
 * overlaps the one before: what it computes a second time comes out the same. */
DPQ_INLINE void linear_tiles(__typeof__(linear_one_by_one) tile, size_t rows, size_t panels_here, const float *x,
                             size_t n, size_t d, const float *panels, size_t n_panels, const float *bias, float scale,
                             float *out, size_t ldo)
{
    for (size_t p = 0; p < n_panels; p += panels_here) {
        const size_t panel = p + panels_here <= n_panels ? p : n_panels - panels_here;
        for (size_t r = 0; r < n; r += rows) {
            const size_t row = r + rows <= n ? r : n - rows;
            tile(x + row * d, d, panels + panel * d * DPQ_FW, bias + panel * DPQ_FW, scale,
                 out + row * ldo + panel * DPQ_FW, ldo);
        }
    }
}

static void linear_some_rows(const float *x, size_t n, size_t d, const float *panels, size_t n_panels,
                             const float *bias, float scale, float *out, size_t ldo)
{
    if (n >= LINEAR_ROWS && n_panels >= LINEAR_PANELS)
        linear_tiles(linear_rows_by_panels, LINEAR_ROWS, LINEAR_PANELS, x, n, d, panels, n_panels, bias, scale, out,
                     ldo);
    else if (n >= LINEAR_ROWS)
        linear_tiles(linear_rows_by_one, LINEAR_ROWS, 1, x, n, d, panels, n_panels, bias, scale, out, ldo);
    else if (n_panels >= LINEAR_ROW_PANELS)
        linear_tiles(linear_one_by_panels, 1, LINEAR_ROW_PANELS, x, n, d, panels, n_panels, bias, scale, out, ldo);
    else
        linear_tiles(linear_one_by_one, 1, 1, x, n, d, panels, n_panels, bias, scale, out, ldo);
}

/* Takes as many rows at a time as stay in the L2 cache while all panels pass. A rest that is shorter than a tile joins
 * the rows before it. */
static void linear(const float *x, size_t n, size_t d, const float *panels, size_t n_panels, const float *bias,
                   float scale, float *out, size_t ldo)
{
    const size_t rows = ((1 << 16) / d / LINEAR_ROWS + 1) * LINEAR_ROWS;
    for (size_t i = 0, here; i < n; i += here) {
        here = n - i < rows + LINEAR_ROWS ? n - i : rows;
        linear_some_rows(x + i * d, here, d, panels, n_panels, bias, scale, out + i * ldo, ldo);
    }
}

#endif
