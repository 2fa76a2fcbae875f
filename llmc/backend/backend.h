// backend.h: the seam between the model (written once, in C) and the devices that compute it. A Backend is one struct
// of function pointers: memory, transfers, then one entry per operation. The CPU backend (llmc/cpu) is compiled in;
// other backends are plug-ins that fill the same struct. Must not know models, layers or training.
//
// Contracts that hold for every operation:
//   * operands are contiguous row-major Tensors in this backend's memory; shapes and dtypes are CHECKed;
//   * operations are issued in order on one compute stream; only upload, download, wait and synchronize may block;
//   * a device failure is kept and returned by wait and synchronize; operations issued after it do nothing;
//   * "=" overwrites (the destination may hold anything, NaN included), "+=" adds to what is there;
//   * an output may alias an input only where the entry allows it;
//   * activation tensors ("act") are fp32 or bf16, one dtype within a call; parameter tensors have the same dtype;
//     gradients of parameters, statistics and losses are fp32; arithmetic is fp32 or wider, rounded once on store;
//   * results do not depend on the number of threads: every reduction has a fixed order;
//   * empty tensors (a zero leading dimension) are allowed and do nothing.
//
// Letters (glossary in model.h): N rows (= B*T in training), C channels, V vocabulary, Vp padded vocabulary,
// NH query heads, NKV key/value heads, HS head size, F feed-forward width, QKV = (NH + 2*NKV)*HS.
#ifndef LLMC_BACKEND_H
#define LLMC_BACKEND_H

#include "llmc/backend/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Backend Backend;
struct Comm;
struct CommOptions;

// A point in the device's work. A ticket of mark has passed when everything issued before it is done, a ticket of a
// transfer when the bytes have arrived. 0 has always passed.
typedef int64_t Ticket;

// A piece of a download. host is host_alloc memory that the caller leaves alone until the ticket has passed.
typedef struct {
    void *host;
    const void *device;
    size_t bytes;
} DownloadPiece;

// out(M,N) = alpha * op(a) op(b) + beta * add [+ bias] [then activation, or times an activation's derivative]
// Order: acc = alpha*sum; acc += beta*add; acc += bias[n]; then at most one of
//   act      pre = acc (saved when pre is given), out = act(acc)           forward; ACT_GELU or ACT_RELU2
//   act_grad out = acc * act'(pre)                                         backward; pre is read
// Three-dimensional operands (G, rows, columns) are G independent products; then only alpha, beta and add are used.
typedef struct {
    bool trans_a;  // a is stored (K,M) instead of (M,K)
    bool trans_b;  // b is stored (N,K) instead of (K,N): a linear layer's weight (out,in)
    float alpha;   // 1 for the ordinary product
    float beta;    // used when add is given
    Tensor add;    // (M,N), out's dtype; may be out itself: then beta=1 is "+="
    Tensor bias;   // (N), a's dtype
    Activation act;
    Activation act_grad;
    Tensor pre;  // (M,N), out's dtype
    // With trans_a: sums (M) fp32 {=, += if accumulate_sums} of op(a)'s rows, which is the bias gradient when a is
    // dout and the product is dout^T x.
    Tensor sums;
    bool accumulate_sums;
    // Inputs, bf16, are rounded to 8-bit floats first, scaled per tensor by its largest magnitude; N is a multiple of
    // 16. Backends without matmul_fp8 abort.
    Fp8Role fp8;
} MatmulArgs;

typedef struct {
    NormKind kind;
    float eps;
    Tensor residual;  // (N,C) act, added to the normalized rows; TENSOR_NONE: none. Forward only
} NormArgs;

// Rotary position embedding, "rotate half" pairing (i, i + HS/2) as in Hugging Face; tables are (max position, HS/2).
typedef struct {
    int64_t NH, NKV, HS;
    bool use_rope;
    Tensor cos, sin;            // fp32 (P, HS/2)
    Tensor q_weight, k_weight;  // (HS), RMS norm over each head before the rotation; TENSOR_NONE: no QK-norm
    float eps;
} QkArgs;

