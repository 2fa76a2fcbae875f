// bench_ops.c: single operations at the shapes of real models, through the very function pointers that training
// calls. Operands rotate through several copies, so that they come from memory and not from a cache that a training
// step would not have; the median and the 10th and 90th percentile are shown, with FLOP/s against the measured peak
// and bytes/s from the operands' sizes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/bench.h"
#include "llmc/arena.h"
#include "llmc/backend.h"
#include "llmc/rng.h"

typedef enum {
    OP_MATMUL,
    OP_ATTENTION_FORWARD,
    OP_ATTENTION_BACKWARD,
    OP_NORM_FORWARD,
    OP_NORM_BACKWARD,
    OP_GELU_FORWARD,
    OP_GELU_BACKWARD,
    OP_SWIGLU_FORWARD,
    OP_CROSS_ENTROPY,
    OP_ADD,
    OP_GRAD_CLIP,
    OP_ADAMW
} OpKind;

typedef struct {
    const char *name;
    OpKind kind;
    int64_t M, N, K;  // matmul: out(M,N); others: rows M, width N; attention: B, T, heads (of 64)
    bool trans_a, trans_b, accumulate;
} OpCase;

static const OpCase CASES[] = {
    {"forward qkv 124M", OP_MATMUL, 1024, 2304, 768, false, true, false},
    {"forward fc 124M", OP_MATMUL, 1024, 3072, 768, false, true, false},
    {"forward proj 124M", OP_MATMUL, 1024, 768, 3072, false, true, false},
    {"forward head 124M", OP_MATMUL, 1024, 50304, 768, false, true, false},
    {"dX fc 124M", OP_MATMUL, 1024, 768, 3072, false, false, false},
    {"dX head 124M", OP_MATMUL, 1024, 768, 50304, false, false, false},
    {"dW fc 124M", OP_MATMUL, 3072, 768, 1024, true, false, false},
    {"dW fc 124M +=", OP_MATMUL, 3072, 768, 1024, true, false, true},
    {"dW head 124M", OP_MATMUL, 50304, 768, 1024, true, false, false},
    {"forward fc, 256 rows", OP_MATMUL, 256, 3072, 768, false, true, false},
    {"forward C=384", OP_MATMUL, 2048, 1152, 384, false, true, false},
    {"decode fc, 1 row", OP_MATMUL, 1, 3072, 768, false, true, false},
    {"awkward 1021x1019x509", OP_MATMUL, 1021, 1019, 509, false, true, false},
    {"attention T=256", OP_ATTENTION_FORWARD, 4, 256, 12, false, false, false},
    {"attention T=1024", OP_ATTENTION_FORWARD, 1, 1024, 12, false, false, false},
    {"attention back T=256", OP_ATTENTION_BACKWARD, 4, 256, 12, false, false, false},
    {"attention back T=1024", OP_ATTENTION_BACKWARD, 1, 1024, 12, false, false, false},
    {"LayerNorm", OP_NORM_FORWARD, 1024, 768, 0, false, false, false},
    {"LayerNorm back", OP_NORM_BACKWARD, 1024, 768, 0, false, false, false},
    {"GELU", OP_GELU_FORWARD, 1024, 3072, 0, false, false, false},
    {"GELU back", OP_GELU_BACKWARD, 1024, 3072, 0, false, false, false},
    {"SwiGLU", OP_SWIGLU_FORWARD, 1024, 2048, 0, false, false, false},
    {"cross-entropy", OP_CROSS_ENTROPY, 1024, 50304, 0, false, false, false},
    {"residual add", OP_ADD, 1024, 768, 0, false, false, false},
    {"gradient norm", OP_GRAD_CLIP, 1, 1 << 24, 0, false, false, false},
    {"AdamW", OP_ADAMW, 1, 1 << 24, 0, false, false, false},
};
#define CASE_COUNT ((int)(sizeof CASES / sizeof CASES[0]))
// Copies of the operands: together more than a large last-level cache, within reason.
#define ROTATION_BYTES ((size_t)128 << 20)
#define MAX_COPIES 8
#define MAX_OPERANDS 8

