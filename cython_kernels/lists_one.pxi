# Inverted lists: one query, from the centres to the results without Python in between.

cdef class OneQueryListScan(OneQueryScan):
    """One query's search in the lists of a faiss.ArrayInvertedLists whose centres are nearest to it.

    unchanged : all but the lists; each that is probed is compared beside.
    derived : what `lists` is of; it owns what the addresses in `lists` point to.
    centres : finds the lists.
    nprobe, max_codes : as in faiss.IndexIVF.
    """

    cdef object derived
    cdef ListScan lists
    cdef ListReader reader
    cdef CentreScan centres
    cdef size_t nprobe, max_codes

    def __init__(self, Unchanged unchanged, object derived, ListScan lists, ListReader reader, CentreScan centres,
                 size_t nprobe, size_t max_codes):
        self.unchanged, self.derived, self.lists, self.reader = unchanged, derived, lists, reader
        self.centres, self.nprobe, self.max_codes = centres, nprobe, max_codes

    cdef search(self, cnp.ndarray x, size_t k, SelectorMask mask):
        cdef const float *query = query_of(x, self.centres.d)
        if query == NULL or not self.unchanged.holds():
            return None
        cdef float *distances = NULL
        cdef int64_t *labels = NULL
        results = empty_results(k, &distances, &labels)
        cdef centres_work own
        cdef size_t size = self.centres.lay_out(NULL, self.nprobe, &own)
        cdef Scratch scratch = scratch_of_thread(size + self.lists.few_size(self.reader, 1, self.nprobe, k))
        scratch.lent = True
        self.centres.lay_out(scratch.memory, self.nprobe, &own)
        with nogil:
            self.centres.nearest_to(query, self.nprobe, &own)
        cdef bint found = self.lists.few(
            self.reader, query, 1, own.numbers, self.nprobe, self.max_codes, k, scratch.memory + size, distances,
            labels, mask,
        )
        scratch.lent = False
        counted.direct_lists += found
        return results if found else None
