// attention_backward.cu: the gradient of attention (FlashAttention-2, Dao 2023), deterministic and without a
// workspace beyond rowsum(dout * out): the probabilities P are recomputed from lse, once in a kernel that keeps a
// tile of keys and sums dK and dV over the queries (and over the query heads that share them, in order), once in a
// kernel that keeps a tile of queries and sums dQ over the keys. Must not know tensors.
//
//     P = exp(scale QK^T - lse)   dP = dO V^T   dS = P (dP - rowsum(dO O))
//     dV = P^T dO                 dQ = scale dS K                dK = scale dS^T Q
//
// These are seven products of 2*HS FLOPs for each visible pair. A single kernel needs five, but sums dQ over blocks
// by float atomics, whose order differs between runs, or through an fp32 copy of dQ in memory that blocks update in
// turn. The two additional products buy reproducible bits and no memory. As in the forward pass the bound is
// mma.sync, closely followed by shared memory: the left operand is read again for each streamed tile.
#include "llmc/cuda/attention_tile.h"

#define DOT_THREADS 256
#define DOT_LANES 8

// dot (B,NH,T) = rowsum(dout * out): eight lanes per row of one head, neighbouring groups at neighbouring positions.
// Memory-bound: reads dout and out once. `positions` is T.
template <class T, int W>
__global__ void __launch_bounds__(DOT_THREADS)
    attention_dot_kernel(float *dot, const T *dout, const T *out, int64_t count, int positions, int NH, int HS) {
    int64_t item = (int64_t)blockIdx.x * (DOT_THREADS / DOT_LANES) + threadIdx.x / DOT_LANES;
    int lane = (int)threadIdx.x % DOT_LANES;
    int64_t held = item < count ? item : count - 1;
    int64_t b = held / positions / NH, h = held / positions % NH, i = held % positions;
    int64_t at = ((b * positions + i) * NH + h) * HS;
    float sum = 0.0f;
#pragma unroll 1
    for (int column = lane * W; column < HS; column += DOT_LANES * W) {
        Pack<T, W> left = pack_load<T, W>(dout + at + column), right = pack_load<T, W>(out + at + column);
#pragma unroll
        for (int x = 0; x < W; ++x) sum = fmaf(to_float(left.v[x]), to_float(right.v[x]), sum);
    }
    for (int distance = DOT_LANES / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(FULL_MASK, sum, distance);
    if (lane == 0 && item < count) dot[item] = sum;
}

// ---- dK and dV ----

// exp(scale * score - lse): first the difference, which is small where the probability is large, then the power.
static __device__ __forceinline__ float probability(float score, float scale, float lse) {
    return ptx_exp2(fmaf(score, scale, -lse) * ATTENTION_LOG2E);
}

// Scores (keys down, queries across) become P, products dO V^T become dS / scale.
template <int M, int N8>
__device__ __forceinline__ void softmax_backward_columns(float (&scores)[M][N8][4], float (&dscores)[M][N8][4],
                                                         const float *lse, const float *dot, float scale) {
    int c = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N8; ++n) {
        Pack<float, 2> lse_pair = pack_load<float, 2>(lse + 8 * n + 2 * c);
        Pack<float, 2> dot_pair = pack_load<float, 2>(dot + 8 * n + 2 * c);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                float p = probability(scores[m][n][i], scale, lse_pair.v[i % 2]);
                scores[m][n][i] = p;
                dscores[m][n][i] = p * (dscores[m][n][i] - dot_pair.v[i % 2]);
            }
    }
}

