cdef extern from "dpq_order.h" nogil:
    enum:
        DPQ_ORDER_BLOCK
        DPQ_ORDER_MOST_KNOWN

    ctypedef struct dpq_order:
        size_t n
        uint32_t levels
        uint32_t known
        const uint8_t *numbers
        const uint32_t *starts
        const float *bucket_terms
        const float *block_terms
        const uint8_t *planes
        const float *terms
        const uint32_t *ids
        float term_magnitude

    void dpq_order_fill(const dpq_order *order, const uint8_t *codes, size_t code_size, const float *terms,
                        size_t first, size_t end, uint8_t *planes, float *ordered_terms)


cdef extern from "kernels.h" nogil:
    ctypedef struct dpq_database:
        const uint8_t *codes
        size_t n
        uint32_t code_size
        uint32_t nbits
        uint32_t levels
        const float *cross
        const float *terms
        const uint8_t *term_bins
        float term_min
        float term_step
        float radius
        const uint64_t *allowed
        const uint32_t *allowed_before
        const int64_t *ids
        size_t allowed_size
        const uint32_t *listed
        size_t n_listed
        int wide
        const uint8_t *columns
        size_t column, column_bytes
        const dpq_order *order

    ctypedef struct dpq_queries:
        const float *tables
        const float *norms
        const float *constants
        const float *table_errors
        int inner_product
        int in_any_order
        size_t nq

    ctypedef struct dpq_lists:
        const uint64_t *codes
        const uint64_t *bins
        const uint64_t *terms
        const uint64_t *allowed
        const uint8_t *bitmap
        size_t bitmap_size
        const uint64_t *ids
        const int64_t *admitted
        const int64_t *sizes
        const float *term_min
        const float *term_step
        const float *term_magnitude
        const float *radius
        const float *errors
        const float *centres
        size_t nlist
        size_t stride
        uint32_t code_size
        uint32_t nbits
        uint32_t levels

    ctypedef struct dpq_probes:
        dpq_queries queries
        size_t table_stride
        const float *vectors
        const int64_t *keys
        const int64_t *counts
        size_t nprobe

    ctypedef struct dpq_counters:
        uint64_t bounded
        uint64_t rescored
        uint64_t floated
        uint64_t ordered
        uint64_t together
        uint64_t threads

    ctypedef struct dpq_guesses:
        uint64_t enough
        uint64_t too_low

    ctypedef struct dpq_limit_guess:
        int known

    ctypedef struct dpq_encode_step:
        size_t n
        size_t K
        size_t level
        size_t beam_in
        size_t beam_out
        const float *tables
        size_t vector_stride
        size_t beam_stride
        const float *cross
        size_t code_stride
        const uint16_t *codes_in
        const float *scores_in
        const float *norms
        float prefix_weight
        const float *debts_in
        float *debts_out
        const float *directions
        const float *own_tables
        size_t own_stride
        const float *own_offsets
        const float *parallels_in
        float *parallels_out
        float *products
        uint16_t *codes_out
        float *scores_out
        uint32_t *parents_out
        const float **rows
        float *partial
        uint32_t *slots
        float *scores
        dpq_limit_guess *guess
        dpq_guesses *guesses

    ctypedef struct dpq_leave:
        size_t n
        size_t dims
        const float *turned
        const float *own
        size_t stride
        const uint16_t *codes
        const float *codewords
        size_t levels
        size_t K
        size_t width
        float *own_out
        float *left
        float *products

    ctypedef struct dpq_kernels:
        void (*linear)(
            const float *x, size_t n, size_t d, const float *panels, size_t n_panels,
            const float *bias, float scale, float *out, size_t ldo,
        ) noexcept nogil
        void (*linear_rounded)(
            const int16_t *x, const float *factors, size_t n, size_t pairs, const int16_t *panels, size_t n_panels,
            const float *bias, float scale, float *out, size_t ldo,
        ) noexcept nogil
        void (*round_vector)(const float *x, size_t d, float scale, int16_t *out) noexcept nogil
        void (*encode_level)(const dpq_encode_step *step) noexcept nogil
        void (*lengths_of_codes)(
            const uint16_t *codes, size_t n, size_t levels, const float *rows, const int64_t *places, size_t width,
            double *out,
        ) noexcept nogil
        void (*leave_block)(const dpq_leave *task) noexcept nogil
        size_t (*batch_scratch)(const dpq_database *db, size_t k) noexcept nogil
        void (*scan_batch)(
            const dpq_database *db, const dpq_queries *queries, size_t k, float *distances, uint32_t *ids,
            void *scratch, dpq_counters *counters,
        ) noexcept nogil
        size_t (*single_scratch)(size_t k, size_t n_threads) noexcept nogil
        void (*scan_single)(
            const dpq_database *db, const dpq_queries *queries, size_t k, size_t n_threads, float *distances,
            uint32_t *ids, void *scratch, dpq_counters *counters,
        ) noexcept nogil
        size_t (*lists_scratch)(const dpq_lists *lists, const dpq_probes *probes, size_t k) noexcept nogil
        void (*scan_lists)(
            const dpq_lists *lists, const dpq_probes *probes, size_t k, float *distances, uint32_t *positions,
            void *scratch, dpq_counters *counters,
        ) noexcept nogil
        void (*rescore_codes)(
            const dpq_database *db, const dpq_queries *queries, const int64_t *candidates, size_t n, size_t k,
            uint64_t *keys, float *distances, uint32_t *ids,
        ) noexcept nogil
        void (*rescore_lists)(
            const dpq_lists *lists, const dpq_probes *probes, const uint32_t *candidates, size_t n, size_t k,
            uint64_t *keys, float *distances, uint32_t *positions,
        ) noexcept nogil
        void (*mask_count)(const uint64_t *bits, size_t n, uint32_t *before) noexcept nogil
        size_t (*mask_of_ids)(
            const uint8_t *bitmap, size_t size, const int64_t *ids, size_t n, uint64_t *bits
        ) noexcept nogil
        size_t (*mask_of_range)(
            int64_t first, uint64_t span, const int64_t *ids, size_t n, uint64_t *bits
        ) noexcept nogil
        size_t (*mask_list)(const uint8_t *bitmap, size_t n, size_t most, uint32_t *vectors) noexcept nogil
        size_t most_ordered
        size_t batch_width
        size_t least_batch
        size_t least_batch_many

    const char *dpq_best_simd_level()
    const dpq_kernels *dpq_find_kernels(const char *name)

    enum:
        DPQ_LINEAR_DEPTH
        DPQ_ROUNDED_LENGTH

