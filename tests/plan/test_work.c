// test_work.c: FLOPs for each token compared with the formula, for every architecture; a tiny model's step and a forward
// pass counted by hand; counts compared with the operations that the CPU computes; a 70B model is counted in milliseconds.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

#include "llmc/plan/work.h"
#include "tests/support/counted_names.h"
#include "tests/support/model_kinds.h"
#include "tests/support/model_test.h"

// ---- FLOPs a token ----

// 6 for each weight in a product (of the head the real vocabulary's rows; no embedding), 12 L NH HS for each key of a
// query: T/2, or with a window w - w^2/2T.
static double formula(const ModelConfig *c, int64_t T) {
    double fc = (double)(activation_is_gated(c->activation) ? 2 * c->F : c->F), att = (double)(c->NH * c->HS);
    double qkv = (double)((c->NH + 2 * c->NKV) * c->HS), C = (double)c->C, L = (double)c->L;
    double weights = L * C * (qkv + att + fc + (double)c->F) + (double)c->V * C;
    double w = (double)c->window, keys = (double)T / 2;
    if (w > 0 && w < (double)T) keys = w - w * w / (2 * (double)T);
    return 6 * weights + 12 * L * att * keys;
}

static void check_flops(const ModelConfig *config, int64_t T, const char *what) {
    double expected = formula(config, T), found = work_flops_per_token(config, T);
    if (!(fabs(found - expected) <= 1e-14 * expected))
        fail_msg("%s, T=%lld: %.17g, expected %.17g", what, (long long)T, found, expected);
}

static void test_flops_per_token(void **state) {
    (void)state;
    static const char *const NAMES[] = {"gpt2:124M", "gpt2:1558M", "gpt3:13B",   "llama:d4",  "llama3:8B",
                                        "llama3:70B", "qwen2:7B",  "qwen3:0.6B", "qwen3:8B", "stories:260K"};
    for (size_t i = 0; i < sizeof NAMES / sizeof NAMES[0]; ++i) {
        ModelConfig config = model_test_preset(NAMES[i]);
        for (int tied = 0; tied < 2; ++tied) {
            config.tied = tied;
            for (int64_t window = 0; window <= 1000; window += 500) {
                config.window = window;
                check_flops(&config, 64, NAMES[i]);
                check_flops(&config, 1023, NAMES[i]);
                check_flops(&config, 8192, NAMES[i]);
            }
        }
    }
    for (int i = 0; i < MODEL_KIND_COUNT; ++i) {
        ModelConfig config = model_kind(i);
        check_flops(&config, 1, MODEL_KINDS[i].name);
        check_flops(&config, 17, MODEL_KINDS[i].name);
    }
    ModelConfig config = model_test_preset("gpt2:124M");
    assert_true(work_flops_per_token(&config, 256) == 6.0 * (12.0 * 12 * 768 * 768 + 50257.0 * 768) + 6.0 * 12 * 768 * 256);
}

// ---- a step by hand ----

static WorkShape tiny_shape(Recompute recompute) {
    WorkShape shape = {.arch = model_kind(model_kind_find("llama")), .B = 2, .T = 8, .optimizer = OPTIMIZER_ADAMW};
    shape.shape = (ModelShape){.max_rows = 16, .max_seq_len = 8, .loss_chunk_rows = 10, .training = true,
                               .recompute = recompute, .micro_batches = 3};
    return shape;
}

