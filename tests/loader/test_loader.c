// test_loader.c: batches compared with the contract of loader.h, token by token; any world size, seek, phases,
// segment ids, held-out text, and every error. More than 600 lines: the cases share shards and helpers.
#include "llmc/loader/heldout.h"
#include "llmc/loader/loader.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/loader/mixture.h"
#include "llmc/loader/shard.h"
#include "tests/support/file_test.h"
#include "tests/support/shard_test.h"

// ---- shards and configs ----

static void write_shard(const char *name, int version, int64_t vocab, int32_t eot, const int32_t *tokens,
                        int64_t count) {
    char *path = path_join(file_test_dir, name);
    shard_test_write(path, version, tokens, count, vocab, eot);
    free(path);
}
// Tokens first, first+1, ...: a token gives its position in the stream.
static void write_counting_shard(const char *name, int64_t vocab, int64_t first, int64_t count) {
    int32_t *tokens = xmalloc(to_size(count + 1) * sizeof *tokens);
    for (int64_t i = 0; i < count; ++i) tokens[i] = (int32_t)(first + i);
    write_shard(name, 2, vocab, -1, tokens, count);
    free(tokens);
}

// Sources "a", "b", ... of file_test_dir/<name>_*.bin; phases of `steps` steps of 4 micro-batches of 2 rows of 8 tokens.
static RunConfig *config_new(int source_count, int phase_count, int64_t steps) {
    RunConfig *config = xcalloc(1, sizeof *config);
    config->seed = 7;
    config->source_count = source_count;
    config->phase_count = phase_count;
    for (int s = 0; s < source_count; ++s) {
        SourceConfig *source = &config->source[s];
        source->name[0] = (char)('a' + s);
        snprintf(source->train, sizeof source->train, "%s/%c_*.bin", file_test_dir, 'a' + s);
        snprintf(source->val, sizeof source->val, "%s/%c_val.bin", file_test_dir, 'a' + s);
    }
    for (int p = 0; p < phase_count; ++p) {
        config->phase[p] = (PhaseConfig){.tokens = steps * 64, .seq_len = 8, .batch_tokens = 64, .batch_rows = 2};
        config->phase[p].name[0] = (char)('p' + p);
        for (int s = 0; s < source_count; ++s) config->phase[p].weight[s] = 1;
    }
    return config;
}

static Loader *open_ok(const RunConfig *config, int64_t vocab, int32_t eot, int rank, int world) {
    Schedule schedule;
    Error err = {""};
    Loader *loader = NULL;
    if (!schedule_build(&schedule, config, world, &err) ||
        !loader_open(&loader, config, &schedule, vocab, eot, (MeshAxis){rank, world}, &err))
        fail_msg("%s", err.message);
    return loader;
}
static const StepBatch *next_ok(Loader *loader) {
    Error err = {""};
    const StepBatch *batch = loader_next(loader, &err);
    if (batch == NULL) fail_msg("%s", err.message);
    assert_true(batch->wait_ms >= 0);
    return batch;
}

// ---- rows ----

static void test_each_row_once_per_epoch(void **state) {
    (void)state;
    // 8 rows a step; 1001 tokens in shards of odd sizes: 125 rows; epochs end inside steps, and rows cross shards.
    enum { ROWS = 125, EPOCHS = 3 };
    write_counting_shard("a_0.bin", 2000, 0, 333);
    write_counting_shard("a_1.bin", 70000, 333, 3);  // 4 bytes per token next to 2
    write_counting_shard("a_2.bin", 2000, 336, 665);
    RunConfig *config = config_new(1, 1, 100);
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    int visits[ROWS] = {0};
    int64_t sample = 0;
    while (sample < ROWS * EPOCHS) {
        const StepBatch *step = next_ok(loader);
        assert_true(step->step == sample / 8 && step->micro_batches == 4 && step->weight_sum == 64);
        for (int64_t m = 0; m < 4; ++m) {
            const Batch *batch = &step->batch[m];
            assert_true(batch->B == 2 && batch->T == 8 && batch->doc == NULL && batch->prefix == NULL);
            for (int64_t b = 0; b < 2; ++b, ++sample) {
                int32_t first = batch->tokens[b * 8];
                assert_true(first % 8 == 0 && first / 8 < ROWS && batch->source[b] == 0);
                for (int i = 0; i < 8; ++i) {
                    assert_int_equal(batch->tokens[b * 8 + i], first + i);
                    assert_int_equal(batch->targets[b * 8 + i], first + i + 1);
                    assert_true(batch->weights[b * 8 + i] == 1);
                }
                if (sample >= ROWS * EPOCHS) continue;
                // At the end of each epoch, and only then, all rows have been used equally often.
                assert_int_equal(++visits[first / 8], sample / ROWS + 1);
            }
        }
    }
    loader_close(loader);
    free(config);
}

