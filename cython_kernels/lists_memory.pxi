# Inverted lists in memory: where FAISS has them, whether they are what they were, and what is derived from one.

cdef extern from "lists_derived.h" nogil:
    float dpq_list_terms(
        const dpq_database *db, const float *cross, const float *products, const float *codeword_norms, float error,
        size_t first, float *terms,
    )
    float dpq_list_bins(dpq_database *db, uint8_t *bins)

cdef enum:  # rows of a list's sample
    CODES_EVENLY = 3
    IDS_EVENLY = 1
    FROM_THE_END = 3


cdef class OpenLists:
    """Some inverted lists, while FAISS keeps them in place.

    Arrays over all lists of the index; only the entries of open lists mean anything.

    numbers : int64, ascending, of the lists that are open.
    sizes : (nlist,), int64.
    codes, ids : (nlist,), uint64: addresses.
    masks : by number, uint64, of a bit a vector: whether it takes part; None: all do. allowed : (nlist,), uint64: the
        masks' addresses. admitted : (nlist,), int64: how many take part.
    code_size : of a vector.
    """

    cdef readonly object numbers, sizes, codes, ids
    cdef public object masks, allowed, admitted
    cdef readonly size_t code_size

    def __init__(self, numbers, size_t nlist, size_t code_size):
        self.numbers, self.code_size = numbers, code_size
        self.sizes = np.zeros(nlist, np.int64)
        self.codes, self.ids = np.zeros((2, nlist), np.uint64)
        self.masks = self.allowed = self.admitted = None


ctypedef size_t (*size_function)(const void *lists, size_t number) noexcept nogil
ctypedef const void *(*address_function)(const void *lists, size_t number) noexcept nogil

# faiss::ArrayInvertedLists::list_size, get_codes, get_ids: a search asks them of every list that it probes.
cdef size_function exported_list_size = <size_function>exported("_ZNK5faiss18ArrayInvertedLists9list_sizeEm")
cdef address_function exported_get_codes = <address_function>exported("_ZNK5faiss18ArrayInvertedLists9get_codesEm")
cdef address_function exported_get_ids = <address_function>exported("_ZNK5faiss18ArrayInvertedLists7get_idsEm")


cdef class ListReader:
    """Where a faiss.ArrayInvertedLists has its lists, as its own methods tell.

    They are called as FAISS's library exports them, if it does (it may be linked into another library, or on a system
    of other names), else through SWIG, which takes some hundred times as long.
    """

    cdef object this, list_size, get_codes, get_ids
    cdef const void *address  # NULL: through SWIG
    cdef readonly size_t nlist, code_size

    def __init__(self, object invlists, bint through_swig=False):
        cls = type(invlists)
        self.this, self.list_size, self.get_codes, self.get_ids = (
            invlists.this, method_of(cls, "list_size"), method_of(cls, "get_codes"), method_of(cls, "get_ids")
        )
        found = exported_list_size != NULL and exported_get_codes != NULL and exported_get_ids != NULL
        if found and cls is faiss.ArrayInvertedLists and not through_swig:
            self.address = <const void *><uintptr_t>int(invlists.this)
        self.nlist, self.code_size = invlists.nlist, invlists.code_size

    cdef int read(self, const int64_t *numbers, size_t n, uint64_t *codes, uint64_t *ids, int64_t *sizes) except -1:
        """Write addresses and sizes of some lists (-1: none) where they belong in arrays over all lists."""
        cdef size_t i
        cdef int64_t number
        for i in range(n):
            number = numbers[i]
            if number < 0:
                continue
            if self.address:
                sizes[number] = <int64_t>exported_list_size(self.address, number)
                codes[number] = <uint64_t>exported_get_codes(self.address, number)
                ids[number] = <uint64_t>exported_get_ids(self.address, number)
                continue
            sizes[number] = self.list_size(self.this, number)
            if sizes[number]:
                codes[number] = int(self.get_codes(self.this, number))
                ids[number] = int(self.get_ids(self.this, number))
        return 0

    cdef int64_t size_of(self, size_t number) except -1:
        """The number of vectors in a list."""
        if self.address:
            return <int64_t>exported_list_size(self.address, number)
        return self.list_size(self.this, number)

    def open(self, const int64_t[::1] numbers):
        """The lists of some numbers, ascending."""
        lists = OpenLists(numbers.base, self.nlist, self.code_size)
        cdef uint64_t[::1] codes = lists.codes, ids = lists.ids
        cdef int64_t[::1] sizes = lists.sizes
        self.read(&numbers[0], numbers.shape[0], &codes[0], &ids[0], &sizes[0])
        return lists


cdef uint64_t list_digest(uint64_t codes, uint64_t ids, size_t n, size_t code_size) noexcept nogil:
    """Of a sample of a list's codes and ids.

    FAISS removes a vector by putting the list's last one in its place. So if one was removed and one added, the last id
    is another one.
    """
    cdef const uint8_t *rows = <const uint8_t *><uintptr_t>codes
    cdef const uint8_t *names = <const uint8_t *><uintptr_t>ids
    return digest_of_sample(rows, n, code_size, CODES_EVENLY, FROM_THE_END) ^ 3 * digest_of_sample(
        names, n, sizeof(int64_t), IDS_EVENLY, FROM_THE_END
    )


def list_ids(const int64_t[::1] numbers, lists, int64_t[::1] out):
    """The ids of some open lists, one list after the other."""
    cdef const uint64_t[::1] ids = lists.ids
    cdef const int64_t[::1] sizes = lists.sizes
    cdef size_t i, at = 0
    with nogil:
        for i in range(<size_t>numbers.shape[0]):
            memcpy(
                &out[0] + at, <const void *><uintptr_t>ids[numbers[i]], <size_t>sizes[numbers[i]] * sizeof(int64_t)
            )
            at += <size_t>sizes[numbers[i]]


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
        radius = dpq_list_terms(&db, pairs, &products[0], &codeword_norms[0], error, 0, out)
        if out != NULL:
            db.terms = out
            magnitude = dpq_list_bins(&db, &bins[0])
    return radius, db.term_min, db.term_step, magnitude
