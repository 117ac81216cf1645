# Inverted lists: what is derived from their codes, and the scan of the lists that queries probe.
#
# Lists are given by arrays over all lists of an index: addresses of their codes, ids, ... as uint64, and their sizes.
# Only the entries of lists that take part are read.

cdef extern from "lists_derived.h" nogil:
    float dpq_list_terms(
        const dpq_database *db, const float *cross, const float *products, const float *codeword_norms, float error,
        float *terms,
    )
    float dpq_list_bins(dpq_database *db, uint8_t *bins)


def gather_ids(const int64_t[::1] lists, const uint64_t[::1] ids, const int64_t[::1] sizes, int64_t[::1] out):
    """The ids of some lists, one list after the other."""
    cdef size_t i, at = 0
    with nogil:
        for i in range(lists.shape[0]):
            memcpy(&out[0] + at, <const void *><uintptr_t>ids[lists[i]], <size_t>sizes[lists[i]] * sizeof(int64_t))
            at += <size_t>sizes[lists[i]]


def copy_codes(uint64_t address, uint8_t[:, ::1] out):
    """The codes at an address, out.shape[0] of them."""
    with nogil:
        memcpy(&out[0, 0], <const void *><uintptr_t>address, <size_t>(out.shape[0] * out.shape[1]))


def gather_codes(const int64_t[::1] places, const uint64_t[::1] codes, uint8_t[:, ::1] out):
    """The codes at some places (list << 32 | offset); bytes of 255 for -1."""
    cdef size_t i, size = out.shape[1]
    cdef int64_t place
    with nogil:
        for i in range(places.shape[0]):
            place = places[i]
            if place < 0:
                memset(&out[i, 0], 255, size)
            else:
                memcpy(&out[i, 0], <const uint8_t *><uintptr_t>codes[place >> 32] + (place & UINT32_MAX) * size, size)


def list_terms(
    uint64_t codes,
    size_t code_size,
    size_t nbits,
    size_t levels,
    const float[:, :, ::1] cross,
    const float[::1] products,
    const float[::1] codeword_norms,
    float error,
    size_t n,
    float[::1] terms,
    uint8_t[::1] bins,
):
    """Fill the terms and bins of the n >= 1 codes at an address; None for both where there are none.

    cross : as in tables.pxi; where None, `terms` holds the cross terms already.
    products : (levels << nbits,), 2<w, c> of the list's centre w.
    error : bound on the rounding of a squared norm.

    Returns (radius, least edge of the bins, their width, largest magnitude of a term or edge).
    """
    cdef dpq_database db
    cdef float radius, magnitude = 0
    cdef float *out = &terms[0] if terms is not None else NULL
    memset(&db, 0, sizeof(db))
    db.codes = <const uint8_t *><uintptr_t>codes
    db.n = n
    db.code_size = code_size
    db.nbits = nbits
    db.levels = levels
    cdef const float *pairs = NULL
    cdef float nothing = 0
    if cross is not None:
        pairs = &cross[0, 0, 0] if cross.shape[0] else &nothing
    with nogil:
        radius = dpq_list_terms(&db, pairs, &products[0], &codeword_norms[0], error, out)
        if out != NULL:
            db.terms = out
            magnitude = dpq_list_bins(&db, &bins[0])
    return radius, db.term_min, db.term_step, magnitude


cdef extern from "least_scores.h" nogil:
    size_t dpq_topk_capacity(size_t k)
    void dpq_least_scores(const float *scores, size_t n, size_t k, uint64_t *keys, int64_t *numbers)