// A micro-batch past the last lane.
static void check_padding(const StepBatch *step, int64_t m) {
    const Batch *batch = &step->batch[m];
    assert_true(step->micro_batch_weight[m] == 0 && m == step->micro_batches - 1);
    for (int64_t b = 0; b < batch->B; ++b) assert_true(batch->row_index[b] == -1 && batch->source[b] == 0);
    for (int64_t i = 0; i < batch->B * batch->T; ++i)
        assert_true(batch->tokens[i] == 0 && batch->targets[i] == 0 && batch->weights[i] == 0);
}

// The samples of a step in order of its global rows: source * 1000000 + first token.
static void collect(int32_t *out, const RunConfig *config, int world, int64_t steps) {
    for (int rank = 0; rank < world; ++rank) {
        Loader *loader = open_ok(config, 0, -1, rank, world);
        for (int64_t s = 0; s < steps; ++s) {
            const StepBatch *step = next_ok(loader);
            for (int64_t m = 0; m < step->micro_batches; ++m) {
                const Batch *batch = &step->batch[m];
                int64_t first = (m * world + rank) * batch->B;
                if (first >= 8) {
                    check_padding(step, m);
                    continue;
                }
                assert_true(step->micro_batch_weight[m] == (double)(batch->B * batch->T));
                for (int64_t b = 0; b < batch->B; ++b) {
                    assert_int_equal(batch->tokens[b * batch->T], batch->row_index[b] * batch->T);
                    out[s * 8 + first + b] = batch->source[b] * 1000000 + batch->tokens[b * batch->T];
                }
            }
        }
        loader_close(loader);
    }
}
static void test_world_size_changes_nothing(void **state) {
    (void)state;
    enum { STEPS = 60 };
    write_counting_shard("a_0.bin", 5000, 0, 1000);
    write_counting_shard("b_0.bin", 5000, 0, 300);
    RunConfig *config = config_new(2, 2, 25);
    config->phase[0].weight[1] = 0.3;
    int32_t one[STEPS * 8], other[STEPS * 8];
    memset(one, 0xFF, sizeof one);
    collect(one, config, 1, STEPS);
    for (int s = 0; s < STEPS * 8; ++s) assert_true(one[s] >= 0);
    for (int world = 2; world <= 5; ++world) {  // 4 lanes: some ranks have padding; of 5 ranks one has only padding
        memset(other, 0xFF, sizeof other);
        collect(other, config, world, STEPS);
        assert_memory_equal(one, other, sizeof one);
    }
    config->phase[0].batch_rows = config->phase[1].batch_rows = 4;  // nor does the micro-batch size matter
    collect(other, config, 2, STEPS);
    assert_memory_equal(one, other, sizeof one);
    config->seed = 8;  // but the seed matters
    collect(other, config, 1, STEPS);
    assert_memory_not_equal(one, other, sizeof one);
    free(config);
}

