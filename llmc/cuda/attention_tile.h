// attention_tile.h: shared by the kernels of attention_forward.cu and attention_backward.cu: the problem, tile sizes,
// moving tiles between global and shared memory, the two small matrix products, and the mask with the intervals that
// follow from it. Must not know tensors.
//
// The products have one form of operands for both dtypes, that of mma.sync (ptx.h): a warp owns 16*M rows; of its
// sums [M][N8][4] a lane 4g + c holds rows 16m + g (elements 0, 1) and 16m + g + 8 (2, 3), columns 8n + 2c, 8n + 2c
// + 1. bf16 runs on tensor cores, fp32 on ordinary fused multiply-adds (exact fp32, no TF32); softmax, mask and
// stores are the same code.
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
    float *lse;  // (B,NH,queries); NULL: not written
    int q_stride, kv_stride, out_stride;
    int B, NH, NKV, HS, queries, keys, first;
    int group;  // NH / NKV
    float scale;
    int window;             // at most keys, which is no limit
    const int32_t *doc;     // (B,keys) or NULL
    const uint8_t *prefix;  // (B,keys) or NULL
    bool aligned;           // rows of all heads start on 16 bytes
    const int32_t *wanted;  // device memory: the kernels do nothing if it holds 0; NULL: always run
    // backward
    const void *dout;
    float *dot;          // (B,NH,queries): rowsum(dout * out)
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

// Sizes for head sizes up to HSP, one kernel instance each: a warp keeps 16*`M` rows (more rows read the streamed
// operand less often from shared memory, whose bandwidth bounds mma.sync), and the number of keys or queries streamed
// at a time. Chosen so that sums stay in registers, two blocks fit into an sm_80 if HSP <= 128 (forward), and every
// kernel fits into the 99 KiB of sm_89.
template <class T, int HSP>
struct AttentionTile {
    static constexpr bool HALF = sizeof(T) == 2;
    static constexpr int WARPS = HALF || HSP < 256 ? 4 : 2;
    static constexpr int THREADS = WARPS * WARP;
    // Rows are 16 bytes apart from a multiple of 32: the eight rows of a matrix are in different banks.
    static constexpr int STRIDE = HSP + PACK<T>;
    static constexpr int FORWARD_M = HALF && HSP <= 128 ? 2 : 1;
    static constexpr int FORWARD_KEYS = HALF ? (HSP <= 96 ? 64 : 32) : (HSP <= 128 ? 32 : 8);
    static constexpr int DQ_M = HALF && HSP <= 128 ? 2 : 1;
    static constexpr int DQ_KEYS = (HALF ? 2 : 1) * (HSP <= 64 ? 32 : HSP <= 128 ? 16 : 8);
    static constexpr int DKV_M = HALF && HSP <= 64 ? 2 : 1;
    static constexpr int DKV_QUERIES = HALF ? (HSP <= 128 ? 32 : 16) : (HSP <= 64 ? 32 : HSP <= 128 ? 16 : 8);
    // Blocks that share a tile of keys, each with its part of the head's columns of dK and dV.
    static constexpr int DKV_SPLITS = HSP <= 128 ? 1 : 2;
    // Shared memory for the left operand of fp32 products; see tile_multiply_nn.
    static __host__ __device__ constexpr int passed_elems(int rows, int columns) {
        return HALF ? 0 : rows * (columns + 4);
    }
};

// run<T, HSP>(be, problem) with the smallest instance that holds the head. fp32 is for checking: it has fewer.
#define ATTENTION_DISPATCH(run, be, problem)                            \
    do {                                                                \
        bool half_size = (problem)->dtype == DTYPE_BF16;                \
        int size = (problem)->HS;                                       \
        if (half_size && size <= 64) run<bf16, 64>(be, problem);        \
        else if (half_size && size <= 96) run<bf16, 96>(be, problem);   \
        else if (half_size && size <= 128) run<bf16, 128>(be, problem); \
        else if (half_size) run<bf16, 256>(be, problem);                \
        else if (size <= 64) run<float, 64>(be, problem);               \
        else if (size <= 128) run<float, 128>(be, problem);             \
        else run<float, 256>(be, problem);                              \
    } while (0)