// Grid (tiles of keys * parts of the head's columns, NKV, B); the longest tiles of a causal mask come first. Queries
// and their dout are streamed; queries have two buffers because they are used last.
template <class T, int HSP>
__global__ void __launch_bounds__(AttentionTile<T, HSP>::THREADS) attention_dkv_kernel(AttentionProblem p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int STRIDE = Tile::STRIDE, THREADS = Tile::THREADS, M = Tile::DKV_M, QUERIES = Tile::DKV_QUERIES;
    constexpr int ROWS = Tile::WARPS * 16 * M, SPLITS = Tile::DKV_SPLITS, COLUMNS = HSP / SPLITS;
    SHARED_DYNAMIC(T, k_tile);
    if (!attention_is_wanted(p.wanted)) return;
    T *v_tile = k_tile + ROWS * STRIDE, *dout_tile = v_tile + ROWS * STRIDE, *q_tiles = dout_tile + QUERIES * STRIDE;
    float *statistics = (float *)(q_tiles + 2 * QUERIES * STRIDE);  // of each buffer of queries: lse, dot
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    int *spans = (int *)(statistics + 4 * QUERIES);
    T *passed = (T *)(spans + 3 * ROWS) + Tile::passed_elems(warp * 16 * M, QUERIES);

    int split = (int)(blockIdx.x % SPLITS), kv_head = (int)blockIdx.y, b = (int)blockIdx.z;
    int j0 = (int)(blockIdx.x / SPLITS) * ROWS, rows = min(ROWS, p.keys - j0);
    int first_query = b * p.queries, first_row = b * p.keys + j0, kv_column = kv_head * p.HS;
    tile_load<ROWS, HSP, THREADS>(k_tile, matrix_at<T>(p.k, first_row, p.kv_stride, kv_column), p.kv_stride, rows,
                                  p.HS, p.aligned);
    tile_load<ROWS, HSP, THREADS>(v_tile, matrix_at<T>(p.v, first_row, p.kv_stride, kv_column), p.kv_stride, rows,
                                  p.HS, p.aligned);
    AttentionMask mask = mask_of(p, b);
    AttentionRange range = mask_key_rows<ROWS>(spans, mask, j0, rows);
    auto load_queries = [&](int h, int i0, int buffer) {
        tile_load<QUERIES, HSP, THREADS>(q_tiles + buffer * QUERIES * STRIDE,
                                         matrix_at<T>(p.q, first_query + i0, p.q_stride, h * p.HS), p.q_stride,
                                         p.queries - i0, p.HS, p.aligned);
        int x = (int)threadIdx.x % QUERIES;
        const float *from = (int)threadIdx.x < QUERIES ? p.lse : p.dot;
        if ((int)threadIdx.x < 2 * QUERIES)
            ptx_copy4(statistics + buffer * 2 * QUERIES + (int)threadIdx.x,
                      matrix_at<float>(from, b * p.NH + h, p.queries, i0 + x), i0 + x < p.queries);
    };
    auto load_dout = [&](int h, int i0) {
        tile_load<QUERIES, HSP, THREADS>(dout_tile, matrix_at<T>(p.dout, first_query + i0, p.out_stride, h * p.HS),
                                         p.out_stride, p.queries - i0, p.HS, p.aligned);
    };
    int h = kv_head * p.group, i0 = range.begin, buffer = 0;
    load_queries(h, i0, buffer);
    load_dout(h, i0);

    int warp_row = warp * 16 * M, column0 = split * COLUMNS;
    float dk[M][COLUMNS / 8][4], dv[M][COLUMNS / 8][4];
    tile_zero(dk);
    tile_zero(dv);
    for (bool more = true; more; buffer ^= 1) {
        const T *q_tile = q_tiles + buffer * QUERIES * STRIDE;
        const float *lse_tile = statistics + buffer * 2 * QUERIES, *dot_tile = lse_tile + QUERIES;
        bool masked = i0 < range.full_begin || i0 + QUERIES > range.full_end;
        int column = i0 + 2 * c;
        // The next tile of queries; after the last one, the first of the next head.
        i0 += QUERIES;
        if (i0 >= range.end) {
            i0 = range.begin;
            ++h;
        }
        more = h < (kv_head + 1) * p.group;
        ptx_copy_wait();
        __syncthreads();
        if (more) load_queries(h, i0, buffer ^ 1);
        float scores[M][QUERIES / 8][4], dscores[M][QUERIES / 8][4];
        tile_zero(scores);
        tile_multiply_nt<HSP, STRIDE>(scores, k_tile + warp_row * STRIDE, q_tile, p.HS);
        if (masked) tile_mask<ROWS>(scores, spans + warp_row + g, column, 0);
        tile_zero(dscores);
        tile_multiply_nt<HSP, STRIDE>(dscores, v_tile + warp_row * STRIDE, dout_tile, p.HS);
        // Rows beyond the last query are all zero, statistics included, and add nothing.
        softmax_backward_columns(scores, dscores, lse_tile, dot_tile, p.scale);
        tile_multiply_nn<STRIDE>(dv, scores, dout_tile + column0, passed);
        __syncthreads();
        if (more) load_dout(h, i0);
        tile_multiply_nn<STRIDE>(dk, dscores, q_tile + column0, passed);
    }

    float one[M][2], scale[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            one[m][upper] = 1.0f;
            scale[m][upper] = p.scale;
        }
    T *dk_to = matrix_at<T>(p.dk, first_row + warp_row, p.kv_stride, kv_column + column0);
    T *dv_to = matrix_at<T>(p.dv, first_row + warp_row, p.kv_stride, kv_column + column0);
    int own_rows = rows - warp_row, columns = p.HS - column0;
    tile_store<STRIDE>(dv_to, p.kv_stride, v_tile + warp_row * STRIDE, dv, one, own_rows, columns, p.aligned);
    tile_store<STRIDE>(dk_to, p.kv_stride, k_tile + warp_row * STRIDE, dk, scale, own_rows, columns, p.aligned);
}