static void test_seek_equals_sequential(void **state) {
    (void)state;
    enum { STEPS = 40 };
    write_counting_shard("a_0.bin", 5000, 0, 1000);
    write_counting_shard("b_0.bin", 5000, 0, 300);
    RunConfig *config = config_new(2, 2, 20);
    config->phase[1].weight[1] = 3;
    int32_t expected[STEPS][64];
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    for (int s = 0; s < STEPS; ++s) memcpy(expected[s], next_ok(loader)->batch[0].tokens, sizeof expected[s]);
    const int64_t jumps[] = {0, 1, 39, 38, 38, 20, 19, 5, 6, 7, 0, 0, 33};
    for (size_t j = 0; j < sizeof jumps / sizeof jumps[0]; ++j) {
        loader_seek(loader, 3);  // only the last seek has an effect
        loader_seek(loader, jumps[j]);
        for (int64_t s = jumps[j]; s < min_i64(jumps[j] + 3, STEPS); ++s) {
            const StepBatch *step = next_ok(loader);
            assert_int_equal(step->step, s);
            assert_memory_equal(step->batch[0].tokens, expected[s], sizeof expected[s]);
        }
    }
    loader_close(loader);
    loader = open_ok(config, 0, -1, 0, 1);  // a new loader, as after a restart
    loader_seek(loader, 27);
    assert_memory_equal(next_ok(loader)->batch[0].tokens, expected[27], sizeof expected[27]);
    loader_close(loader);
    loader = open_ok(config, 0, -1, 0, 1);  // closing before and while a step is prefetched
    loader_close(loader);
    free(config);
}

// Padding is one segment, and earlier contents of the slot are overwritten.
static void test_padding_is_empty(void **state) {
    (void)state;
    int32_t tokens[1000];
    for (int i = 0; i < 1000; ++i) tokens[i] = i % 3 == 0 ? 9 : 5;
    write_shard("a_0.bin", 2, 10, 9, tokens, 1000);
    RunConfig *config = config_new(1, 2, 3);
    config->source[0].doc_mask = true;
    config->phase[0].batch_rows = 8;  // one lane, then 4 with 3 ranks: rank 1 has work, then work and padding
    for (int rank = 0; rank < 3; ++rank) {
        Loader *loader = open_ok(config, 0, -1, rank, 3);
        for (int s = 0; s < 6; ++s) {
            const StepBatch *step = next_ok(loader);
            int64_t lanes = s < 3 ? 1 : 4;
            assert_int_equal(step->micro_batches, s < 3 ? 1 : 2);
            double sum = 0;
            for (int64_t m = 0; m < step->micro_batches; ++m) {
                const Batch *batch = &step->batch[m];
                sum += step->micro_batch_weight[m];
                if (m * 3 + rank < lanes) continue;
                check_padding(step, m);
                for (int64_t i = 0; i < batch->B * batch->T; ++i) assert_int_equal(batch->doc[i], 0);
            }
            assert_true(sum == step->weight_sum);
        }
        loader_close(loader);
    }
    free(config);
}

// ---- skipped data ----

// The first token of row r of step s, which identifies its data.
static void first_tokens(int32_t out[8], Loader *loader, int64_t s) {
    loader_seek(loader, s);
    const StepBatch *step = next_ok(loader);
    for (int row = 0; row < 8; ++row) out[row] = step->batch[row / 2].tokens[row % 2 * 8];
}

static void test_skips(void **state) {
    (void)state;
    write_counting_shard("a_0.bin", 30000, 0, 8 * 8 * 200 + 1);
    RunConfig *config = config_new(1, 2, 20);
    const DataSkip skips[2] = {{5, 3}, {30, 2}};  // the second skip is in the second phase
    Loader *plain = open_ok(config, 0, -1, 0, 1), *loader = open_ok(config, 0, -1, 0, 1);
    int32_t got[8], want[8];
    first_tokens(got, loader, 4);  // step 5 is prefetched before the skips are set
    loader_set_skips(loader, skips, 2);
    for (int64_t s = 0; s < 40; ++s) {
        int64_t data_step = s < 5 ? s : s < 30 ? s + 3 : s + 5;
        assert_int_equal(data_skip_step(skips, 2, s), data_step);
        // Both phases are equal, so steps past the end of the first are the first steps of the second.
        first_tokens(got, loader, s);
        first_tokens(want, plain, data_step);
        if (s < 35) assert_memory_equal(got, want, sizeof got);
    }
    loader_seek(loader, 0);
    for (int64_t s = 0; s < 40; ++s) {  // in sequence, as training reads them
        const StepBatch *step = next_ok(loader);
        assert_int_equal(step->step, s);
        first_tokens(want, plain, data_skip_step(skips, 2, s));
        if (s < 35) assert_int_equal(step->batch[0].tokens[0], want[0]);
    }
    loader_set_skips(loader, NULL, 0);
    for (int64_t s = 3; s < 8; ++s) {
        first_tokens(got, loader, s);
        first_tokens(want, plain, s);
        assert_memory_equal(got, want, sizeof got);
    }
    loader_close(plain);
    loader_close(loader);
    free(config);
}

