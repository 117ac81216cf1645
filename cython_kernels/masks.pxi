# Masks: which vectors a search admits, as bits, and what makes bits of ids.

cdef extern from "dpq_mask.h" nogil:
    enum:
        DPQ_MASK_CHUNK
        DPQ_LIST_AHEAD
    size_t dpq_mask_chunks(size_t n)
    size_t dpq_allowed_of(const dpq_database *db)

cdef extern from "dpq_bitmap.h" nogil:
    size_t dpq_estimated_bits(const uint8_t *bitmap, size_t n)

MASK_CHUNK = DPQ_MASK_CHUNK

cpdef size_t mask_words(size_t n) noexcept nogil:
    """How many 64-bit words have a bit for each of n vectors."""
    return (n + 63) // 64


cdef enum:
    LEAST_SPARE = 1 << 15  # bytes of memory that is worth to be used again
    MOST_SPARE = 1 << 24  # and that is kept for it

cdef uint8_t *_spare = NULL
cdef size_t _spare_size = 0


cdef class MaskMemory:
    """Memory of a mask. What was let go of last is taken again: new pages would cost more than the mask."""

    cdef uint8_t *memory
    cdef size_t size

    def __cinit__(self, size_t size):
        global _spare, _spare_size
        if size >= LEAST_SPARE and size <= _spare_size <= 2 * size:
            self.memory, self.size = _spare, _spare_size
            _spare, _spare_size = NULL, 0
            return
        self.memory, self.size = <uint8_t *>malloc(max(size, <size_t>1)), size
        if self.memory == NULL:
            raise MemoryError

    def __dealloc__(self):
        global _spare, _spare_size
        if LEAST_SPARE <= self.size <= MOST_SPARE:
            free(_spare)
            _spare, _spare_size = self.memory, self.size
        else:
            free(self.memory)


def empty_mask(size_t n):
    """Words for a bit for each of n vectors: (mask_words(n),), uint64."""
    cdef cnp.npy_intp shape = mask_words(n)
    cdef MaskMemory memory = MaskMemory(8 * shape)
    bits = cnp.PyArray_SimpleNewFromData(1, &shape, cnp.NPY_UINT64, memory.memory)
    cnp.set_array_base(bits, memory)
    return bits


cdef class SelectorMask:
    """What was made of a selector.

    n : of how many vectors it says whether they take part, or of how many lists.
    """

    cdef readonly size_t n


