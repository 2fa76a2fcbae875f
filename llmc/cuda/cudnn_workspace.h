// cudnn_workspace.h: the shape of an attention call by cuDNN (SdpaShape) and the device memory that it may use beyond
// its operands. Pure C, must not know CUDA or cuDNN: the plan of a run's memory uses it on machines without a GPU.
// Calls that would need more are divided into slices of the batch, or refused.
#ifndef LLMC_CUDA_CUDNN_WORKSPACE_H
#define LLMC_CUDA_CUDNN_WORKSPACE_H

#include "llmc/base/common.h"

// Attention over some sequences and heads. Rows of qkv are [row_NH query heads | row_NKV key heads | row_NKV value
// heads] x HS, in bf16; the call uses NH and NKV consecutive ones of them.
typedef struct {
    int64_t batch;   // sequences; with ragged: places for documents, each 0 to T tokens long
    int64_t T;       // tokens of a sequence; with ragged: of the longest document possible
    int64_t tokens;  // rows of qkv; without ragged batch * T
    int64_t NH, NKV, HS;
    int64_t row_NH, row_NKV;
    int64_t window;  // 0: no limit
    bool ragged;     // documents of different lengths are contiguous
    bool backward;
    // Backward: dQ is summed in a fixed order. Otherwise its parts are added in any order, which is faster, but the
    // last bits differ between runs.
    bool deterministic;
    // Method: the score gradients are stored, and dQ is a matrix product of them (Ampere, Hopper).
    bool stores_scores;
} SdpaShape;

// Most workspace of one call: enough to keep a large GPU busy. In deterministic mode 16 heads of a sequence of 4096
// tokens fit, otherwise 64 sequences of 1024 tokens with 12 heads of 64.
#ifndef CUDNN_WORKSPACE_LIMIT_BYTES  // a test sets a smaller limit
#define CUDNN_WORKSPACE_LIMIT_BYTES ((int64_t)640 << 20)
#endif
// Shorter sequences are mostly padding to cuDNN's tiles, in time and in workspace.
#define CUDNN_SHORTEST_T 64
#define CUDNN_TILE 128

// ---- the graph's own workspace tensors ----
// dQ summed in fp32 (laid out like qkv where documents are ragged).
static inline int64_t cudnn_dq_sum_bytes(SdpaShape s) {
    if (!s.backward || s.deterministic) return 0;
    return s.tokens * (s.ragged ? s.NH + 2 * s.NKV : s.NH) * s.HS * 4;
}
// One fp32 number a row and head, in the backward pass; ragged passes also keep the statistics in cuDNN's order.
static inline int64_t cudnn_row_bytes(SdpaShape s) { return s.tokens * s.NH * 4; }
// int32 lengths and three tables of int64 offsets.
static inline int64_t cudnn_table_bytes(SdpaShape s) {
    return s.ragged ? round_up(s.batch * 4, 256) + 3 * round_up((s.batch + 1) * 8, 256) : 0;
}

// Upper bound of the engines' own workspace (cuDNN 9.10 to 9.26, checked by tests/gpu/test_cudnn_graphs.sh).
static inline int64_t cudnn_engine_bytes(SdpaShape s) {
    int64_t bytes = ((int64_t)1 << 20) + s.batch * 1024, heads = s.batch * s.T * s.NH * s.HS;
    if (!s.backward) return bytes;
    if (s.deterministic && s.stores_scores) {
        int64_t padded = round_up(s.T, CUDNN_TILE);
        bytes += 2 * s.batch * s.NH * padded * padded;  // the score gradients in bf16
    }
    if (!s.ragged) bytes += heads * 4 * (s.NH > s.NKV ? 2 : 1);
    return bytes;
}
// The total.
static inline int64_t cudnn_workspace_bytes(SdpaShape s) {
    int64_t rows = ((s.backward ? 1 : 0) + (s.ragged ? 1 : 0)) * cudnn_row_bytes(s);
    return cudnn_engine_bytes(s) + cudnn_dq_sum_bytes(s) + rows + cudnn_table_bytes(s) + 8 * 256;
}

// The part of a call that one execution computes: as many whole sequences as divide the batch and are within the
// limit, else as many key/value heads, with their query heads, of one sequence. batch is 0 if even that is too much,
// or if slices of the statistics would not start on 16 bytes, as cuDNN requires.
static inline SdpaShape cudnn_slice(SdpaShape s) {
    SdpaShape slice = s;
    for (int64_t parts = 1; parts <= s.batch; ++parts) {
        if (s.batch % parts != 0 || (parts > 1 && s.T % 4 != 0)) continue;
        if (!s.ragged) slice.tokens = s.batch / parts * s.T;
        slice.batch = s.batch / parts;
        if (cudnn_workspace_bytes(slice) <= CUDNN_WORKSPACE_LIMIT_BYTES) return slice;
        if (s.ragged) break;
    }
    for (int64_t parts = 2; parts <= s.NKV && !s.ragged && s.T % 4 == 0; ++parts) {
        if (s.NKV % parts != 0) continue;
        slice.NH = s.NH / parts;
        slice.NKV = s.NKV / parts;
        if (cudnn_workspace_bytes(slice) <= CUDNN_WORKSPACE_LIMIT_BYTES) return slice;
    }
    slice.batch = 0;
    return slice;
}

// Places for the documents of B rows of T tokens: enough for a mean length of 128 tokens. Batches with more documents
// use the own kernel.
static inline int64_t cudnn_document_places(int64_t B, int64_t T) { return B * (T / 128 + 1); }

// The largest need of cuDNN attention within a run's bounds: rows of the largest batch, in sequences of up to seq_len
// tokens.
static inline int64_t cudnn_attention_plan_bytes(int64_t rows, int64_t seq_len, int64_t NH, int64_t NKV, int64_t HS) {
    int64_t T = max_i64(seq_len, CUDNN_SHORTEST_T), QKV = (NH + 2 * NKV) * HS;
    // Stored score gradients per row and head: (T padded)^2 / T, largest for the longest T or for the shortest.
    int64_t longest = T + CUDNN_TILE - 1, shortest = CUDNN_SHORTEST_T + CUDNN_TILE - 1;
    int64_t padded = max_i64(div_up(longest * longest, T), div_up(shortest * shortest, CUDNN_SHORTEST_T));
    int64_t stored = 2 * rows * NH * padded;
    int64_t heads = rows * NH * HS * 4 * 2, documents = rows * QKV * 4;
    int64_t places = rows / 128 + rows / CUDNN_SHORTEST_T + 2;
    int64_t rest = ((int64_t)2 << 20) + places * 2048 + 2 * rows * NH * 4;
    return min_i64(CUDNN_WORKSPACE_LIMIT_BYTES, max_i64(stored + heads, max_i64(heads * 3 / 2, documents)) + rest);
}

#endif
