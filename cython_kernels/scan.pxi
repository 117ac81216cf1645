# Scan: exhaustive asymmetric distances, exact.

import threading

from faiss import omp_get_max_threads

_kept = threading.local()


cdef class Scratch:
    """Memory to work in. lent : what else the thread runs meanwhile gets another one."""

    cdef uint8_t *memory
    cdef size_t size
    cdef bint lent

    def __cinit__(self, size_t size):
        self.memory, self.size = <uint8_t *>malloc(size), size
        if self.memory == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.memory)


cdef Scratch scratch_of_thread(size_t size):
    """Memory that the thread keeps: fresh pages would cost more than a short search."""
    cdef Scratch scratch = getattr(_kept, "scratch", None)
    if scratch is None or scratch.lent or scratch.size < size:
        scratch = _kept.scratch = Scratch(size)
    return scratch


def scan(CodeView view, QueryBlock queries, float[:, ::1] distances, int64_t[:, ::1] labels, size_t n_threads=1,
         int64_t first_id=0):
    """The k nearest codes of every query: nearest first, by (distance, id), unless `queries` take them in any order.

    distances, labels : (nq, k), written, distances of inner products negated; (inf, -1) where there are fewer.
    n_threads : that queries scanned one by one are scanned with, at most.
    first_id : the id of the view's first code.
    """
    cdef size_t nq = queries.queries.nq, k = distances.shape[1], q, i
    cdef dpq_counters batch, single
    if nq == 0:
        return
    if view.db.n == 0:
        distances[:] = INFINITY
        labels[:] = -1
        return
    # Queries left over from whole groups of the batch scan may be too few for it.
    cdef size_t batched = nq - nq % kernels.batch_width
    if nq - batched >= <size_t>least_batch(view.db.levels) or (batched and view.db.wide and view.db.columns == NULL):
        batched = nq
    cdef dpq_queries together = queries.part(0, batched), alone = queries.part(batched, nq)
    cdef size_t scratch_size = max(
        kernels.batch_scratch(&view.db, k) if batched else 0,
        kernels.single_scratch(k, n_threads) if batched < nq else 0,
    )
    cdef Scratch scratch = scratch_of_thread(scratch_size)
    cdef uint32_t[:, ::1] ids = np.empty((nq, k), np.uint32)
    memset(&batch, 0, sizeof(batch))
    memset(&single, 0, sizeof(single))
    with nogil:
        if batched:
            kernels.scan_batch(&view.db, &together, k, &distances[0, 0], &ids[0, 0], scratch.memory, &batch)
        if batched < nq:
            kernels.scan_single(
                &view.db, &alone, k, n_threads, &distances[batched, 0], &ids[batched, 0], scratch.memory, &single
            )
        for q in range(nq):
            for i in range(k):
                labels[q, i] = -1 if ids[q, i] == UINT32_MAX else first_id + ids[q, i]
    if batched:
        count_scan(&batch, &counted.batch_scans)
    if batched < nq:
        count_scan(&single, &counted.single_scans)


def rescore(CodeView view, QueryBlock queries, const int64_t[:, ::1] candidates, float[:, ::1] distances,
            int64_t[:, ::1] labels):
    """The k nearest of some codes of every query, as `scan` gives those of all.

    candidates : (nq, n), numbers of codes, and behind them -1 for none.
    """
    cdef size_t nq = queries.queries.nq, n = candidates.shape[1], k = distances.shape[1], q, i
    cdef uint32_t[:, ::1] ids = np.empty((nq, k), np.uint32)
    cdef uint64_t[::1] keys = np.empty(dpq_topk_capacity(k), np.uint64)
    if nq == 0:
        return
    with nogil:
        kernels.rescore_codes(
            &view.db, &queries.queries, &candidates[0, 0], n, k, &keys[0], &distances[0, 0], &ids[0, 0]
        )
        for q in range(nq):
            for i in range(k):
                labels[q, i] = -1 if ids[q, i] == UINT32_MAX else <int64_t>ids[q, i]
    counted.refined += nq * n


cdef enum:
    MOST_RESULTS = 1 << 20  # of a search without checks: more may not fit in memory
    COPIED = 8  # vectors beside one that a mask lets through, at least, where what it lets through is copied
    MOST_LISTED = 1 << 14  # vectors that a bitmap lets through, which are listed and scored one after the other
    MOST_LISTED_BY_BINS = 1 << 11  # the same where terms are not stored
    SPARSE = 12  # vectors beside one that takes part, at most, where codes are scanned in their order
    SLICED = 2  # vectors beside one of a slice, at least, where it is scanned by itself, without the order of all
    WORK_OF_ONE = 8  # vectors that are scanned in the time that one of few takes that take part


