// test_row_format.c: a format needs only its row in the table. Two formats defined here are used through the loader
// (several ranks, phases with another T, seek, skips, epochs, plan), the held-out reader, the data hash and the model,
// whose loss must be PyTorch's.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "llmc/formats/model_file.h"
#include "llmc/formats/safetensors.h"
#include "llmc/loader/heldout.h"
#include "llmc/loader/loader.h"
#include "llmc/loader/mixture.h"
#include "llmc/loader/row_format.h"
#include "llmc/train/hash_chain.h"
#include "tests/support/file_test.h"
#include "tests/support/model_test.h"
#include "tests/support/shard_test.h"

// ---- two formats and the table ----

// "half": row k reads the 2T tokens from 2kT on as pairs (token, target). The first half of the row is a prefix of
// weight 0; the other weights are drawn from 1/4 to 1 with the seed.
static int64_t half_rows(const RowSource *source, int64_t T) {
    int64_t pairs = source->token_count / 2;
    return source->heldout ? div_up(pairs, T) : pairs / T;
}
static int64_t half_longest_read(int64_t T) { return 2 * T; }
static float half_weight(uint64_t seed, int64_t index, int64_t i) {
    return (float)(1 + rng_u32(seed, (uint64_t)index, (uint64_t)i) % 4) / 4;
}
static bool half_fill(const BatchRow *row, double *weight_sum, const RowSource *source, int64_t index, uint64_t seed,
                      Error *err) {
    int64_t T = row->T, count = min_i64(T, source->token_count / 2 - index * T);
    batch_row_fill(row, NULL, 0, -1);
    const int32_t *text = row_source_read(source, 2 * index * T, 2 * count, err);
    if (text == NULL) return false;
    *weight_sum = 0;
    for (int64_t i = 0; i < count; ++i) {
        row->tokens[i] = text[2 * i];
        row->targets[i] = text[2 * i + 1];
        row->prefix[i] = i < T / 2;
        row->weights[i] = i < T / 2 ? 0 : half_weight(seed, index, i);
        *weight_sum += (double)row->weights[i];
    }
    return true;
}
static const RowFormat HALF = {"half", true, half_rows, half_longest_read, half_fill};

// "spelled": the source holds the arrays of a row: T tokens, T targets, T weights (the bits of a float), T segments, T
// prefixes.
static int64_t spelled_rows(const RowSource *source, int64_t T) { return source->token_count / (5 * T); }
static int64_t spelled_longest_read(int64_t T) { return 5 * T; }
static bool spelled_fill(const BatchRow *row, double *weight_sum, const RowSource *source, int64_t index,
                         uint64_t seed, Error *err) {
    (void)seed;
    int64_t T = row->T;
    size_t bytes = to_size(T) * sizeof(int32_t);
    const int32_t *text = row_source_read(source, index * 5 * T, 5 * T, err);
    if (text == NULL) return false;
    memcpy(row->tokens, text, bytes);
    memcpy(row->targets, text + T, bytes);
    memcpy(row->weights, text + 2 * T, bytes);
    memcpy(row->doc, text + 3 * T, bytes);
    *weight_sum = 0;
    for (int64_t i = 0; i < T; ++i) {
        row->prefix[i] = (uint8_t)text[4 * T + i];
        *weight_sum += (double)row->weights[i];
    }
    return true;
}
static const RowFormat SPELLED = {"spelled", true, spelled_rows, spelled_longest_read, spelled_fill};

// Replaces the library's table (row_formats.c).
extern const RowFormat ROW_FORMAT_PLAIN;  // format_plain.c
const RowFormat *const ROW_FORMATS[] = {&ROW_FORMAT_PLAIN, &HALF, &SPELLED, NULL};

// ---- sources and configs ----

// Tokens 0, 1, ... of source a, 100000, 100001, ... of source b: a token gives its position.
static int32_t token_at(int source, int64_t place) { return (int32_t)(source * 100000 + place); }
static void write_source(const FileTest *t, int source, const char *what, int64_t count) {
    int32_t *tokens = xmalloc(to_size(count) * sizeof *tokens);
    for (int64_t i = 0; i < count; ++i) tokens[i] = token_at(source, i);
    char name[32];
    snprintf(name, sizeof name, "%c_%s.bin", 'a' + source, what);
    char *path = file_test_path(t, name);
    shard_test_write(path, 2, tokens, count, 200000, -1);
    free(path);
    free(tokens);
}

