# Inverted lists: one query, from the centres to the results without Python in between.

cdef struct centres_work:
    float *scores  # [nlist], padded
    float *moved  # [d]: the query as it is compared with centres
    uint64_t *heap  # [dpq_topk_capacity(nprobe)]
    int64_t *keys  # [nprobe]


cdef class OneQueryListScan(OneQueryScan):
    """One query's search of METRIC_L2 in the lists of a faiss.ArrayInvertedLists whose centres are nearest to it.

    unchanged : all but the lists; each that is probed is compared beside.
    derived : what `lists` is of; it owns what the addresses in `lists` point to.
    centre_panels, centre_norms : of the centres less the mean centre; see `least_rows`.
    nprobe, max_codes : as in faiss.IndexIVF.
    """

    cdef object derived
    cdef ListScan lists
    cdef ListReader reader
    cdef const float[:, :, ::1] centre_panels
    cdef const float[::1] centre_norms
    cdef size_t nprobe, max_codes

    def __init__(self, Unchanged unchanged, object derived, ListScan lists, ListReader reader,
                 const float[:, :, ::1] centre_panels, const float[::1] centre_norms, size_t nprobe, size_t max_codes):
        self.unchanged, self.derived, self.lists, self.reader = unchanged, derived, lists, reader
        self.centre_panels, self.centre_norms = centre_panels, centre_norms
        self.nprobe, self.max_codes = nprobe, max_codes

    cdef search(self, cnp.ndarray x, size_t k, SelectorMask mask):
        cdef QueryTables tables = self.lists.tables
        cdef size_t n_panels = self.centre_panels.shape[0], j
        cdef const float *query = query_of(x, tables.d)
        if query == NULL or not self.unchanged.holds():
            return None
        cdef float *distances = NULL
        cdef int64_t *labels = NULL
        results = empty_results(k, &distances, &labels)
        cdef centres_work own
        cdef size_t size = self.lay_out(NULL, &own)
        cdef Scratch scratch = scratch_of_thread(size + self.lists.few_size(self.reader, 1, self.nprobe, k))
        scratch.lent = True
        self.lay_out(scratch.memory, &own)
        with nogil:
            for j in range(tables.d):
                own.moved[j] = query[j] - tables.mean[j]
            kernels.linear(
                own.moved, 1, tables.d, &self.centre_panels[0, 0, 0], n_panels, &self.centre_norms[0], -2.0,
                own.scores, n_panels * DPQ_PANEL,
            )
            dpq_least_scores(own.scores, self.lists.lists.nlist, self.nprobe, own.heap, own.keys)
        cdef bint found = self.lists.few(
            self.reader, query, 1, own.keys, self.nprobe, self.max_codes, k, scratch.memory + size, distances, labels,
            mask,
        )
        scratch.lent = False
        counted.direct_lists += found
        return results if found else None

    cdef size_t lay_out(self, uint8_t *memory, centres_work *work) noexcept:
        """As ListScan.lay_out."""
        cdef uint8_t *at = memory
        work.scores = <float *>take(&at, self.centre_norms.shape[0] * sizeof(float))
        work.moved = <float *>take(&at, self.lists.tables.d * sizeof(float))
        work.heap = <uint64_t *>take(&at, dpq_topk_capacity(self.nprobe) * sizeof(uint64_t))
        work.keys = <int64_t *>take(&at, self.nprobe * sizeof(int64_t))
        return at - memory + 64
