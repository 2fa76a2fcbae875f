// pointwise.cu: elementwise operations: activations, residual adds, casts, the logit soft-cap. Must not know models.
//
// All are memory-bound: the comments give the elements moved. A thread loads several packs of 16 bytes before it
// stores the first, and reads nothing that it has stored, so that outputs may be inputs.
#include "llmc/cuda/absmax.h"
#include "llmc/cuda/activation.h"
#include "llmc/cuda/backend_cuda.h"
#include "llmc/backend/op_check.h"

#define POINTWISE_THREADS 256
#define POINTWISE_PACKS 4  // per thread

// The flat kernels: thread t of a block has its packs t, t + POINTWISE_THREADS, ... of W elements.
static __device__ __forceinline__ int64_t pointwise_pack(int k) {
    return (int64_t)blockIdx.x * (POINTWISE_THREADS * POINTWISE_PACKS) + k * POINTWISE_THREADS + threadIdx.x;
}
static dim3 pointwise_grid(int64_t packs) {
    return dim3((unsigned)div_up(packs, POINTWISE_THREADS * POINTWISE_PACKS));
}

// ---- activations ----
// most: the record of the output's largest magnitude, or NULL. pre read, out written: 2 * elems.
template <class T, int W, Activation KIND>
static __global__ void __launch_bounds__(POINTWISE_THREADS)
    activation_forward_kernel(T *out, uint32_t *most, const T *pre, int64_t packs) {
    Pack<T, W> x[POINTWISE_PACKS];
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k)
        if (pointwise_pack(k) < packs) x[k] = pack_load_once<T, W>(pre + pointwise_pack(k) * W);
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        float v[W];
        pack_to_floats<W>(v, x[k]);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            v[i] = activation_apply(KIND, v[i]);
            largest = absmax_add(largest, v[i]);
        }
        pack_store<T, W>(out + pointwise_pack(k) * W, pack_from_floats<T, W>(v));
    }
    absmax_record<T>(most, largest);
}
// dout and pre read, dpre written: 3 * elems.
template <class T, int W, Activation KIND>
static __global__ void __launch_bounds__(POINTWISE_THREADS)
    activation_backward_kernel(T *dpre, uint32_t *most, const T *dout, const T *pre, int64_t packs) {
    Pack<T, W> x[POINTWISE_PACKS], d[POINTWISE_PACKS];
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        x[k] = pack_load_once<T, W>(pre + pointwise_pack(k) * W);
        d[k] = pack_load_once<T, W>(dout + pointwise_pack(k) * W);
    }
    uint32_t largest = 0;
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        float v[W], dy[W];
        pack_to_floats<W>(v, x[k]);
        pack_to_floats<W>(dy, d[k]);
#pragma unroll
        for (int i = 0; i < W; ++i) {
            v[i] = dy[i] * activation_derivative(KIND, v[i]);
            largest = absmax_add(largest, v[i]);
        }
        pack_store<T, W>(dpre + pointwise_pack(k) * W, pack_from_floats<T, W>(v));
    }
    absmax_record<T>(most, largest);
}

// A pre-activation row is [gate(F) | up(F)]: out = gate sigmoid(gate) up. `blocks` blocks share a row, so that
// threads need no division. Reads 2, writes 1 * N*F.
template <class T, int W>
static __global__ void __launch_bounds__(POINTWISE_THREADS)
    swiglu_forward_kernel(T *out, uint32_t *most, const T *pre, int64_t F, unsigned blocks) {
    int64_t row = blockIdx.x / blocks, f = ((int64_t)(blockIdx.x % blocks) * blockDim.x + threadIdx.x) * W;
    uint32_t largest = 0;
    if (f < F) {
        float gate[W], up[W];
        pack_to_floats<W>(gate, pack_load_once<T, W>(pre + row * 2 * F + f));
        pack_to_floats<W>(up, pack_load_once<T, W>(pre + row * 2 * F + F + f));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            up[i] *= gate[i] * sigmoid(gate[i]);
            largest = absmax_add(largest, up[i]);
        }
        pack_store<T, W>(out + row * F + f, pack_from_floats<T, W>(up));
    }
    absmax_record<T>(most, largest);
}
// Reads 3, writes 2 * N*F.
template <class T, int W>
static __global__ void __launch_bounds__(POINTWISE_THREADS)
    swiglu_backward_kernel(T *dpre, uint32_t *most, const T *dout, const T *pre, int64_t F, unsigned blocks) {
    int64_t row = blockIdx.x / blocks, f = ((int64_t)(blockIdx.x % blocks) * blockDim.x + threadIdx.x) * W;
    uint32_t largest = 0;
    if (f < F) {
        float gate[W], up[W], d[W];
        pack_to_floats<W>(gate, pack_load_once<T, W>(pre + row * 2 * F + f));
        pack_to_floats<W>(up, pack_load_once<T, W>(pre + row * 2 * F + F + f));
        pack_to_floats<W>(d, pack_load_once<T, W>(dout + row * F + f));
#pragma unroll
        for (int i = 0; i < W; ++i) {
            float s = sigmoid(gate[i]), dup = d[i] * gate[i] * s;
            gate[i] = d[i] * up[i] * s * (1.0f + gate[i] * (1.0f - s));
            up[i] = dup;
            largest = absmax_add(absmax_add(largest, gate[i]), up[i]);
        }
        pack_store<T, W>(dpre + row * 2 * F + f, pack_from_floats<T, W>(gate));
        pack_store<T, W>(dpre + row * 2 * F + F + f, pack_from_floats<T, W>(up));
    }
    absmax_record<T>(most, largest);
}

