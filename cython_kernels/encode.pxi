# Encode: beam search over the levels, on tables alone.


cdef enum:
    KEPT_ENCODING_BYTES = 1 << 24  # a thread keeps no more for the next block: that of a beam of 8 takes 3 MiB


cdef struct encoding:  # what vectors are encoded by, as `encode_from_tables` describes it; NULL for None
    size_t d, M, K, beam_size, block_size
    const float *panels
    const int16_t *rounded  # the same, as `linear_rounded` reads them, if these are to be used; or NULL
    const float *units  # [M]: how long a unit of a level's rounded codewords is
    size_t pairs
    const float *bias
    const float *cross
    const float *own_offsets
    float prefix_weight
    dpq_limit_guess *guesses  # [M], of the vectors before; NULL: each block begins without


cdef struct rounded_vectors:
    int16_t *whole  # [block_size][pairs][2]
    float *factors  # [block_size]


cdef struct encoding_work:
    float *tables  # [block_size][ldt]
    float *own_tables  # likewise
    uint16_t *codes[2]  # [block_size][beam_size][M], of the beam before and after a level
    float *scores[2]  # [block_size][beam_size]
    float *debts[2]
    float *parallels[2]
    float *norms  # [block_size]
    rounded_vectors x, own
    dpq_encode_step step  # with its own scratch


cdef size_t lay_out_encoding(const encoding *by, uint8_t *memory, encoding_work *work) noexcept nogil:
    """Cut memory of this many bytes; NULL: only its size."""
    cdef size_t ldt = panels_of_level(by.K) * DPQ_PANEL, K = by.K, width = by.beam_size, side
    cdef size_t entries = by.block_size * width
    cdef uint8_t *at = memory
    work.tables = work.own_tables = <float *>take(&at, by.block_size * ldt * sizeof(float))
    if by.own_offsets != NULL:
        work.own_tables = <float *>take(&at, by.block_size * ldt * sizeof(float))
    for side in range(2):
        work.codes[side] = <uint16_t *>take(&at, entries * by.M * sizeof(uint16_t))
        work.scores[side] = <float *>take(&at, entries * sizeof(float))
        work.debts[side] = <float *>take(&at, entries * sizeof(float))
        work.parallels[side] = <float *>take(&at, entries * sizeof(float))
    work.norms = <float *>take(&at, by.block_size * sizeof(float))
    lay_out_rounded(by, &at, &work.x)
    work.own = work.x
    if by.own_offsets != NULL:
        lay_out_rounded(by, &at, &work.own)
    work.step.products = <float *>take(&at, K * sizeof(float))
    work.step.rows = <const float **>take(&at, by.M * sizeof(float *))
    work.step.partial = <float *>take(&at, by.M * K * sizeof(float))
    work.step.slots = <uint32_t *>take(&at, (width + width * K + 16) * sizeof(uint32_t))
    work.step.scores = <float *>take(&at, (width * K + 16 + 4 * (width + 16)) * sizeof(float))
    return at - memory + 64


cdef void lay_out_rounded(const encoding *by, uint8_t **at, rounded_vectors *out) noexcept nogil:
    if by.rounded != NULL:
        out.whole = <int16_t *>take(at, by.block_size * by.pairs * 2 * sizeof(int16_t))
        out.factors = <float *>take(at, by.block_size * sizeof(float))


cdef void round_vector(const encoding *by, const float *x, double squared_length, size_t i,
                       rounded_vectors *out) noexcept nogil:
    """Vector number i of a block; one that is too short or long for numbers in float32 becomes 0."""
    cdef double length = sqrt(squared_length)
    if not 1e-33 < length < 1e38:
        length = 0
    out.factors[i] = <float>(length / DPQ_ROUNDED_LENGTH)
    out.whole[(i + 1) * 2 * by.pairs - 1] = 0  # there may be one number more than dimensions
    kernels.round_vector(
        x, min(by.d, 2 * by.pairs), <float>(DPQ_ROUNDED_LENGTH / length) if length else 0,
        out.whole + i * 2 * by.pairs,
    )


cdef void score_codewords(const encoding *by, size_t level, const float *x, const rounded_vectors *rounded, size_t n,
                          float *tables) noexcept nogil:
    """||c||^2 - 2<x, c> of n vectors and the codewords in the panels of a level."""
    cdef size_t K = by.K, ldt = panels_of_level(K) * DPQ_PANEL, panel = level * K // DPQ_PANEL
    cdef size_t n_panels = ((level + 1) * K + DPQ_PANEL - 1) // DPQ_PANEL - panel
    cdef const float *bias = by.bias + panel * DPQ_PANEL
    if by.rounded != NULL:
        kernels.linear_rounded(
            rounded.whole, rounded.factors, n, by.pairs, by.rounded + panel * by.pairs * 2 * DPQ_PANEL, n_panels, bias,
            -2 * by.units[level], tables, ldt,
        )
    else:
        kernels.linear(x, n, by.d, by.panels + panel * by.d * DPQ_PANEL, n_panels, bias, -2, tables, ldt)


