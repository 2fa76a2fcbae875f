// test_plan.c: the plan equals what a run allocates, to the byte; planning allocates nothing; operations stay within the
// planned workspace; suggestions and the printed table.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "llmc/plan/plan.h"
#include "tests/support/model_test.h"

static void build_schedule(Schedule *schedule, const RunConfig *config) {
    Error err = {""};
    if (!schedule_build(schedule, config, 1, &err)) fail_msg("%s", err.message);
}

#define MODEL_OVERRIDES 12
static const char *const MODELS[][MODEL_OVERRIDES] = {
    {"model=gpt2:d1", "layers=3", "channels=32", "heads=2", "vocab=257", "max_seq_len=64"},
    {"model=llama:d1", "layers=2", "channels=48", "heads=3", "kv_heads=1", "head_size=8", "ffn=72", "vocab=300",
     "qk_norm=true", "tied=true", "max_seq_len=64"},
};
static const char *const VARIATIONS[][5] = {
    {"batch_rows=2", NULL},
    {"batch_rows=2", "optimizer=muon", NULL},
    {"batch_rows=2", "recompute=block", NULL},
    {"batch_rows=2", "recompute=block", "optimizer=muon", "loss_chunk_rows=7", NULL},
    {"phase.a.seq_len=16", "phase.b.seq_len=64", "phase.b.batch_rows=3", "phase.a.batch_rows=20", NULL},
};

static void load_config(RunConfig *config, int model, DType dtype, bool master_weights, int variation) {
    const char *overrides[32];
    int count = 0;
    overrides[count++] = master_weights ? "master_weights=true" : "master_weights=false";
    for (int i = 0; i < MODEL_OVERRIDES && MODELS[model][i] != NULL; ++i) overrides[count++] = MODELS[model][i];
    overrides[count++] = dtype == DTYPE_BF16 ? "dtype=bf16" : "dtype=fp32";
    overrides[count++] = "steps=4";
    for (int i = 0; VARIATIONS[variation][i] != NULL; ++i) overrides[count++] = VARIATIONS[variation][i];
    overrides[count] = NULL;
    model_test_config(config, overrides);
}

// Plan, then the same layout on a real arena of exactly the planned size.
static void check_exact(const RunConfig *config) {
    Error err = {""};
    Schedule schedule;
    MemoryPlan plan;
    Arena arena;
    Model model;
    Optimizer optimizer;
    build_schedule(&schedule, config);
    Backend *be = model_test_backend(2);
    plan_compute(&plan, config, &schedule, PLAN_ALONE, be);
    assert_true(arena_init(&arena, be, plan.arena.used_bytes, &err));
    Tensor comm_scratch;
    const PlanModels models = plan_models(config, &schedule, PLAN_ALONE);
    plan_layout(&model, &optimizer, &comm_scratch, &models, config, PLAN_ALONE, be, &arena);
    assert_int_equal(arena.used_bytes, plan.arena.used_bytes);
    assert_int_equal(arena.tag_count, plan.arena.tag_count);
    size_t sum = 0;
    for (int i = 0; i < arena.tag_count; ++i) {
        assert_string_equal(arena.tags[i].tag, plan.arena.tags[i].tag);
        assert_int_equal(arena.tags[i].bytes, plan.arena.tags[i].bytes);
        sum += plan.arena.tags[i].bytes;
    }
    assert_int_equal(sum, plan.arena.used_bytes);
    // Staging may use memory that is counted already.
    size_t rest = plan.workspace_bytes + plan.loader_bytes + plan.transfer_bytes + plan.program_bytes +
                  plan.snapshot_bytes;
    assert_true(plan.total_bytes >= sum + rest && plan.total_bytes <= sum + rest + plan.staging_bytes);

    // The largest parts by their definition.
    size_t elems = to_size(model.params.total_elems);
    bool bf16 = config->dtype == DTYPE_BF16;
    assert_int_equal(arena_tag_bytes(&plan.arena, "parameters"), elems * (bf16 ? 2 : 4));
    assert_int_equal(arena_tag_bytes(&plan.arena, "gradients"), elems * 4);
    assert_int_equal(arena_tag_bytes(&plan.arena, "master weights"),
                     bf16 && config->master_weights ? elems * 4 : 0);
    if (config->optimizer == OPTIMIZER_ADAMW)
        assert_int_equal(arena_tag_bytes(&plan.arena, "optimizer moments"), elems * 8);
    int64_t rows = 0, longest = 0;
    for (int p = 0; p < config->phase_count; ++p) {
        rows = max_i64(rows, config->phase[p].batch_rows * config->phase[p].seq_len);
        longest = max_i64(longest, config->phase[p].seq_len);
    }
    assert_int_equal(model.shape.max_rows, rows);
    assert_int_equal(model.shape.max_seq_len, longest);
    optimizer_free(&optimizer);
    model_free(&model);
    arena_free(&arena);
    be->close(be);
}