enum { STEPS_A_PHASE = 12 };
// Source a is plain, b is "half". Phase 0: both, T 8, 4 lanes of 2 rows; phase 1: a alone; phase 2: both, T 16.
static RunConfig *config_new(const FileTest *t) {
    RunConfig *config = xcalloc(1, sizeof *config);
    config->seed = 5;
    config->source_count = 2;
    config->phase_count = 3;
    for (int s = 0; s < 2; ++s) {
        SourceConfig *source = &config->source[s];
        source->name[0] = (char)('a' + s);
        snprintf(source->train, sizeof source->train, "%s/%c_train.bin", t->dir, 'a' + s);
        snprintf(source->val, sizeof source->val, "%s/%c_val.bin", t->dir, 'a' + s);
    }
    snprintf(config->source[1].format, sizeof config->source[1].format, "half");
    for (int p = 0; p < 3; ++p)
        config->phase[p] = (PhaseConfig){.name = {(char)('p' + p)},
                                         .tokens = STEPS_A_PHASE * 64,
                                         .seq_len = p == 2 ? 16 : 8,
                                         .batch_tokens = 64,
                                         .batch_rows = p == 2 ? 1 : 2,
                                         .weight = {1, p == 1 ? 0 : 2}};
    return config;
}
static Loader *open_ok(const RunConfig *config, int rank, int world) {
    Schedule schedule;
    Error err = {""};
    Loader *loader = NULL;
    if (!schedule_build(&schedule, config, world, &err) ||
        !loader_open(&loader, config, &schedule, 0, -1, (MeshAxis){rank, world}, &err))
        fail_msg("%s", err.message);
    return loader;
}
static const StepBatch *next_ok(Loader *loader) {
    Error err = {""};
    const StepBatch *step = loader_next(loader, &err);
    if (step == NULL) fail_msg("%s", err.message);
    return step;
}

// ---- the expected rows, from the contract ----

// One step of all ranks in row order; at most 8 rows of 8 or 4 rows of 16.
typedef struct {
    int32_t tokens[64], targets[64];
    float weights[64];
    uint8_t prefix[64];  // 255: the batches have none
    int64_t row_index[8];
} Rows;

static void expect_row(Rows *out, int64_t row, int64_t T, MixturePick pick, uint64_t seed, int64_t tokens,
                       bool carried) {
    int64_t rows = pick.source == 0 ? (tokens - 1) / T : tokens / (2 * T), epoch;
    int64_t index = mixture_row(&epoch, seed, pick.source, pick.ordinal, rows);
    out->row_index[row] = index;
    for (int64_t i = 0; i < T; ++i) {
        int64_t at = row * T + i, stride = pick.source + 1, place = stride * (index * T + i);
        bool first_half = pick.source == 1 && i < T / 2;
        out->tokens[at] = token_at(pick.source, place);
        out->targets[at] = token_at(pick.source, place + 1);
        out->prefix[at] = (uint8_t)(carried ? first_half : 255);
        out->weights[at] = pick.source == 0 ? 1
                           : first_half ? 0
                                        : half_weight(mixture_row_seed(seed, 1, epoch), index, i);
    }
}

// All steps, computed from the mixture alone. a and b have this many tokens.
static void expect_all(Rows *out, const RunConfig *config, int64_t a_tokens, int64_t b_tokens) {
    int64_t given[2] = {0};
    memset(out, 0, 3 * STEPS_A_PHASE * sizeof *out);
    for (int p = 0; p < 3; ++p) {
        int64_t T = config->phase[p].seq_len, rows = 64 / T, first[2] = {given[0] / T, given[1] / T};
        Mixture mixture;
        mixture_init(&mixture, 2, config->phase[p].weight, first);
        for (int64_t n = 0; n < STEPS_A_PHASE * rows; ++n) {
            MixturePick pick = mixture_pick(&mixture, n);
            expect_row(&out[p * STEPS_A_PHASE + n / rows], n % rows, T, pick, (uint64_t)config->seed,
                       pick.source == 0 ? a_tokens : b_tokens, p != 1);
            given[pick.source] += T;
        }
    }
}

