// test_optimizer_file.c: the optimizer state written by any number of ranks and read by any other number, to the bit;
// files that are missing, mixed or damaged, that overlap or leave gaps.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/formats/hf.h"
#include "llmc/base/dir_list.h"
#include "llmc/checkpoint/optimizer_file.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

// ---- states whose values encode their position ----

static float element(StateKind kind, int param, int64_t index) {
    return (float)kind * 1e6f + (float)param * 1e4f + (float)index * 0.25f;
}

typedef struct {
    const StatePiece *list;
    float *staging;
} Source;
static const void *fetch(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    Source *source = context;
    const StatePiece *piece = &source->list[index];
    assert_true(first >= 0 && first + count <= piece->count);
    for (int64_t i = 0; i < count; ++i)
        source->staging[i] = element(piece->kind, piece->param, piece->first + first + i);
    return source->staging;
}

static void write_list(FileTest *t, const ParamTable *params, int shard, int shards, const StatePiece *list,
                       int count) {
    Source source = {list, xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof(float))};
    file_test_expect_ok(t, optimizer_file_write(t->dir, shard, shards, params, list, count, fetch, &source, &t->err));
    free(source.staging);
}

static void write_all(FileTest *t, const ParamTable *params, PartitionOptions options, bool masters) {
    for (options.data.rank = 0; options.data.rank < options.data.world; ++options.data.rank) {
        StatePiece *list;
        int count = state_pieces(&list, params, &options, &(StateKept){options.muon, masters});
        write_list(t, params, options.data.rank, options.data.world, list, count);
        free(list);
    }
}

// The files have the right values for all that each rank of `options` keeps; together they have every element once.
static void read_all(FileTest *t, const ParamTable *params, PartitionOptions options, bool masters) {
    OptimizerFiles *files;
    file_test_expect_ok(t, optimizer_files_open(&files, t->dir, params, &t->err));
    file_test_expect_ok(t, optimizer_files_check(files, &(StateKept){options.muon, masters}, &t->err));
    int64_t elems = 0, expected = 0;
    for (int i = 0; i < params->count; ++i) {
        bool v = !(options.muon && params->spec[i].hidden_matrix);
        assert_true(optimizer_files_has(files, STATE_M, i));
        assert_int_equal(optimizer_files_has(files, STATE_V, i), v);
        assert_int_equal(optimizer_files_has(files, STATE_MASTER, i), masters);
        expected += params->spec[i].elems * (1 + v + masters);
    }
    for (options.data.rank = 0; options.data.rank < options.data.world; ++options.data.rank) {
        StatePiece *list;
        int count = state_pieces(&list, params, &options, &(StateKept){options.muon, masters});
        for (int i = 0; i < count; ++i) {
            const StatePiece *piece = &list[i];
            float *values = xmalloc(to_size(piece->count) * sizeof *values);
            // In two reads that do not follow the files' boundaries.
            int64_t cut = piece->count / 3;
            for (int part = 0; part < 2; ++part) {
                int64_t first = part == 0 ? 0 : cut, end = part == 0 ? cut : piece->count;
                file_test_expect_ok(t, optimizer_files_read(files, piece->kind, piece->param, piece->first + first,
                                                            end - first, values + first, &t->err));
            }
            for (int64_t e = 0; e < piece->count; ++e)
                if (values[e] != element(piece->kind, piece->param, piece->first + e))
                    fail_msg("%s element %lld", params->spec[piece->param].name, (long long)(piece->first + e));
            elems += piece->count;
            optimizer_files_release(files, piece->kind, piece->param);
            free(values);
        }
        free(list);
    }
    assert_true(elems == expected);
    optimizer_files_close(files);
}

