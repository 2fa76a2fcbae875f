// test_eval.c: held-out loss, perplexity and bits per byte against sums in double over model_logits; they must not
// depend on the rows of a batch or on the number of ranks.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/eval/eval.h"
#include "llmc/base/rng.h"
#include "tests/support/file_test.h"
#include "tests/support/model_test.h"
#include "tests/support/shard_test.h"

#define EOT 256
#define VOCAB 257
#define TOKENS 203  // not a multiple of any row length here

static const char *const LLAMA[] = {"model=llama:d1", "layers=2", "channels=32", "heads=2", "ffn=40", "vocab=257",
                                    "max_seq_len=32", "init_std=0.3", NULL};
static const char *const LLAMA_BLIND[] = {"model=llama:d1", "layers=2",       "channels=32",  "heads=2",  "ffn=40",
                                          "vocab=257",      "max_seq_len=32", "init_std=0.3", "window=1", NULL};
static const char *const GPT2[] = {"model=gpt2:d1", "channels=32", "heads=2", "vocab=257", "max_seq_len=32",
                                   "init_std=0.3", "logit_softcap=4", NULL};

// Bytes with some end-of-text tokens, also at the start.
static void fill_text(int32_t text[TOKENS]) {
    for (int i = 0; i < TOKENS; ++i)
        text[i] = i % 37 == 0 ? EOT : (int32_t)(rng_u32(2, RNG_STREAM_TEST, (uint64_t)i) % 256);
}

static HeldOut *open_text(FileTest *t, int64_t B, int64_t T, int64_t max_tokens, bool doc_mask) {
    int32_t text[TOKENS];
    fill_text(text);
    SourceConfig source = {.name = "main", .doc_mask = doc_mask};
    snprintf(source.val, sizeof source.val, "%s/val.bin", t->dir);
    if (!file_exists(source.val)) shard_test_write(source.val, 2, text, TOKENS, VOCAB, EOT);
    HeldOut *heldout;
    file_test_expect_ok(t, heldout_open(&heldout, &source, B, T, max_tokens, VOCAB, EOT, &t->err));
    return heldout;
}

static void open_model(ModelTest *m, const char *const *arch, DType dtype, int64_t rows, int64_t chunk) {
    *m = (ModelTest){0};
    model_test_config(&m->config, arch);
    model_test_open(m, &(ModelShape){.max_rows = rows, .max_seq_len = 32, .dtype = dtype, .loss_chunk_rows = chunk},
                    2);
}

static EvalResult evaluate(FileTest *t, ModelTest *m, int64_t B, int64_t T, int64_t max_tokens, bool doc_mask,
                           const Tokenizer *tokenizer) {
    HeldOut *heldout = open_text(t, B, T, max_tokens, doc_mask);
    EvalResult result;
    file_test_expect_ok(t, eval_heldout(&result, &m->model, heldout, tokenizer, NULL, MESH_ALONE, &t->err));
    heldout_close(heldout);
    return result;
}

// Row by row, with T tokens of context, in double.
static EvalResult evaluate_by_hand(ModelTest *m, int64_t T, int64_t predictions, bool doc_mask) {
    int32_t text[TOKENS], doc[32];
    float weights[32] = {0}, *logits = xmalloc(to_size(T * VOCAB) * sizeof *logits);
    fill_text(text);
    EvalResult result = {0};
    for (int64_t first = 0; first < predictions; first += T) {
        int64_t n = min_i64(T, predictions - first);
        for (int64_t i = 0; i < n; ++i) doc[i] = i == 0 ? 0 : doc[i - 1] + (text[first + i] == EOT);
        Batch batch = {.B = 1, .T = n, .tokens = text + first, .targets = text + first + 1, .weights = weights,
                       .doc = doc_mask ? doc : NULL};
        model_logits(&m->model, &batch, logits);
        for (int64_t i = 0; i < n; ++i) {
            const float *row = logits + i * VOCAB;
            int32_t target = text[first + i + 1];
            double sum = 0, top = (double)row[0];
            for (int v = 1; v < VOCAB; ++v) top = fmax(top, (double)row[v]);
            for (int v = 0; v < VOCAB; ++v) sum += exp((double)row[v] - top);
            result.loss += log(sum) + top - (double)row[target];
            result.text_bytes += target != EOT;
            ++result.tokens;
        }
    }
    free(logits);
    result.bits_per_byte = result.loss / log(2) / (double)result.text_bytes;
    result.loss /= (double)result.tokens;
    result.perplexity = exp(result.loss);
    return result;
}

// fp32 losses are each rounded to 2^-24 of about 6; the logits are the same numbers up to the order of additions.
static void check_result(const EvalResult *got, const EvalResult *want, double tolerance, const char *what) {
    assert_int_equal(got->tokens, want->tokens);
    assert_int_equal(got->text_bytes, want->text_bytes);
    model_test_within(fabs(got->loss / want->loss - 1), tolerance, "%s: loss", what);
    model_test_within(fabs(got->bits_per_byte / want->bits_per_byte - 1), tolerance, "%s: bits per byte", what);
    model_test_within(fabs(got->perplexity / want->perplexity - 1), 20 * tolerance, "%s: perplexity", what);
    assert_true(want->loss > 1);
}

