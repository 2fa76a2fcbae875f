// attention_forward.cu: softmax attention without a (T,T) matrix, after FlashAttention-2 (Dao 2023): a block keeps a
// tile of queries, streams tiles of keys and values, and an online softmax in powers of two carries each row's
// maximum and sum from tile to tile. Tiles that the mask excludes are skipped. Used in training and for decoding many
// positions. Must not know tensors.
//
// Bounds: two products of 2*HS FLOPs for each visible pair of positions, 4 B NH T^2/2 HS in all when causal; K and V
// stay in the L2 cache while the neighbouring blocks of their head run. mma.sync reaches an A100's full dense rate,
// but only 60-65 % of wgmma's rate on Hopper: there cuDNN's kernels are faster.
#include "llmc/cuda/attention_tile.h"

// The online softmax of one tile: scores = 2^(factor*score - maximum); updates top, sum and the sums of the output.
// `factor` is scale*log2(e); top holds maxima of the rounded scaled scores, so that old and new powers differ by
// exactly their quotient; sum is over this lane's columns only.
template <int M, int N8, int H8>
__device__ __forceinline__ void softmax_update(float (&scores)[M][N8][4], float (&out)[M][H8][4], float (&top)[M][2],
                                               float (&sum)[M][2], float factor) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            float most = -INFINITY;
#pragma unroll
            for (int n = 0; n < N8; ++n)
                most = fmaxf(most, fmaxf(scores[m][n][2 * upper], scores[m][n][2 * upper + 1]));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 1));
            most = fmaxf(most, __shfl_xor_sync(FULL_MASK, most, 2));
            most = fmaxf(top[m][upper], most * factor);
            // A row without any visible key so far keeps -inf, and all its powers are 0.
            float origin = most == -INFINITY ? 0.0f : most;
            float rescale = ptx_exp2(top[m][upper] - origin);
            top[m][upper] = most;
            float part = 0.0f;
#pragma unroll
            for (int n = 0; n < N8; ++n)
#pragma unroll
                for (int x = 2 * upper; x < 2 * upper + 2; ++x) {
                    scores[m][n][x] = ptx_exp2(fmaf(scores[m][n][x], factor, -origin));
                    part += scores[m][n][x];
                }
            sum[m][upper] = fmaf(sum[m][upper], rescale, part);
#pragma unroll
            for (int n = 0; n < H8; ++n)
#pragma unroll
                for (int x = 2 * upper; x < 2 * upper + 2; ++x) out[m][n][x] *= rescale;
        }
}

// Writes the log denominators of a lane's rows; sum becomes 1/sum, the factor of the outputs.
template <int M>
__device__ __forceinline__ void softmax_finish(float *lse, float (&sum)[M][2], const float (&top)[M][2], int rows) {
    int lane = (int)threadIdx.x % WARP, g = lane / 4;
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            sum[m][upper] += __shfl_xor_sync(FULL_MASK, sum[m][upper], 1);
            sum[m][upper] += __shfl_xor_sync(FULL_MASK, sum[m][upper], 2);
            int row = 16 * m + 8 * upper + g;
            if (lse != NULL && lane % 4 == 0 && row < rows)
                lse[row] = fmaf(top[m][upper], ATTENTION_LN2, logf(sum[m][upper]));
            sum[m][upper] = 1.0f / sum[m][upper];
        }
}

