# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: language = c++
"""faiss_dpq._rev_map: FAISS's hash tables, of which Python sees nothing or a copy.

In an IndexIDMap2 there is a map from ids to places. FAISS can add to it or make it anew, which takes some 60 ns a
vector; here single entries are changed. It is the std::unordered_map that stands behind the vector `id_map`, whose
address FAISS tells. `is_as_expected` has to be asked of small maps first, which are read as far as they are as expected
only. An IDSelectorBatch has its ids in a std::unordered_set; of small ones `batch_is_as_expected` is asked likewise.
"""

from cython.operator cimport dereference, preincrement
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libcpp.unordered_map cimport unordered_map
from libcpp.unordered_set cimport unordered_set
from libcpp.vector cimport vector

ctypedef unordered_map[int64_t, int64_t] rev_map_type


cdef extern from *:
    """
    #include <cstdint>
    #include <unordered_map>
    #include <unordered_set>
    #include <vector>
    // The last members of faiss::IndexIDMap2, as FAISS declares them.
    struct maps {
        std::vector<int64_t> id_map;
        std::unordered_map<int64_t, int64_t> rev_map;
    };
    // faiss::IDSelectorBatch, as FAISS declares it.
    struct batch {
        const void *functions;
        std::unordered_set<int64_t> ids;
        std::vector<uint8_t> bloom;
        int nbits;
        int64_t mask;
    };
    """
    cdef cppclass maps:
        vector[int64_t] id_map
        rev_map_type rev_map

    cdef cppclass batch:
        unordered_set[int64_t] ids
        vector[uint8_t] bloom
        int nbits
        int64_t mask


cdef rev_map_type *map_behind(size_t id_map) noexcept:
    return &(<maps *><uintptr_t>id_map).rev_map


def size(size_t id_map):
    """The number of ids in the map of an index whose `id_map` is at an address."""
    return map_behind(id_map).size()


def is_as_expected(size_t id_map):
    """Whether the map has as many ids as the vector, in buckets for as many, and finds them all."""
    cdef rev_map_type *map = map_behind(id_map)
    cdef vector[int64_t] *ids = &(<maps *><uintptr_t>id_map).id_map
    cdef size_t n = ids.size(), i
    if map.size() != n or not n <= map.bucket_count() <= 64 * n + 64 or map.max_load_factor() != 1:
        return False
    for i in range(n):
        if map.find(dereference(ids)[i]) == map.end():
            return False
    return True


def find(size_t id_map, const int64_t[::1] ids, int64_t[::1] out):
    """out[i] = the place of ids[i]; -1 where the map does not have it."""
    cdef rev_map_type *map = map_behind(id_map)
    cdef rev_map_type.iterator found
    cdef Py_ssize_t i
    for i in range(ids.shape[0]):
        found = map.find(ids[i])
        out[i] = -1 if found == map.end() else dereference(found).second


def remove(size_t id_map, const int64_t[::1] removed, const int64_t[::1] moved, const int64_t[::1] places):
    """Take ids out of the map, and give others, which it has, new places."""
    cdef rev_map_type *map = map_behind(id_map)
    cdef rev_map_type.iterator found
    cdef Py_ssize_t i
    for i in range(removed.shape[0]):
        map.erase(removed[i])
    for i in range(moved.shape[0]):
        found = map.find(moved[i])
        if found != map.end():
            dereference(found).second = places[i]


cdef batch *batch_at(size_t selector) noexcept:
    return <batch *><uintptr_t>selector


def batch_is_as_expected(size_t selector, size_t n, int nbits, int64_t mask):
    """Whether the faiss.IDSelectorBatch at an address has n ids, in buckets for as many, a bloom filter of 1 << nbits
    bits, and this mask of its bits."""
    cdef batch *found = batch_at(selector)
    if found.ids.size() != n or not n <= found.ids.bucket_count() <= 64 * n + 64 or found.ids.max_load_factor() != 1:
        return False
    return found.bloom.size() == <size_t>1 << nbits - 3 and found.nbits == nbits and found.mask == mask


def batch_size(size_t selector):
    """How many ids a faiss.IDSelectorBatch has."""
    return batch_at(selector).ids.size()


def batch_ids(size_t selector, int64_t[::1] out):
    """All of them, in any order."""
    cdef unordered_set[int64_t] *ids = &batch_at(selector).ids
    cdef unordered_set[int64_t].iterator at = ids.begin()
    cdef Py_ssize_t i = 0
    while at != ids.end():
        out[i] = dereference(at)
        preincrement(at)
        i += 1


cdef enum:
    ASKED = 1024  # ids at a time


def batch_bits(size_t selector, const int64_t[::1] ids, size_t n, uint64_t[::1] out):
    """Bit i of out = whether a faiss.IDSelectorBatch admits ids[i], or i < n where ids is None. out : zeros.

    The bloom filter is asked about some ids first, without a branch, so that memory is waited for once. FAISS asks it
    about one after the other, and what it says is hard to guess.
    """
    cdef batch *found = batch_at(selector)
    cdef const uint8_t *bloom = found.bloom.data()
    cdef size_t left[ASKED]
    cdef size_t chunk, n_left, i
    cdef int64_t id_
    with nogil:
        for chunk in range((n + ASKED - 1) // ASKED):
            n_left = 0
            for i in range(chunk * ASKED, min(chunk * ASKED + ASKED, n)):
                id_ = (ids[i] if ids is not None else <int64_t>i) & found.mask
                left[n_left] = i
                n_left += bloom[id_ >> 3] >> (id_ & 7) & 1
            for i in left[:n_left]:
                if found.ids.count(ids[i] if ids is not None else <int64_t>i):
                    out[i >> 6] |= <uint64_t>1 << (i & 63)