// allowed(i,j) <=> doc_i == doc_j  and  (j <= i or prefix_j)  and  (window == 0 or i - j < window)
// (with prefix_j, j > i is allowed whatever the window: i - j is negative.)
typedef struct {
    int64_t B, T;
    int64_t NH, NKV, HS;  // NH is a multiple of NKV; query head h reads key/value head h / (NH/NKV)
    float scale;          // scores = scale * q.k
    int64_t window;       // 0: no limit
    Tensor doc;           // int32 (B,T), non-decreasing along a row; TENSOR_NONE: one document a row
    Tensor prefix;        // uint8 (B,T); TENSOR_NONE: plain causal
} AttentionArgs;

typedef struct {
    int64_t V;         // real vocabulary; columns V..Vp of the logits are ignored, their gradient is 0
    float softcap;      // logits = softcap * tanh(logits / softcap) first; 0: off
    bool want_grad;     // false: logits are left in an unspecified state, only nll is written
    Tensor loss_scale;  // (1) fp32: the gradient is d(loss_scale * sum_i weight_i * nll_i)/d(logits)
} CrossEntropyArgs;

// Statistics of the whole gradient for the optimizer, kept on the device so that no step waits for the host.
typedef struct {
    double sum_squares;  // of the unclipped gradient
    float norm;          // sqrt(sum_squares)
    float scale;         // factor of every gradient element: min(1, max_norm/norm), 1 if max_norm <= 0
    int32_t skip;        // SkipReason; unless SKIP_NOT, updates change nothing
    int32_t pad;
} GradStats;

typedef struct {
    float max_norm;     // of the clipped gradient; <= 0: no clipping
    double skip_norm;   // INFINITY: no bound
    double skip_loss;   // INFINITY: no bound
    double loss_scale;  // loss = sum of the loss sums * loss_scale
} ClipArgs;

// One parameter tensor, or a matrix that is part of one, for the optimizer. The updated value is fp32 `master` if it
// is set, else bf16 `weight`: then the update is computed in fp32 and rounded stochastically, by the rule of
// rng_philox.h, from (seed, t, index of the element among all parameters).
typedef struct {
    float *master;       // in fp32 runs the weights themselves; NULL: weight is the value
    uint16_t *weight;    // bf16: master's copy, rounded to nearest after the update, or the value; NULL in fp32 runs
    const float *grad;   // [elems], as m and v
    float *m;            // first moment (AdamW) or momentum (Muon)
    float *v;            // second moment (AdamW); NULL for Muon
    int64_t elems;
    int64_t first_elem;  // index of the first element among all parameters
    float lr;            // learning rate of this tensor at this step
    float weight_decay;  // decoupled: value -= lr * weight_decay * value
} OptimTensor;

typedef struct {
    float beta1, beta2, eps;
    int64_t t;      // 1 for the first step: bias corrections 1 - beta^t
    uint64_t seed;  // of stochastic rounding
} AdamwArgs;

typedef struct {
    float momentum;
    bool nesterov;
    int64_t t;      // 1 for the first step
    uint64_t seed;  // of stochastic rounding
} MuonArgs;

// Upper bounds of the operands of all operations in a run, to plan their workspace.
typedef struct {
    int64_t rows;       // N of the largest activation
    int64_t seq_len;    // longest T, or positions of a KV cache
    int64_t head_size;  // HS
    int64_t NH, NKV;
    int64_t widest;      // largest last dimension of an activation, logits excepted
    int64_t Vp;          // last dimension of the logits
    int64_t chunk_rows;  // rows of the logits alive at a time
    int64_t tensors;     // parameter tensors, or parts of them, that one update call may list
    int64_t fp8_elems;   // most elements of both inputs of an fp8 product, K rounded up to a multiple of 16; 0: none
    bool attention_library;  // a library may serve attention: bf16 and not attention=own
} WorkspaceShape;

// Readings of a working device; 0: unknown.
typedef struct {
    double clock_mhz, power_watts, temperature_celsius;
    size_t memory_used_bytes;  // of the whole device, by all processes
} DeviceTelemetry;

