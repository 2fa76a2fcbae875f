// bench_step.c: whole training steps (forward, backward, clip, AdamW) at fixed shapes on random tokens: tokens/s,
// where the time goes, share of the measured peak, planned and resident memory. One JSON line, so that drivers can
// put peers beside it.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "dev/bench/bench.h"
#include "dev/bench/profile.h"
#include "llmc/plan.h"
#include "llmc/rng.h"

typedef struct {
    const char *name;
    int64_t L, NH, C, V, T_max, B, T;
} StepShape;

static const StepShape SHAPES[] = {
    {"124M-b4-t64", 12, 12, 768, 50257, 1024, 4, 64},
    {"124M-b4-t256", 12, 12, 768, 50257, 1024, 4, 256},
    {"small-b8-t256", 6, 6, 384, 50257, 1024, 8, 256},
};
#define SHAPE_COUNT ((int)(sizeof SHAPES / sizeof SHAPES[0]))

typedef struct {
    const StepShape *shape;
    RunConfig config;
    Schedule schedule;
    Profile profile;
    Arena arena;
    Model model;
    Optimizer optimizer;
    Batch batch;
} StepBench;

static void describe_run(StepBench *bench, DType dtype, const StepShape *shape, Recompute recompute, int64_t chunk_rows) {
    RunConfig *config = &bench->config;
    Error err = {""};
    bench->shape = shape;
    CHECK(model_config_preset(&config->arch, "gpt2:124M", &err), "%s", err.message);
    ModelConfig *arch = &config->arch;
    arch->L = shape->L;
    arch->C = shape->C;
    arch->NH = arch->NKV = shape->NH;
    arch->HS = shape->C / shape->NH;
    arch->F = 4 * shape->C;
    arch->V = shape->V;
    arch->Vp = 0;
    arch->max_seq_len = shape->T_max;
    CHECK(model_config_finish(arch, &err), "%s", err.message);
    config->dtype = dtype;
    config->master_weights = true;
    config->recompute = recompute;
    config->loss_chunk_rows = chunk_rows;
    config->beta1 = 0.9;
    config->beta2 = 0.95;
    config->eps = 1e-8;
    config->weight_decay = 0.1;
    config->grad_clip = 1.0;
    config->phase_count = 1;
    PhaseConfig *phase = &config->phase[0];
    phase->seq_len = shape->T;
    phase->batch_rows = shape->B;
    phase->batch_tokens = shape->B * shape->T;
    phase->tokens = phase->batch_tokens * 1000;
    phase->new_lr_segment = true;
    phase->lr = (LrConfig){.kind = SCHEDULE_CONSTANT, .lr = 1e-4, .final_lr_frac = 1};
    CHECK(schedule_build(&bench->schedule, config, 1, &err), "%s", err.message);
}

static void fill_batch(StepBench *bench) {
    int64_t N = bench->shape->B * bench->shape->T;
    int32_t *tokens = xmalloc(to_size(N) * sizeof *tokens), *targets = xmalloc(to_size(N) * sizeof *targets);
    float *weights = xmalloc(to_size(N) * sizeof *weights);
    for (int64_t i = 0; i < N; ++i) {
        tokens[i] = (int32_t)(rng_u32(1, RNG_STREAM_TEST, (uint64_t)i) % (uint32_t)bench->shape->V);
        targets[i] = (int32_t)(rng_u32(2, RNG_STREAM_TEST, (uint64_t)i) % (uint32_t)bench->shape->V);
        weights[i] = 1;
    }
    bench->batch =
        (Batch){.B = bench->shape->B, .T = bench->shape->T, .tokens = tokens, .targets = targets, .weights = weights};
}

static double one_step(StepBench *bench, int64_t t) {
    Model *model = &bench->model;
    double start = now_seconds();
    model_begin_step(model);
    model_forward(model, &bench->batch, 1.0 / (double)(bench->batch.B * bench->batch.T), true);
    model_backward(model);
    optimizer_step(&bench->optimizer, model, &bench->config, 1e-4, 1, t);
    double loss = model_loss_sum(model);
    double seconds = now_seconds() - start;
    CHECK(loss == loss, "loss %f", loss);
    return seconds;
}

