// absmax.cu: see absmax.h: the table of records, and the kernel for tensors without a record.
#include "llmc/cuda/absmax.h"

#define ABSMAX_THREADS 256
#define ABSMAX_PACKS 4  // in flight per thread

// elems bf16 values, whole packs of W. Memory-bound: 2 bytes per element, read once.
template <int W>
__global__ void __launch_bounds__(ABSMAX_THREADS) absmax_kernel(uint32_t *slot, const uint16_t *x, int64_t packs) {
    const int64_t first = (int64_t)blockIdx.x * ABSMAX_THREADS * ABSMAX_PACKS + threadIdx.x;
    uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < ABSMAX_PACKS; ++i) {
        const int64_t pack = first + i * ABSMAX_THREADS;
        if (pack >= packs) continue;
        const Pack<uint16_t, W> values = pack_load<uint16_t, W>(x + pack * W);
#pragma unroll
        for (int j = 0; j < W; ++j) {
            const uint32_t bits = values.v[j] & 0x7fffu;
            most = bits > most ? bits : most;
        }
    }
    absmax_record<bf16>(slot, most << 16);  // bf16 is the upper half of an fp32
}

static void measure(Backend *be, uint32_t *slot, Tensor t) {
    CHECK(t.dtype == DTYPE_BF16, "absmax of %s", dtype_name(t.dtype));
    const int64_t elems = tensor_elems(t);
    const bool wide = elems % PACK<bf16> == 0 && gpu_aligned(t.data);
    const int64_t packs = wide ? elems / PACK<bf16> : elems;
    const dim3 grid((unsigned)to_i32(div_up(packs, ABSMAX_THREADS * ABSMAX_PACKS)));
    const uint16_t *x = (const uint16_t *)t.data;
    if (packs == 0) return;
    if (wide) GPU_LAUNCH(be, (absmax_kernel<PACK<bf16>>), grid, dim3(ABSMAX_THREADS), 0, slot, x, packs);
    else GPU_LAUNCH(be, (absmax_kernel<1>), grid, dim3(ABSMAX_THREADS), 0, slot, x, packs);
}

// ---- records ----

static int64_t now(const Backend *be) { return cuda_state(be)->stream_uses; }

uint32_t *absmax_begin(Backend *be, Tensor out) {
    Absmax *absmax = absmax_state(be);
    if (!absmax->wanted || cuda_failed(be) || out.dtype != DTYPE_BF16) return NULL;
    int oldest = 0;
    for (int i = 1; i < ABSMAX_RECORDS; ++i)
        if (absmax->record[i].valid_at < absmax->record[oldest].valid_at) oldest = i;
    uint32_t *slot = absmax->slots + oldest;
    // Not valid before absmax_end, and until then not the oldest.
    absmax->record[oldest] = {NULL, 0, now(be)};
    cuda_ok(be, cudaMemsetAsync(slot, 0, sizeof *slot, cuda_stream(be)), "cudaMemsetAsync");
    return slot;
}
void absmax_end(Backend *be, Tensor out, const uint32_t *slot) {
    Absmax *absmax = absmax_state(be);
    if (slot != NULL) absmax->record[slot - absmax->slots] = {out.data, tensor_elems(out), now(be)};
}
const uint32_t *absmax_find(const Backend *be, Tensor t) {
    const Absmax *absmax = absmax_state(be);
    for (int i = 0; absmax->wanted && i < ABSMAX_RECORDS; ++i) {
        const AbsmaxRecord *record = &absmax->record[i];
        if (record->valid_at == now(be) && record->data == t.data && record->elems == tensor_elems(t))
            return absmax->slots + i;
    }
    return NULL;
}
void absmax_keep(Backend *be, Tensor t, const uint32_t *slot) {
    Absmax *absmax = absmax_state(be);
    if (slot == NULL) return;
    AbsmaxRecord *record = &absmax->record[slot - absmax->slots];
    // Unless the slot was reused for another tensor.
    if (record->data == t.data && record->elems == tensor_elems(t)) record->valid_at = now(be);
}

const uint32_t *absmax_of(Backend *be, Tensor t) {
    const uint32_t *known = absmax_find(be, t);
    if (known != NULL) return known;
    uint32_t *slot = absmax_begin(be, t);
    if (slot == NULL) return NULL;
    measure(be, slot, t);
    absmax_end(be, t, slot);
    return slot;
}

bool absmax_open(Backend *be, Absmax *absmax) {
    return cuda_ok(be, cudaMalloc((void **)&absmax->slots, ABSMAX_RECORDS * sizeof *absmax->slots), "cudaMalloc");
}
void absmax_close(Absmax *absmax) {
    if (absmax->slots != NULL) cudaFree(absmax->slots);
    absmax->slots = NULL;
}
