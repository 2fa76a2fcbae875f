// reduce_kernels.c: sums over rows: bias gradients and the weighted loss. Fixed order, see partials.h.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/partials.h"

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
        // Four rows at a time: the partial row goes through L1 a quarter as often.
        for (int64_t row = partials_first_row(N, chunk); row < end; row += 4) {
            if (dout.dtype == DTYPE_F32)
                add_rows(partials + chunk * C, dout.data, row, min_i64(4, end - row), C, DTYPE_F32);
            else
                add_rows(partials + chunk * C, dout.data, row, min_i64(4, end - row), C, DTYPE_BF16);
        }
    }
    partials_sum(be, dbias.data, partials, N, C, 0, C, accumulate);
}

// One number a row: too little work for threads.
static void weighted_sum(Backend *be, Tensor out, Tensor nll, Tensor weights, bool accumulate) {
    (void)be;
    int64_t N = tensor_elems(nll);
    op_check_weighted_sum(out, nll, weights);
    const float *loss = nll.data, *weight = weights.data;
    double *total = out.data, sum = 0;
    for (int64_t i = 0; i < N; ++i) sum += (double)weight[i] * (double)loss[i];
    *total = accumulate ? *total + sum : sum;
}

void ISA_NAME(reduce_register)(Backend *be) {
    be->bias_backward = bias_backward;
    be->weighted_sum = weighted_sum;
}
