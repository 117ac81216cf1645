# Masks of inverted lists: of a selector, which vectors of every list it admits.

cdef class ListsMask(SelectorMask):
    """The masks of one selector; of lists with a size of -1 there is none.

    sizes : (nlist,), int64. digests : (nlist,), uint64, of the lists' samples, when the masks were made.
    addresses : (nlist,), uint64, of a bit a vector. admitted : (nlist,), int64: how many take part.
    masks : by number, uint64: what `addresses` point to.

    Parameters
    ----------
    nlist : int
    """

    cdef readonly object sizes, digests, addresses, admitted
    cdef readonly dict masks
    cdef int64_t[::1] size_of, admitted_of
    cdef uint64_t[::1] digest_of, address_of

    def __init__(self, size_t nlist):
        self.n = nlist
        self.sizes, self.admitted = np.full(nlist, -1), np.empty(nlist, np.int64)
        self.digests, self.addresses = np.empty(nlist, np.uint64), np.empty(nlist, np.uint64)
        self.size_of, self.admitted_of = self.sizes, self.admitted
        self.digest_of, self.address_of = self.digests, self.addresses
        self.masks = {}

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return 4 * self.sizes.nbytes + sum(mask.nbytes for mask in list(self.masks.values()))

    def enter(self, const int64_t[::1] numbers, const int64_t[::1] sizes, const uint64_t[::1] digests,
              uint64_t[::1] words, const int64_t[::1] begins, const int64_t[::1] admitted):
        """Have the masks of some lists, each `words` from one of `begins` on. digests : (nlist,).

        At one go, and not those that are there: another thread may have made them, and may be searching by them.
        """
        cdef size_t i, number
        for i in range(<size_t>numbers.shape[0]):
            number = numbers[i]
            if self.size_of[number] == sizes[i] and self.digest_of[number] == digests[number]:
                continue
            self.put(number, words[begins[i]:begins[i] + mask_words(sizes[i])], sizes[i], digests[number], admitted[i])

    cdef bint has(self, size_t number, int64_t size, uint64_t digest) noexcept:
        """Whether there is a mask of a list as it is."""
        return self.size_of[number] == size and self.digest_of[number] == digest

    cdef size_t lacked(self, int64_t *numbers, size_t n, const int64_t *sizes, const uint64_t[:, ::1] digests) noexcept:
        """Leave those of n lists of which there is no mask. digests : of all lists, as they are. Their number."""
        cdef size_t i, found = 0
        for i in range(n):
            if not self.has(numbers[i], sizes[numbers[i]], digests[numbers[i], 0]):
                numbers[found] = numbers[i]
                found += 1
        return found

    cdef int keep(self, ListsSelector selector, int64_t *numbers, size_t n, const uint64_t *ids, const int64_t *sizes,
                  const uint64_t[:, ::1] digests, uint64_t *allowed, int64_t *admitted) except -1:
        """Have masks of n lists, by `ListsSelector.fill`. allowed, admitted : written."""
        cdef size_t i, word = 0
        cdef int64_t number
        selector.ask(numbers, n, ids, sizes)
        cdef uint64_t[::1] words = np.empty(words_of(numbers, n, sizes), np.uint64)
        selector.fill(numbers, n, ids, sizes, &words[0] if words.shape[0] else NULL, allowed, admitted)
        for i in range(n):
            number = numbers[i]
            if not self.has(number, sizes[number], digests[number, 0]):  # another thread may have entered it meanwhile
                self.put(
                    number, words[word:word + mask_words(sizes[number])], sizes[number], digests[number, 0],
                    admitted[number],
                )
            word += mask_words(sizes[number])
        return 0

    cdef void put(self, size_t number, uint64_t[::1] words, int64_t size, uint64_t digest, int64_t admitted) except *:
        self.masks[number] = np.asarray(words)
        self.address_of[number] = <uint64_t><uintptr_t>&words[0] if size else 0
        self.size_of[number], self.digest_of[number], self.admitted_of[number] = size, digest, admitted


cdef class ListsSelector(SelectorMask):
    """A selector, for one search of few lists: it is asked about the lists' ids alone, each list's once.

    Of one that comes the first time this leaves nothing behind. Bitmaps and ranges are asked in no more time than it
    takes to see whether they are what masks were made from, so that of these there are none.

    selector : owns what is read of it.
    """

    cdef object selector

    cdef ListsMask kept(self):
        """The masks that are kept of the selector; None if there are none."""
        return None

    cdef int ask(self, const int64_t *numbers, size_t n, const uint64_t *ids, const int64_t *sizes) except -1:
        """Have Python say what `fill` needs to know of n lists."""
        return 0

    cdef void fill(self, const int64_t *numbers, size_t n, const uint64_t *ids, const int64_t *sizes, uint64_t *masks,
                   uint64_t *allowed, int64_t *admitted) noexcept nogil:
        """Make the masks of n lists. allowed, admitted : as of dpq_lists, written."""
        cdef size_t i
        cdef int64_t number
        for i in range(n):
            number = numbers[i]
            allowed[number] = <uint64_t><uintptr_t>masks
            admitted[number] = self.mask_of(<const int64_t *><uintptr_t>ids[number], sizes[number], masks)
            masks += mask_words(sizes[number])

    cdef size_t mask_of(self, const int64_t *ids, size_t n, uint64_t *bits) noexcept nogil:
        """Write a bit for each of n ids, those of the next list, and return how many are set."""
        return 0


