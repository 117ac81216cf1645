# Encode: beam search over the levels, on tables alone.


def encode_from_tables(
    const float[:, ::1] x,
    const float[:, :, ::1] panels,
    const float[::1] bias,
    const float[:, :, ::1] cross,
    size_t M,
    size_t K,
    size_t beam_size,
    uint16_t[:, ::1] codes,
    size_t block_size,
    float prefix_weight,
    const float[:, ::1] own,
    const float[::1] own_offsets,
    const float[::1] directions,
    float[::1] parallels,
):
    """Beam search of rows of `x` (n, d) over M levels of K codewords; writes codes (n, M).

    `panels` and `bias` give the score of every codeword against x itself, ||c||^2 - 2<x, c>; the cross terms with the
    codewords chosen before come from `cross` (pairs, K, K). What prefixes are chosen by is their squared error plus
    `prefix_weight` times those of all shorter ones.

    Where `directions` (n,) is not None, these errors include the square of a parallel error: of `parallels` (n,) less
    direction * (own_offsets - score / 2) of every codeword chosen. The scores are those against `own` (n, d), if it is
    not None. `parallels` is left with the parallel errors of the codes.

    Levels run outside and the vectors of a block inside: a level's cross tables are read many times in a row.
    """
    cdef size_t n = x.shape[0], d = x.shape[1], start, here, i, level, panel, end_panel
    # A level's codewords lie in these panels, at most one of them begun by the level before.
    cdef size_t ldt = (K + DPQ_PANEL - 1) // DPQ_PANEL * DPQ_PANEL
    cdef float[:, ::1] tables = aligned_empty((block_size, ldt))
    cdef uint16_t[:, :, :, ::1] beam_codes = np.zeros((2, block_size, beam_size, M), np.uint16)
    cdef float[:, :, ::1] beam_scores = np.zeros((2, block_size, beam_size), np.float32)
    cdef float[:, :, ::1] beam_debts = np.zeros((2, block_size, beam_size), np.float32)
    cdef float[:, :, ::1] beam_parallels = np.empty((2, block_size, beam_size), np.float32)
    cdef float[:, ::1] own_tables = aligned_empty((block_size, ldt)) if own is not None else tables
    cdef float[::1] products = aligned_empty(K)
    cdef float[::1] norms = np.einsum("ij,ij->i", x, x)
    cdef uintptr_t[::1] rows = np.empty(M, np.uintp)
    cdef float[::1] partial = aligned_empty(M * K)
    cdef uint32_t[::1] slots = np.empty(beam_size + beam_size * K, np.uint32)
    cdef float[::1] scores = aligned_empty(beam_size * K + 16 + 4 * (beam_size + 16))
    cdef dpq_encode_step step
    cdef dpq_guesses guesses
    cdef int side
    if n == 0:
        return
    step.K = K
    step.code_stride = M
    step.vector_stride = ldt
    step.beam_stride = 0
    step.cross = &cross[0, 0, 0]
    step.prefix_weight = prefix_weight
    step.directions = NULL
    step.own_stride = ldt
    step.products = &products[0]
    step.rows = <const float **>&rows[0]
    step.partial = &partial[0]
    step.slots = &slots[0]
    step.scores = &scores[0]
    step.parents_out = NULL
    memset(&guesses, 0, sizeof(guesses))
    step.guesses = &guesses
    with nogil:
        start = 0
        while start < n:
            here = min(block_size, n - start)
            step.n = here
            step.norms = &norms[start]
            step.beam_in = 1
            side = 0
            memset(&beam_scores[0, 0, 0], 0, here * sizeof(float))
            memset(&beam_debts[0, 0, 0], 0, here * sizeof(float))
            if directions is not None:
                step.directions = &directions[start]
                memcpy(&beam_parallels[0, 0, 0], &parallels[start], here * sizeof(float))
                for i in range(here):
                    (&beam_scores[0, 0, 0])[i] = parallels[start + i] * parallels[start + i]
            for level in range(M):
                panel = level * K // DPQ_PANEL
                end_panel = ((level + 1) * K + DPQ_PANEL - 1) // DPQ_PANEL
                kernels.linear(
                    &x[start, 0], here, d, &panels[panel, 0, 0], end_panel - panel, &bias[panel * DPQ_PANEL], -2,
                    &tables[0, 0], ldt,
                )
                step.level = level
                step.tables = &tables[0, level * K - panel * DPQ_PANEL]
                if own is not None:
                    kernels.linear(
                        &own[start, 0], here, d, &panels[panel, 0, 0], end_panel - panel, &bias[panel * DPQ_PANEL], -2,
                        &own_tables[0, 0], ldt,
                    )
                if directions is not None:
                    step.own_tables = &own_tables[0, level * K - panel * DPQ_PANEL]
                    step.own_offsets = &own_offsets[level * K]
                step.codes_in = &beam_codes[side, 0, 0, 0]
                step.scores_in = &beam_scores[side, 0, 0]
                step.debts_in = &beam_debts[side, 0, 0]
                step.parallels_in = &beam_parallels[side, 0, 0]
                side = 1 - side
                # Entry counts are those of a full tree until it outgrows the beam; one code is left at the end.
                step.beam_out = 1 if level + 1 == M else min(beam_size, step.beam_in * K)
                step.codes_out = &beam_codes[side, 0, 0, 0]
                step.scores_out = &beam_scores[side, 0, 0]
                step.debts_out = &beam_debts[side, 0, 0]
                step.parallels_out = &beam_parallels[side, 0, 0]
                kernels.encode_level(&step)
                step.beam_in = step.beam_out
            if directions is not None:
                memcpy(&parallels[start], &beam_parallels[side, 0, 0], here * sizeof(float))
            for i in range(here):
                for level in range(M):
                    codes[start + i, level] = (&beam_codes[side, 0, 0, 0])[i * M + level]
            start += here
    count_guesses(&guesses)


