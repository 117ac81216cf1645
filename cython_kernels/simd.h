/* The instruction set that the including file is compiled for: the header that DPQ_SIMD names.
 *
 * A simd_<set>.h defines the types and one-line functions on vectors that all *_impl.h are written in, and has the
 * compiler use the set from there on:
 *
 *     dpq_u8s      DPQ_QW bytes (32 or 64): as many queries, or vectors, as are looked at together
 *     dpq_f32s     DPQ_FW = 16 floats
 *     dpq_i32s     16 whole numbers
 *     dpq_i16s     16 pairs of 16-bit numbers
 *     dpq_u8x16    16 bytes
 *     dpq_u8g      32 bytes
 */
#ifndef DPQ_SIMD_H
#define DPQ_SIMD_H

#ifndef DPQ_SIMD
#define DPQ_SIMD "simd_generic.h"
#endif
#include DPQ_SIMD

/* To be written at the end of the compilation. */
#ifndef DPQ_SIMD_END
#define DPQ_SIMD_END
#endif

#endif