static double place_batch(Rows *out, const Batch *batch, int64_t lane) {
    int64_t elems = batch->B * batch->T, at = lane * elems;
    double sum = 0;
    for (int64_t i = 0; i < elems; ++i) {
        out->tokens[at + i] = batch->tokens[i];
        out->targets[at + i] = batch->targets[i];
        out->weights[at + i] = batch->weights[i];
        out->prefix[at + i] = batch->prefix != NULL ? batch->prefix[i] : 255;
        sum += (double)batch->weights[i];
    }
    for (int64_t b = 0; b < batch->B; ++b) out->row_index[lane * batch->B + b] = batch->row_index[b];
    return sum;
}
static void check_padding(const Batch *batch) {
    for (int64_t i = 0; i < batch->B * batch->T; ++i) {
        assert_true(batch->tokens[i] == 0 && batch->targets[i] == 0 && batch->weights[i] == 0);
        assert_true(batch->prefix == NULL || batch->prefix[i] == 0);
    }
}
// Copies the rows of rank `rank` to their places in out.
static void place_step(Rows *out, const StepBatch *step, int rank, int world) {
    double sum = 0;
    for (int64_t m = 0; m < step->micro_batches; ++m) {
        int64_t lane = m * world + rank;
        if (lane >= 4) {
            check_padding(&step->batch[m]);
            assert_true(step->micro_batch_weight[m] == 0);
            continue;
        }
        double weight = place_batch(out, &step->batch[m], lane);
        assert_true(step->micro_batch_weight[m] == weight);
        sum += weight;
    }
    assert_true(step->weight_sum == sum);
}

enum { A_TOKENS = 401, B_TOKENS = 700, STEPS = 3 * STEPS_A_PHASE };
static RunConfig *expected_run(const FileTest *t, Rows *want) {
    write_source(t, 0, "train", A_TOKENS);
    write_source(t, 1, "train", B_TOKENS);
    RunConfig *config = config_new(t);
    expect_all(want, config, A_TOKENS, B_TOKENS);
    return config;
}

static void test_any_number_of_ranks(void **state) {
    static Rows want[STEPS], got[STEPS];
    RunConfig *config = expected_run(*state, want);
    for (int world = 1; world <= 5; ++world) {
        memset(got, 0, sizeof got);
        for (int rank = 0; rank < world; ++rank) {
            Loader *loader = open_ok(config, rank, world);
            for (int s = 0; s < STEPS; ++s) place_step(&got[s], next_ok(loader), rank, world);
            loader_close(loader);
        }
        assert_memory_equal(got, want, sizeof want);
    }
    free(config);
}

static void test_seek_and_resume(void **state) {
    static Rows want[STEPS];
    RunConfig *config = expected_run(*state, want);
    const int jumps[] = {30, 5, 11, 12, 23, 24, 0, 35, 13};
    Loader *loader = open_ok(config, 0, 1);
    for (size_t j = 0; j < sizeof jumps / sizeof jumps[0]; ++j) {
        if (j % 3 == 2) {  // as after a restart
            loader_close(loader);
            loader = open_ok(config, 0, 1);
        }
        loader_seek(loader, jumps[j]);
        for (int s = jumps[j]; s < min_i64(jumps[j] + 2, STEPS); ++s) {
            Rows got = {0};
            place_step(&got, next_ok(loader), 0, 1);
            assert_memory_equal(&got, &want[s], sizeof got);
        }
    }
    const DataSkip skip = {.at_step = 3, .steps = 4};
    loader_set_skips(loader, &skip, 1);
    loader_seek(loader, 2);
    for (int s = 2; s < 8; ++s) {
        Rows got = {0};
        place_step(&got, next_ok(loader), 0, 1);
        assert_memory_equal(&got, &want[s < 3 ? s : s + 4], sizeof got);
    }
    loader_close(loader);
    free(config);
}

// Each epoch of a row draws other values; so does another seed.
static void test_draws_follow_seed_and_epoch(void **state) {
    (void)state;
    assert_true(mixture_row_seed(7, 0, 0) != mixture_row_seed(7, 0, 1));
    assert_true(mixture_row_seed(7, 0, 0) != mixture_row_seed(7, 1, 0));
    assert_true(mixture_row_seed(7, 0, 0) != mixture_row_seed(8, 0, 0));
    FileTest *t = *state;
    write_source(t, 0, "train", 401);
    write_source(t, 1, "train", 8 * 2 * 8);  // 8 rows: one step per epoch
    RunConfig *config = config_new(t);
    config->phase[0].weight[0] = config->phase[2].weight[0] = 0;
    config->phase_count = 1;
    Loader *loader = open_ok(config, 0, 1);
    float weights[2][64];  // by row and position
    for (int epoch = 0; epoch < 2; ++epoch) {
        const StepBatch *step = next_ok(loader);
        for (int row = 0; row < 8; ++row) {
            const Batch *batch = &step->batch[row / 2];
            memcpy(weights[epoch] + batch->row_index[row % 2] * 8, batch->weights + row % 2 * 8, 8 * sizeof(float));
        }
    }
    int differ = 0;
    for (int i = 0; i < 64; ++i) differ += weights[0][i] != weights[1][i];
    assert_true(differ > 12 && differ <= 32);  // half have weight 0; one in four of the others is equal by chance
    loader_close(loader);
    free(config);
}

