# A hash table from ids to numbers.

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void *address) noexcept nogil

cdef enum:
    LEAST_SLOTS = 16
    AHEAD = 16  # ids whose slots are fetched before they are needed


cdef class IdTable:
    """Numbers (int64, not negative) of ids: open addressing, linear probing, at most five eighths full.

    repeated : whether some id was entered twice; the table then has the first number.
    """

    cdef int64_t[:, ::1] slots  # id and number; a number of -1: the slot is free
    cdef size_t n, shift
    cdef readonly bint repeated

    def __init__(self, size_t n=0):
        self.make(n)

    cdef int make(self, size_t n) except -1:
        """An empty table with room for n ids."""
        cdef size_t slots = LEAST_SLOTS
        self.shift = 60
        while 5 * slots < 8 * n:
            slots *= 2
            self.shift -= 1
        self.slots = np.full((slots, 2), -1, np.int64)
        self.n = 0
        self.repeated = False
        return 0

    @property
    def nbytes(self):
        """Memory held, in bytes."""
        return self.slots.nbytes

    cdef size_t home(self, int64_t id) noexcept nogil:
        return <size_t>((<uint64_t>id * <uint64_t>0x9E3779B97F4A7C15) >> self.shift)

    cdef size_t slot(self, int64_t id) noexcept nogil:
        """Where an id stands, or the free slot where it would."""
        cdef size_t at = self.home(id), mask = <size_t>self.slots.shape[0] - 1
        while self.slots[at, 1] >= 0 and self.slots[at, 0] != id:
            at = (at + 1) & mask
        return at

    cdef int64_t find(self, int64_t id) noexcept nogil:
        return self.slots[self.slot(id), 1]

    cdef int reserve(self, size_t more) except -1:
        """Make room for further ids."""
        cdef int64_t[:, ::1] slots = self.slots
        cdef bint repeated = self.repeated
        cdef size_t i
        if 8 * (self.n + more) <= 5 * <size_t>slots.shape[0]:
            return 0
        self.make(self.n + more + self.n // 2)
        for i in range(<size_t>slots.shape[0]):
            if slots[i, 1] >= 0:
                self.enter(slots[i, 0], slots[i, 1])
        self.repeated = repeated
        return 0

    cdef void enter(self, int64_t id, int64_t number) noexcept nogil:
        """Add an id, for which there is room."""
        cdef size_t at = self.slot(id)
        if self.slots[at, 1] >= 0:
            self.repeated = True
            return
        self.slots[at, 0], self.slots[at, 1] = id, number
        self.n += 1

    cdef void enter_all(self, const int64_t *ids, size_t n, int64_t number, int64_t step) noexcept nogil:
        """Add ids, for which there is room, with the numbers `number`, number + step, ..."""
        cdef size_t i
        for i in range(n):
            if i + AHEAD < n:
                prefetch(&self.slots[self.home(ids[i + AHEAD]), 0])
            self.enter(ids[i], number + <int64_t>i * step)

    cdef void change(self, int64_t id, int64_t number) noexcept nogil:
        """Give an id that is there another number."""
        cdef size_t at = self.slot(id)
        if self.slots[at, 1] >= 0:
            self.slots[at, 1] = number

    cdef void take_out(self, int64_t id) noexcept nogil:
        cdef size_t mask = <size_t>self.slots.shape[0] - 1, hole = self.slot(id), at
        if self.slots[hole, 1] < 0:
            return
        self.n -= 1
        at = hole
        while True:  # those behind move up, as far as their homes allow
            at = (at + 1) & mask
            if self.slots[at, 1] < 0:
                break
            if ((at - self.home(self.slots[at, 0])) & mask) >= ((at - hole) & mask):
                self.slots[hole, 0], self.slots[hole, 1] = self.slots[at, 0], self.slots[at, 1]
                hole = at
        self.slots[hole, 1] = -1

    def add(self, const int64_t[::1] ids, size_t first):
        """Enter ids with the numbers `first`, first + 1, ..."""
        self.reserve(ids.shape[0])
        with nogil:
            self.enter_all(&ids[0], ids.shape[0], first, 1)

    def numbers_of(self, const int64_t[::1] ids, int64_t[::1] out):
        """out[i] = the number of ids[i]; -1 where there is none."""
        cdef size_t i
        with nogil:
            for i in range(<size_t>ids.shape[0]):
                out[i] = self.find(ids[i])

    def remove(self, const int64_t[::1] removed, const int64_t[::1] moved, const int64_t[::1] numbers):
        """Take ids out, and give others, which are there, new numbers."""
        cdef size_t i
        with nogil:
            for i in range(<size_t>removed.shape[0]):
                self.take_out(removed[i])
            for i in range(<size_t>moved.shape[0]):
                self.change(moved[i], numbers[i])
