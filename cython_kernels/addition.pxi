# Additions of one vector to inverted lists, with nothing of Python around them.


cdef class OneVectorEncoder:
    """Codes of one vector at a time.

    panels, bias, cross, M, K, beam_size, prefix_weight : as `encode_from_tables` takes them, but cross is not None.
    centre, shrinkage : what is subtracted from a vector, and what it is multiplied by then.
    parallel_weight, least_length : as `find_directions` takes them; whole: whether errors count along the vector itself
        and not along what is encoded.
    """

    cdef encoding by
    cdef size_t nbits, code_size
    cdef const float[::1] centre
    cdef float shrinkage, parallel_weight, least_length
    cdef bint whole
    cdef object kept

    def __init__(self, const float[:, :, ::1] panels, const float[::1] bias, const float[:, :, ::1] cross, size_t M,
                 size_t nbits, const float[::1] centre, float shrinkage, size_t beam_size, float prefix_weight,
                 float parallel_weight, float least_length, bint whole):
        cdef float[::1] offsets
        self.centre, self.shrinkage, self.nbits, self.code_size = centre, shrinkage, nbits, (M * nbits + 7) // 8
        self.by.d, self.by.M, self.by.K = centre.shape[0], M, 1 << nbits
        self.by.beam_size, self.by.block_size = beam_size, 1
        self.by.panels, self.by.bias, self.by.own_offsets = &panels[0, 0, 0], &bias[0], NULL
        self.by.cross = &cross[0, 0, 0] if cross.shape[0] else NULL
        self.by.prefix_weight = prefix_weight
        cdef uint8_t[::1] guesses = np.zeros(M * sizeof(dpq_limit_guess), np.uint8)
        self.by.guesses = <dpq_limit_guess *>&guesses[0]
        self.parallel_weight, self.least_length, self.whole = parallel_weight, least_length, whole
        self.kept = panels, bias, cross, guesses
        if parallel_weight:
            offsets = np.multiply(bias, 0.5, dtype=np.float32)
            self.by.own_offsets = &offsets[0]
            self.kept += (offsets,)

    cdef int encode(self, const float *x, const float *origin, uint8_t *packed) except -1:
        """Write the code of x - origin."""
        cdef encoding_work work
        cdef dpq_guesses guesses
        cdef float direction = 0, parallel = 0
        cdef size_t d = self.by.d, size = lay_out_encoding(&self.by, NULL, &work), j
        cdef Scratch scratch = scratch_of_thread(size + d * sizeof(float) + self.by.M * sizeof(uint16_t) + 2 * 64)
        cdef uint8_t *at = scratch.memory + size
        cdef float *target = <float *>take(&at, d * sizeof(float))
        cdef uint16_t *code = <uint16_t *>take(&at, self.by.M * sizeof(uint16_t))
        lay_out_encoding(&self.by, scratch.memory, &work)
        memset(&guesses, 0, sizeof(guesses))
        work.step.guesses = &guesses
        scratch.lent = True
        with nogil:
            for j in range(d):
                target[j] = x[j] - origin[j]
                target[j] -= self.centre[j]
                if self.shrinkage != 1:
                    target[j] *= self.shrinkage
            if self.parallel_weight:
                find_direction(
                    x if self.whole else target, target, d, self.parallel_weight, self.least_length,
                    &direction, &parallel,
                )
            encode_block(
                &self.by, &work, target, x if self.whole and self.parallel_weight else NULL,
                &direction if self.parallel_weight else NULL, &parallel, 1, code,
            )
            pack_code(code, self.by.M, self.nbits, packed)
        scratch.lent = False
        return 0


cdef tuple attributes_of(object index, tuple names):
    """The index's own attributes; None where it has the one of its class."""
    return tuple([index.__dict__.get(name) for name in names])


