/* FRACTAL_NZ, the layout in which the matrix units of an NPU read weights.
 *
 * A matrix of H rows and W columns is cut into fractals of 16 rows and C0 columns; fractals
 * are stored column by column of fractals, each fractal row by row, and what sticks out is zero. C0
 * is 32 elements of one byte and 16 of every other size (four-byte elements are laid out like the
 * two-byte ones they are computed in). Leading dimensions are batches. So the storage of an odd
 * shape is larger than the tensor, and its bytes are permuted. */
#ifndef NETLOADER_ASCEND_SIM_FRACTALS_H
#define NETLOADER_ASCEND_SIM_FRACTALS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { FRACTAL_ROWS = 16 };

typedef struct fractals {
    size_t width; /* bytes of an element */
    int64_t batches;
    int64_t rows;
    int64_t columns;
    int64_t fractal_columns; /* C0 */
    int64_t down;
    int64_t across;
} fractals;

/* The aclDataTypes that CANN documents for a cast to FRACTAL_NZ: float, float16, int8, int32,
 * uint8, uint32, bfloat16. */
static inline int fractals_hold(int32_t type)
{
    return type == 0 || type == 1 || type == 2 || type == 3 || type == 4 || type == 8 || type == 27;
}

static inline fractals cut_into_fractals(const int64_t *sizes, uint64_t dimensions, size_t width)
{
    const int64_t *last = sizes + dimensions - 1;
    fractals cut = {.width = width, .batches = 1, .rows = last[-1], .columns = last[0]};
    for (uint64_t i = 0; i + 2 < dimensions; i++) {
        cut.batches *= sizes[i];
    }
    cut.fractal_columns = width == 1 ? 32 : 16;
    cut.down = (cut.rows + FRACTAL_ROWS - 1) / FRACTAL_ROWS;
    cut.across = (cut.columns + cut.fractal_columns - 1) / cut.fractal_columns;
    return cut;
}

static inline size_t fractal_bytes(const fractals *cut)
{
    return (size_t)(cut->batches * cut->across * cut->down * FRACTAL_ROWS * cut->fractal_columns) *
           cut->width;
}

/* Where an element is in the fractal layout. */
static inline size_t place_in_fractals(const fractals *cut, int64_t batch, int64_t row,
                                       int64_t column)
{
    int64_t fractal =
        (batch * cut->across + column / cut->fractal_columns) * cut->down + row / FRACTAL_ROWS;
    int64_t inside = row % FRACTAL_ROWS * cut->fractal_columns + column % cut->fractal_columns;
    return (size_t)(fractal * FRACTAL_ROWS * cut->fractal_columns + inside) * cut->width;
}

enum fractal_way { TO_FRACTALS, FROM_FRACTALS };

/* Row by row, in the runs that are contiguous in both layouts. */
static inline void permute_fractals(const fractals *cut, char *plain, char *stored,
                                    enum fractal_way way)
{
    if (way == TO_FRACTALS) {
        memset(stored, 0, fractal_bytes(cut));
    }
    for (int64_t line = 0; line < cut->batches * cut->rows; line++) {
        for (int64_t column = 0; column < cut->columns; column += cut->fractal_columns) {
            const int64_t left = cut->columns - column;
            const size_t run =
                (size_t)(left < cut->fractal_columns ? left : cut->fractal_columns) * cut->width;
            char *here = plain + (size_t)(line * cut->columns + column) * cut->width;
            char *there =
                stored + place_in_fractals(cut, line / cut->rows, line % cut->rows, column);
            if (way == TO_FRACTALS) {
                memcpy(there, here, run);
            } else {
                memcpy(here, there, run);
            }
        }
    }
}

#endif
