// test_sample.c: picking a token from logits, continuing a prompt, and decoding with a cache against whole forward
// passes.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "dev/cases/values.h"
#include "llmc/formats/model_file.h"
#include "llmc/eval/sample.h"
#include "tests/support/model_test.h"

// ---- picking ----

#define MANY 20000

// How often each id comes over positions 0..n-1.
static void count_picks(int64_t *counts, const float *logits, int64_t V, SampleOptions options, int64_t n) {
    SampleCandidate scratch[64];
    assert_true(V <= 64);
    for (int64_t v = 0; v < V; ++v) counts[v] = 0;
    for (int64_t i = 0; i < n; ++i) {
        int32_t id = sample_pick(logits, V, &options, i, scratch);
        assert_true(id >= 0 && id < V);
        ++counts[id];
    }
}

static int32_t pick(const float *logits, int64_t V, SampleOptions options) {
    SampleCandidate scratch[64];
    return sample_pick(logits, V, &options, 0, scratch);
}

static void test_greedy(void **state) {
    (void)state;
    const SampleOptions greedy = {.top_p = 1};
    assert_int_equal(pick((const float[]){1, 3, 3, 2, 3}, 5, greedy), 1);  // ties go to the smallest id
    assert_int_equal(pick((const float[]){-5, -5, -5}, 3, greedy), 0);
    assert_int_equal(pick((const float[]){-9, -8, -1e30f, -INFINITY, -7}, 5, greedy), 4);
    assert_int_equal(pick((const float[]){42}, 1, greedy), 0);
    // Greedy for any other options.
    assert_int_equal(pick((const float[]){1, 3, 3, 2}, 4, (SampleOptions){.top_k = 3, .top_p = 0.5, .seed = 9}), 1);
}

static void test_small_temperature_is_greedy(void **state) {
    (void)state;
    const float logits[] = {0.1f, -3, 2.5f, 2.49f, 1000, 999.5f};
    static const double TEMPERATURES[] = {1e-2, 1e-6, 1e-300};
    int64_t counts[6];
    for (int i = 0; i < 3; ++i) {
        count_picks(counts, logits, 6, (SampleOptions){.temperature = TEMPERATURES[i], .top_p = 1, .seed = 3}, 500);
        assert_int_equal(counts[4], 500);
        count_picks(counts, logits, 4, (SampleOptions){.temperature = TEMPERATURES[i] / 10, .top_p = 0.9, .seed = 3},
                    500);
        assert_int_equal(counts[2], 500);
    }
}

// The ids drawn are exactly these.
static void check_set(const float *logits, int64_t V, SampleOptions options, uint64_t expected) {
    int64_t counts[64];
    options.seed = 5;
    count_picks(counts, logits, V, options, MANY);
    uint64_t seen = 0;
    for (int64_t v = 0; v < V; ++v) seen |= counts[v] > 0 ? (uint64_t)1 << v : 0;
    if (seen != expected)
        fail_msg("top_k=%lld top_p=%g: expected ids %llx, found %llx", (long long)options.top_k, options.top_p,
                 (unsigned long long)expected, (unsigned long long)seen);
}

static void test_top_k(void **state) {
    (void)state;
    const float logits[] = {0.5f, 2, 1, 2, 0, 1.5f, 1};  // in order: 1 3 5 2 6 0 4
    static const uint64_t SETS[] = {0x02, 0x0a, 0x2a, 0x2e, 0x6e, 0x6f, 0x7f};
    for (int k = 1; k <= 7; ++k)
        check_set(logits, 7, (SampleOptions){.temperature = 1, .top_k = k, .top_p = 1}, SETS[k - 1]);
    check_set(logits, 7, (SampleOptions){.temperature = 1, .top_k = 0, .top_p = 1}, 0x7f);
    check_set(logits, 7, (SampleOptions){.temperature = 1, .top_k = 100, .top_p = 1}, 0x7f);
}

static void test_top_p(void **state) {
    (void)state;
    // probabilities 0.15, 0.5, 0.1, 0.25
    const float logits[] = {logf(0.15f), logf(0.5f), logf(0.1f), logf(0.25f)};
    static const struct {
        double top_p;
        uint64_t set;
    } CASES[] = {{1e-9, 0x2}, {0.49, 0x2}, {0.51, 0xa}, {0.74, 0xa}, {0.76, 0xb}, {0.89, 0xb}, {0.91, 0xf}, {1, 0xf}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i)
        check_set(logits, 4, (SampleOptions){.temperature = 1, .top_p = CASES[i].top_p}, CASES[i].set);
    // The temperature is applied first: at 0.5 the probabilities are 0.065, 0.725, 0.029, 0.181.
    check_set(logits, 4, (SampleOptions){.temperature = 0.5, .top_p = 0.72}, 0x2);
    check_set(logits, 4, (SampleOptions){.temperature = 0.5, .top_p = 0.92}, 0xb);
    // top_k is applied before top_p: of 0.5 and 0.25 the first has two thirds.
    check_set(logits, 4, (SampleOptions){.temperature = 1, .top_k = 2, .top_p = 0.66}, 0x2);
    check_set(logits, 4, (SampleOptions){.temperature = 1, .top_k = 2, .top_p = 0.67}, 0xa);
}

