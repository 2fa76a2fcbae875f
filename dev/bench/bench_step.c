// bench_step.c: `bench step`: whole training steps (forward, backward, clip, AdamW) at fixed shapes on random tokens, on
// any backend: tokens/s, MFU, memory, and on a CPU the time per kind of operation. Prints one JSON line, which scripts
// compare with those of peers.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "dev/bench/bench.h"
#include "dev/bench/optimizer_step.h"
#include "dev/bench/profile.h"
#include "llmc/base/tree_sum.h"
#include "llmc/formats/model_file.h"
#include "llmc/plan/plan.h"
#include "llmc/plan/work.h"
#include "llmc/base/rng.h"
#include "llmc/loader/shard.h"
#include "llmc/train/zero.h"

typedef struct {
    const char *name, *preset;
    int64_t B, T, tokens;     // of a micro-batch; tokens of a step
    int64_t L, C, NH, vocab;  // 0: the preset's
} StepShape;

// The micro-batches of the GPU shapes fit into 80 GB in bf16 without recomputation.
static const StepShape SHAPES[] = {
    {"124M-b4-t64", "gpt2:124M", 4, 64, 256, 0, 0, 0, 0},
    {"124M-b4-t256", "gpt2:124M", 4, 256, 1024, 0, 0, 0, 0},
    {"small-b8-t256", "gpt2:124M", 8, 256, 2048, 6, 384, 6, 0},
    {"gpt2-124M", "gpt2:124M", 64, 1024, 65536, 0, 0, 0, 0},
    {"gpt2-350M", "gpt2:350M", 32, 1024, 65536, 0, 0, 0, 0},
    {"gpt2-774M", "gpt2:774M", 16, 1024, 65536, 0, 0, 0, 0},
    {"gpt2-1.5B", "gpt2:1.5B", 8, 1024, 32768, 0, 0, 0, 0},
    {"qwen2-0.5B", "qwen2:0.5B", 32, 1024, 65536, 0, 0, 0, 0},
    {"qwen2-1.5B", "qwen2:1.5B", 8, 1024, 32768, 0, 0, 0, 0},
    {"qwen2-3B", "qwen2:3B", 4, 1024, 32768, 0, 0, 0, 0},
    {"qwen2-0.5B-t4096", "qwen2:0.5B", 8, 4096, 65536, 0, 0, 0, 0},
    {"qwen2-1.5B-t4096", "qwen2:1.5B", 2, 4096, 32768, 0, 0, 0, 0},
    {"qwen2-3B-t4096", "qwen2:3B", 1, 4096, 32768, 0, 0, 0, 0},
    {"tiny-gpt2", "gpt2:124M", 2, 32, 128, 2, 32, 2, 128},
    {"tiny-llama", "qwen2:0.5B", 2, 32, 128, 2, 32, 2, 128},
};
#define SHAPE_COUNT ((int)(sizeof SHAPES / sizeof SHAPES[0]))
#define WARMUP_STEPS 2
#define SEED 1  // of weights and tokens: peer_pytorch.py generates the same; llm.c reads the files of --start
#define LEARNING_RATE 1e-4

typedef struct {
    const char *shape, *dtype, *start;
    Recompute recompute;
    BenchDevice device;
    int64_t steps, chunk_rows, batch_rows, batch_tokens;
    bool no_graphs, no_master, describe;
} StepOptions;

typedef struct {
    const StepShape *shape;
    RunConfig config;
    Schedule schedule;
    Backend *be;      // the device
    Profile profile;  // wraps the device on a CPU; elsewhere operations end after the call returns
    Arena arena;
    Model model;
    Optimizer optimizer;
    Batch *batch;  // the micro-batches of a step
    int64_t micro_batches;
    double *loss;  // (2, micro_batches) host_alloc memory: a step's loss is read while the next one runs
} StepBench;

static const StepShape *find_shape(const char *name) {
    for (int i = 0; i < SHAPE_COUNT; ++i)
        if (strcmp(SHAPES[i].name, name) == 0) return &SHAPES[i];
    return NULL;
}