struct Backend {
    const char *name;              // "cpu", "cuda", "cudaemu"
    char description[256];         // human-readable: "AMD EPYC, 2 threads, AVX-512 BF16"
    int threads;                   // host threads used by operations (CPU), else 0
    bool bf16_native;              // bf16 dot products in hardware
    bool matmul_fp8;               // matmul takes MatmulArgs.fp8
    bool shares_host_memory;       // its memory is host memory, shared with the loader and checkpoints
    bool counts_only;              // computes nothing (counting.h): operands need not hold values
    size_t library_bytes;          // device memory that the driver and libraries took at open, measured
    char peak_source[96];          // source of measure_peak's last figure
    char attention_choice[160];    // the last attention implementation and why; "": none yet, or only one exists
    size_t workspace_limit_bytes;  // most that operations may keep beside operands; 0: no limit. See plan_workspace
    void *impl;                    // the backend's own state

    // ---- memory ----
    // Page- or 256-byte aligned, not zeroed. Returns NULL and fills err when there is not enough.
    void *(*alloc)(Backend *be, size_t bytes, Error *err);
    void (*free)(Backend *be, void *pointer, size_t bytes);
    void (*zero)(Backend *be, void *pointer, size_t bytes);
    size_t (*memory_free)(Backend *be);  // bytes that alloc can still return; 0: unknown
    void (*upload)(Backend *be, void *device, const void *host, size_t bytes);    // host may be reused after return
    void (*download)(Backend *be, void *host, const void *device, size_t bytes);  // waits for everything issued before
    void (*copy)(Backend *be, void *to, const void *from, size_t bytes);          // device to device, no overlap
    bool (*synchronize)(Backend *be, Error *err);  // waits; false: an operation failed on the device

    // ---- transfers beside the computation ----
    // Host memory for them (page-locked on a GPU). NULL and err when there is not enough.
    void *(*host_alloc)(Backend *be, size_t bytes, Error *err);
    void (*host_free)(Backend *be, void *pointer);
    // The point after everything issued so far.
    Ticket (*mark)(Backend *be);
    // Operations issued from now on read the new bytes. The transfer waits only for the point `after`: operations
    // issued after that point must not use the destination, so the transfer runs beside them. host (host_alloc
    // memory) must not change until the returned ticket has passed.
    Ticket (*upload_after)(Backend *be, void *device, const void *host, size_t bytes, Ticket after);
    // Copies the sources as everything issued so far leaves them; they are in host once the ticket has passed. With
    // no pieces the ticket passes when everything issued so far is done. The copies run beside operations issued from
    // now on, which may read the sources; an operation that writes to one must be preceded by `after`, unless the
    // host has waited for the ticket.
    Ticket (*download_begin)(Backend *be, const DownloadPiece *pieces, int64_t count);
    // Operations issued from now on begin after the ticket has passed. The host does not wait.
    void (*after)(Backend *be, Ticket ticket);
    bool (*has_passed)(Backend *be, Ticket ticket);        // does not wait; true after a failure
    bool (*wait)(Backend *be, Ticket ticket, Error *err);  // false: the device failed, err holds the message
    // Device time between two of the last few dozen tickets, both passed; < 0 if the device measures no time.
    double (*elapsed_ms)(Backend *be, Ticket from, Ticket to);

    // ---- repeated sequences of operations (CUDA graphs) ----
    // Operations between begin and end with one key are the same each time: same tensors, same arguments. begin
    // returns true when the sequence has been replayed as a whole; the caller then issues nothing and calls no end.
    // Keys belong to the backend: no two models may share one. Inside a sequence only operations may be issued: no
    // transfer, mark, after, wait or collective.
    bool (*sequence_begin)(Backend *be, uint64_t key);
    void (*sequence_end)(Backend *be, uint64_t key);

    // A group of ranks whose tensors are in this backend's memory (comm.h); NULL: host memory, any transport works.
    bool (*comm_open)(struct Comm **out, Backend *be, const struct CommOptions *options, Error *err);
    void (*close)(Backend *be);                    // frees the backend itself
    // Bytes that operations within these bounds may keep beyond their operands (packing buffers, partial sums). A run
    // sets workspace_limit_bytes to it, and an operation that would need more aborts.
    size_t (*plan_workspace)(const Backend *be, WorkspaceShape shape);
    // Dense multiply-add rate for matmul inputs of this dtype, FLOP/s: the divisor of "% of peak". CPU: measured over
    // all threads for ~10 ms with operands in registers. GPU: the dense figure of its data sheet or, for an unknown
    // model, of large matmuls measured now. peak_source names the source.
    double (*measure_peak)(Backend *be, DType dtype);
    bool (*telemetry)(Backend *be, DeviceTelemetry *out);  // false: no readings