static void test_any_world_to_any_other(void **state) {
    FileTest *t = *state;
    static const char *const KINDS[] = {"gpt2", "qwen3"};
    static const PartitionOptions SHAPES[] = {{.data.world = 1},
                                              {.data.world = 2, .stage = 0},
                                              {.data.world = 2, .stage = 1},
                                              {.data.world = 3, .stage = 3},
                                              {.data.world = 4, .stage = 2, .lanes = true},
                                              {.data.world = 7, .stage = 1},
                                              {.data.world = 16, .stage = 3}};
    enum { SHAPE_COUNT = sizeof SHAPES / sizeof SHAPES[0] };
    for (int k = 0; k < 2; ++k)
        for (int muon = 0; muon < 2; ++muon)
            for (int masters = 0; masters < 2; ++masters) {
                ModelConfig config = model_kind(model_kind_find(KINDS[k]));
                ParamTable params;
                params_build(&params, &config);
                for (int from = 0; from < SHAPE_COUNT; ++from) {
                    file_test_remove_all(t);
                    PartitionOptions options = SHAPES[from];
                    options.muon = muon;
                    write_all(t, &params, options, masters);
                    assert_int_equal(file_test_count_entries(t->dir), options.data.world);
                    assert_true(optimizer_files_exist(t->dir));
                    for (int to = 0; to < SHAPE_COUNT; ++to) {
                        options = SHAPES[to];
                        options.muon = muon;
                        read_all(t, &params, options, masters);
                    }
                }
                params_free(&params);
            }
}

// One rank writes whole parameters under their plain names.
static void test_one_rank_writes_whole_parameters(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("qwen3"));
    ParamTable params;
    params_build(&params, &config);
    write_all(t, &params, (PartitionOptions){.data.world = 1, .muon = true}, true);
    char *path = file_test_path(t, "optimizer.safetensors");
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    for (int i = 0; i < params.count; ++i) {
        char name[STATE_NAME_BYTES];
        state_piece_name(name, &params, &(StatePiece){STATE_M, i, 0, params.spec[i].elems});
        const SafeTensor *tensor = safetensors_find(file, name);
        assert_non_null(tensor);
        assert_int_equal(tensor->ndim, params.spec[i].ndim);
        assert_true(tensor->dim[0] == params.spec[i].dim[0]);
    }
    safetensors_close(file);
    free(path);
    params_free(&params);
}

// A file without a version, with this one, with a newer one.
static void test_format_version(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("qwen3"));
    ParamTable params;
    params_build(&params, &config);
    write_all(t, &params, (PartitionOptions){.data = MESH_ALONE}, false);
    char *path = file_test_path(t, "optimizer.safetensors"), *bytes;
    size_t count, at = 0;
    file_test_expect_ok(t, file_read_all(path, (size_t)1 << 26, &bytes, &count, &t->err));
    static const char KEY[] = "{\"format_version\":\"1\"}";
    while (memcmp(bytes + at, KEY, sizeof KEY - 1) != 0) CHECK(++at + sizeof KEY < count, "no %s", KEY);
    static const struct {
        const char *metadata, *mention;  // as long as KEY
    } CASES[] = {{"{\"format_version\":\"1\"}", NULL},
                 {"{\"format_versioX\":\"1\"}", NULL},
                 {"{\"format_version\":\"2\"}", "optimizer.safetensors: this checkpoint's optimizer state has format version 2, "
                                             "this program reads versions up to 1"},
                 {"{\"format_version\":\"x\"}", "format_version to be a whole number, found 'x'"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        OptimizerFiles *files;
        memcpy(bytes + at, CASES[i].metadata, sizeof KEY - 1);
        file_test_write(t, "optimizer.safetensors", bytes, count);
        bool ok = optimizer_files_open(&files, t->dir, &params, &t->err);
        if (CASES[i].mention != NULL) file_test_expect_error(t, ok, CASES[i].mention);
        else file_test_expect_ok(t, ok);
        if (ok) optimizer_files_close(files);
    }
    free(bytes);
    free(path);
    params_free(&params);
}

// No two kinds share a name in files or a place in the hash chain.
static void test_table(void **state) {
    (void)state;
    for (int a = 0; a < STATE_KINDS; ++a)
        for (int b = 0; b < a; ++b) {
            assert_string_not_equal(STATE_ROWS[a].name, STATE_ROWS[b].name);
            if (!STATE_ROWS[a].is_weight && !STATE_ROWS[b].is_weight)
                assert_true(STATE_ROWS[a].hash_place != STATE_ROWS[b].hash_place);
        }
}

