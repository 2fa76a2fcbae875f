// counting.c: see counting.h. Each entry counts, then calls the inner backend if there is one.
#include "llmc/backend/counting.h"

#include <stdio.h>
#include <sys/mman.h>

static Counting *counting_of(Backend *be) { return be->impl; }

// ---------------------------------------------------------------------------------------------------------------
// Sums

OpCount counts_total(const Counts *counts) {
    OpCount sum = {0};
    for (int i = 0; i < COUNT_OPS; ++i) {
        const OpCount *op = &counts->op[i];
        sum.calls += op->calls;
        sum.kernels += op->kernels;
        sum.flops += op->flops;
        sum.fp8_flops += op->fp8_flops;
        sum.again_flops += op->again_flops;
        sum.bytes += op->bytes;
        sum.product_input_bytes += op->product_input_bytes;
        sum.host_bytes += op->host_bytes;
    }
    return sum;
}

static void op_count_add(OpCount *to, OpCount from, double times) {
    to->calls += times * from.calls;
    to->kernels += times * from.kernels;
    to->flops += times * from.flops;
    to->fp8_flops += times * from.fp8_flops;
    to->again_flops += times * from.again_flops;
    to->bytes += times * from.bytes;
    to->product_input_bytes += times * from.product_input_bytes;
    to->host_bytes += times * from.host_bytes;
}

void counts_add(Counts *to, const Counts *from, double times) {
    for (int i = 0; i < COUNT_OPS; ++i) op_count_add(&to->op[i], from->op[i], times);
}

static void count(Backend *be, CountedOp op, OpCount work) {
    work.calls = 1;
    op_count_add(&counting_of(be)->into->op[op], work, 1);
}

double counting_mean_keys(int64_t T, int64_t window) {
    const double length = (double)T, limit = (double)window;
    return window > 0 && window < T ? limit - limit * limit / (2 * length) : length / 2;
}

static double bytes_of(Tensor t) { return (double)tensor_bytes(t); }
// Bytes of a destination that is overwritten (=), or read and written (+=).
static double bytes_into(Tensor t, bool accumulate) { return bytes_of(t) * (accumulate ? 2 : 1); }

static void see(int64_t *largest, int64_t value) { *largest = max_i64(*largest, value); }
static void see_activation(Backend *be, Tensor t) {
    WorkspaceShape *largest = &counting_of(be)->largest;
    if (t.ndim < 2) return;
    see(&largest->rows, t.dim[0]);
    see(&largest->widest, t.dim[t.ndim - 1]);
}

// Every entry ends with this: the same call of the inner backend.
#define PASS_ON(be, op, ...)                     \
    do {                                         \
        Backend *inner_ = counting_of(be)->inner; \
        if (inner_ != NULL) inner_->op(inner_, __VA_ARGS__); \
    } while (0)

// ---------------------------------------------------------------------------------------------------------------
// Memory and transfers

// Addresses that are never mapped (x86-64 and arm64 use at most 52 bits of an address by default), so that reading
// or writing through such a pointer faults.
#define FIRST_ADDRESS ((uintptr_t)1 << 55)
#define ADDRESS_ALIGN_BYTES ((uintptr_t)4096)