cdef size_t words_of(const int64_t *numbers, size_t n, const int64_t *sizes) noexcept nogil:
    """How many the masks of n lists take."""
    cdef size_t i, words = 0
    for i in range(n):
        words += mask_words(sizes[numbers[i]])
    return words


cdef enum:
    MASKED = 12  # ids beside one that a bitmap lets through, at least, where masks of lists are made of it


cdef class ListsBitmap(ListsSelector):
    """A faiss.IDSelectorBitmap: its bits are read where it has them."""

    cdef const uint8_t *bits
    cdef size_t size

    def __init__(self, object selector, size_t nlist):
        self.selector, self.n, self.size = selector, nlist, _bitmap_size(selector.this)
        self.bits = <const uint8_t *><uintptr_t>int(_bitmap_of(selector.this)) if self.size else NULL

    cdef bint lets_many_through(self) noexcept nogil:
        """Whether so many that bits are to be read as late as they are needed, without masks."""
        return self.size and MASKED * dpq_estimated_bits(self.bits, 8 * self.size) >= 8 * self.size

    cdef size_t mask_of(self, const int64_t *ids, size_t n, uint64_t *bits) noexcept nogil:
        return kernels.mask_of_ids(self.bits, self.size, ids, n, bits)


cdef class ListsRange(ListsSelector):
    """A faiss.IDSelectorRange."""

    cdef int64_t first
    cdef uint64_t span

    def __init__(self, object selector, size_t nlist):
        cdef int64_t end = _range_end(selector.this)
        self.selector, self.n, self.first = selector, nlist, _range_begin(selector.this)
        self.span = span_of(self.first, end)

    cdef size_t mask_of(self, const int64_t *ids, size_t n, uint64_t *bits) noexcept nogil:
        return kernels.mask_of_range(self.first, self.span, ids, n, bits)


cdef class ListsAsked(ListsSelector):
    """Any other selector.

    bits_of : selection.bits_of. known : the masks that are kept of it; None of one that is new.
    """

    cdef object bits_of
    cdef ListsMask known
    cdef const uint64_t[::1] bits  # of the lists asked about, which follow each other with no gap
    cdef size_t at  # the bit of the next list's first vector

    def __init__(self, object selector, size_t nlist, object bits_of, ListsMask known):
        self.selector, self.n, self.bits_of, self.known = selector, nlist, bits_of, known

    cdef ListsMask kept(self):
        return self.known

    cdef int ask(self, const int64_t *numbers, size_t n, const uint64_t *ids, const int64_t *sizes) except -1:
        cdef size_t i, total = 0
        for i in range(n):
            total += sizes[numbers[i]]
        cdef cnp.npy_intp shape = total
        asked = cnp.PyArray_SimpleNew(1, &shape, cnp.NPY_INT64)
        cdef int64_t *out = <int64_t *>cnp.PyArray_DATA(asked)
        for i in range(n):
            memcpy(out, <const void *><uintptr_t>ids[numbers[i]], <size_t>sizes[numbers[i]] * sizeof(int64_t))
            out += sizes[numbers[i]]
        self.bits, self.at = self.bits_of(self.selector, total, asked), 0
        return 0

    cdef size_t mask_of(self, const int64_t *ids, size_t n, uint64_t *bits) noexcept nogil:
        cdef size_t begin = self.at
        self.at += n
        return cut_mask(self.bits, begin, n, bits)


_range_begin, _range_end = faiss.IDSelectorRange.imin.fget, faiss.IDSelectorRange.imax.fget


def masks_of_bitmap(const uint8_t[::1] bitmap, const int64_t[::1] numbers, lists, const int64_t[::1] begins,
                    uint64_t[::1] out, int64_t[::1] admitted):
    """`list_masks` of some open lists, by the bits that a bitmap has of their ids.

    begins : where each list's mask begins in `out`. admitted : (n,), written.
    """
    cdef const uint64_t[::1] ids = lists.ids
    cdef const int64_t[::1] sizes = lists.sizes
    cdef size_t i, size = bitmap.shape[0]
    cdef const uint8_t *bits = &bitmap[0] if size else NULL
    with nogil:
        for i in range(<size_t>numbers.shape[0]):
            admitted[i] = 0
            if sizes[numbers[i]]:
                admitted[i] = kernels.mask_of_ids(
                    bits, size, <const int64_t *><uintptr_t>ids[numbers[i]], sizes[numbers[i]], &out[begins[i]]
                )
