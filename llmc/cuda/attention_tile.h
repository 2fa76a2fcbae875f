// attention_tile.h: what the attention kernels of attention_forward.cu and attention_backward.cu share: the problem,
// the sizes of tiles, moving tiles between global and shared memory, the two small matrix products, and the mask with
// the intervals that follow from it. Knows nothing of tensors.
//
// The products have one form of operands for both dtypes, that of mma.sync (ptx.h): a warp owns 16*M rows; of its sums
// [M][N8][4] a lane 4g + c holds rows 16m + g (elements 0, 1) and 16m + g + 8 (2, 3), columns 8n + 2c, 8n + 2c + 1. bf16
// runs on tensor cores, fp32 on ordinary fused multiply-adds (exact fp32, no TF32); softmax, mask and stores are the
// same code.
#ifndef LLMC_CUDA_ATTENTION_TILE_H
#define LLMC_CUDA_ATTENTION_TILE_H

#include "llmc/cuda/backend_cuda.h"
#include "llmc/cuda/ptx.h"

#define ATTENTION_LARGEST_HS 256
#define ATTENTION_LOG2E 1.4426950408889634f
#define ATTENTION_LN2 0.6931471805599453f

// One call. Query row i of batch row b is q + (b*queries + i)*q_stride and has position first + i; key j is
// k + (b*keys + j)*kv_stride; a head's columns start at head*HS. keys = first + queries. Strides are in elements.
typedef struct {
    DType dtype;
    const void *q, *k, *v;
    void *out;   // (B*queries, NH*HS)
    float *lse;  // (B,NH,queries); NULL: not wanted
    int64_t q_stride, kv_stride, out_stride;
    int B, NH, NKV, HS, queries, keys, first;
    float scale;
    int window;             // at most keys, which is no limit
    const int32_t *doc;     // (B,keys) or NULL
    const uint8_t *prefix;  // (B,keys) or NULL
    bool aligned;           // rows of all heads start on 16 bytes
    const int32_t *wanted;  // device memory: nothing is done where it holds 0; NULL: always done
    // backward
    const void *dout;
    float *dot;         // (B,NH,queries): rowsum(dout * out)
    void *dq, *dk, *dv;  // strides as q, k, v
} AttentionProblem;

// New rows of a cache of keys and values: `rows` rows of `width` elements, in qkv `stride` elements apart.
typedef struct {
    DType dtype;
    void *k_to, *v_to;
    const void *k, *v;
    int64_t rows, width, stride;
    bool aligned;
} AttentionAppend;

void attention_forward_run(Backend *be, const AttentionProblem *problem);
void attention_backward_run(Backend *be, const AttentionProblem *problem);
void attention_append_run(Backend *be, const AttentionAppend *append);
// One query row at a time; p.B = 1, a causal mask.
void attention_decode_run(Backend *be, const AttentionProblem *problem);

// Sizes for head sizes up to HSP, of which a kernel has one instance each: `M` sixteens of rows a warp keeps (more of
// them read the streamed operand less often from shared memory, whose bandwidth bounds mma.sync), how many keys or
// queries are streamed at a time. Chosen so that sums stay in registers, two blocks fit into an sm_80 where HSP <= 128
// (forward), and every kernel fits into the 99 KiB of sm_89.
template <class T, int HSP>
struct AttentionTile {
    static constexpr bool HALF = sizeof(T) == 2;
    static constexpr int WARPS = HALF || HSP < 256 ? 4 : 2;
    static constexpr int THREADS = WARPS * WARP;
    // Rows are 16 bytes apart from a multiple of 32: the eight rows of a matrix lie in different banks.
    static constexpr int STRIDE = HSP + PACK<T>;
    static constexpr int FORWARD_M = HALF && HSP <= 128 ? 2 : 1;
    static constexpr int FORWARD_KEYS = HALF ? (HSP <= 128 ? 64 : 32) : (HSP <= 128 ? 32 : 8);
    static constexpr int DQ_M = HALF && HSP <= 128 ? 2 : 1;
    static constexpr int DQ_KEYS = HALF ? (HSP <= 64 ? 64 : HSP <= 128 ? 32 : 16) : (HSP <= 64 ? 32 : HSP <= 128 ? 16 : 8);
    static constexpr int DKV_M = HALF && HSP <= 64 ? 2 : 1;
    static constexpr int DKV_QUERIES = HALF ? (HSP <= 128 ? 32 : 16) : (HSP <= 64 ? 32 : HSP <= 128 ? 16 : 8);
    // Blocks that share a tile of keys, each with its part of the head's columns of dK and dV.
    static constexpr int DKV_SPLITS = HSP <= 128 ? 1 : 2;
    // Of shared memory, where fp32 products pass their left operand; see tile_multiply_nn.
    static __host__ __device__ constexpr int passed_elems(int rows, int columns) { return HALF ? 0 : rows * (columns + 4); }
};

