# Scan: exhaustive asymmetric distances, exact.

import threading

from faiss import omp_get_max_threads

cdef extern from "linear_together.h" nogil:
    void dpq_linear_together(
        const dpq_kernels *chosen, size_t n_threads, const float *x, size_t d, const float *panels, size_t n_panels,
        const float *bias, float scale, float *out,
    )

_kept = threading.local()


cdef uint8_t[::1] scratch_of_thread(size_t size):
    """Scratch memory that the thread keeps: fresh pages would cost more than a short search."""
    if getattr(_kept, "size", -1) < size:
        _kept.scratch = np.empty(size, np.uint8)
        _kept.size = size
    return _kept.scratch


def scan(
    const float[:, ::1] tables,
    const float[::1] norms,
    const float[::1] table_errors,
    bint inner_product,
    const uint8_t[:, ::1] packed,
    size_t nbits,
    size_t levels,
    const float[:, :, ::1] cross,
    const float[::1] terms,
    const uint8_t[::1] bins,
    float term_min,
    float term_step,
    float radius,
    const uint8_t[::1] allowed,
    uint64_t[::1] hashes,
    size_t n_threads,
    int64_t first_id,
    float[:, ::1] distances,
    int64_t[:, ::1] labels,
):
    """The k nearest of some packed codes for every query: nearest first, by (distance, id).

    tables : (nq, levels << nbits), norms : (nq,), the queries' squared norms, table_errors : (nq,), bounds on the
        rounding errors of the tables and terms.
    packed : (n, code_size), the codes as FAISS packs them; the first has id first_id.
    cross, terms, bins, term_min, term_step, radius : of `packed`; see derived.pxi. bins is None for no terms.
    allowed : bit i & 7 of byte i >> 3 tells whether code i takes part; None for all.
    hashes : (ceil(n / HASH_BLOCK),), written, for one query only: what `hash_blocks` gives; or None.
    n_threads : that queries scanned one by one are scanned with, at most.
    distances, labels : (nq, k), written; (inf, -1) where there are fewer.
    """
    cdef size_t nq = tables.shape[0], k = distances.shape[1], n = packed.shape[0], q, i
    cdef dpq_counters batch, single
    cdef dpq_database db
    cdef dpq_queries queries
    if nq == 0:
        return
    if n == 0:
        distances[:] = INFINITY
        labels[:] = -1
        return
    db = make_database(packed, nbits, levels, cross, terms)
    db.term_bins = &bins[0] if bins is not None else NULL
    db.term_min = term_min
    db.term_step = term_step
    db.radius = radius
    db.allowed = &allowed[0] if allowed is not None else NULL
    db.hashes = &hashes[0] if hashes is not None else NULL
    queries.tables = &tables[0, 0]
    queries.norms = &norms[0]
    queries.table_errors = &table_errors[0]
    queries.inner_product = inner_product
    queries.nq = nq
    # Queries left over from whole groups of the batch scan may be too few for it.
    cdef size_t batched = nq - nq % kernels.batch_width
    if nq - batched >= kernels.least_batch and hashes is None:
        batched = nq
    cdef size_t scratch_size = max(
        kernels.batch_scratch(&db, k) if batched else 0, kernels.single_scratch(k, n_threads) if batched < nq else 0
    )
    cdef uint8_t[::1] scratch = scratch_of_thread(scratch_size)
    cdef uint32_t[:, ::1] ids = np.empty((nq, k), np.uint32)
    memset(&batch, 0, sizeof(batch))
    memset(&single, 0, sizeof(single))
    with nogil:
        queries.nq = batched
        if batched:
            kernels.scan_batch(&db, &queries, k, &distances[0, 0], &ids[0, 0], &scratch[0], &batch)
        queries.tables += batched * tables.shape[1]
        queries.norms += batched
        queries.table_errors += batched
        queries.nq = nq - batched
        if batched < nq:
            kernels.scan_single(
                &db, &queries, k, n_threads, &distances[batched, 0], &ids[batched, 0], &scratch[0], &single
            )
        for q in range(nq):
            for i in range(k):
                labels[q, i] = -1 if ids[q, i] == UINT32_MAX else first_id + ids[q, i]
    if batched:
        count_scan(&batch, &counted.batch_scans)
    if batched < nq:
        count_scan(&single, &counted.single_scans)