// The operands of an activation call; the forward pass has no dout.
typedef struct {
    Tensor out, dout, pre;
    Activation kind;
    uint32_t *most;  // out's
} ActivationCall;

template <class T, int W, Activation KIND>
static void activation_launch(Backend *be, const ActivationCall *c) {
    int64_t packs = tensor_elems(c->out) / W;
    if (tensor_is_none(c->dout))
        GPU_LAUNCH(be, (activation_forward_kernel<T, W, KIND>), pointwise_grid(packs), dim3(POINTWISE_THREADS), 0,
                   (T *)c->out.data, c->most, (const T *)c->pre.data, packs);
    else
        GPU_LAUNCH(be, (activation_backward_kernel<T, W, KIND>), pointwise_grid(packs), dim3(POINTWISE_THREADS), 0,
                   (T *)c->out.data, c->most, (const T *)c->dout.data, (const T *)c->pre.data, packs);
}
template <class T, int W>
static void swiglu_launch(Backend *be, const ActivationCall *c) {
    int64_t N = c->pre.dim[0], F = c->pre.dim[1] / 2;
    if (F == 0) return;
    int64_t blocks = div_up(F / W, POINTWISE_THREADS), threads = round_up(div_up(F / W, blocks), WARP);
    if (tensor_is_none(c->dout))
        GPU_LAUNCH(be, (swiglu_forward_kernel<T, W>), dim3((unsigned)(N * blocks)), dim3((unsigned)threads), 0,
                   (T *)c->out.data, c->most, (const T *)c->pre.data, F, (unsigned)blocks);
    else
        GPU_LAUNCH(be, (swiglu_backward_kernel<T, W>), dim3((unsigned)(N * blocks)), dim3((unsigned)threads), 0,
                   (T *)c->out.data, c->most, (const T *)c->dout.data, (const T *)c->pre.data, F,
                   (unsigned)blocks);
}
template <class T, int W>
static void activation_kind(Backend *be, const ActivationCall *c) {
    if (c->kind == ACT_SWIGLU) swiglu_launch<T, W>(be, c);
    else if (c->kind == ACT_GELU) activation_launch<T, W, ACT_GELU>(be, c);
    else if (c->kind == ACT_RELU2) activation_launch<T, W, ACT_RELU2>(be, c);
    else CHECK(false, "no kernel for activation %d", (int)c->kind);
}
template <class T>
static void activation_any(Backend *be, const ActivationCall *c) {
    int64_t unit = activation_is_gated(c->kind) ? c->pre.dim[1] / 2 : tensor_elems(c->pre);
    bool vector =
        unit % PACK<T> == 0 && gpu_aligned(c->out.data) && gpu_aligned(c->dout.data) && gpu_aligned(c->pre.data);
    if (tensor_elems(c->pre) == 0) return;
    if (vector) activation_kind<T, PACK<T>>(be, c);
    else activation_kind<T, 1>(be, c);
}

static void activation_run(Backend *be, ActivationCall *call) {
    call->most = absmax_begin(be, call->out);
    if (call->pre.dtype == DTYPE_F32) activation_any<float>(be, call);
    else activation_any<bf16>(be, call);
    absmax_end(be, call->out, call->most);
}
static void activation_forward(Backend *be, Tensor out, Tensor pre, Activation kind) {
    op_check_activation(out, pre, kind);
    ActivationCall call = {out, TENSOR_NONE, pre, kind, NULL};
    activation_run(be, &call);
}
static void activation_backward(Backend *be, Tensor dpre, Tensor dout, Tensor pre, Activation kind) {
    op_check_activation_backward(dpre, dout, pre, kind);
    ActivationCall call = {dpre, dout, pre, kind, NULL};
    activation_run(be, &call);
}