static bool describe_arch(ModelConfig *arch, const StepShape *shape, int64_t T, Error *err) {
    if (!model_config_preset(arch, shape->preset, err)) return false;
    if (shape->L > 0) arch->L = shape->L;
    if (shape->C > 0) {
        arch->C = shape->C;
        arch->NH = shape->NH;
        arch->NKV = arch->position == POSITION_ROPE ? shape->NH / 2 : shape->NH;
        arch->HS = shape->C / shape->NH;
        arch->F = 4 * shape->C;
    }
    if (shape->vocab > 0) arch->V = shape->vocab;
    arch->max_seq_len = max_i64(T, 1024);  // a GPT-2 has 1024 positions however many are used
    return model_config_finish(arch, err);
}

static bool describe_run(StepBench *bench, const StepShape *shape, const StepOptions *options, Error *err) {
    RunConfig *config = &bench->config;
    bench->shape = shape;
    if (!describe_arch(&config->arch, shape, shape->T, err)) return false;
    // fp8: bf16 with 8-bit matmuls in the blocks; the MFU still refers to the bf16 peak.
    config->fp8 = strcmp(options->dtype, "fp8") == 0;
    dtype_parse(config->fp8 ? "bf16" : options->dtype, &config->dtype);
    config->master_weights = !options->no_master;
    config->recompute = options->recompute;
    config->loss_chunk_rows = options->chunk_rows;
    config->beta1 = 0.9;
    config->beta2 = 0.95;
    config->eps = 1e-8;
    config->weight_decay = 0.1;
    config->grad_clip = 1.0;
    config->phase_count = 1;
    PhaseConfig *phase = &config->phase[0];
    phase->seq_len = shape->T;
    phase->batch_rows = options->batch_rows > 0 ? options->batch_rows : shape->B;
    phase->batch_tokens = options->batch_tokens > 0 ? options->batch_tokens : shape->tokens;
    phase->tokens = phase->batch_tokens * 1000;
    phase->new_lr_segment = true;
    phase->lr = (LrConfig){.kind = SCHEDULE_CONSTANT, .lr = LEARNING_RATE, .final_lr_frac = 1};
    if (!schedule_build(&bench->schedule, config, 1, err)) return false;
    bench->micro_batches = phase->batch_tokens / (phase->batch_rows * phase->seq_len);
    return true;
}

// The training tokens: a token's target is the next one.
static int32_t stream_token(int64_t i, int64_t vocab) {
    return (int32_t)(rng_u32(SEED, RNG_STREAM_TEST, (uint64_t)i) % (uint32_t)vocab);
}

static void fill_batches(StepBench *bench) {
    const PhaseConfig *phase = &bench->config.phase[0];
    int64_t N = phase->batch_rows * phase->seq_len, all = N * bench->micro_batches;
    int32_t *tokens = xmalloc(to_size(all) * sizeof *tokens), *targets = xmalloc(to_size(all) * sizeof *targets);
    float *weights = xmalloc(to_size(all) * sizeof *weights);
    for (int64_t i = 0; i < all; ++i) {
        tokens[i] = stream_token(i, bench->config.arch.V);
        targets[i] = stream_token(i + 1, bench->config.arch.V);
        weights[i] = 1;
    }
    bench->batch = xcalloc(to_size(bench->micro_batches), sizeof *bench->batch);
    for (int64_t m = 0; m < bench->micro_batches; ++m)
        bench->batch[m] = (Batch){.B = phase->batch_rows,
                                  .T = phase->seq_len,
                                  .tokens = tokens + m * N,
                                  .targets = targets + m * N,
                                  .weights = weights + m * N};
}

// (micro_batches)
static double *step_loss(StepBench *bench, int64_t t) { return bench->loss + t % 2 * bench->micro_batches; }

