# FAISS's memory: where the contents of its vectors are, and whether they are still what they were.

import ctypes
import warnings

import faiss

cdef enum:
    EVENLY = 64  # rows of a sample of codes that are evenly spaced
    EVENLY_IN_TABLES = 16  # of codebooks or centres: FAISS changes all of these or none

#: FAISS's extension module: its functions, called with SWIG objects, take half the time of the methods made of them.
_swig = faiss.Index.d.fget.__self__


cdef method_of(object cls, str name):
    """A method of one of FAISS's classes, to be called with the SWIG object."""
    return getattr(_swig, f"{cls.__name__}_{name}", None) or getattr(cls, name)


cdef void *exported(str symbol):
    """A C++ function that FAISS's library exports; NULL if it does not."""
    try:
        return <void *><uintptr_t>ctypes.cast(getattr(ctypes.CDLL(_swig.__file__), symbol), ctypes.c_void_p).value
    except (AttributeError, OSError):
        return NULL


cdef class FaissVector:
    """Where a std::vector of FAISS has its contents, as the vector's own methods tell.

    dtype : of the items.
    """

    cdef object this, data, size, dtype, set_size
    cdef size_t item

    def __init__(self, object vector, dtype=np.uint8):
        cls = type(vector)
        self.this, self.data, self.size = vector.this, method_of(cls, "data"), method_of(cls, "size")
        self.set_size = method_of(cls, "resize")
        self.dtype = np.dtype(dtype)
        self.item = self.dtype.itemsize

    cdef size_t count(self) except? 0:
        return self.size(self.this)

    cdef uint8_t *address(self) except? NULL:
        """Of the first item; NULL if there is none."""
        data = self.data(self.this)
        return NULL if data is None else <uint8_t *><uintptr_t>int(data)

    def resize(self, size_t n):
        """Make it n items long."""
        self.set_size(self.this, n)

    def sampled(self, size_t width):
        """The vector and a sample of its rows of `width` items, as `Unchanged` takes them."""
        return self, Sample(self.rows(width).view(np.uint8), EVENLY_IN_TABLES)

    def rows(self, size_t width):
        """The contents as an array of `width` columns, in place."""
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = self.count() // width, width
        if shape[0] == 0:
            return np.empty((0, width), self.dtype)
        return cnp.PyArray_SimpleNewFromData(2, shape, self.dtype.num, self.address())


cdef inline uint64_t digest_of_row(const uint8_t *row, size_t width, uint64_t place) noexcept nogil:
    """Of the first and the last eight bytes of a row, and of its place."""
    cdef uint64_t first = 0, last = 0
    cdef size_t i
    if width >= 8:
        memcpy(&first, row, 8)
        memcpy(&last, row + width - 8, 8)
    elif width == 4:
        memcpy(&first, row, 4)
    else:
        for i in range(width):
            first = first << 8 | row[i]
    first = (first ^ place * <uint64_t>0x9E3779B97F4A7C15) * <uint64_t>0xD6E8FEB86659FD93
    last = (first ^ first >> 32 ^ last) * <uint64_t>0xD6E8FEB86659FD93
    return last ^ last >> 32


cdef uint64_t digest_of_all(const uint8_t *rows, size_t n, size_t width) noexcept nogil:
    cdef uint64_t digest = 0
    cdef size_t i
    for i in range(n * width):
        digest = (digest ^ rows[i]) * <uint64_t>0x100000001B3
    return digest


cdef uint64_t digest_of_sample(
    const uint8_t *rows, size_t n, size_t width, size_t evenly, size_t farthest
) noexcept nogil:
    """Of `evenly` rows in even steps, and of rows ever farther from the end: n - 1, n - 2, n - 3, n - 5, n - 9, ..."""
    cdef size_t at = 0, from_end = 1
    cdef uint64_t digest = 0
    while at < n:
        digest += digest_of_row(rows + at * width, width, at)
        at += n // evenly + 1
    if n:
        digest += digest_of_row(rows + (n - 1) * width, width, n)
    while from_end < min(n, farthest):
        digest += digest_of_row(rows + (n - 1 - from_end) * width, width, n + from_end)
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
    cdef size_t width, turn, evenly
    cdef const uint8_t *first
    cdef bint full
    cdef uint64_t digest, everything

    def __init__(self, const uint8_t[:, ::1] rows, size_t evenly=EVENLY):
        cdef const uint8_t *first = &rows[0, 0]
        self.n, self.width, self.evenly = rows.shape[0], rows.shape[1], evenly
        self.first, self.full = first, checks_everything()
        self.turn = max(self.n, 1) - 1
        with nogil:
            while self.turn > 0 and not memcmp(
                first + self.turn * self.width, first + (self.turn - 1) * self.width, self.width
            ):
                self.turn -= 1
        self.turn = max(self.turn, 1) - 1
        self.digest = self.digest_of(first)
        self.everything = digest_of_all(first, self.n, self.width) if self.full else 0

    cdef uint64_t digest_of(self, const uint8_t *rows) noexcept nogil:
        if self.n == 0:
            return 0
        return digest_of_row(rows + self.turn * self.width, self.width, 0) ^ digest_of_sample(
            rows, self.n, self.width, self.evenly, SIZE_MAX
        )

    cdef bint is_at(self, const uint8_t *rows) except -1:
        """Whether the memory at an address begins with these n rows."""
        if self.digest_of(rows) != self.digest:
            return False
        if self.full and digest_of_all(rows, self.n, self.width) != self.everything:
            warn_of_writes()
            return False
        return True

    cpdef bint begins(self, FaissVector vector) except -1:
        """Whether FAISS's vector begins with these rows."""
        return vector.count() * vector.item >= self.n * self.width and self.is_at(vector.address())

    cpdef bint is_all_of(self, FaissVector vector) except -1:
        """Whether FAISS's vector has these rows and no others, and at the place where they were."""
        cdef const uint8_t *address = vector.address()
        if vector.count() * vector.item != self.n * self.width or address != self.first and self.n:
            return False
        return self.is_at(address)


cdef class Unchanged:
    """Whether FAISS's objects are what they were.

    vectors : FAISS's vectors whose place and size are compared, and a sample: (FaissVector, Sample) of each.
    values : (FAISS's object, getter) of what is compared by value; pointers : likewise, of what is by address.
    """

    cdef list vectors, values, pointers

    def __init__(self, vectors, values=(), pointers=()):
        self.vectors = list(vectors)
        self.values = [(owner.this, getter, getter(owner.this)) for owner, getter in values]
        self.pointers = [(owner.this, getter, int(getter(owner.this).this)) for owner, getter in pointers]

    cpdef bint holds(self) except -1:
        for this, getter, value in self.values:
            if getter(this) != value:
                return False
        for this, getter, pointer in self.pointers:
            pointee = getter(this)
            if pointee is None or int(pointee.this) != pointer:
                return False
        for vector, sample in self.vectors:
            if not (<Sample>sample).is_all_of(vector):
                return False
        return True
