// test_shared_models.c: real trained models, if ../shared/data exists: a greedy continuation, published activations
// layer by layer, and logits of transformers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "llmc/formats/model_file.h"
#include "llmc/base/json.h"
#include "llmc/eval/sample.h"
#include "llmc/run/open_model.h"
#include "tests/support/model_test.h"

#define MODELS "../shared/data/models/"
#define GREEDY "../shared/data/golden/stories260K/greedy_ids.json"

static void skip_unless(const char *path) {
    if (file_exists(path) || dir_exists(path)) return;
    printf("%s is absent\n", path);
    skip();
}

static cJSON *read_json(const char *path) {
    Error err = {""};
    cJSON *root = json_parse_file(path, (size_t)64 << 20, &err);
    if (root == NULL) fail_msg("%s", err.message);
    return root;
}

static OpenModel *open_inference(const char *path, DType dtype, int64_t rows, int64_t cache) {
    Error err = {""};
    OpenModel *model = xmalloc(sizeof *model);
    OpenModelOptions options = {.path = path, .device = "cpu", .dtype = dtype, .threads = 2, .rows = rows,
                                .seq_len = max_i64(rows, cache), .cache_tokens = cache};
    if (!open_model_load(model, &options, &err)) fail_msg("%s", err.message);
    return model;
}
static void close_inference(OpenModel *model) {
    open_model_close(model);
    free(model);
}

// ---- stories260K ----

typedef struct {
    const cJSON *ids;
    int count;  // emitted so far
} Greedy;
static bool take(void *context, int32_t id) {
    Greedy *greedy = context;
    const cJSON *want = cJSON_GetArrayItem(greedy->ids, ++greedy->count);
    assert_non_null(want);
    assert_int_equal(id, want->valueint);
    return true;
}

static void test_stories_greedy(void **state) {
    (void)state;
    skip_unless(GREEDY);
    cJSON *root = read_json(GREEDY);
    Greedy greedy = {.ids = json_find(root, "ids")};
    int total = cJSON_GetArraySize(greedy.ids);
    assert_true(total > 50);
    static const int64_t ROWS[] = {1, 16};
    for (int k = 0; k < 2; ++k) {
        OpenModel *model = open_inference(MODELS "stories260K_hf", DTYPE_F32, ROWS[k], 256);
        int32_t prompt[17];
        // From BOS only; then from the first 17 ids, read in pieces of `rows`.
        for (int given = 1; given <= 17; given += 16) {
            for (int i = 0; i < given; ++i) prompt[i] = cJSON_GetArrayItem(greedy.ids, i)->valueint;
            greedy.count = given - 1;
            SampleOptions options = {.top_p = 1, .max_tokens = total - given};
            assert_int_equal(sample_continue(&model->model, prompt, given, 2, &options, take, &greedy),
                             total - given);
        }
        close_inference(model);
    }
    cJSON_Delete(root);
}

// ---- gpt_nano_sort: B=3, T=11, L=3, NH=3, C=48, V=3 ----

enum { SORT_B = 3, SORT_T = 11, SORT_NH = 3, SORT_HS = 16, SORT_C = 48, SORT_V = 3, SORT_N = SORT_B * SORT_T };

static int base64_digit(char c) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *at = c == '\0' ? NULL : strchr(DIGITS, c);
    return at == NULL ? -1 : (int)(at - DIGITS);
}

// The little-endian fp32 values of one tensor of a file; caller frees.
static float *published(const cJSON *root, const char *name, int64_t elems) {
    const cJSON *item = json_find(root, name), *data = json_find(item, "data"), *size;
    int64_t product = 1;
    cJSON_ArrayForEach(size, json_find(item, "shape")) product *= size->valueint;
    if (product != elems || !cJSON_IsString(data))
        fail_msg("%s: %lld values, not %lld", name, (long long)product, (long long)elems);
    size_t bytes = to_size(elems) * sizeof(float), used = 0;
    unsigned char *raw = xmalloc(bytes);
    uint32_t bits = 0;
    int held = 0;
    for (const char *p = data->valuestring; base64_digit(*p) >= 0; ++p) {
        bits = bits << 6 | (uint32_t)base64_digit(*p);
        held += 6;
        if (held < 8) continue;
        held -= 8;
        assert_true(used < bytes);
        raw[used++] = (unsigned char)(bits >> held);
    }
    assert_int_equal(used, bytes);
    float *values = xmalloc(bytes);
    memcpy(values, raw, bytes);
    free(raw);
    return values;
}