    // ---- matrix multiplication ----
    // out fp32 or bf16; a and b of one dtype; (fp32,fp32)->fp32, (bf16,bf16)->bf16 or fp32. fp32 accumulation.
    void (*matmul)(Backend *be, Tensor out, Tensor a, Tensor b, MatmulArgs args);
    // dbias(C) fp32 {=, += if accumulate} column sums of dout(N,C).
    void (*bias_backward)(Backend *be, Tensor dbias, Tensor dout, bool accumulate);

    // ---- embedding ----
    // out(N,C) = wte[tokens[i]] + wpe[positions[i]]; wpe may be TENSOR_NONE. tokens, positions int32 (N).
    void (*embedding_forward)(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte, Tensor wpe);
    // dwte(Vp,C) fp32 +=, dwpe(P,C) fp32 += (or TENSOR_NONE). Rows are added in increasing i: deterministic.
    void (*embedding_backward)(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens, Tensor positions);

    // ---- normalization over the last dimension ----
    // out(N,C) = [residual +] norm(x); mean(N) and rstd(N) fp32 = (mean is TENSOR_NONE for RMS); bias may be
    // TENSOR_NONE. The residual is added in fp32, before the one rounding; it may be out's memory (then "+=") or x's.
    void (*norm_forward)(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                         NormArgs args);
    // dx(N,C) act {=, += if accumulate_dx}; dweight(C), dbias(C) fp32 {=, += if accumulate_dw}; dbias may be NONE.
    // args.residual is ignored: the residual's gradient is dout itself, which is only read. The gradient of x in
    // out = residual + norm(x) is taken with accumulate_dx false into a tensor of its own: dx must not be dout.
    void (*norm_backward)(Backend *be, Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x, Tensor weight,
                          Tensor mean, Tensor rstd, bool accumulate_dx, bool accumulate_dw, NormArgs args);

    // ---- q and k between their projection and attention ----
    // out(N,QKV) = in with q and k heads RMS-normalized (optional) and then rotated (optional); v is copied.
    // out may be in when there is no QK-norm. rstd fp32 (N, NH+NKV) = with QK-norm, else TENSOR_NONE.
    void (*qk_forward)(Backend *be, Tensor out, Tensor rstd, Tensor in, Tensor positions, QkArgs args);
    // din(N,QKV) =; may be dout. dq_weight, dk_weight (HS) fp32 {=, += if accumulate_dw}, TENSOR_NONE without
    // QK-norm. `in` is the forward's input; only read with QK-norm.
    void (*qk_backward)(Backend *be, Tensor din, Tensor dq_weight, Tensor dk_weight, Tensor dout, Tensor in,
                        Tensor rstd, Tensor positions, bool accumulate_dw, QkArgs args);

    // ---- attention ----
    // out(B*T, NH*HS) =; lse fp32 (B,NH,T) = log of the softmax denominator (scores included). qkv (B*T, QKV) holds
    // [q heads | k heads | v heads]. Memory beyond out and lse is O(T) per thread, never O(T*T). (FlashAttention-2,
    // Dao 2023.)
    void (*attention_forward)(Backend *be, Tensor out, Tensor lse, Tensor qkv, AttentionArgs args);
    // dqkv(B*T, QKV) =.
    void (*attention_backward)(Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                               AttentionArgs args);
    // Incremental decoding of one sequence: the n new positions start, start+1, ... of qkv(n, QKV) are appended to
    // k_cache and v_cache (Tmax, NKV*HS), then out(n, NH*HS) = causal attention over the cache. args.T = n, args.B
    // = 1.
    void (*attention_decode)(Backend *be, Tensor out, Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t start,
                             AttentionArgs args);

    // ---- activations ----
    // out(N,F) =; pre is (N,F), for a gated activation (N,2F).
    void (*activation_forward)(Backend *be, Tensor out, Tensor pre, Activation kind);
    // dpre = (shape of pre); dpre may be pre's or (not gated) dout's memory.
    void (*activation_backward)(Backend *be, Tensor dpre, Tensor dout, Tensor pre, Activation kind);

