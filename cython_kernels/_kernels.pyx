# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled kernels of faiss_dpq: tables, encode, scan. cython_kernels/README.md explains them.

Private: arguments are checked by the Python callers, which also decide blocks and threads. Everything here releases
the GIL while it computes and keeps no state but the chosen instruction set, the threads of threads.c and the counters.
"""

import os

import numpy as np

cimport numpy as cnp
from libc.float cimport FLT_MAX
from libc.math cimport INFINITY, sqrt
from libc.stdint cimport SIZE_MAX, UINT32_MAX, int16_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove, memset

cnp.import_array()

include "simd.pxi"
include "counters.pxi"
include "tables.pxi"
include "codes.pxi"
include "encode.pxi"
include "memory.pxi"
include "order.pxi"
include "masks.pxi"
include "view.pxi"
include "queries.pxi"
include "scan.pxi"
include "lists_memory.pxi"
include "lists_growth.pxi"
include "lists_masks.pxi"
include "centres.pxi"
include "lists.pxi"
include "lists_one.pxi"
include "addition.pxi"
include "id_table.pxi"
include "removal.pxi"
include "lists_removal.pxi"
include "training.pxi"