// Element (row, column) of a matrix.
template <class T>
__device__ __forceinline__ T *matrix_at(const void *matrix, int row, int stride, int column) {
    return (T *)matrix + ((int64_t)row * stride + column);
}
static __device__ __forceinline__ bool attention_is_wanted(const int32_t *wanted) {
    return wanted == NULL || *wanted != 0;
}

// ---- tiles in shared memory ----

// Heads whose rows do not start on 16 bytes are copied element by element. Rare: not unrolled, to use few registers.
template <int STRIDE, class T>
__device__ __forceinline__ void tile_load_elements(T *tile, const T *from, int stride, int tile_rows, int rows,
                                                   int HS) {
    constexpr int HSP = STRIDE - PACK<T>;
#pragma unroll 1
    for (int x = (int)threadIdx.x; x < tile_rows * HSP; x += (int)blockDim.x) {
        int row = x / HSP, column = x % HSP;
        tile[row * STRIDE + column] =
            row < rows && column < HS ? from[(int64_t)row * stride + column] : from_float<T>(0.0f);
    }
}
template <int STRIDE, class T>
__device__ __forceinline__ void tile_store_elements(T *to, int stride, const T *tile, int tile_rows, int tile_columns,
                                                    int rows, int columns) {
#pragma unroll 1
    for (int x = (int)threadIdx.x % WARP; x < tile_rows * tile_columns; x += WARP) {
        int row = x / tile_columns, column = x % tile_columns;
        if (row < rows && column < columns) to[(int64_t)row * stride + column] = tile[row * STRIDE + column];
    }
}

// tile(ROWS, STRIDE) = `rows` rows of HS elements starting at `from`; the rest of the ROWS x HSP tile is 0.
// Asynchronous: visible after ptx_copy_wait and a barrier. A thread copies one column of 16 bytes. Not unrolled: the
// compiler would keep an offset for each row in registers, which the sums need.
template <int ROWS, int HSP, int THREADS, class T>
__device__ __forceinline__ void tile_load(T *tile, const T *from, int stride, int rows, int HS, bool aligned) {
    constexpr int STRIDE = HSP + PACK<T>, CHUNKS = HSP / PACK<T>;
    constexpr int LANES = CHUNKS <= 8 ? 8 : CHUNKS <= 16 ? 16 : CHUNKS <= 32 ? 32 : 64, STEP = THREADS / LANES;
    static_assert(ROWS % STEP == 0, "every thread copies as many rows");
    if (!aligned) {
        tile_load_elements<STRIDE>(tile, from, stride, ROWS, rows, HS);
        return;
    }
    int row = (int)threadIdx.x / LANES, column = (int)threadIdx.x % LANES * PACK<T>;
    if (CHUNKS < LANES && column >= HSP) return;
    const T *next = from + (int64_t)row * stride + column;
    T *to = tile + row * STRIDE + column;
    if (column >= HS) rows = 0;
#pragma unroll 1
    for (int r = 0; r < ROWS; r += STEP, next += (int64_t)STEP * stride)
        ptx_copy16(to + r * STRIDE, next, row + r < rows);
}