static void test_plan_is_exact(void **state) {
    (void)state;
    RunConfig *config = xmalloc(sizeof *config);
    for (int model = 0; model < 2; ++model)
        for (DType dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype)
            for (size_t v = 0; v < sizeof VARIATIONS / sizeof VARIATIONS[0]; ++v) {
                load_config(config, model, dtype, true, (int)v);
                check_exact(config);
                if (dtype == DTYPE_F32) continue;
                load_config(config, model, dtype, false, (int)v);
                check_exact(config);
            }
    free(config);
}

static size_t layout_bytes(const PlanModels *list, const RunConfig *config) {
    Arena arena;
    Model models[PLAN_MAX_MODELS];
    Optimizer optimizer;
    Tensor comm_scratch;
    arena_init_measuring(&arena);
    plan_layout(models, &optimizer, &comm_scratch, list, config, PLAN_ALONE, NULL, &arena);
    optimizer_free(&optimizer);
    for (int i = 0; i < list->count; ++i) model_free(&models[i]);
    return arena.used_bytes;
}

// A student and a teacher of another architecture in one arena: the bytes are the sum of both, and neither changes the
// other's results.
static void test_list_of_models(void **state) {
    (void)state;
    RunConfig *config = xmalloc(sizeof *config), *other = xmalloc(sizeof *other);
    load_config(config, 0, DTYPE_F32, true, 0);
    load_config(other, 1, DTYPE_F32, true, 0);
    other->arch.V = config->arch.V;
    other->arch.Vp = config->arch.Vp;
    Schedule schedule;
    build_schedule(&schedule, config);
    PlanModels list = plan_models(config, &schedule, PLAN_ALONE);
    assert_int_equal(list.count, 1);
    const size_t alone = layout_bytes(&list, config);
    ModelShape shape = list.model[0].shape;
    shape.training = false;
    list.model[list.count++] = (PlanModel){PLAN_TEACHER, other->arch, shape};
    Arena teacher_arena;
    Model teacher;
    arena_init_measuring(&teacher_arena);
    model_init(&teacher, &other->arch, &shape, NULL, &teacher_arena);
    model_free(&teacher);
    assert_int_equal(arena_tag_bytes(&teacher_arena, "gradients"), 0);
    const size_t both = layout_bytes(&list, config);
    assert_int_equal(both, alone + teacher_arena.used_bytes);

    Error err = {""};
    Backend *be = model_test_backend(2);
    Arena arena;
    Model models[PLAN_MAX_MODELS];
    Optimizer optimizer;
    Tensor comm_scratch;
    assert_true(arena_init(&arena, be, both, &err));
    plan_layout(models, &optimizer, &comm_scratch, &list, config, PLAN_ALONE, be, &arena);
    assert_int_equal(arena.used_bytes, both);
    int32_t tokens[16], targets[16];
    float weights[16];
    for (int i = 0; i < 16; ++i) {
        tokens[i] = 3 * i + 1;
        targets[i] = 3 * i + 4;
        weights[i] = 1;
    }
    const Batch batch = {.B = 1, .T = 16, .tokens = tokens, .targets = targets, .weights = weights};
    double loss[2][2];
    for (int i = 0; i < 2; ++i) model_init_weights(&models[i], 7);
    for (int again = 0; again < 2; ++again)
        for (int i = 0; i < 2; ++i) {
            model_begin_step(&models[i]);
            model_forward(&models[i], &batch, 1.0 / 16, i == 0);
            if (i == 0) model_backward(&models[0]);
            loss[again][i] = model_test_loss_sum(&models[i]) / 16;
        }
    // Initial weights give the loss of a uniform distribution; neither model writes into the other.
    for (int i = 0; i < 2; ++i) {
        assert_true(fabs(loss[0][i] - log((double)config->arch.V)) < 0.5);
        assert_true(loss[1][i] == loss[0][i]);
    }
    assert_true(loss[0][0] != loss[0][1]);
    optimizer_free(&optimizer);
    for (int i = 0; i < 2; ++i) model_free(&models[i]);
    arena_free(&arena);
    be->close(be);
    free(config);
    free(other);
}

