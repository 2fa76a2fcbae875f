// matmul_fp8.cu: the inputs of a product as 8-bit floats. Each is scaled by its own current largest magnitude
// (absmax.h), so that this becomes the format's largest number; the library multiplies the sums with the inverse of
// both scales. All of it stays on the device.
//
// The library requires both inputs with K contiguous ("TN") and rows of whole 16 bytes: other inputs are transposed
// while they are rounded, and K is padded with zeros. The rounded inputs are in the scratch block for one product
// only: keeping them longer would save a third of this file's work and cost memory for each of them.
//
//     scratch: unscale_a, unscale_b | a in 8 bits | b in 8 bits | the library's workspace
#include <cuda_fp8.h>

#include "llmc/cuda/absmax.h"
#include "llmc/cuda/matmul.h"

#define FP8_THREADS 256
#define FP8_PACK 16  // 8-bit elements in 16 bytes
#define TILE_ROWS 128
#define TILE_COLS 64
#define TILE_STRIDE (TILE_ROWS + 4)  // bytes: neighbouring columns start in different banks

static __device__ __forceinline__ float largest_of(__nv_fp8_interpretation_t format) {
    return format == __NV_E4M3 ? 448.0f : 57344.0f;
}
// The scale of a tensor whose largest magnitude has these bits. All zero: any scale works. An infinity scales
// everything to zero and back to NaN; NaN elements stay NaN. The bound keeps 1/scale a normal number.
static __device__ __forceinline__ float scale_for(uint32_t most, __nv_fp8_interpretation_t format) {
    const float value = __uint_as_float(most);
    return value > 0.0f ? fminf(largest_of(format) / value, 0x1p100f) : 1.0f;
}
static __device__ __forceinline__ uint32_t round_four(const float x[4], float scale,
                                                      __nv_fp8_interpretation_t format) {
    float2 low, high;
    low.x = x[0] * scale;
    low.y = x[1] * scale;
    high.x = x[2] * scale;
    high.y = x[3] * scale;
    return (uint32_t)__nv_cvt_float2_to_fp8x2(low, __NV_SATFINITE, format) |
           (uint32_t)__nv_cvt_float2_to_fp8x2(high, __NV_SATFINITE, format) << 16;
}

// to(rows, ld) = x(rows, cols), padded with zeros. A thread has FP8_PACK elements of a row. Memory-bound: 3 bytes per
// element. W: x is read in packs of W.
template <__nv_fp8_interpretation_t FORMAT, int W>
__global__ void __launch_bounds__(FP8_THREADS)
    fp8_round_kernel(uint8_t *to, float *unscale, const bf16 *x, const uint32_t *most, int64_t packs, int64_t cols,
                     int64_t ld) {
    const int64_t pack = (int64_t)blockIdx.x * FP8_THREADS + threadIdx.x;
    const float scale = scale_for(*most, FORMAT);
    if (pack == 0) *unscale = 1.0f / scale;
    if (pack >= packs) return;
    int64_t at = pack * FP8_PACK, here = FP8_PACK;
    if (cols != ld) {  // the divisions would be half the work
        const int64_t row = at / ld, col = at % ld;
        at = row * cols + col;
        here = cols - col;
    }
    float values[FP8_PACK];
#pragma unroll
    for (int i = 0; i < FP8_PACK; i += W) {
#pragma unroll
        for (int j = 0; j < W; ++j) values[i + j] = 0.0f;
        if (i >= here) continue;
        float from[W];
        pack_to_floats<W>(from, pack_load<bf16, W>(x + at + i));
#pragma unroll
        for (int j = 0; j < W; ++j) values[i + j] = from[j];
    }
    Pack<uint32_t, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) out.v[i] = round_four(values + 4 * i, scale, FORMAT);
    pack_store<uint32_t, 4>((uint32_t *)(to + pack * FP8_PACK), out);
}

// to(cols, ld) = transpose of x(rows, cols), padded with zeros. A block has a tile of TILE_ROWS x TILE_COLS of x,
// which it reads along rows of x and writes along rows of `to`. Memory-bound: 3 bytes per element.
template <__nv_fp8_interpretation_t FORMAT, int W>
__global__ void __launch_bounds__(FP8_THREADS)
    fp8_transpose_kernel(uint8_t *to, float *unscale, const bf16 *x, const uint32_t *most, int64_t rows, int64_t cols,
                         int64_t ld) {
    SHARED_ARRAY(uint8_t, tile, TILE_COLS * TILE_STRIDE);
    const int64_t first_row = (int64_t)blockIdx.y * TILE_ROWS, first_col = (int64_t)blockIdx.x * TILE_COLS;
    const float scale = scale_for(*most, FORMAT);
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *unscale = 1.0f / scale;

    // A thread reads packs of four neighbouring rows, which give whole words of the transpose.
    constexpr int COL_PACKS = TILE_COLS / W;
    for (int i = (int)threadIdx.x; i < COL_PACKS * (TILE_ROWS / 4); i += FP8_THREADS) {
        const int tile_col = i % COL_PACKS * W, tile_row = i / COL_PACKS * 4;
        Pack<bf16, W> packs[4] = {};
#pragma unroll
        for (int r = 0; r < 4; ++r) {
            const int64_t row = first_row + tile_row + r, col = first_col + tile_col;
            if (row < rows && col < cols) packs[r] = pack_load<bf16, W>(x + row * cols + col);
        }
        float from[4][W];
#pragma unroll
        for (int r = 0; r < 4; ++r) pack_to_floats<W>(from[r], packs[r]);
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const float four[4] = {from[0][j], from[1][j], from[2][j], from[3][j]};
            *(uint32_t *)(tile + (tile_col + j) * TILE_STRIDE + tile_row) = round_four(four, scale, FORMAT);
        }
    }
    __syncthreads();
    constexpr int ROW_PACKS = TILE_ROWS / FP8_PACK;
    for (int i = (int)threadIdx.x; i < TILE_COLS * ROW_PACKS; i += FP8_THREADS) {
        const int tile_col = i / ROW_PACKS, tile_row = i % ROW_PACKS * FP8_PACK;
        const int64_t col = first_col + tile_col, row = first_row + tile_row;
        if (col >= cols || row >= ld) continue;
        Pack<uint32_t, 4> out;
#pragma unroll
        for (int j = 0; j < 4; ++j) out.v[j] = *(const uint32_t *)(tile + tile_col * TILE_STRIDE + tile_row + 4 * j);
        pack_store<uint32_t, 4>((uint32_t *)(to + col * ld + row), out);
    }
}