// run<T, HSP>(be, problem) with the smallest instance that holds the head.
#define ATTENTION_DISPATCH(run, be, problem)                                         \
    do {                                                                             \
        if ((problem)->dtype == DTYPE_BF16) ATTENTION_DISPATCH_SIZE(run, bf16, be, problem);  \
        else ATTENTION_DISPATCH_SIZE(run, float, be, problem);                       \
    } while (0)
#define ATTENTION_DISPATCH_SIZE(run, T, be, problem)           \
    do {                                                       \
        if ((problem)->HS <= 32) run<T, 32>(be, problem);      \
        else if ((problem)->HS <= 64) run<T, 64>(be, problem); \
        else if ((problem)->HS <= 96) run<T, 96>(be, problem); \
        else if ((problem)->HS <= 128) run<T, 128>(be, problem); \
        else run<T, 256>(be, problem);                         \
    } while (0)

static __device__ __forceinline__ bool attention_is_wanted(const int32_t *wanted) { return wanted == NULL || *wanted != 0; }

// ---- tiles in shared memory ----

// tile(ROWS, STRIDE) = `rows` rows of HS elements from `from` on; the rest of the ROWS x HSP tile is 0. Asynchronous:
// visible behind ptx_copy_wait and a barrier.
template <int ROWS, int HSP, int THREADS, class T>
__device__ __forceinline__ void tile_load(T *tile, const T *from, int64_t stride, int rows, int HS, bool aligned) {
    constexpr int STRIDE = HSP + PACK<T>, CHUNKS = HSP / PACK<T>;
    if (aligned) {
#pragma unroll
        for (int x = (int)threadIdx.x; x < ROWS * CHUNKS; x += THREADS) {
            int row = x / CHUNKS, column = x % CHUNKS * PACK<T>;
            bool valid = row < rows && column < HS;
            ptx_copy16(tile + row * STRIDE + column, valid ? from + row * stride + column : from, valid);
        }
    } else {
        for (int x = (int)threadIdx.x; x < ROWS * HSP; x += THREADS) {
            int row = x / HSP, column = x % HSP;
            tile[row * STRIDE + column] = row < rows && column < HS ? from[row * stride + column] : from_float<T>(0.0f);
        }
    }
}

// A warp's rows of `to` (16*M, as far as `rows`; `columns` wide) = sums * factor. `tile` are 16*M rows of shared memory
// that only this warp uses, to turn fragments into rows.
template <int STRIDE, int M, int N8, class T>
__device__ __forceinline__ void tile_store(T *to, int64_t stride, T *tile, const float (&sum)[M][N8][4],
                                           const float (&factor)[M][2], int rows, int columns, bool aligned) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper)
