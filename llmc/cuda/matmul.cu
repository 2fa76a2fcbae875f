// matmul.cu: Backend.matmul on cuBLASLt. A product becomes a MatmulCall, whose plan (descriptors and a measured
// algorithm, matmul_tune.cu) is looked up by its key, so that a training step creates and queries nothing: it sets a
// few pointers and launches. Must not know models.
//
// out(M,N) row-major is out^T column-major: the library's A is b and its B is a; its rows are our columns.
//
// Work besides alpha*sum + beta*add (add is the library's C: out itself or, for a residual, another tensor):
//   bias            the library (BIAS), if the bias has out's dtype and there is no act_grad; else our kernel
//   ACT_GELU        the library (GELU, GELU_AUX for a saved pre, with BIAS or without), if there is no add and rows
//                   of pre start on 16 bytes; else our kernel. The library's GELU is the tanh form, like ours
//   act_grad GELU   the library (DGELU), if there is neither add nor bias and rows of pre start on 16 bytes; else our
//                   kernel
//   ACT_RELU2       our kernel: the library has no square
//   sums            the library (BGRADB), if they are overwritten, out is fp32 and there is no other epilogue; else
//                   bias_backward: the library cannot add to them
//   K = 0           our kernel alone
// The library's epilogue is timed against our kernel; combinations that the library refuses use ours. Our kernel
// reads the library's output rounded to out's dtype: one rounding more than the library's epilogue.
//
// fp8: inputs are rounded first (matmul_fp8.cu), then the same applies, except that sums use the unrounded a.
//
// A batch of products is one strided call. fp32 products are fp32 throughout (no TF32); bf16 ones sum in fp32.
#include "llmc/cuda/matmul.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/cuda/activation.h"
#include "llmc/backend/op_check.h"

#define FINISH_THREADS 256

// acc = from + beta*add + bias; pre_out = acc; out = act(acc) or acc * act_grad'(pre_in). Absent operands are NULL.
// from may be out or pre_out, add may be out. most: the record of out's largest magnitude, or NULL. A thread has one
// pack, of W elements of one row. Memory-bound: it reads and writes each tensor once.
template <class T, class TB, int W>
__global__ void __launch_bounds__(FINISH_THREADS)
    matmul_finish_kernel(T *out, T *pre_out, uint32_t *most, const T *from, const T *add, const TB *bias,
                         const T *pre_in, int64_t packs, int64_t N, float beta, Activation act,
                         Activation act_grad) {
    const int64_t pack = (int64_t)blockIdx.x * FINISH_THREADS + threadIdx.x, at = pack * W;
    uint32_t largest = 0;
    if (pack < packs) {
        float acc[W] = {}, x[W];
        if (from != NULL) pack_to_floats<W>(acc, pack_load<T, W>(from + at));
        if (add != NULL) {
            pack_to_floats<W>(x, pack_load<T, W>(add + at));
#pragma unroll
            for (int i = 0; i < W; ++i) acc[i] += beta * x[i];
        }
        if (bias != NULL) {
            const int64_t column = at % N;
#pragma unroll
            for (int i = 0; i < W; ++i) acc[i] += to_float(bias[column + i]);
        }
        if (pre_out != NULL) pack_store<T, W>(pre_out + at, pack_from_floats<T, W>(acc));
#pragma unroll
        for (int i = 0; i < W; ++i) acc[i] = activation_apply(act, acc[i]);
        if (pre_in != NULL) {
            pack_to_floats<W>(x, pack_load<T, W>(pre_in + at));
#pragma unroll
            for (int i = 0; i < W; ++i) acc[i] *= activation_derivative(act_grad, x[i]);
        }
#pragma unroll
        for (int i = 0; i < W; ++i) largest = absmax_add(largest, acc[i]);
        pack_store<T, W>(out + at, pack_from_floats<T, W>(acc));
    }
    absmax_record<T>(most, largest);
}

