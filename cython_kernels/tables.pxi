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
    if x.shape[0] == 0 or panels.shape[0] == 0:
        return
    with nogil:
        kernels.linear(
            &x[0, 0], x.shape[0], x.shape[1], &panels[0, 0, 0], panels.shape[0], &bias[0], scale,
            &out[0, 0], out.shape[1],
        )


cdef extern from "linear_together.h" nogil:
    void dpq_linear_together(
        const dpq_kernels *chosen, size_t n_threads, const float *x, size_t d, const float *panels, size_t n_panels,
        const float *bias, float scale, float *out,
    )


cdef class Products:
    """Products of vectors with the codewords of the first levels, one column each.

    head : panels of the codewords that have all d dimensions; their columns are the first.
    turn : panels of vectors (a multiple of 16 a block) whose products are the coordinates in the blocks; or None.
    dims : of each block, how many of these are its own; a multiple of 16.
    blocks : for each block, (panels of a level's codewords, first column) of each of its levels.
    levels, K : of the columns.
    """

    cdef readonly size_t d, width  # width: the columns, and what fills up the last panel
    cdef size_t n_turned
    cdef const float[:, :, ::1] head, turn
    cdef const float[::1] zeros
    cdef int64_t[:, ::1] segments  # block's dimensions, first turned coordinate, address of panels, panels, column
    cdef object kept

    def __init__(self, size_t levels, size_t K, const float[:, :, ::1] head, const float[:, :, ::1] turn=None,
                 dims=(), blocks=()):
        self.d, self.head, self.turn, self.kept = head.shape[1], head, turn, blocks
        self.width = (levels * K + DPQ_PANEL - 1) // DPQ_PANEL * DPQ_PANEL
        self.n_turned = 0 if turn is None else <size_t>turn.shape[0] * DPQ_PANEL
        self.zeros = np.zeros(self.n_turned, np.float32)
        segments, start = [], 0
        for own_dims, block in zip(dims, blocks):
            for panels, column in block:
                segments.append((own_dims, start, panels.ctypes.data, panels.shape[0], column))
            start += own_dims
        self.segments = np.array(segments, np.int64).reshape(len(segments), 5)

    def __reduce__(self):
        raise TypeError("derived from codebooks: not to be copied")

    def of(self, const float[:, ::1] x, const float[::1] bias, float scale, float[:, ::1] out):
        """out[i, j] = bias[j] + scale * <x[i], codeword j> for vectors (n, d)."""
        cdef size_t n = x.shape[0]
        if n == 0:
            return
        cdef float[::1] turned = aligned_empty(max(1, self.scratch(n)))
        with nogil:
            self.fill(&x[0, 0], n, 1, &bias[0], scale, &out[0, 0], out.shape[1], &turned[0])

    cdef size_t scratch(self, size_t n) noexcept nogil:
        """Floats that `fill` needs to work with."""
        return n * self.n_turned

    cdef void fill(self, const float *x, size_t n, size_t n_threads, const float *bias, float scale, float *out,
                   size_t ldo, float *turned) noexcept nogil:
        """`of`; several threads take part in the products of one vector."""
        cdef size_t i, dims, start, column, n_panels, done = 0
        self.some(x, n, self.d, n_threads, &self.head[0, 0, 0], self.head.shape[0], bias, scale, out, ldo)
        for i in range(<size_t>self.segments.shape[0]):
            dims, start, n_panels = self.segments[i, 0], self.segments[i, 1], self.segments[i, 3]
            column = self.segments[i, 4]
            if start + dims > done:  # the block's first level
                self.some(x, n, self.d, n_threads, &self.turn[start // DPQ_PANEL, 0, 0], dims // DPQ_PANEL,
                          &self.zeros[0], 1, turned + n * start, dims)
                done = start + dims
            self.some(turned + n * start, n, dims, 1, <const float *><uintptr_t>self.segments[i, 2], n_panels,
                      bias + column, scale, out + column, ldo)

    cdef void some(self, const float *x, size_t n, size_t d, size_t n_threads, const float *panels, size_t n_panels,
                   const float *bias, float scale, float *out, size_t ldo) noexcept nogil:
        if n == 1 and n_threads > 1 and n_panels:
            dpq_linear_together(kernels, n_threads, x, d, panels, n_panels, bias, scale, out)
        elif n_panels:
            kernels.linear(x, n, d, panels, n_panels, bias, scale, out, ldo)


def subtract_codewords(const uint16_t[:, ::1] codes, const float[:, :, ::1] codewords, float[:, ::1] out):
    """out[i], shape (d,), -= each codeword of code i of `codes` (n, M); codewords : (M, K, d)."""
    cdef size_t n = codes.shape[0], M = codes.shape[1], d = out.shape[1], i, j, level
    cdef const float *codeword
    cdef float *row
    with nogil:
        for i in range(n):
            row = &out[i, 0]
            for level in range(M):
                codeword = &codewords[level, codes[i, level], 0]
                for j in range(d):
                    row[j] -= codeword[j]


def lengths_of_codes(const uint16_t[:, ::1] codes, const float[::1] rows, const int64_t[:, ::1] places, size_t width,
                     double[::1] out):
    """dpq_kernels.lengths_of_codes of codes (n, levels), with places (M, 3)."""
    if codes.shape[0] and codes.shape[1]:
        with nogil:
            kernels.lengths_of_codes(
                &codes[0, 0], codes.shape[0], codes.shape[1], &rows[0], &places[0, 0], width, &out[0]
            )
    else:
        out[:] = 0


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
