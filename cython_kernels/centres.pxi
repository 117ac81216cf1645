# The centres of inverted lists that are nearest to a vector.

cdef extern from "least_scores.h" nogil:
    size_t dpq_topk_capacity(size_t k)
    void dpq_least_scores(const float *scores, size_t n, size_t k, uint64_t *keys, int64_t *numbers)


cdef struct centres_work:
    float *scores  # [nlist], padded
    float *moved  # [d]: the vector less the mean
    uint64_t *heap  # [dpq_topk_capacity(k)]
    int64_t *numbers  # [k]: those of the nearest centres, least first; -1 for none


cdef class CentreScan:
    """Finds the centres j with the least bias[j] - 2<x - mean, centre j - mean>; of equal ones, the lower numbers.

    mean : (d,). panels : of the n centres less the mean. bias : padded as the panels are.
    """

    cdef readonly size_t n
    cdef size_t d
    cdef const float[::1] mean, bias
    cdef const float[:, :, ::1] panels

    def __init__(self, const float[::1] mean, const float[:, :, ::1] panels, const float[::1] bias, size_t n):
        self.mean, self.panels, self.bias, self.n, self.d = mean, panels, bias, n, mean.shape[0]

    def nearest(self, const float[:, ::1] moved, int64_t[:, ::1] out):
        """Write the numbers of the out.shape[1] centres nearest to each vector; moved : (n, d), less the mean."""
        cdef size_t n_panels = self.panels.shape[0], k = out.shape[1], q
        cdef float[:, ::1] scores = aligned_empty((moved.shape[0], n_panels * DPQ_PANEL))
        cdef uint64_t[::1] heap = np.empty(dpq_topk_capacity(k), np.uint64)
        if moved.shape[0] == 0:
            return
        with nogil:
            kernels.linear(
                &moved[0, 0], moved.shape[0], self.d, &self.panels[0, 0, 0], n_panels, &self.bias[0], -2.0,
                &scores[0, 0], n_panels * DPQ_PANEL,
            )
            for q in range(<size_t>moved.shape[0]):
                dpq_least_scores(&scores[q, 0], self.n, k, &heap[0], &out[q, 0])

    cdef size_t lay_out(self, uint8_t *memory, size_t k, centres_work *work) noexcept nogil:
        """Cut memory of this many bytes for `nearest_to`; NULL: only its size."""
        cdef uint8_t *at = memory
        work.scores = <float *>take(&at, self.bias.shape[0] * sizeof(float))
        work.moved = <float *>take(&at, self.d * sizeof(float))
        work.heap = <uint64_t *>take(&at, dpq_topk_capacity(k) * sizeof(uint64_t))
        work.numbers = <int64_t *>take(&at, k * sizeof(int64_t))
        return at - memory + 64

    cdef void nearest_to(self, const float *x, size_t k, const centres_work *work) noexcept nogil:
        """As `nearest`, of one vector."""
        cdef size_t n_panels = self.panels.shape[0], j
        for j in range(self.d):
            work.moved[j] = x[j] - self.mean[j]
        kernels.linear(
            work.moved, 1, self.d, &self.panels[0, 0, 0], n_panels, &self.bias[0], -2.0, work.scores,
            n_panels * DPQ_PANEL,
        )
        dpq_least_scores(work.scores, self.n, k, work.heap, work.numbers)
