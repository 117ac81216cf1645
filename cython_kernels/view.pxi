# Views: stored codes, and what the scans need to know of them.

cdef extern from "scan_derived.h" nogil:
    void dpq_term_range(const dpq_database *db, size_t first, size_t n, float *low, float *high)
    void dpq_term_grid(dpq_database *db, float low, float high)
    void dpq_term_bins(const dpq_database *db, size_t first, size_t n, uint8_t *bins)
    float dpq_radius(
        const dpq_database *db, const float *cross, const float *codeword_norms, float error, size_t first, size_t n
    )


cdef extern from "many_columns.h" nogil:
    enum:
        DPQ_COLUMN
        DPQ_FEW_LEVELS
    void many_fill_columns(const dpq_database *db, size_t first, size_t n, uint8_t *columns)

COLUMN = DPQ_COLUMN
FEW_LEVELS = DPQ_FEW_LEVELS


cdef class CodeView:
    """Packed codes (n, code_size) at one prefix length. It keeps the arrays that it is made of, but changes nothing.

    cross : (pairs, K, K), the tables of cross terms; None where there are none to look up.
    terms : (n,), the cross terms themselves; None where they are looked up in `cross`, or do not count.
    bins : (n,), of the terms; None where terms do not count (inner product, one level), or sums are wide.
    term_min, term_step : the first edge and the width of the 256 bins; of wide sums, of the grid of terms.
    radius : no reconstruction is farther from the centre; not read where sums are wide.
    columns : from `fill_columns`, whose vector number `column` is the view's first; None where there are none.
    wide : whether sums of 16 bits bound the codes; always where levels are many.
    column_bytes : of a code, that the columns hold; 0: those of the levels.
    order : a CodeOrder of the first of the codes; None where there is none.
    """

    cdef dpq_database db
    cdef readonly object packed, terms, bins, columns
    cdef readonly CodeOrder order
    cdef object cross, mask

    def __init__(self, const uint8_t[:, ::1] packed, size_t nbits, size_t levels, const float[:, :, ::1] cross,
                 const float[::1] terms=None, const uint8_t[::1] bins=None, float term_min=0, float term_step=0,
                 float radius=0, const uint8_t[::1] columns=None, size_t column=0, bint wide=False,
                 size_t column_bytes=0):
        self.packed, self.cross, self.terms, self.bins = (
            packed.base, cross, None if terms is None else terms.base, None if bins is None else bins.base
        )
        self.columns = None if columns is None else columns.base
        memset(&self.db, 0, sizeof(self.db))
        self.db.codes = &packed[0, 0]
        self.db.n = packed.shape[0]
        self.db.code_size = packed.shape[1]
        self.db.nbits = nbits
        self.db.levels = levels
        self.db.cross = &cross[0, 0, 0] if cross is not None and cross.shape[0] else NULL
        self.db.terms = &terms[0] if terms is not None else NULL
        self.db.term_bins = &bins[0] if bins is not None else NULL
        self.db.term_min = term_min
        self.db.term_step = term_step
        self.db.radius = radius
        self.db.columns = &columns[0] if columns is not None else NULL
        self.db.column = column
        self.db.wide = wide or levels > DPQ_FEW_LEVELS
        self.db.column_bytes = column_bytes or (levels * nbits + 7) // 8

    def __len__(self):
        return self.db.n

    @property
    def levels(self):
        """The prefix length."""
        return self.db.levels

    @property
    def term_min(self):
        """The first edge of the bins."""
        return self.db.term_min

    @property
    def term_step(self):
        """The bins' width."""
        return self.db.term_step

    @property
    def radius(self):
        """No reconstruction is farther from the centre."""
        return self.db.radius

    cpdef CodeView of(self, packed, terms, bins, columns=None, size_t begin=0):
        """A view of other codes, with the same grid and radius."""
        return CodeView(packed, self.db.nbits, self.db.levels, self.cross, terms, bins, self.db.term_min,
                        self.db.term_step, self.db.radius, columns, self.db.column + begin, self.db.wide,
                        self.db.column_bytes)

    def part(self, size_t begin, size_t end):
        """The codes begin ... end - 1; where the view is masked, multiples of MASK_CHUNK, but for the end of all."""
        cdef CodeView part = self.of(
            self.packed[begin:end],
            None if self.terms is None else self.terms[begin:end],
            None if self.bins is None else self.bins[begin:end],
            self.columns,
            begin,
        )
        if self.db.allowed:
            part.mask, part.db.allowed = self.mask, self.db.allowed + begin // 64
            part.db.allowed_before = self.db.allowed_before + begin // DPQ_MASK_CHUNK
        return part

    def taken(self, ids):
        """Copies of the codes at some places, one after the other."""
        return self.of(
            self.packed[ids],
            None if self.terms is None else self.terms[ids],
            None if self.bins is None else self.bins[ids],
        )

    def masked(self, Mask mask):
        """The same codes, of which only those take part that a mask of as many vectors admits."""
        cdef CodeView masked = self.with_order(self.order)
        masked.mask = mask
        mask.apply(&masked.db)
        return masked

    def with_columns(self, columns):
        """The same codes with their columns."""
        return self.of(self.packed, self.terms, self.bins, columns)

    def with_columns_of(self, CodeView longer):
        """The same codes to be bounded by wide sums, with the columns of a view of them at more levels."""
        cdef float step = self.db.term_step
        if self.bins is not None:
            step /= 256  # the grid has so many times as many steps
        return CodeView(self.packed, self.db.nbits, self.db.levels, None, self.terms, None, self.db.term_min, step,
                        columns=longer.columns, wide=True, column_bytes=longer.db.column_bytes)

    def with_order(self, CodeOrder order):
        """The same codes with their order, or without one."""
        cdef CodeView ordered = self.of(self.packed, self.terms, self.bins, self.columns)
        ordered.order, ordered.db.order = order, NULL if order is None else &order.order
        return ordered


def column_bytes(CodeView view):
    """Size of the columns of some codes."""
    return -(-view.db.n // DPQ_COLUMN) * DPQ_COLUMN * view.db.column_bytes


def fill_columns(CodeView view, size_t begin, size_t end, uint8_t[::1] out):
    """Write those columns of a view's codes that have vectors begin ... end - 1; begin is a multiple of COLUMN."""
    if begin < end:
        with nogil:
            many_fill_columns(&view.db, begin, end - begin, &out[0])


def term_range(CodeView view):
    """The least and the greatest term of some codes."""
    cdef float low = INFINITY, high = -INFINITY
    with nogil:
        dpq_term_range(&view.db, 0, view.db.n, &low, &high)
    return low, high


def term_grid(float low, float high):
    """The first edge and the width of 256 bins that cover [low, high]."""
    cdef dpq_database db
    dpq_term_grid(&db, low, high)
    return db.term_min, db.term_step


def term_bins(CodeView view, uint8_t[::1] out):
    """out[i] = the bin of the term of code i, whose edges enclose it."""
    with nogil:
        dpq_term_bins(&view.db, 0, view.db.n, &out[0])


def radius(CodeView view, const float[::1] codeword_norms, float error):
    """A bound, rounded up, on the norms of the reconstructions; error: of a squared norm computed from the tables."""
    cdef float largest
    with nogil:
        largest = dpq_radius(&view.db, view.db.cross, &codeword_norms[0], error, 0, view.db.n)
    return largest