// ---- dQ ----

// Grid (tiles of queries, NH, B), as in the forward pass; keys have two buffers because they are used last.
template <class T, int HSP>
__global__ void __launch_bounds__(AttentionTile<T, HSP>::THREADS) attention_dq_kernel(AttentionProblem p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int STRIDE = Tile::STRIDE, THREADS = Tile::THREADS, M = Tile::DQ_M, KEYS = Tile::DQ_KEYS;
    constexpr int ROWS = Tile::WARPS * 16 * M;
    SHARED_DYNAMIC(T, q_tile);
    if (!attention_is_wanted(p.wanted)) return;
    T *dout_tile = q_tile + ROWS * STRIDE, *v_tile = dout_tile + ROWS * STRIDE, *k_tiles = v_tile + KEYS * STRIDE;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    int *spans = (int *)(k_tiles + 2 * KEYS * STRIDE);
    T *passed = (T *)(spans + 3 * ROWS) + Tile::passed_elems(warp * 16 * M, KEYS);

    int h = (int)blockIdx.y, b = (int)blockIdx.z, kv_head = h / p.group;
    int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, rows = min(ROWS, p.queries - i0);
    int first_row = b * p.queries + i0, first_key = b * p.keys, kv_column = kv_head * p.HS;

    AttentionMask mask = mask_of(p, b);
    tile_load<ROWS, HSP, THREADS>(q_tile, matrix_at<T>(p.q, first_row, p.q_stride, h * p.HS), p.q_stride, rows, p.HS,
                                  p.aligned);
    tile_load<ROWS, HSP, THREADS>(dout_tile, matrix_at<T>(p.dout, first_row, p.out_stride, h * p.HS), p.out_stride,
                                  rows, p.HS, p.aligned);
    AttentionRange range = mask_query_rows<ROWS>(spans, mask, i0, rows);
    auto load_keys = [&](T *tile, const void *from, int j0) {
        tile_load<KEYS, HSP, THREADS>(tile, matrix_at<T>(from, first_key + j0, p.kv_stride, kv_column), p.kv_stride,
                                      p.keys - j0, p.HS, p.aligned);
    };
    load_keys(k_tiles, p.k, range.begin);
    load_keys(v_tile, p.v, range.begin);

    int warp_row = warp * 16 * M;
    float dq[M][HSP / 8][4], lse[M][2], dot[M][2], scale[M][2];
    tile_zero(dq);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            int row = warp_row + 16 * m + 8 * upper + g;
            int64_t at = (int64_t)(b * p.NH + h) * p.queries + i0 + row;
            lse[m][upper] = row < rows ? p.lse[at] : 0.0f;
            dot[m][upper] = row < rows ? p.dot[at] : 0.0f;
            scale[m][upper] = p.scale;
        }
    int buffer = 0;
    for (int j0 = range.begin; j0 < range.end; j0 += KEYS, buffer ^= 1) {
        const T *k_tile = k_tiles + buffer * KEYS * STRIDE;
        int next = j0 + KEYS;
        ptx_copy_wait();
        __syncthreads();
        if (next < range.end) load_keys(k_tiles + (buffer ^ 1) * KEYS * STRIDE, p.k, next);
        float scores[M][KEYS / 8][4], dscores[M][KEYS / 8][4];
        tile_zero(scores);
        tile_multiply_nt<HSP, STRIDE>(scores, q_tile + warp_row * STRIDE, k_tile, p.HS);
        if (j0 < range.full_begin || next > range.full_end)
            tile_mask<ROWS>(scores, spans + warp_row + g, j0 + 2 * c, mask_flags<KEYS / 8>(p, first_key, j0 + 2 * c));
        tile_zero(dscores);
        tile_multiply_nt<HSP, STRIDE>(dscores, dout_tile + warp_row * STRIDE, v_tile, p.HS);
        __syncthreads();
        if (next < range.end) load_keys(v_tile, p.v, next);
#pragma unroll
        for (int m = 0; m < M; ++m)
#pragma unroll
            for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    dscores[m][n][i] =
                        probability(scores[m][n][i], p.scale, lse[m][i / 2]) * (dscores[m][n][i] - dot[m][i / 2]);
        tile_multiply_nn<STRIDE>(dq, dscores, k_tile, passed);
    }
    tile_store<STRIDE>(matrix_at<T>(p.dq, first_row + warp_row, p.q_stride, h * p.HS), p.q_stride,
                       q_tile + warp_row * STRIDE, dq, scale, rows - warp_row, p.HS, p.aligned);
}