static void *count_alloc(Backend *be, size_t bytes, Error *err) {
    Counting *c = counting_of(be);
    if (c->inner != NULL) return c->inner->alloc(c->inner, bytes, err);
    void *pointer = (void *)c->next_address;
    c->next_address += (bytes + ADDRESS_ALIGN_BYTES) / ADDRESS_ALIGN_BYTES * ADDRESS_ALIGN_BYTES;
    return pointer;
}
static void count_free(Backend *be, void *pointer, size_t bytes) { PASS_ON(be, free, pointer, bytes); }
static void count_zero(Backend *be, void *pointer, size_t bytes) {
    count(be, COUNT_ZERO, (OpCount){.bytes = (double)bytes, .kernels = 1});
    PASS_ON(be, zero, pointer, bytes);
}
static size_t count_memory_free(Backend *be) {
    Counting *c = counting_of(be);
    return c->inner != NULL ? c->inner->memory_free(c->inner) : 0;
}
static void count_upload(Backend *be, void *device, const void *host, size_t bytes) {
    count(be, COUNT_UPLOAD, (OpCount){.host_bytes = (double)bytes});
    PASS_ON(be, upload, device, host, bytes);
}
static void count_download(Backend *be, void *host, const void *device, size_t bytes) {
    Counting *c = counting_of(be);
    count(be, COUNT_DOWNLOAD, (OpCount){.host_bytes = (double)bytes});
    if (c->inner != NULL) c->inner->download(c->inner, host, device, bytes);
    else memset(host, 0, bytes);
}
static void count_copy(Backend *be, void *to, const void *from, size_t bytes) {
    count(be, COUNT_COPY, (OpCount){.bytes = 2 * (double)bytes, .kernels = 1});
    PASS_ON(be, copy, to, from, bytes);
}
static bool count_synchronize(Backend *be, Error *err) {
    Counting *c = counting_of(be);
    return c->inner == NULL || c->inner->synchronize(c->inner, err);
}

// Pages are reserved and only exist once written: a plan may hold a micro-batch larger than any memory. The length
// is stored in front.
#define HOST_HEADER_BYTES ((size_t)256)
static void *count_host_alloc(Backend *be, size_t bytes, Error *err) {
    Counting *c = counting_of(be);
    if (c->inner != NULL) return c->inner->host_alloc(c->inner, bytes, err);
    const size_t whole = bytes + HOST_HEADER_BYTES;
    void *map = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) {
        error_set(err, "out of address space for %zu bytes of host memory", bytes);
        return NULL;
    }
    memcpy(map, &whole, sizeof whole);
    return (unsigned char *)map + HOST_HEADER_BYTES;
}
static void count_host_free(Backend *be, void *pointer) {
    Counting *c = counting_of(be);
    if (c->inner != NULL) {
        c->inner->host_free(c->inner, pointer);
        return;
    }
    unsigned char *map = (unsigned char *)pointer - HOST_HEADER_BYTES;
    size_t whole;
    memcpy(&whole, map, sizeof whole);
    munmap(map, whole);
}
static Ticket count_mark(Backend *be) {
    Counting *c = counting_of(be);
    return c->inner != NULL ? c->inner->mark(c->inner) : ++c->ticket;
}
static Ticket count_upload_after(Backend *be, void *device, const void *host, size_t bytes, Ticket after) {
    Counting *c = counting_of(be);
    count(be, COUNT_UPLOAD, (OpCount){.host_bytes = (double)bytes});
    return c->inner != NULL ? c->inner->upload_after(c->inner, device, host, bytes, after) : ++c->ticket;
}
static Ticket count_download_begin(Backend *be, const DownloadPiece *pieces, int64_t count_pieces) {
    Counting *c = counting_of(be);
    double bytes = 0;
    for (int64_t i = 0; i < count_pieces; ++i) bytes += (double)pieces[i].bytes;
    count(be, COUNT_DOWNLOAD, (OpCount){.host_bytes = bytes});
    if (c->inner != NULL) return c->inner->download_begin(c->inner, pieces, count_pieces);
    for (int64_t i = 0; i < count_pieces; ++i) memset(pieces[i].host, 0, pieces[i].bytes);
    return ++c->ticket;
}
static void count_after(Backend *be, Ticket ticket) {
    Counting *c = counting_of(be);
    if (c->inner != NULL) c->inner->after(c->inner, ticket);
}
static bool count_has_passed(Backend *be, Ticket ticket) {
    Counting *c = counting_of(be);
    return c->inner == NULL || c->inner->has_passed(c->inner, ticket);
}
static bool count_wait(Backend *be, Ticket ticket, Error *err) {
    Counting *c = counting_of(be);
    return c->inner == NULL || c->inner->wait(c->inner, ticket, err);
}
static double count_elapsed_ms(Backend *be, Ticket from, Ticket to) {
    Counting *c = counting_of(be);
    return c->inner != NULL ? c->inner->elapsed_ms(c->inner, from, to) : -1;
}