static void test_step_by_hand(void **state) {
    (void)state;
    StepWork work;
    WorkShape shape = tiny_shape(RECOMPUTE_BLOCK);
    const ModelConfig *c = &shape.arch;  // 2 blocks, C=32, 4 heads on 2, HS=8, F=48, V=300
    step_work_count(&work, &shape);
    const double qkv = 32 * 64, proj = 32 * 32, fc = 32 * 96, mlp = 48 * 32, block = 2 * 16 * (qkv + proj + fc + mlp);
    const double head = 2 * 16 * 32 * (double)c->Vp;
    assert_int_equal(work.model.part.buckets, 4);
    const struct {
        const Counts *counts;
        double matmuls, flops, attention_forward, attention_backward, norms;
    } expected[] = {{&work.forward[0], 0, 0, 0, 0, 0},       {&work.forward[1], 4, block, 1, 0, 2},
                    {&work.forward[2], 4, block, 1, 0, 2},
                    {&work.forward[3], 6, 3 * head, 0, 0, 1},  // two chunks: logits and both gradients
                    {&work.backward[3], 0, 0, 0, 0, 1},
                    {&work.backward[2], 8, 2 * block, 0, 1, 2},  // no recomputation: the last block is still in memory
                    {&work.backward[1], 12, 3 * block, 1, 1, 4}, {&work.backward[0], 0, 0, 0, 0, 0}};
    for (size_t i = 0; i < sizeof expected / sizeof expected[0]; ++i) {
        const OpCount *op = expected[i].counts->op;
        // Means of three micro-batches: a third and two thirds.
        if (!(fabs(op[COUNT_MATMUL].calls - expected[i].matmuls) < 1e-9 &&
              fabs(op[COUNT_MATMUL].flops - expected[i].flops) < 1e-6 &&
              fabs(op[COUNT_ATTENTION_FORWARD].calls - expected[i].attention_forward) < 1e-9 &&
              fabs(op[COUNT_ATTENTION_BACKWARD].calls - expected[i].attention_backward) < 1e-9 &&
              fabs(op[COUNT_NORM_FORWARD].calls + op[COUNT_NORM_BACKWARD].calls - expected[i].norms) < 1e-9))
            fail_msg("part %zu: %g products of %g FLOPs, attention %g and %g, %g norms", i, op[COUNT_MATMUL].calls,
                     op[COUNT_MATMUL].flops, op[COUNT_ATTENTION_FORWARD].calls, op[COUNT_ATTENTION_BACKWARD].calls,
                     op[COUNT_NORM_FORWARD].calls + op[COUNT_NORM_BACKWARD].calls);
    }
    // A block's weight gradients are read in the two micro-batches that add to them.
    const double grads = 4 * (qkv + proj + fc + mlp), outputs = 4 * 16 * (32 + 32 + 48 + 32.0);
    assert_true(fabs(work.backward[2].op[COUNT_MATMUL].bytes - (outputs + grads * (1 + 2.0 / 3))) < 1e-6);
    assert_true(work.update.op[COUNT_ADAMW].calls == 1);
    assert_true(work.update.op[COUNT_ADAMW].bytes <= 28.0 * (double)work.model.params.total_elems);
    assert_int_equal(work.counting.largest.rows, 16);
    assert_int_equal(work.counting.largest.widest, 96);
    assert_int_equal(work.counting.largest.chunk_rows, 10);
    assert_int_equal(work.counting.largest.Vp, c->Vp);
    step_work_free(&work);
}

// A model that is not trained (a teacher) has a forward pass and nothing else.
static void test_forward_only(void **state) {
    (void)state;
    StepWork trained, work;
    WorkShape shape = tiny_shape(RECOMPUTE_BLOCK);
    step_work_count(&trained, &shape);
    shape.shape.training = false;
    step_work_count(&work, &shape);
    for (int b = 0; b < 4; ++b) {
        const OpCount forward = counts_total(&work.forward[b]), same = counts_total(&trained.forward[b]);
        const OpCount backward = counts_total(&work.backward[b]);
        assert_true(backward.calls == 0 && backward.kernels == 0 && backward.flops == 0 && backward.bytes == 0);
        if (b == 3) continue;
        assert_true(fabs(forward.calls - same.calls) < 1e-9 && fabs(forward.flops - same.flops) < 1e-6);
    }
    // The head: two chunks of logits, without the two gradients that training adds.
    assert_true(fabs(work.forward[3].op[COUNT_MATMUL].calls - 2) < 1e-9);
    assert_true(fabs(work.forward[3].op[COUNT_MATMUL].flops - 2 * 16 * 32 * (double)shape.arch.Vp) < 1e-6);
    const OpCount update = counts_total(&work.update);
    assert_true(update.calls == 0 && update.kernels == 0 && update.bytes == 0);
    assert_int_equal(arena_tag_bytes(&work.arena, "gradients"), 0);
    assert_int_equal(arena_tag_bytes(&work.arena, "optimizer moments"), 0);
    step_work_free(&trained);
    step_work_free(&work);
}

// ---- the operations that the CPU computes ----

