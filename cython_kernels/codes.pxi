# Codes as FAISS packs them: level l in bits l * nbits ... of the vector's bytes, lowest bit first.


cdef void unpack_code(const uint8_t *packed, size_t levels, size_t nbits, uint16_t *out) noexcept nogil:
    cdef size_t l, bit
    cdef uint32_t window
    if nbits == 8:
        for l in range(levels):
            out[l] = packed[l]
        return
    for l in range(levels):
        bit = l * nbits
        window = packed[bit >> 3]
        if (bit & 7) + nbits > 8:
            window |= <uint32_t>packed[(bit >> 3) + 1] << 8
        if (bit & 7) + nbits > 16:
            window |= <uint32_t>packed[(bit >> 3) + 2] << 16
        out[l] = <uint16_t>((window >> (bit & 7)) & ((1u << nbits) - 1))


def unpack_codes(const uint8_t[:, ::1] packed, size_t levels, size_t nbits):
    """The first `levels` codeword numbers of packed codes (n, code_size): uint16 (n, levels)."""
    cdef size_t n = packed.shape[0], v
    unpacked = np.empty((n, levels), np.uint16)
    cdef uint16_t[:, ::1] out = unpacked
    with nogil:
        for v in range(n):
            unpack_code(&packed[v, 0], levels, nbits, &out[v, 0])
    return unpacked


cdef void pack_code(const uint16_t *code, size_t levels, size_t nbits, uint8_t *out) noexcept nogil:
    cdef size_t l, bit
    cdef uint32_t shifted
    memset(out, 0, (levels * nbits + 7) // 8)
    for l in range(levels):
        bit = l * nbits
        shifted = <uint32_t>code[l] << (bit & 7)
        out[bit >> 3] |= <uint8_t>shifted
        if shifted >> 8:
            out[(bit >> 3) + 1] |= <uint8_t>(shifted >> 8)
        if shifted >> 16:
            out[(bit >> 3) + 2] |= <uint8_t>(shifted >> 16)


def pack_codes(const uint16_t[:, ::1] codes, size_t nbits):
    """Codeword numbers (n, M) as packed codes, uint8 (n, ceil(M * nbits / 8))."""
    cdef size_t n = codes.shape[0], M = codes.shape[1], v
    packed = np.empty((n, (M * nbits + 7) // 8), np.uint8)
    cdef uint8_t[:, ::1] out = packed
    with nogil:
        for v in range(n):
            pack_code(&codes[v, 0], M, nbits, &out[v, 0])
    return packed