// No replay: each operation is issued, and so counted, every time.
static bool count_sequence_begin(Backend *be, uint64_t key) {
    (void)be, (void)key;
    return false;
}
static void count_sequence_end(Backend *be, uint64_t key) { (void)be, (void)key; }

static void count_close(Backend *be) { (void)be; }
static size_t count_plan_workspace(const Backend *be, WorkspaceShape shape) {
    const Counting *c = be->impl;
    return c->inner != NULL ? c->inner->plan_workspace(c->inner, shape) : 0;
}
static double count_measure_peak(Backend *be, DType dtype) {
    Counting *c = counting_of(be);
    return c->inner != NULL ? c->inner->measure_peak(c->inner, dtype) : 0;
}
static bool count_telemetry(Backend *be, DeviceTelemetry *out) {
    Counting *c = counting_of(be);
    return c->inner != NULL && c->inner->telemetry(c->inner, out);
}

// ---------------------------------------------------------------------------------------------------------------
// Products

// Elements of an input that is padded to whole packs of 16 either way.
static int64_t padded_elems(Tensor t) { return round_up(t.dim[0], 16) * round_up(t.dim[1], 16); }

static void count_matmul(Backend *be, Tensor out, Tensor a, Tensor b, MatmulArgs args) {
    const double flops = 2 * (double)tensor_elems(out) * (double)a.dim[args.trans_a ? a.ndim - 2 : a.ndim - 1];
    const double elems = (double)(tensor_elems(a) + tensor_elems(b));
    const bool fp8 = args.fp8 != FP8_NONE;
    OpCount work = {.flops = fp8 ? 0 : flops, .fp8_flops = fp8 ? flops : 0, .kernels = fp8 ? 3 : 1};
    work.bytes = bytes_of(out) + bytes_of(args.add) + bytes_of(args.bias) + bytes_of(args.pre);
    work.bytes += bytes_into(args.sums, args.accumulate_sums);
    work.product_input_bytes = fp8 ? elems : bytes_of(a) + bytes_of(b);
    if (fp8) work.bytes += bytes_of(a) + bytes_of(b) + elems;
    count(be, COUNT_MATMUL, work);
    WorkspaceShape *largest = &counting_of(be)->largest;
    if (fp8) see(&largest->fp8_elems, padded_elems(a) + padded_elems(b));
    if (!tensor_is_none(args.bias) || !tensor_is_none(args.pre)) see_activation(be, out);
    if (!tensor_is_none(args.sums)) see_activation(be, a);
    PASS_ON(be, matmul, out, a, b, args);
}
static void count_bias_backward(Backend *be, Tensor dbias, Tensor dout, bool accumulate) {
    see_activation(be, dout);
    count(be, COUNT_BIAS_BACKWARD, (OpCount){.bytes = bytes_of(dout) + bytes_into(dbias, accumulate), .kernels = 2});
    PASS_ON(be, bias_backward, dbias, dout, accumulate);
}

// ---------------------------------------------------------------------------------------------------------------
// Embedding, normalization

// Upper bound of the table rows that N lookups touch.
static double touched_elems(Tensor table, int64_t N) {
    return tensor_is_none(table) ? 0 : (double)min_i64(N, table.dim[0]) * (double)table.dim[1];
}

