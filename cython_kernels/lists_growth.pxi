# What is derived from an inverted list, made longer by what was added to the list.

cdef extern from "lists_derived.h" nogil:
    enum:
        DPQ_MAX_LEVELS
    float dpq_more_list_bins(dpq_database *db, size_t first, float magnitude, uint8_t *bins)


cdef class ListGrowth:
    """What is derived from lists, (nlist,) each as in dpq_lists.h, and how to derive the same of vectors added to one.

    cross : as in tables.pxi; None: none can be added.
    panels, codeword_norms : of the codewords of all levels.
    centres : (nlist, stride).
    error : bound on the rounding of a squared norm.
    has_terms : False for inner products, of which the radius alone is derived.
    kept : dict, number -> (terms, bins), arrays that hold at least as many as the list has vectors.

    Its owner sets `allowed` to False while others change the arrays.
    """

    cdef const float[:, :, ::1] cross, panels
    cdef const float[::1] codeword_norms
    cdef const float[:, ::1] centres
    cdef uint64_t[::1] bins, terms
    cdef float[::1] term_min, term_step, term_magnitude, radius, products, zeros
    cdef float error
    cdef bint has_terms
    cdef size_t nbits, levels
    cdef dict kept
    cdef public bint allowed

    def __init__(self, const float[:, :, ::1] cross, const float[:, :, ::1] panels, const float[::1] codeword_norms,
                 const float[:, ::1] centres, float error, bint has_terms, size_t nbits, size_t levels,
                 uint64_t[::1] bins, uint64_t[::1] terms, float[::1] term_min, float[::1] term_step,
                 float[::1] term_magnitude, float[::1] radius, dict kept):
        self.cross, self.panels, self.codeword_norms, self.centres = cross, panels, codeword_norms, centres
        self.error, self.has_terms, self.nbits, self.levels = error, has_terms, nbits, levels
        self.bins, self.terms, self.radius, self.kept = bins, terms, radius, kept
        self.term_min, self.term_step, self.term_magnitude = term_min, term_step, term_magnitude
        self.products = aligned_empty(panels.shape[0] * DPQ_PANEL)
        self.zeros = np.zeros(panels.shape[0] * DPQ_PANEL, np.float32)
        self.allowed = cross is not None

    cdef bint grow(self, int64_t number, uint64_t codes, size_t code_size, size_t before, size_t n) except -1:
        """Derive from the vectors `before` ... n - 1 of a list what is derived from those before them.

        Returns False, and changes nothing, where that is not allowed now. With the GIL, as whatever changes the arrays.
        """
        cdef dpq_database db
        cdef const float *pairs = NULL
        cdef float nothing = 0, radius
        cdef float *terms = NULL
        if not self.allowed:
            return False
        if self.has_terms:
            self.reserve(number, before, n)
            terms = <float *><uintptr_t>self.terms[number]
        pairs = &self.cross[0, 0, 0] if self.cross.shape[0] else &nothing
        memset(&db, 0, sizeof(db))
        db.codes = <const uint8_t *><uintptr_t>codes
        db.n, db.code_size, db.nbits, db.levels = n, code_size, self.nbits, self.levels
        if terms != NULL:
            self.multiply(&self.centres[number, 0], &db, before)
        radius = dpq_list_terms(&db, pairs, &self.products[0], &self.codeword_norms[0], self.error, before, terms)
        self.radius[number] = max(radius, self.radius[number]) if before else radius
        if terms != NULL:
            db.terms, db.term_min, db.term_step = terms, self.term_min[number], self.term_step[number]
            self.term_magnitude[number] = dpq_more_list_bins(
                &db, before, self.term_magnitude[number], <uint8_t *><uintptr_t>self.bins[number]
            )
            self.term_min[number], self.term_step[number] = db.term_min, db.term_step
        counted.grown += n - before
        return True

    cdef int reserve(self, int64_t number, size_t before, size_t n) except -1:
        """Make room for n terms and bins, of which `before` are kept."""
        kept = self.kept.get(number) if before else None
        if kept is not None and <size_t>len(kept[0]) >= n:
            return 0
        cdef size_t room = n + n // 4
        cdef float[::1] terms = np.empty(room, np.float32)
        cdef uint8_t[::1] bins = np.empty(room, np.uint8)
        if before:
            memcpy(&terms[0], <const void *><uintptr_t>self.terms[number], before * sizeof(float))
            memcpy(&bins[0], <const void *><uintptr_t>self.bins[number], before)
        self.kept[number] = terms.base, bins.base
        self.terms[number], self.bins[number] = <uint64_t>&terms[0], <uint64_t>&bins[0]
        return 0

    cdef void multiply(self, const float *centre, const dpq_database *db, size_t first) noexcept nogil:
        """Write the products 2<centre, c> of the panels that hold codewords of the vectors from `first` on."""
        cdef uint16_t code[DPQ_MAX_LEVELS]
        cdef size_t v, l, panel, d = self.panels.shape[1]
        if (db.n - first) * self.levels >= <size_t>self.panels.shape[0]:
            kernels.linear(
                centre, 1, d, &self.panels[0, 0, 0], self.panels.shape[0], &self.zeros[0], 2.0, &self.products[0],
                self.products.shape[0],
            )
            return
        for v in range(first, db.n):
            unpack_code(db.codes + v * db.code_size, self.levels, self.nbits, code)
            for l in range(self.levels):
                panel = ((l << self.nbits) + code[l]) // DPQ_PANEL
                # By the same kernel as all panels together, so that terms are the same to the last bit.
                kernels.linear(
                    centre, 1, d, &self.panels[panel, 0, 0], 1, &self.zeros[0], 2.0,
                    &self.products[panel * DPQ_PANEL], DPQ_PANEL,
                )