    // ---- loss ----
    // nll(N) fp32 = -log softmax(logits)[target]; logits(N,Vp) act become their own gradient in place (weights and
    // loss_scale applied). weights fp32 (N): rows of weight 0 give nll 0 and zero gradient, whatever their target.
    void (*cross_entropy)(Backend *be, Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                          CrossEntropyArgs args);
    // logits(N,Vp) in place = softcap * tanh(logits/softcap); for sampling.
    void (*softcap)(Backend *be, Tensor logits, float softcap);
    // out (1) fp64 {=, += if accumulate} sum_i weights[i] * nll[i].
    void (*weighted_sum)(Backend *be, Tensor out, Tensor nll, Tensor weights, bool accumulate);

    // ---- elementwise ----
    void (*add)(Backend *be, Tensor out, Tensor a, Tensor b);  // out = a + b; out may be a or b
    void (*cast)(Backend *be, Tensor out, Tensor in);          // fp32 <-> bf16, or a copy; no overlap

    // ---- optimizer ----
    // out (1) fp64 = sum of squares of x, fp32, in a fixed order that depends on its length alone; 0 of no elements.
    void (*sum_squares)(Backend *be, Tensor out, Tensor x);
    // *stats (device memory) = norm, clip scale and whether to skip, of a gradient whose sum of squares is the sum, in
    // order, of sums (n) fp64; loss_sums (m) fp64, added in order, or TENSOR_NONE: the loss is not checked.
    void (*grad_clip)(Backend *be, GradStats *stats, Tensor sums, Tensor loss_sums, ClipArgs args);
    // *out (device memory) {=, += if accumulate} sum mod 2^64 over i of hash_element(first_elem + i, bits of x[i]),
    // llmc/base/hash_element.h; x fp32 or bf16. It does not depend on the division into calls or ranks.
    void (*hash_sum)(Backend *be, uint64_t *out, Tensor x, int64_t first_elem, bool accumulate);
    // One call for all tensors. Does nothing when stats->skip. (Loshchilov & Hutter, "Decoupled weight decay".)
    //   g = grad*scale; m = b1 m + (1-b1) g; v = b2 v + (1-b2) g^2;
    //   value -= lr * (m/(1-b1^t) / (sqrt(v/(1-b2^t)) + eps) + weight_decay * value)
    void (*adamw)(Backend *be, const OptimTensor *tensors, int64_t count, const GradStats *stats, AdamwArgs args);
    // Muon takes equally shaped matrices together: tensors[count] of r*c elements each, x and update (count, r, c)
    // act. Each matrix's result does not depend on the others.
    // Step 1: m = momentum*m + g*scale; update = (nesterov ? g*scale + momentum*m : m). Skips like adamw (update is
    // then 0).
    void (*muon_momentum)(Backend *be, Tensor update, const OptimTensor *tensors, int64_t count,
                          const GradStats *stats, MuonArgs args);
    // Step 2: each matrix of x /= (its Frobenius norm + eps).
    void (*frobenius_normalize)(Backend *be, Tensor x, float eps);
    // Step 3: value -= lr * (x + weight_decay * value).
    void (*muon_apply)(Backend *be, const OptimTensor *tensors, int64_t count, Tensor x, const GradStats *stats,
                       MuonArgs args);
};

// Options for opening a plug-in.
#define BACKEND_ABI 4
typedef struct {
    int abi;                // BACKEND_ABI of the caller; a plug-in of another version refuses
    size_t backend_bytes;   // sizeof(Backend), likewise
    int device_index;       // index among the visible GPUs; ignored if only one is visible
    const char *attention;  // "auto", "cudnn" or "own"
    const char *cache_dir;  // directory of the measured matmul algorithms; NULL: not kept
    bool graphs;            // sequences are captured and replayed
} BackendOptions;
// libllmc_<device>.so exports it as "backend_plugin_entry".
typedef Backend *BackendPluginEntry(const BackendOptions *options, Error *err);
// plan_workspace of the CUDA backend, for plans made without the plug-in.
size_t backend_cuda_plan_workspace(WorkspaceShape shape);

// The CPU backend. threads = 0: OMP_NUM_THREADS or all cores. isa: NULL or "auto" for the best of this CPU, or one of
// "generic", "avx2", "avx512", "avx512bf16" (an error if the CPU lacks it).
Backend *backend_cpu_open(int threads, const char *isa, Error *err);

#ifdef __cplusplus
}
#endif
#endif
