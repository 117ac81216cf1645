# Derived: what the scan's lower bounds need to know of the stored codes, and whether it is still true.

cdef extern from "scan_derived.h" nogil:
    void dpq_term_range(const dpq_database *db, size_t first, size_t n, float *low, float *high)
    void dpq_term_grid(dpq_database *db, float low, float high)
    void dpq_term_bins(const dpq_database *db, size_t first, size_t n, uint8_t *bins)
    float dpq_radius(
        const dpq_database *db, const float *cross, const float *codeword_norms, float error, size_t first, size_t n
    )


def hash_blocks(const uint8_t[:, ::1] packed, uint64_t[::1] out):
    """out[b] = a hash of rows [b * HASH_BLOCK, (b + 1) * HASH_BLOCK) of `packed`."""
    cdef size_t n = packed.shape[0], block = DPQ_HASH_BLOCK, b, begin
    with nogil:
        for b in range(out.shape[0]):
            begin = b * block
            out[b] = kernels.hash(&packed[begin, 0], min(block, n - begin) * packed.shape[1])


cdef dpq_database make_database(
    const uint8_t[:, ::1] packed, size_t nbits, size_t levels, const float[:, :, ::1] cross, const float[::1] terms
) noexcept:
    cdef dpq_database db
    db.codes = &packed[0, 0]
    db.n = packed.shape[0]
    db.code_size = packed.shape[1]
    db.nbits = nbits
    db.levels = levels
    db.cross = &cross[0, 0, 0] if cross is not None and cross.shape[0] else NULL
    db.terms = &terms[0] if terms is not None else NULL
    db.term_bins = NULL
    db.term_min = 0
    db.term_step = 0
    db.radius = 0
    db.hashes = NULL
    db.allowed = NULL
    return db


def term_range(const uint8_t[:, ::1] packed, size_t nbits, size_t levels, const float[:, :, ::1] cross,
               const float[::1] terms):
    """The least and the greatest term of some packed codes, from `terms` or else `cross`."""
    cdef dpq_database db = make_database(packed, nbits, levels, cross, terms)
    cdef float low = INFINITY, high = -INFINITY
    with nogil:
        dpq_term_range(&db, 0, db.n, &low, &high)
    return low, high


def term_grid(float low, float high):
    """The first edge and the width of 256 bins that cover [low, high]."""
    cdef dpq_database db
    dpq_term_grid(&db, low, high)
    return db.term_min, db.term_step


def term_bins(const uint8_t[:, ::1] packed, size_t nbits, size_t levels, const float[:, :, ::1] cross,
              const float[::1] terms, float term_min, float term_step, uint8_t[::1] out):
    """out[i] = the bin of the term of code i, whose edges enclose it."""
    cdef dpq_database db = make_database(packed, nbits, levels, cross, terms)
    db.term_min = term_min
    db.term_step = term_step
    with nogil:
        dpq_term_bins(&db, 0, db.n, &out[0])


def radius(const uint8_t[:, ::1] packed, size_t nbits, size_t levels, const float[:, :, ::1] cross,
           const float[::1] codeword_norms, float error):
    """A bound, rounded up, on the norms of the reconstructions of some packed codes."""
    cdef dpq_database db = make_database(packed, nbits, levels, cross, None)
    cdef float largest
    with nogil:
        largest = dpq_radius(&db, db.cross, &codeword_norms[0], error, 0, db.n)
    return largest