// Issues one step and the download of its loss; the ticket is done when the loss has arrived.
static Ticket issue_step(StepBench *bench, int64_t t) {
    Model *model = &bench->model;
    double tokens = (double)bench->config.phase[0].batch_tokens;
    model_begin_step(model);
    for (int64_t m = 0; m < bench->micro_batches; ++m) {
        model_forward(model, &bench->batch[m], 1.0 / tokens, true);
        model_backward(model);
    }
    optimizer_step(&bench->optimizer, model, &bench->config, LEARNING_RATE, 1, t);
    const DownloadPiece loss = {step_loss(bench, t), model->loss_sums.data,
                                to_size(bench->micro_batches) * sizeof *bench->loss};
    Ticket read = bench->be->download_begin(bench->be, &loss, 1);
    bench->be->after(bench->be, read);
    return read;
}

// Runs warm-up and timed steps as training does: waits for a step after issuing the next one. seconds (steps): from the
// end of the previous step to the end of this one. losses (WARMUP_STEPS + steps).
static bool run_steps(StepBench *bench, double *seconds, double *losses, int64_t steps, Error *err) {
    Ticket read[2] = {0, 0};
    double ended = now_seconds(), tokens = (double)bench->config.phase[0].batch_tokens;
    int64_t all = WARMUP_STEPS + steps;
    for (int64_t t = 1; t <= all + 1; ++t) {
        if (t == WARMUP_STEPS + 1) profile_reset(&bench->profile);
        if (t <= all) read[t % 2] = issue_step(bench, t);
        // A synchronous backend has nothing to overlap: each step ends before the next begins.
        bool synchronous = bench->be->threads > 0;
        int64_t ends = synchronous ? t : t - 1;
        if (ends < 1 || ends > all) continue;
        if (!bench->be->wait(bench->be, read[ends % 2], err)) return false;
        losses[ends - 1] = tree_sum_f64(step_loss(bench, ends), bench->micro_batches) / tokens;
        double now = now_seconds();
        if (ends > WARMUP_STEPS) seconds[ends - WARMUP_STEPS - 1] = now - ended;
        ended = now;
        if (!isfinite(losses[ends - 1]))
            return error_set(err, "step %lld: the loss is %f", (long long)ends, losses[ends - 1]);
    }
    return true;
}

// ---- the report ----

// The architecture as one JSON line, for programs that build the same model (peer_pytorch.py).
static int print_description(const StepShape *shape) {
    ModelConfig m = {0};
    Error err = {""};
    CHECK(describe_arch(&m, shape, shape->T, &err), "%s", err.message);
    printf(
        "{\"shape\": \"%s\", \"layers\": %lld, \"channels\": %lld, \"heads\": %lld, \"kv_heads\": %lld, "
        "\"head_size\": %lld, \"ffn\": %lld, \"vocab\": %lld, \"padded_vocab\": %lld, \"positions\": %lld",
        shape->name, (long long)m.L, (long long)m.C, (long long)m.NH, (long long)m.NKV, (long long)m.HS,
        (long long)m.F, (long long)m.V, (long long)m.Vp, (long long)m.max_seq_len);
    printf(
        ", \"norm\": \"%s\", \"norm_eps\": %.3g, \"rope_theta\": %.0f, \"activation\": \"%s\", \"norm_bias\": %s, "
        "\"qkv_bias\": %s, \"proj_bias\": %s, \"mlp_bias\": %s, \"init_std\": %.4g",
        word_of(NORM_WORDS, (int)m.norm), (double)m.norm_eps, m.position == POSITION_ROPE ? m.rope_theta : 0.0,
        word_of(ACTIVATION_WORDS, (int)m.activation), m.norm_bias ? "true" : "false", m.qkv_bias ? "true" : "false",
        m.proj_bias ? "true" : "false", m.mlp_bias ? "true" : "false", (double)m.init_std);
    printf(", \"batch_rows\": %lld, \"seq_len\": %lld, \"batch_tokens\": %lld, \"seed\": %d, \"lr\": %.3g}\n",
           (long long)shape->B, (long long)shape->T, (long long)shape->tokens, SEED, LEARNING_RATE);
    return 0;
}

