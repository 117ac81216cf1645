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

    cdef void put(self, size_t number, uint64_t[::1] words, int64_t size, uint64_t digest, int64_t admitted) except *:
        self.masks[number] = np.asarray(words)
        self.address_of[number] = <uint64_t><uintptr_t>&words[0] if size else 0
        self.size_of[number], self.digest_of[number], self.admitted_of[number] = size, digest, admitted


cdef enum:
    MASKED = 12  # ids beside one that a bitmap lets through, at least, where masks of lists are made of it


cdef class ListsBitmap(SelectorMask):
    """A faiss.IDSelectorBitmap, for one search of few lists: its bits are read in place, of the lists' ids alone.

    This takes no longer than to see whether the bitmap is still the one that masks were made from.

    selector : faiss.IDSelectorBitmap.
    """

    cdef const uint8_t *bits
    cdef size_t size
    cdef object selector

    def __init__(self, object selector, size_t nlist):
        self.selector, self.n, self.size = selector, nlist, _bitmap_size(selector.this)
        self.bits = <const uint8_t *><uintptr_t>int(_bitmap_of(selector.this)) if self.size else NULL

    cdef bint lets_many_through(self) noexcept nogil:
        """Whether so many that bits are to be read as late as they are needed, without masks."""
        return self.size and MASKED * dpq_estimated_bits(self.bits, 8 * self.size) >= 8 * self.size

    cdef MaskMemory memory(self, const int64_t *keys, size_t n, const int64_t *sizes):
        """For the masks of n lists, -1 for none."""
        cdef size_t i, words = 0
        for i in range(n):
            if keys[i] >= 0:
                words += mask_words(sizes[keys[i]])
        return MaskMemory(words * sizeof(uint64_t))

    cdef void fill(self, const int64_t *keys, size_t n, const uint64_t *ids, const int64_t *sizes, uint64_t *masks,
                   uint64_t *allowed, int64_t *admitted) noexcept nogil:
        """Make the masks of n lists. allowed, admitted : as of dpq_lists, written."""
        cdef size_t i
        cdef int64_t key
        for i in range(n):
            key = keys[i]
            if key >= 0:
                allowed[key] = <uint64_t><uintptr_t>masks
                admitted[key] = kernels.mask_of_ids(
                    self.bits, self.size, <const int64_t *><uintptr_t>ids[key], sizes[key], masks
                )
                masks += (sizes[key] + 63) // 64


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