// A seek while a long step is being prefetched: that step must not be returned instead of the requested one.
static void test_seek_into_a_running_job(void **state) {
    (void)state;
    write_counting_shard("a_0.bin", 300000, 0, 200000);
    RunConfig *config = config_new(1, 1, 1);
    config->phase[0] = (PhaseConfig){
        .tokens = 100 * 65536, .weight = {1}, .seq_len = 16, .batch_tokens = 65536, .batch_rows = 4096};
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    for (int64_t s = 0; s < 15; ++s) {
        int64_t wanted = (s * 37 + 11) % 100;
        next_ok(loader);
        usleep((useconds_t)(s * 50));
        loader_seek(loader, wanted);
        const StepBatch *step = next_ok(loader);
        assert_int_equal(step->step, wanted);
        for (int64_t row = 0; row < 4096; ++row) {
            int64_t expected = mixture_row(NULL, 7, 0, wanted * 4096 + row, 199999 / 16) * 16;
            assert_int_equal(step->batch[0].tokens[row * 16], expected);
        }
    }
    loader_close(loader);
    free(config);
}

// The returned step does not change while the next one is prefetched.
static void test_held_step_is_stable(void **state) {
    (void)state;
    write_counting_shard("a_0.bin", 5000, 0, 1000);
    RunConfig *config = config_new(1, 1, 1000);
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    for (int s = 0; s < 200; ++s) {
        const StepBatch *step = next_ok(loader);
        int32_t copy[64];
        memcpy(copy, step->batch[0].tokens, sizeof copy);
        if (s % 10 == 0) usleep(300);
        assert_memory_equal(copy, step->batch[0].tokens, sizeof copy);
        assert_int_equal(step->step, s);
    }
    loader_close(loader);
    free(config);
}

// ---- phases and sources ----

static void test_phases_go_on_where_the_last_stopped(void **state) {
    (void)state;
    // Two sources with unequal weights, which phase 2 changes: within an epoch no row is used twice.
    write_counting_shard("a_0.bin", 20000, 0, 8 * 700 + 1);
    write_counting_shard("b_0.bin", 20000, 0, 8 * 300 + 1);
    RunConfig *config = config_new(2, 2, 50);
    config->phase[0].weight[0] = 0.73;
    config->phase[0].weight[1] = 0.27;
    config->phase[1].weight[0] = 0.6;
    config->phase[1].weight[1] = 0.4;
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    int visits[2][700] = {{0}}, counts[2] = {0};
    for (int s = 0; s < 100; ++s) {
        const StepBatch *step = next_ok(loader);
        for (int row = 0; row < 8; ++row) {
            int source = step->batch[0].source[row], first = step->batch[0].tokens[row * 8];  // rows are contiguous
            ++visits[source][first / 8];
            ++counts[source];
        }
        if (s == 49) assert_true(abs(counts[0] - 292) <= 1 && abs(counts[1] - 108) <= 2);
    }
    assert_true(abs(counts[0] - 532) <= 2 && abs(counts[1] - 268) <= 3);
    for (int source = 0; source < 2; ++source)
        for (int row = 0; row < 700; ++row) assert_true(visits[source][row] <= 1);
    loader_close(loader);
    free(config);
}

