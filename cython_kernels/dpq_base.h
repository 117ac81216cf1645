/* Small helpers for all files of the kernels. */
#ifndef DPQ_BASE_H
#define DPQ_BASE_H

#include <stddef.h>
#include <stdint.h>

/* For functions that become fast only when the compiler knows some of their arguments, at each call, as constants. */
#define DPQ_INLINE static inline __attribute__((always_inline))

/* In front of a loop whose number of turns, 16 at most, is a constant once such a function is inlined. Compilers would
 * leave some of these as loops, and arrays of registers in memory. */
#if defined(__clang__)
#define DPQ_UNROLL _Pragma("clang loop unroll(full)")
#else
#define DPQ_UNROLL _Pragma("GCC unroll 16")
#endif

/* All that an unrolled loop addresses from a pointer is so far from it. Without this, gcc adds the pointer's own offset
 * to each of these distances, and keeps all sums, most of them in memory. */
#define DPQ_ONE_POINTER(pointer) __asm__("" : "+r"(pointer))

static inline size_t dpq_min(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Cuts `bytes` bytes from scratch memory at address *at, beginning at a cache line, and moves *at behind them. Cutting
 * from address 0 only computes a size; memory of any alignment needs DPQ_SLACK bytes more than that. */
#define DPQ_SLACK 63u

static inline void *dpq_take(uintptr_t *at, size_t bytes)
{
    uintptr_t taken = (*at + 63) & ~(uintptr_t)63;
    *at = taken + bytes;
    return (void *)taken;
}

#endif
