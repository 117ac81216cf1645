# Queries: their distance tables, as the scans take them.


cdef class QueryBlock:
    """Distance tables of some queries, made already.

    tables : (nq, levels << nbits); constants, norms : (nq,), what distances add to the sums, and the queries' squared
        norms; errors : (nq,), bounds on the rounding errors of the tables and terms. See ProgressiveQuantizer.tables
        and table_errors.
    inner_product : what the tables are of.
    in_any_order : whether a query's results need not be sorted.
    """

    cdef dpq_queries queries
    cdef size_t stride
    cdef object kept

    def __init__(self, const float[:, ::1] tables, const float[::1] constants, const float[::1] norms,
                 const float[::1] errors, bint inner_product, bint in_any_order=False):
        self.kept = tables, constants, norms, errors
        self.stride = tables.shape[1]
        self.queries.tables = &tables[0, 0]
        self.queries.constants = &constants[0]
        self.queries.norms = &norms[0]
        self.queries.table_errors = &errors[0]
        self.queries.inner_product, self.queries.in_any_order = inner_product, in_any_order
        self.queries.nq = tables.shape[0]

    cdef dpq_queries part(self, size_t begin, size_t end) noexcept nogil:
        cdef dpq_queries part = self.queries
        part.tables += begin * self.stride
        part.constants += begin
        part.norms += begin
        part.table_errors += begin
        part.nq = end - begin
        return part

    def slice(self, size_t begin, size_t end):
        """The queries begin ... end - 1."""
        cdef QueryBlock block = QueryBlock.__new__(QueryBlock)
        block.kept, block.stride, block.queries = self.kept, self.stride, self.part(begin, end)
        return block


cdef class QueryTables:
    """How the tables of queries are made where that goes along with the search.

    products : with the codewords of the levels; bias : what they are added to.
    centre, mean : (d,), what queries are moved by, mean first; None: not at all.
    error_of_norm, error_constant : see ProgressiveQuantizer.table_errors.
    """

    cdef bint inner_product
    cdef size_t d, width
    cdef Products products
    cdef const float[::1] bias, centre, mean
    cdef float scale, error_of_norm, error_constant

    def __init__(self, bint inner_product, Products products, const float[::1] bias, const float[::1] centre,
                 float error_of_norm, float error_constant, const float[::1] mean=None):
        self.inner_product, self.scale = inner_product, -1.0 if inner_product else -2.0
        self.products, self.d, self.width = products, products.d, products.width
        self.bias, self.centre, self.mean = bias, centre, mean
        self.error_of_norm, self.error_constant = error_of_norm, error_constant

    cdef size_t scratch(self, size_t nq) noexcept nogil:
        """Floats that `fill` needs to work with."""
        return self.products.scratch(nq)

    cdef void fill(self, const float *moved, size_t nq, size_t n_threads, float *tables, float *turned) noexcept nogil:
        """The tables of queries that `move` has given, `width` floats each."""
        self.products.fill(moved, nq, n_threads, &self.bias[0], self.scale, tables, self.width, turned)

    cdef void move(self, const float *x, float *moved, float *norm, float *error) noexcept nogil:
        """A query as its table is made of it, its squared norm, and what its table errs by at most."""
        cdef size_t j
        cdef double total = 0
        for j in range(self.d):
            moved[j] = x[j]
            if self.mean is not None:
                moved[j] -= self.mean[j]
            if self.centre is not None:
                moved[j] -= self.centre[j]
            total += <double>moved[j] * moved[j]
        norm[0] = <float>total
        error[0] = self.error_of_norm * <float>sqrt(total) + (self.error_constant + <float>1.2e-7 * norm[0])


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