cdef size_t panels_of_level(size_t K) noexcept nogil:
    """A level's codewords lie in so many panels, at most one of them begun by the level before."""
    return (K + DPQ_PANEL - 1) // DPQ_PANEL


cdef void encode_block(const encoding *by, encoding_work *work, const float *x, const float *own,
                       const float *directions, float *parallels, size_t n, uint16_t *codes) noexcept nogil:
    """Codes of n <= block_size vectors, and what is left of their parallel errors.

    Levels run outside and the vectors inside: a level's cross tables are read many times in a row.
    """
    cdef size_t d = by.d, K = by.K, M = by.M, ldt = panels_of_level(K) * DPQ_PANEL, i, level, shift
    cdef dpq_encode_step *step = &work.step
    cdef int side = 0
    cdef double square
    step.n, step.K, step.code_stride, step.vector_stride, step.own_stride = n, K, M, ldt, ldt
    step.beam_stride = 0
    step.beam_in = 1
    step.cross = by.cross
    step.prefix_weight = by.prefix_weight
    step.directions = directions
    step.norms = work.norms
    step.parents_out = NULL
    for i in range(n):
        square = product_of(x + i * d, x + i * d, d)
        work.norms[i] = <float>square  # only guesses depend on it
        if by.rounded != NULL:
            round_vector(by, x + i * d, square, i, &work.x)
            if own != NULL:
                round_vector(by, own + i * d, product_of(own + i * d, own + i * d, d), i, &work.own)
    memset(work.scores[0], 0, n * sizeof(float))
    memset(work.debts[0], 0, n * sizeof(float))
    if directions != NULL:
        memcpy(work.parallels[0], parallels, n * sizeof(float))
        for i in range(n):
            work.scores[0][i] = parallels[i] * parallels[i]
    for level in range(M):
        shift = level * K % DPQ_PANEL  # where the level begins in its first panel
        score_codewords(by, level, x, &work.x, n, work.tables)
        step.level = level
        step.guess = NULL if by.guesses == NULL else by.guesses + level
        step.tables = work.tables + shift
        if own != NULL:
            score_codewords(by, level, own, &work.own, n, work.own_tables)
        if directions != NULL:
            step.own_tables = (work.tables if own == NULL else work.own_tables) + shift
            step.own_offsets = by.own_offsets + level * K
        step.codes_in, step.scores_in = work.codes[side], work.scores[side]
        step.debts_in, step.parallels_in = work.debts[side], work.parallels[side]
        side = 1 - side
        # Entry counts are those of a full tree until it outgrows the beam; one code is left at the end.
        step.beam_out = 1 if level + 1 == M else min(by.beam_size, step.beam_in * K)
        step.codes_out, step.scores_out = work.codes[side], work.scores[side]
        step.debts_out, step.parallels_out = work.debts[side], work.parallels[side]
        kernels.encode_level(step)
        step.beam_in = step.beam_out
    memcpy(codes, work.codes[side], n * M * sizeof(uint16_t))
    if directions != NULL:
        memcpy(parallels, work.parallels[side], n * sizeof(float))


cdef double product_of(const float *x, const float *y, size_t d) noexcept nogil:
    """<x, y>, by eight sums side by side: each waits for its own addition before."""
    cdef double[8] sums
    cdef size_t i, j
    memset(sums, 0, sizeof(sums))
    for i in range(0, d - d % 8, 8):
        for j in range(8):
            sums[j] += <double>x[i + j] * y[i + j]
    for i in range(d - d % 8, d):
        sums[0] += <double>x[i] * y[i]
    for j in range(1, 8):
        sums[0] += sums[j]
    return sums[0]


cdef void find_direction(const float *vector, const float *target, size_t d, float weight, float least,
                         float *direction, float *parallel) noexcept nogil:
    """sqrt(weight) / ||vector||, 0 for vectors shorter than `least`, and that times <vector, target>."""
    cdef double length = sqrt(product_of(vector, vector, d)), product = product_of(vector, target, d)
    direction[0] = <float>(sqrt(<double>weight) / length) if length > least else 0
    parallel[0] = direction[0] * <float>product