// A warp's rows of `to` (16*M, at most `rows`; `columns` wide) = sums * factor. `tile` is 16*M rows of shared memory
// private to this warp, to convert fragments into rows.
template <int STRIDE, int M, int N8, class T>
__device__ __forceinline__ void tile_store(T *to, int stride, T *tile, const float (&sum)[M][N8][4],
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
    if (!aligned) {
        tile_store_elements<STRIDE>(to, stride, tile, 16 * M, 8 * N8, rows, columns);
        return;
    }
    constexpr int CHUNKS = N8 * 8 / PACK<T>;
#pragma unroll 4
    for (int x = lane; x < 16 * M * CHUNKS; x += WARP) {
        int row = x / CHUNKS, column = x % CHUNKS * PACK<T>;
        if (row < rows && column < columns)
            pack_store(to + (int64_t)row * stride + column, pack_load<T, PACK<T>>(tile + row * STRIDE + column));
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
    for (int m = 0; m < M; ++m) ptx_ldmatrix<false>(left[m], a + (16 * m + lane % 16) * STRIDE + k + lane / 16 * 8);
}

// sum += left . b(8*N8, columns k..k+15)^T
template <int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_step_nt(float (&sum)[M][N8][4], const uint32_t (&left)[M][4], const bf16 *b,
                                             int k) {
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

// sum(16*M, 8*N8) += a(16*M, DEPTH) b(8*N8, DEPTH)^T, both in shared memory; columns from HS on are 0.
template <int DEPTH, int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_multiply_nt(float (&sum)[M][N8][4], const bf16 *a, const bf16 *b, int) {
#pragma unroll 8
    for (int k = 0; k < DEPTH; k += 16) {
        uint32_t left[M][4];
        tile_left<STRIDE>(left, a, k);
        tile_step_nt<STRIDE>(sum, left, b, k);
    }
}
template <int DEPTH, int STRIDE, int M, int N8>
__device__ __forceinline__ void tile_multiply_nt(float (&sum)[M][N8][4], const float *a, const float *b, int HS) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
#pragma unroll 1
    for (int k = 0; k < HS; k += 4) {
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
                    for (int i = 0; i < 8; ++i) sum[m][n][i / 4 * 2 + x] += left[m][i / 4].v[i % 4] * right.v[i % 4];
            }
    }
}

// sum(16*M, 8*H8) += p(16*M, 8*N8) b(8*N8, 8*H8): p in fragments, rounded to T, b in shared memory. fp32 passes p
// through `passed`, 16*M rows of 8*N8 + 4 elements private to this warp.
template <int STRIDE, int M, int N8, int H8>
__device__ __forceinline__ void tile_multiply_nn(float (&sum)[M][H8][4], const float (&p)[M][N8][4], const bf16 *b,
                                                 bf16 *) {
    int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < N8; k += 2) {
        // Two neighbouring sum fragments of 8 columns form one left-operand fragment of 16 columns.
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
                    for (int i = 0; i < 4; ++i) sum[m][n][i] += left[m][i / 2].v[x] * right.v[i % 2];
            }
    }
}

// ---- the mask ----
// Each row of a block may use one interval of columns and, in the forward direction, flagged (prefix) columns of a
// longer one: column j is allowed <=> low <= j < high, or high <= j < ahead and j is flagged. The three bounds are in
// shared memory, 3*ROWS integers, in this order. Queries are identified by their positions.

typedef struct {
    const int32_t *doc;     // of one batch row
    const uint8_t *prefix;  // of one batch row
    int end;                // keys, and the position after the last query
    int window;             // at most end
} AttentionMask;

static __device__ __forceinline__ AttentionMask mask_of(const AttentionProblem &p, int b) {
    AttentionMask mask = {p.doc, p.prefix, p.keys, p.window};
    if (mask.doc != NULL) mask.doc += (int64_t)b * p.keys;
    if (mask.prefix != NULL) mask.prefix += (int64_t)b * p.keys;
    return mask;
}

// The first position of [low, high) whose document is `value` or a later one; high if there is none.
static __device__ __forceinline__ int mask_search(const int32_t *doc, int low, int high, int64_t value) {
    while (low < high) {
        int middle = (low + high) / 2;
        if (doc[middle] < value) low = middle + 1;
        else high = middle;
    }
    return low;
}
static __device__ __forceinline__ int mask_doc_begin(const AttentionMask &mask, int position) {
    return mask.doc == NULL ? 0 : mask_search(mask.doc, 0, position, mask.doc[position]);
}
static __device__ __forceinline__ int mask_doc_end(const AttentionMask &mask, int position) {
    return mask.doc == NULL ? mask.end : mask_search(mask.doc, position, mask.end, (int64_t)mask.doc[position] + 1);
}

