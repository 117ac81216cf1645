# Vectors of inverted lists removed by their ids: which list holds an id, and the list without it.

cdef enum:  # rows of the sample by which a list's ids are known
    KNOWN_EVENLY = 8


cdef class ListedIds:
    """Which list of a faiss.ArrayInvertedLists holds each id, as long as no id is there twice.

    The lists' vectors keep their order, as they would if the removed ones had never been added. An id is looked for in
    its list, so that only the list's number is kept, and an entry that FAISS's own methods have made wrong is noticed.
    """

    cdef IdTable table
    cdef ListReader reader
    cdef int64_t[::1] sizes
    cdef uint64_t[::1] digests  # of a sample of each list's ids
    cdef object this, resize

    def __init__(self, object invlists):
        self.this, self.resize = invlists.this, method_of(type(invlists), "resize")
        self.reader = ListReader(invlists)
        self.sizes = np.zeros(self.reader.nlist, np.int64)
        self.digests = np.zeros(self.reader.nlist, np.uint64)
        self.table = IdTable()

    def is_of(self, object invlists):
        """Whether these are the lists."""
        return int(invlists.this) == int(self.this)

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return self.table.nbytes + self.sizes.nbytes + self.digests.nbytes

    @property
    def repeated(self):
        """Whether some id is there twice."""
        return self.table.repeated

    cdef int64_t *read(self, int64_t number, int64_t *size, uint64_t *codes) except? NULL:
        """Addresses and size of a list: its ids; NULL if it is empty."""
        cdef uint64_t ids = 0
        cdef ListReader reader = self.reader
        codes[0] = 0
        size[0] = reader.size_of(number)
        if not size[0]:
            return NULL
        if reader.address:
            codes[0] = <uint64_t>exported_get_codes(reader.address, number)
            ids = <uint64_t>exported_get_ids(reader.address, number)
        else:
            codes[0], ids = int(reader.get_codes(reader.this, number)), int(reader.get_ids(reader.this, number))
        return <int64_t *><uintptr_t>ids

    cdef uint64_t digest(self, const int64_t *ids, size_t n) noexcept nogil:
        return digest_of_sample(<const uint8_t *>ids, n, sizeof(int64_t), KNOWN_EVENLY, SIZE_MAX) if n else 0

    cdef int note(self, int64_t number, const int64_t *ids, size_t n) except -1:
        self.sizes[number], self.digests[number] = n, self.digest(ids, n)
        return 0

    cdef int update(self, bint thorough) except -1:
        """Enter what was added to the lists; all anew if they have changed otherwise.

        thorough : compare a sample of every list, and not only its size.
        """
        cdef bint repeated = self.table.repeated
        if self.table.n == 0:
            self.table = IdTable(self.entries())
        if not self.enter_added(thorough) or self.table.repeated != repeated:
            # Also where an id came twice: in one of the lists, it may be gone.
            self.sizes[:] = 0
            self.digests[:] = 0
            self.table = IdTable(self.entries())
            self.enter_added(False)
        return 0

    cdef bint enter_added(self, bint thorough) except -1:
        """False if lists have changed by more than additions."""
        cdef size_t number
        cdef int64_t known, size
        cdef uint64_t codes
        cdef const int64_t *ids
        for number in range(self.reader.nlist):
            known = self.sizes[number]
            if self.reader.size_of(number) == known and not thorough:
                continue
            ids = self.read(number, &size, &codes)
            if size < known or self.digest(ids, known) != self.digests[number]:
                return False
            self.table.reserve(size - known)
            with nogil:
                self.table.enter_all(ids + known, size - known, number, 0)
            self.note(number, ids, size)
        return True

    cdef size_t entries(self) except? 0:
        """How many vectors all lists hold."""
        cdef size_t number, total = 0
        for number in range(self.reader.nlist):
            total += self.reader.size_of(number)
        return total

    def lists_of(self, const int64_t[::1] ids):
        """The list that holds each id, -1 where none does; after it, `repeated` is true of the lists as they are."""
        cdef int64_t[::1] numbers = np.empty(ids.shape[0], np.int64)
        self.update(checks_everything())
        if not self.look_up(ids, numbers):
            self.update(True)
            self.look_up(ids, numbers)
        return numbers.base

    cdef bint look_up(self, const int64_t[::1] ids, int64_t[::1] out) except -1:
        """False if some id is not where the table says, or nowhere."""
        cdef size_t i
        cdef int64_t size
        cdef uint64_t codes
        cdef const int64_t *listed
        cdef bint all_there = True
        for i in range(<size_t>ids.shape[0]):
            out[i] = self.table.find(ids[i])
            if out[i] < 0:
                all_there = False
                continue
            listed = self.read(out[i], &size, &codes)
            if place_in(listed, 0, size, ids[i]) == size:
                out[i], all_there = -1, False
        return all_there

    def remove(self, const int64_t[::1] ids, const int64_t[::1] numbers, list scans):
        """Remove the vectors with some ids, each from the list that holds it.

        scans : ListScan of all that is derived from the lists; what they know of these lists follows.
        """
        cdef size_t i
        cdef int64_t size, at
        cdef uint64_t codes
        cdef int64_t *listed
        for i in range(<size_t>ids.shape[0]):
            listed = self.read(numbers[i], &size, &codes)
            known = self.knowing(scans, numbers[i], codes, <uint64_t>listed, size)
            at = place_in(listed, 0, size, ids[i])
            self.take_out(known, numbers[i], listed, codes, at, size)
            size -= 1
            self.resize(self.this, numbers[i], size)
            self.table.take_out(ids[i])
            self.noted(known, numbers[i], codes, listed, size)
        counted.unlisted += <uint64_t>ids.shape[0]

    def rename(self, const int64_t[::1] ids, const int64_t[::1] numbers, const int64_t[::1] names, list scans):
        """Give vectors, in lists that hold each id once, other ids."""
        cdef size_t i
        cdef int64_t size
        cdef uint64_t codes
        cdef int64_t *listed
        for i in range(<size_t>ids.shape[0]):
            listed = self.read(numbers[i], &size, &codes)
            known = self.knowing(scans, numbers[i], codes, <uint64_t>listed, size)
            listed[place_in(listed, 0, size, ids[i])] = names[i]
            self.table.take_out(ids[i])
            self.table.enter(names[i], numbers[i])
            self.noted(known, numbers[i], codes, listed, size)

    def keep(self, const int64_t[::1] numbers, const uint8_t[::1] kept, list scans):
        """Remove from lists, one after the other, the vectors that `kept` has 0 for.

        After it the table is not true, and must not be used.
        """
        cdef size_t i, first = 0
        cdef int64_t size, at, end
        cdef uint64_t codes
        cdef int64_t *listed
        cdef size_t code_size = self.reader.code_size
        for i in range(<size_t>numbers.shape[0]):
            listed = self.read(numbers[i], &size, &codes)
            if not memchr(&kept[first], 0, size):
                first += size
                continue
            known = self.knowing(scans, numbers[i], codes, <uint64_t>listed, size)
            with nogil:
                end = 0
                for at in range(size):
                    if not kept[first + at]:
                        continue
                    listed[end] = listed[at]
                    memmove(<uint8_t *><uintptr_t>codes + end * code_size,
                            <uint8_t *><uintptr_t>codes + at * code_size, code_size)
                    end += 1
            for scan in known:
                keep_derived(scan, numbers[i], &kept[first], size)
            self.resize(self.this, numbers[i], end)
            self.noted(known, numbers[i], codes, listed, end)
            first += size

    cdef list knowing(self, list scans, int64_t number, uint64_t codes, uint64_t ids, int64_t size):
        """Those that are true of a list."""
        cdef ListScan scan
        cdef uint64_t digests[2]
        known = []
        for scan in scans:
            if scan.sizes[number] != size:
                continue
            scan.digest(codes, ids, size, self.reader.code_size, digests)
            if scan.digests[number, 0] == digests[0] and scan.digests[number, 1] == digests[1]:
                known.append(scan)
        return known

    cdef void take_out(self, list scans, int64_t number, int64_t *ids, uint64_t codes, int64_t at,
                       int64_t size) noexcept:
        cdef size_t behind = size - 1 - at
        cdef ListScan scan
        shift(codes, at, behind, self.reader.code_size)
        shift(<uint64_t>ids, at, behind, sizeof(int64_t))
        for scan in scans:
            if scan.lists.terms:
                shift(scan.lists.terms[number], at, behind, sizeof(float))
                shift(scan.lists.bins[number], at, behind, 1)

    cdef int noted(self, list scans, int64_t number, uint64_t codes, const int64_t *ids, int64_t size) except -1:
        """Note what a list holds now, here and in scans that follow its changes."""
        cdef ListScan scan
        self.note(number, ids, size)
        for scan in scans:
            scan.sizes[number] = size
            scan.digest(codes, <uint64_t>ids, size, self.reader.code_size, &scan.digests[number, 0])
        return 0


cdef void shift(uint64_t rows, size_t at, size_t behind, size_t width) noexcept nogil:
    """Move the rows behind a place up by one."""
    cdef uint8_t *to = <uint8_t *><uintptr_t>rows + at * width
    memmove(to, to + width, behind * width)


cdef int64_t place_in(const int64_t *ids, int64_t begin, int64_t n, int64_t id) noexcept nogil:
    """The first place of an id from `begin` on; n if it is not there."""
    cdef int64_t i = begin
    while i < n and ids[i] != id:
        i += 1
    return i


cdef void keep_derived(ListScan scan, int64_t number, const uint8_t *kept, int64_t size) noexcept nogil:
    cdef float *terms
    cdef uint8_t *bins
    cdef int64_t at, end = 0
    if not scan.lists.terms:
        return
    terms = <float *><uintptr_t>scan.lists.terms[number]
    bins = <uint8_t *><uintptr_t>scan.lists.bins[number]
    for at in range(size):
        if kept[at]:
            terms[end], bins[end] = terms[at], bins[at]
            end += 1