def find_directions(const float[:, ::1] vectors, const float[:, ::1] targets, float weight, float least):
    """`directions` and `parallels` of `encode_from_tables`, before any codeword is chosen."""
    cdef size_t n = vectors.shape[0], i
    directions, parallels = np.empty(n, np.float32), np.empty(n, np.float32)
    cdef float[::1] of_vectors = directions, of_targets = parallels
    with nogil:
        for i in range(n):
            find_direction(
                &vectors[i, 0], &targets[i, 0], vectors.shape[1], weight, least, &of_vectors[i], &of_targets[i]
            )
    return directions, parallels


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
    const int16_t[:, :, :, ::1] rounded=None,
    const float[::1] units=None,
):
    """Beam search of rows of `x` (n, d) over M levels of K codewords; writes codes (n, M).

    `panels` and `bias` give the score of every codeword against x itself, ||c||^2 - 2<x, c>; the cross terms with the
    codewords chosen before come from `cross` (pairs, K, K). What prefixes are chosen by is their squared error plus
    `prefix_weight` times those of all shorter ones.

    Where `directions` (n,) is not None, these errors include the square of a parallel error: of `parallels` (n,) less
    direction * (own_offsets - score / 2) of every codeword chosen. The scores are those against `own` (n, d), if it is
    not None. `parallels` is left with the parallel errors of the codes.

    With `rounded` (panels, pairs of dimensions, PANEL, 2), scores are those of vectors and codewords that are rounded
    to 16 bits: the codewords in units of `units` (M,), which are at least 1 / ROUNDED_LENGTH of the longest one. K is a
    multiple of PANEL, and dimensions beyond the pairs are 0.
    """
    cdef size_t n = x.shape[0], d = x.shape[1], start
    cdef encoding by
    cdef encoding_work work
    cdef dpq_guesses guesses
    if n == 0:
        return
    by.d, by.M, by.K, by.beam_size, by.block_size = d, M, K, beam_size, block_size
    by.panels, by.bias, by.rounded = &panels[0, 0, 0], &bias[0], NULL
    if rounded is not None:
        by.rounded, by.pairs, by.units = &rounded[0, 0, 0, 0], rounded.shape[1], &units[0]
    by.cross = &cross[0, 0, 0] if cross.shape[0] else NULL
    by.own_offsets = NULL if own_offsets is None else &own_offsets[0]
    by.prefix_weight, by.guesses = prefix_weight, NULL
    cdef size_t size = lay_out_encoding(&by, NULL, &work)
    cdef Scratch scratch = scratch_of_thread(size) if size <= KEPT_ENCODING_BYTES else Scratch(size)
    lay_out_encoding(&by, scratch.memory, &work)
    memset(&guesses, 0, sizeof(guesses))
    work.step.guesses = &guesses
    scratch.lent = True
    with nogil:
        start = 0
        while start < n:
            encode_block(
                &by, &work, &x[start, 0], NULL if own is None else &own[start, 0],
                NULL if directions is None else &directions[start], NULL if directions is None else &parallels[start],
                min(block_size, n - start), &codes[start, 0],
            )
            start += block_size
    scratch.lent = False
    count_guesses(&guesses)


def leave_block(
    const float[:, ::1] turned,
    const float[:, ::1] own,
    size_t first,
    const uint16_t[:, ::1] codes,
    const float[:, :, ::1] codewords,
    float[:, ::1] own_out,
    float[:, ::1] left,
    float[::1] products,
):
    """What the global levels leave of vectors in one block, whose coordinates begin with number `first`.

    turned, own : (n, turned coordinates), the vectors, and those along which errors count.
    codes, codewords : (n, levels) and (levels, K, any): of the global levels, in turned coordinates.
    own_out, left : (n, dims), written: the block's part of `own`, and of `turned` less the codewords.
    products : (n,), written: <own_out, left>.
    """
    cdef dpq_leave task
    if turned.shape[0] == 0:
        return
    task.n, task.dims, task.stride = left.shape[0], left.shape[1], turned.shape[1]
    task.turned, task.own = &turned[0, first], &own[0, first]
    task.levels, task.K, task.width = codewords.shape[0], codewords.shape[1], codewords.shape[2]
    task.codes = &codes[0, 0] if task.levels else NULL
    task.codewords = &codewords[0, 0, first] if task.levels else NULL
    task.own_out, task.left, task.products = &own_out[0, 0], &left[0, 0], &products[0]
    with nogil:
        kernels.leave_block(&task)


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
    cdef uint32_t[::1] slots = np.empty(beam_out + extensions + 16, np.uint32)
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
    step.guess = NULL
    step.rows = NULL
    step.partial = NULL
    step.slots = &slots[0]
    step.scores = &scores[0]
    step.guesses = &guesses
    with nogil:
        kernels.encode_level(&step)
    count_guesses(&guesses)