cdef class DirectAddition:
    """Additions of one vector to an index with lists in memory, while all but the lists stays the same.

    index, invlists : FAISS's objects.
    names : of the index's attributes that a code depends on, besides what `unchanged` compares.
    unchanged : all else that a code depends on, and which lists there are.
    nearest : finds the list.
    centres : (nlist, d), what is subtracted from the vectors of each list.
    """

    cdef object index, invlists
    cdef tuple names, values
    cdef Unchanged unchanged
    cdef OneVectorEncoder encoder
    cdef CentreScan nearest
    cdef const float[:, ::1] centres
    cdef object store, resize, size_of, ntotal, set_ntotal, code, code_pointer
    cdef bint busy

    def __init__(self, object index, object invlists, tuple names, Unchanged unchanged, OneVectorEncoder encoder,
                 CentreScan nearest, const float[:, ::1] centres):
        self.index, self.invlists = index.this, invlists.this
        self.names, self.values, self.unchanged = names, attributes_of(index, names), unchanged
        self.encoder, self.nearest, self.centres = encoder, nearest, centres
        lists = faiss.InvertedLists
        self.store, self.resize = method_of(lists, "add_entry"), method_of(lists, "resize")
        self.size_of = method_of(lists, "list_size")
        self.ntotal, self.set_ntotal = faiss.Index.ntotal.fget, faiss.Index.ntotal.fset
        self.code = np.empty(encoder.code_size, np.uint8)
        self.code_pointer = faiss.swig_ptr(self.code)

    cpdef bint is_good(self, object index) except -1:
        """Whether the index still is what this was made for."""
        cdef dict own = index.__dict__  # once: FAISS's getters make Python forget where classes have their attributes
        if own.get("this") is not self.index:
            return False
        for name, value in zip(self.names, self.values):
            if own.get(name) != value:
                return False
        return self.unchanged.holds()

    def add(self, object index, object x, object ids, list sizes):
        """Store one vector; False, and nothing is changed, where arguments or index take a closer look.

        ids : array of its id, or None: it gets ntotal.
        sizes : where to note which list will grow, and its size before: (numbers, sizes); or None.

        Nothing interrupts this, but for a lack of memory: no signal is handled here.
        """
        cdef size_t d = self.centres.shape[1]
        if self.busy or not cnp.PyArray_Check(x):
            return False
        cdef const float *vector = query_of(x, d)
        if vector == NULL or not self.is_good(index):
            return False
        if ids is not None and not (
            cnp.PyArray_Check(ids) and cnp.PyArray_NDIM(ids) == 1 and cnp.PyArray_DIM(ids, 0) == 1
            and cnp.PyArray_TYPE(ids) == cnp.NPY_INT64 and cnp.PyArray_ISCARRAY_RO(ids)
        ):
            return False
        self.busy = True
        try:
            return self.added(vector, None if ids is None else (<int64_t *>cnp.PyArray_DATA(ids))[0], sizes)
        finally:
            self.busy = False

    cdef bint added(self, const float *vector, object id, list sizes) except -1:
        cdef cnp.ndarray code = self.code
        cdef int64_t number = self.list_of(vector)
        if number < 0:
            return False
        self.encoder.encode(vector, &self.centres[number, 0], <uint8_t *>cnp.PyArray_DATA(code))
        ntotal, size = self.ntotal(self.index), self.size_of(self.invlists, number)
        if sizes is not None:
            sizes.append((np.array([number]), np.array([size])))
        try:
            self.store(self.invlists, number, ntotal if id is None else id, self.code_pointer)
        except MemoryError:
            self.resize(self.invlists, number, size)
            raise
        self.set_ntotal(self.index, ntotal + 1)
        counted.added_directly += 1
        return True

    cdef int64_t list_of(self, const float *vector) except? -1:
        """The number of a vector's list; -1 where that takes a closer look."""
        cdef centres_work work
        cdef Scratch scratch = scratch_of_thread(self.nearest.lay_out(NULL, 1, &work))
        cdef float squares = 0
        cdef size_t j
        self.nearest.lay_out(scratch.memory, 1, &work)
        for j in range(self.nearest.d):
            squares += vector[j] * vector[j]
        if not squares < FLT_MAX / 2:
            return -1
        self.nearest.nearest_to(vector, 1, &work)
        return work.numbers[0]