static void test_refusals(void **state) {
    FileTest *t = *state;
    write_source(t, 0, "train", 401);
    write_source(t, 1, "train", 31);
    RunConfig *config = config_new(t);
    Schedule schedule;
    Loader *loader;
    file_test_expect_ok(t, schedule_build(&schedule, config, 1, &t->err));
    file_test_expect_error(t, loader_open(&loader, config, &schedule, 0, -1, MESH_ALONE, &t->err),
                           "source b: expected at least seq_len + 16 = 32 tokens");
    snprintf(config->source[1].format, sizeof config->source[1].format, "quarter");
    file_test_expect_error(t, loader_open(&loader, config, &schedule, 0, -1, MESH_ALONE, &t->err),
                           "source b: format: expected one of: plain half spelled; found 'quarter'");
    HeldOut *heldout;
    file_test_expect_error(t, heldout_open(&heldout, &config->source[1], 2, 8, 0, 0, -1, &t->err),
                           "source b: format: expected one of: plain half spelled; found 'quarter'");
    assert_true(row_format_find("", NULL) == &ROW_FORMAT_PLAIN && row_format_find("plain", NULL) == &ROW_FORMAT_PLAIN);
    assert_true(row_format_find("half", NULL) == &HALF && row_format_find("hal", NULL) == NULL);
    free(config);
}

// One byte per token for prefixes, if a source with a weight makes them.
static void test_plan_bytes(void **state) {
    RunConfig *config = config_new(*state);
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    size_t with = loader_plan_bytes(&schedule);
    config->phase[0].weight[1] = config->phase[2].weight[1] = 0;
    size_t without = loader_plan_bytes(&schedule);
    assert_int_equal(with - without, 2 * 64);
    config->source[1].format[0] = '\0';
    config->phase[0].weight[1] = 1;
    assert_int_equal(loader_plan_bytes(&schedule), without);
    free(config);
}

// ---- held-out text ----

static void test_heldout(void **state) {
    FileTest *t = *state;
    write_source(t, 1, "val", 2 * 21 + 1);  // 21 pairs and one more token: rows of 8, 8 and 5
    RunConfig *config = config_new(t);
    HeldOut *heldout;
    file_test_expect_ok(t, heldout_open(&heldout, &config->source[1], 2, 8, 0, 0, -1, &t->err));
    assert_int_equal(heldout_batches(heldout), 2);
    for (int64_t k = 1; k >= 0; --k) {
        const Batch *batch = heldout_batch(heldout, k, &t->err);
        assert_true(batch != NULL && batch->prefix != NULL && batch->doc == NULL);
        for (int64_t at = 0; at < 16; ++at) {
            int64_t pair = k * 16 + at, i = at % 8;
            bool real = pair < 21;
            assert_int_equal(batch->tokens[at], real ? token_at(1, 2 * pair) : 0);
            assert_int_equal(batch->targets[at], real ? token_at(1, 2 * pair + 1) : 0);
            assert_int_equal(batch->prefix[at], real && i < 4);
            assert_true(batch->weights[at] == (real && i >= 4 ? half_weight(0, pair / 8, i) : 0));
        }
        assert_true(batch->row_index[0] == 2 * k && batch->row_index[1] == (k == 0 ? 1 : -1));
    }
    heldout_close(heldout);
    free(config);
}

// ---- users of batches ----