def nearest(const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, size_t n, int64_t[:, ::1] out):
    """out[i] = the rows j < n of a packed matrix with the least bias[j] - 2<x[i], row j>, least first."""
    cdef size_t k = out.shape[1], q
    cdef float[:, ::1] scores = aligned_empty((x.shape[0], panels.shape[0] * DPQ_PANEL))
    cdef uint64_t[::1] keys = np.empty(dpq_topk_capacity(k), np.uint64)
    if x.shape[0] == 0:
        return
    with nogil:
        kernels.linear(
            &x[0, 0], x.shape[0], x.shape[1], &panels[0, 0, 0], panels.shape[0], &bias[0], -2.0,
            &scores[0, 0], scores.shape[1],
        )
        for q in range(<size_t>x.shape[0]):
            dpq_least_scores(&scores[q, 0], n, k, &keys[0], &out[q, 0])


cdef class ArrayLists:
    """Where a faiss.ArrayInvertedLists keeps its vectors of codes and of ids.

    words, at : every vector takes `words` words, of which number `at` is the address of its contents and the next their
        count. codes, ids : addresses of the std::vectors of these vectors.
    """

    cdef size_t words, at, code_size
    cdef const uint64_t **codes
    cdef const uint64_t **ids

    def __init__(self, size_t words, size_t at, uint64_t codes, uint64_t ids, size_t code_size):
        self.words, self.at, self.code_size = words, at, code_size
        self.codes = <const uint64_t **><uintptr_t>codes
        self.ids = <const uint64_t **><uintptr_t>ids

    def read(self, const int64_t[::1] numbers, uint64_t[::1] codes, uint64_t[::1] ids, int64_t[::1] sizes):
        """Write addresses and sizes of some lists where they belong in arrays over all lists."""
        cdef size_t i, vector
        for i in range(<size_t>numbers.shape[0]):
            vector = numbers[i] * self.words + self.at
            codes[numbers[i]] = self.codes[0][vector]
            ids[numbers[i]] = self.ids[0][vector]
            sizes[numbers[i]] = <int64_t>self.ids[0][vector + 1]


cdef struct query_work:
    float *tables  # [nq][panels * 16]
    float *vectors  # [nq][stride]: moved, zero-padded
    float *moved  # [nq][d]: the same without the zeros
    float *norms  # [nq]
    float *errors  # [nq]
    uint32_t *positions  # [nq][k]