typedef struct {
    Tensor t[MAX_OPERANDS];
    int count;
} Operands;

// What one case works on; the first tensor is the output. Gradients and statistics are fp32 whatever the dtype.
static void lay_out(Operands *o, Arena *arena, const OpCase *c, DType dtype) {
    o->count = 0;
#define OPERAND(type, ndim, a, b, d) o->t[o->count++] = arena_tensor(arena, "operands", type, ndim, a, b, d, 0)
    int64_t qkv = 3 * c->K * 64, N = c->M * c->N;
    switch (c->kind) {
    case OP_MATMUL:
        OPERAND(c->trans_a ? DTYPE_F32 : dtype, 2, c->M, c->N, 0);
        OPERAND(dtype, 2, c->trans_a ? c->K : c->M, c->trans_a ? c->M : c->K, 0);
        OPERAND(dtype, 2, c->trans_b ? c->N : c->K, c->trans_b ? c->K : c->N, 0);
        break;
    case OP_ATTENTION_FORWARD:
    case OP_ATTENTION_BACKWARD:
        OPERAND(dtype, 2, N, c->K * 64, 0);
        OPERAND(DTYPE_F32, 3, c->M, c->K, c->N);
        OPERAND(dtype, 2, N, qkv, 0);
        OPERAND(dtype, 2, N, qkv, 0);
        OPERAND(dtype, 2, N, c->K * 64, 0);
        break;
    case OP_NORM_FORWARD:
    case OP_NORM_BACKWARD:
        OPERAND(dtype, 2, c->M, c->N, 0);
        OPERAND(dtype, 2, c->M, c->N, 0);
        OPERAND(dtype, 2, c->M, c->N, 0);
        OPERAND(DTYPE_F32, 1, c->M, 0, 0);
        OPERAND(DTYPE_F32, 1, c->M, 0, 0);
        OPERAND(dtype, 1, c->N, 0, 0);
        OPERAND(DTYPE_F32, 1, c->N, 0, 0);
        OPERAND(DTYPE_F32, 1, c->N, 0, 0);
        break;
    case OP_SWIGLU_FORWARD:
        OPERAND(dtype, 2, c->M, c->N, 0);
        OPERAND(dtype, 2, c->M, 2 * c->N, 0);
        break;
    case OP_CROSS_ENTROPY:
        OPERAND(dtype, 2, c->M, c->N, 0);
        OPERAND(DTYPE_F32, 1, c->M, 0, 0);
        OPERAND(DTYPE_I32, 1, c->M, 0, 0);
        OPERAND(DTYPE_F32, 1, c->M, 0, 0);
        OPERAND(DTYPE_F32, 1, 1, 0, 0);
        break;
    case OP_GRAD_CLIP:
        OPERAND(DTYPE_F32, 1, c->N, 0, 0);
        OPERAND(DTYPE_F64, 1, 8, 0, 0);
        break;
    case OP_ADAMW:
        for (int i = 0; i < 4; ++i) OPERAND(DTYPE_F32, 1, c->N, 0, 0);
        OPERAND(DTYPE_BF16, 1, c->N, 0, 0);
        OPERAND(DTYPE_F64, 1, 8, 0, 0);
        break;
    case OP_GELU_FORWARD:
    case OP_GELU_BACKWARD:
    case OP_ADD:
        for (int i = 0; i < 3; ++i) OPERAND(dtype, 2, c->M, c->N, 0);
        break;
    }
#undef OPERAND
}

