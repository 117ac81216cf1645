# Inverted lists: what is derived from their codes, and the scan of the lists that queries probe.
#
# Lists are given by arrays over all lists of an index: addresses of their codes, ids, ... as uint64, and their sizes.
# Only the entries of lists that take part are read.

cdef extern from "lists_derived.h" nogil:
    float dpq_list_terms(
        const dpq_database *db, const float *cross, const float *products, const float *codeword_norms, float error,
        float *terms,
    )
    float dpq_list_bins(dpq_database *db, uint8_t *bins)


def hash_lists(const int64_t[::1] lists, const uint64_t[::1] codes, const int64_t[::1] sizes, size_t code_size,
               uint64_t[::1] out):
    """out[i] = a hash of the codes of list lists[i]."""
    cdef size_t i
    cdef int64_t list_no
    with nogil:
        for i in range(lists.shape[0]):
            list_no = lists[i]
            out[i] = kernels.hash(<const uint8_t *><uintptr_t>codes[list_no], <size_t>sizes[list_no] * code_size)


def gather_ids(const int64_t[::1] lists, const uint64_t[::1] ids, const int64_t[::1] sizes, int64_t[::1] out):
    """The ids of some lists, one list after the other."""
    cdef size_t i, at = 0
    with nogil:
        for i in range(lists.shape[0]):
            memcpy(&out[0] + at, <const void *><uintptr_t>ids[lists[i]], <size_t>sizes[lists[i]] * sizeof(int64_t))
            at += <size_t>sizes[lists[i]]


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
        radius = dpq_list_terms(&db, pairs, &products[0], &codeword_norms[0], error, out)
        if out != NULL:
            db.terms = out
            magnitude = dpq_list_bins(&db, &bins[0])
    return radius, db.term_min, db.term_step, magnitude


def scan_lists(
    const float[:, ::1] tables,
    const float[::1] norms,
    const float[::1] table_errors,
    bint inner_product,
    const float[:, ::1] vectors,
    const int64_t[:, ::1] keys,
    const int64_t[:, ::1] counts,
    const uint64_t[::1] codes,
    const uint64_t[::1] ids,
    const int64_t[::1] sizes,
    const uint64_t[::1] allowed,
    size_t code_size,
    size_t nbits,
    size_t levels,
    const uint64_t[::1] bins,
    const uint64_t[::1] terms,
    const float[::1] term_min,
    const float[::1] term_step,
    const float[::1] term_magnitude,
    const float[::1] radius,
    const float[::1] errors,
    const float[:, ::1] centres,
    float[:, ::1] distances,
    int64_t[:, ::1] labels,
    int64_t[:, ::1] places,
):
    """The k nearest of the codes in the lists that every query probes.

    The meaning of most arguments is in dpq_lists.h. tables : (nq, levels << nbits); keys, counts : (nq, nprobe), counts
    0 where a key is no list.
    distances, labels : (nq, k), written: nearest first, ties by the order of lists in `keys` and of vectors in a list;
    (inf, -1) where there are fewer. places : the same shape, list << 32 | offset of every result, or None.

    Returns (vectors judged by bytes, vectors rescored in float32, vectors scanned in float32), summed over queries.
    """
    cdef size_t nq = tables.shape[0], k = distances.shape[1], nprobe = keys.shape[1], q, i
    cdef dpq_counters counters
    cdef dpq_lists lists
    cdef dpq_probes probes
    counters.bounded = counters.rescored = counters.floated = 0
    if nq == 0:
        return 0, 0, 0
    lists.codes = &codes[0]
    lists.bins = &bins[0]
    lists.terms = NULL if inner_product else &terms[0]
    lists.allowed = &allowed[0] if allowed is not None else NULL
    lists.sizes = &sizes[0]
    lists.term_min = &term_min[0]
    lists.term_step = &term_step[0]
    lists.term_magnitude = &term_magnitude[0]
    lists.radius = &radius[0]
    lists.errors = &errors[0]
    lists.centres = &centres[0, 0]
    lists.nlist = centres.shape[0]
    lists.stride = centres.shape[1]
    lists.code_size = code_size
    lists.nbits = nbits
    lists.levels = levels
    probes.queries.tables = &tables[0, 0]
    probes.queries.norms = &norms[0]
    probes.queries.table_errors = &table_errors[0]
    probes.queries.inner_product = inner_product
    probes.queries.nq = nq
    probes.vectors = &vectors[0, 0]
    probes.keys = &keys[0, 0]
    probes.counts = &counts[0, 0]
    probes.nprobe = nprobe
    cdef uint8_t[::1] scratch = scratch_of_thread(kernels.lists_scratch(&lists, &probes, k))
    cdef uint32_t[:, ::1] positions = np.empty((nq, k), np.uint32)
    cdef int64_t place
    with nogil:
        kernels.scan_lists(&lists, &probes, k, &distances[0, 0], &positions[0, 0], &scratch[0], &counters)
        for q in range(nq):
            for i in range(k):
                place = place_of(positions[q, i], &keys[q, 0], &counts[q, 0])
                labels[q, i] = -1
                if place >= 0:
                    labels[q, i] = (<const int64_t *><uintptr_t>ids[place >> 32])[place & UINT32_MAX]
                if places is not None:
                    places[q, i] = place
    return counters.bounded, counters.rescored, counters.floated


cdef int64_t place_of(uint32_t position, const int64_t *keys, const int64_t *counts) noexcept nogil:
    """list << 32 | offset of what a query scanned at a position, -1 of none."""
    cdef size_t p = 0
    cdef int64_t offset = position
    if position == UINT32_MAX:
        return -1
    while offset >= counts[p]:
        offset -= counts[p]
        p += 1
    return keys[p] << 32 | offset
