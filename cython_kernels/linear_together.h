/* The products of one vector with a packed matrix, by several threads. For one query the panels are read from memory
 * for this alone, which takes as long as a tenth of its search. */
#ifndef DPQ_LINEAR_TOGETHER_H
#define DPQ_LINEAR_TOGETHER_H

#include <stdatomic.h>

#include "dpq_threads.h"
#include "kernels.h"

#define DPQ_PANELS_AT_ONCE 8u /* 128 products */

typedef struct {
    const dpq_kernels *kernels;
    const float *x, *panels, *bias;
    size_t d, n_panels;
    float scale;
    float *out;
    _Atomic size_t next;
} dpq_products;

static void dpq_some_products(void *context, size_t thread)
{
    dpq_products *p = context;
    size_t at;
    (void)thread;
    while ((at = atomic_fetch_add(&p->next, DPQ_PANELS_AT_ONCE)) < p->n_panels) {
        size_t n = p->n_panels - at < DPQ_PANELS_AT_ONCE ? p->n_panels - at : DPQ_PANELS_AT_ONCE;
        p->kernels->linear(p->x, 1, p->d, p->panels + at * p->d * 16, n, p->bias + at * 16, p->scale, p->out + at * 16,
                           n * 16);
    }
}

/* As dpq_kernels.linear of one vector, and with the same results: no product depends on which others are computed with
 * it. */
static void dpq_linear_together(const dpq_kernels *kernels, size_t n_threads, const float *x, size_t d,
                                const float *panels, size_t n_panels, const float *bias, float scale, float *out)
{
    dpq_products products = {kernels, x, panels, bias, d, n_panels, scale, out, 0};
    if (n_threads > 1)
        dpq_run_together(n_threads, dpq_some_products, &products);
    else
        kernels->linear(x, 1, d, panels, n_panels, bias, scale, out, n_panels * 16);
}

#endif