static void count_embedding_forward(Backend *be, Tensor out, Tensor tokens, Tensor positions, Tensor wte, Tensor wpe) {
    // Each token's row is read; consecutive rows share the rows of positions.
    double bytes = 2 * bytes_of(out) + bytes_of(tokens);
    if (!tensor_is_none(wpe))
        bytes += bytes_of(positions) + touched_elems(wpe, out.dim[0]) * (double)dtype_bytes(wpe.dtype);
    see_activation(be, out);
    count(be, COUNT_EMBEDDING_FORWARD, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, embedding_forward, out, tokens, positions, wte, wpe);
}
static void count_embedding_backward(Backend *be, Tensor dwte, Tensor dwpe, Tensor dout, Tensor tokens,
                                     Tensor positions) {
    // The ids are sorted, then each id's rows added to its row of the table.
    const int64_t N = dout.dim[0];
    const double tables = tensor_is_none(dwpe) ? 1 : 2;
    double bytes = tables * bytes_of(dout) + bytes_of(tokens) + (tensor_is_none(dwpe) ? 0 : bytes_of(positions));
    bytes += 2 * sizeof(float) * (touched_elems(dwte, N) + touched_elems(dwpe, N));
    see_activation(be, dout);
    count(be, COUNT_EMBEDDING_BACKWARD, (OpCount){.bytes = bytes, .kernels = 3 * tables});
    PASS_ON(be, embedding_backward, dwte, dwpe, dout, tokens, positions);
}

static void count_norm_forward(Backend *be, Tensor out, Tensor mean, Tensor rstd, Tensor x, Tensor weight, Tensor bias,
                               NormArgs args) {
    double bytes = bytes_of(out) + bytes_of(mean) + bytes_of(rstd) + bytes_of(x) + bytes_of(weight) + bytes_of(bias) +
                   bytes_of(args.residual);
    see_activation(be, x);
    count(be, COUNT_NORM_FORWARD, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, norm_forward, out, mean, rstd, x, weight, bias, args);
}
static void count_norm_backward(Backend *be, Tensor dx, Tensor dweight, Tensor dbias, Tensor dout, Tensor x,
                                Tensor weight, Tensor mean, Tensor rstd, bool accumulate_dx, bool accumulate_dw,
                                NormArgs args) {
    double bytes = bytes_into(dx, accumulate_dx) + bytes_into(dweight, accumulate_dw) +
                   bytes_into(dbias, accumulate_dw) + bytes_of(dout) + bytes_of(x) + bytes_of(weight) +
                   bytes_of(mean) + bytes_of(rstd);
    see_activation(be, x);
    count(be, COUNT_NORM_BACKWARD, (OpCount){.bytes = bytes, .kernels = 2});
    PASS_ON(be, norm_backward, dx, dweight, dbias, dout, x, weight, mean, rstd, accumulate_dx, accumulate_dw, args);
}

// ---------------------------------------------------------------------------------------------------------------
// Attention, and q and k before it

// q and k of qkv, or all of it if v must be copied.
static double rotated_bytes(Tensor qkv, const QkArgs *args, bool with_v) {
    return with_v ? bytes_of(qkv)
                  : bytes_of(qkv) * (double)(args->NH + args->NKV) / (double)(args->NH + 2 * args->NKV);
}

static void count_qk_forward(Backend *be, Tensor out, Tensor rstd, Tensor in, Tensor positions, QkArgs args) {
    const bool with_v = out.data != in.data, works = args.use_rope || !tensor_is_none(args.q_weight);
    OpCount work = {0};
    if (with_v || works)
        work = (OpCount){.bytes = 2 * rotated_bytes(in, &args, with_v) + bytes_of(rstd), .kernels = 1};
    see_activation(be, in);
    count(be, COUNT_QK_FORWARD, work);
    PASS_ON(be, qk_forward, out, rstd, in, positions, args);
}
static void count_qk_backward(Backend *be, Tensor din, Tensor dq_weight, Tensor dk_weight, Tensor dout, Tensor in,
                              Tensor rstd, Tensor positions, bool accumulate_dw, QkArgs args) {
    const bool with_v = din.data != dout.data, norm = !tensor_is_none(args.q_weight);
    OpCount work = {0};
    if (with_v || norm || args.use_rope) {
        work = (OpCount){.bytes = 2 * rotated_bytes(din, &args, with_v), .kernels = norm ? 2 : 1};
        if (norm) work.bytes += rotated_bytes(in, &args, false) + bytes_of(rstd);
        work.bytes += bytes_into(dq_weight, accumulate_dw) + bytes_into(dk_weight, accumulate_dw);
    }
    see_activation(be, din);
    count(be, COUNT_QK_BACKWARD, work);
    PASS_ON(be, qk_backward, din, dq_weight, dk_weight, dout, in, rstd, positions, accumulate_dw, args);
}