// The workspace of a teacher is that of a forward pass: its 8-bit products are the four of a block, no gradients.
static void test_teacher_workspace(void **state) {
    (void)state;
    RunConfig *config = xmalloc(sizeof *config);
    const char *const overrides[] = {"model=llama:d1", "layers=2", "channels=64", "heads=4", "vocab=300", "ffn=96",
                                     "seq_len=16", "batch_rows=2", "dtype=bf16", "steps=4", NULL};
    model_test_config(config, overrides);
    Schedule schedule;
    build_schedule(&schedule, config);
    ModelShape shape = plan_model_shape(config, &schedule, PLAN_ALONE);
    shape.fp8 = true;
    WorkspaceShape bounds[2];
    int pieces = 0;
    for (int training = 0; training < 2; ++training) {
        Arena arena;
        Model model;
        arena_init_measuring(&arena);
        shape.training = training;
        model_init(&model, &config->arch, &shape, NULL, &arena);
        bounds[training] = plan_workspace_bounds(config, &schedule, &model);
        pieces = model.part.pieces;
        model_free(&model);
    }
    // Inputs of fc: x (32,64) and w (192,64). Of its weight's gradient: (32,192) and (32,64); of its input's: (32,192) and
    // (192,64), the largest pair.
    assert_int_equal(shape.max_rows, 32);
    assert_int_equal(bounds[0].fp8_elems, 32 * 64 + 192 * 64);
    assert_int_equal(bounds[1].fp8_elems, 32 * 192 + 192 * 64);
    assert_int_equal(bounds[0].tensors, 1);
    assert_true(pieces > 1);
    assert_int_equal(bounds[1].tensors, pieces);
    assert_int_equal(bounds[0].rows, bounds[1].rows);
    assert_int_equal(bounds[0].Vp, bounds[1].Vp);
    free(config);
}

static size_t planned_total(const char *const *overrides) {
    RunConfig *config = xmalloc(sizeof *config);
    Schedule schedule;
    MemoryPlan plan;
    model_test_config(config, overrides);
    build_schedule(&schedule, config);
    Backend *be = model_test_backend(2);
    plan_compute(&plan, config, &schedule, PLAN_ALONE, be);
    be->close(be);
    free(config);
    return plan.total_bytes;
}

static void test_options_that_save_memory(void **state) {
    (void)state;
    const char *overrides[] = {"model=gpt2:124M", "steps=1", "seq_len=1024", "batch_rows=4", NULL, NULL};
    size_t plain = planned_total(overrides);
    // 124M parameters of 16 bytes, and activations.
    assert_true(plain > (size_t)124 * 16 * 1000000 && plain < (size_t)10 << 30);
    static const char *const SMALLER[] = {"recompute=block", "dtype=bf16", "optimizer=muon", "batch_rows=2",
                                          "loss_chunk_rows=64", "seq_len=512", "layers=11"};
    for (size_t i = 0; i < sizeof SMALLER / sizeof SMALLER[0]; ++i) {
        overrides[4] = SMALLER[i];
        if (planned_total(overrides) >= plain) fail_msg("%s does not save memory", SMALLER[i]);
    }
}

