// cudnn_workspace.h: what attention by cuDNN is asked for (SdpaShape) and how much device memory such a call may take
// beyond its operands. Pure C, knows neither CUDA nor cuDNN: the plan of a run's memory uses it where there is no
// GPU, and the calls keep to it: what would take more is cut into slices of the batch, or refused.
#ifndef LLMC_CUDA_CUDNN_WORKSPACE_H
#define LLMC_CUDA_CUDNN_WORKSPACE_H

#include "llmc/base/common.h"

// Attention over some sequences and heads. Rows of qkv are [row_NH query heads | row_NKV key heads | row_NKV value
// heads] x HS, in bf16, of which NH and NKV consecutive ones take part.
typedef struct {
    int64_t batch;   // sequences; with ragged: places for documents, each 0 to T tokens long
    int64_t T;       // tokens of a sequence; with ragged: of the longest document possible
    int64_t tokens;  // rows of qkv; without ragged batch * T
    int64_t NH, NKV, HS;
    int64_t row_NH, row_NKV;
    int64_t window;  // 0: no limit
    bool ragged;     // documents of different lengths lie one behind the other
    bool backward;
    // Backward: dQ is summed in a fixed order. Otherwise its parts are added as they come, which is faster and
    // differs in the last bits from run to run.
    bool deterministic;
    // How: the score gradients are stored, and dQ is a matrix product of them (Ampere, Hopper).
    bool stores_scores;
} SdpaShape;

// Everything that one call may take: enough to keep a large GPU busy. In deterministic mode 16 heads of a sequence of
// 4096 tokens fit, otherwise 64 sequences of 1024 tokens with 12 heads of 64.
#ifndef CUDNN_WORKSPACE_LIMIT_BYTES  // a test cuts finer
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

// At most what cuDNN's engines want for themselves (9.10 to 9.26, checked by tests/gpu/test_cudnn_graphs.sh).
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
// Everything together.
static inline int64_t cudnn_workspace_bytes(SdpaShape s) {
    int64_t rows = ((s.backward ? 1 : 0) + (s.ragged ? 1 : 0)) * cudnn_row_bytes(s);
    return cudnn_engine_bytes(s) + cudnn_dq_sum_bytes(s) + rows + cudnn_table_bytes(s) + 8 * 256;
}

// The part of a call that one execution takes: as many whole sequences as divide the batch and keep to the limit,
// else as many key/value heads, with their query heads, of one sequence. batch is 0 where even that is too much, or
// where slices of the statistics would not begin on the 16 bytes that cuDNN wants.
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

// Places for the documents of B rows of T tokens: as many as there are if they are 128 tokens long on average.
// Batches with more are left to the own kernel.
static inline int64_t cudnn_document_places(int64_t B, int64_t T) { return B * (T / 128 + 1); }

// The most that attention by cuDNN asks for within a run's bounds: rows of the largest batch, in sequences of up to
// seq_len tokens.
static inline int64_t cudnn_attention_plan_bytes(int64_t rows, int64_t seq_len, int64_t NH, int64_t NKV, int64_t HS) {
    int64_t T = max_i64(seq_len, CUDNN_SHORTEST_T), QKV = (NH + 2 * NKV) * HS;
    // Stored score gradients a row and head: (T padded)^2 / T, most for the longest T or for the shortest.
    int64_t longest = T + CUDNN_TILE - 1, shortest = CUDNN_SHORTEST_T + CUDNN_TILE - 1;
    int64_t padded = max_i64(div_up(longest * longest, T), div_up(shortest * shortest, CUDNN_SHORTEST_T));
    int64_t stored = 2 * rows * NH * padded;
    int64_t heads = rows * NH * HS * 4 * 2, documents = rows * QKV * 4;
    int64_t places = rows / 128 + rows / CUDNN_SHORTEST_T + 2;
    int64_t rest = ((int64_t)2 << 20) + places * 2048 + 2 * rows * NH * 4;
    return min_i64(CUDNN_WORKSPACE_LIMIT_BYTES, max_i64(stored + heads, max_i64(heads * 3 / 2, documents)) + rest);
}

#endif