static void test_phases_with_other_shapes(void **state) {
    (void)state;
    write_counting_shard("a_0.bin", 20000, 0, 5000);
    RunConfig *config = config_new(1, 3, 3);
    config->phase[1].seq_len = 32;
    config->phase[1].batch_rows = 1;
    config->phase[1].tokens = 640;  // 10 steps of 2 rows of 32
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    for (int64_t s = 0; s < schedule.total_steps; ++s) {
        const StepBatch *step = next_ok(loader);
        const PhaseSpan *span = schedule_phase(&schedule, s);
        assert_true(step->micro_batches == span->micro_batches && step->weight_sum == 64);
        for (int64_t row = 0; row < span->rows_per_step; ++row) {
            const Batch *batch = &step->batch[row / span->B];
            assert_true(batch->T == span->T && batch->B == span->B);
            // The phase starts at ordinal (tokens read before) / T.
            int64_t ordinal = span->first_tokens / span->T + (s - span->first_step) * span->rows_per_step + row;
            int64_t expected = mixture_row(NULL, 7, 0, ordinal, 4999 / span->T) * span->T;
            for (int64_t i = 0; i < span->T; ++i)
                assert_int_equal(batch->tokens[row % span->B * span->T + i], expected + i);
        }
    }
    loader_close(loader);
    free(config);
}

static void test_unused_sources_stay_closed(void **state) {
    (void)state;
    write_counting_shard("b_0.bin", 20000, 0, 5000);
    RunConfig *config = config_new(2, 1, 3);  // source a has no files
    config->phase[0].weight[0] = 0;
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    for (int row = 0; row < 8; ++row) assert_int_equal(next_ok(loader)->batch[0].source[row % 2], 1);
    loader_close(loader);
    free(config);
}

// ---- documents ----

static void test_document_ids(void **state) {
    (void)state;
    enum { EOT = 99, COUNT = 4001 };
    int32_t tokens[COUNT];  // documents of 1 to 13 tokens after their EOT; the first EOT is at position 0
    for (int i = 0, left = 0, length = 0; i < COUNT; ++i) {
        tokens[i] = left == 0 ? EOT : i % 90;
        if (left-- == 0) left = length = length % 13 + 1;
    }
    write_shard("a_0.bin", 2, 100, EOT, tokens, COUNT);
    write_shard("b_0.bin", 2, 100, -1, tokens, COUNT);
    RunConfig *config = config_new(2, 2, 60);
    config->source[0].doc_mask = true;
    config->phase[1].weight[0] = 0;  // only b, which has no mask, in phase 2
    Loader *loader = open_ok(config, 100, -1, 0, 1);
    int with_several = 0;
    for (int s = 0; s < 60; ++s) {
        const StepBatch *step = next_ok(loader);
        for (int row = 0; row < 8; ++row) {
            const Batch *batch = &step->batch[row / 2];
            assert_non_null(batch->doc);
            const int32_t *doc = batch->doc + row % 2 * 8, *row_tokens = batch->tokens + row % 2 * 8;
            assert_int_equal(doc[0], 0);
            for (int i = 1; i < 8; ++i) {
                bool starts = batch->source[row % 2] == 0 && row_tokens[i] == EOT;
                assert_int_equal(doc[i], doc[i - 1] + starts);
            }
            with_several += doc[7] > 0;
        }
    }
    assert_true(with_several > 100 && with_several <= 240);
    for (int s = 0; s < 5; ++s) assert_null(next_ok(loader)->batch[0].doc);
    loader_close(loader);
    free(config);
}

// ---- errors ----

