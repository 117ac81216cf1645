/* Products of vectors with all rows of a matrix, both rounded to 16 bits.
 *
 * A multiply-add of 16-bit numbers does two dimensions at once, so this takes half the time of `linear`. A vector, or
 * row, of length 32767 has errors of at most half a unit a dimension: their product is off by about a hundred
 * thousandth of the product of their lengths. By the same length no sum of products leaves 32 bits, whatever the number
 * of dimensions (Cauchy and Schwarz). Sums of whole numbers are exact in any order: every instruction set finds the
 * same. */
#ifndef DPQ_LINEAR_ROUNDED_IMPL_H
#define DPQ_LINEAR_ROUNDED_IMPL_H

#include "dpq_base.h"
#include "kernels.h"
#include "simd.h"

/* Not a number becomes -DPQ_ROUNDED_LENGTH. 3 * 2^22 added to numbers below 2^22 leaves no bits for a fraction. */
static void round_vector(const float *x, size_t d, float scale, int16_t *out)
{
    const float most = DPQ_ROUNDED_LENGTH, whole = 12582912.0f;
    for (size_t i = 0; i < d; i++) {
        float a = x[i] * scale;
        a = a > -most ? a : -most;
        a = a < most ? a : most;
        out[i] = (int16_t)(int32_t)((a + whole) - whole);
    }
}

DPQ_INLINE void rounded_tile(size_t rows, size_t panels_here, const int16_t *x, const float *factors, size_t pairs,
                             const int16_t *panels, const float *bias, float scale, float *out, size_t ldo)
{
    dpq_i32s sum[LINEAR_ROWS][LINEAR_PANELS];
    dpq_i16s column[LINEAR_PANELS];
    for (size_t r = 0; r < rows; r++)
        for (size_t p = 0; p < panels_here; p++)
            sum[r][p] = dpq_i32_zero();
    for (size_t i = 0; i < pairs; i++) {
        for (size_t p = 0; p < panels_here; p++)
            column[p] = dpq_i16_load(panels + (p * pairs + i) * 2 * DPQ_FW);
        for (size_t r = 0; r < rows; r++)
            for (size_t p = 0; p < panels_here; p++)
                sum[r][p] = dpq_i16_dot(sum[r][p], column[p], x + (r * pairs + i) * 2);
    }
    DPQ_UNROLL
    for (size_t r = 0; r < rows; r++) {
        const dpq_f32s factor = dpq_f32_all(scale * factors[r]);
        DPQ_UNROLL
        for (size_t p = 0; p < panels_here; p++)
            dpq_f32_store(out + r * ldo + p * DPQ_FW,
                          dpq_f32_fma(factor, dpq_i32_to_f32(sum[r][p]), dpq_f32_load(bias + p * DPQ_FW)));
    }
}

/* Never inlined, for the reason that linear_impl.h gives. */
#define ROUNDED_TILE(name, rows, panels_here) \
    static __attribute__((noinline)) void name(const int16_t *x, const float *factors, size_t pairs, \
                                               const int16_t *panels, const float *bias, float scale, float *out, \
                                               size_t ldo) \
    { \
        rounded_tile(rows, panels_here, x, factors, pairs, panels, bias, scale, out, ldo); \
    }
ROUNDED_TILE(rounded_rows_by_panels, LINEAR_ROWS, LINEAR_PANELS)
ROUNDED_TILE(rounded_one_by_panels, 1, LINEAR_PANELS)
ROUNDED_TILE(rounded_rows_by_one, LINEAR_ROWS, 1)
ROUNDED_TILE(rounded_one_by_one, 1, 1)

static void rounded_some_rows(const int16_t *x, const float *factors, size_t n, size_t pairs, const int16_t *panels,
                              size_t n_panels, const float *bias, float scale, float *out, size_t ldo)
{
    for (size_t p = 0, width; p < n_panels; p += width) {
        width = n_panels - p >= LINEAR_PANELS ? LINEAR_PANELS : 1;
        for (size_t r = 0, rows; r < n; r += rows) {
            rows = n - r >= LINEAR_ROWS ? LINEAR_ROWS : 1;
            __typeof__(rounded_one_by_one) *tile =
                width > 1 ? (rows > 1 ? rounded_rows_by_panels : rounded_one_by_panels)
                          : (rows > 1 ? rounded_rows_by_one : rounded_one_by_one);
            tile(x + r * 2 * pairs, factors + r, pairs, panels + p * pairs * 2 * DPQ_FW, bias + p * DPQ_FW, scale,
                 out + r * ldo + p * DPQ_FW, ldo);
        }
    }
}

/* Takes as many rows at a time as stay in the L2 cache while all panels pass. */
static void linear_rounded(const int16_t *x, const float *factors, size_t n, size_t pairs, const int16_t *panels,
                           size_t n_panels, const float *bias, float scale, float *out, size_t ldo)
{
    const size_t rows = ((1 << 16) / pairs / LINEAR_ROWS + 1) * LINEAR_ROWS;
    for (size_t i = 0, here; i < n; i += here) {
        here = n - i < rows ? n - i : rows;
        rounded_some_rows(x + i * 2 * pairs, factors + i, here, pairs, panels, n_panels, bias, scale, out + i * ldo,
                          ldo);
    }
}

#endif