static void test_against_hand(void **state) {
    FileTest *t = *state;
    Tokenizer *bytes = tokenizer_load("bytes", &t->err);
    assert_non_null(bytes);
    const char *const *const ARCHS[] = {LLAMA, GPT2};
    for (int a = 0; a < 2; ++a) {
        ModelTest m;
        open_model(&m, ARCHS[a], DTYPE_F32, 64, 0);
        EvalResult want = evaluate_by_hand(&m, 16, TOKENS - 1, false);
        EvalResult got = evaluate(t, &m, 3, 16, 0, false, bytes);
        assert_int_equal(got.tokens, TOKENS - 1);
        check_result(&got, &want, 1e-6, "all of the text");

        want = evaluate_by_hand(&m, 16, 50, false);
        got = evaluate(t, &m, 2, 16, 50, false, bytes);
        assert_int_equal(got.tokens, 50);
        check_result(&got, &want, 1e-6, "50 tokens of it");

        EvalResult masked = evaluate_by_hand(&m, 16, TOKENS - 1, true);
        got = evaluate(t, &m, 3, 16, 0, true, bytes);
        check_result(&got, &masked, 1e-6, "documents apart");
        assert_true(fabs(masked.loss - want.loss) > 1e-3);
        model_test_close(&m);
    }
    tokenizer_free(bytes);
}

// The batch shape does not change the result: rows are independent, and the sum is in double and in order.
static void test_independent_of_rows(void **state) {
    FileTest *t = *state;
    Tokenizer *bytes = tokenizer_load("bytes", &t->err);
    static const int64_t ROWS[] = {1, 2, 3, 5, 8, 20};
    // bf16: the logits of a row do not depend on other rows, so only the kernels' blocking may differ.
    static const double TOLERANCE[] = {1e-6, 1e-4};
    for (int dtype = DTYPE_F32; dtype <= DTYPE_BF16; ++dtype) {
        EvalResult first = {0};
        for (int k = 0; k < 6; ++k) {
            ModelTest m;
            open_model(&m, LLAMA, (DType)dtype, ROWS[k] * 16, k % 2 == 0 ? 0 : 7);
            EvalResult result = evaluate(t, &m, ROWS[k], 16, 0, false, bytes);
            if (k == 0) first = result;
            else check_result(&result, &first, TOLERANCE[dtype], "another number of rows");
            model_test_close(&m);
        }
    }
    tokenizer_free(bytes);
}

// The row length matters only through the context of each token.
static void test_row_length_is_context(void **state) {
    FileTest *t = *state;
    Tokenizer *bytes = tokenizer_load("bytes", &t->err);
    ModelTest m;
    open_model(&m, LLAMA_BLIND, DTYPE_F32, 64, 0);
    EvalResult whole = evaluate(t, &m, 2, 32, 0, false, bytes);
    static const int64_t LENGTHS[] = {1, 5, 16, 31};
    for (int k = 0; k < 4; ++k) {
        EvalResult result = evaluate(t, &m, 2, LENGTHS[k], 0, false, bytes);
        check_result(&result, &whole, 1e-6, "a model that sees only the present token");
    }
    model_test_close(&m);
    open_model(&m, LLAMA, DTYPE_F32, 64, 0);
    EvalResult longer = evaluate(t, &m, 2, 32, 0, false, bytes), shorter = evaluate(t, &m, 2, 8, 0, false, bytes);
    assert_true(fabs(longer.loss - shorter.loss) > 1e-3);
    model_test_close(&m);
    tokenizer_free(bytes);
}

static void test_no_tokenizer(void **state) {
    FileTest *t = *state;
    Tokenizer *bytes = tokenizer_load("bytes", &t->err);
    ModelTest m;
    open_model(&m, LLAMA, DTYPE_F32, 64, 0);
    EvalResult with = evaluate(t, &m, 2, 16, 0, false, bytes), without = evaluate(t, &m, 2, 16, 0, false, NULL);
    assert_true(without.loss == with.loss && without.tokens == with.tokens && without.perplexity == with.perplexity);
    assert_int_equal(without.text_bytes, 0);
    assert_true(without.bits_per_byte == -1);
    model_test_close(&m);
    tokenizer_free(bytes);
}