static size_t resident_bytes(void) {
    long long total = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%lld %lld", &total, &resident) != 2) resident = 0;
    fclose(file);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

// Planning a model of 8 billion parameters takes no memory.
static void test_planning_allocates_nothing(void **state) {
    (void)state;
    size_t before = resident_bytes();
    const char *overrides[] = {"model=llama3:8B", "steps=1", "seq_len=8192", "batch_rows=4", NULL};
    size_t total = planned_total(overrides);
    assert_true(total > (size_t)16 * 8000000000u);
    size_t grown = resident_bytes() - before;
    if (resident_bytes() > before && grown > (size_t)16 << 20) fail_msg("planning took %zu bytes", grown);
}

static void test_loss_chunks(void **state) {
    (void)state;
    RunConfig *config = xcalloc(1, sizeof *config);
    config->arch.Vp = 50304;
    int64_t rows = plan_loss_chunk_rows(config, 1 << 20);
    assert_true(rows % 64 == 0 && rows * 50304 * 4 <= PLAN_LOGITS_BYTES &&
                (rows + 64) * 50304 * 4 > PLAN_LOGITS_BYTES);
    config->dtype = DTYPE_BF16;
    rows = plan_loss_chunk_rows(config, 1 << 20);
    assert_true(rows * 50304 * 2 <= PLAN_LOGITS_BYTES && (rows + 64) * 50304 * 2 > PLAN_LOGITS_BYTES);
    assert_int_equal(plan_loss_chunk_rows(config, 100), 100);  // not more than the rows of the batch
    config->arch.Vp = (int64_t)1 << 31;
    assert_int_equal(plan_loss_chunk_rows(config, 1 << 20), 64);  // at least 64, to be efficient
    config->loss_chunk_rows = 17;
    assert_int_equal(plan_loss_chunk_rows(config, 1 << 20), 17);
    assert_int_equal(plan_loss_chunk_rows(config, 5), 5);
    free(config);
}

// ---- the workspace ----

// A training step, an evaluation and decoding; an operation that exceeds the planned workspace aborts the process.
static void check_workspace(const char *const *overrides, int threads) {
    ModelTest t = {0};
    Schedule schedule;
    MemoryPlan plan;
    model_test_config(&t.config, overrides);
    build_schedule(&schedule, &t.config);
    ModelShape shape = plan_model_shape(&t.config, &schedule, PLAN_ALONE);
    model_test_open(&t, &shape, threads);
    plan_compute(&plan, &t.config, &schedule, PLAN_ALONE, t.be);
    t.be->workspace_limit_bytes = plan.workspace_bytes;
    int64_t N = shape.max_rows, T = shape.max_seq_len;
    int32_t *tokens = xcalloc(to_size(N), sizeof *tokens);
    float *weights = xmalloc(to_size(N) * sizeof *weights);
    float *logits = xmalloc(to_size(t.config.arch.V) * sizeof *logits);
    for (int64_t i = 0; i < N; ++i) {
        tokens[i] = (int32_t)(i * i % t.config.arch.V);
        weights[i] = 1;
    }
    Batch batch = {.B = N / T, .T = T, .tokens = tokens, .targets = tokens, .weights = weights};
    model_begin_step(&t.model);
    model_forward(&t.model, &batch, 1.0 / (double)N, true);
    model_backward(&t.model);
    optimizer_step(&t.optimizer, &t.model, &t.config, 1e-3, 1, 1);
    assert_int_equal(model_test_stats(&t.optimizer, &t.model).skip, 0);
    int64_t half = min_i64(shape.cache_tokens, N) / 2;
    assert_true(half > 0);
    model_decode(&t.model, tokens, half, 0, logits);
    model_decode(&t.model, tokens, half, half, logits);
    free(tokens);
    free(weights);
    free(logits);
    model_test_close(&t);
}

static void test_workspace_holds(void **state) {
    (void)state;
    const char *long_rows[] = {"model=llama:d1", "channels=128", "heads=1", "head_size=128", "ffn=64", "vocab=64",
                               "max_seq_len=2048", "batch_rows=1", "steps=1", NULL, NULL};
    const char *many_rows[] = {"model=gpt2:d1", "channels=64", "heads=2",        "vocab=300", "max_seq_len=64",
                               "batch_rows=20", "steps=1",     "optimizer=muon", NULL,        NULL};
    const char *wide_rows[] = {"model=llama:d1", "channels=64", "heads=1", "ffn=1500", "vocab=64", "max_seq_len=16",
                               "batch_rows=3", "steps=1", "optimizer=muon", NULL, NULL};
    const char *tiny[] = {"model=gpt2:d1", "channels=8", "heads=2", "vocab=9", "max_seq_len=4",
                          "batch_rows=1",  "steps=1",    NULL,      NULL};
    for (int threads = 1; threads <= 3; ++threads) {
        check_workspace(long_rows, threads);
        check_workspace(many_rows, threads);
        check_workspace(wide_rows, threads);
        check_workspace(tiny, threads);
    }
    long_rows[9] = many_rows[8] = wide_rows[9] = tiny[7] = "dtype=bf16";
    check_workspace(long_rows, 2);
    check_workspace(many_rows, 3);
    check_workspace(wide_rows, 1);
    check_workspace(tiny, 2);
}

// ---- printed text ----

static void check_print(const MemoryPlan *plan, const RunConfig *config, size_t available, const char *expected,
                        const char *unexpected) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    assert_non_null(out);
    plan_print(out, plan, config, available);
    fclose(out);
    if (strstr(text, expected) == NULL) fail_msg("expected '%s' in: %s", expected, text);
    if (unexpected != NULL && strstr(text, unexpected) != NULL)
        fail_msg("did not expect '%s' in: %s", unexpected, text);
    free(text);
}