static void expect_refused(const RunConfig *config, int64_t vocab, int32_t eot, const char *fragment) {
    Schedule schedule;
    Error err = {""};
    Loader *loader = NULL;
    assert_true(schedule_build(&schedule, config, 1, &err));
    assert_false(loader_open(&loader, config, &schedule, vocab, eot, MESH_ALONE, &err));
    if (strstr(err.message, fragment) == NULL) fail_msg("expected \"%s\" in: %s", fragment, err.message);
}
static void test_refusals(void **state) {
    (void)state;
    RunConfig *config = config_new(1, 1, 3);
    expect_refused(config, 0, -1, "source a: train: ");
    expect_refused(config, 0, -1, "a_*.bin: expected at least one token shard");
    char kept[CONFIG_PATH_BYTES];
    memcpy(kept, config->source[0].train, sizeof kept);
    config->source[0].train[0] = '\0';
    expect_refused(config, 0, -1, "source a: train: expected a path");
    memcpy(config->source[0].train, kept, sizeof kept);

    write_counting_shard("a_0.bin", 500, 0, 8);
    expect_refused(config, 0, -1, "seq_len + 1 = 9 tokens");
    write_counting_shard("a_0.bin", 500, 0, 64);
    expect_refused(config, 0, -1, "at least one step, 8 rows of 8 tokens, found 7 rows in 64 tokens");
    write_counting_shard("a_0.bin", 500, 0, 65);
    Loader *loader = open_ok(config, 500, -1, 0, 1);  // exactly enough
    loader_close(loader);

    expect_refused(config, 499, -1, "a vocabulary of at most 499, found 500");
    config->source[0].doc_mask = true;
    expect_refused(config, 0, -1, "doc_mask needs the end-of-text id");
    config->source[0].doc_mask = false;
    config->phase[0].weight[0] = 0;
    expect_refused(config, 500, -1, "a source with a weight above 0");
    config->phase[0].weight[0] = 1;

    int32_t tokens[100] = {0};
    tokens[77] = 40000;
    write_shard("a_1.bin", 1, 50257, -1, tokens, 100);
    expect_refused(config, 500, -1, "a_1.bin: expected token ids below 500, found 40000 at position 77");
    write_shard("a_1.bin", 2, 60000, 12, tokens, 100);
    expect_refused(config, 60000, 11, "a_1.bin: expected end-of-text id 11, found 12");
    write_shard("a_0.bin", 1, 60000, -1, tokens, 100);
    write_shard("a_1.bin", 1, 60000, -1, tokens, 100);
    expect_refused(config, 0, -1, "the vocabulary is unknown");
    char *path = path_join(file_test_dir, "a_1.bin");
    assert_int_equal(truncate(path, 1024 + 150), 0);
    expect_refused(config, 60000, -1, "truncated");
    free(path);
    free(config);
}

// Bad data that is found only when it is read: the step fails, the program continues, and a repaired file is read.
static void test_errors_while_running(void **state) {
    (void)state;
    write_counting_shard("a_0.bin", 5000, 0, 8 * 64 + 1);
    RunConfig *config = config_new(1, 1, 100);
    Loader *loader = open_ok(config, 0, -1, 0, 1);
    next_ok(loader);
    char *path = path_join(file_test_dir, "a_0.bin");
    assert_int_equal(truncate(path, 1024 + 100), 0);
    Error err = {""};
    const StepBatch *step = loader_next(loader, &err);
    if (step != NULL) step = loader_next(loader, &err);  // the first step may have been prefetched before
    assert_null(step);
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "truncated while in use"));
    assert_null(loader_next(loader, &err));
    FILE *file = fopen(path, "r+b");
    uint16_t tokens[8 * 64 + 1];
    for (int i = 0; i < 8 * 64 + 1; ++i) tokens[i] = (uint16_t)(i + 1000);
    assert_true(fseek(file, 1024, SEEK_SET) == 0 && fwrite(tokens, sizeof tokens, 1, file) == 1 && fclose(file) == 0);
    assert_true(next_ok(loader)->batch[0].tokens[0] >= 1000);
    unlink(path);  // a deleted shard stays readable
    for (int s = 0; s < 20; ++s) next_ok(loader);
    loader_close(loader);
    free(path);
    free(config);
}

