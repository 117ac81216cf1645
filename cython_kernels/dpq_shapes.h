/* The shapes of codes, (bits a level, levels), for which the compiler makes code of its own.
 *
 * A scan's inner loop runs over the levels of a code. With the shape as constants the compiler unrolls it and computes
 * addresses beforehand: with variables, rescoring a hit took twice the time. Every other shape works too, by variables.
 * A shape added here serves all scans.
 */
#ifndef DPQ_SHAPES_H
#define DPQ_SHAPES_H

/* Fewer levels come first among shapes of the same number of bits: lookups_impl.h relies on that. */
#define DPQ_SHAPES(X, ...)                                                  \
    X(8, 2, __VA_ARGS__) X(8, 4, __VA_ARGS__) X(8, 8, __VA_ARGS__)          \
    X(8, 16, __VA_ARGS__) X(4, 8, __VA_ARGS__) X(4, 16, __VA_ARGS__)

#define DPQ_SHAPE_CASE(NBITS, LEVELS, function, nbits, levels, ...) \
    (nbits) == NBITS && (levels) == LEVELS ? function(NBITS, LEVELS, __VA_ARGS__) :

/* The value of function(nbits, levels, ...), with constants for nbits and levels where the list has them, or for nbits
 * alone where it is 8 or 4. The function has to be DPQ_INLINE. */
#define DPQ_BY_SHAPE(function, nbits, levels, ...)                                       \
    (DPQ_SHAPES(DPQ_SHAPE_CASE, function, nbits, levels, __VA_ARGS__)                    \
     (nbits) == 8   ? function(8, levels, __VA_ARGS__)                                   \
     : (nbits) == 4 ? function(4, levels, __VA_ARGS__)                                   \
                    : function(nbits, levels, __VA_ARGS__))

#endif