static void print_list(const char *name, const double *values, int64_t count, double scale, bool inverse,
                       int digits) {
    printf(", \"%s\": [", name);
    for (int64_t i = 0; i < count; ++i)
        printf("%s%.*f", i ? ", " : "", digits, inverse ? scale / values[i] : scale * values[i]);
    printf("]");
}

static void print_profile(const StepBench *bench, double total, double peak) {
    const Profile *profile = &bench->profile;
    double known = 0;
    printf(", \"shares\": {");
    for (int i = 0; i < PROFILE_KINDS; ++i) {
        printf("\"%s\": %.4f, ", PROFILE_NAMES[i], profile->seconds[i] / total);
        known += profile->seconds[i];
    }
    double rate = profile->counting.counts.op[COUNT_MATMUL].flops / profile->seconds[PROFILE_MATMUL];
    printf("\"rest\": %.4f}, \"matmul_gflops\": %.1f, \"matmul_peak_share\": %.4f", (total - known) / total,
           rate * 1e-9, rate / peak);
}

static void print_report(const StepBench *bench, const StepOptions *options, double *seconds, const double *losses,
                         double peak, const MemoryPlan *plan) {
    const Backend *be = bench->be;
    const PhaseConfig *phase = &bench->config.phase[0];
    double tokens = (double)phase->batch_tokens, total = 0;
    int steps = (int)options->steps;
    for (int i = 0; i < steps; ++i) total += seconds[i];
    printf("{\"peer\": \"tokamak\", \"version\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"threads\": %d",
           be->description, bench->shape->name, options->dtype, be->threads);
    print_list("list", seconds, steps, tokens, true, 2);
    double median = bench_median(seconds, steps);
    double flops = work_flops_per_token(&bench->config.arch, phase->seq_len) * tokens;
    printf(", \"tok_per_s\": %.2f, \"step_ms\": %.2f, \"peak_gflops\": %.1f, \"peak_share\": %.4f", tokens / median,
           median * 1e3, peak * 1e-9, flops / median / peak);
    print_list("losses", losses, WARMUP_STEPS + steps, 1, false, 6);
    printf(
        ", \"device\": \"%s\", \"flops_per_token\": %.0f, \"mfu_formula\": \"(6 * matmul weights, head included + 6 "
        "* "
        "L * NH * HS * T, causal) * tokens/s / dense peak\", \"peak_source\": \"%s\"",
        be->name, flops / tokens, be->peak_source);
    printf(
        ", \"batch_rows\": %lld, \"seq_len\": %lld, \"batch_tokens\": %lld, \"recompute\": \"%s\", \"graphs\": %s, "
        "\"master_weights\": %s",
        (long long)phase->batch_rows, (long long)phase->seq_len, (long long)phase->batch_tokens,
        word_of(RECOMPUTE_WORDS, (int)options->recompute),
        bench->be->threads == 0 && !options->no_graphs ? "true" : "false", options->no_master ? "false" : "true");
    if (be->attention_choice[0] != '\0') printf(", \"attention\": \"%s\"", be->attention_choice);
    if (be->threads > 0) print_profile(bench, total, peak);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf(", \"planned_bytes\": %zu, \"device_bytes\": %zu, \"resident_bytes\": %lld}\n", plan->total_bytes,
           plan->device_bytes, (long long)usage.ru_maxrss * 1024);
}

// ---- weights and tokens for llm.c: writes model.bin and tokens.bin into an existing directory ----

static bool initial_values(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out,
                           Error *err) {
    (void)context;
    CHECK(first == 0 && count == spec->elems, "%s: %lld values from %lld", spec->name, (long long)count,
          (long long)first);
    (void)err;
    params_init_values(spec, SEED, out);
    return true;
}