static void print_report(const StepBench *bench, double *seconds, int steps, double total, double peak,
                         size_t planned) {
    double tokens = (double)(bench->batch.B * bench->batch.T), sorted_median;
    printf("{\"peer\": \"tokamak\", \"version\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"threads\": %d",
           bench->profile.inner->description, bench->shape->name, dtype_name(bench->config.dtype),
           bench->profile.inner->threads);
    printf(", \"list\": [");
    for (int i = 0; i < steps; ++i) printf("%s%.2f", i ? ", " : "", tokens / seconds[i]);
    sorted_median = bench_median(seconds, steps);
    double flops = model_config_flops_per_token(&bench->config.arch, bench->shape->T) * tokens;
    printf("], \"tok_per_s\": %.2f, \"step_ms\": %.2f, \"peak_gflops\": %.1f, \"peak_share\": %.4f",
           tokens / sorted_median, sorted_median * 1e3, peak * 1e-9, flops / sorted_median / peak);
    double known = 0;
    printf(", \"shares\": {");
    for (int i = 0; i < PROFILE_KINDS; ++i) {
        printf("\"%s\": %.4f, ", PROFILE_NAMES[i], bench->profile.seconds[i] / total);
        known += bench->profile.seconds[i];
    }
    printf("\"rest\": %.4f}, \"matmul_gflops\": %.1f, \"matmul_peak_share\": %.4f", (total - known) / total,
           bench->profile.matmul_flops / bench->profile.seconds[PROFILE_MATMUL] * 1e-9,
           bench->profile.matmul_flops / bench->profile.seconds[PROFILE_MATMUL] / peak);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf(", \"planned_bytes\": %zu, \"resident_bytes\": %lld}\n", planned, (long long)usage.ru_maxrss * 1024);
}

static int run_steps(DType dtype, const StepShape *shape, int steps, int threads, const char *isa, Recompute recompute,
                     int64_t chunk_rows) {
    StepBench *bench = xcalloc(1, sizeof *bench);
    Error err = {""};
    Backend *be = backend_cpu_open(threads, isa, &err);
    if (be == NULL) {
        fprintf(stderr, "bench step: %s\n", err.message);
        free(bench);
        return 1;
    }
    double peak = be->measure_peak(be, dtype);
    describe_run(bench, dtype, shape, recompute, chunk_rows);
    profile_init(&bench->profile, be);
    MemoryPlan plan;
    plan_compute(&plan, &bench->config, &bench->schedule, be);
    be->workspace_limit_bytes = plan.workspace_bytes;
    CHECK(arena_init(&bench->arena, &bench->profile.outer, plan.arena.used_bytes, &err), "%s", err.message);
    plan_layout(&bench->model, &bench->optimizer, &bench->config, &bench->schedule, &bench->profile.outer,
                &bench->arena);
    for (int i = 0; i < bench->model.params.count; ++i) bench->optimizer.trainable[i] = true;
    model_init_weights(&bench->model, 1);
    optimizer_reset(&bench->optimizer, &bench->model);
    fill_batch(bench);

    double *seconds = xcalloc((size_t)steps, sizeof *seconds), total = 0;
    for (int i = 0; i < 2; ++i) one_step(bench, i + 1);  // caches, pages, scratch
    profile_reset(&bench->profile);
    for (int i = 0; i < steps; ++i) total += seconds[i] = one_step(bench, i + 3);
    double after = be->measure_peak(be, dtype);
    print_report(bench, seconds, steps, total, after > peak ? after : peak, plan.total_bytes);
    free(seconds);
    free((void *)(uintptr_t)bench->batch.tokens);
    free((void *)(uintptr_t)bench->batch.targets);
    free((void *)(uintptr_t)bench->batch.weights);
    optimizer_free(&bench->optimizer);
    model_free(&bench->model);
    arena_free(&bench->arena);
    be->close(be);
    free(bench);
    return 0;
}

static Recompute recompute_kind(const char *name) {
    if (strcmp(name, "block") == 0) return RECOMPUTE_BLOCK;
    return strcmp(name, "norm_act") == 0 ? RECOMPUTE_NORM_ACT : RECOMPUTE_NONE;
}

int bench_step_main(int argc, char **argv) {
    const char *shape_name = SHAPES[0].name, *dtype_text = "fp32", *isa = "auto", *recompute = "none";
    int64_t steps = 10, threads = 0, chunk = 0;
    const BenchOption options[] = {{"--shape", &shape_name, NULL, "124M-b4-t64, 124M-b4-t256 or small-b8-t256"},
                                   {"--dtype", &dtype_text, NULL, "fp32 or bf16"},
                                   {"--steps", NULL, &steps, "timed steps (two more come before)"},
                                   {"--threads", NULL, &threads, "0: all cores"},
                                   {"--isa", &isa, NULL, "auto, generic, avx2, avx512, avx512bf16"},
                                   {"--recompute", &recompute, NULL, "none, norm_act or block"},
                                   {"--chunk-rows", NULL, &chunk, "rows of logits at a time, 0: the engine's choice"},
                                   {NULL, NULL, NULL, NULL}};
    int status = bench_parse(options,
                             "bench step: whole training steps, one JSON line\n\n"
                             "example\n  bench step --shape 124M-b4-t256 --dtype bf16 --steps 5",
                             argc, argv);
    if (status >= 0) return status;
    DType dtype;
    for (int i = 0; i < SHAPE_COUNT; ++i)
        if (strcmp(SHAPES[i].name, shape_name) == 0 && dtype_parse(dtype_text, &dtype) && steps > 0)
            return run_steps(dtype, &SHAPES[i], (int)steps, (int)threads, isa, recompute_kind(recompute),
                             chunk);
    fprintf(stderr, "bench step: expected a known --shape, --dtype and --steps above 0; see --help\n");
    return 2;
}