cdef class DirectSearch:
    """Searches of one query with nothing of Python between the call and the results, while the index stays the same.

    this : the SWIG object of the index; version : the index's, when this was made.
    scans : filled by the owner: what searches, by what it was made for, such as the levels that a search compares.
    """

    cdef object this, version
    cdef readonly dict scans

    def __init__(self, object this, object version):
        self.this, self.version, self.scans = this, version, {}

    def is_of(self, object this, object version):
        """Whether it was made for this state of this index."""
        return this is self.this and version == self.version

    def search(self, object this, object version, object x, object k, object asked, SelectorMask mask=None):
        """The k nearest of one query, (D, I); None where that takes a closer look at the arguments or the index.

        asked : of `scans`. mask : which vectors take part, a Mask or, of lists, a ListsMask.
        """
        scan = self.scans.get(asked)
        if scan is None or this is not self.this or version != self.version:
            return None
        if type(k) is not int or not 1 <= k <= MOST_RESULTS or not cnp.PyArray_Check(x):
            return None
        return (<OneQueryScan>scan).search(x, k, mask)


cdef class OneQueryScan:
    """Search of an index by one query; None where the index is not what this was made for.

    unchanged : whether FAISS's objects are what they were.
    """

    cdef Unchanged unchanged

    def is_good(self):
        """Whether the index still is what this was made for."""
        return self.unchanged.holds()

    cdef search(self, cnp.ndarray x, size_t k, SelectorMask mask):
        raise NotImplementedError


cdef class Countdown:
    """How many more searches there may be before something is to be done."""

    cdef public int64_t left

    def __init__(self, int64_t left):
        self.left = left


cdef void take_slice(dpq_database *db, size_t begin, size_t n) noexcept:
    """Only n >= 1 vectors from `begin` on, as CodeView.part."""
    db.codes += begin * db.code_size
    db.column += begin
    db.n = n
    db.order = NULL
    if db.terms != NULL:
        db.terms += begin
    if db.term_bins != NULL:
        db.term_bins += begin