// A sparse shard of 5 GiB with a known row at its end, and an id >= vocab past the range that loader_open checks.
static void test_shards_past_4_gib(void **state) {
    (void)state;
    const int64_t COUNT = (int64_t)5 << 29, T = 1 << 18, ROWS = (COUNT - 1) / T, LAST = ROWS * T;
    const int32_t header[7] = {SHARD_MAGIC, 2, (int32_t)(uint32_t)COUNT, (int32_t)(COUNT >> 32), 2, 60000, -1};
    char *path = path_join(file_test_dir, "a_0.bin");
    FILE *file = fopen(path, "wb");
    assert_true(fwrite(header, sizeof header, 1, file) == 1 && fclose(file) == 0);
    if (truncate(path, SHARD_HEADER_BYTES + 2 * COUNT) != 0) {
        print_message("skipped: no sparse file of 5 GiB in %s\n", file_test_dir);
        free(path);
        skip();
    }
    file = fopen(path, "r+b");
    assert_true(fseek(file, SHARD_HEADER_BYTES + 2 * (LAST - 1), SEEK_SET) == 0);
    assert_true(fwrite((uint16_t[]){111, 55555}, 2, 2, file) == 2 && fclose(file) == 0);
    RunConfig *config = config_new(1, 1, 1);
    config->phase[0] =
        (PhaseConfig){.tokens = COUNT, .weight = {1}, .seq_len = T, .batch_tokens = T, .batch_rows = 1};
    int64_t ordinal = 0;
    while (mixture_row(NULL, 7, 0, ordinal, ROWS) != ROWS - 1) ++ordinal;
    Loader *loader = open_ok(config, 60000, -1, 0, 1);
    loader_seek(loader, ordinal);
    const Batch *batch = &next_ok(loader)->batch[0];
    assert_true(batch->tokens[T - 1] == 111 && batch->targets[T - 2] == 111 && batch->targets[T - 1] == 55555);
    loader_close(loader);
    file = fopen(path, "r+b");  // the header states less than the file holds
    assert_true(fseek(file, 20, SEEK_SET) == 0 && fwrite((int32_t[]){50000}, 4, 1, file) == 1 && fclose(file) == 0);
    loader = open_ok(config, 50000, -1, 0, 1);
    loader_seek(loader, ordinal);
    Error err = {""};
    assert_null(loader_next(loader, &err));
    assert_non_null(strstr(err.message, "below 50000, found 55555"));
    loader_close(loader);
    unlink(path);
    free(path);
    free(config);
}

static void test_plan_bytes(void **state) {
    (void)state;
    // Per slot: 64 tokens x (token, target, weight [, segment]), 8 rows x (source, index), 4 batches and weights.
    RunConfig *config = config_new(1, 2, 1);
    config->phase[1].seq_len = 16;
    Schedule schedule;
    assert_true(schedule_build(&schedule, config, 1, NULL));
    assert_int_equal(loader_plan_bytes(&schedule), 2 * (64 * 12 + 8 * 12 + 4 * (sizeof(Batch) + sizeof(double))));
    config->source[0].doc_mask = true;
    assert_int_equal(loader_plan_bytes(&schedule), 2 * (64 * 16 + 8 * 12 + 4 * (sizeof(Batch) + sizeof(double))));
    config->phase[0].weight[0] = config->phase[1].weight[0] = 0;
    assert_int_equal(loader_plan_bytes(&schedule), 2 * (64 * 12 + 8 * 12 + 4 * (sizeof(Batch) + sizeof(double))));
    config->phase[0].weight[0] = config->phase[1].weight[0] = 1;
    assert_true(schedule_build(&schedule, config, 2, NULL));
    assert_int_equal(loader_plan_bytes(&schedule), 2 * (32 * 16 + 4 * 12 + 2 * (sizeof(Batch) + sizeof(double))));
    assert_true(schedule_build(&schedule, config, 3, NULL));  // 2 lanes at most, one of them padding
    assert_int_equal(loader_plan_bytes(&schedule), 2 * (32 * 16 + 4 * 12 + 2 * (sizeof(Batch) + sizeof(double))));
    free(config);
}

// ---- held-out text ----

