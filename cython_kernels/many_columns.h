/* Codes of many levels by columns, for the look-ups of one query.
 *
 *   columns  [block of DPQ_COLUMN vectors][byte of the code][DPQ_COLUMN]
 *
 * In every 64 bytes of a column, byte 2 i is of vector i and byte 2 i + 1 of vector 32 + i: so the even bytes of a
 * register, and the odd ones, are words in the order of vectors. The last block is filled up with zeros. Columns of all
 * levels serve searches of a prefix, too. */
#ifndef DPQ_MANY_COLUMNS_H
#define DPQ_MANY_COLUMNS_H

#include "scan_codes.h"

#define DPQ_COLUMN 256u

/* Where vector number i of a block is in a column. */
static inline size_t many_place(size_t i)
{
    return i / 64 * 64 + i % 32 * 2 + i % 64 / 32;
}

/* The first byte of the code of vector v; the others are DPQ_COLUMN apart. */
static inline const uint8_t *many_first_column(const dpq_database *db, size_t v)
{
    size_t at = db->column + v;
    return db->columns + at / DPQ_COLUMN * DPQ_COLUMN * db->column_bytes + many_place(at % DPQ_COLUMN);
}

/* Fills the blocks that hold n vectors from `first` on, a multiple of DPQ_COLUMN. */
static inline void many_fill_columns(const dpq_database *db, size_t first, size_t n, uint8_t *columns)
{
    size_t bytes = db->column_bytes;
    for (size_t start = first; start < first + n; start += DPQ_COLUMN) {
        uint8_t *to = columns + start * bytes;
        size_t some = dpq_min(DPQ_COLUMN, first + n - start);
        if (some < DPQ_COLUMN)
            memset(to, 0, DPQ_COLUMN * bytes);
        for (size_t i = 0; i < some; i++) {
            const uint8_t *row = dpq_row(db, start + i);
            size_t place = many_place(i);
            for (size_t b = 0; b < bytes; b++)
                to[b * DPQ_COLUMN + place] = row[b];
        }
    }
}

#endif