template <class T, class TB>
static void finish_typed(Backend *be, const MatmulCall *call, const void *from, const void *add, const void *bias,
                         const MatmulArgs *args) {
    T *out = (T *)call->out.data, *pre = (T *)args->pre.data;
    T *pre_out = args->act != ACT_NONE ? pre : NULL;
    const T *pre_in = args->act_grad != ACT_NONE ? pre : NULL;
    const int64_t elems = call->batch * call->M * call->N;
    const bool wide = call->N % PACK<T> == 0 && gpu_aligned(out) && gpu_aligned(pre) && gpu_aligned(from) &&
                      gpu_aligned(add);
    const int64_t packs = wide ? elems / PACK<T> : elems;
    const dim3 grid((unsigned)to_i32(div_up(packs, FINISH_THREADS)));
    uint32_t *most = absmax_begin(be, call->out);
    if (wide)
        GPU_LAUNCH(be, (matmul_finish_kernel<T, TB, PACK<T>>), grid, dim3(FINISH_THREADS), 0, out, pre_out, most,
                   (const T *)from, (const T *)add, (const TB *)bias, pre_in, packs, call->N, args->beta, args->act,
                   args->act_grad);
    else
        GPU_LAUNCH(be, (matmul_finish_kernel<T, TB, 1>), grid, dim3(FINISH_THREADS), 0, out, pre_out, most,
                   (const T *)from, (const T *)add, (const TB *)bias, pre_in, packs, call->N, args->beta, args->act,
                   args->act_grad);
    absmax_end(be, call->out, most);
}
// `done`: FUSE_ bits already applied to `from`.
static void matmul_finish(Backend *be, const MatmulCall *call, const void *from, const void *add, unsigned done) {
    MatmulArgs args = call->args;
    const void *bias = done & FUSE_BIAS ? NULL : args.bias.data;
    if (done & FUSE_ACT) args.act = args.act_grad = ACT_NONE;
    const bool bias_f32 = tensor_is_none(args.bias) || args.bias.dtype == DTYPE_F32;
    if (call->out.dtype == DTYPE_BF16) finish_typed<bf16, bf16>(be, call, from, add, bias, &args);
    else if (bias_f32) finish_typed<float, float>(be, call, from, add, bias, &args);
    else finish_typed<float, bf16>(be, call, from, add, bias, &args);
}

// ---- what a call requires ----

// FUSE_ bits that the call requires.
static unsigned matmul_wanted(const MatmulCall *call) {
    const MatmulArgs *args = &call->args;
    unsigned wanted = 0;
    if (!tensor_is_none(args->bias)) wanted |= FUSE_BIAS;
    if (args->act != ACT_NONE || args->act_grad != ACT_NONE) wanted |= FUSE_ACT;
    if (!tensor_is_none(args->sums)) wanted |= FUSE_SUMS;
    return wanted;
}

unsigned matmul_fusable(const MatmulCall *call) {
    const MatmulArgs *args = &call->args;
    const unsigned wanted = matmul_wanted(call);
    const bool add = !tensor_is_none(args->add), bias = wanted & FUSE_BIAS;
    // The library requires rows of its auxiliary matrix that are multiples of 8 elements.
    const bool pre_rows = tensor_is_none(args->pre) || (call->N % 8 == 0 && gpu_aligned(args->pre.data));
    unsigned fusable = 0;
    if (bias && args->bias.dtype == call->out.dtype && args->act_grad == ACT_NONE) fusable |= FUSE_BIAS;
    if (args->act == ACT_GELU && !add && pre_rows && (!bias || fusable & FUSE_BIAS)) fusable |= FUSE_ACT;
    if (args->act_grad == ACT_GELU && !add && !bias && pre_rows) fusable |= FUSE_ACT;
    if (wanted == FUSE_SUMS && !args->accumulate_sums && call->out.dtype == DTYPE_F32) fusable |= FUSE_SUMS;
    return fusable;
}

static int64_t alignment_of(const void *pointer) {
    const uintptr_t low = (uintptr_t)pointer & (~(uintptr_t)pointer + 1);
    return low == 0 || low > 16 ? 16 : (int64_t)low;  // no kernel of the library needs more than 16 bytes
}