// ---- malformed sets ----

enum { WTE = 0 };  // the first parameter of every table

typedef struct {
    const char *what;
    int64_t cut, again;   // file 1 has elements [0, cut) of m.wte, file 2 has [again, all)
    int64_t missing_end;  // number of elements missing at the end
    const char *mention;
} Cut;

static void test_gaps_and_overlaps(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    ParamTable params;
    params_build(&params, &config);
    int64_t all = params.spec[WTE].elems;
    static const Cut CUTS[] = {
        {"fits", 40, 40, 0, NULL},
        {"gap", 40, 41, 0, "elements 40 to 40 of m.wte are in none of the 2 optimizer files"},
        {"overlap", 41, 40, 0, "optimizer-00002-of-00002.safetensors: tensor 'm.wte[40:"},
        {"end", 40, 40, 3, "of m.wte are in none of the 2 optimizer files"},
    };
    for (size_t i = 0; i < sizeof CUTS / sizeof CUTS[0]; ++i) {
        StatePiece pieces[2] = {{STATE_M, WTE, 0, CUTS[i].cut},
                                {STATE_M, WTE, CUTS[i].again, all - CUTS[i].again - CUTS[i].missing_end}};
        for (int shard = 0; shard < 2; ++shard) write_list(t, &params, shard, 2, &pieces[shard], 1);
        OptimizerFiles *files;
        bool ok = optimizer_files_open(&files, t->dir, &params, &t->err);
        if (CUTS[i].mention != NULL) {
            file_test_expect_error(t, ok, CUTS[i].mention);
            continue;
        }
        file_test_expect_ok(t, ok);
        file_test_expect_error(t, optimizer_files_check(files, &(StateKept){0}, &t->err), "expected tensor v.wte with");
        optimizer_files_close(files);
    }
    // The start is missing; the whole and also a part; the same whole twice.
    StatePiece late = {STATE_V, WTE, 8, all - 8}, whole = {STATE_V, WTE, 0, all}, part = {STATE_V, WTE, 8, 8};
    const StatePiece *const PAIRS[][2] = {{&late, NULL}, {&whole, &part}, {&whole, &whole}, {&part, &whole}};
    static const char *const MENTIONS[] = {"elements 0 to 7 of v.wte", "overlaps tensor 'v.wte'",
                                           "overlaps tensor 'v.wte' of", "overlaps tensor 'v.wte'"};
    for (int i = 0; i < 4; ++i) {
        for (int shard = 0; shard < 2; ++shard)
            write_list(t, &params, shard, 2, PAIRS[i][shard], PAIRS[i][shard] != NULL);
        OptimizerFiles *files;
        file_test_expect_error(t, optimizer_files_open(&files, t->dir, &params, &t->err), MENTIONS[i]);
    }
    params_free(&params);
}

