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


cdef extern from "nearest.h" nogil:
    size_t dpq_topk_capacity(size_t k)
    void dpq_nearest(const float *scores, size_t n, size_t k, uint64_t *keys, int64_t *out)


def nearest(const float[:, ::1] x, const float[:, :, ::1] panels, const float[::1] bias, size_t n, int64_t[:, ::1] out):
    """out[i] = the rows j < n of a packed matrix with the least bias[j] - 2<x[i], row j>, least first."""
    cdef size_t k = out.shape[1], q
    cdef float[:, ::1] scores = aligned_empty((x.shape[0], panels.shape[0] * DPQ_PANEL))
    cdef uint64_t[::1] keys = np.empty(dpq_topk_capacity(k), np.uint64)
    if x.shape[0] == 0:
        return
    with nogil:
        kernels.linear(
            &x[0, 0], x.shape[0], x.shape[1], &panels[0, 0, 0], panels.shape[0], &bias[0], -2.0,
            &scores[0, 0], scores.shape[1],
        )
        for q in range(<size_t>x.shape[0]):
            dpq_nearest(&scores[q, 0], n, k, &keys[0], &out[q, 0])


def sample_vector(uint64_t vector, size_t at, size_t size_of):
    """A hash of some 16 words, evenly spaced, of a C++ vector's contents.

    at : which word of the vector is the contents' address; the next is their number, of `size_of` bytes each, or their
        end, if size_of is 0.
    """
    cdef const uint64_t *words = (<const uint64_t *><uintptr_t>vector) + at
    cdef uint64_t n = (words[1] * size_of if size_of else words[1] - words[0]) // 4
    cdef const uint32_t *contents = <const uint32_t *><uintptr_t>words[0]
    # Each is a cache miss: 256 of them took a quarter of the time of a search by one query.
    cdef uint64_t step = max(<uint64_t>1, n // 16), total = n, i
    for i in range(0, n, step):
        total = (total ^ contents[i]) * <uint64_t>0x9e3779b97f4a7c15
        total ^= total >> 32
    return total


cdef class ListScan:
    """Search of inverted lists at one prefix length: what stays the same from search to search.

    sizes, hashes : (nlist,), of the codes that all this was derived from; changed by the owner.
    centres : (nlist, stride), zero-padded to a multiple of 16; mean, centre : (d,), what queries are moved by.
    panels, bias : of all codewords of the levels, and what their products are added to; scale : what they are times.
    error_of_norm, error_constant : see ProgressiveQuantizer.table_errors.
    The other arrays, (nlist,), are those of dpq_lists.h.
    """

    cdef dpq_lists lists
    cdef bint inner_product
    cdef float scale, error_of_norm, error_constant
    cdef const int64_t[::1] sizes
    cdef const uint64_t[::1] hashes
    cdef const float[:, ::1] centres
    cdef const float[::1] mean
    cdef const float[::1] centre
    cdef const float[:, :, ::1] panels
    cdef const float[::1] bias
    cdef object kept

    def __init__(
        self,
        bint inner_product,
        size_t nbits,
        size_t levels,
        const int64_t[::1] sizes,
        const uint64_t[::1] hashes,
        const float[:, ::1] centres,
        const float[::1] mean,
        const float[::1] centre,
        const float[:, :, ::1] panels,
        const float[::1] bias,
        float error_of_norm,
        float error_constant,
        const uint64_t[::1] bins,
        const uint64_t[::1] terms,
        const float[::1] term_min,
        const float[::1] term_step,
        const float[::1] term_magnitude,
        const float[::1] radius,
        const float[::1] errors,
    ):
        self.kept = (bins, terms, term_min, term_step, term_magnitude, radius, errors)
        self.inner_product = inner_product
        self.scale = -1.0 if inner_product else -2.0
        self.error_of_norm = error_of_norm
        self.error_constant = error_constant
        self.sizes, self.hashes, self.centres = sizes, hashes, centres
        self.mean, self.centre, self.panels, self.bias = mean, centre, panels, bias
        self.lists.bins = &bins[0]
        self.lists.terms = NULL if inner_product else &terms[0]
        self.lists.term_min = &term_min[0]
        self.lists.term_step = &term_step[0]
        self.lists.term_magnitude = &term_magnitude[0]
        self.lists.radius = &radius[0]
        self.lists.errors = &errors[0]
        self.lists.centres = &centres[0, 0]
        self.lists.nlist = centres.shape[0]
        self.lists.stride = centres.shape[1]
        self.lists.nbits = nbits
        self.lists.levels = levels

    def changed(self, const int64_t[::1] numbers, const uint64_t[::1] codes, const int64_t[::1] sizes,
                size_t code_size, uint64_t[::1] hashes, uint8_t[::1] out):
        """Hash the codes of some lists; out[i] tells whether list numbers[i] is not what `sizes`, `hashes` say."""
        cdef size_t i, n = numbers.shape[0]
        cdef int64_t number
        with nogil:
            for i in range(n):
                number = numbers[i]
                hashes[i] = kernels.hash(
                    <const uint8_t *><uintptr_t>codes[number], <size_t>sizes[number] * code_size
                )
                out[i] = sizes[number] != self.sizes[number] or hashes[i] != self.hashes[number]

    def search(
        self,
        const float[:, ::1] xq,
        const int64_t[:, ::1] keys,
        const int64_t[:, ::1] counts,
        const uint64_t[::1] codes,
        const uint64_t[::1] ids,
        const int64_t[::1] sizes,
        const uint64_t[::1] allowed,
        size_t code_size,
        float[:, ::1] distances,
        int64_t[:, ::1] labels,
        int64_t[:, ::1] places,
    ):
        """The k nearest of the codes in the lists that every query probes.

        keys, counts : (nq, nprobe), counts 0 where a key is no list; codes, ids, sizes, allowed : see dpq_lists.h.
        distances, labels : (nq, k), written: best first, ties by the order of lists in `keys` and of vectors in a list;
            (+-FLT_MAX, -1) where there are fewer. places : likewise, list << 32 | offset of every result, or None.

        Returns (vectors judged by bytes, of these rescored, vectors scanned in float32), summed over queries.
        """
        cdef size_t nq = xq.shape[0], d = xq.shape[1], k = distances.shape[1], nprobe = keys.shape[1], q, i
        cdef dpq_lists lists = self.lists
        cdef dpq_probes probes
        cdef dpq_counters counters
        counters.bounded = counters.rescored = counters.floated = 0
        if nq == 0:
            return 0, 0, 0
        cdef size_t width = self.panels.shape[0] * DPQ_PANEL
        cdef float[:, ::1] tables = aligned_empty((nq, width))
        cdef float[:, ::1] vectors = aligned_empty((nq, lists.stride))
        cdef float[:, ::1] moved = vectors if lists.stride == d else np.empty((nq, d), np.float32)
        cdef float[:, ::1] numbers = np.empty((2, nq), np.float32)
        cdef uint32_t[:, ::1] positions = np.empty((nq, k), np.uint32)
        cdef int64_t place
        lists.codes = &codes[0]
        lists.sizes = &sizes[0]
        lists.allowed = &allowed[0] if allowed is not None else NULL
        lists.code_size = code_size
        probes.queries.tables = &tables[0, 0]
        probes.queries.norms = &numbers[0, 0]
        probes.queries.table_errors = &numbers[1, 0]
        probes.queries.inner_product = self.inner_product
        probes.queries.nq = nq
        probes.table_stride = width
        probes.vectors = &vectors[0, 0]
        probes.keys = &keys[0, 0]
        probes.counts = &counts[0, 0]
        probes.nprobe = nprobe
        cdef uint8_t[::1] scratch = scratch_of_thread(kernels.lists_scratch(&lists, &probes, k))
        with nogil:
            for q in range(nq):
                self.move(&xq[q, 0], d, &moved[q, 0], &numbers[0, q], &numbers[1, q])
                memcpy(&vectors[q, 0], &moved[q, 0], d * sizeof(float))
                memset(&vectors[q, 0] + d, 0, (lists.stride - d) * sizeof(float))
            kernels.linear(
                &moved[0, 0], nq, d, &self.panels[0, 0, 0], <size_t>self.panels.shape[0], &self.bias[0], self.scale,
                &tables[0, 0], width,
            )
            kernels.scan_lists(&lists, &probes, k, &distances[0, 0], &positions[0, 0], &scratch[0], &counters)
            for q in range(nq):
                for i in range(k):
                    place = place_of(positions[q, i], &keys[q, 0], &counts[q, 0])
                    labels[q, i] = -1
                    if place >= 0:
                        labels[q, i] = (<const int64_t *><uintptr_t>ids[place >> 32])[place & UINT32_MAX]
                    distances[q, i] = self.delivered(distances[q, i], place)
                    if places is not None:
                        places[q, i] = place
        return counters.bounded, counters.rescored, counters.floated

    def search_arrays(
        self,
        const float[:, ::1] xq,
        const int64_t[:, ::1] keys,
        size_t max_codes,
        tuple layout,
        uint64_t codes_vector,
        uint64_t ids_vector,
        size_t code_size,
        float[:, ::1] distances,
        int64_t[:, ::1] labels,
    ):
        """`changed` and `search` in one, for few queries of a faiss.ArrayInvertedLists.

        layout, codes_vector, ids_vector : as for read_vectors. max_codes : as faiss.IndexIVF.max_codes.

        Returns False, and writes nothing, if a list is not what `sizes` and `hashes` say.
        """
        cdef size_t stride = layout[0], at = layout[1], q, p, total, left, nlist = self.lists.nlist
        cdef const uint64_t *all_codes = (<const uint64_t **><uintptr_t>codes_vector)[0]
        cdef const uint64_t *all_ids = (<const uint64_t **><uintptr_t>ids_vector)[0]
        cdef uint64_t[::1] codes = np.empty(nlist, np.uint64)
        cdef uint64_t[::1] ids = np.empty(nlist, np.uint64)
        cdef int64_t[::1] sizes = np.empty(nlist, np.int64)
        cdef int64_t[:, ::1] counts = np.empty((keys.shape[0], keys.shape[1]), np.int64)
        cdef int64_t key, size
        cdef uint64_t hash_now
        for q in range(<size_t>keys.shape[0]):
            total = 0
            for p in range(<size_t>keys.shape[1]):
                key = keys[q, p]
                counts[q, p] = 0
                if key < 0:
                    continue
                codes[key] = all_codes[key * stride + at]
                ids[key] = all_ids[key * stride + at]
                sizes[key] = size = <int64_t>all_ids[key * stride + at + 1]
                with nogil:
                    hash_now = kernels.hash(<const uint8_t *><uintptr_t>codes[key], <size_t>size * code_size)
                if size != self.sizes[key] or hash_now != self.hashes[key]:
                    return False
                left = max_codes - total if max_codes else <size_t>size
                counts[q, p] = min(<size_t>size, left)
                total += counts[q, p]
            if total >= UINT32_MAX:
                return False
        self.search(xq, keys, counts, codes, ids, sizes, None, code_size, distances, labels, None)
        return True

    cdef float delivered(self, float distance, int64_t place) noexcept nogil:
        """A result as FAISS gives it; the rounding of Eq. 30 may leave -1e-7 where a code is the query itself."""
        if place < 0:
            return -FLT_MAX if self.inner_product else FLT_MAX
        return -distance if self.inner_product else max(distance, <float>0)

    cdef void move(self, const float *x, size_t d, float *moved, float *norm, float *error) noexcept nogil:
        """A query as its tables are made of it, its squared norm, and what its tables err by at most."""
        cdef size_t j
        cdef double total = 0
        for j in range(d):
            moved[j] = x[j] if self.inner_product else x[j] - self.mean[j] - self.centre[j]
            total += <double>moved[j] * moved[j]
        norm[0] = <float>total
        error[0] = self.error_of_norm * <float>sqrt(total) + (self.error_constant + <float>1.2e-7 * norm[0])


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


def read_words(uint64_t address, size_t n):
    """The n 64-bit words at an address."""
    words = np.empty(n, np.uint64)
    cdef uint64_t[::1] out = words
    memcpy(&out[0], <const void *><uintptr_t>address, n * sizeof(uint64_t))
    return words


def read_vectors(const int64_t[::1] numbers, uint64_t codes, uint64_t ids, size_t stride, size_t at,
                 uint64_t[::1] code_addresses, uint64_t[::1] id_addresses, int64_t[::1] sizes):
    """Addresses and sizes of some of the vectors in two std::vectors of FAISS's vectors.

    Each of these takes `stride` words, of which number `at` is the address of its numbers and the next their count.
    """
    cdef size_t i
    cdef int64_t number
    cdef const uint64_t *all_codes = (<const uint64_t **><uintptr_t>codes)[0]
    cdef const uint64_t *all_ids = (<const uint64_t **><uintptr_t>ids)[0]
    for i in range(numbers.shape[0]):
        number = numbers[i]
        code_addresses[number] = all_codes[number * stride + at]
        id_addresses[number] = all_ids[number * stride + at]
        sizes[number] = <int64_t>all_ids[number * stride + at + 1]
