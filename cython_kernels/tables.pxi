# Tables: products with all codewords, and the cross-codeword terms of Eq. 30.


def pack_panels(const float[:, ::1] matrix):
    """The rows of `matrix` (n, d) as panels (ceil(n / PANEL), d, PANEL), zero-padded: the layout `linear` reads."""
    cdef size_t n = matrix.shape[0], d = matrix.shape[1], row, i
    cdef size_t n_panels = (n + DPQ_PANEL - 1) // DPQ_PANEL
    packed = aligned_empty((n_panels, d, DPQ_PANEL))
    packed[:] = 0
    cdef float[:, :, ::1] out = packed
    with nogil:
        for row in range(n):
            for i in range(d):
                out[row // DPQ_PANEL, i, row % DPQ_PANEL] = matrix[row, i]
    return packed


def linear(const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, float scale, float[:, ::1] out):
    """out[i, j] = bias[j] + scale * <x[i], row j of the packed matrix>, for all j of all panels."""
    if x.shape[0] == 0:
        return
    with nogil:
        kernels.linear(
            &x[0, 0], x.shape[0], x.shape[1], &panels[0, 0, 0], panels.shape[0], &bias[0], scale,
            &out[0, 0], out.shape[1],
        )


cdef extern from "dpq_pairs.h" nogil:
    void dpq_cross_terms(
        const uint16_t *codes, size_t n, size_t code_stride, uint32_t levels, size_t K, const float *cross, float *out
    )


def cross_terms(const uint16_t[:, ::1] codes, size_t levels, const float[:, :, ::1] cross, float[::1] out):
    """out[i] = sum over levels l < l' < `levels` of 2<c_l(k_l), c_l'(k_l')> for code i of `codes` (n, M)."""
    if codes.shape[0] == 0:
        return
    if cross.shape[0] == 0:
        out[:] = 0
        return
    with nogil:
        dpq_cross_terms(&codes[0, 0], codes.shape[0], codes.shape[1], levels, cross.shape[1], &cross[0, 0, 0], &out[0])


def squared_norms(const float[:, ::1] x, float[::1] out):
    """out[i] = ||x[i]||^2, summed in float64."""
    cdef size_t n = x.shape[0], d = x.shape[1], i, j, row
    cdef double[4] totals  # of four rows side by side: each waits for its own addition before
    cdef const float *rows
    cdef double value
    with nogil:
        for i in range(0, n - n % 4, 4):
            rows = &x[i, 0]
            totals[0] = totals[1] = totals[2] = totals[3] = 0
            for j in range(d):
                for row in range(4):
                    value = rows[row * d + j]
                    totals[row] += value * value
            for row in range(4):
                out[i + row] = <float>totals[row]
        for i in range(n - n % 4, n):
            totals[0] = 0
            for j in range(d):
                totals[0] += <double>x[i, j] * x[i, j]
            out[i] = <float>totals[0]
