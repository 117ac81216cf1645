# Inverted lists: the scan of the lists that queries probe.

cdef enum:
    # Vectors of a list that are added to what is derived from it, with the GIL, where the search is of few queries, and
    # where it is of many: more are worth several threads.
    MOST_ADDED = 1024
    MOST_ADDED_OF_MANY = 16


cdef struct query_work:
    float *tables  # [nq][panels * 16]
    float *turned  # what making them needs
    float *vectors  # [nq][stride]: moved, zero-padded
    float *moved  # [nq][d]: the same without the zeros
    float *norms  # [nq]
    float *errors  # [nq]
    uint32_t *positions  # [nq][k]


cdef struct few_work:
    int64_t *counts  # [nq][nprobe]
    int64_t *numbers  # [nq][nprobe]
    uint64_t *codes  # [nlist]
    uint64_t *ids  # [nlist]
    int64_t *sizes  # [nlist]
    uint64_t *allowed  # [nlist]
    int64_t *admitted  # [nlist]


cdef class ListScan:
    """Search of inverted lists at one prefix length: what stays the same from search to search.

    tables : how the queries' tables are made.
    growth : how to derive what is missing of a list that was added to.
    sizes, digests : (nlist,) and (nlist, 2), of the lists that all this was derived from; changed here and by the
        owner. A size of -1 says none. Digests are of a sample of the list and, with FAISS_DPQ_CHECK=full, of all of its
        codes.
    centres : (nlist, stride), zero-padded to a multiple of 16.
    The other arrays, (nlist,), are those of dpq_lists.h.
    share, length, farthest : `search_few` leaves queries to others with distances that are to be compared again, below
        share (2 ||q|| + 2 min(||q|| + length, farthest) + length) length (see search/near.py); a share of 0: none are.
    """

    cdef dpq_lists lists
    cdef double share, length, farthest
    cdef QueryTables tables
    cdef bint checks_all
    cdef int64_t[::1] sizes
    cdef uint64_t[:, ::1] digests
    cdef ListGrowth growth
    cdef object kept

    def __init__(
        self,
        QueryTables tables,
        ListGrowth growth,
        size_t nbits,
        size_t levels,
        int64_t[::1] sizes,
        uint64_t[:, ::1] digests,
        const float[:, ::1] centres,
        const uint64_t[::1] bins,
        const uint64_t[::1] terms,
        const float[::1] term_min,
        const float[::1] term_step,
        const float[::1] term_magnitude,
        const float[::1] radius,
        const float[::1] errors,
        double share,
        double length,
        double farthest,
    ):
        self.share, self.length, self.farthest = share, length, farthest
        self.kept = (centres, bins, terms, term_min, term_step, term_magnitude, radius, errors)
        self.tables, self.growth, self.checks_all = tables, growth, checks_everything()
        self.sizes, self.digests = sizes, digests
        memset(&self.lists, 0, sizeof(self.lists))
        self.lists.bins = &bins[0]
        self.lists.terms = NULL if tables.inner_product else &terms[0]
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

    def changed(self, lists, uint64_t[:, ::1] out):
        """Which open lists are not those that all is derived from: their numbers. out: the digests, by number.

        To lists that only a few vectors were added to, what is missing is added here.
        """
        cdef const int64_t[::1] numbers = lists.numbers, sizes = lists.sizes
        cdef const uint64_t[::1] codes = lists.codes, ids = lists.ids
        cdef size_t i, found = 0, code_size = lists.code_size
        cdef int64_t[::1] changed = np.empty(numbers.shape[0], np.int64)
        for i in range(<size_t>numbers.shape[0]):
            number = numbers[i]
            if not self.is_known(
                number, sizes[number], codes[number], ids[number], code_size, MOST_ADDED_OF_MANY, &out[number, 0]
            ):
                changed[found] = number
                found += 1
        return np.asarray(changed[:found])

    cdef bint is_known(self, int64_t number, int64_t size, uint64_t codes, uint64_t ids, size_t code_size,
                       size_t most_added, uint64_t *digests) except -1:
        """Whether a list is the one that all is derived from, or has become so by what is derived here of `most_added`
        vectors or fewer. digests : written."""
        cdef int64_t known = self.sizes[number]
        self.digest(codes, ids, size, code_size, digests)
        if known == size and self.digests[number, 0] == digests[0]:
            if self.digests[number, 1] != digests[1]:
                warn_of_writes()
                return False
            return True
        if not 0 < known < size or not self.begins_as_known(number, known, codes, ids, code_size):
            known = 0
        if size - known > <int64_t>most_added:
            return False
        if size > known and not self.growth.grow(number, codes, code_size, known, size):
            return False
        self.sizes[number], self.digests[number, 0], self.digests[number, 1] = size, digests[0], digests[1]
        return True

    cdef bint begins_as_known(self, int64_t number, int64_t known, uint64_t codes, uint64_t ids,
                              size_t code_size) noexcept nogil:
        """Whether all is derived from the first `known` vectors of a list."""
        cdef uint64_t before[2]
        self.digest(codes, ids, known, code_size, before)
        return self.digests[number, 0] == before[0] and self.digests[number, 1] == before[1]

    cdef void digest(self, uint64_t codes, uint64_t ids, size_t n, size_t code_size, uint64_t *out) noexcept nogil:
        out[0] = list_digest(codes, ids, n, code_size)
        out[1] = digest_of_all(<const uint8_t *><uintptr_t>codes, n, code_size) if self.checks_all else 0

    def search(self, lists, const float[:, ::1] xq, const int64_t[:, ::1] keys, const int64_t[:, ::1] counts,
               float[:, ::1] distances, int64_t[:, ::1] labels, int64_t[:, ::1] places,
               uint32_t[:, ::1] positions=None, bint among=False):
        """The k nearest of the codes in the lists that every query probes.

        lists : OpenLists, all that are probed.
        keys, counts : (nq, nprobe), counts 0 where a key is no list.
        distances, labels : (nq, k), written: best first, ties by the order of lists in `keys` and of vectors in a list;
            (+-FLT_MAX, -1) where there are fewer. places : likewise, list << 32 | offset of every result, or None.
        positions : (nq, k), written likewise: where results are among all that their query scans. With `among`, (nq,
            any number), read: only what is there can be found.
        """
        cdef size_t nq = xq.shape[0], k = distances.shape[1]
        cdef const uint64_t[::1] codes = lists.codes, ids = lists.ids, allowed = lists.allowed
        cdef const int64_t[::1] sizes = lists.sizes, admitted = lists.admitted
        cdef dpq_lists opened = self.lists
        cdef dpq_probes probes
        cdef dpq_counters counters
        cdef query_work work
        memset(&counters, 0, sizeof(counters))
        if nq == 0:
            return
        opened.codes = &codes[0]
        opened.sizes = &sizes[0]
        if allowed is not None:
            opened.allowed, opened.admitted = &allowed[0], &admitted[0]
        opened.code_size = lists.code_size
        probes.keys = &keys[0, 0]
        probes.counts = &counts[0, 0]
        probes.nprobe = keys.shape[1]
        probes.queries.nq = nq
        cdef uint8_t[::1] memory = np.empty(self.lay_out(nq, k, NULL, &work), np.uint8)
        cdef Scratch scratch = scratch_of_thread(kernels.lists_scratch(&opened, &probes, k))
        self.lay_out(nq, k, &memory[0], &work)
        if positions is not None and not among:
            work.positions = &positions[0, 0]
        with nogil:
            self.scan(
                &xq[0, 0], &opened, &probes, &ids[0], k, &work, scratch.memory, &distances[0, 0], &labels[0, 0],
                &places[0, 0] if places is not None else NULL, &counters, &positions[0, 0] if among else NULL,
                positions.shape[1] if among else 0,
            )
        if not among:
            count_lists(&counters)

    def rescore(self, ListScan coarse, lists, const float[:, ::1] xq, const int64_t[:, ::1] keys,
                const int64_t[:, ::1] counts, size_t n, float[:, ::1] distances, int64_t[:, ::1] labels,
                int64_t[:, ::1] places):
        """`search`, of the n nearest by fewer levels only, those of `coarse`."""
        cdef uint32_t[:, ::1] candidates = np.empty((xq.shape[0], n), np.uint32)
        coarse.search(
            lists, xq, keys, counts, np.empty((xq.shape[0], n), np.float32), np.empty((xq.shape[0], n), np.int64),
            None, candidates,
        )
        self.search(lists, xq, keys, counts, distances, labels, places, candidates, True)
        counted.refined += candidates.size

    def search_few(self, ListReader reader, const float[:, ::1] xq, const int64_t[:, ::1] keys, size_t max_codes,
                   float[:, ::1] distances, int64_t[:, ::1] labels, SelectorMask mask=None):
        """Reading of the lists, comparison and search in one, for few queries of a faiss.ArrayInvertedLists.

        max_codes : as faiss.IndexIVF.max_codes; 0 where there is a mask.

        mask : a ListsSelector.

        Returns False, and the results say nothing, if a list is not what all is derived from, or if something is to be
        compared again.
        """
        cdef size_t nq = xq.shape[0], nprobe = keys.shape[1], k = distances.shape[1]
        cdef Scratch scratch = scratch_of_thread(self.few_size(reader, nq, nprobe, k))
        scratch.lent = True
        cdef bint found = self.few(
            reader, &xq[0, 0], nq, &keys[0, 0], nprobe, max_codes, k, scratch.memory, &distances[0, 0], &labels[0, 0],
            mask,
        )
        scratch.lent = False
        counted.few_probes += found
        return found

    cdef size_t few_size(self, ListReader reader, size_t nq, size_t nprobe, size_t k) noexcept:
        """Bytes of scratch that `few` takes."""
        cdef few_work own
        cdef query_work work
        cdef dpq_probes probes
        probes.nprobe = nprobe
        probes.queries.nq = nq
        self.lists.code_size = reader.code_size
        return self.lay_out_few(nq, nprobe, NULL, &own) + self.lay_out(nq, k, NULL, &work) + kernels.lists_scratch(
            &self.lists, &probes, k
        )

    cdef bint few(self, ListReader reader, const float *xq, size_t nq, const int64_t *keys, size_t nprobe,
                  size_t max_codes, size_t k, uint8_t *scratch, float *distances, int64_t *labels,
                  SelectorMask mask=None) except -1:
        cdef few_work own
        cdef query_work work
        cdef dpq_lists lists = self.lists
        cdef dpq_probes probes
        cdef dpq_counters counters
        memset(&counters, 0, sizeof(counters))
        cdef size_t own_size = self.lay_out_few(nq, nprobe, NULL, &own), size = self.lay_out(nq, k, NULL, &work)
        self.lay_out_few(nq, nprobe, scratch, &own)
        self.lay_out(nq, k, scratch + own_size, &work)
        scratch += own_size + size
        reader.read(keys, nq * nprobe, own.codes, own.ids, own.sizes)
        lists.codes, lists.sizes, lists.code_size = own.codes, own.sizes, reader.code_size
        probes.keys, probes.counts, probes.nprobe, probes.queries.nq = keys, own.counts, nprobe, nq
        # With the GIL, under which another thread enters lists that it has derived everything of.
        if not self.count(&lists, &probes, own.ids, max_codes, own.counts):
            return False
        cdef ListsSelector selector = mask
        cdef ListsBitmap bitmap = mask if isinstance(mask, ListsBitmap) else None
        cdef ListsMask kept = None
        cdef MaskMemory masks = None
        cdef size_t n_masks = 0
        if bitmap is not None and bitmap.lets_many_through():
            lists.bitmap, lists.bitmap_size, lists.ids = bitmap.bits, bitmap.size, own.ids
        elif selector is not None:
            n_masks = distinct(keys, nq * nprobe, own.allowed, own.numbers)
            lists.allowed, lists.admitted, kept = own.allowed, own.admitted, selector.kept()
        if kept is not None:
            n_masks = kept.lacked(own.numbers, n_masks, own.sizes, self.digests)
            if n_masks:
                kept.keep(
                    selector, own.numbers, n_masks, own.ids, own.sizes, self.digests, own.allowed, own.admitted
                )
            lists.allowed, lists.admitted = &kept.address_of[0], &kept.admitted_of[0]
        elif n_masks:
            selector.ask(own.numbers, n_masks, own.ids, own.sizes)
            masks = MaskMemory(words_of(own.numbers, n_masks, own.sizes) * sizeof(uint64_t))
        with nogil:
            if masks is not None:
                selector.fill(
                    own.numbers, n_masks, own.ids, own.sizes, <uint64_t *>masks.memory, own.allowed, own.admitted
                )
            self.scan(xq, &lists, &probes, own.ids, k, &work, scratch, distances, labels, NULL, &counters)
        if self.share and self.has_near(distances, nq, k, work.norms):
            return False
        count_lists(&counters)
        count_searches(nq, nprobe, own.counts)
        counted.masked_lists += n_masks
        return True

    cdef bint has_near(self, const float *distances, size_t nq, size_t k, const float *norms) noexcept nogil:
        """Whether the nearest of some query is to be compared again."""
        cdef size_t q
        cdef double length
        for q in range(nq):
            length = sqrt(norms[q])
            length = (2 * (length + min(length + self.length, self.farthest)) + self.length) * self.length
            if distances[q * k] < self.share * length:
                return True
        return False

    cdef bint count(self, const dpq_lists *lists, const dpq_probes *probes, const uint64_t *ids, size_t max_codes,
                    int64_t *counts) except -1:
        """How many vectors a query scans of each of its lists; False if a list has changed, or they are too many."""
        cdef size_t q, p, i, size, left, total
        cdef int64_t key
        cdef uint64_t digests[2]
        for q in range(probes.queries.nq):
            left = max_codes if max_codes else SIZE_MAX
            total = 0
            for p in range(probes.nprobe):
                i = q * probes.nprobe + p
                key = probes.keys[i]
                counts[i] = 0
                if key < 0:
                    continue
                size = lists.sizes[key]
                if not self.is_known(
                    key, size, lists.codes[key], ids[key], lists.code_size, MOST_ADDED, digests
                ):
                    return False
                counts[i] = min(size, left)
                left -= counts[i]
                total += counts[i]
            if total >= UINT32_MAX:  # positions have 32 bits
                return False
        return True

    cdef size_t lay_out_few(self, size_t nq, size_t nprobe, uint8_t *memory, few_work *work) noexcept:
        """As `lay_out`."""
        cdef uint8_t *at = memory
        work.counts = <int64_t *>take(&at, nq * nprobe * sizeof(int64_t))
        work.numbers = <int64_t *>take(&at, nq * nprobe * sizeof(int64_t))
        work.codes = <uint64_t *>take(&at, self.lists.nlist * sizeof(uint64_t))
        work.ids = <uint64_t *>take(&at, self.lists.nlist * sizeof(uint64_t))
        work.sizes = <int64_t *>take(&at, self.lists.nlist * sizeof(int64_t))
        work.allowed = <uint64_t *>take(&at, self.lists.nlist * sizeof(uint64_t))
        work.admitted = <int64_t *>take(&at, self.lists.nlist * sizeof(int64_t))
        return at - memory + 64

    cdef size_t lay_out(self, size_t nq, size_t k, uint8_t *memory, query_work *work) noexcept:
        """Cut memory of this many bytes for nq queries; NULL: only its size."""
        cdef size_t d = self.tables.d
        cdef uint8_t *at = memory
        work.tables = <float *>take(&at, nq * self.tables.width * sizeof(float))
        work.vectors = <float *>take(&at, nq * self.lists.stride * sizeof(float))
        work.moved = work.vectors
        if self.lists.stride != d:
            work.moved = <float *>take(&at, nq * d * sizeof(float))
        work.turned = <float *>take(&at, self.tables.scratch(nq) * sizeof(float))
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
        const uint32_t *candidates=NULL,
        size_t n=0,
    ) noexcept nogil:
        """`search`, with memory to work in. probes: keys, counts, nprobe and nq are set."""
        cdef size_t nq = probes.queries.nq, d = self.tables.d, q, i
        cdef size_t stride = lists.stride
        cdef int64_t place
        probes.queries.tables = work.tables
        probes.queries.norms = work.norms
        probes.queries.table_errors = work.errors
        probes.queries.inner_product = self.tables.inner_product
        probes.table_stride = self.tables.width
        probes.vectors = work.vectors
        for q in range(nq):
            self.tables.move(xq + q * d, work.moved + q * d, work.norms + q, work.errors + q)
            if stride != d:
                memcpy(work.vectors + q * stride, work.moved + q * d, d * sizeof(float))
                memset(work.vectors + q * stride + d, 0, (stride - d) * sizeof(float))
        self.tables.fill(work.moved, nq, 1, work.tables, work.turned)
        if candidates != NULL:
            kernels.rescore_lists(
                lists, probes, candidates, n, k, <uint64_t *><uintptr_t>(<uintptr_t>scratch + 7 & ~<uintptr_t>7),
                distances, work.positions,
            )
        else:
            kernels.scan_lists(lists, probes, k, distances, work.positions, scratch, counters)
        for q in range(nq):
            for i in range(q * k, q * k + k):
                place = place_of(
                    work.positions[i], probes.keys + q * probes.nprobe, probes.counts + q * probes.nprobe
                )
                labels[i] = -1
                if place >= 0:
                    labels[i] = (<const int64_t *><uintptr_t>ids[place >> 32])[place & UINT32_MAX]
                distances[i] = self.delivered(distances[i], place)
                if places != NULL:
                    places[i] = place

    cdef float delivered(self, float distance, int64_t place) noexcept nogil:
        """A result as FAISS gives it."""
        if place < 0:
            return -FLT_MAX if self.tables.inner_product else FLT_MAX
        return -distance if self.tables.inner_product else distance


cdef size_t distinct(const int64_t *keys, size_t n, uint64_t *marks, int64_t *numbers) noexcept nogil:
    """The lists among n keys, -1 for none, each once; returns how many there are. marks : (nlist,), to work with."""
    cdef size_t i, found = 0
    for i in range(n):
        if keys[i] >= 0:
            marks[keys[i]] = 0
    for i in range(n):
        if keys[i] >= 0 and not marks[keys[i]]:
            marks[keys[i]] = 1
            numbers[found] = keys[i]
            found += 1
    return found


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