static void test_seed_and_position(void **state) {
    (void)state;
    float logits[64];
    for (int i = 0; i < 64; ++i) logits[i] = rng_normal(1, RNG_STREAM_TEST, (uint64_t)i);
    SampleOptions one = {.temperature = 1, .top_p = 1, .seed = 1}, two = one;
    two.seed = 2;
    SampleCandidate scratch[64];
    int equal_seeds = 0, equal_neighbours = 0;
    int32_t last = -1;
    for (int64_t i = 0; i < 1000; ++i) {
        int32_t a = sample_pick(logits, 64, &one, i, scratch);
        // The result depends only on seed, position and logits.
        assert_int_equal(a, sample_pick(logits, 64, &one, i, scratch));
        equal_seeds += a == sample_pick(logits, 64, &two, i, scratch);
        equal_neighbours += a == last;
        last = a;
    }
    // Independent draws agree about 1000 * sum p^2, some 45 times.
    assert_true(equal_seeds < 150 && equal_neighbours < 150);
}

// Pearson's statistic of counts against the softmax of logits / temperature over the ids of a set.
static void check_distribution(const float *logits, int64_t V, SampleOptions options, uint64_t set, double limit) {
    int64_t counts[64];
    count_picks(counts, logits, V, options, MANY);
    double total = 0, statistic = 0;
    for (int64_t v = 0; v < V; ++v)
        if (set >> v & 1) total += exp((double)logits[v] / options.temperature);
    for (int64_t v = 0; v < V; ++v) {
        double expected = set >> v & 1 ? MANY * exp((double)logits[v] / options.temperature) / total : 0;
        if (expected == 0) assert_int_equal(counts[v], 0);
        else statistic += ((double)counts[v] - expected) * ((double)counts[v] - expected) / expected;
    }
    model_test_within(statistic, limit, "chi-square at temperature %g, top_k=%lld", options.temperature,
                      (long long)options.top_k);
}

// 5 degrees of freedom exceed 25.7 once in 10000 trials, 3 exceed 21.1; the seeds are fixed, so the outcome is too.
static void test_distribution(void **state) {
    (void)state;
    const float logits[] = {1, 0.2f, -0.7f, 2, 0, -1.5f};
    for (uint64_t seed = 1; seed <= 3; ++seed) {
        check_distribution(logits, 6, (SampleOptions){.temperature = 1, .top_p = 1, .seed = seed}, 0x3f, 25.7);
        check_distribution(logits, 6, (SampleOptions){.temperature = 0.6, .top_p = 1, .seed = seed}, 0x3f, 25.7);
        check_distribution(logits, 6, (SampleOptions){.temperature = 3, .top_p = 1, .seed = seed}, 0x3f, 25.7);
        check_distribution(logits, 6, (SampleOptions){.temperature = 1, .top_k = 4, .top_p = 1, .seed = seed}, 0x1b,
                           21.1);
        // the probabilities 0.6104, 0.2245, 0.1009 reach 0.9: ids 3, 0, 1; then 4
        check_distribution(logits, 6, (SampleOptions){.temperature = 1, .top_p = 0.9, .seed = seed}, 0x1b, 21.1);
    }
}

// ---- models ----

typedef struct {
    const char *dir;
    int64_t window;
    float softcap;
} Variant;

#define T_MAX 19
static void open_variant(ModelTest *t, Variant variant, DType dtype, int64_t rows, int64_t cache) {
    Error err = {""};
    *t = (ModelTest){0};
    if (!model_file_read_config(&t->config.arch, variant.dir, &err)) fail_msg("%s", err.message);
    t->config.arch.window = variant.window;
    t->config.arch.logit_softcap = variant.softcap;
    if (!model_config_finish(&t->config.arch, &err)) fail_msg("%s", err.message);
    model_test_open(t, &(ModelShape){.max_rows = rows, .max_seq_len = max_i64(rows, cache), .dtype = dtype,
                                     .cache_tokens = cache}, 2);
    model_test_load(t, variant.dir);
}