#pragma unroll
            for (int n = 0; n < N8; ++n) {
                Pack<T, 2> pair;
                for (int x = 0; x < 2; ++x) pair.v[x] = from_float<T>(sum[m][n][2 * upper + x] * factor[m][upper]);
                pack_store(tile + (16 * m + 8 * upper + g) * STRIDE + 8 * n + 2 * c, pair);
            }
    __syncwarp();
    if (aligned) {
        constexpr int CHUNKS = N8 * 8 / PACK<T>;
#pragma unroll
        for (int x = lane; x < 16 * M * CHUNKS; x += WARP) {
            int row = x / CHUNKS, column = x % CHUNKS * PACK<T>;
            if (row < rows && column < columns)
                pack_store(to + row * stride + column, pack_load<T, PACK<T>>(tile + row * STRIDE + column));
        }
    } else {
        for (int x = lane; x < 16 * M * N8 * 8; x += WARP) {
            int row = x / (N8 * 8), column = x % (N8 * 8);
            if (row < rows && column < columns) to[row * stride + column] = tile[row * STRIDE + column];
        }
    }
}

template <int M, int N8>
__device__ __forceinline__ void tile_zero(float (&sum)[M][N8][4]) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N8; ++n)
#pragma unroll
            for (int i = 0; i < 4; ++i) sum[m][n][i] = 0.0f;
}

// ---- products ----

// The left operand's columns k..k+15, for tensor cores.
template <int STRIDE, int M>
__device__ __forceinline__ void tile_left(uint32_t (&left)[M][4], const bf16 *a, int k) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int m = 0; m < M; ++m)
        ptx_ldmatrix<false>(left[m], a + (16 * m + lane % 16) * STRIDE + k + lane / 16 * 8);
}

// sum += left . b(8*N8, columns k..k+15)^T
template <int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_step_nt(float (&sum)[M][N8][4], const uint32_t (&left)[M][4], const bf16 *b, int k) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int n = 0; n < N8; n += 2) {
        uint32_t right[4];
        ptx_ldmatrix<false>(right, b + (8 * n + lane % 8 + lane / 16 * 8) * STRIDE + k + lane / 8 % 2 * 8);
#pragma unroll
        for (int m = 0; m < M; ++m) {
            ptx_mma(sum[m][n], left[m], right[0], right[1]);
            ptx_mma(sum[m][n + 1], left[m], right[2], right[3]);
        }
    }
}

// sum(16*M, 8*N8) += a(16*M, DEPTH) b(8*N8, DEPTH)^T, both in shared memory.
template <int DEPTH, int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_multiply_nt(float (&sum)[M][N8][4], const bf16 *a, const bf16 *b) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t left[M][4];
        tile_left<STRIDE>(left, a, k);
        tile_step_nt<STRIDE>(sum, left, b, k);
    }
}
template <int DEPTH, int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_multiply_nt(float (&sum)[M][N8][4], const float *a, const float *b) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
#pragma unroll 2
    for (int k = 0; k < DEPTH; k += 4) {
        Pack<float, 4> left[M][2];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int upper = 0; upper < 2; ++upper)
                left[m][upper] = pack_load<float, 4>(a + (16 * m + 8 * upper + g) * STRIDE + k);
#pragma unroll
        for (int n = 0; n < N8; ++n)
#pragma unroll
            for (int x = 0; x < 2; ++x) {
                Pack<float, 4> right = pack_load<float, 4>(b + (8 * n + 2 * c + x) * STRIDE + k);
#pragma unroll
                for (int m = 0; m < M; ++m)
#pragma unroll
                    for (int i = 0; i < 8; ++i)
                        sum[m][n][i / 4 * 2 + x] = fmaf(left[m][i / 4].v[i % 4], right.v[i % 4], sum[m][n][i / 4 * 2 + x]);
            }
    }
}

