// reduce_kernels.c: sums over rows, bias gradients and the weighted loss, in a fixed order (partials.h); sums of
// hashes over elements, the same in any order.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/partials.h"
#include "llmc/base/hash_element.h"

// partial(C) += rows [row, row + rows) of dout.
SIMD_INLINE void add_rows(float *partial, const void *dout, int64_t row, int64_t rows, int64_t C, DType dtype) {
    for (int64_t c = 0; c < C; c += VF_LANES) {
        int64_t left = C - c;
        vf sum = vf_load_some(partial, c, left, DTYPE_F32);
        for (int64_t r = row; r < row + rows; ++r) sum += vf_load_some(dout, r * C + c, left, dtype);
        vf_store_some(partial, c, sum, left, DTYPE_F32);
    }
}

static void bias_backward(Backend *be, Tensor dbias, Tensor dout, bool accumulate) {
    op_check_bias_backward(dbias, dout);
    int64_t N = dout.dim[0], C = dout.dim[1], chunks = partials_chunks(N);
    float *partials = partials_zeroed(be, N, C);
#pragma omp parallel for schedule(static) num_threads(be->threads) if (N * C > CPU_PARALLEL_ELEMS)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t end = partials_first_row(N, chunk + 1);
        // Four rows at a time: the partial row is loaded and stored a quarter as often.
        for (int64_t row = partials_first_row(N, chunk); row < end; row += 4) {
            if (dout.dtype == DTYPE_F32)
                add_rows(partials + chunk * C, dout.data, row, min_i64(4, end - row), C, DTYPE_F32);
            else
                add_rows(partials + chunk * C, dout.data, row, min_i64(4, end - row), C, DTYPE_BF16);
        }
    }
    partials_sum(be, dbias.data, partials, N, C, 0, C, accumulate);
}

// One number per row: too little work for threads.
static void weighted_sum(Backend *be, Tensor out, Tensor nll, Tensor weights, bool accumulate) {
    (void)be;
    int64_t N = tensor_elems(nll);
    op_check_weighted_sum(out, nll, weights);
    const float *loss = nll.data, *weight = weights.data;
    double *total = out.data, sum = 0;
    for (int64_t i = 0; i < N; ++i) sum += (double)weight[i] * (double)loss[i];
    *total = accumulate ? *total + sum : sum;
}

// ---- hashes ----
// A vector has half as many 64-bit lanes as 32-bit lanes.
#define HASH_LANES (VF_LANES / 2)
#define HASH_CHUNK_ELEMS ((int64_t)1 << 16)
typedef uint64_t vq __attribute__((vector_size(VF_LANES * 4), may_alias));
typedef uint32_t vu_half __attribute__((vector_size(VF_LANES * 2), may_alias));
typedef uint16_t vh_half __attribute__((vector_size(VF_LANES), may_alias));

SIMD_INLINE vq hash_lanes(vq place, vq bits) {
    vq h = place + bits;
    h = (h ^ (h >> 33)) * HASH_FACTOR1;
    h = (h ^ (h >> 33)) * HASH_FACTOR2;
    return h ^ (h >> 33);
}
SIMD_INLINE uint64_t hash_range(const void *x, int64_t first, int64_t end, uint64_t index, DType dtype) {
    vq lane, sum = {0};
    for (int k = 0; k < HASH_LANES; ++k) lane[k] = (uint64_t)k;
    vq place = (lane + index) * HASH_PLACE;
    int64_t i = first;
    for (; i + HASH_LANES <= end; i += HASH_LANES, place += HASH_LANES * HASH_PLACE) {
        vq bits;
        if (dtype == DTYPE_F32) {
            vu_half narrow;
            memcpy(&narrow, (const uint32_t *)x + i, sizeof narrow);
            bits = __builtin_convertvector(narrow, vq);
        } else {
            vh_half narrow;
            memcpy(&narrow, (const uint16_t *)x + i, sizeof narrow);
            bits = __builtin_convertvector(__builtin_convertvector(narrow, vu_half), vq);
        }
        sum += hash_lanes(place, bits);
    }
    uint64_t total = 0;
    for (int k = 0; k < HASH_LANES; ++k) total += sum[k];
    for (; i < end; ++i)
        total += hash_element(index + (uint64_t)(i - first),
                              dtype == DTYPE_F32 ? ((const uint32_t *)x)[i] : ((const uint16_t *)x)[i]);
    return total;
}
// Sums mod 2^64 are the same in any order.
static void hash_sum(Backend *be, uint64_t *out, Tensor x, int64_t first_elem, bool accumulate) {
    op_check_hash_sum(out, x, first_elem);
    (void)be;
    int64_t elems = tensor_elems(x), chunks = div_up(elems, HASH_CHUNK_ELEMS);
    uint64_t sum = 0;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (chunks > 1) reduction(+ : sum)
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
        int64_t first = chunk * HASH_CHUNK_ELEMS, end = min_i64(first + HASH_CHUNK_ELEMS, elems);
        uint64_t index = (uint64_t)(first_elem + first);
        sum += x.dtype == DTYPE_F32 ? hash_range(x.data, first, end, index, DTYPE_F32)
                                    : hash_range(x.data, first, end, index, DTYPE_BF16);
    }
    *out = accumulate ? *out + sum : sum;
}

void ISA_NAME(reduce_register)(Backend *be) {
    be->bias_backward = bias_backward;
    be->weighted_sum = weighted_sum;
    be->hash_sum = hash_sum;
}