MatmulKey matmul_key(const MatmulCall *call) {
    const MatmulArgs *args = &call->args;
    const bool sums = !tensor_is_none(args->sums);
    MatmulKey key;
    memset(&key, 0, sizeof key);
    key.v[KEY_M] = call->M;
    key.v[KEY_N] = call->N;
    key.v[KEY_K] = call->K;
    key.v[KEY_BATCH] = call->batch;
    key.v[KEY_TRANS_A] = call->trans_a;
    key.v[KEY_TRANS_B] = call->trans_b;
    key.v[KEY_TYPE_A] = call->type_a;
    key.v[KEY_TYPE_B] = call->type_b;
    key.v[KEY_TYPE_OUT] = call->out.dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
    key.v[KEY_ADD] = tensor_is_none(args->add) ? 0 : args->add.data == call->out.data ? 2 : 1;
    key.v[KEY_BIAS] = tensor_is_none(args->bias) ? 0 : 1 + (int64_t)args->bias.dtype;
    key.v[KEY_ACT] = args->act;
    key.v[KEY_ACT_GRAD] = args->act_grad;
    key.v[KEY_SAVE_PRE] = args->act != ACT_NONE && !tensor_is_none(args->pre);
    key.v[KEY_SUMS] = !sums ? 0 : args->accumulate_sums ? 2 : 1;
    key.v[KEY_FAST_SUMS] = call->fast_sums;
    key.v[KEY_ALIGN_A] = alignment_of(call->a);
    key.v[KEY_ALIGN_B] = alignment_of(call->b);
    key.v[KEY_ALIGN_OUT] = alignment_of(call->out.data);
    key.v[KEY_ALIGN_ADD] = alignment_of(args->add.data);
    key.v[KEY_ALIGN_BIAS] = alignment_of(args->bias.data);
    key.v[KEY_ALIGN_PRE] = alignment_of(args->pre.data);
    key.v[KEY_ALIGN_SUMS] = alignment_of(args->sums.data);
    return key;
}

// ---- issuing ----

bool matmul_ok(Backend *be, cublasStatus_t status, const char *what) {
    return status == CUBLAS_STATUS_SUCCESS || cuda_fail(be, what, cublasLtGetStatusString(status));
}

static cublasStatus_t set_pointer(const MatmulPlan *plan, cublasLtMatmulDescAttributes_t attribute, const void *to) {
    return cublasLtMatmulDescSetAttribute(plan->desc, attribute, &to, sizeof to);
}
cublasStatus_t matmul_set_pointers(const MatmulPlan *plan, const MatmulCall *call) {
    const MatmulArgs *args = &call->args;
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    if (plan->fused & FUSE_BIAS) status = set_pointer(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args->bias.data);
    if (plan->fused & FUSE_SUMS) status = set_pointer(plan, CUBLASLT_MATMUL_DESC_BIAS_POINTER, args->sums.data);
    if (status == CUBLAS_STATUS_SUCCESS && plan->fused & FUSE_ACT && !tensor_is_none(args->pre))
        status = set_pointer(plan, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, args->pre.data);
    if (status == CUBLAS_STATUS_SUCCESS && call->unscale_a != NULL)
        status = set_pointer(plan, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, call->unscale_a);
    if (status == CUBLAS_STATUS_SUCCESS && call->unscale_b != NULL)
        status = set_pointer(plan, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, call->unscale_b);
    return status;
}

cublasStatus_t matmul_issue(Backend *be, const MatmulPlan *plan, const MatmulCall *call) {
    const MatmulArgs *args = &call->args;
    const unsigned left = matmul_wanted(call) & ~plan->fused;
    if (left & FUSE_SUMS) be->bias_backward(be, args->sums, call->rows, args->accumulate_sums);
    void *workspace = call->workspace;
    if (workspace == NULL && plan->workspace_bytes > 0) workspace = cuda_scratch(be, plan->workspace_bytes);
    if (cuda_failed(be)) return CUBLAS_STATUS_SUCCESS;  // the failure is already kept

    // If our kernel applies the activation, the library's output is the pre-activation: write it to pre directly.
    const bool through_pre = left & FUSE_ACT && args->act != ACT_NONE && !tensor_is_none(args->pre);
    void *to = through_pre ? args->pre.data : call->out.data;
    const void *add = tensor_is_none(args->add) ? to : args->add.data;
    const float alpha = args->alpha, beta = tensor_is_none(args->add) ? 0.0f : args->beta;
    cublasStatus_t status = matmul_set_pointers(plan, call);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmul(matmul_state(be)->lt, plan->desc, &alpha, call->b, plan->layout_b, call->a,
                                plan->layout_a, &beta, add, plan->layout_out, to, plan->layout_out, &plan->algo,
                                workspace, plan->workspace_bytes, cuda_stream(be));
    if (status == CUBLAS_STATUS_SUCCESS && left & (FUSE_BIAS | FUSE_ACT))
        matmul_finish(be, call, to, NULL, plan->fused);
    return status;
}