// sum(16*M, 8*H8) += p(16*M, 8*N8) b(8*N8, 8*H8): p in fragments, rounded to T, b in shared memory. fp32 passes p
// through `passed`, 16*M rows of 8*N8 + 4 elements that only this warp uses.
template <int STRIDE, int M, int N8, int H8>
__device__ __forceinline__ void tile_multiply_nn(float (&sum)[M][H8][4], const float (&p)[M][N8][4], const bf16 *b,
                                                 bf16 *) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < N8; k += 2) {
        // Sums' fragments of two neighbouring eights of columns are a left operand's of sixteen.
        uint32_t left[M][4];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i)
                left[m][i] = ptx_bf16_pair(p[m][k + i / 2][i % 2 * 2], p[m][k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
        for (int n = 0; n < H8; n += 2) {
            uint32_t right[4];
            ptx_ldmatrix<true>(right, b + (8 * k + lane % 16) * STRIDE + 8 * n + lane / 16 * 8);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                ptx_mma(sum[m][n], left[m], right[0], right[1]);
                ptx_mma(sum[m][n + 1], left[m], right[2], right[3]);
            }
        }
    }
}
template <int STRIDE, int M, int N8, int H8>
__device__ __forceinline__ void tile_multiply_nn(float (&sum)[M][H8][4], const float (&p)[M][N8][4], const float *b,
                                                 float *passed) {
    constexpr int WIDTH = 8 * N8 + 4;
    int lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int n = 0; n < N8; ++n)
#pragma unroll
            for (int upper = 0; upper < 2; ++upper)
                pack_store(passed + (16 * m + 8 * upper + g) * WIDTH + 8 * n + 2 * c,
                           Pack<float, 2>{{p[m][n][2 * upper], p[m][n][2 * upper + 1]}});
    __syncwarp();
    for (int k = 0; k < 8 * N8; k += 4) {
        Pack<float, 4> left[M][2];
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int upper = 0; upper < 2; ++upper)
                left[m][upper] = pack_load<float, 4>(passed + (16 * m + 8 * upper + g) * WIDTH + k);
#pragma unroll
        for (int x = 0; x < 4; ++x)
#pragma unroll
            for (int n = 0; n < H8; ++n) {
                Pack<float, 2> right = pack_load<float, 2>(b + (k + x) * STRIDE + 8 * n + 2 * c);
#pragma unroll
                for (int m = 0; m < M; ++m)
#pragma unroll
                    for (int i = 0; i < 4; ++i)
                        sum[m][n][i] = fmaf(left[m][i / 2].v[x], right.v[i % 2], sum[m][n][i]);
            }
    }
}

// ---- the mask of one batch row; queries are meant by their positions ----

typedef struct {
    const int32_t *doc;
    const uint8_t *prefix;
    int end;     // keys, and the position after the last query
    int window;  // at most end
} AttentionMask;

static __device__ __forceinline__ AttentionMask mask_of(const AttentionProblem &p, int b) {
    AttentionMask mask = {p.doc, p.prefix, p.keys, p.window};
    if (mask.doc != NULL) mask.doc += (int64_t)b * p.keys;
    if (mask.prefix != NULL) mask.prefix += (int64_t)b * p.keys;
    return mask;
}

// Tiles of keys (or queries) to visit lie in [begin, end); those within [full_begin, full_end) need no mask.
typedef struct {
    int begin, end, full_begin, full_end;
} AttentionRange;

// The first position whose document is at least `value`: 32 probes at a time, since document ids never decrease. For
// whole warps; every lane gets the result.
static __device__ __forceinline__ int mask_search(const AttentionMask &mask, int64_t value) {
    int lane = (int)threadIdx.x % WARP, low = 0, high = mask.end;
    while (low < high) {
        int step = (high - low + WARP - 1) / WARP, at = low + lane * step;
        int below = __popc(__ballot_sync(FULL_MASK, at < high && mask.doc[at] < value));
        if (below == 0) break;
        high = min(high, low + below * step);
        low += (below - 1) * step + 1;
    }
    return low;
}
static __device__ __forceinline__ int mask_doc_begin(const AttentionMask &mask, int position) {
    return mask.doc == NULL ? 0 : mask_search(mask, mask.doc[position]);
}
static __device__ __forceinline__ int mask_doc_end(const AttentionMask &mask, int position) {
    return mask.doc == NULL ? mask.end : mask_search(mask, (int64_t)mask.doc[position] + 1);
}