cdef class ListScan:
    """Search of inverted lists at one prefix length: what stays the same from search to search.

    sizes, hashes : (nlist,), of the codes that all this was derived from; changed by the owner.
    centres : (nlist, stride), zero-padded to a multiple of 16; mean, centre : (d,), what queries are moved by.
    panels, bias : of all codewords of the levels, and what their products are added to; scale : what they are times.
    error_of_norm, error_constant : see ProgressiveQuantizer.table_errors.
    The other arrays, (nlist,), are those of dpq_lists.h.
    """

    cdef dpq_lists lists
    cdef bint inner_product
    cdef float scale, error_of_norm, error_constant
    cdef const int64_t[::1] sizes
    cdef const uint64_t[::1] hashes
    cdef const float[:, ::1] centres
    cdef const float[::1] mean
    cdef const float[::1] centre
    cdef const float[:, :, ::1] panels
    cdef const float[::1] bias
    cdef object kept

    def __init__(
        self,
        bint inner_product,
        size_t nbits,
        size_t levels,
        const int64_t[::1] sizes,
        const uint64_t[::1] hashes,
        const float[:, ::1] centres,
        const float[::1] mean,
        const float[::1] centre,
        const float[:, :, ::1] panels,
        const float[::1] bias,
        float error_of_norm,
        float error_constant,
        const uint64_t[::1] bins,
        const uint64_t[::1] terms,
        const float[::1] term_min,
        const float[::1] term_step,
        const float[::1] term_magnitude,
        const float[::1] radius,
        const float[::1] errors,
    ):
        self.kept = (bins, terms, term_min, term_step, term_magnitude, radius, errors)
        self.inner_product = inner_product
        self.scale = -1.0 if inner_product else -2.0
        self.error_of_norm = error_of_norm
        self.error_constant = error_constant
        self.sizes, self.hashes, self.centres = sizes, hashes, centres
        self.mean, self.centre, self.panels, self.bias = mean, centre, panels, bias
        self.lists.bins = &bins[0]
        self.lists.terms = NULL if inner_product else &terms[0]
        self.lists.term_min = &term_min[0]
        self.lists.term_step = &term_step[0]
        self.lists.term_magnitude = &term_magnitude[0]
        self.lists.radius = &radius[0]
        self.lists.errors = &errors[0]
        self.lists.centres = &centres[0, 0]
        self.lists.nlist = centres.shape[0]
        self.lists.stride = centres.shape[1]
        self.lists.nbits = nbits
        self.lists.levels = levels

    def changed(self, const int64_t[::1] numbers, const uint64_t[::1] codes, const int64_t[::1] sizes,
                size_t code_size, uint64_t[::1] hashes, uint8_t[::1] out):
        """Hash the codes of some lists; out[i] tells whether list numbers[i] is not what `sizes`, `hashes` say."""
        cdef size_t i, n = numbers.shape[0]
        cdef int64_t number
        with nogil:
            for i in range(n):
                number = numbers[i]
                hashes[i] = kernels.hash(
                    <const uint8_t *><uintptr_t>codes[number], <size_t>sizes[number] * code_size
                )
                out[i] = sizes[number] != self.sizes[number] or hashes[i] != self.hashes[number]

    def search(
        self,
        const float[:, ::1] xq,
        const int64_t[:, ::1] keys,
        const int64_t[:, ::1] counts,
        const uint64_t[::1] codes,
        const uint64_t[::1] ids,
        const int64_t[::1] sizes,
        const uint64_t[::1] allowed,
        size_t code_size,
        float[:, ::1] distances,
        int64_t[:, ::1] labels,
        int64_t[:, ::1] places,
    ):
        """The k nearest of the codes in the lists that every query probes.

        keys, counts : (nq, nprobe), counts 0 where a key is no list; codes, ids, sizes, allowed : see dpq_lists.h.
        distances, labels : (nq, k), written: best first, ties by the order of lists in `keys` and of vectors in a list;
            (+-FLT_MAX, -1) where there are fewer. places : likewise, list << 32 | offset of every result, or None.

        Returns (vectors judged by bytes, of these rescored, vectors scanned in float32), summed over queries.
        """
        cdef size_t nq = xq.shape[0], k = distances.shape[1]
        cdef dpq_lists lists = self.lists
        cdef dpq_probes probes
        cdef dpq_counters counters
        cdef query_work work
        counters.bounded = counters.rescored = counters.floated = 0
        if nq == 0:
            return 0, 0, 0
        lists.codes = &codes[0]
        lists.sizes = &sizes[0]
        lists.words = 1
        lists.allowed = &allowed[0] if allowed is not None else NULL
        lists.code_size = code_size
        probes.keys = &keys[0, 0]
        probes.counts = &counts[0, 0]
        probes.nprobe = keys.shape[1]
        probes.queries.nq = nq
        cdef uint8_t[::1] memory = np.empty(self.lay_out(nq, k, NULL, &work), np.uint8)
        cdef uint8_t[::1] scratch = scratch_of_thread(kernels.lists_scratch(&lists, &probes, k))
        self.lay_out(nq, k, &memory[0], &work)
        with nogil:
            self.scan(
                &xq[0, 0], &lists, &probes, &ids[0], k, &work, &scratch[0], &distances[0, 0], &labels[0, 0],
                &places[0, 0] if places is not None else NULL, &counters,
            )
        return counters.bounded, counters.rescored, counters.floated

    def search_arrays(
        self,
        const float[:, ::1] xq,
        const int64_t[:, ::1] keys,
        size_t max_codes,
        ArrayLists arrays,
        float[:, ::1] distances,
        int64_t[:, ::1] labels,
    ):
        """`changed` and `search` in one, for few queries of a faiss.ArrayInvertedLists.

        max_codes : as faiss.IndexIVF.max_codes.

        Returns False, and writes nothing, if a list is not what `sizes` and `hashes` say.
        """
        cdef size_t nq = xq.shape[0], nprobe = keys.shape[1], k = distances.shape[1]
        cdef int64_t[:, ::1] counts = np.empty((nq, nprobe), np.int64)
        cdef uint64_t[:, ::1] hashes = np.empty((nq, nprobe), np.uint64)
        cdef dpq_lists lists
        cdef dpq_probes probes
        self.open(arrays, &lists)
        probes.keys = &keys[0, 0]
        probes.counts = &counts[0, 0]
        probes.nprobe = nprobe
        probes.queries.nq = nq
        with nogil:
            self.count(&lists, &probes, max_codes, &counts[0, 0], &hashes[0, 0])
        if not self.is_true_of(&lists, &probes, &hashes[0, 0]):
            return False
        cdef query_work work
        cdef dpq_counters unread
        memset(&unread, 0, sizeof(unread))
        cdef size_t size = self.lay_out(nq, k, NULL, &work)
        cdef uint8_t[::1] scratch = scratch_of_thread(size + kernels.lists_scratch(&lists, &probes, k))
        self.lay_out(nq, k, &scratch[0], &work)
        with nogil:
            self.scan(
                &xq[0, 0], &lists, &probes, arrays.ids[0] + arrays.at, k, &work, &scratch[0] + size, &distances[0, 0],
                &labels[0, 0], NULL, &unread,
            )
        return True

    cdef void open(self, ArrayLists arrays, dpq_lists *lists) noexcept:
        """All lists as they are now, right where FAISS keeps them."""
        lists[0] = self.lists
        lists.codes = arrays.codes[0] + arrays.at
        lists.sizes = <const int64_t *>arrays.ids[0] + arrays.at + 1
        lists.words = arrays.words
        lists.allowed = NULL
        lists.code_size = arrays.code_size

    cdef void count(self, const dpq_lists *lists, const dpq_probes *probes, size_t max_codes, int64_t *counts,
                    uint64_t *hashes) noexcept nogil:
        """How many vectors a query scans of each of its lists, and the hash of the whole list."""
        cdef size_t q, p, i, size, left
        for q in range(probes.queries.nq):
            left = max_codes if max_codes else SIZE_MAX
            for p in range(probes.nprobe):
                i = q * probes.nprobe + p
                counts[i] = 0
                if probes.keys[i] >= 0:
                    size = lists.sizes[probes.keys[i] * lists.words]
                    hashes[i] = kernels.hash(
                        <const uint8_t *><uintptr_t>lists.codes[probes.keys[i] * lists.words], size * lists.code_size
                    )
                    counts[i] = min(size, left)
                    left -= counts[i]

    cdef bint is_true_of(self, const dpq_lists *lists, const dpq_probes *probes, const uint64_t *hashes) noexcept:
        """Whether `sizes` and `hashes` are those of the lists probed, and positions in these have 32 bits.

        With the GIL, under which another thread enters lists that it has derived everything of.
        """
        cdef size_t q, p, i, total
        cdef int64_t key
        for q in range(probes.queries.nq):
            total = 0
            for p in range(probes.nprobe):
                i = q * probes.nprobe + p
                key = probes.keys[i]
                total += probes.counts[i]
                if key >= 0 and (hashes[i] != self.hashes[key] or lists.sizes[key * lists.words] != self.sizes[key]):
                    return False
            if total >= UINT32_MAX:
                return False
        return True

    cdef size_t lay_out(self, size_t nq, size_t k, uint8_t *memory, query_work *work) noexcept:
        """Cut memory of this many bytes for nq queries; NULL: only its size."""
        cdef size_t d = self.mean.shape[0], width = self.panels.shape[0] * DPQ_PANEL
        cdef uint8_t *at = memory
        work.tables = <float *>take(&at, nq * width * sizeof(float))
        work.vectors = <float *>take(&at, nq * self.lists.stride * sizeof(float))
        work.moved = work.vectors
        if self.lists.stride != d:
            work.moved = <float *>take(&at, nq * d * sizeof(float))
        work.norms = <float *>take(&at, nq * sizeof(float))
        work.errors = <float *>take(&at, nq * sizeof(float))
        work.positions = <uint32_t *>take(&at, nq * k * sizeof(uint32_t))
        return at - memory + 64

    cdef void scan(
        self,
        const float *xq,
        const dpq_lists *lists,
        dpq_probes *probes,
        const uint64_t *ids,
        size_t k,
        const query_work *work,
        uint8_t *scratch,
        float *distances,
        int64_t *labels,
        int64_t *places,
        dpq_counters *counters,
    ) noexcept nogil:
        """`search`, with memory to work in. probes: keys, counts, nprobe and nq are set."""
        cdef size_t nq = probes.queries.nq, d = self.mean.shape[0], width = self.panels.shape[0] * DPQ_PANEL, q, i
        cdef size_t stride = lists.stride
        cdef int64_t place
        probes.queries.tables = work.tables
        probes.queries.norms = work.norms
        probes.queries.table_errors = work.errors
        probes.queries.inner_product = self.inner_product
        probes.table_stride = width
        probes.vectors = work.vectors
        for q in range(nq):
            self.move(xq + q * d, d, work.moved + q * d, work.norms + q, work.errors + q)
            if stride != d:
                memcpy(work.vectors + q * stride, work.moved + q * d, d * sizeof(float))
                memset(work.vectors + q * stride + d, 0, (stride - d) * sizeof(float))
        kernels.linear(
            work.moved, nq, d, &self.panels[0, 0, 0], <size_t>self.panels.shape[0], &self.bias[0], self.scale,
            work.tables, width,
        )
        kernels.scan_lists(lists, probes, k, distances, work.positions, scratch, counters)
        for q in range(nq):
            for i in range(q * k, q * k + k):
                place = place_of(
                    work.positions[i], probes.keys + q * probes.nprobe, probes.counts + q * probes.nprobe
                )
                labels[i] = -1
                if place >= 0:
                    labels[i] = (<const int64_t *><uintptr_t>ids[(place >> 32) * lists.words])[place & UINT32_MAX]
                distances[i] = self.delivered(distances[i], place)
                if places != NULL:
                    places[i] = place

    cdef float delivered(self, float distance, int64_t place) noexcept nogil:
        """A result as FAISS gives it; the rounding of Eq. 30 may leave -1e-7 where a code is the query itself."""
        if place < 0:
            return -FLT_MAX if self.inner_product else FLT_MAX
        return -distance if self.inner_product else max(distance, <float>0)

    cdef void move(self, const float *x, size_t d, float *moved, float *norm, float *error) noexcept nogil:
        """A query as its tables are made of it, its squared norm, and what its tables err by at most."""
        cdef size_t j
        cdef double total = 0
        for j in range(d):
            moved[j] = x[j] if self.inner_product else x[j] - self.mean[j] - self.centre[j]
            total += <double>moved[j] * moved[j]
        norm[0] = <float>total
        error[0] = self.error_of_norm * <float>sqrt(total) + (self.error_constant + <float>1.2e-7 * norm[0])


