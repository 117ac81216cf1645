# cython: language_level=3, boundscheck=False, wraparound=False
# distutils: language = c++
"""faiss_dpq._rev_map: FAISS's map from ids to places, in an IndexIDMap2, changed one entry at a time.

FAISS can add to it or make it anew, which takes some 60 ns a vector; Python gets a copy of it. It is the
std::unordered_map that stands behind the vector `id_map`, whose address FAISS tells. `is_as_expected` has to be asked
of small maps first, which are read as far as they are as expected only.
"""

from cython.operator cimport dereference
from libc.stdint cimport int64_t, uintptr_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

ctypedef unordered_map[int64_t, int64_t] rev_map_type


cdef extern from *:
    """
    #include <cstdint>
    #include <unordered_map>
    #include <vector>
    // The last members of faiss::IndexIDMap2, as FAISS declares them.
    struct maps {
        std::vector<int64_t> id_map;
        std::unordered_map<int64_t, int64_t> rev_map;
    };
    """
    cdef cppclass maps:
        vector[int64_t] id_map
        rev_map_type rev_map


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