static void test_sets_of_files(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    ParamTable params;
    params_build(&params, &config);
    OptimizerFiles *files;
    assert_false(optimizer_files_exist(t->dir));
    file_test_expect_error(t, optimizer_files_open(&files, t->dir, &params, &t->err),
                           "optimizer.safetensors: missing");
    static const struct {
        const char *remove, *add, *mention;
    } CASES[] = {{"optimizer-00001-of-00003.safetensors", NULL, "optimizer-00001-of-00003.safetensors: missing"},
                 {"optimizer-00002-of-00003.safetensors", NULL, "optimizer-00002-of-00003.safetensors: missing"},
                 {"optimizer-00003-of-00003.safetensors", NULL, "optimizer-00003-of-00003.safetensors: missing"},
                 {NULL, "optimizer.safetensors", "/optimizer.safetensors: is not one of the 3 files"},
                 {NULL, "optimizer-00001-of-00002.safetensors", "is not one of the 2 files"},
                 {NULL, "optimizer-00004-of-00003.safetensors", "is not one of the 3 files"},
                 {NULL, "optimizer-00002-of-00003x.safetensors", "is not one of the 3 files"},
                 {NULL, "optimizer-.safetensors", "expected a name like"},
                 {NULL, "optimizer-00000-of-00000.safetensors", "expected a name like"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        file_test_remove_all(t);
        write_all(t, &params, (PartitionOptions){.data.world = 3, .stage = 1}, false);
        if (CASES[i].remove != NULL) {
            char *path = file_test_path(t, CASES[i].remove);
            assert_int_equal(unlink(path), 0);
            free(path);
        } else file_test_write(t, CASES[i].add, "", 0);
        file_test_expect_error(t, optimizer_files_open(&files, t->dir, &params, &t->err), CASES[i].mention);
    }
    params_free(&params);
}

static const void *fetch_zeros(void *context, int index, int64_t first, int64_t count, Error *err) {
    static const float ZEROS[1 << 16];
    (void)context;
    (void)index;
    (void)first;
    (void)err;
    assert_true(count <= 1 << 16);
    return ZEROS;
}

static void test_tensors_that_lie(void **state) {
    FileTest *t = *state;
    ModelConfig config = model_kind(model_kind_find("gpt2"));
    ParamTable params;
    params_build(&params, &config);
    int64_t rows = params.spec[WTE].dim[0], cols = params.spec[WTE].dim[1];
    assert_true(rows * cols <= 1 << 16);
    const struct {
        const char *name;
        DType dtype;
        int ndim;
        int64_t d0, d1;
    } BAD[] = {{"m.wte", DTYPE_F32, 2, cols, rows},   {"m.wte", DTYPE_F32, 1, rows * cols, 0},
               {"m.wte", DTYPE_BF16, 2, rows, cols},  {"m.nothing", DTYPE_F32, 1, 1, 0},
               {"wte", DTYPE_F32, 2, rows, cols},     {"x.wte", DTYPE_F32, 2, rows, cols},
               {".wte", DTYPE_F32, 2, rows, cols},    {"m.wte[0:8]", DTYPE_F32, 1, 9, 0},
               {"m.wte[0:8]", DTYPE_F32, 2, 8, 1},    {"m.wte[8:8]", DTYPE_F32, 1, 0, 0},
               {"m.wte[8:4]", DTYPE_F32, 1, 4, 0},    {"m.wte[-8:0]", DTYPE_F32, 1, 8, 0},
               {"m.wte[0:8", DTYPE_F32, 1, 8, 0},     {"m.wte[00:8]", DTYPE_F32, 1, 8, 0},
               {"m.wte[0:8]x", DTYPE_F32, 1, 8, 0},   {"m.wte[0,8]", DTYPE_F32, 1, 8, 0},
               {"m.wte[0:99999999]", DTYPE_F32, 1, 8, 0}, {"m.wte[]", DTYPE_F32, 1, 8, 0},
               {"m.wte[0:9223372036854775808]", DTYPE_F32, 1, 8, 0}, {"", DTYPE_F32, 1, 8, 0}};
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; ++i) {
        SafeTensorSpec spec = {BAD[i].name, BAD[i].dtype, BAD[i].ndim, {BAD[i].d0, BAD[i].d1}};
        char *path = file_test_path(t, "optimizer.safetensors");
        file_test_expect_ok(t, safetensors_write(path, &spec, 1, NULL, fetch_zeros, NULL, &t->err));
        OptimizerFiles *files;
        bool ok = optimizer_files_open(&files, t->dir, &params, &t->err);
        if (ok) fail_msg("accepted: '%s' with %d dimensions", BAD[i].name, BAD[i].ndim);
        file_test_expect_error(t, ok, "optimizer.safetensors: tensor '");
        free(path);
    }
    params_free(&params);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_any_world_to_any_other), FILE_TEST(test_one_rank_writes_whole_parameters),
        FILE_TEST(test_format_version), cmocka_unit_test(test_table),
        FILE_TEST(test_gaps_and_overlaps), FILE_TEST(test_sets_of_files), FILE_TEST(test_tensors_that_lie),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