static void see_attention(Backend *be, Tensor qkv, const AttentionArgs *args, int64_t length) {
    WorkspaceShape *largest = &counting_of(be)->largest;
    see_activation(be, qkv);
    see(&largest->seq_len, length);
    see(&largest->head_size, args->HS);
    see(&largest->NH, args->NH);
    see(&largest->NKV, args->NKV);
}
// FLOPs of one product of all heads' queries with their visible keys.
static double attention_product(const AttentionArgs *args, double pairs) {
    return 2 * pairs * (double)(args->NH * args->HS);
}
static double attention_pairs(const AttentionArgs *args) {
    return (double)(args->B * args->T) * counting_mean_keys(args->T, args->window);
}

static void count_attention_forward(Backend *be, Tensor out, Tensor lse, Tensor qkv, AttentionArgs args) {
    see_attention(be, qkv, &args, args.T);
    count(be, COUNT_ATTENTION_FORWARD, (OpCount){.flops = 2 * attention_product(&args, attention_pairs(&args)),
                                                 .bytes = bytes_of(qkv) + bytes_of(out) + bytes_of(lse),
                                                 .kernels = 1});
    PASS_ON(be, attention_forward, out, lse, qkv, args);
}
static void count_attention_backward(Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                     AttentionArgs args) {
    // Gradients of probabilities, v, q and k; dout and out are first read for the sums of their products.
    const double product = attention_product(&args, attention_pairs(&args));
    see_attention(be, qkv, &args, args.T);
    count(be, COUNT_ATTENTION_BACKWARD,
          (OpCount){.flops = 4 * product,
                    .again_flops = product,
                    .bytes = bytes_of(dqkv) + bytes_of(qkv) + 2 * bytes_of(dout) + bytes_of(out) + bytes_of(lse),
                    .kernels = 1});
    PASS_ON(be, attention_backward, dqkv, dout, qkv, out, lse, args);
}
static void count_attention_decode(Backend *be, Tensor out, Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t start,
                                   AttentionArgs args) {
    const double n = (double)args.T, before = (double)start;
    double pairs = n * (before + n / 2);
    if (args.window > 0 && pairs > n * (double)args.window) pairs = n * (double)args.window;
    const double row_bytes = (double)(args.NKV * args.HS) * (double)dtype_bytes(k_cache.dtype);
    see_attention(be, qkv, &args, start + args.T);
    count(be, COUNT_ATTENTION_DECODE,
          (OpCount){.flops = 2 * attention_product(&args, pairs),
                    .bytes = bytes_of(qkv) + bytes_of(out) + 2 * row_bytes * (before + 2 * n),
                    .kernels = 1});
    PASS_ON(be, attention_decode, out, k_cache, v_cache, qkv, start, args);
}

// ---------------------------------------------------------------------------------------------------------------
// Activations, loss, elementwise