static uint64_t hash_of(const Batch *batch) {
    HashChain chain = {.options = {.every = 1}};
    hash_chain_add_batch(&chain, 3, batch);
    return chain.data;
}
// The data hash covers every array, and its value for plain rows has not changed.
static void test_hash_of_data(void **state) {
    (void)state;
    int32_t tokens[4] = {1, 2, 3, 4}, targets[4] = {2, 3, 4, 5}, doc[4] = {0, 0, 1, 1}, source = 2;
    float weights[4] = {1, 1, 1, 1};
    uint8_t prefix[4] = {1, 0, 0, 0};
    int64_t row_index = 9;
    Batch batch = {.B = 1, .T = 4, .tokens = tokens, .targets = targets, .weights = weights, .source = &source,
                   .row_index = &row_index};
    uint64_t plain = hash_of(&batch);
    assert_true(plain == 0xf5aae9b885156598);
    batch.doc = doc;
    uint64_t documents = hash_of(&batch);
    assert_true(documents == 0x37542998a33c3580);
    batch.prefix = prefix;
    uint64_t all = hash_of(&batch), others[4];
    prefix[3] = 1;
    others[0] = hash_of(&batch);
    prefix[3] = 0;
    weights[0] = 0;
    others[1] = hash_of(&batch);
    weights[0] = 1;
    doc[3] = 2;
    others[2] = hash_of(&batch);
    doc[3] = 1;
    others[3] = documents;
    for (int i = 0; i < 4; ++i) assert_true(others[i] != all);
    assert_true(hash_of(&batch) == all);
}

static void golden_read(const SafeTensors *golden, const char *name, bool floats, int32_t *out, int64_t elems) {
    const SafeTensor *tensor = safetensors_find(golden, name);
    Error err = {""};
    assert_non_null(tensor);
    assert_int_equal(tensor->bytes, to_size(elems) * sizeof *out);
    if (!floats) memcpy(out, tensor->data, tensor->bytes);
    else if (!safetensors_read_f32(tensor, 0, elems, (float *)(void *)out, &err)) fail_msg("%s", err.message);
}

// Rows with documents, prefixes and weights, from a shard to the loss; PyTorch's loss is in the golden file.
static void test_loss_of_the_model(void **state) {
    FileTest *t = *state;
    enum { B = 2, T = 19 };
    SafeTensors *golden;
    file_test_expect_ok(t, safetensors_open(&golden, "tests/golden/gpt2_tiny/masked.safetensors", &t->err));
    static const char *const NAMES[] = {"tokens", "targets", "weight", "doc", "prefix"};
    int32_t part[B * T], text[B * 5 * T], loss[1];
    for (int n = 0; n < 5; ++n) {
        golden_read(golden, NAMES[n], n == 2, part, B * T);
        for (int b = 0; b < B; ++b) memcpy(text + (b * 5 + n) * T, part + b * T, T * sizeof *part);
    }
    golden_read(golden, "prefix.loss", true, loss, 1);
    float want;
    memcpy(&want, loss, sizeof want);
    safetensors_close(golden);
    RunConfig *config = config_new(t);
    config->source_count = config->phase_count = 1;
    config->phase[0] = (PhaseConfig){.name = "p", .tokens = B * T, .seq_len = T, .batch_tokens = B * T, .batch_rows = B,
                                     .weight = {1}};
    config->source[0].doc_mask = true;
    snprintf(config->source[0].format, sizeof config->source[0].format, "spelled");
    shard_test_write(config->source[0].train, 2, text, B * 5 * T, INT32_MAX, 0);
    Loader *loader = open_ok(config, 0, 1);
    const StepBatch *step = next_ok(loader);

    ModelTest m = {0};
    static const char *const ANY[] = {"model=gpt2:d1", "vocab=64", NULL};
    model_test_config(&m.config, ANY);
    file_test_expect_ok(t, model_file_read_config(&m.config.arch, "tests/golden/gpt2_tiny", &t->err) &&
                               model_config_finish(&m.config.arch, &t->err));
    model_test_open(&m, &(ModelShape){.max_rows = B * T, .max_seq_len = T, .dtype = DTYPE_F32, .training = true}, 2);
    model_test_load(&m, "tests/golden/gpt2_tiny");
    double losses[2];
    Batch batch = step->batch[0];
    for (int with = 1; with >= 0; --with) {
        if (!with) batch.prefix = NULL;
        model_begin_step(&m.model);
        model_forward(&m.model, &batch, 1 / step->weight_sum, true);
        losses[with] = model_test_loss_sum(&m.model) / step->weight_sum;
    }
    model_test_within(fabs(losses[1] / (double)want - 1), 3e-6, "the loss");
    assert_true(fabs(losses[0] / (double)want - 1) > 1e-3);  // the prefix has an effect
    model_test_close(&m);
    loader_close(loader);
    free(config);
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        FILE_TEST(test_any_number_of_ranks),
        FILE_TEST(test_seek_and_resume),
        FILE_TEST(test_draws_follow_seed_and_epoch),
        FILE_TEST(test_refusals),
        FILE_TEST(test_plan_bytes),
        FILE_TEST(test_heldout),
        FILE_TEST(test_hash_of_data),
        FILE_TEST(test_loss_of_the_model),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
