# Scan: exhaustive asymmetric distances, exact.

import threading

_kept = threading.local()


cdef uint8_t[::1] scratch_of_thread(size_t size):
    """Scratch memory that the thread keeps: fresh pages would cost more than a short search."""
    if getattr(_kept, "size", -1) < size:
        _kept.scratch = np.empty(size, np.uint8)
        _kept.size = size
    return _kept.scratch


def scan(
    const float[:, ::1] tables,
    const float[::1] norms,
    const float[::1] table_errors,
    bint inner_product,
    const uint8_t[:, ::1] packed,
    size_t nbits,
    size_t levels,
    const float[:, :, ::1] cross,
    const float[::1] terms,
    const uint8_t[::1] bins,
    float term_min,
    float term_step,
    float radius,
    const uint8_t[::1] allowed,
    uint64_t[::1] hashes,
    int64_t first_id,
    float[:, ::1] distances,
    int64_t[:, ::1] labels,
):
    """The k nearest of some packed codes for every query: nearest first, by (distance, id).

    tables : (nq, levels << nbits), norms : (nq,), the queries' squared norms, table_errors : (nq,), bounds on the
        rounding errors of the tables and terms.
    packed : (n, code_size), the codes as FAISS packs them; the first has id first_id.
    cross, terms, bins, term_min, term_step, radius : of `packed`; see derived.pxi. bins is None for no terms.
    allowed : bit i & 7 of byte i >> 3 tells whether code i takes part; None for all.
    hashes : (ceil(n / HASH_BLOCK),), written, for one query only: what `hash_blocks` gives; or None.
    distances, labels : (nq, k), written; (inf, -1) where there are fewer.

    Returns (vectors judged by bytes, of these rescored in float32, vectors scanned in float32), summed over queries.
    """
    cdef size_t nq = tables.shape[0], k = distances.shape[1], n = packed.shape[0], q, i
    cdef dpq_counters counters
    cdef dpq_database db
    cdef dpq_queries queries
    counters.bounded = counters.rescored = counters.floated = 0
    if nq == 0:
        return 0, 0, 0
    if n == 0:
        distances[:] = INFINITY
        labels[:] = -1
        return 0, 0, 0
    db = make_database(packed, nbits, levels, cross, terms)
    db.term_bins = &bins[0] if bins is not None else NULL
    db.term_min = term_min
    db.term_step = term_step
    db.radius = radius
    db.allowed = &allowed[0] if allowed is not None else NULL
    db.hashes = &hashes[0] if hashes is not None else NULL
    queries.tables = &tables[0, 0]
    queries.norms = &norms[0]
    queries.table_errors = &table_errors[0]
    queries.inner_product = inner_product
    queries.nq = nq
    # Queries left over from whole groups of the batch scan may be too few for it.
    cdef size_t batched = nq - nq % kernels.batch_width
    if nq - batched >= kernels.least_batch and hashes is None:
        batched = nq
    cdef size_t scratch_size = max(
        kernels.batch_scratch(&db, k) if batched else 0, kernels.single_scratch(k) if batched < nq else 0
    )
    cdef uint8_t[::1] scratch = scratch_of_thread(scratch_size)
    cdef uint32_t[:, ::1] ids = np.empty((nq, k), np.uint32)
    with nogil:
        queries.nq = batched
        if batched:
            kernels.scan_batch(&db, &queries, k, &distances[0, 0], &ids[0, 0], &scratch[0], &counters)
        queries.tables += batched * tables.shape[1]
        queries.norms += batched
        queries.table_errors += batched
        queries.nq = nq - batched
        if batched < nq:
            kernels.scan_single(
                &db, &queries, k, &distances[batched, 0], &ids[batched, 0], &scratch[0], &counters
            )
        for q in range(nq):
            for i in range(k):
                labels[q, i] = -1 if ids[q, i] == UINT32_MAX else first_id + ids[q, i]
    return counters.bounded, counters.rescored, counters.floated
