// partials.h: sums over the rows of a matrix (parameter gradients), the same bits in every run and on every GPU: the
// rows are divided into at most CUDA_ROW_BLOCKS blocks, a number that depends on the shape alone; each block of threads
// sums its rows into its own partial row in scratch memory, and cuda_partials_sum adds the partial rows in order.
#ifndef LLMC_CUDA_PARTIALS_H
#define LLMC_CUDA_PARTIALS_H

#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/workspace.h"

// The number of blocks for `rows` rows if a block processes `rows_each` at a time.
static inline int64_t partials_blocks(int64_t rows, int64_t rows_each) {
    return min_i64(CUDA_ROW_BLOCKS, div_up(rows, rows_each));
}
// Block b of the grid has the rows [first_row(b), first_row(b + 1)).
static __device__ __forceinline__ int64_t partials_first_row(int64_t rows, unsigned block) {
    return rows * block / gridDim.x;
}
// a(a_width) and b(b_width) {=, += if accumulate} the sums of the columns of partials(blocks, a_width + b_width): the
// first a_width of them are a's. b may be NULL, with b_width 0. No blocks: the sum is 0. (In reduce.cu.)
void cuda_partials_sum(Backend *be, float *a, int64_t a_width, float *b, int64_t b_width, const float *partials,
                       int64_t blocks, bool accumulate);

#endif
