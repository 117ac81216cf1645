# FAISS's memory: where the contents of its vectors are, and whether they are still what they were.

import warnings

cdef enum:
    EVENLY = 64  # rows of a sample that are evenly spaced


cdef class FaissVector:
    """Where a std::vector of FAISS has its contents, as the vector's own methods tell.

    Called with the SWIG object itself, they take a tenth of a microsecond each. dtype : of the items.
    """

    cdef object this, data, size, dtype

    def __init__(self, object vector, dtype=np.uint8):
        self.this, self.data, self.size = vector.this, type(vector).data, type(vector).size
        self.dtype = np.dtype(dtype)

    cdef size_t count(self) except? 0:
        return self.size(self.this)

    cdef uint8_t *address(self) except? NULL:
        """Of the first item; NULL if there is none."""
        data = self.data(self.this)
        return NULL if data is None else <uint8_t *><uintptr_t>int(data)

    def rows(self, size_t width):
        """The contents as an array of `width` columns, in place."""
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.count() // width, width
        if shape[0] == 0:
            return np.empty((0, width), self.dtype)
        return cnp.PyArray_SimpleNewFromData(2, shape, self.dtype.num, self.address())


cdef uint64_t mixed(uint64_t digest, const uint8_t *row, size_t width) noexcept nogil:
    """The digest, gone on with the first and the last eight bytes of a row."""
    cdef uint64_t first = 0, last = 0
    cdef size_t i
    if width >= 8:
        memcpy(&first, row, 8)
        memcpy(&last, row + width - 8, 8)
    else:
        for i in range(width):
            first = first << 8 | row[i]
    digest = (digest ^ first) * <uint64_t>0x9E3779B97F4A7C15
    digest = (digest ^ digest >> 32 ^ last) * <uint64_t>0xD6E8FEB86659FD93
    return digest ^ digest >> 32


cdef uint64_t digest_of_all(uint64_t digest, const uint8_t *rows, size_t n, size_t width) noexcept nogil:
    cdef size_t i
    for i in range(n * width):
        digest = (digest ^ rows[i]) * <uint64_t>0x100000001B3
    return digest


cdef uint64_t digest_of_sample(
    uint64_t digest, const uint8_t *rows, size_t n, size_t width, size_t evenly
) noexcept nogil:
    """Of `evenly` rows in even steps, and of rows ever farther from the end: n - 1, n - 2, n - 3, n - 5, n - 9, ..."""
    cdef size_t at = 0, from_end = 1
    while at < n:
        digest = mixed(digest, rows + at * width, width)
        at += n // evenly + 1
    if n:
        digest = mixed(digest, rows + (n - 1) * width, width)
    while from_end < n:
        digest = mixed(digest, rows + (n - 1 - from_end) * width, width)
        from_end *= 2
    return digest


cdef bint checks_everything():
    """FAISS_DPQ_CHECK=full: everything is compared, not a sample, and what only that finds is warned of."""
    return os.environ.get("FAISS_DPQ_CHECK") == "full"


cdef int warn_of_writes() except -1:
    warnings.warn(
        "codes or codebooks were overwritten in place, which only FAISS_DPQ_CHECK=full notices; "
        "whoever does so has to call index.invalidate()",
        RuntimeWarning,
        stacklevel=2,
    )
    return 0


cdef class Sample:
    """A few rows of an array, by which to tell later whether the array is what it was.

    Rows that end in equal ones are looked at also where the equal ones begin. So it is always seen if one row was taken
    out, those behind it moved up, and one was appended: either the last row is another one, or the last row that
    differed from its neighbour has that neighbour's place.
    """

    cdef readonly size_t n
    cdef size_t width, turn
    cdef bint full
    cdef uint64_t digest, everything

    def __init__(self, const uint8_t[:, ::1] rows):
        cdef const uint8_t *first = &rows[0, 0]
        self.n, self.width, self.full = rows.shape[0], rows.shape[1], checks_everything()
        self.turn = max(self.n, 1) - 1
        with nogil:
            while self.turn > 0 and not memcmp(
                first + self.turn * self.width, first + (self.turn - 1) * self.width, self.width
            ):
                self.turn -= 1
        self.turn = max(self.turn, 1) - 1
        self.digest = self.digest_of(first)
        self.everything = digest_of_all(0, first, self.n, self.width) if self.full else 0

    cdef uint64_t digest_of(self, const uint8_t *rows) noexcept nogil:
        if self.n == 0:
            return 0
        return digest_of_sample(
            mixed(0, rows + self.turn * self.width, self.width), rows, self.n, self.width, EVENLY
        )

    cdef bint is_at(self, const uint8_t *rows) except -1:
        """Whether the memory at an address begins with these n rows."""
        if self.digest_of(rows) != self.digest:
            return False
        if self.full and digest_of_all(0, rows, self.n, self.width) != self.everything:
            warn_of_writes()
            return False
        return True

    def begins(self, const uint8_t[:, ::1] rows):
        """Whether an array begins with these n rows."""
        return <size_t>rows.shape[0] >= self.n and <size_t>rows.shape[1] == self.width and self.is_at(&rows[0, 0])


cdef class Unchanged:
    """Whether FAISS's objects are what they were.

    vectors : (FAISS's vector, dtype, items of a row) of each whose address, size and sample are compared.
    values : (FAISS's object, getter) of what is compared by value; pointers : likewise, of what is by address.
    """

    cdef list vectors, values, pointers

    def __init__(self, vectors, values=(), pointers=()):
        self.vectors = []
        for vector, dtype, width in vectors:
            found = FaissVector(vector, dtype)
            sample = Sample(found.rows(width).view(np.uint8))
            self.vectors.append((found, sample, <uintptr_t>found.address(), found.count()))
        self.values = [(owner.this, getter, getter(owner.this)) for owner, getter in values]
        self.pointers = [(owner.this, getter, int(getter(owner.this).this)) for owner, getter in pointers]

    cpdef bint holds(self) except -1:
        cdef FaissVector vector
        cdef uintptr_t address
        cdef size_t count
        for this, getter, value in self.values:
            if getter(this) != value:
                return False
        for this, getter, pointer in self.pointers:
            pointee = getter(this)
            if pointee is None or int(pointee.this) != pointer:
                return False
        for vector, sample, address, count in self.vectors:
            if vector.count() != count or <uintptr_t>vector.address() != address:
                return False
            if count and not (<Sample>sample).is_at(<const uint8_t *>address):
                return False
        return True
