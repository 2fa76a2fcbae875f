// workspace.h: upper bounds of the scratch memory (cuda_scratch) of each file of the CUDA backend, as plain
// arithmetic on the bounds of a run, so that a plan can be made without a GPU. A run that exceeds its plan aborts.
// Must not know CUDA.
#ifndef LLMC_CUDA_WORKSPACE_H
#define LLMC_CUDA_WORKSPACE_H

#include "llmc/backend/backend.h"

// Column sums and similar sums have two stages over a fixed number of row blocks on every GPU: the order of the sum,
// hence its bits, depends on the shape alone.
#define CUDA_ROW_BLOCKS 256

// cuBLASLt's recommendation for Hopper and Blackwell; other GPUs need less.
#define WORKSPACE_MATMUL_BYTES ((size_t)32 << 20)
// An fp8 product whose rounded inputs have `elems` elements together: inputs, scales, and the library's workspace.
static inline size_t workspace_fp8_bytes(int64_t elems) { return to_size(elems) + 3 * 256 + WORKSPACE_MATMUL_BYTES; }

// optim.cu: partial sums of squares, in double, of the whole gradient and of each of Muon's matrices: a block for
// every SUM_BLOCK_ELEMS elements, up to these numbers.
#define CUDA_NORM_BLOCKS 1024
#define CUDA_MATRIX_BLOCKS 256
#define SUM_BLOCK_ELEMS 8192

static inline size_t workspace_max(size_t a, size_t b) { return a > b ? a : b; }

// Attention's backward pass by the own kernels: rowsum(dout * out), fp32 (B,NH,T).
static inline size_t workspace_attention_bytes(int64_t rows, int64_t NH) { return to_size(rows * NH) * sizeof(float); }

// embedding.cu, backward: two arrays of N sort keys, and a row of C sums for each tile of the sorted rows.
#define EMBEDDING_TILE 64
static inline size_t workspace_embedding_keys_bytes(int64_t N) {
    return to_size(round_up(N, 32)) * sizeof(uint64_t);
}
static inline size_t workspace_embedding_bytes(int64_t N, int64_t C) {
    return 2 * workspace_embedding_keys_bytes(N) + to_size(div_up(N, EMBEDDING_TILE) * C) * sizeof(float);
}

#endif
