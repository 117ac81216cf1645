/* The terms of codes of many levels as g of many_bound.h. */
#ifndef DPQ_MANY_GRID_IMPL_H
#define DPQ_MANY_GRID_IMPL_H

#include "many_bound.h"
#include "simd.h"

/* g of n vectors from `first` on; of outliers any number. Returns whether any of them is an outlier. */
static int many_grid(const dpq_database *db, size_t first, size_t n, uint16_t *grid)
{
    const float *terms = db->terms + first;
    float least = db->term_min, most = many_term_max(db), per_step = db->term_step > 0 ? 1 / db->term_step : 0;
    dpq_f32s start = dpq_f32_all(least), lowest = start, highest = start;
    size_t i = 0;
    for (; i + DPQ_FW <= n; i += DPQ_FW) {
        dpq_f32s some = dpq_f32_load(terms + i);
        lowest = dpq_f32_min(lowest, some);
        highest = dpq_f32_max(highest, some);
        dpq_f32_floor_u16(grid + i, dpq_f32_mul(dpq_f32_sub(some, start), dpq_f32_all(per_step)));
    }
    int outliers = (dpq_f32_lt(lowest, start) | dpq_f32_lt(dpq_f32_all(most), highest)) != 0;
    for (; i < n; i++) {
        int outside = many_is_outlier(db, first + i);
        grid[i] = outside ? 0 : (uint16_t)((terms[i] - least) * per_step);
        outliers |= outside;
    }
    return outliers;
}

#endif