cdef struct single_work:
    float *scores  # [nlist], padded
    float *moved  # [d]: the query as it is compared with centres
    uint64_t *heap  # [dpq_topk_capacity(nprobe)]
    int64_t *keys  # [nprobe]
    int64_t *counts  # [nprobe]
    uint64_t *hashes  # [nprobe]


cdef class SingleListScan(Single):
    """One query's search of METRIC_L2 in the lists of a faiss.ArrayInvertedLists whose centres are nearest to it.

    derived : what `lists` is of; it owns what the addresses in `lists` point to.
    centre_panels, centre_norms : of the centres less the mean centre; see `nearest`.
    nprobe, max_codes : as in faiss.IndexIVF.
    """

    cdef object derived
    cdef ListScan lists
    cdef ArrayLists arrays
    cdef const float[:, :, ::1] centre_panels
    cdef const float[::1] centre_norms
    cdef size_t nprobe, max_codes

    def __init__(self, object derived, ListScan lists, ArrayLists arrays, const float[:, :, ::1] centre_panels,
                 const float[::1] centre_norms, size_t nprobe, size_t max_codes):
        self.derived, self.lists, self.arrays = derived, lists, arrays
        self.centre_panels, self.centre_norms = centre_panels, centre_norms
        self.nprobe, self.max_codes = nprobe, max_codes

    cdef search(self, cnp.ndarray x, size_t k):
        cdef size_t d = self.lists.mean.shape[0], n_panels = self.centre_panels.shape[0], j
        cdef const float *query = query_of(x, d)
        if query == NULL:
            return None
        # Before scratch is taken: an allocation may run other code of this thread, which takes it too.
        cdef float *distances = NULL
        cdef int64_t *labels = NULL
        results = empty_results(k, &distances, &labels)
        cdef dpq_lists lists
        cdef dpq_probes probes
        cdef query_work work
        cdef dpq_counters unread
        memset(&unread, 0, sizeof(unread))
        cdef single_work own
        self.lists.open(self.arrays, &lists)
        probes.nprobe = self.nprobe
        probes.queries.nq = 1
        cdef size_t own_size = self.lay_out(NULL, &own), size = own_size + self.lists.lay_out(1, k, NULL, &work)
        cdef uint8_t *memory = &scratch_of_thread(size + kernels.lists_scratch(&lists, &probes, k))[0]
        self.lay_out(memory, &own)
        self.lists.lay_out(1, k, memory + own_size, &work)
        probes.keys = own.keys
        probes.counts = own.counts
        with nogil:
            for j in range(d):
                own.moved[j] = query[j] - self.lists.mean[j]
            kernels.linear(
                own.moved, 1, d, &self.centre_panels[0, 0, 0], n_panels, &self.centre_norms[0], -2.0, own.scores,
                n_panels * DPQ_PANEL,
            )
            dpq_least_scores(own.scores, lists.nlist, self.nprobe, own.heap, own.keys)
            self.lists.count(&lists, &probes, self.max_codes, own.counts, own.hashes)
        if not self.lists.is_true_of(&lists, &probes, own.hashes):
            return None
        with nogil:
            self.lists.scan(
                query, &lists, &probes, self.arrays.ids[0] + self.arrays.at, k, &work, memory + size, distances,
                labels, NULL, &unread,
            )
        return results

    cdef size_t lay_out(self, uint8_t *memory, single_work *work) noexcept:
        """As ListScan.lay_out."""
        cdef uint8_t *at = memory
        work.scores = <float *>take(&at, self.centre_norms.shape[0] * sizeof(float))
        work.moved = <float *>take(&at, self.lists.mean.shape[0] * sizeof(float))
        work.heap = <uint64_t *>take(&at, dpq_topk_capacity(self.nprobe) * sizeof(uint64_t))
        work.keys = <int64_t *>take(&at, self.nprobe * sizeof(int64_t))
        work.counts = <int64_t *>take(&at, self.nprobe * sizeof(int64_t))
        work.hashes = <uint64_t *>take(&at, self.nprobe * sizeof(uint64_t))
        return at - memory + 64


cdef int64_t place_of(uint32_t position, const int64_t *keys, const int64_t *counts) noexcept nogil:
    """list << 32 | offset of what a query scanned at a position, -1 of none."""
    cdef size_t p = 0
    cdef int64_t offset = position
    if position == UINT32_MAX:
        return -1
    while offset >= counts[p]:
        offset -= counts[p]
        p += 1
    return keys[p] << 32 | offset


def read_words(uint64_t address, size_t n):
    """The n 64-bit words at an address."""
    words = np.empty(n, np.uint64)
    cdef uint64_t[::1] out = words
    memcpy(&out[0], <const void *><uintptr_t>address, n * sizeof(uint64_t))
    return words