// Tiles of columns to process are in [begin, end); those within [full_begin, full_end) need no mask.
typedef struct {
    int begin, end, full_begin, full_end;
} AttentionRange;

// Rows are the queries at positions i0 .. i0+rows-1, columns the keys. For all threads of the block.
template <int ROWS>
__device__ __forceinline__ AttentionRange mask_query_rows(int *spans, const AttentionMask &mask, int i0, int rows) {
    int row = (int)threadIdx.x, i = i0 + row;
    if (row < ROWS) {
        bool real = row < rows;
        spans[row] = real ? max(mask_doc_begin(mask, i), i - mask.window + 1) : 0;
        spans[ROWS + row] = real ? i + 1 : 0;
        spans[2 * ROWS + row] = real && mask.prefix != NULL ? mask_doc_end(mask, i) : 0;
    }
    __syncthreads();
    AttentionRange range = {spans[0], i0 + rows, spans[rows - 1], i0 + 1};
    if (mask.prefix != NULL) {
        int last = i0 + rows - 1;  // the last flagged key allowed for some row
        for (int j = i0 + rows + (int)threadIdx.x % WARP; j < spans[2 * ROWS + rows - 1]; j += WARP)
            if (mask.prefix[j]) last = j;
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            last = max(last, __shfl_xor_sync(FULL_MASK, last, distance));
        range.end = last + 1;
    }
    return range;
}

// Rows are the keys j0 .. j0+rows-1, columns the queries. A flagged key is visible from its document's first query.
template <int ROWS>
__device__ __forceinline__ AttentionRange mask_key_rows(int *spans, const AttentionMask &mask, int j0, int rows) {
    int row = (int)threadIdx.x, j = j0 + row;
    if (row < ROWS) {
        bool real = row < rows, flagged = real && mask.prefix != NULL && mask.prefix[j];
        spans[row] = flagged ? mask_doc_begin(mask, j) : j;
        spans[ROWS + row] = real ? min(mask_doc_end(mask, j), j + mask.window) : 0;
        spans[2 * ROWS + row] = 0;
    }
    __syncthreads();
    AttentionRange range = {j0, spans[ROWS + rows - 1], j0 + rows - 1, spans[ROWS]};
    if (mask.prefix != NULL) {
        for (int r = (int)threadIdx.x % WARP; r < rows; r += WARP) range.begin = min(range.begin, spans[r]);
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            range.begin = min(range.begin, __shfl_xor_sync(FULL_MASK, range.begin, distance));
    }
    return range;
}

// The flagged ones among this lane's columns, from key column0: bit 2n + x. first_key is the batch row's first key.
template <int N8>
__device__ __forceinline__ unsigned mask_flags(const AttentionProblem &p, int first_key, int column0) {
    unsigned flags = 0;
    if (p.prefix == NULL) return flags;
#pragma unroll 1
    for (int bit = 0; bit < 2 * N8; ++bit) {
        int column = column0 + bit / 2 * 8 + bit % 2;
        if (column < p.keys && p.prefix[first_key + column]) flags |= 1u << bit;
    }
    return flags;
}

// Scores of forbidden pairs = -inf. spans start at this lane's first row.
template <int ROWS, int M, int N8>
__device__ __forceinline__ void tile_mask(float (&scores)[M][N8][4], const int *spans, int column0, unsigned flags) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            const int *row = spans + 16 * m + 8 * upper;
            int low = row[0] - column0, high = row[ROWS] - column0, ahead = row[2 * ROWS] - column0;
#pragma unroll
            for (int n = 0; n < N8; ++n)
#pragma unroll
                for (int x = 0; x < 2; ++x) {
                    int column = 8 * n + x;
                    bool flagged = ((flags >> (2 * n + x) & 1u) != 0) & (column < ahead);
                    bool allowed = (column >= low) & ((column < high) | flagged);
                    scores[m][n][2 * upper + x] = allowed ? scores[m][n][2 * upper + x] : -INFINITY;
                }
        }
}

#endif
