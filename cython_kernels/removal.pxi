# Stored rows taken out, moved and overwritten, and the steps of a change that nothing of Python comes between.


def in_one_step(*calls):
    """Make calls, (function, *arguments), of functions of this module and of FAISS's extension module.

    Python handles signals between lines of Python only, so that no interrupt comes between these calls.
    """
    for function, *arguments in calls:
        function(*arguments)


cdef uint8_t *rows_of(cnp.ndarray array, size_t *width) except NULL:
    """The address of an array's rows, and how many bytes one takes."""
    width[0] = cnp.PyArray_STRIDE(array, 0)
    return <uint8_t *>cnp.PyArray_DATA(array)


def close_gaps(list arrays, const int64_t[::1] places):
    """Of the rows of arrays, take those at ascending places out: what is behind them moves up."""
    cdef size_t width, i, begin, end, to, m = places.shape[0], n
    cdef uint8_t *rows
    for array in arrays:
        rows, n = rows_of(array, &width), len(array)
        with nogil:
            to = places[0]
            for i in range(m):
                begin, end = places[i] + 1, places[i + 1] if i + 1 < m else n
                memmove(rows + to * width, rows + begin * width, (end - begin) * width)
                to += end - begin


def copy_rows(list arrays, const int64_t[::1] places, const int64_t[::1] sources):
    """In each of some arrays, overwrite the rows at `places` by those at `sources`."""
    cdef size_t width, i
    cdef uint8_t *rows
    for array in arrays:
        rows = rows_of(array, &width)
        for i in range(<size_t>places.shape[0]):
            memcpy(rows + <size_t>places[i] * width, rows + <size_t>sources[i] * width, width)


def write_rows(list arrays, const int64_t[::1] places, list values):
    """Overwrite the rows of arrays at some places by those of others of the same widths."""
    cdef size_t width, from_width, i
    cdef uint8_t *rows
    cdef uint8_t *new
    for array, value in zip(arrays, values):
        rows, new = rows_of(array, &width), rows_of(value, &from_width)
        for i in range(<size_t>places.shape[0]):
            memcpy(rows + <size_t>places[i] * width, new + i * from_width, width)