// The last flagged key of [begin, end), or begin - 1. For whole warps.
static __device__ __forceinline__ int mask_last_prefix(const AttentionMask &mask, int begin, int end) {
    int last = begin - 1;
    for (int j = begin + (int)threadIdx.x % WARP; j < end; j += WARP)
        if (mask.prefix[j]) last = j;
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        last = max(last, __shfl_xor_sync(FULL_MASK, last, distance));
    return last;
}
// The first one, or end.
static __device__ __forceinline__ int mask_first_prefix(const AttentionMask &mask, int begin, int end) {
    int first = end;
    for (int j = begin + (int)threadIdx.x % WARP; j < end; j += WARP)
        if (mask.prefix[j]) first = min(first, j);
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        first = min(first, __shfl_xor_sync(FULL_MASK, first, distance));
    return first;
}

// The keys that queries i0..i1-1 see.
static __device__ __forceinline__ AttentionRange mask_key_range(const AttentionMask &mask, int i0, int i1) {
    AttentionRange range;
    range.begin = max(mask_doc_begin(mask, i0), i0 - mask.window + 1);
    range.full_begin = max(mask_doc_begin(mask, i1 - 1), i1 - mask.window);
    range.full_end = i0 + 1;
    range.end = i1;
    if (mask.prefix != NULL) range.end = 1 + mask_last_prefix(mask, i1, mask_doc_end(mask, i1 - 1));
    return range;
}

// The queries that see keys j0..j1-1.
static __device__ __forceinline__ AttentionRange mask_query_range(const AttentionMask &mask, int j0, int j1) {
    AttentionRange range;
    range.begin = j0;
    if (mask.prefix != NULL) {
        int first = mask_first_prefix(mask, j0, j1);
        if (first < j1) range.begin = min(j0, mask_doc_begin(mask, first));
    }
    range.end = min(mask_doc_end(mask, j1 - 1), j1 - 1 + mask.window);
    range.full_begin = j1 - 1;
    range.full_end = min(mask_doc_end(mask, j0), j0 + mask.window);
    return range;
}

// Scores of forbidden pairs = -inf. Rows are queries and columns keys, or the other way (KEYS_DOWN); row0 and column0
// are this lane's first ones.
template <bool KEYS_DOWN, int M, int N8>
__device__ __forceinline__ void tile_mask(float (&scores)[M][N8][4], const AttentionMask &mask, int row0, int column0) {
    int row_doc[M][2];
    bool row_prefix[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            int row = min(row0 + 16 * m + 8 * upper, mask.end - 1);
            row_doc[m][upper] = mask.doc != NULL ? mask.doc[row] : 0;
            row_prefix[m][upper] = KEYS_DOWN && mask.prefix != NULL && mask.prefix[row];
        }
#pragma unroll
    for (int n = 0; n < N8; ++n)
#pragma unroll
        for (int x = 0; x < 2; ++x) {
            int column = column0 + 8 * n + x, held = min(column, mask.end - 1);
            int doc = mask.doc != NULL ? mask.doc[held] : 0;
            bool prefix = !KEYS_DOWN && mask.prefix != NULL && mask.prefix[held];
#pragma unroll
            for (int m = 0; m < M; ++m)
#pragma unroll
                for (int upper = 0; upper < 2; ++upper) {
                    int row = row0 + 16 * m + 8 * upper;
                    int i = KEYS_DOWN ? column : row, j = KEYS_DOWN ? row : column;
                    bool ahead = KEYS_DOWN ? row_prefix[m][upper] : prefix;
                    bool allowed = (i < mask.end) & (j < mask.end) & (doc == row_doc[m][upper]) & ((j <= i) | ahead) &
                                   (i - j < mask.window);
                    if (!allowed) scores[m][n][2 * upper + x] = -INFINITY;
                }
        }
}

#endif
