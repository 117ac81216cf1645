# Training: the sums that the least-squares solve for the codebooks needs.


def codeword_sums(const float[:, ::1] x, const uint16_t[:, ::1] codes, double[:, :, ::1] out):
    """out[l, k] += sum of the rows of x (n, d) whose code (n, M) has codeword k at level l; out is (M, K, d)."""
    cdef size_t n = x.shape[0], d = x.shape[1], M = codes.shape[1], v, l, i
    cdef double *row
    with nogil:
        for l in range(M):
            for v in range(n):
                row = &out[l, codes[v, l], 0]
                for i in range(d):
                    row[i] += x[v, i]


def prefix_gram(
    const double[:, :, ::1] codebooks, const uint16_t[:, ::1] codes, const double[::1] weights, double[:, :, ::1] out
):
    """out += the normal matrix of the progressive loss, times `codebooks` (M, K, d), without forming it.

    The loss is the sum over vectors and prefixes l of weights[l] ||x - sum of the first l codewords||^2.
    """
    cdef size_t n = codes.shape[0], M = codebooks.shape[0], d = codebooks.shape[2], v, l, i
    cdef double[:, ::1] prefix = np.zeros((M + 1, d), np.float64)
    cdef double[::1] suffix = np.empty(d, np.float64)
    cdef const double *codeword
    cdef double *row
    with nogil:
        for v in range(n):
            for l in range(M):
                codeword = &codebooks[l, codes[v, l], 0]
                for i in range(d):
                    prefix[l + 1, i] = prefix[l, i] + codeword[i]
            suffix[:] = 0
            for l in range(M - 1, -1, -1):
                row = &out[l, codes[v, l], 0]
                for i in range(d):
                    suffix[i] += weights[l] * prefix[l + 1, i]
                    row[i] += suffix[i]