static void compute_step(Counting *counting, Backend *inner, const WorkShape *shape, const RunConfig *config) {
    counting_init(counting, inner);
    Backend *be = &counting->backend;
    Error err = {""};
    Arena arena;
    Model model;
    Optimizer optimizer;
    if (!arena_init(&arena, be, (size_t)8 << 20, &err)) fail_msg("%s", err.message);
    model_init(&model, &shape->arch, &shape->shape, be, &arena);
    optimizer_init(&optimizer, config, &model, &arena);
    model_init_weights(&model, 1);
    optimizer_reset(&optimizer, &model);
    counting->counts = (Counts){0};
    int32_t *tokens = xcalloc(to_size(shape->shape.max_rows), sizeof *tokens);
    float *weights = xcalloc(to_size(shape->shape.max_rows), sizeof *weights);
    for (int64_t i = 0; i < shape->shape.max_rows; ++i) {
        tokens[i] = (int32_t)(i % shape->arch.V);
        weights[i] = 1;
    }
    Batch batch = {.B = shape->B, .T = shape->T, .tokens = tokens, .targets = tokens, .weights = weights};
    model_begin_step(&model);
    for (int k = 0; k < 2; ++k) {
        model_forward(&model, &batch, 1 / (double)(2 * shape->shape.max_rows), true);
        model_backward(&model);
    }
    optimizer_step(&optimizer, &model, config, 1e-3, 1, 1);
    double loss = model_test_loss_sum(&model) / (double)(2 * shape->shape.max_rows);
    if (inner != NULL) assert_true(loss > 3 && loss < 8);
    else assert_true(loss == 0);
    free(tokens);
    free(weights);
    optimizer_free(&optimizer);
    model_free(&model);
    arena_free(&arena);
}

static void test_the_cpu_is_asked_for_the_same(void **state) {
    (void)state;
    Backend *cpu = model_test_backend(1);
    for (int kind = 0; kind < MODEL_KIND_COUNT; ++kind)
        for (int variation = 0; variation < 3; ++variation) {
            WorkShape shape = tiny_shape((Recompute)variation);
            shape.arch = model_kind(kind);
            shape.shape.dtype = variation == 1 ? DTYPE_BF16 : DTYPE_F32;
            shape.shape.ranks.muon = variation == 2;
            RunConfig *config = xmalloc(sizeof *config);
            model_test_config(config, (const char *const[]){variation == 2 ? "optimizer=muon" : "optimizer=adamw",
                                                            "model=gpt2:124M", "steps=1", NULL});
            Counting wrapped, alone;
            compute_step(&wrapped, cpu, &shape, config);
            compute_step(&alone, NULL, &shape, config);
            for (int op = 0; op < COUNT_OPS; ++op)
                if (memcmp(&wrapped.counts.op[op], &alone.counts.op[op], sizeof(OpCount)) != 0)
                    fail_msg("%s, variation %d, %s: %g calls on the CPU, %g counted", MODEL_KINDS[kind].name, variation,
                             COUNTED_OP_NAMES[op], wrapped.counts.op[op].calls, alone.counts.op[op].calls);
            assert_memory_equal(&wrapped.largest, &alone.largest, sizeof alone.largest);
            assert_true(alone.counts.op[COUNT_MATMUL].calls > 20 && alone.counts.op[COUNT_ADAMW].calls == 1);
            free(config);
        }
    cpu->close(cpu);
}

// ---- size ----

static void test_large_models_cost_nothing(void **state) {
    (void)state;
    double start = now_seconds();
    WorkShape shape = {.arch = model_test_preset("llama3:70B"), .B = 1, .T = 131072, .optimizer = OPTIMIZER_MUON, .muon_steps = 5};
    shape.shape = (ModelShape){.max_rows = 131072, .max_seq_len = 131072, .loss_chunk_rows = 1024, .training = true,
                               .dtype = DTYPE_BF16, .fp8 = true, .micro_batches = 4, .ranks = {.data.world = 1, .muon = true}};
    StepWork work;
    step_work_count(&work, &shape);
    // The largest pair of 8-bit inputs: those of the gradient of fc_w.
    assert_int_equal(work.counting.largest.fp8_elems, (int64_t)131072 * (57344 + 8192));
    assert_true(work.arena.used_bytes > (size_t)1 << 40);
    step_work_free(&work);
    // Milliseconds; up to a second on a busy machine or with sanitizers.
    assert_true(now_seconds() - start < 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_flops_per_token),
        cmocka_unit_test(test_step_by_hand),
        cmocka_unit_test(test_forward_only),
        cmocka_unit_test(test_the_cpu_is_asked_for_the_same),
        cmocka_unit_test(test_large_models_cost_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