static void fill_tokens(int32_t *tokens, int64_t count, int64_t V) {
    for (int64_t i = 0; i < count; ++i)
        tokens[i] = (int32_t)(rng_u32(11, RNG_STREAM_TEST, (uint64_t)i) % (uint64_t)V);
}

static const Variant VARIANTS[] = {
    {"tests/golden/gpt2_tiny", 0, 0},  {"tests/golden/llama_tiny", 0, 0}, {"tests/golden/qwen2_tiny", 0, 0},
    {"tests/golden/qwen3_tiny", 0, 0}, {"tests/golden/llama_tiny", 5, 0}, {"tests/golden/gpt2_tiny", 1, 0},
    {"tests/golden/llama_tiny", 0, 3}, {"tests/golden/qwen3_tiny", 7, 2},
};
#define VARIANT_COUNT ((int)(sizeof VARIANTS / sizeof VARIANTS[0]))

// Decoding in pieces of `piece` tokens gives at the end of each piece the logits of a whole forward pass. fp32: the
// same numbers in another order; bf16: the logits and all intermediate values are rounded to 2^-9.
static void check_decode(Variant variant, DType dtype, int64_t piece, double tolerance) {
    ModelTest t;
    open_variant(&t, variant, dtype, T_MAX, T_MAX);
    int64_t V = t.config.arch.V;
    int32_t tokens[T_MAX], targets[T_MAX] = {0};
    float weights[T_MAX] = {0};
    fill_tokens(tokens, T_MAX, V);
    float *whole = xmalloc(to_size(T_MAX * V) * sizeof *whole), *last = xmalloc(to_size(V) * sizeof *last);
    Batch batch = {.B = 1, .T = T_MAX, .tokens = tokens, .targets = targets, .weights = weights};
    // Twice, with a forward pass between: a run alternates evaluation and sampling.
    for (int repeat = 0; repeat < 2; ++repeat) {
        model_logits(&t.model, &batch, whole);
        for (int64_t start = 0; start < T_MAX; start += piece) {
            int64_t n = min_i64(piece, T_MAX - start);
            model_decode(&t.model, tokens + start, n, start, last);
            model_test_within(model_test_error_f32(last, whole + (start + n - 1) * V, V), tolerance,
                              "%s, window %lld, soft-cap %g, pieces of %lld, position %lld", variant.dir,
                              (long long)variant.window, (double)variant.softcap, (long long)piece, (long long)start);
        }
        if (variant.softcap > 0)
            for (int64_t v = 0; v < V; ++v) assert_true(fabsf(last[v]) <= variant.softcap);
    }
    free(whole);
    free(last);
    model_test_close(&t);
}

static void test_decode_equals_forward(void **state) {
    (void)state;
    static const int64_t PIECES[] = {1, 4, T_MAX};
    for (int i = 0; i < VARIANT_COUNT; ++i)
        for (int k = 0; k < 3; ++k) check_decode(VARIANTS[i], DTYPE_F32, PIECES[k], 1e-5);
    for (int i = 0; i < VARIANT_COUNT; ++i) check_decode(VARIANTS[i], DTYPE_BF16, 1, 3e-2);
}

// ---- continuing ----

typedef struct {
    int32_t ids[128];
    int64_t count, stop_at;  // stop_at: emit returns false at this count; 0: never
} Text;
static bool take(void *context, int32_t id) {
    Text *text = context;
    text->ids[text->count++] = id;
    return text->count != text->stop_at;
}

static Text continue_text(ModelTest *t, const int32_t *prompt, int64_t count, int32_t eot, SampleOptions options,
                          int64_t stop_at) {
    Text text = {.stop_at = stop_at};
    int64_t made = sample_continue(&t->model, prompt, count, eot, &options, take, &text);
    assert_int_equal(made, text.count);
    return text;
}
static void check_same(const Text *a, const Text *b) {
    assert_int_equal(a->count, b->count);
    assert_memory_equal(a->ids, b->ids, to_size(a->count) * sizeof a->ids[0]);
}

// The reference: a whole forward pass for every token.
static Text continue_naively(ModelTest *t, const int32_t *prompt, int64_t count, const SampleOptions *options) {
    int64_t V = t->config.arch.V;
    int32_t tokens[128], targets[128] = {0};
    float weights[128] = {0}, *logits = xmalloc(to_size(128 * V) * sizeof *logits);
    SampleCandidate *scratch = xmalloc(to_size(V) * sizeof *scratch);
    memcpy(tokens, prompt, to_size(count) * sizeof *tokens);
    Text text = {0};
    while (text.count < options->max_tokens) {
        Batch batch = {.B = 1, .T = count, .tokens = tokens, .targets = targets, .weights = weights};
        model_logits(&t->model, &batch, logits);
        int32_t id = sample_pick(logits + (count - 1) * V, V, options, count, scratch);
        text.ids[text.count++] = tokens[count++] = id;
    }
    free(logits);
    free(scratch);
    return text;
}