// Reads all batches: every token but the first is the target of the previous one, once, in order.
static void check_heldout(int64_t token_count, int64_t B, int64_t T, int64_t max_tokens) {
    write_counting_shard("a_val.bin", 20000, 100, token_count);
    RunConfig *config = config_new(1, 1, 1);
    HeldOut *heldout;
    Error err = {""};
    assert_true(heldout_open(&heldout, &config->source[0], B, T, max_tokens, 20000, -1, &err));
    int64_t predictions = token_count - 1;
    if (max_tokens > 0 && max_tokens < predictions) predictions = max_tokens;
    int64_t next = 0;
    for (int64_t k = 0; k < heldout_batches(heldout); ++k) {
        const Batch *batch = heldout_batch(heldout, k, &err);
        assert_true(batch != NULL && batch->B == B && batch->T == T && batch->doc == NULL);
        assert_true(next < predictions);  // no batch with only padding
        for (int64_t i = 0; i < B * T; ++i) {
            if (next < predictions) {
                assert_true(batch->weights[i] == 1);
                assert_true(batch->tokens[i] == 100 + next && batch->targets[i] == 101 + next);
                ++next;
            } else {
                assert_true(batch->weights[i] == 0 && batch->tokens[i] == 0 && batch->targets[i] == 0);
            }
        }
    }
    assert_int_equal(next, predictions);
    const Batch *first = heldout_batch(heldout, 0, &err);  // in any order, and again
    assert_true(first->tokens[0] == 100 && first->weights[0] == 1);
    heldout_close(heldout);
    free(config);
}
static void test_heldout_predicts_each_token_once(void **state) {
    (void)state;
    check_heldout(1000, 4, 16, 0);
    check_heldout(4 * 16 * 3 + 1, 4, 16, 0);  // exactly full
    check_heldout(4 * 16 * 3 + 2, 4, 16, 0);
    check_heldout(4 * 16 * 3, 4, 16, 0);
    check_heldout(2, 4, 16, 0);
    check_heldout(17, 1, 16, 0);
    check_heldout(1000, 4, 16, 100);
    check_heldout(1000, 4, 16, 64);
    check_heldout(1000, 3, 7, 100000);
}
static void test_heldout_documents_and_errors(void **state) {
    (void)state;
    const int32_t tokens[10] = {9, 1, 2, 9, 9, 3, 4, 5, 9, 6};
    const int32_t expected[16] = {0, 0, 0, 1, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0};  // 9 predictions, then padding
    write_shard("a_val.bin", 2, 10, 9, tokens, 10);
    RunConfig *config = config_new(1, 1, 1);
    SourceConfig *source = &config->source[0];
    source->doc_mask = true;
    HeldOut *heldout;
    Error err = {""};
    assert_true(heldout_open(&heldout, source, 2, 8, 0, 10, -1, &err));
    assert_memory_equal(heldout_batch(heldout, 0, &err)->doc, expected, sizeof expected);
    heldout_close(heldout);
    assert_false(heldout_open(&heldout, source, 2, 8, 0, 9, -1, &err));
    assert_non_null(strstr(err.message, "source a: val"));
    assert_false(heldout_open(&heldout, source, 2, 8, 0, 10, 8, &err));
    write_shard("a_val.bin", 1, 10, -1, tokens, 10);
    assert_false(heldout_open(&heldout, source, 2, 8, 0, 10, -1, &err));
    assert_non_null(strstr(err.message, "doc_mask"));
    assert_true(heldout_open(&heldout, source, 2, 8, 0, 10, 9, &err));
    char *path = path_join(file_test_dir, "a_val.bin");
    assert_int_equal(truncate(path, 1030), 0);
    assert_null(heldout_batch(heldout, 0, &err));
    assert_non_null(strstr(err.message, path));
    heldout_close(heldout);
    source->doc_mask = false;
    write_shard("a_val.bin", 1, 10, -1, tokens, 1);
    assert_false(heldout_open(&heldout, source, 2, 8, 0, 10, -1, &err));
    assert_non_null(strstr(err.message, "at least 2 held-out tokens"));
    unlink(path);
    assert_false(heldout_open(&heldout, source, 2, 8, 0, 10, -1, &err));
    free(path);
    free(config);
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test_setup_teardown(test_each_row_once_per_epoch, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_world_size_changes_nothing, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_seek_equals_sequential, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_padding_is_empty, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_skips, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_seek_into_a_running_job, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_held_step_is_stable, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_phases_go_on_where_the_last_stopped, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_phases_with_other_shapes, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_unused_sources_stay_closed, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_document_ids, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_refusals, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_errors_while_running, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_shards_past_4_gib, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_plan_bytes, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_heldout_predicts_each_token_once, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_heldout_documents_and_errors, file_test_dir_setup, file_test_dir_teardown),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