cdef class OneQueryCodeScan(OneQueryScan):
    """One query's search of all codes of an index.

    constant_panel : (1, d, 16), whose first product with the query all distances lack; None: its squared norm.
    worth_a_thread : vectors that a thread has to have for itself to be worth taking.
    share, length : distances below share (||q|| + length)^2 are to be compared again, which takes the long way (see
        search/near.py); a share of 0: none are.
    countdown : of searches, after which the view is to be had with more; None where it has all.
    """

    cdef CodeView view, copies
    cdef Mask mask  # of the search before
    cdef const int64_t[::1] copied  # the numbers of the vectors in `copies`
    cdef QueryTables tables
    cdef const float[:, :, ::1] constant_panel
    cdef size_t worth_a_thread
    cdef double share, length
    cdef Countdown countdown

    def __init__(self, Unchanged unchanged, CodeView view, QueryTables tables,
                 const float[:, :, ::1] constant_panel, size_t worth_a_thread, double share, double length,
                 Countdown countdown):
        self.unchanged, self.view, self.tables, self.share, self.length = unchanged, view, tables, share, length
        self.constant_panel, self.worth_a_thread, self.countdown = constant_panel, worth_a_thread, countdown

    def is_good(self):
        return OneQueryScan.is_good(self) and (self.countdown is None or self.countdown.left > 0)

    cdef search(self, cnp.ndarray x, size_t k, SelectorMask selected):
        cdef const float *query = query_of(x, self.tables.d)
        cdef dpq_database db = self.view.db
        if query == NULL or not self.unchanged.holds() or (selected is not None and selected.n != db.n):
            return None
        if self.countdown is not None:
            if self.countdown.left <= 0:
                return None
            self.countdown.left -= 1
        cdef const int64_t[::1] copied = None
        cdef CodeView copies = None  # held, since another thread's search may let go of them
        cdef int64_t begin = 0
        cdef MaskMemory listed = None
        cdef Mask mask = None
        if isinstance(selected, BitmapInPlace):
            listed = self.apply_in_place(<BitmapInPlace>selected, &db)
            if db.listed == NULL and db.allowed == NULL:
                mask = (<BitmapInPlace>selected).copied()
        else:
            mask = selected
        if mask is not None and mask.is_slice() and (db.order == NULL or SLICED * mask.admitted <= db.n):
            begin = mask.first
            take_slice(&db, begin, mask.admitted)
        elif mask is not None:
            mask.apply(&db)
            if self.has_copies(mask):
                copies, copied = self.copies, self.copied
                db = copies.db
        # Before scratch is taken: an allocation may run other code of this thread, which takes it too.
        cdef float *distances = NULL
        cdef int64_t *labels = NULL
        results = empty_results(k, &distances, &labels)
        cdef size_t n_threads = self.threads(&db), d = self.tables.d, i
        cdef size_t size = (d + self.tables.width + self.tables.scratch(1)) * sizeof(float) + k * sizeof(uint32_t)
        cdef Scratch scratch = scratch_of_thread(size + 4 * 64 + kernels.single_scratch(k, n_threads))
        cdef uint8_t *at = scratch.memory
        cdef float *moved = <float *>take(&at, d * sizeof(float))
        cdef float *table = <float *>take(&at, self.tables.width * sizeof(float))
        cdef float *turned = <float *>take(&at, self.tables.scratch(1) * sizeof(float))
        cdef uint32_t *ids = <uint32_t *>take(&at, k * sizeof(uint32_t))
        cdef dpq_counters counters
        cdef double norm
        memset(&counters, 0, sizeof(counters))
        with nogil:
            norm = self.scan(&db, query, n_threads, moved, table, turned, at, k, distances, ids, &counters)
            for i in range(k):
                labels[i] = -1 if ids[i] == UINT32_MAX else copied[ids[i]] if copied is not None else begin + ids[i]
        count_scan(&counters, &counted.single_scans)
        if self.share and distances[0] < self.share * (sqrt(norm) + self.length) ** 2:
            return None
        counted.direct += 1
        return results

    cdef MaskMemory apply_in_place(self, BitmapInPlace bitmap, dpq_database *db):
        """Let only what a bitmap lets through be searched: of few a list, which is returned, or the bitmap itself where
        codes are scanned in their order. Otherwise it leaves db alone."""
        cdef size_t found, most = min(MOST_LISTED, db.n // SPARSE), estimated = dpq_estimated_bits(bitmap.bits, db.n)
        if estimated > 2 * most:
            if (
                db.order != NULL and db.order.n == db.n and db.levels <= kernels.most_ordered
                and SPARSE * estimated >= db.n
            ):
                db.allowed, db.allowed_before = <const uint64_t *>bitmap.bits, NULL
            return None
        if db.terms == NULL and db.cross != NULL:
            most = min(most, MOST_LISTED_BY_BINS)
        cdef MaskMemory listed = bitmap.listed(most, &found)
        if listed is not None:
            db.listed, db.n_listed = <const uint32_t *>listed.memory, found
            counted.listed += found
        return listed

    cdef bint has_copies(self, Mask mask) except -1:
        """Whether there are copies of what a mask lets through: they are made when a mask of few comes again."""
        if self.mask is not mask:
            self.mask, self.copies = mask, None
        elif self.copies is None and COPIED * mask.admitted <= mask.n and self.view.levels <= DPQ_FEW_LEVELS:
            ids = mask.ids()
            self.copied, self.copies = ids, self.view.taken(ids)
        return self.copies is not None

    @property
    def nbytes(self):
        """Memory that it holds beside the view, in bytes."""
        return 0 if self.copies is None else self.copied.nbytes + self.copies.packed.nbytes + (
            0 if self.copies.bins is None else self.copies.bins.nbytes
        )

    cdef size_t threads(self, const dpq_database *db) except 0:
        """How many are worth taking; FAISS is asked, for 70 ns, only where its answer matters."""
        cdef size_t most = min(db.n, WORK_OF_ONE * dpq_allowed_of(db)) // self.worth_a_thread
        return 1 if most <= 1 else max(1, min(most, <size_t>omp_get_max_threads()))

    cdef float scan(self, const dpq_database *db, const float *query, size_t n_threads, float *moved, float *table,
                    float *turned, uint8_t *scratch, size_t k, float *distances, uint32_t *ids,
                    dpq_counters *counters) noexcept nogil:
        """Distances, as FAISS gives them, and ids; returns the squared norm of the query."""
        cdef bint inner_product = self.tables.inner_product
        cdef dpq_queries queries
        cdef float norm, error, constant
        cdef float products[DPQ_PANEL]
        cdef size_t i
        self.tables.move(query, moved, &norm, &error)
        constant = norm
        self.tables.fill(moved, 1, n_threads, table, turned)
        if inner_product:
            memset(products, 0, sizeof(products))
            kernels.linear(
                moved, 1, self.tables.d, &self.constant_panel[0, 0, 0], 1, products, -1.0, products, DPQ_PANEL
            )
            constant = products[0]
        queries.tables = table
        queries.constants = &constant
        queries.norms = &norm
        queries.table_errors = &error
        queries.inner_product, queries.in_any_order = inner_product, False
        queries.nq = 1
        kernels.scan_single(db, &queries, k, n_threads, distances, ids, scratch, counters)
        for i in range(k):
            if ids[i] == UINT32_MAX:
                distances[i] = -FLT_MAX if inner_product else FLT_MAX
            elif inner_product:
                distances[i] = -distances[i]
        return norm