// Two fp32 results: a few roundings of 2^-24 at each of about fifty operations.
#define SORT_TOLERANCE 5e-6

static void compare_published(const ModelTest *t, Tensor ours, const cJSON *root, const char *name) {
    int64_t elems = tensor_elems(ours);
    float *want = published(root, name, elems), *got = model_test_download(t->be, ours.data, elems);
    model_test_within(model_test_error_f32(got, want, elems), SORT_TOLERANCE, "%s", name);
    free(want);
    free(got);
}

// q, k or v of (B,NH,T,HS) inside qkv (B,T,3C).
static void compare_heads(const float *qkv, int64_t first, const cJSON *root, const char *name) {
    float *want = published(root, name, SORT_N * SORT_C), got[SORT_N * SORT_C];
    for (int b = 0, at = 0; b < SORT_B; ++b)
        for (int h = 0; h < SORT_NH; ++h)
            for (int i = 0; i < SORT_T; ++i)
                for (int c = 0; c < SORT_HS; ++c)
                    got[at++] = qkv[(b * SORT_T + i) * 3 * SORT_C + first + h * SORT_HS + c];
    model_test_within(model_test_error_f32(got, want, SORT_N * SORT_C), SORT_TOLERANCE, "%s", name);
    free(want);
}

// The scores and probabilities of attention are not kept; they are recomputed from the stored log-sum.
static void compare_attention(const ModelTest *t, const float *qkv, const cJSON *root) {
    enum { ROWS = SORT_B * SORT_NH * SORT_T };
    float *scores = published(root, "att", ROWS * SORT_T), *shares = published(root, "attSm", ROWS * SORT_T);
    float *lse = model_test_download(t->be, t->model.acts[0].lse.data, ROWS);
    double want_lse[ROWS], want_shares[ROWS * SORT_T];
    float got_shares[ROWS * SORT_T];
    for (int row = 0; row < ROWS; ++row) {
        int i = row % SORT_T, h = row / SORT_T % SORT_NH, b = row / SORT_T / SORT_NH;
        double sum = 0;
        for (int j = 0; j <= i; ++j) sum += exp((double)scores[row * SORT_T + j]);
        want_lse[row] = log(sum);
        for (int j = 0; j < SORT_T; ++j) {
            const float *q = qkv + (b * SORT_T + i) * 3 * SORT_C + h * SORT_HS;
            const float *k = qkv + (b * SORT_T + j) * 3 * SORT_C + SORT_C + h * SORT_HS;
            double dot = 0;
            for (int c = 0; c < SORT_HS; ++c) dot += (double)q[c] * (double)k[c];
            if (j > i) assert_true(shares[row * SORT_T + j] == 0 && scores[row * SORT_T + j] == -INFINITY);
            want_shares[row * SORT_T + j] = (double)shares[row * SORT_T + j];
            got_shares[row * SORT_T + j] = j > i ? 0 : (float)exp(dot / sqrt(SORT_HS) - (double)lse[row]);
        }
    }
    model_test_within(model_test_error(lse, want_lse, ROWS), SORT_TOLERANCE, "att, its log-sum");
    model_test_within(model_test_error(got_shares, want_shares, ROWS * SORT_T), SORT_TOLERANCE, "attSm");
    free(scores);
    free(shares);
    free(lse);
}

// The sum that a residual branch added: after - before.
static void compare_branch(const ModelTest *t, Tensor after, Tensor before, const cJSON *root, const char *name) {
    float *a = model_test_download(t->be, after.data, SORT_N * SORT_C);
    float *b = model_test_download(t->be, before.data, SORT_N * SORT_C);
    float *want = published(root, name, SORT_N * SORT_C);
    for (int i = 0; i < SORT_N * SORT_C; ++i) a[i] -= b[i];
    model_test_within(model_test_error_f32(a, want, SORT_N * SORT_C), SORT_TOLERANCE, "%s", name);
    free(a);
    free(b);
    free(want);
}

