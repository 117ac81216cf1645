# Masks of inverted lists: of a selector, which vectors of every list it admits.

cdef class ListsMask(SelectorMask):
    """The masks of one selector; of lists with a size of -1 there is none.

    sizes : (nlist,), int64. digests : (nlist,), uint64, of the lists' samples, when the masks were made.
    addresses : (nlist,), uint64, of a bit a vector. admitted : (nlist,), int64: how many take part.
    masks : by number, uint64: what `addresses` point to.

    Parameters
    ----------
    nlist : int
    address, size : int, optional
        Of a faiss.IDSelectorBitmap, of which a copy is kept; by it lists get their masks where they are searched.
    """

    cdef readonly object sizes, digests, addresses, admitted
    cdef readonly dict masks
    cdef int64_t[::1] size_of, admitted_of
    cdef uint64_t[::1] digest_of, address_of
    cdef MaskMemory bitmap
    cdef size_t bitmap_size

    def __init__(self, size_t nlist, size_t address=0, object size=None):
        self.sizes, self.admitted = np.full(nlist, -1), np.empty(nlist, np.int64)
        self.digests, self.addresses = np.empty(nlist, np.uint64), np.empty(nlist, np.uint64)
        self.size_of, self.admitted_of = self.sizes, self.admitted
        self.digest_of, self.address_of = self.digests, self.addresses
        self.masks = {}
        if size is not None:
            self.bitmap, self.bitmap_size = MaskMemory(size), size
            memcpy(self.bitmap.memory, <const void *><uintptr_t>address, self.bitmap_size)

    cdef bint is_of(self, const uint8_t *bitmap, size_t size) noexcept:
        return size == self.bitmap_size and (size == 0 or not memcmp(self.bitmap.memory, bitmap, size))

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return self.bitmap_size + 4 * self.sizes.nbytes + sum(mask.nbytes for mask in list(self.masks.values()))

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

    cdef bint has(self, size_t number, int64_t size, uint64_t digest, uint64_t ids) except -1:
        """Whether there is a mask of a list as it is; made here, if all that takes is a look into the bitmap."""
        if self.size_of[number] == size and self.digest_of[number] == digest:
            return True
        if self.bitmap is None:
            return False
        cdef uint64_t[::1] words = empty_mask(size)
        cdef const int64_t *id = <const int64_t *><uintptr_t>ids
        cdef uint64_t at, bit, within = 8 * self.bitmap_size, word = 0
        cdef int64_t i, admitted = 0
        for i in range(size):
            at = <uint64_t>id[i]
            bit = self.bitmap.memory[at >> 3] >> (at & 7) & 1 if at < within else 0
            admitted += bit
            word |= bit << (i & 63)
            if i & 63 == 63 or i + 1 == size:
                words[i >> 6], word = word, 0
        self.put(number, words, size, digest, admitted)
        return True

    cdef void put(self, size_t number, uint64_t[::1] words, int64_t size, uint64_t digest, int64_t admitted) except *:
        self.masks[number] = np.asarray(words)
        self.address_of[number] = <uint64_t><uintptr_t>&words[0] if size else 0
        self.size_of[number], self.digest_of[number], self.admitted_of[number] = size, digest, admitted