Absmax *absmax_state(const Backend *be) { return &matmul_state(be)->absmax; }

static cudaDataType_t library_type(DType dtype) { return dtype == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF; }

static void cuda_matmul(Backend *be, Tensor out, Tensor a, Tensor b, MatmulArgs args) {
    const bool batch = out.ndim == 3;
    if (batch) op_check_matmul_batch(out, a, b, &args);
    const Tensor out_one = batch ? tensor_2d(out.data, out.dtype, out.dim[1], out.dim[2]) : out;
    const Tensor a_one = batch ? tensor_2d(a.data, a.dtype, a.dim[1], a.dim[2]) : a;
    const Tensor b_one = batch ? tensor_2d(b.data, b.dtype, b.dim[1], b.dim[2]) : b;
    MatmulArgs args_one = args;
    if (batch && !tensor_is_none(args.add))
        args_one.add = tensor_2d(args.add.data, args.add.dtype, args.add.dim[1], args.add.dim[2]);
    const int64_t K = op_check_matmul(out_one, a_one, b_one, &args_one);
    CHECK(args.fp8 == FP8_NONE || be->matmul_fp8, "matmul: no 8-bit floats on this device%s", "");

    MatmulCall call;
    memset(&call, 0, sizeof call);
    call.M = out_one.dim[0];
    call.N = out_one.dim[1];
    call.K = K;
    call.batch = batch ? out.dim[0] : 1;
    call.a = a.data;
    call.b = b.data;
    call.type_a = call.type_b = library_type(a.dtype);
    call.trans_a = args.trans_a;
    call.trans_b = args.trans_b;
    call.out = out;
    call.rows = a;
    call.args = args;
    const bool nothing = call.M == 0 || call.N == 0 || call.batch == 0;
    if (nothing || K == 0) {
        if (!tensor_is_none(args.sums)) be->bias_backward(be, args.sums, a, args.accumulate_sums);
        if (!nothing) matmul_finish(be, &call, NULL, args.add.data, 0);
        return;
    }
    if (args.fp8 != FP8_NONE) matmul_fp8_round(be, &call, a, b);
    const MatmulPlan *plan = cuda_failed(be) ? NULL : matmul_plan(be, &call);
    if (plan != NULL) matmul_ok(be, matmul_issue(be, plan, &call), "matrix multiplication (cublasLtMatmul)");
    absmax_keep(be, a, call.most_a);
    absmax_keep(be, b, call.most_b);
}

void matmul_register_cuda(Backend *be) {
    CudaState *cuda = cuda_state(be);
    be->matmul = cuda_matmul;
    MatmulState *state = (MatmulState *)xcalloc(1, sizeof *state);
    cuda->matmul = state;
    be->matmul_fp8 = cuda->compute_capability >= 89;
    if (be->matmul_fp8 && !absmax_open(be, &state->absmax)) return;
    if (!matmul_ok(be, cublasLtCreate(&state->lt), "opening cuBLASLt (cublasLtCreate)")) return;
    matmul_cache_open(&state->cache, cuda->cache_dir, cuda->gpu_name, cublasLtGetVersion());
}

void matmul_close_cuda(Backend *be) {
    MatmulState *state = matmul_state(be);
    if (state == NULL) return;
    for (int64_t i = 0; i < state->slots; ++i) matmul_plan_free(&state->plans[i]);
    free(state->plans);
    matmul_cache_close(&state->cache);
    absmax_close(&state->absmax);
    if (state->lt != NULL) cublasLtDestroy(state->lt);
    free(state);
    cuda_state(be)->matmul = NULL;
}
