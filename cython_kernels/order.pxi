# Codes in an order of their own, for searches of one query: see dpq_order.h.

ORDER_BLOCK = DPQ_ORDER_BLOCK
ORDER_MOST_KNOWN = DPQ_ORDER_MOST_KNOWN


cdef class CodeOrder:
    """The first n codes of an index, of some levels of 8 bits, in blocks of ORDER_BLOCK.

    n : how many codes are in it.
    numbers : (levels, 256), of every codeword.
    starts : (4**known + 1,), the first block of every bucket.
    bucket_terms, block_terms : the least term of each, +inf of a bucket without vectors.
    ids : (blocks, ORDER_BLOCK), UINT32_MAX where there is no vector.
    has_terms : whether the cross terms count; they are zero otherwise.
    term_magnitude : no term is greater, nor its negative.
    """

    cdef dpq_order order
    cdef object arrays
    cdef uint8_t[:, :, ::1] planes
    cdef float[:, ::1] terms

    def __init__(self, size_t n, const uint8_t[:, ::1] numbers, const uint32_t[::1] starts,
                 const float[::1] bucket_terms, const float[::1] block_terms, const uint32_t[:, ::1] ids,
                 bint has_terms, float term_magnitude):
        cdef size_t blocks = ids.shape[0], levels = numbers.shape[0], buckets = starts.shape[0] - 1, known = 0
        while <size_t>1 << 2 * known < buckets:
            known += 1
        self.arrays = numbers, starts, bucket_terms, block_terms, ids
        self.planes = aligned_empty((blocks, levels, DPQ_ORDER_BLOCK), np.uint8)
        self.order.n = n
        self.order.levels = levels
        self.order.known = known
        self.order.numbers = &numbers[0, 0]
        self.order.starts = &starts[0]
        self.order.bucket_terms = &bucket_terms[0]
        self.order.block_terms = &block_terms[0]
        self.order.planes = &self.planes[0, 0, 0]
        self.order.ids = &ids[0, 0]
        self.order.term_magnitude = term_magnitude
        self.order.terms = NULL
        if has_terms:
            self.terms = aligned_empty((blocks, DPQ_ORDER_BLOCK))
            self.order.terms = &self.terms[0, 0]

    def __len__(self):
        return self.order.n

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        arrays = [*self.arrays, self.planes, *([self.terms] if self.order.terms else [])]
        return sum(array.nbytes for array in arrays)

    def fill(self, const uint8_t[:, ::1] packed, const float[::1] terms, size_t first, size_t end):
        """Write the codes, and the terms if they count, of blocks first ... end - 1."""
        if first < end:
            with nogil:
                dpq_order_fill(
                    &self.order, &packed[0, 0], packed.shape[1], &terms[0] if terms is not None else NULL, first, end,
                    &self.planes[0, 0, 0], &self.terms[0, 0] if self.order.terms else NULL,
                )