cdef enum:
    DPQ_PANEL = 16

PANEL = DPQ_PANEL
LINEAR_DEPTH = DPQ_LINEAR_DEPTH
ROUNDED_LENGTH = DPQ_ROUNDED_LENGTH

cdef const dpq_kernels *kernels = NULL
cdef str chosen_level = ""


def simd_level():
    """The instruction set that the kernels run: 'generic', 'avx2', 'avx512' or 'neon'."""
    return chosen_level


def batch_width():
    """Queries that the batch scan takes together."""
    return kernels.batch_width


def most_ordered():
    """Levels of codes that are faster to search by one query if they have an order."""
    return kernels.most_ordered


def least_batch(size_t levels):
    """Queries that are worth taking together, of codes of so many levels: fewer are scanned one by one."""
    return kernels.least_batch_many if levels > DPQ_FEW_LEVELS else kernels.least_batch


def set_simd_level(str name):
    """Run the kernels of instruction set `name`; not while other threads compute."""
    global kernels, chosen_level
    cdef const dpq_kernels *found = dpq_find_kernels(name.encode())
    if found == NULL:
        raise ValueError(
            f"FAISS_DPQ_SIMD: this processor or build has no instruction set {name!r}; "
            f"it has {', '.join(available_simd_levels())}"
        )
    kernels = found
    chosen_level = name


def available_simd_levels():
    """The instruction sets that this build holds and this processor runs."""
    return [name for name in ("generic", "neon", "avx2", "avx512") if dpq_find_kernels(name.encode()) != NULL]


set_simd_level(os.environ.get("FAISS_DPQ_SIMD") or dpq_best_simd_level().decode())


def aligned_empty(shape, dtype=np.float32):
    """numpy.empty whose data begins at a cache line: a vector load across two lines takes twice the time."""
    cdef Py_ssize_t size = np.dtype(dtype).itemsize, begin
    for n in shape if isinstance(shape, tuple) else (shape,):
        size *= n
    buffer = np.empty(size + 64, np.uint8)
    cdef uint8_t[::1] view = buffer
    begin = -<uintptr_t>&view[0] % 64
    return np.ndarray(shape, dtype, buffer, begin)