static void test_continue_equals_forward(void **state) {
    (void)state;
    for (int i = 0; i < VARIANT_COUNT; ++i) {
        ModelTest t;
        int32_t prompt[6];
        open_variant(&t, VARIANTS[i], DTYPE_F32, 24, 24);
        fill_tokens(prompt, 6, t.config.arch.V);
        static const SampleOptions OPTIONS[] = {
            {.top_p = 1, .max_tokens = 18},
            {.temperature = 0.8, .top_p = 0.95, .seed = 4, .max_tokens = 18},
            {.temperature = 1.2, .top_k = 10, .top_p = 1, .seed = 5, .max_tokens = 18},
        };
        for (int k = 0; k < 3; ++k) {
            Text expected = continue_naively(&t, prompt, 6, &OPTIONS[k]);
            Text text = continue_text(&t, prompt, 6, -1, OPTIONS[k], 0);
            check_same(&text, &expected);
            text = continue_text(&t, prompt, 6, -1, OPTIONS[k], 0);  // the same seed gives the same text
            check_same(&text, &expected);
        }
        model_test_close(&t);
    }
}

// A prompt longer than the model's rows is read in pieces.
static void test_long_prompt(void **state) {
    (void)state;
    const SampleOptions options = {.temperature = 0.9, .top_p = 1, .seed = 8, .max_tokens = 7};
    for (int i = 0; i < VARIANT_COUNT; ++i) {
        ModelTest whole, pieces;
        int32_t prompt[17];
        open_variant(&whole, VARIANTS[i], DTYPE_F32, 17, 24);
        fill_tokens(prompt, 17, whole.config.arch.V);
        Text expected = continue_text(&whole, prompt, 17, -1, options, 0);
        assert_int_equal(expected.count, 7);
        model_test_close(&whole);
        static const int64_t ROWS[] = {1, 4, 16};
        for (int k = 0; k < 3; ++k) {
            open_variant(&pieces, VARIANTS[i], DTYPE_F32, ROWS[k], 24);
            Text text = continue_text(&pieces, prompt, 17, -1, options, 0);
            check_same(&text, &expected);
            model_test_close(&pieces);
        }
    }
}

static void test_stops(void **state) {
    (void)state;
    ModelTest t;
    int32_t prompt[24];
    open_variant(&t, VARIANTS[1], DTYPE_F32, 24, 24);
    fill_tokens(prompt, 24, t.config.arch.V);
    SampleOptions options = {.temperature = 1, .top_p = 1, .seed = 21, .max_tokens = 12};
    Text whole = continue_text(&t, prompt, 4, -1, options, 0);
    assert_int_equal(whole.count, 12);

    // End of text is not part of the text.
    int32_t eot = whole.ids[5];
    int64_t first = 0;
    while (whole.ids[first] != eot) ++first;
    assert_true(first > 0);
    Text text = continue_text(&t, prompt, 4, eot, options, 0);
    assert_int_equal(text.count, first);
    assert_memory_equal(text.ids, whole.ids, to_size(first) * sizeof text.ids[0]);
    text = continue_text(&t, prompt, 4, whole.ids[0], options, 0);
    assert_int_equal(text.count, 0);

    text = continue_text(&t, prompt, 4, -1, options, 3);  // emit returns false
    assert_int_equal(text.count, 3);
    options.max_tokens = 0;
    text = continue_text(&t, prompt, 4, -1, options, 0);
    assert_int_equal(text.count, 0);

    // A full cache holds the prompt and all new tokens but the last.
    options.max_tokens = 100;
    text = continue_text(&t, prompt, 4, -1, options, 0);
    assert_int_equal(text.count, 24 - 4 + 1);
    assert_memory_equal(text.ids, whole.ids, to_size(whole.count) * sizeof whole.ids[0]);
    text = continue_text(&t, prompt, 24, -1, options, 0);
    assert_int_equal(text.count, 1);
    model_test_close(&t);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_small_temperature_is_greedy),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_seed_and_position),
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_decode_equals_forward),
        cmocka_unit_test(test_continue_equals_forward),
        cmocka_unit_test(test_long_prompt),
        cmocka_unit_test(test_stops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