// x (rows, cols), or its transpose, with the last dimension padded to ld.
template <__nv_fp8_interpretation_t FORMAT>
static void round_input(Backend *be, uint8_t *to, float *unscale, Tensor input, const uint32_t *most, bool transpose,
                        int64_t ld) {
    const bf16 *x = (const bf16 *)input.data;
    const int64_t rows = input.dim[0], cols = input.dim[1];
    const bool wide = cols % PACK<bf16> == 0 && gpu_aligned(x);
    if (transpose) {
        const dim3 grid((unsigned)to_i32(div_up(cols, TILE_COLS)), (unsigned)to_i32(div_up(ld, TILE_ROWS)));
        CHECK(grid.y <= 65535, "an fp8 product over %lld rows", (long long)rows);
        if (wide)
            GPU_LAUNCH(be, (fp8_transpose_kernel<FORMAT, PACK<bf16>>), grid, dim3(FP8_THREADS), 0, to, unscale, x,
                       most, rows, cols, ld);
        else
            GPU_LAUNCH(be, (fp8_transpose_kernel<FORMAT, 1>), grid, dim3(FP8_THREADS), 0, to, unscale, x, most, rows,
                       cols, ld);
        return;
    }
    const int64_t packs = rows * ld / FP8_PACK;
    const dim3 grid((unsigned)to_i32(div_up(packs, FP8_THREADS)));
    if (wide)
        GPU_LAUNCH(be, (fp8_round_kernel<FORMAT, PACK<bf16>>), grid, dim3(FP8_THREADS), 0, to, unscale, x, most,
                   packs, cols, ld);
    else
        GPU_LAUNCH(be, (fp8_round_kernel<FORMAT, 1>), grid, dim3(FP8_THREADS), 0, to, unscale, x, most, packs, cols,
                   ld);
}

void matmul_fp8_round(Backend *be, MatmulCall *call, Tensor a, Tensor b) {
    const bool backward = call->args.fp8 == FP8_BACKWARD;
    CHECK(a.ndim == 2 && a.dtype == DTYPE_BF16, "matmul: fp8 rounds two-dimensional bf16, a is %s of %d dimensions",
          dtype_name(a.dtype), a.ndim);
    CHECK(call->N % FP8_PACK == 0, "matmul: fp8 with rows of %lld elements, expected a multiple of 16",
          (long long)call->N);
    absmax_state(be)->wanted = true;
    // The following work writes to the bias gradient and to scratch only: records of a and b stay valid.
    const uint32_t *most_a = absmax_find(be, a), *most_b = absmax_find(be, b);
    if (!tensor_is_none(call->args.sums)) be->bias_backward(be, call->args.sums, a, call->args.accumulate_sums);
    call->args.sums = TENSOR_NONE;
    absmax_keep(be, a, most_a);
    most_a = absmax_of(be, a);
    absmax_keep(be, b, most_b);
    most_b = absmax_of(be, b);

    const int64_t ld = round_up(call->K, FP8_PACK);
    const size_t a_bytes = to_size(round_up(call->M * ld, 256)), b_bytes = to_size(round_up(call->N * ld, 256));
    unsigned char *scratch = (unsigned char *)cuda_scratch(be, workspace_fp8_bytes(call->M * ld + call->N * ld));
    if (scratch == NULL) return;
    float *unscale = (float *)scratch;
    uint8_t *a8 = scratch + 256, *b8 = a8 + a_bytes;
    if (backward) round_input<__NV_E5M2>(be, a8, unscale, a, most_a, call->trans_a, ld);
    else round_input<__NV_E4M3>(be, a8, unscale, a, most_a, call->trans_a, ld);
    round_input<__NV_E4M3>(be, b8, unscale + 1, b, most_b, !call->trans_b, ld);
    call->most_a = most_a;
    call->most_b = most_b;
    call->a = a8;
    call->b = b8;
    call->K = ld;
    call->type_a = backward ? CUDA_R_8F_E5M2 : CUDA_R_8F_E4M3;
    call->type_b = CUDA_R_8F_E4M3;
    call->trans_a = false;
    call->trans_b = true;
    call->unscale_a = unscale;
    call->unscale_b = unscale + 1;
    // Forward products may use the tensor cores' shorter accumulators, which are faster; sums of gradients, whose terms
    // differ more in size, are moved to fp32 every few steps.
    call->fast_sums = !backward;
    call->workspace = b8 + b_bytes;
}