static void count_activation_forward(Backend *be, Tensor out, Tensor pre, Activation kind) {
    see_activation(be, pre);
    count(be, COUNT_ACTIVATION_FORWARD, (OpCount){.bytes = bytes_of(out) + bytes_of(pre), .kernels = 1});
    PASS_ON(be, activation_forward, out, pre, kind);
}
static void count_activation_backward(Backend *be, Tensor dpre, Tensor dout, Tensor pre, Activation kind) {
    see_activation(be, pre);
    count(be, COUNT_ACTIVATION_BACKWARD,
          (OpCount){.bytes = bytes_of(dpre) + bytes_of(dout) + bytes_of(pre), .kernels = 1});
    PASS_ON(be, activation_backward, dpre, dout, pre, kind);
}
static void count_cross_entropy(Backend *be, Tensor nll, Tensor logits, Tensor targets, Tensor weights,
                                CrossEntropyArgs args) {
    WorkspaceShape *largest = &counting_of(be)->largest;
    see(&largest->Vp, logits.dim[1]);
    see(&largest->chunk_rows, logits.dim[0]);
    // Two passes over each row: for its sum, then for the gradient that replaces it.
    double bytes = (args.want_grad ? 3 : 1) * bytes_of(logits) + bytes_of(nll) + bytes_of(targets) + bytes_of(weights);
    count(be, COUNT_CROSS_ENTROPY, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, cross_entropy, nll, logits, targets, weights, args);
}
static void count_softcap(Backend *be, Tensor logits, float cap) {
    count(be, COUNT_SOFTCAP, (OpCount){.bytes = 2 * bytes_of(logits), .kernels = 1});
    PASS_ON(be, softcap, logits, cap);
}
static void count_weighted_sum(Backend *be, Tensor out, Tensor nll, Tensor weights, bool accumulate) {
    count(be, COUNT_WEIGHTED_SUM,
          (OpCount){.bytes = bytes_into(out, accumulate) + bytes_of(nll) + bytes_of(weights), .kernels = 1});
    PASS_ON(be, weighted_sum, out, nll, weights, accumulate);
}
static void count_add(Backend *be, Tensor out, Tensor a, Tensor b) {
    count(be, COUNT_ADD, (OpCount){.bytes = bytes_of(out) + bytes_of(a) + bytes_of(b), .kernels = 1});
    PASS_ON(be, add, out, a, b);
}
static void count_cast(Backend *be, Tensor out, Tensor in) {
    count(be, COUNT_CAST, (OpCount){.bytes = bytes_of(out) + bytes_of(in), .kernels = 1});
    PASS_ON(be, cast, out, in);
}

// ---------------------------------------------------------------------------------------------------------------
// Optimizer. Sums over whole arrays take two kernels: partial sums, then the sum of those.

static void count_sum_squares(Backend *be, Tensor out, Tensor x) {
    count(be, COUNT_SUM_SQUARES, (OpCount){.bytes = bytes_of(x) + bytes_of(out), .kernels = 2});
    PASS_ON(be, sum_squares, out, x);
}
static void count_grad_clip(Backend *be, GradStats *stats, Tensor sums, Tensor loss_sums, ClipArgs args) {
    double bytes = sizeof *stats + bytes_of(sums) + bytes_of(loss_sums);
    count(be, COUNT_GRAD_CLIP, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, grad_clip, stats, sums, loss_sums, args);
}
static void count_hash_sum(Backend *be, uint64_t *out, Tensor x, int64_t first_elem, bool accumulate) {
    count(be, COUNT_HASH_SUM, (OpCount){.bytes = bytes_of(x) + sizeof *out, .kernels = 2});
    PASS_ON(be, hash_sum, out, x, first_elem, accumulate);
}

// Reading and writing the values that an update changes: the master and its copy, or bf16 weights alone.
static double value_bytes(const OptimTensor *t) {
    double each = t->master != NULL ? 8.0 + (t->weight != NULL ? 2 : 0) : 4.0;
    return each * (double)t->elems;
}
static void see_tensors(Backend *be, int64_t tensors) { see(&counting_of(be)->largest.tensors, tensors); }

