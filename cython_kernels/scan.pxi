# Scan: exhaustive asymmetric distances, exact.

cdef enum:
    # Vectors unpacked at a time: their codes and terms stay in L1/L2 while every group of queries scans them, and a
    # group's tables (64 KiB for 4 x 8 bits) are loaded once per block.
    SCAN_BLOCK = 4096


def interleave_tables(const float[:, ::1] tables, size_t rows):
    """Tables (nq, >= rows) as groups of LANES queries: (ceil(nq / LANES), rows, LANES), zeros in unused lanes."""
    cdef size_t nq = tables.shape[0], q, r
    cdef size_t groups = (nq + DPQ_LANES - 1) // DPQ_LANES
    interleaved = aligned_empty((groups, rows, DPQ_LANES))
    interleaved[:] = 0
    cdef float[:, :, ::1] out = interleaved
    with nogil:
        for q in range(nq):
            for r in range(rows):
                out[q // DPQ_LANES, r, q % DPQ_LANES] = tables[q, r]
    return interleaved


def scan(
    const float[:, :, ::1] tables,
    const uint8_t[:, ::1] packed,
    size_t nbits,
    size_t levels,
    const float[:, :, ::1] cross,
    const float[::1] terms,
    const int64_t[::1] ids,
    size_t begin,
    size_t end,
    float[:, ::1] distances,
    int64_t[:, ::1] labels,
):
    """The k nearest of the codes [begin, end), or of codes number ids[begin:end], for the nq queries of `tables`.

    tables : (groups, levels << nbits, LANES), of `interleave_tables`.
    packed : (n, code_size), the codes as FAISS packs them.
    cross : cross tables from which a code's term follows, or None for no term.
    terms : every code's term, by its number, used in place of `cross` if given.
    distances, labels : (nq, k), written: nearest first, by (distance, id); (FLT_MAX, -1) where there are fewer.
    """
    distances[:] = FLT_MAX
    labels[:] = -1
    cdef size_t k = distances.shape[1], groups = tables.shape[0], K = 1 << nbits, start, here, i, g, q
    cdef size_t number, nq = distances.shape[0]
    cdef uint16_t[::1] block_codes = np.empty(SCAN_BLOCK * levels, np.uint16)
    cdef float[::1] block_terms = np.zeros(SCAN_BLOCK, np.float32)
    cdef float[::1] thresholds = np.full(groups * DPQ_LANES, -INFINITY, np.float32)
    cdef bint listed = ids is not None, given = terms is not None
    cdef bint computed = not given and cross is not None and cross.shape[0] > 0
    cdef dpq_heaps heaps
    cdef const int64_t *block_ids = NULL
    if begin >= end or nq == 0:
        return
    thresholds[:nq] = FLT_MAX
    heaps.k = k
    with nogil:
        start = begin
        while start < end:
            here = min(<size_t>SCAN_BLOCK, end - start)
            for i in range(here):
                number = ids[start + i] if listed else start + i
                unpack_code(&packed[number, 0], levels, nbits, &block_codes[i * levels])
                if given:
                    block_terms[i] = terms[number]
            if computed:
                sum_cross_terms(&block_codes[0], here, levels, levels, K, &cross[0, 0, 0], &block_terms[0])
            if listed:
                block_ids = &ids[start]
            for g in range(groups):
                heaps.distances = &distances[g * DPQ_LANES, 0]
                heaps.ids = &labels[g * DPQ_LANES, 0]
                heaps.thresholds = &thresholds[g * DPQ_LANES]
                kernels.scan(
                    &tables[g, 0, 0], &block_codes[0], &block_terms[0], block_ids, start, here, levels, K, &heaps
                )
            start += here
        for q in range(nq):
            topk_sort(k, &distances[q, 0], &labels[q, 0])