// ---- add, cast, soft-cap ----
// Reads 2, writes 1 * elems.
template <class T, int W>
static __global__ void __launch_bounds__(POINTWISE_THREADS)
    add_kernel(T *out, const T *a, const T *b, int64_t packs) {
    Pack<T, W> x[POINTWISE_PACKS], y[POINTWISE_PACKS];
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        x[k] = pack_load_once<T, W>(a + pointwise_pack(k) * W);
        y[k] = pack_load_once<T, W>(b + pointwise_pack(k) * W);
    }
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        float v[W], w[W];
        pack_to_floats<W>(v, x[k]);
        pack_to_floats<W>(w, y[k]);
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] += w[i];
        pack_store<T, W>(out + pointwise_pack(k) * W, pack_from_floats<T, W>(v));
    }
}
template <class T, int W>
static void add_launch(Backend *be, Tensor out, Tensor a, Tensor b) {
    int64_t packs = tensor_elems(out) / W;
    GPU_LAUNCH(be, (add_kernel<T, W>), pointwise_grid(packs), dim3(POINTWISE_THREADS), 0, (T *)out.data,
               (const T *)a.data, (const T *)b.data, packs);
}
template <class T>
static void add_any(Backend *be, Tensor out, Tensor a, Tensor b) {
    if (tensor_elems(out) % PACK<T> == 0 && gpu_aligned(out.data) && gpu_aligned(a.data) && gpu_aligned(b.data))
        add_launch<T, PACK<T>>(be, out, a, b);
    else add_launch<T, 1>(be, out, a, b);
}
static void add(Backend *be, Tensor out, Tensor a, Tensor b) {
    op_check_add(out, a, b);
    if (tensor_elems(out) == 0) return;
    if (out.dtype == DTYPE_F32) add_any<float>(be, out, a, b);
    else add_any<bf16>(be, out, a, b);
}

// W elements are 8 bytes of the narrower type and 16 of the wider one.
template <class To, class From, int W>
static __global__ void __launch_bounds__(POINTWISE_THREADS) cast_kernel(To *out, const From *in, int64_t packs) {
    Pack<From, W> x[POINTWISE_PACKS];
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k)
        if (pointwise_pack(k) < packs) x[k] = pack_load_once<From, W>(in + pointwise_pack(k) * W);
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        float v[W];
        pack_to_floats<W>(v, x[k]);
        pack_store<To, W>(out + pointwise_pack(k) * W, pack_from_floats<To, W>(v));
    }
}
template <class To, class From, int W>
static void cast_launch(Backend *be, Tensor out, Tensor in) {
    int64_t packs = tensor_elems(out) / W;
    GPU_LAUNCH(be, (cast_kernel<To, From, W>), pointwise_grid(packs), dim3(POINTWISE_THREADS), 0, (To *)out.data,
               (const From *)in.data, packs);
}
template <class To, class From>
static void cast_any(Backend *be, Tensor out, Tensor in) {
    if (tensor_elems(out) % PACK<float> == 0 && gpu_aligned(out.data) && gpu_aligned(in.data))
        cast_launch<To, From, PACK<float>>(be, out, in);
    else cast_launch<To, From, 1>(be, out, in);
}
static void cast(Backend *be, Tensor out, Tensor in) {
    op_check_cast(out, in);
    if (tensor_elems(out) == 0) return;
    if (out.dtype == in.dtype) be->copy(be, out.data, in.data, tensor_bytes(in));
    else if (out.dtype == DTYPE_BF16) cast_any<bf16, float>(be, out, in);
    else cast_any<float, bf16>(be, out, in);
}

// Reads 1, writes 1 * elems.
template <class T, int W>
static __global__ void __launch_bounds__(POINTWISE_THREADS) softcap_kernel(T *logits, int64_t packs, float cap) {
#pragma unroll
    for (int k = 0; k < POINTWISE_PACKS; ++k) {
        if (pointwise_pack(k) >= packs) continue;
        float v[W];
        pack_to_floats<W>(v, pack_load<T, W>(logits + pointwise_pack(k) * W));
#pragma unroll
        for (int i = 0; i < W; ++i) v[i] = cap * tanhf(v[i] / cap);
        pack_store<T, W>(logits + pointwise_pack(k) * W, pack_from_floats<T, W>(v));
    }
}
template <class T, int W>
static void softcap_launch(Backend *be, Tensor logits, float cap) {
    int64_t packs = tensor_elems(logits) / W;
    GPU_LAUNCH(be, (softcap_kernel<T, W>), pointwise_grid(packs), dim3(POINTWISE_THREADS), 0, (T *)logits.data, packs,
               cap);
}
template <class T>
static void softcap_any(Backend *be, Tensor logits, float cap) {
    if (tensor_elems(logits) % PACK<T> == 0 && gpu_aligned(logits.data)) softcap_launch<T, PACK<T>>(be, logits, cap);
    else softcap_launch<T, 1>(be, logits, cap);
}
static void softcap(Backend *be, Tensor logits, float cap) {
    op_check_softcap(logits, cap);
    if (tensor_elems(logits) == 0) return;
    if (logits.dtype == DTYPE_F32) softcap_any<float>(be, logits, cap);
    else softcap_any<bf16>(be, logits, cap);
}

void pointwise_register_cuda(Backend *be) {
    be->activation_forward = activation_forward;
    be->activation_backward = activation_backward;
    be->add = add;
    be->cast = cast;
    be->softcap = softcap;
}
