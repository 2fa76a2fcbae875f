// attention.cu: the attention entries of the function table: checks of the operands, the choice between cuDNN and the
// own kernels, and the own kernels' problem (attention_tile.h). Must not know tiles.
#include <stdio.h>
#include <stdlib.h>

#include "llmc/cuda/attention_cudnn.h"
#include "llmc/cuda/attention_tile.h"
#include "llmc/cuda/workspace.h"
#include "llmc/backend/op_check.h"

// Fewer positions than this are decoded row by row: tiles would mostly compute padding.
#define DECODE_TILE_QUERIES 16
// Limit of a grid's second and third dimension.
#define GRID_LIMIT 65535

typedef struct {
    CudnnAttention *cudnn;  // NULL: not opened yet
    Error refusal;          // why the own kernels served last
} AttentionState;

static AttentionState *attention_state(const Backend *be) { return (AttentionState *)cuda_state(be)->attention; }

// ---- the own kernels ----

static const char *head_at(const void *rows, DType dtype, int64_t column) {
    return (const char *)rows + to_size(column) * dtype_bytes(dtype);
}

// The part common to forward and backward passes; false: the backend has failed.
static bool problem_make(AttentionProblem *p, Backend *be, Tensor out, Tensor lse, Tensor qkv,
                         const AttentionArgs *args, const int32_t *wanted) {
    if (args->HS > ATTENTION_LARGEST_HS) {
        char text[128];
        snprintf(text, sizeof text, "head size %lld is too large: the CUDA kernels take at most %d",
                 (long long)args->HS, ATTENTION_LARGEST_HS);
        return cuda_fail(be, "attention", text);
    }
    *p = AttentionProblem();
    p->dtype = qkv.dtype;
    p->q = qkv.data;
    p->k = head_at(qkv.data, qkv.dtype, args->NH * args->HS);
    p->v = head_at(qkv.data, qkv.dtype, (args->NH + args->NKV) * args->HS);
    p->out = out.data;
    p->lse = (float *)lse.data;
    p->q_stride = p->kv_stride = to_i32(qkv.dim[1]);
    p->out_stride = to_i32(out.dim[1]);
    p->B = to_i32(args->B);
    p->NH = to_i32(args->NH);
    p->NKV = to_i32(args->NKV);
    p->HS = to_i32(args->HS);
    p->group = p->NH / p->NKV;
    p->queries = p->keys = to_i32(args->T);
    p->scale = args->scale;
    p->window = to_i32(args->window == 0 ? args->T : min_i64(args->window, args->T));
    p->doc = (const int32_t *)args->doc.data;
    p->prefix = (const uint8_t *)args->prefix.data;
    p->aligned =
        to_size(args->HS) * dtype_bytes(qkv.dtype) % 16 == 0 && gpu_aligned(qkv.data) && gpu_aligned(out.data);
    p->wanted = wanted;
    return true;
}

static void attention_forward_own(Backend *be, Tensor out, Tensor lse, Tensor qkv, const AttentionArgs *args,
                                  const int32_t *wanted) {
    AttentionProblem problem;
    if (problem_make(&problem, be, out, lse, qkv, args, wanted)) attention_forward_run(be, &problem);
}

static void attention_backward_own(Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                   const AttentionArgs *args, const int32_t *wanted) {
    AttentionProblem problem;
    if (!problem_make(&problem, be, out, lse, qkv, args, wanted)) return;
    problem.dot = (float *)cuda_scratch(be, workspace_attention_bytes(args->B * args->T, args->NH));
    if (problem.dot == NULL) return;
    problem.dout = dout.data;
    problem.dq = dqkv.data;
    problem.dk = (char *)dqkv.data + ((const char *)problem.k - (const char *)problem.q);
    problem.dv = (char *)dqkv.data + ((const char *)problem.v - (const char *)problem.q);
    problem.aligned = problem.aligned && gpu_aligned(dqkv.data) && gpu_aligned(dout.data);
    attention_backward_run(be, &problem);
}

// ---- the choice ----

// cuDNN is absent or refuses the call. False: attention=cudnn was requested, so the backend has failed.
static bool choose_own(Backend *be, const Error *why) {
    if (strcmp(cuda_state(be)->attention_wanted, "cudnn") == 0)
        return cuda_fail(be, "attention=cudnn was requested", why->message);
    snprintf(be->attention_choice, sizeof be->attention_choice, "own kernels (%.130s)", why->message);
    return true;
}
static void choose_cudnn(Backend *be) {
    snprintf(be->attention_choice, sizeof be->attention_choice, "%s",
             cudnn_attention_choice(attention_state(be)->cudnn));
}