static int write_start(const StepShape *shape, const char *dir) {
    ModelConfig arch = {0};
    ParamTable params;
    Error err = {""};
    CHECK(describe_arch(&arch, shape, shape->T, &err), "%s", err.message);
    params_build(&params, &arch);
    char *model = path_join(dir, "model.bin"), *tokens = path_join(dir, "tokens.bin");
    int64_t count = shape->tokens + 1;
    int32_t *stream = xmalloc(to_size(count) * sizeof *stream);
    for (int64_t i = 0; i < count; ++i) stream[i] = stream_token(i, arch.V);
    bool ok = model_file_write_llmc(model, &arch, &params, DTYPE_BF16, initial_values, NULL, &err);
    ShardWriter *writer = ok ? shard_writer_open(tokens, 1, arch.V, -1, &err) : NULL;
    ok = writer != NULL && shard_writer_append(writer, stream, count, &err) && shard_writer_finish(writer, &err);
    if (ok) printf("%s\n%s\n", model, tokens);
    else fprintf(stderr, "bench step: %s\n", err.message);
    free(stream);
    free(model);
    free(tokens);
    params_free(&params);
    return ok ? 0 : 1;
}

// ---- ----

static bool lay_out(StepBench *bench, MemoryPlan *plan, Error *err) {
    Backend *be = bench->be;
    profile_init(&bench->profile, be);
    bench->config.async_save = false;  // nothing is saved here
    plan_compute(plan, &bench->config, &bench->schedule, PLAN_ALONE, be);
    be->workspace_limit_bytes = plan->workspace_bytes;
    // The profile uses the host's clock: valid only if operations finish before they return.
    Backend *used = be->threads > 0 ? &bench->profile.outer : be;
    if (!arena_init(&bench->arena, used, plan->arena.used_bytes, err)) return false;
    Tensor comm_scratch;
    const PlanModels models = plan_models(&bench->config, &bench->schedule, PLAN_ALONE);
    plan_layout(&bench->model, &bench->optimizer, &comm_scratch, &models, &bench->config, PLAN_ALONE, used,
                &bench->arena);
    for (int i = 0; i < bench->model.params.count; ++i) bench->optimizer.trainable[i] = true;
    model_init_weights(&bench->model, SEED);
    optimizer_reset(&bench->optimizer, &bench->model);
    fill_batches(bench);
    bench->loss = be->host_alloc(be, 2 * to_size(bench->micro_batches) * sizeof *bench->loss, err);
    return bench->loss != NULL;
}

static void close_bench(StepBench *bench) {
    if (bench->loss != NULL) bench->be->host_free(bench->be, bench->loss);
    if (bench->batch != NULL) {
        free((void *)(uintptr_t)bench->batch[0].tokens);
        free((void *)(uintptr_t)bench->batch[0].targets);
        free((void *)(uintptr_t)bench->batch[0].weights);
        free(bench->batch);
        optimizer_free(&bench->optimizer);
        model_free(&bench->model);
    }
    arena_free(&bench->arena);
    bench->be->close(bench->be);
    free(bench);
}

static int bench_shape(const StepShape *shape, const StepOptions *options) {
    StepBench *bench = xcalloc(1, sizeof *bench);
    Error err = {""};
    MemoryPlan plan;
    if (!describe_run(bench, shape, options, &err) ||
        (bench->be = bench_device_open(&options->device, &err)) == NULL) {
        fprintf(stderr, "bench step: %s\n", err.message);
        free(bench);
        return 1;
    }
    if (bench->config.fp8 && !bench->be->matmul_fp8) {
        fprintf(stderr, "bench step: --dtype fp8: %s has no 8-bit floats\n", bench->be->description);
        close_bench(bench);
        return 1;
    }
    double peak = bench->be->measure_peak(bench->be, bench->config.dtype);
    double *seconds = xcalloc(to_size(options->steps), sizeof *seconds);
    double *losses = xcalloc(to_size(options->steps + WARMUP_STEPS), sizeof *losses);
    bool ok = lay_out(bench, &plan, &err) && run_steps(bench, seconds, losses, options->steps, &err);
    if (ok) {
        double after = bench->be->measure_peak(bench->be, bench->config.dtype);
        print_report(bench, options, seconds, losses, after > peak ? after : peak, &plan);
    } else {
        fprintf(stderr, "bench step: %s: %s\n", shape->name, err.message);
    }
    free(seconds);
    free(losses);
    close_bench(bench);
    return ok ? 0 : 1;
}