static void compare_logits(const float *logits, const cJSON *root) {
    float *want = published(root, "lm_head", SORT_N * SORT_V), *probs = published(root, "probs", SORT_N * SORT_V);
    model_test_within(model_test_error_f32(logits, want, SORT_N * SORT_V), SORT_TOLERANCE, "lm_head");
    float got[SORT_N * SORT_V];
    for (int row = 0; row < SORT_N; ++row) {
        double sum = 0;
        for (int v = 0; v < SORT_V; ++v) sum += exp((double)logits[row * SORT_V + v]);
        for (int v = 0; v < SORT_V; ++v) got[row * SORT_V + v] = (float)(exp((double)logits[row * SORT_V + v]) / sum);
    }
    model_test_within(model_test_error_f32(got, probs, SORT_N * SORT_V), SORT_TOLERANCE, "probs");
    free(want);
    free(probs);
}

// A parameter of the directory, by role and layer; this model has more parameters.
static bool put_same_role(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    Model *model = context;
    const ParamSpec *ours = params_find(&model->params, spec->role, spec->layer);
    assert_true(ours != NULL && ours->elems == spec->elems);
    model_set_param(model, ours, values);
    return true;
}

// The published activations are from a model whose q, k and v have biases. gpt_nano_sort_hf lacks these three
// vectors (it is read as a model without them); they are in the original file.
static void open_sort_model(ModelTest *t, const char *dir, const char *original) {
    Error err = {""};
    ParamTable table;
    ModelConfig *arch = &t->config.arch;
    if (!model_file_read_config(arch, dir, &err) || !model_config_finish(arch, &err)) fail_msg("%s", err.message);
    ModelConfig stored = *arch;
    params_build(&table, &stored);
    arch->qkv_bias = true;
    // A training layout keeps every activation.
    model_test_open(t, &(ModelShape){.max_rows = SORT_N, .max_seq_len = SORT_T, .training = true}, 2);
    if (!model_file_read(dir, &stored, &table, put_same_role, &t->model, &err)) fail_msg("%s", err.message);
    params_free(&table);
    cJSON *root = read_json(original);
    for (int l = 0; l < (int)arch->L; ++l) {
        char name[64];
        snprintf(name, sizeof name, "transformer.h.%d.attn.c_attn.bias", l);
        float *bias = published(root, name, 3 * SORT_C);
        model_set_param(&t->model, params_find(&t->model.params, PARAM_QKV_B, l), bias);
        free(bias);
    }
    cJSON_Delete(root);
}

static void test_sort_activations(void **state) {
    (void)state;
    const char *path = MODELS "gpt_nano_sort/gpt-nano-sort-t0-partials.json", *dir = MODELS "gpt_nano_sort_hf";
    const char *original = MODELS "gpt_nano_sort/gpt-nano-sort-model.json";
    skip_unless(path);
    skip_unless(original);
    skip_unless(dir);
    cJSON *root = read_json(path);
    ModelTest t = {0};
    open_sort_model(&t, dir, original);

    float *idx = published(root, "idx", SORT_N), weights[SORT_N] = {0}, logits[SORT_N * SORT_V];
    int32_t tokens[SORT_N], targets[SORT_N] = {0};
    for (int i = 0; i < SORT_N; ++i) tokens[i] = (int32_t)idx[i];
    free(idx);
    Batch batch = {.B = SORT_B, .T = SORT_T, .tokens = tokens, .targets = targets, .weights = weights};
    model_logits(&t.model, &batch, logits);

    const Model *m = &t.model;
    const BlockActs *first = &m->acts[0];
    compare_published(&t, m->h[0], root, "x");
    compare_published(&t, first->norm1.out, root, "ln1");
    compare_published(&t, first->qkv, root, "qkv");
    float *qkv = model_test_download(t.be, first->qkv.data, SORT_N * 3 * SORT_C);
    compare_heads(qkv, 0, root, "q");
    compare_heads(qkv, SORT_C, root, "k");
    compare_heads(qkv, 2 * SORT_C, root, "v");
    compare_attention(&t, qkv, root);
    free(qkv);
    compare_published(&t, first->att, root, "y");
    compare_branch(&t, first->mid, m->h[0], root, "yProj");
    compare_published(&t, first->mid, root, "attnResid");
    compare_published(&t, first->norm2.out, root, "ln2");
    compare_published(&t, first->fc_pre, root, "fc");
    compare_published(&t, first->fc, root, "gelu");
    compare_branch(&t, m->h[1], first->mid, root, "mlp");
    compare_published(&t, m->h[1], root, "mlpResid");
    compare_published(&t, m->h[1], root, "block0");
    compare_published(&t, m->h[2], root, "block1");
    compare_published(&t, m->h[3], root, "block2");
    compare_published(&t, m->norm_f.out, root, "ln_f");
    compare_logits(logits, root);
    model_test_close(&t);
    cJSON_Delete(root);
}