static void attention_forward(Backend *be, Tensor out, Tensor lse, Tensor qkv, AttentionArgs args) {
    op_check_attention_forward(out, lse, qkv, &args);
    if (args.B * args.T == 0 || cuda_failed(be)) return;
    AttentionState *state = attention_state(be);
    const int32_t *unserved = NULL;
    if (state->cudnn != NULL &&
        cudnn_attention_forward(state->cudnn, be, out, lse, qkv, args, &unserved, &state->refusal)) {
        choose_cudnn(be);
        if (unserved != NULL) attention_forward_own(be, out, lse, qkv, &args, unserved);
    } else if (choose_own(be, &state->refusal)) {
        attention_forward_own(be, out, lse, qkv, &args, NULL);
    }
}

static void attention_backward(Backend *be, Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                               AttentionArgs args) {
    op_check_attention_backward(dqkv, dout, qkv, out, lse, &args);
    if (args.B * args.T == 0 || cuda_failed(be)) return;
    AttentionState *state = attention_state(be);
    const int32_t *unserved = NULL;
    if (state->cudnn != NULL &&
        cudnn_attention_backward(state->cudnn, be, dqkv, dout, qkv, out, lse, args, &unserved, &state->refusal)) {
        choose_cudnn(be);
        if (unserved != NULL) attention_backward_own(be, dqkv, dout, qkv, out, lse, &args, unserved);
    } else if (choose_own(be, &state->refusal)) {
        attention_backward_own(be, dqkv, dout, qkv, out, lse, &args, NULL);
    }
}

// Decoding always uses the own kernels: cuDNN has no advantage for a few positions.
static void attention_decode(Backend *be, Tensor out, Tensor k_cache, Tensor v_cache, Tensor qkv, int64_t start,
                             AttentionArgs args) {
    op_check_attention_decode(out, k_cache, v_cache, qkv, start, &args);
    int64_t kv_width = args.NKV * args.HS, keys = start + args.T;
    AttentionProblem p;
    if (args.T == 0 || !problem_make(&p, be, out, TENSOR_NONE, qkv, &args, NULL)) return;
    p.aligned = p.aligned && gpu_aligned(k_cache.data) && gpu_aligned(v_cache.data);
    size_t start_bytes = to_size(start * kv_width) * dtype_bytes(qkv.dtype);
    AttentionAppend append = {qkv.dtype, (char *)k_cache.data + start_bytes, (char *)v_cache.data + start_bytes,
                              p.k,       p.v, args.T, kv_width, p.q_stride, p.aligned};
    attention_append_run(be, &append);
    p.k = k_cache.data;
    p.v = v_cache.data;
    p.kv_stride = to_i32(kv_width);
    p.first = to_i32(start);
    p.keys = to_i32(keys);
    p.window = to_i32(args.window == 0 ? keys : min_i64(args.window, keys));
    if (args.T < DECODE_TILE_QUERIES) attention_decode_run(be, &p);
    else attention_forward_run(be, &p);
}

void attention_register_cuda(Backend *be) {
    be->attention_forward = attention_forward;
    be->attention_backward = attention_backward;
    be->attention_decode = attention_decode;
    AttentionState *state = (AttentionState *)xcalloc(1, sizeof *state);
    cuda_state(be)->attention = state;
    const char *wanted = cuda_state(be)->attention_wanted;
    // backend.h requires a fixed order of every sum, so cuDNN is used in its deterministic mode only.
    if (strcmp(wanted, "own") == 0) error_set(&state->refusal, "attention=own");
    else state->cudnn = cudnn_attention_open(be, true, &state->refusal);
    if (strcmp(wanted, "cudnn") == 0 && state->cudnn == NULL)
        cuda_fail(be, "attention=cudnn was requested", state->refusal.message);
}

void attention_close_cuda(Backend *be) {
    AttentionState *state = attention_state(be);
    if (state == NULL) return;
    if (state->cudnn != NULL) cudnn_attention_close(state->cudnn);
    free(state);
    cuda_state(be)->attention = NULL;
}