// Evaluation between two steps does not change the gradients of the next step.
static void test_training_goes_on(void **state) {
    FileTest *t = *state;
    ModelTest m = {0};
    int32_t text[TOKENS];
    float weights[32];
    fill_text(text);
    for (int i = 0; i < 32; ++i) weights[i] = 1;
    model_test_config(&m.config, GPT2);
    model_test_open(
        &m, &(ModelShape){.max_rows = 64, .max_seq_len = 32, .training = true, .recompute = RECOMPUTE_BLOCK}, 2);
    Batch batch = {.B = 2, .T = 16, .tokens = text, .targets = text + 1, .weights = weights};
    int64_t elems = m.model.params.total_elems;
    float *first = NULL;
    for (int repeat = 0; repeat < 2; ++repeat) {
        model_begin_step(&m.model);
        model_forward(&m.model, &batch, 1.0 / 32, true);
        model_backward(&m.model);
        float *grads = model_test_download(m.be, m.model.grads, elems);
        if (repeat == 1) assert_memory_equal(grads, first, to_size(elems) * sizeof *grads);
        if (repeat == 1) free(grads);
        else first = grads;
        evaluate(t, &m, 3, 20, 0, true, NULL);
    }
    free(first);
    model_test_close(&m);
}

static void test_lost_shard(void **state) {
    FileTest *t = *state;
    ModelTest m;
    open_model(&m, LLAMA, DTYPE_F32, 64, 0);
    HeldOut *heldout = open_text(t, 2, 16, 0, false);
    char *path = file_test_path(t, "val.bin");
    assert_int_equal(truncate(path, 1024 + 2 * 100), 0);
    EvalResult result;
    file_test_expect_error(t, eval_heldout(&result, &m.model, heldout, NULL, NULL, MESH_ALONE, &t->err), "val.bin");
    free(path);
    heldout_close(heldout);
    model_test_close(&m);
}

// ---- several ranks, run in turn ----

// Replaces the ranks' all-reduce: first it collects the values of every rank, then it returns the sums.
struct Control {
    enum { COLLECTING, ANSWERING, ENDING } state;
    int sums;
    double sum[TOKENS + 2];
};
bool control_reduce(Control *control, const char *what, double *sum, int sums, double *max, int maxes) {
    assert_true(what[0] != '\0' && strlen(what) < 48 && max == NULL && maxes == 0 && sums <= TOKENS + 2);
    for (int i = 0; i < sums && control->state == COLLECTING; ++i) control->sum[i] += sum[i];
    if (control->state == ANSWERING) memcpy(sum, control->sum, to_size(sums) * sizeof *sum);
    if (control->sums != 0) assert_int_equal(control->sums, sums);
    control->sums = sums;
    return control->state != ENDING;
}

static int64_t downloads;  // one for each forward pass
static void (*true_download)(Backend *be, void *host, const void *device, size_t bytes);
static void count_download(Backend *be, void *host, const void *device, size_t bytes) {
    ++downloads;
    true_download(be, host, device, bytes);
}

static void check_world(FileTest *t, ModelTest *m, int64_t B, int world, const Tokenizer *tokenizer) {
    EvalResult one = evaluate(t, m, B, 16, 0, true, tokenizer);
    HeldOut *heldout = open_text(t, B, 16, 0, true);
    Control control = {.state = COLLECTING};
    true_download = m->be->download;
    m->be->download = count_download;
    for (int pass = 0; pass < 2; ++pass) {
        for (int rank = 0; rank < world; ++rank) {
            EvalResult result;
            downloads = 0;
            file_test_expect_ok(t, eval_heldout(&result, &m->model, heldout, tokenizer, &control, (MeshAxis){rank, world},
                                                &t->err));
            assert_int_equal(downloads, div_up(heldout_batches(heldout), world));
            if (pass == 1) assert_memory_equal(&result, &one, sizeof one);
            else if (world > 1 && B < 13) assert_true(result.tokens < one.tokens);
        }
        control.state = ANSWERING;
    }
    m->be->download = true_download;
    heldout_close(heldout);
}

static void test_ranks_share_the_text(void **state) {
    FileTest *t = *state;
    Tokenizer *bytes = tokenizer_load("bytes", &t->err);
    ModelTest m;
    open_model(&m, LLAMA, DTYPE_F32, 13 * 16, 0);
    // 13 rows: 13 batches of 1, 7 of 2, 3 of 5, 1 of 13.
    const int64_t ROWS[] = {1, 2, 5, 13};
    for (int k = 0; k < 4; ++k)
        for (int world = 1; world <= 5; ++world) check_world(t, &m, ROWS[k], world, bytes);
    check_world(t, &m, 2, 3, NULL);
    HeldOut *heldout = open_text(t, 2, 16, 0, false);
    EvalResult result;
    Control control = {.state = ENDING};
    file_test_expect_error(t, eval_heldout(&result, &m.model, heldout, bytes, &control, (MeshAxis){1, 2}, &t->err), "ending");
    heldout_close(heldout);
    model_test_close(&m);
    tokenizer_free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_against_hand), FILE_TEST(test_independent_of_rows), FILE_TEST(test_row_length_is_context),
        FILE_TEST(test_no_tokenizer), FILE_TEST(test_training_goes_on),    FILE_TEST(test_lost_shard),
        FILE_TEST(test_ranks_share_the_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