// ---- llama2xs ----

// python3, transformers 5.23, torch 2.15, in ../shared/data:
//   m = AutoModelForCausalLM.from_pretrained('models/llama2xs_hf', dtype=torch.float64, attn_implementation='eager')
//   ids = [1] + [(i * i * 7 + 13 * i) % 512 for i in range(1, 64)]
//   l = m(torch.tensor([ids])).logits[0]; for t in (0, 7, 31, 63): l[t].argmax(), l[t, (0, 1, 100, 511)], l[t].norm()
static const struct {
    int row, argmax;
    double logit[4], norm;
} XS[] = {{0, 403, {-0.896522735, 5.17432349, -0.877901789, -0.355689193}, 77.7442125},
          {7, 266, {-10.4411775, -5.98613141, -10.4268092, -7.05421405}, 180.76051},
          {31, 360, {-7.07409322, 1.04498145, -6.98230639, -5.40393231}, 131.569114},
          {63, 391, {-10.1664698, -5.34006821, -10.0867254, -7.90830996}, 184.655184}};
// mean of -log softmax(l[:-1])[ids[1:]]
static const double XS_LOSS = 15.3915301743;
enum { XS_T = 64, XS_V = 512 };

static double nll(const float *logits, int32_t target) {
    double sum = 0;
    for (int v = 0; v < XS_V; ++v) sum += exp((double)logits[v]);
    return log(sum) - (double)logits[target];
}

static void check_llama2xs(DType dtype, double tolerance) {
    static const int IDS[] = {0, 1, 100, 511};
    OpenModel *model = open_inference(MODELS "llama2xs_hf", dtype, XS_T, 0);
    int32_t tokens[XS_T], targets[XS_T] = {0};
    float weights[XS_T] = {0}, *logits = xmalloc(XS_T * XS_V * sizeof *logits);
    tokens[0] = 1;
    for (int i = 1; i < XS_T; ++i) tokens[i] = (i * i * 7 + 13 * i) % XS_V;
    Batch batch = {.B = 1, .T = XS_T, .tokens = tokens, .targets = targets, .weights = weights};
    model_logits(&model->model, &batch, logits);
    for (size_t r = 0; r < sizeof XS / sizeof XS[0]; ++r) {
        const float *row = logits + XS[r].row * XS_V;
        double squares = 0;
        int best = 0;
        for (int v = 0; v < XS_V; ++v) {
            squares += (double)row[v] * (double)row[v];
            if (row[v] > row[best]) best = v;
        }
        // Relative to the row's root mean square, norm / sqrt(512).
        for (int k = 0; k < 4; ++k)
            model_test_within(fabs((double)row[IDS[k]] - XS[r].logit[k]), tolerance * XS[r].norm / sqrt(XS_V),
                              "logit %d of position %d", IDS[k], XS[r].row);
        model_test_within(fabs(sqrt(squares) / XS[r].norm - 1), tolerance, "norm of position %d", XS[r].row);
        if (dtype == DTYPE_F32) assert_int_equal(best, XS[r].argmax);
    }
    double loss = 0;
    for (int i = 0; i + 1 < XS_T; ++i) loss += nll(logits + i * XS_V, tokens[i + 1]) / (XS_T - 1);
    model_test_within(fabs(loss / XS_LOSS - 1), tolerance, "loss");
    free(logits);
    close_inference(model);
}

// fp32: about a hundred roundings of 2^-24, against float64. bf16: weights and activations are rounded to 2^-9 in
// each of five blocks.
static void test_llama2xs(void **state) {
    (void)state;
    skip_unless(MODELS "llama2xs_hf");
    check_llama2xs(DTYPE_F32, 5e-6);
    check_llama2xs(DTYPE_BF16, 6e-2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stories_greedy),
        cmocka_unit_test(test_sort_activations),
        cmocka_unit_test(test_llama2xs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