static void test_print(void **state) {
    (void)state;
    RunConfig *config = xmalloc(sizeof *config);
    Schedule schedule;
    MemoryPlan plan;
    char total[32];
    load_config(config, 0, DTYPE_BF16, true, 1);
    build_schedule(&schedule, config);
    Backend *be = model_test_backend(1);
    plan_compute(&plan, config, &schedule, PLAN_ALONE, be);
    be->close(be);
    snprintf(total, sizeof total, "%zu", plan.total_bytes);
    check_print(&plan, config, 0, total, "fit");
    check_print(&plan, config, 0, "bf16, optimizer muon", NULL);
    for (int i = 0; i < plan.arena.tag_count; ++i) check_print(&plan, config, 0, plan.arena.tags[i].tag, NULL);
    check_print(&plan, config, plan.total_bytes, "fits", "does not fit");
    check_print(&plan, config, plan.total_bytes - 1, "does not fit", "fits");
    free(config);
}

// For a GPU, without having one: bytes of the device with one row and recompute=block.
static size_t least_bytes(const char *dtype, const char *masters) {
    RunConfig *config = xmalloc(sizeof *config);
    Schedule schedule;
    MemoryPlan plan;
    model_test_config(config, (const char *const[]){"model=gpt2:d4", "vocab=50257", "steps=4", "batch_rows=1",
                                                    "batch_tokens=64Ki", "recompute=block", dtype, masters, NULL});
    build_schedule(&schedule, config);
    plan_compute(&plan, config, &schedule, PLAN_ALONE, NULL);
    free(config);
    return plan.device_bytes;
}
static void check_suggests(const char *dtype, size_t available_bytes, const char *expected, const char *unexpected) {
    RunConfig *config = xmalloc(sizeof *config);
    Schedule schedule;
    char text[1024];
    model_test_config(config, (const char *const[]){"model=gpt2:d4", "vocab=50257", "steps=4", "batch_rows=64",
                                                    "batch_tokens=64Ki", dtype, NULL});
    build_schedule(&schedule, config);
    plan_suggest(text, sizeof text, config, &schedule, PLAN_ALONE, NULL, available_bytes);
    if (strstr(text, expected) == NULL || (unexpected != NULL && strstr(text, unexpected) != NULL))
        fail_msg("expected '%s', not '%s', in: %s", expected, unexpected != NULL ? unexpected : "", text);
    free(config);
}
static void test_suggestions(void **state) {
    (void)state;
    size_t fp32 = least_bytes("dtype=fp32", "master_weights=true");
    size_t bf16 = least_bytes("dtype=bf16", "master_weights=true");
    size_t least = least_bytes("dtype=bf16", "master_weights=false");
    assert_true(least < bf16 && least < fp32);
    check_suggests("dtype=fp32", fp32, "recompute=block batch_rows=1 ", "master_weights");
    check_suggests("dtype=bf16", bf16, "recompute=block batch_rows=1 ", "master_weights");
    check_suggests("dtype=bf16", least, "master_weights=false recompute=block batch_rows=1 ", NULL);
    check_suggests("dtype=fp32", least, "dtype=bf16 master_weights=false recompute=block batch_rows=1 ", NULL);
    check_suggests("dtype=bf16", least - 1, "a smaller model", "master_weights");
}

// On a CPU the snapshot counts as device memory, and saving without it is the first suggestion.
static void test_suggests_no_copy(void **state) {
    (void)state;
    RunConfig *config = xmalloc(sizeof *config);
    Schedule schedule;
    MemoryPlan plan;
    Error err = {""};
    char text[1024];
    Backend *be = backend_cpu_open(1, NULL, &err);
    if (be == NULL) fail_msg("%s", err.message);
    model_test_config(config, (const char *const[]){"model=gpt2:d4", "vocab=50257", "steps=4", "batch_rows=1", NULL});
    build_schedule(&schedule, config);
    plan_compute(&plan, config, &schedule, PLAN_ALONE, be);
    plan_suggest(text, sizeof text, config, &schedule, PLAN_ALONE, be, plan.device_bytes - 1);
    if (strncmp(text, "async_save=false (", 18) != 0) fail_msg("expected async_save=false first, found: %s", text);
    plan_suggest(text, sizeof text, config, &schedule, PLAN_ALONE, be, plan.device_bytes - plan.snapshot_bytes - 1);
    if (strncmp(text, "async_save=false (", 18) == 0) fail_msg("that alone is not enough: %s", text);
    be->close(be);
    free(config);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_suggests_no_copy),
        cmocka_unit_test(test_plan_is_exact),
        cmocka_unit_test(test_list_of_models),   cmocka_unit_test(test_teacher_workspace),
        cmocka_unit_test(test_options_that_save_memory),
        cmocka_unit_test(test_planning_allocates_nothing), cmocka_unit_test(test_loss_chunks),
        cmocka_unit_test(test_workspace_holds), cmocka_unit_test(test_print),
        cmocka_unit_test(test_suggestions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