static void run_case(Backend *be, const OpCase *c, const Operands *o, DType dtype) {
    const Tensor *t = o->t;
    NormArgs norm = {NORM_LAYER, 1e-5f};
    AttentionArgs attention = {.B = c->M, .T = c->N, .NH = c->K, .NKV = c->K, .HS = 64, .scale = 0.125f};
    switch (c->kind) {
    case OP_MATMUL:
        be->matmul(be, t[0], t[1], t[2],
                   (MatmulArgs){.trans_a = c->trans_a,
                                .trans_b = c->trans_b,
                                .alpha = 1,
                                .beta = 1,
                                .add = c->accumulate ? t[0] : TENSOR_NONE});
        break;
    case OP_ATTENTION_FORWARD: be->attention_forward(be, t[0], t[1], t[2], attention); break;
    case OP_ATTENTION_BACKWARD: be->attention_backward(be, t[3], t[4], t[2], t[0], t[1], attention); break;
    case OP_NORM_FORWARD: be->norm_forward(be, t[0], t[3], t[4], t[1], t[5], t[5], norm); break;
    case OP_NORM_BACKWARD:
        be->norm_backward(be, t[0], t[6], t[7], t[1], t[2], t[5], t[3], t[4], true, false, norm);
        break;
    case OP_GELU_FORWARD: be->activation_forward(be, t[0], t[1], ACT_GELU); break;
    case OP_GELU_BACKWARD: be->activation_backward(be, t[0], t[1], t[2], ACT_GELU); break;
    case OP_SWIGLU_FORWARD: be->activation_forward(be, t[0], t[1], ACT_SWIGLU); break;
    case OP_CROSS_ENTROPY:
        be->cross_entropy(be, t[1], t[0], t[2], t[3],
                          (CrossEntropyArgs){.V = c->N - 47, .want_grad = true, .loss_scale = t[4]});
        break;
    case OP_ADD: be->add(be, t[0], t[1], t[2]); break;
    case OP_GRAD_CLIP: be->grad_clip(be, t[1].data, t[0], 1.0f); break;
    case OP_ADAMW: {
        OptimTensor tensor = {.master = t[0].data,
                              .weight = dtype == DTYPE_BF16 ? t[4].data : NULL,
                              .grad = t[1].data,
                              .m = t[2].data,
                              .v = t[3].data,
                              .elems = c->N,
                              .lr = 1e-4f,
                              .weight_decay = 0.1f};
        be->adamw(be, &tensor, 1, t[5].data, (AdamwArgs){.beta1 = 0.9f, .beta2 = 0.95f, .eps = 1e-8f, .t = 10});
        break;
    }
    }
}

// Multiply-adds count as two; causal attention as half of the full square (backward: five products against two).
static double case_flops(const OpCase *c) {
    double M = (double)c->M, N = (double)c->N, K = (double)c->K;
    if (c->kind == OP_MATMUL) return 2 * M * N * K;
    double square = M * K * N * (N + 1) / 2 * 64 * 2;
    if (c->kind == OP_ATTENTION_FORWARD) return 2 * square;
    if (c->kind == OP_ATTENTION_BACKWARD) return 5 * square;
    return 0;
}

// Each operand read or written once; what is updated in place counts twice.
static double case_bytes(const OpCase *c, const Operands *o, DType dtype) {
    double bytes = 0;
    for (int i = 0; i < o->count; ++i) bytes += (double)tensor_bytes(o->t[i]);
    if (c->accumulate || c->kind == OP_CROSS_ENTROPY || c->kind == OP_NORM_BACKWARD)
        bytes += (double)tensor_bytes(o->t[0]);
    if (c->kind == OP_ADAMW) {
        for (int i = 0; i < 4; ++i) bytes += i == 1 ? 0 : (double)tensor_bytes(o->t[i]);
        if (dtype != DTYPE_BF16) bytes -= (double)tensor_bytes(o->t[4]);
    }
    if (c->kind == OP_GELU_FORWARD) bytes -= (double)tensor_bytes(o->t[2]);
    if (c->kind == OP_NORM_FORWARD) bytes -= (double)tensor_bytes(o->t[2]);
    return bytes;
}

static void fill(const Operands *o) {
    for (int i = 0; i < o->count; ++i) {
        int64_t elems = tensor_elems(o->t[i]);
        for (int64_t e = 0; e < elems; ++e) {
            uint32_t bits = rng_u32(5, RNG_STREAM_TEST, (uint64_t)(e % 4096));
            float value = (float)bits * 0x1p-32f - 0.5f;
            if (o->t[i].dtype == DTYPE_F32) ((float *)o->t[i].data)[e] = value * value;
            if (o->t[i].dtype == DTYPE_BF16) ((uint16_t *)o->t[i].data)[e] = bf16_from_f32(value);
            if (o->t[i].dtype == DTYPE_I32) ((int32_t *)o->t[i].data)[e] = (int32_t)(bits % 50000);
            if (o->t[i].dtype == DTYPE_F64) ((double *)o->t[i].data)[e] = 0;
        }
    }
}

