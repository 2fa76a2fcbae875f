// test_model_shards.c: models in several files: every kind and number of shards reads back as the same model, a shard
// requests only elements of its ranges, the ranges cover everything once, files have about the same size.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/base/dir_list.h"
#include "llmc/formats/model_file.h"
#include "llmc/formats/safetensors.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

typedef struct {
    HostModel *model;
    ParamRange *range;
    int ranges;
} Shard;

// As host_model_get, but only within the shard's ranges.
static bool get_ranged(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    Shard *shard = context;
    for (int i = 0; i < shard->ranges; ++i) {
        const ParamRange *range = &shard->range[i];
        if (&shard->model->params.spec[range->param] == spec && first >= range->first &&
            first + count <= range->first + range->count)
            return host_model_get(shard->model, spec, first, count, out, err);
    }
    fail_msg("%s: elements %lld.. are not of this shard", spec->name, (long long)first);
    return false;
}

static void write_shards(FileTest *t, HostModel *model, DType dtype, int shards) {
    const ModelConfig *config = &model->config;
    int64_t *covered = xcalloc((size_t)model->params.count, sizeof *covered);
    for (int s = 0; s < shards; ++s) {
        Shard shard = {.model = model};
        shard.ranges = model_file_shard_ranges(&shard.range, config, &model->params, s, shards);
        for (int i = 0; i < shard.ranges; ++i) {
            assert_true(shard.range[i].first == covered[shard.range[i].param]);  // in order, so without overlap
            covered[shard.range[i].param] += shard.range[i].count;
        }
        file_test_expect_ok(t, model_file_write_hf_shard(t->dir, config, &model->params, dtype, s, shards, get_ranged,
                                                         &shard, &t->err));
        free(shard.range);
    }
    for (int i = 0; i < model->params.count; ++i) {
        const ParamSpec *spec = &model->params.spec[i];
        assert_true(covered[i] == spec->real_rows * spec->dim[1]);
    }
    free(covered);
    if (shards > 1)
        file_test_expect_ok(t, model_file_write_hf_index(t->dir, config, &model->params, dtype, shards, &t->err));
    char *json = hf_config_write(config, dtype, 1, 2);
    file_test_write(t, "config.json", json, strlen(json));
    free(json);
}

static void test_every_kind_in_shards(void **state) {
    FileTest *t = *state;
    static const int SHARDS[] = {1, 2, 3, 8, 100};
    for (int kind = 0; kind < MODEL_KIND_COUNT; ++kind)
        for (int i = 0; i < 5; ++i) {
            const ModelConfig config = model_kind(kind);
            DType dtype = (kind + i) % 2 == 0 ? DTYPE_F32 : DTYPE_BF16;
            HostModel model = host_model_random(&config);
            file_test_remove_all(t);
            write_shards(t, &model, dtype, SHARDS[i]);
            assert_int_equal(file_test_count_entries(t->dir), SHARDS[i] == 1 ? 2 : SHARDS[i] + 2);
            ModelConfig found;
            file_test_expect_ok(t, model_file_read_config(&found, t->dir, &t->err));
            expect_same_config(&config, &found, MODEL_KINDS[kind].name);
            HostModel back = host_model_empty(&found);
            file_test_expect_ok(t, model_file_read(t->dir, &found, &back.params, host_model_put, &back, &t->err));
            host_model_expect_same(&model, &back, dtype);
            host_model_free(&model);
            host_model_free(&back);
        }
}

// A missing shard, a shard of another number, an index that names a missing tensor.
static void test_damaged_sets(void **state) {
    FileTest *t = *state;
    const ModelConfig config = model_kind(model_kind_find("qwen3"));
    HostModel model = host_model_random(&config);
    write_shards(t, &model, DTYPE_F32, 3);
    char *path = file_test_path(t, "model-00002-of-00003.safetensors"), *away = file_test_path(t, "away");
    SafeTensors *file;
    assert_int_equal(rename(path, away), 0);
    file_test_expect_error(t, safetensors_open(&file, t->dir, &t->err), "00002-of-00003.safetensors: cannot open");
    char *other = file_test_path(t, "model-00001-of-00003.safetensors");
    assert_int_equal(link(other, path), 0);
    file_test_expect_error(t, safetensors_open(&file, t->dir, &t->err), "expected each tensor once");
    assert_int_equal(rename(away, path), 0);
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    safetensors_close(file);
    free(other);
    free(path);
    free(away);
    host_model_free(&model);
}

// Assignment to shards: balanced to within half a tensor at each end, monotone, always in range.
static void test_division(void **state) {
    (void)state;
    assert_int_equal(hf_shard_of(0, 0, 0, 5), 0);
    assert_int_equal(hf_shard_of(90, 10, 100, 10), 9);
    assert_int_equal(hf_shard_of(100, 0, 100, 10), 9);
    assert_int_equal(hf_shard_of(INT64_MAX / 2, INT64_MAX / 2, INT64_MAX, 99999), 74999);
    for (int shards = 1; shards < 40; ++shards) {
        int64_t bytes[40] = {0};
        int previous = 0;
        for (int64_t i = 0; i < 1000; ++i) {
            int shard = hf_shard_of(i * 7, 7, 7000, shards);
            assert_true(shard >= previous && shard < shards);
            previous = shard;
            bytes[shard] += 7;
        }
        for (int s = 0; s < shards; ++s)
            if (bytes[s] < 7000 / shards - 7 || bytes[s] > 7000 / shards + 8)
                fail_msg("shard %d of %d has %lld bytes", s, shards, (long long)bytes[s]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_every_kind_in_shards), FILE_TEST(test_damaged_sets),
                                       cmocka_unit_test(test_division)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
