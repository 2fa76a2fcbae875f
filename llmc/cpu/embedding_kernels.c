// embedding_kernels.c: look-up of token and position rows, and the gradients of the tables. Ids are checked here,
// before they become addresses.
#include "llmc/cpu/isa.h"
#include "llmc/cpu/kernels.h"
#include "llmc/cpu/simd.h"

static void check_ids(const char *name, Tensor ids, int64_t N, int64_t below) {
    const int32_t *id = ids.data;
    for (int64_t i = 0; i < N; ++i)
        CHECK(id[i] >= 0 && id[i] < below, "%s[%lld]=%d, expected 0 to %lld", name, (long long)i, id[i],
              (long long)below - 1);
}

SIMD_INLINE void embedding_row(void *out, int64_t row, const void *wte, int64_t token, const void *wpe,
                               int64_t position, int64_t C, DType dtype) {
    for (int64_t c = 0; c < C; c += VF_LANES) {
        vf x = vf_load_some(wte, token * C + c, C - c, dtype);
        if (wpe != NULL) x += vf_load_some(wpe, position * C + c, C - c, dtype);
        vf_store_some(out, row * C + c, x, C - c, dtype);
    }
}

static void embedding_forward(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte, Tensor wpe) {
    op_check_embedding("out", out, tokens, positions, "wte", wte, "wpe", wpe, out.dtype);
    int64_t N = out.dim[0], C = out.dim[1];
    bool use_wpe = !tensor_is_none(wpe);
    check_ids("tokens", tokens, N, wte.dim[0]);
    if (use_wpe) check_ids("positions", positions, N, wpe.dim[0]);
    const int32_t *token = tokens.data, *position = positions.data;
    (void)be;
#pragma omp parallel for schedule(static) num_threads(be->threads) if (N * C > CPU_PARALLEL_ELEMS)
    for (int64_t row = 0; row < N; ++row) {
        int64_t at = use_wpe ? position[row] : 0;
        if (out.dtype == DTYPE_F32)
            embedding_row(out.data, row, wte.data, token[row], wpe.data, at, C, DTYPE_F32);
        else
            embedding_row(out.data, row, wte.data, token[row], wpe.data, at, C, DTYPE_BF16);
    }
}

// table rows ids[i] += dout row i, channels [first, end), in increasing i.
SIMD_INLINE void add_rows(float *table, const void *dout, const int32_t *ids, int64_t N, int64_t C, int64_t first,
                          int64_t end, DType dtype) {
    for (int64_t row = 0; row < N; ++row) {
        int64_t base = ids[row] * C;
        for (int64_t c = first; c < end; c += VF_LANES) {
            vf sum = vf_load_some(table, base + c, end - c, DTYPE_F32);
            sum += vf_load_some(dout, row * C + c, end - c, dtype);
            vf_store_some(table, base + c, sum, end - c, DTYPE_F32);
        }
    }
}

// Threads divide the channels, not the rows: one thread sums every element in the order of the rows, so repeated
// tokens need no atomics and the result does not depend on the number of threads.
#define CHANNEL_BLOCK 64
static void embedding_backward(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions) {
    op_check_embedding("dout", dout, tokens, positions, "dwte", dwte, "dwpe", dwpe, DTYPE_F32);
    int64_t N = dout.dim[0], C = dout.dim[1];
    bool use_wpe = !tensor_is_none(dwpe);
    check_ids("tokens", tokens, N, dwte.dim[0]);
    if (use_wpe) check_ids("positions", positions, N, dwpe.dim[0]);
    int64_t blocks = div_up(C, CHANNEL_BLOCK), parts = min_i64(blocks, be->threads);
#pragma omp parallel for schedule(static, 1) num_threads(be->threads) if (N * C > CPU_PARALLEL_ELEMS)
    for (int64_t part = 0; part < parts; ++part) {
        int64_t first = blocks * part / parts * CHANNEL_BLOCK;
        int64_t end = min_i64(blocks * (part + 1) / parts * CHANNEL_BLOCK, C);
        for (int table = 0; table < (use_wpe ? 2 : 1); ++table) {
            float *sums = table == 0 ? dwte.data : dwpe.data;
            const int32_t *ids = table == 0 ? tokens.data : positions.data;
            if (dout.dtype == DTYPE_F32)
                add_rows(sums, dout.data, ids, N, C, first, end, DTYPE_F32);
            else
                add_rows(sums, dout.data, ids, N, C, first, end, DTYPE_BF16);
        }
    }
}

void ISA_NAME(embedding_register)(Backend *be) {
    be->embedding_forward = embedding_forward;
    be->embedding_backward = embedding_backward;
}