static bool bench_case(Backend *be, const OpCase *c, DType dtype, double peak, int repeats) {
    Arena measure, arena;
    Operands one;
    Error err = {""};
    arena_init_measuring(&measure);
    lay_out(&one, &measure, c, dtype);
    int copies = (int)min_i64(MAX_COPIES, max_i64(2, (int64_t)(ROTATION_BYTES / measure.used_bytes)));
    if (!arena_init(&arena, be, measure.used_bytes * (size_t)copies, &err)) {
        fprintf(stderr, "bench op: %s\n", err.message);
        return false;
    }
    Operands all[MAX_COPIES];
    for (int i = 0; i < copies; ++i) {
        lay_out(&all[i], &arena, c, dtype);
        fill(&all[i]);
        run_case(be, c, &all[i], dtype);
    }
    double *seconds = xcalloc((size_t)repeats, sizeof *seconds);
    for (int i = 0; i < repeats; ++i) {
        double start = now_seconds();
        run_case(be, c, &all[i % copies], dtype);
        seconds[i] = now_seconds() - start;
    }
    double median = bench_median(seconds, repeats), flops = case_flops(c), bytes = case_bytes(c, &one, dtype);
    printf("%-24s %-5s %9.3f %9.3f %9.3f", c->name, dtype_name(dtype), seconds[repeats / 10] * 1e3, median * 1e3,
           seconds[repeats - 1 - repeats / 10] * 1e3);
    if (flops > 0) printf(" %9.1f GFLOP/s %6.1f %%\n", flops / median * 1e-9, 100 * flops / median / peak);
    else printf(" %9.1f GB/s\n", bytes / median * 1e-9);
    free(seconds);
    arena_free(&arena);
    return true;
}

int bench_ops_main(int argc, char **argv) {
    const char *filter = "", *dtype_text = "fp32", *isa = "auto";
    int64_t threads = 0, repeats = 11;
    const BenchOption options[] = {{"--only", &filter, NULL, "operations whose name contains this"},
                                   {"--dtype", &dtype_text, NULL, "fp32 or bf16"},
                                   {"--repeats", NULL, &repeats, "timed calls of each"},
                                   {"--threads", NULL, &threads, "0: all cores"},
                                   {"--isa", &isa, NULL, "auto, generic, avx2, avx512, avx512bf16"},
                                   {NULL, NULL, NULL, NULL}};
    int status = bench_parse(options,
                             "bench op: single operations at the shapes of real models\n\n"
                             "example\n  bench op --only head --dtype bf16",
                             argc, argv);
    if (status >= 0) return status;
    DType dtype;
    Error err = {""};
    if (!dtype_parse(dtype_text, &dtype) || (dtype != DTYPE_F32 && dtype != DTYPE_BF16) || repeats < 1) {
        fprintf(stderr, "bench op: expected --dtype fp32 or bf16 and --repeats above 0; see --help\n");
        return 2;
    }
    Backend *be = backend_cpu_open((int)threads, isa, &err);
    if (be == NULL) {
        fprintf(stderr, "bench op: %s\n", err.message);
        return 1;
    }
    double peak = be->measure_peak(be, dtype);
    printf("%s; peak %.1f GFLOP/s of %s multiply-adds from registers, measured now\n", be->description, peak * 1e-9,
           dtype_name(dtype));
    printf("%-24s %-5s %9s %9s %9s\n", "operation", "dtype", "p10 ms", "median ms", "p90 ms");
    bool ok = true;
    for (int i = 0; i < CASE_COUNT && ok; ++i)
        if (strstr(CASES[i].name, filter) != NULL) ok = bench_case(be, &CASES[i], dtype, peak, (int)repeats);
    be->close(be);
    return ok ? 0 : 1;
}