// Grid (tiles of queries, NH, B); tiles of a head are neighbours, the longest of a causal mask first.
template <class T, int HSP>
__global__ void __launch_bounds__(AttentionTile<T, HSP>::THREADS) attention_forward_kernel(AttentionProblem p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int STRIDE = Tile::STRIDE, THREADS = Tile::THREADS, M = Tile::FORWARD_M, KEYS = Tile::FORWARD_KEYS;
    constexpr int ROWS = Tile::WARPS * 16 * M;
    SHARED_DYNAMIC(T, q_tile);
    if (!attention_is_wanted(p.wanted)) return;
    T *k_tile = q_tile + ROWS * STRIDE, *v_tile = k_tile + KEYS * STRIDE;
    int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP, g = lane / 4, c = lane % 4;
    int *spans = (int *)(v_tile + KEYS * STRIDE);
    T *passed = (T *)(spans + 3 * ROWS) + Tile::passed_elems(warp * 16 * M, KEYS);

    int h = (int)blockIdx.y, b = (int)blockIdx.z, kv_head = h / p.group;
    int i0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, rows = min(ROWS, p.queries - i0);
    int first_row = b * p.queries + i0, first_key = b * p.keys, kv_column = kv_head * p.HS;

    AttentionMask mask = mask_of(p, b);
    tile_load<ROWS, HSP, THREADS>(q_tile, matrix_at<T>(p.q, first_row, p.q_stride, h * p.HS), p.q_stride, rows, p.HS,
                                  p.aligned);
    AttentionRange range = mask_query_rows<ROWS>(spans, mask, p.first + i0, rows);
    auto load_keys = [&](T *tile, const void *from, int j0) {
        tile_load<KEYS, HSP, THREADS>(tile, matrix_at<T>(from, first_key + j0, p.kv_stride, kv_column), p.kv_stride,
                                      p.keys - j0, p.HS, p.aligned);
    };
    load_keys(k_tile, p.k, range.begin);

    const T *q_rows = q_tile + warp * 16 * M * STRIDE;
    float out[M][HSP / 8][4], top[M][2], sum[M][2], factor = p.scale * ATTENTION_LOG2E;
    tile_zero(out);
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
        for (int upper = 0; upper < 2; ++upper) {
            top[m][upper] = -INFINITY;
            sum[m][upper] = 0.0f;
        }
    // K is loaded while V is used, and the reverse.
    for (int j0 = range.begin; j0 < range.end; j0 += KEYS) {
        ptx_copy_wait();
        __syncthreads();
        load_keys(v_tile, p.v, j0);
        float scores[M][KEYS / 8][4];
        tile_zero(scores);
        tile_multiply_nt<HSP, STRIDE>(scores, q_rows, k_tile, p.HS);
        ptx_copy_wait();
        __syncthreads();
        int next = j0 + KEYS;
        if (next < range.end) load_keys(k_tile, p.k, next);
        if (j0 < range.full_begin || next > range.full_end)
            tile_mask<ROWS>(scores, spans + warp * 16 * M + g, j0 + 2 * c,
                            mask_flags<KEYS / 8>(p, first_key, j0 + 2 * c));
        softmax_update(scores, out, top, sum, factor);
        tile_multiply_nn<STRIDE>(out, scores, v_tile, passed);
    }

    int warp_row = warp * 16 * M;
    float *lse = p.lse == NULL ? NULL : matrix_at<float>(p.lse, b * p.NH + h, p.queries, i0 + warp_row);
    softmax_finish(lse, sum, top, rows - warp_row);
    T *to = matrix_at<T>(p.out, first_row + warp_row, p.out_stride, h * p.HS);
    tile_store<STRIDE>(to, p.out_stride, q_tile + warp_row * STRIDE, out, sum, rows - warp_row, p.HS, p.aligned);
}

template <class T, int HSP>
static void forward_launch(Backend *be, const AttentionProblem *p) {
    using Tile = AttentionTile<T, HSP>;
    constexpr int ROWS = Tile::WARPS * 16 * Tile::FORWARD_M, KEYS = Tile::FORWARD_KEYS;
    constexpr size_t SMEM_BYTES =
        ((ROWS + 2 * KEYS) * Tile::STRIDE + Tile::passed_elems(ROWS, KEYS)) * sizeof(T) + 3 * ROWS * sizeof(int);
    static_assert(SMEM_BYTES <= 99 * 1024, "a block's shared memory on sm_89");
    dim3 grid((unsigned)div_up(p->queries, ROWS), (unsigned)p->NH, (unsigned)p->B);
    GPU_LAUNCH(be, (attention_forward_kernel<T, HSP>), grid, dim3(Tile::THREADS), SMEM_BYTES, *p);
}

void attention_forward_run(Backend *be, const AttentionProblem *problem) {
    ATTENTION_DISPATCH(forward_launch, be, problem);
}
