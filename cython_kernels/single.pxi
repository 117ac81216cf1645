# Searches of one query, with nothing of Python between the call and the results.

cdef enum:
    MOST_RESULTS = 1 << 20  # of a search without checks: more may not fit in memory


cdef class Watch:
    """Whether memory holds what it held when this was made.

    From Python, each of FAISS's getters takes a microsecond or more. While the memory of its objects stays the same,
    they would return the same.

    this : the SWIG object of the index watched.
    spans : (address, bytes, pieces, distance) of each: so many pieces of so many bytes, their beginnings so far
        apart. They are compared in this order, up to the first that differs: one reached through a pointer comes
        after the pointer's.
    singles : filled by the owner: what searches by one query while nothing changes, by the levels that it compares, 0
        for all; None where nothing does.
    """

    cdef object this
    cdef readonly dict singles
    cdef const uint64_t[:, ::1] spans
    cdef uint8_t[::1] held

    def __init__(self, object this, const uint64_t[:, ::1] spans):
        cdef size_t i, piece, at = 0
        self.this, self.spans, self.singles = this, spans, {}
        for i in range(<size_t>spans.shape[0]):
            at += spans[i, 1] * spans[i, 2]
        self.held = np.empty(at, np.uint8)
        at = 0
        for i in range(<size_t>spans.shape[0]):
            for piece in range(spans[i, 2]):
                memcpy(&self.held[at], <const void *><uintptr_t>(spans[i, 0] + piece * spans[i, 3]), spans[i, 1])
                at += spans[i, 1]

    def is_same(self, object this):
        """Whether it watches the index of SWIG object `this`, and nothing has changed."""
        return this is self.this and self.same()

    cdef bint same(self) noexcept:
        cdef size_t i, piece, at = 0
        cdef uint64_t begin
        for i in range(<size_t>self.spans.shape[0]):
            for piece in range(self.spans[i, 2]):
                begin = self.spans[i, 0] + piece * self.spans[i, 3]
                if memcmp(&self.held[at], <const void *><uintptr_t>begin, self.spans[i, 1]):
                    return False
                at += self.spans[i, 1]
        return True

    def search(self, object this, object x, object k, object levels):
        """The k nearest of one query, (D, I); None where that takes a closer look at the arguments or the index."""
        single = self.singles.get(levels)
        if single is None or this is not self.this or type(k) is not int or not 1 <= k <= MOST_RESULTS:
            return None
        if not cnp.PyArray_Check(x) or not self.same():
            return None
        return (<Single>single).search(x, k)


cdef class Single:
    """Search of an index by one query; None where the index is not what this was made for."""

    cdef search(self, cnp.ndarray x, size_t k):
        raise NotImplementedError


cdef const float *query_of(cnp.ndarray x, size_t d) noexcept:
    """The data of x, shape (1, d), float32; NULL if it is anything else."""
    if (
        cnp.PyArray_NDIM(x) != 2 or cnp.PyArray_DIM(x, 0) != 1 or <size_t>cnp.PyArray_DIM(x, 1) != d
        or cnp.PyArray_TYPE(x) != cnp.NPY_FLOAT32 or not cnp.PyArray_ISCARRAY_RO(x)
    ):
        return NULL
    return <const float *>cnp.PyArray_DATA(x)


cdef tuple empty_results(size_t k, float **distances, int64_t **labels):
    """D and I of one query, and where to write them."""
    cdef cnp.npy_intp shape[2]
    shape[0], shape[1] = 1, k
    D, I = cnp.PyArray_SimpleNew(2, shape, cnp.NPY_FLOAT32), cnp.PyArray_SimpleNew(2, shape, cnp.NPY_INT64)
    distances[0] = <float *>cnp.PyArray_DATA(D)
    labels[0] = <int64_t *>cnp.PyArray_DATA(I)
    return D, I


cdef void *take(uint8_t **at, size_t n) noexcept nogil:
    """The next n bytes of some memory, from a cache line's beginning on."""
    cdef uint8_t *here = <uint8_t *>((<uintptr_t>at[0] + 63) & ~<uintptr_t>63)
    at[0] = here + n
    return here