cdef class Mask(SelectorMask):
    """Which of n vectors take part: bit v & 63 of word v >> 6. Nothing of it changes.

    bits : (mask_words(n),), uint64; those behind the last vector's are cleared here.
    admitted : how many take part; first, last : of these, 0 and -1 if there are none.
    """

    cdef const uint64_t[::1] bits
    cdef const uint32_t[::1] before
    cdef readonly size_t admitted
    cdef readonly int64_t first, last

    def __init__(self, uint64_t[::1] bits, size_t n):
        cdef uint32_t[::1] before = np.empty(dpq_mask_chunks(n) + 1, np.uint32)
        cdef size_t word = 0
        cdef uint64_t *words = &bits[0] if n else NULL
        if n % 64:
            words[n // 64] &= (<uint64_t>1 << n % 64) - 1
        kernels.mask_count(words, n, &before[0])
        self.bits, self.before, self.n, self.admitted = bits, before, n, before[before.shape[0] - 1]
        self.first, self.last = 0, -1
        if self.admitted:
            while not bits[word]:
                word += 1
            self.first = 64 * word + lowest_bit(bits[word])
            word = n // 64 if n % 64 else n // 64 - 1
            while not bits[word]:
                word -= 1
            self.last = 64 * word + highest_bit(bits[word])

    @staticmethod
    def of_bitmap(size_t address, size_t size, size_t n):
        """Of the `size` bytes of a faiss.IDSelectorBitmap; what these do not reach takes no part."""
        cdef uint64_t[::1] bits = empty_mask(n)
        cdef size_t copied = min(size, (n + 7) // 8)
        if n:
            memcpy(&bits[0], <const void *><uintptr_t>address, copied)
            memset(<uint8_t *>&bits[0] + copied, 0, 8 * <size_t>bits.shape[0] - copied)
        return Mask(bits, n)

    cdef bint is_of(self, const uint8_t *bitmap, size_t size) noexcept:
        cdef size_t whole = min(size, self.n // 8)
        if whole and memcmp(&self.bits[0], bitmap, whole):
            return False
        if size <= whole or self.n % 8 == 0:
            return True
        # Of the byte that the last vectors share, only their bits count.
        return not ((<const uint8_t *>&self.bits[0])[whole] ^ bitmap[whole]) & (1 << self.n % 8) - 1

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return self.bits.nbytes + self.before.nbytes

    def ids(self):
        """The numbers of the vectors that take part, ascending: (admitted,), int64."""
        cdef int64_t[::1] ids = np.empty(self.admitted, np.int64)
        cdef size_t word, found = 0
        cdef uint64_t bits
        with nogil:
            for word in range(<size_t>self.bits.shape[0]):
                bits = self.bits[word]
                while bits:
                    ids[found] = 64 * word + lowest_bit(bits)
                    bits &= bits - 1
                    found += 1
        return ids.base

    cdef bint is_slice(self) noexcept:
        """Whether those that take part follow each other."""
        return self.admitted and <size_t>(self.last - self.first) + 1 == self.admitted

    cdef int apply(self, dpq_database *db) except -1:
        """Let only the vectors that take part be searched."""
        db.allowed, db.allowed_before = &self.bits[0], &self.before[0]
        return 0


cdef class BitmapInPlace(SelectorMask):
    """Which of n vectors take part, by the bits where a faiss.IDSelectorBitmap has them: for one search."""

    cdef const uint8_t *bits
    cdef size_t size

    @staticmethod
    cdef BitmapInPlace of(size_t address, size_t size, size_t n):
        """Of the `size` bytes of a bitmap, which have a bit for each of n vectors."""
        cdef BitmapInPlace bitmap = BitmapInPlace.__new__(BitmapInPlace)
        bitmap.bits, bitmap.size, bitmap.n = <const uint8_t *><uintptr_t>address, size, n
        return bitmap

    cdef MaskMemory listed(self, size_t most, size_t *found):
        """The numbers of the vectors that take part, ascending, uint32; None if they are more than `most`."""
        cdef MaskMemory numbers = MaskMemory((most + DPQ_LIST_AHEAD) * sizeof(uint32_t))
        found[0] = kernels.mask_list(self.bits, self.n, most, <uint32_t *>numbers.memory)
        return numbers if found[0] <= most else None

    cdef Mask copied(self):
        return Mask.of_bitmap(<size_t><uintptr_t>self.bits, self.size, self.n)


cdef extern from *:
    """
    #define lowest_bit(word) ((size_t)__builtin_ctzll(word))
    #define highest_bit(word) (63u - (size_t)__builtin_clzll(word))
    #define bits_set(word) ((size_t)__builtin_popcountll(word))
    """
    size_t lowest_bit(uint64_t word) noexcept nogil
    size_t highest_bit(uint64_t word) noexcept nogil
    size_t bits_set(uint64_t word) noexcept nogil


def set_bits(const int64_t[::1] ids, int64_t first, size_t n, uint64_t[::1] out):
    """Set bit id - first of every id that is one of first, first + 1, ..., first + n - 1."""
    cdef size_t i
    cdef uint64_t at
    with nogil:
        for i in range(<size_t>ids.shape[0]):
            at = <uint64_t>ids[i] - <uint64_t>first
            if at < n:
                out[at >> 6] |= <uint64_t>1 << (at & 63)


def test_bits(const uint8_t[::1] bitmap, int64_t first, const int64_t[::1] ids, uint64_t[::1] out):
    """Bit i of out = bit ids[i] - first of a bitmap, 0 beyond it. out : zeros."""
    cdef size_t i
    cdef uint64_t at, n = <uint64_t>bitmap.shape[0] * 8
    with nogil:
        for i in range(<size_t>ids.shape[0]):
            at = <uint64_t>ids[i] - <uint64_t>first
            if at < n:
                out[i >> 6] |= <uint64_t>(bitmap[at >> 3] >> (at & 7) & 1) << (i & 63)


cdef uint64_t span_of(int64_t begin, int64_t end) noexcept nogil:
    """How many ids are in a range."""
    return <uint64_t>end - <uint64_t>begin if begin < end else 0


def range_bits(int64_t begin, int64_t end, const int64_t[::1] ids, uint64_t[::1] out):
    """Bit i of out = whether begin <= ids[i] < end."""
    with nogil:
        kernels.mask_of_range(begin, span_of(begin, end), &ids[0], ids.shape[0], &out[0])


cdef class RecentBitmaps:
    """What was made of the faiss.IDSelectorBitmaps that came last.

    A program may set a bit in place, so a bitmap that comes again is compared whole: with the copy that its mask is. It
    is copied when it comes a second time. The first time, only a sample of it is kept, to tell whether it does.

    most : how many are kept.
    """

    cdef size_t most
    cdef readonly list kept  # of each (key, Mask or sample), the last one last

    def __init__(self, size_t most):
        self.most, self.kept = most, []

    def of(self, object selector, size_t n, object version, bint in_place=False):
        """The mask of a selector, the same one as long as bits, n and version are the same.

        in_place : whether it may be a BitmapInPlace, of one that comes the first time.
        """
        cdef size_t size = _bitmap_size(selector.this)
        cdef size_t address = int(_bitmap_of(selector.this)) if size else 0
        cdef const uint8_t *bitmap = <const uint8_t *><uintptr_t>address
        cdef Py_ssize_t i
        key = address, size, n, version
        for i in range(len(self.kept) - 1, -1, -1):
            known, value = self.kept[i]
            if known == key:
                break
        else:
            i, value = -1, None
        if isinstance(value, Mask) and (<Mask>value).is_of(bitmap, size):
            if i + 1 < len(self.kept):
                self.kept.append(self.kept.pop(i))
            return value
        if i >= 0 or len(self.kept) == <Py_ssize_t>self.most:
            del self.kept[max(i, 0)]
        sample = None
        if in_place and 8 * size >= n and address % sizeof(uint64_t) == 0:
            sample = digest_of_sample(bitmap, size // sizeof(uint64_t), sizeof(uint64_t), EVENLY, SIZE_MAX)
        if sample is not None and value != sample:
            self.kept.append((key, sample))
            return BitmapInPlace.of(address, size, n)
        value = None  # its memory is taken again
        value = Mask.of_bitmap(address, size, n)
        self.kept.append((key, value))
        return value

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return sum(mask.nbytes for _, mask in list(self.kept) if isinstance(mask, Mask))


_bitmap_size, _bitmap_of = faiss.IDSelectorBitmap.n.fget, faiss.IDSelectorBitmap.bitmap.fget


def same_bytes(const uint8_t[::1] these, const uint8_t[::1] those):
    """Whether two arrays of the same size hold the same."""
    return these.shape[0] == 0 or not memcmp(&these[0], &those[0], <size_t>these.shape[0])


def digest(const uint8_t[::1] contents):
    """Of a sample of an array."""
    cdef size_t n = contents.shape[0] // sizeof(int64_t)
    return digest_of_sample(&contents[0], n, sizeof(int64_t), EVENLY, SIZE_MAX) if n else 0


def ids_digest(size_t address, size_t n):
    """Of a sample of n int64 at an address: evenly spaced ones, and some near the end."""
    return digest_of_sample(<const uint8_t *><uintptr_t>address, n, sizeof(int64_t), EVENLY, SIZE_MAX)


cdef size_t cut_mask(const uint64_t[::1] bits, size_t begin, size_t n, uint64_t *out) noexcept nogil:
    """out = bits `begin` to begin + n - 1, with zeros behind. Returns how many are set."""
    cdef size_t w, word, shift = begin % 64, admitted = 0
    for w in range((n + 63) // 64):
        word = begin // 64 + w
        out[w] = bits[word] >> shift
        if shift and word + 1 < <size_t>bits.shape[0]:
            out[w] |= bits[word + 1] << (64 - shift)
        if n - 64 * w < 64:
            out[w] &= (<uint64_t>1 << n % 64) - 1
        admitted += bits_set(out[w])
    return admitted


def list_masks(const uint64_t[::1] bits, const int64_t[::1] sizes, const int64_t[::1] begins, uint64_t[::1] out,
               int64_t[::1] admitted):
    """Cut the bits of lists that follow each other, with no gap, into masks of their own.

    sizes : (n,), of the lists. begins : (n,), where each list's mask begins in `out`, mask_words(size) words.
    admitted : (n,), written: how many each list has.
    """
    cdef size_t i, at = 0
    for i in range(<size_t>sizes.shape[0]):
        admitted[i] = cut_mask(bits, at, sizes[i], &out[begins[i]]) if sizes[i] else 0
        at += sizes[i]