static void count_adamw(Backend *be, const OptimTensor *tensors, int64_t n, const GradStats *stats, AdamwArgs args) {
    double bytes = 0;
    for (int64_t i = 0; i < n; ++i)  // the gradient; both moments read and written
        bytes += (4.0 + 8.0 + 8.0) * (double)tensors[i].elems + value_bytes(&tensors[i]);
    see_tensors(be, n);
    count(be, COUNT_ADAMW, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, adamw, tensors, n, stats, args);
}
static void count_muon_momentum(Backend *be, Tensor update, const OptimTensor *tensors, int64_t n,
                                const GradStats *stats, MuonArgs args) {
    double bytes = bytes_of(update) + (4.0 + 8.0) * (double)tensor_elems(update);
    see_tensors(be, n);
    count(be, COUNT_MUON_MOMENTUM, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, muon_momentum, update, tensors, n, stats, args);
}
static void count_frobenius_normalize(Backend *be, Tensor x, float eps) {
    count(be, COUNT_FROBENIUS_NORMALIZE, (OpCount){.bytes = 3 * bytes_of(x), .kernels = 2});
    PASS_ON(be, frobenius_normalize, x, eps);
}
static void count_muon_apply(Backend *be, const OptimTensor *tensors, int64_t n, Tensor x, const GradStats *stats,
                             MuonArgs args) {
    double bytes = bytes_of(x);
    for (int64_t i = 0; i < n; ++i) bytes += value_bytes(&tensors[i]);
    see_tensors(be, n);
    count(be, COUNT_MUON_APPLY, (OpCount){.bytes = bytes, .kernels = 1});
    PASS_ON(be, muon_apply, tensors, n, x, stats, args);
}

// ---------------------------------------------------------------------------------------------------------------

static void set_memory_entries(Backend *be) {
    be->alloc = count_alloc;
    be->free = count_free;
    be->zero = count_zero;
    be->memory_free = count_memory_free;
    be->upload = count_upload;
    be->download = count_download;
    be->copy = count_copy;
    be->synchronize = count_synchronize;
    be->host_alloc = count_host_alloc;
    be->host_free = count_host_free;
    be->mark = count_mark;
    be->upload_after = count_upload_after;
    be->download_begin = count_download_begin;
    be->after = count_after;
    be->has_passed = count_has_passed;
    be->wait = count_wait;
    be->elapsed_ms = count_elapsed_ms;
    be->sequence_begin = count_sequence_begin;
    be->sequence_end = count_sequence_end;
    be->close = count_close;
    be->plan_workspace = count_plan_workspace;
    be->measure_peak = count_measure_peak;
    be->telemetry = count_telemetry;
}

void counting_init(Counting *counting, Backend *inner) {
    *counting = (Counting){.inner = inner, .next_address = FIRST_ADDRESS};
    counting->into = &counting->counts;
    Backend *be = &counting->backend;
    if (inner != NULL) {
        *be = *inner;
    } else {
        be->name = "counting";
        snprintf(be->description, sizeof be->description, "counts operations, computes nothing");
        be->bf16_native = be->matmul_fp8 = be->counts_only = true;
    }
    be->impl = counting;
    be->comm_open = NULL;
    set_memory_entries(be);
    be->matmul = count_matmul;
    be->bias_backward = count_bias_backward;
    be->embedding_forward = count_embedding_forward;
    be->embedding_backward = count_embedding_backward;
    be->norm_forward = count_norm_forward;
    be->norm_backward = count_norm_backward;
    be->qk_forward = count_qk_forward;
    be->qk_backward = count_qk_backward;
    be->attention_forward = count_attention_forward;
    be->attention_backward = count_attention_backward;
    be->attention_decode = count_attention_decode;
    be->activation_forward = count_activation_forward;
    be->activation_backward = count_activation_backward;
    be->cross_entropy = count_cross_entropy;
    be->softcap = count_softcap;
    be->weighted_sum = count_weighted_sum;
    be->add = count_add;
    be->cast = count_cast;
    be->sum_squares = count_sum_squares;
    be->grad_clip = count_grad_clip;
    be->hash_sum = count_hash_sum;
    be->adamw = count_adamw;
    be->muon_momentum = count_muon_momentum;
    be->frobenius_normalize = count_frobenius_normalize;
    be->muon_apply = count_muon_apply;
}