// ---- launches ----

template <class T>
static void dot_launch(Backend *be, const AttentionProblem *p) {
    int64_t count = (int64_t)p->B * p->NH * p->queries;
    dim3 blocks((unsigned)to_i32(div_up(count, DOT_THREADS / DOT_LANES)));
    const T *dout = (const T *)p->dout, *out = (const T *)p->out;
    if (p->aligned)
        GPU_LAUNCH(be, (attention_dot_kernel<T, PACK<T>>), blocks, dim3(DOT_THREADS), 0, p->dot, dout, out, count,
                   p->queries, p->NH, p->HS);
    else
        GPU_LAUNCH(be, (attention_dot_kernel<T, 1>), blocks, dim3(DOT_THREADS), 0, p->dot, dout, out, count,
                   p->queries, p->NH, p->HS);
}

template <class T, int HSP>
static void dkv_launch(Backend *be, const AttentionProblem *p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int ROWS = Tile::WARPS * 16 * Tile::DKV_M, QUERIES = Tile::DKV_QUERIES;
    constexpr size_t SMEM_BYTES =
        ((2 * ROWS + 3 * QUERIES) * Tile::STRIDE + Tile::passed_elems(ROWS, QUERIES)) * sizeof(T) +
        4 * QUERIES * sizeof(float) + 3 * ROWS * sizeof(int);
    static_assert(SMEM_BYTES <= 99 * 1024, "a block's shared memory on sm_89");
    dim3 grid((unsigned)(div_up(p->keys, ROWS) * Tile::DKV_SPLITS), (unsigned)p->NKV, (unsigned)p->B);
    GPU_LAUNCH(be, (attention_dkv_kernel<T, HSP>), grid, dim3(Tile::THREADS), SMEM_BYTES, *p);
}

template <class T, int HSP>
static void dq_launch(Backend *be, const AttentionProblem *p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int ROWS = Tile::WARPS * 16 * Tile::DQ_M, KEYS = Tile::DQ_KEYS;
    constexpr size_t SMEM_BYTES =
        ((2 * ROWS + 3 * KEYS) * Tile::STRIDE + Tile::passed_elems(ROWS, KEYS)) * sizeof(T) + 3 * ROWS * sizeof(int);
    static_assert(SMEM_BYTES <= 99 * 1024, "a block's shared memory on sm_89");
    dim3 grid((unsigned)div_up(p->queries, ROWS), (unsigned)p->NH, (unsigned)p->B);
    GPU_LAUNCH(be, (attention_dq_kernel<T, HSP>), grid, dim3(Tile::THREADS), SMEM_BYTES, *p);
}

void attention_backward_run(Backend *be, const AttentionProblem *problem) {
    if (problem->dtype == DTYPE_BF16) dot_launch<bf16>(be, problem);
    else dot_launch<float>(be, problem);
    ATTENTION_DISPATCH(dkv_launch, be, problem);
    ATTENTION_DISPATCH(dq_launch, be, problem);
}