static char *shape_names(void) {
    char *names = xstrdup("");
    for (int i = 0; i < SHAPE_COUNT; ++i) {
        char *longer = xasprintf("%s%s%s", names, i ? ", " : "", SHAPES[i].name);
        free(names);
        names = longer;
    }
    return names;
}

int bench_step_main(int argc, char **argv) {
    StepOptions o = {
        .shape = SHAPES[0].name, .dtype = "fp32", .steps = 10, .device = {.device = "cpu", .isa = "auto"}};
    char *names = shape_names();
    char *usage = xasprintf(
        "bench step: whole training steps, one JSON line\n\n"
        "examples\n"
        "  bench step --shape 124M-b4-t256 --dtype bf16 --steps 5\n"
        "  bench step --device cuda --shape gpt2-1.5B --dtype bf16 --recompute block --batch-rows 16\n\n"
        "shapes: %s",
        names);
    static const Word DTYPE_CHOICES[] = {{0, "fp32"}, {0, "bf16"}, {0, "fp8"}, {0, NULL}};
    const Option rows[] = {
        {"shape", OPTION_TO(o.shape), .help = "one of the shapes above"},
        {"device", OPTION_TO(o.device.device), .help = "cpu, cuda or cudaemu"},
        {"dtype", OPTION_TO(o.dtype), .words = DTYPE_CHOICES, .help = "fp8: on a GPU"},
        {"steps", OPTION_TO(o.steps), OPTION_WHOLE, 1, 1e9, .help = "timed steps, after two warm-up steps"},
        {"threads", OPTION_TO(o.device.threads), OPTION_WHOLE, 0, 4096, .help = "CPU: threads; 0: all cores"},
        {"isa", OPTION_TO(o.device.isa), .words = CPU_ISA_WORDS, .help = "CPU: instruction set of the kernels"},
        {"recompute", OPTION_TO(o.recompute), OPTION_WORD, .words = RECOMPUTE_WORDS,
         .help = "activations that the backward pass recomputes"},
        {"chunk-rows", OPTION_TO(o.chunk_rows), OPTION_WHOLE, 0, 1e15,
         .help = "rows of a logits chunk; 0: the engine's choice"},
        {"batch-rows", OPTION_TO(o.batch_rows), OPTION_WHOLE, 0, 1e15,
         .help = "rows of a micro-batch; 0: the shape's"},
        {"batch-tokens", OPTION_TO(o.batch_tokens), OPTION_WHOLE, 0, 1e15,
         .help = "tokens of a step; 0: the shape's"},
        {"attention", OPTION_TO(o.device.attention), .words = ATTENTION_WORDS, .help = "GPU: which kernels"},
        {"start", OPTION_TO(o.start), .help = "only write weights and tokens for llm.c into this directory"},
        {"no-graphs", OPTION_TO(o.no_graphs), OPTION_FLAG, .help = "GPU: do not capture and replay micro-batches"},
        {"describe", OPTION_TO(o.describe), OPTION_FLAG, .help = "only print the shape's model as JSON, for peers"},
        {"no-master", OPTION_TO(o.no_master), OPTION_FLAG, .help = "bf16: no fp32 master weights"}};
    const OptionTable table = BENCH_OPTIONS(rows, usage);
    int status = options_read(&table, argc, argv);
    free(usage);
    if (status >= 0) {
        free(names);
        return status;
    }
    o.device.graphs = !o.no_graphs;
    const StepShape *shape = find_shape(o.shape);
    if (shape == NULL) fprintf(stderr, "bench step: expected --shape out of %s, found '%s'\n", names, o.shape);
    free(names);
    if (shape == NULL) return 2;
    if (o.start != NULL) return write_start(shape, o.start);
    return o.describe ? print_description(shape) : bench_shape(shape, &o);
}