cdef class SingleScan(Single):
    """One query's search of all codes of an index.

    worth_a_thread : vectors that a thread has to have for itself to be worth taking.
    derived : the DerivedCodes that `hashes`, `bins` and so on are of, as long as derived.hashes is `hashes`.
    centre : (d,), what the query is moved by; None for inner products.
    panels, bias, scale : of all codewords of the levels, and what their products are added to and times.
    constant_panel : (1, d, 16), whose first product with the query all distances lack; None: its squared norm.
    error_of_norm, error_constant : see ProgressiveQuantizer.table_errors. The others are those of `scan`.
    """

    cdef object derived, hashes, kept
    cdef const uint64_t[::1] expected
    cdef const float[::1] centre
    cdef const float[:, :, ::1] panels, constant_panel
    cdef const float[::1] bias
    cdef float error_of_norm, error_constant
    cdef size_t d, worth_a_thread
    cdef dpq_database db

    def __init__(
        self,
        size_t worth_a_thread,
        object derived,
        object hashes,
        const float[::1] centre,
        const float[:, :, ::1] panels,
        const float[::1] bias,
        const float[:, :, ::1] constant_panel,
        float error_of_norm,
        float error_constant,
        const uint8_t[:, ::1] packed,
        size_t nbits,
        size_t levels,
        const float[:, :, ::1] cross,
        const float[::1] terms,
        const uint8_t[::1] bins,
        float term_min,
        float term_step,
        float radius,
    ):
        self.worth_a_thread = worth_a_thread
        self.derived, self.hashes, self.expected = derived, hashes, hashes
        self.centre, self.panels, self.bias, self.constant_panel = centre, panels, bias, constant_panel
        self.error_of_norm, self.error_constant = error_of_norm, error_constant
        self.d = panels.shape[1]
        self.db = make_database(packed, nbits, levels, cross, terms)
        self.db.term_bins = &bins[0] if bins is not None else NULL
        self.db.term_min = term_min
        self.db.term_step = term_step
        self.db.radius = radius
        self.kept = cross, terms, bins

    def is_true(self):
        """Whether the derived data is what it was."""
        return self.derived.hashes is self.hashes

    cdef search(self, cnp.ndarray x, size_t k):
        cdef const float *query = query_of(x, self.d)
        if query == NULL or not self.is_true():
            return None
        # Before scratch is taken: an allocation may run other code of this thread, which takes it too.
        cdef float *distances = NULL
        cdef int64_t *labels = NULL
        results = empty_results(k, &distances, &labels)
        cdef size_t n_threads = self.threads(), n_hashes = self.expected.shape[0]
        cdef size_t width = self.panels.shape[0] * DPQ_PANEL
        cdef size_t size = (self.d + width) * sizeof(float) + k * sizeof(uint32_t) + n_hashes * sizeof(uint64_t)
        cdef uint8_t *at = &scratch_of_thread(size + 4 * 64 + kernels.single_scratch(k, n_threads))[0]
        cdef float *moved = <float *>take(&at, self.d * sizeof(float))
        cdef float *table = <float *>take(&at, width * sizeof(float))
        cdef uint32_t *ids = <uint32_t *>take(&at, k * sizeof(uint32_t))
        cdef dpq_database db = self.db
        cdef dpq_counters counters
        memset(&counters, 0, sizeof(counters))
        db.hashes = <uint64_t *>take(&at, n_hashes * sizeof(uint64_t))
        with nogil:
            self.scan(&db, query, n_threads, moved, table, at, k, distances, ids, &counters)
            for i in range(k):
                labels[i] = -1 if ids[i] == UINT32_MAX else <int64_t>ids[i]
        count_scan(&counters, &counted.single_scans)
        counted.direct += 1
        same = memcmp(db.hashes, &self.expected[0], n_hashes * sizeof(uint64_t)) == 0
        return results if same else None

    cdef size_t threads(self) except 0:
        """How many are worth taking; FAISS is asked, for 70 ns, only where its answer matters."""
        cdef size_t most = self.db.n // self.worth_a_thread
        return 1 if most <= 1 else max(1, min(most, <size_t>omp_get_max_threads()))

    cdef void scan(self, const dpq_database *db, const float *query, size_t n_threads, float *moved, float *table,
                   uint8_t *scratch, size_t k, float *distances, uint32_t *ids,
                   dpq_counters *counters) noexcept nogil:
        """Distances, as FAISS gives them, and ids."""
        cdef bint inner_product = self.centre is None
        cdef dpq_queries queries
        cdef float norm, error, constant
        cdef float products[DPQ_PANEL]
        cdef size_t i
        cdef double total = 0
        for i in range(self.d):
            moved[i] = query[i] if inner_product else query[i] - self.centre[i]
            total += <double>moved[i] * moved[i]
        norm = constant = <float>total
        error = self.error_of_norm * <float>sqrt(total) + (self.error_constant + <float>1.2e-7 * norm)
        dpq_linear_together(
            kernels, n_threads, moved, self.d, &self.panels[0, 0, 0], self.panels.shape[0], &self.bias[0],
            -1.0 if inner_product else -2.0, table,
        )
        if inner_product:
            memset(products, 0, sizeof(products))
            kernels.linear(moved, 1, self.d, &self.constant_panel[0, 0, 0], 1, products, -1.0, products, DPQ_PANEL)
            constant = products[0]
        queries.tables = table
        queries.norms = &norm
        queries.table_errors = &error
        queries.inner_product = inner_product
        queries.nq = 1
        kernels.scan_single(db, &queries, k, n_threads, distances, ids, scratch, counters)
        for i in range(k):
            if ids[i] == UINT32_MAX:
                distances[i] = -FLT_MAX if inner_product else FLT_MAX
            elif inner_product:
                distances[i] = -(distances[i] + constant)
            else:
                distances[i] = max(distances[i] + constant, <float>0)