def encode_level_from_residuals(
    const float[:, ::1] tables,
    size_t K,
    size_t level,
    const uint16_t[:, :, ::1] codes_in,
    const float[:, ::1] scores_in,
    uint16_t[:, :, ::1] codes_out,
    float[:, ::1] scores_out,
    uint32_t[:, ::1] parents_out,
    float prefix_weight,
    const float[:, ::1] debts_in,
    float[:, ::1] debts_out,
    const float[:, ::1] own_tables,
    const float[::1] own_offsets,
    const float[::1] directions,
    const float[:, ::1] parallels_in,
    float[:, ::1] parallels_out,
):
    """One step of the beam search where `tables` (n * beam_in, K) scores every beam entry's own residual.

    Parallel errors are found as in `encode_from_tables`, by `own_tables` (n, K), scores against the vectors themselves.
    """
    cdef size_t extensions = codes_in.shape[1] * K, beam_out = codes_out.shape[1]
    cdef uint32_t[::1] slots = np.empty(beam_out + extensions, np.uint32)
    cdef float[::1] scores = aligned_empty(extensions + 16 + 4 * (beam_out + 16))
    cdef float[::1] products = aligned_empty(K)
    cdef dpq_encode_step step
    cdef dpq_guesses guesses
    memset(&guesses, 0, sizeof(guesses))
    step.n = codes_in.shape[0]
    step.K = K
    step.level = level
    step.beam_in = codes_in.shape[1]
    step.beam_out = beam_out
    step.tables = &tables[0, 0]
    step.beam_stride = tables.shape[1]
    step.vector_stride = step.beam_in * step.beam_stride
    step.cross = NULL
    step.norms = NULL
    step.prefix_weight = prefix_weight
    step.debts_in = &debts_in[0, 0]
    step.debts_out = &debts_out[0, 0]
    step.directions = NULL
    if directions is not None:
        step.directions = &directions[0]
        step.own_tables = &own_tables[0, 0]
        step.own_stride = own_tables.shape[1]
        step.own_offsets = &own_offsets[0]
        step.parallels_in = &parallels_in[0, 0]
        step.parallels_out = &parallels_out[0, 0]
        step.products = &products[0]
    step.code_stride = codes_in.shape[2]
    step.codes_in = &codes_in[0, 0, 0]
    step.scores_in = &scores_in[0, 0]
    step.codes_out = &codes_out[0, 0, 0]
    step.scores_out = &scores_out[0, 0]
    step.parents_out = &parents_out[0, 0]
    step.rows = NULL
    step.partial = NULL
    step.slots = &slots[0]
    step.scores = &scores[0]
    step.guesses = &guesses
    with nogil:
        kernels.encode_level(&step)
    count_guesses(&guesses)
