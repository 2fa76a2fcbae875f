// test_ckpt_tools.c: train_gpt ckpt verify, reshard, diff, average and export on checkpoints of one and of several
// ranks: values are unchanged, means are right, damage is named, existing files are not overwritten.
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/command/commands.h"
#include "llmc/command/ckpt_common.h"
#include "llmc/base/rng.h"
#include "tests/support/file_test.h"
#include "tests/support/model_kinds.h"

// ---- checkpoints to work on ----

typedef struct {
    const char *kind;
    uint64_t seed;
    DType dtype;
    bool masters;
    PartitionOptions ranks;  // data.world 0: weights only, in one file
} Shape;

static float drawn(const Shape *shape, StateKind kind, int param, int64_t index) {
    uint64_t at = (uint64_t)kind << 60 | (uint64_t)param << 40 | (uint64_t)index;
    return (float)((double)rng_u32(shape->seed, RNG_STREAM_TEST, at) / 4294967296.0 - 0.5);
}

typedef struct {
    const Shape *shape;
    const ParamTable *params;
    const StatePiece *list;
    float *staging;
} Source;

// The weights are the rounded masters.
static bool get_weight(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    (void)err;
    const Source *source = context;
    int param = (int)(spec - source->params->spec);
    for (int64_t i = 0; i < count; ++i) {
        out[i] = drawn(source->shape, STATE_MASTER, param, first + i);
        if (source->shape->dtype == DTYPE_BF16) out[i] = bf16_to_f32(bf16_from_f32(out[i]));
    }
    return true;
}
static const void *fetch_state(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    const Source *source = context;
    const StatePiece *piece = &source->list[index];
    for (int64_t i = 0; i < count; ++i)
        source->staging[i] = drawn(source->shape, piece->kind, piece->param, piece->first + first + i);
    return source->staging;
}

static void write_files(FileTest *t, CheckpointWriter *writer, const Shape *shape, const ModelConfig *config,
                        const ParamTable *params) {
    Source source = {shape, params, NULL, xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof(float))};
    PartitionOptions ranks = shape->ranks;
    int world = ranks.data.world == 0 ? 1 : ranks.data.world;
    for (ranks.data.rank = 0; ranks.data.rank < world; ++ranks.data.rank) {
        file_test_expect_ok(t, model_file_write_hf_shard(writer->dir, config, params, shape->dtype, ranks.data.rank, world,
                                                         get_weight, &source, &t->err));
        if (shape->ranks.data.world == 0) continue;
        StatePiece *list;
        int count = state_pieces(&list, params, &ranks, &(StateKept){ranks.muon, shape->masters});
        source.list = list;
        file_test_expect_ok(t, optimizer_file_write(writer->dir, ranks.data.rank, world, params, list, count, fetch_state,
                                                    &source, &t->err));
        free(list);
    }
    if (world > 1)
        file_test_expect_ok(t, model_file_write_hf_index(writer->dir, config, params, shape->dtype, world, &t->err));
    free(source.staging);
}

static char *make_checkpoint(FileTest *t, const char *name, const Shape *shape) {
    ModelConfig config = model_kind(model_kind_find(shape->kind));
    ParamTable params;
    params_build(&params, &config);
    char *dir = file_test_path(t, name), *json = hf_config_write(&config, shape->dtype, 1, 2);
    CheckpointWriter writer;
    file_test_expect_ok(t, checkpoint_begin_at(&writer, dir, &t->err));
    write_files(t, &writer, shape, &config, &params);
    file_test_expect_ok(t, checkpoint_write_text(&writer, "config.json", json, &t->err));
    if (shape->ranks.data.world > 0) {
        StateFile state = {.progress = {.step = 7}, .master_weights = shape->masters};
        snprintf(state.optimizer, sizeof state.optimizer, "%s", shape->ranks.muon ? "muon" : "adamw");
        snprintf(state.dtype, sizeof state.dtype, "%s", dtype_name(shape->dtype));
        char *text = state_file_write(&state, "{}");
        file_test_expect_ok(t, checkpoint_write_text(&writer, "state.json", text, &t->err));
        free(text);
    }
    file_test_expect_ok(t, checkpoint_commit(&writer, &t->err));
    free(json);
    params_free(&params);
    return dir;
}

// ---- commands ----

// Runs `ckpt WORDS...`; *output (caller frees; may be NULL): what it prints on both streams.
static int ckpt(FileTest *t, char **output, const char *const *words) {
    char *argv[10] = {(char *)(uintptr_t)"ckpt"};
    int argc = 1;
    for (; words[argc - 1] != NULL; ++argc) argv[argc] = (char *)(uintptr_t)words[argc - 1];
    char *path = file_test_path(t, ".output");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644), saved[2] = {dup(1), dup(2)};
    assert_true(fd >= 0 && saved[0] >= 0 && saved[1] >= 0);
    fflush(NULL);
    assert_true(dup2(fd, 1) == 1 && dup2(fd, 2) == 2);
    int status = command_ckpt(argc, argv);
    fflush(NULL);
    assert_true(dup2(saved[0], 1) == 1 && dup2(saved[1], 2) == 2);
    close(fd);
    close(saved[0]);
    close(saved[1]);
    if (output != NULL) file_test_expect_ok(t, file_read_all(path, 1 << 20, output, NULL, &t->err));
    assert_int_equal(unlink(path), 0);
    free(path);
    return status;
}
static void expect(FileTest *t, int status, const char *mention, const char *const *words) {
    char *output;
    int found = ckpt(t, &output, words);
    if (found != status || strstr(output, mention) == NULL)
        fail_msg("expected status %d and '%s', found %d and: %s", status, mention, found, output);
    free(output);
}
#define EXPECT(t, status, mention, ...) expect(t, status, mention, (const char *const[]){__VA_ARGS__, NULL})

static char *assign(const char *key, const char *value) { return xasprintf("%s=%s", key, value); }

static void reshard(FileTest *t, const char *from, const char *to, int ranks) {
    char *words[3] = {assign("from", from), assign("to", to), xasprintf("ranks=%d", ranks)};
    EXPECT(t, 0, "wrote", "reshard", words[0], words[1], words[2]);
    for (int i = 0; i < 3; ++i) free(words[i]);
}

static void expect_same_files(FileTest *t, const char *a, const char *b) {
    NameList names[2];
    file_test_expect_ok(t, dir_list(&names[0], a, &t->err) && dir_list(&names[1], b, &t->err));
    assert_int_equal(names[0].count, names[1].count);
    for (int i = 0; i < names[0].count; ++i) {
        assert_string_equal(names[0].name[i], names[1].name[i]);
        char *path[2] = {path_join(a, names[0].name[i]), path_join(b, names[0].name[i])}, *text[2];
        size_t bytes[2];
        for (int side = 0; side < 2; ++side)
            file_test_expect_ok(t, file_read_all(path[side], 1 << 24, &text[side], &bytes[side], &t->err));
        if (bytes[0] != bytes[1] || memcmp(text[0], text[1], bytes[0]) != 0) fail_msg("%s differs", path[0]);
        for (int side = 0; side < 2; ++side) {
            free(path[side]);
            free(text[side]);
        }
    }
    name_list_free(&names[0]);
    name_list_free(&names[1]);
}

// ---- reshard ----

static void test_reshard_both_ways(void **state) {
    FileTest *t = *state;
    static const Shape SHAPES[] = {{"gpt2", 1, DTYPE_F32, false, {.data.world = 1}},
                                   {"qwen3", 2, DTYPE_BF16, true, {.data.world = 1, .muon = true}},
                                   {"llama", 3, DTYPE_BF16, false, {.data.world = 1}}};
    static const PartitionOptions RANKS[] = {{.data.world = 2, .stage = 0}, {.data.world = 3, .stage = 1},
                                             {.data.world = 4, .stage = 3, .lanes = true}};
    for (int s = 0; s < 3; ++s) {
        Shape shape = SHAPES[s];
        char *plain = make_checkpoint(t, "plain", &shape);
        for (int r = 0; r < 3; ++r) {
            shape.ranks = RANKS[r];
            shape.ranks.muon = SHAPES[s].ranks.muon;
            char *many = make_checkpoint(t, "many", &shape), *one = file_test_path(t, "one");
            char *again = file_test_path(t, "again"), *back = file_test_path(t, "back");
            reshard(t, many, one, 1);
            expect_same_files(t, plain, one);
            reshard(t, plain, again, shape.ranks.data.world);
            // The values are always the same; the files too where training divides them as reshard does.
            if (!shape.ranks.lanes) expect_same_files(t, many, again);
            EXPECT(t, 0, "all the same to the bit", "diff", many, again);
            reshard(t, again, back, 5);
            EXPECT(t, 0, "complete", "verify", back);
            EXPECT(t, 0, "all the same to the bit", "diff", back, plain);
            char *const made[] = {many, one, again, back};
            for (int i = 0; i < 4; ++i) {
                file_test_expect_ok(t, remove_tree(made[i], &t->err));
                free(made[i]);
            }
        }
        file_test_expect_ok(t, remove_tree(plain, &t->err));
        free(plain);
    }
}

static void test_reshard_refuses(void **state) {
    FileTest *t = *state;
    const Shape shape = {"qwen3", 1, DTYPE_F32, false, {.data.world = 3, .stage = 1}};
    char *dir = make_checkpoint(t, "a", &shape), *other = make_checkpoint(t, "b", &shape);
    char *from = assign("from", dir), *to = assign("to", other), *fresh = xasprintf("to=%s/fresh", t->dir);
    EXPECT(t, 1, "is not overwritten", "reshard", from, to, "ranks=2");
    EXPECT(t, 2, "ranks", "reshard", from, fresh);
    EXPECT(t, 2, "from 1 to", "reshard", from, fresh, "ranks=0");
    EXPECT(t, 1, "no such directory", "reshard", "from=/nonexistent", fresh, "ranks=2");
    EXPECT(t, 0, "example", "reshard", "--help");
    char *file = path_join(dir, "optimizer-00002-of-00003.safetensors");
    FILE *stream = fopen(file, "r+b");
    assert_true(stream != NULL && fseek(stream, -1, SEEK_END) == 0 && fputc(1, stream) == 1 && fclose(stream) == 0);
    EXPECT(t, 1, "optimizer-00002-of-00003.safetensors: changed", "reshard", from, fresh, "ranks=2");
    assert_int_equal(file_test_count_entries(t->dir), 2);
    free(file);
    free(dir);
    free(other);
    free(from);
    free(to);
    free(fresh);
}

// ---- verify ----

static void test_verify(void **state) {
    FileTest *t = *state;
    Shape shape = {"gpt2", 1, DTYPE_F32, false, {.data.world = 2, .stage = 2}};
    char *run = file_test_path(t, "run");
    file_test_expect_ok(t, make_dirs(run, &t->err));
    EXPECT(t, 1, "MANIFEST.json: missing", "verify", run);
    char *first = make_checkpoint(t, "run/step_00000001", &shape);
    shape.ranks.data.world = 0;
    char *second = make_checkpoint(t, "run/step_00000002", &shape);
    EXPECT(t, 0, "step_00000001: complete, every file matches its manifest; written by 2 ranks", "verify", first);
    EXPECT(t, 0, "weights only", "verify", second);
    EXPECT(t, 0, "step_00000002: complete", "verify", run);
    char *file = path_join(first, "model-00002-of-00002.safetensors");
    assert_int_equal(unlink(file), 0);
    EXPECT(t, 1, "DAMAGED: ", "verify", run);
    EXPECT(t, 1, "step_00000002: complete", "verify", run);
    EXPECT(t, 1, "model-00002-of-00002.safetensors: missing", "verify", first);
    // A manifest lists only what was written: a file that never existed is found by opening the tensors.
    char *manifest = path_join(first, CHECKPOINT_MANIFEST);
    assert_int_equal(unlink(manifest), 0);
    CheckpointWriter writer = {.dir = xstrdup(first), .final_dir = file_test_path(t, "run/step_00000003")};
    file_test_expect_ok(t, checkpoint_commit(&writer, &t->err));
    char *third = file_test_path(t, "run/step_00000003");
    EXPECT(t, 1, "model-00002-of-00002.safetensors: cannot open", "verify", third);
    char *const all[] = {run, first, second, third, file, manifest};
    for (int i = 0; i < 6; ++i) free(all[i]);
}

// ---- diff ----

static void test_diff(void **state) {
    FileTest *t = *state;
    Shape shape = {"qwen3", 1, DTYPE_F32, false, {.data.world = 2, .stage = 1}};
    char *a = make_checkpoint(t, "a", &shape);
    shape.ranks = (PartitionOptions){.data.world = 1};
    char *b = make_checkpoint(t, "b", &shape), *file = path_join(b, "model.safetensors");
    EXPECT(t, 0, "all the same to the bit", "diff", a, b);
    // One element of one tensor differs: the largest difference and the norms are known.
    SafeTensors *open_file;
    file_test_expect_ok(t, safetensors_open(&open_file, file, &t->err));
    const SafeTensor *tensor = safetensors_find(open_file, "model.norm.weight"), *any = safetensors_at(open_file, 0);
    assert_non_null(tensor);
    char *text;
    size_t bytes;
    file_test_expect_ok(t, file_read_all(file, 1 << 24, &text, &bytes, &t->err));
    size_t data = 8 + (size_t)((const unsigned char *)text)[0] + ((size_t)((const unsigned char *)text)[1] << 8) +
                  ((size_t)((const unsigned char *)text)[2] << 16);
    const unsigned char *start = any->data;
    for (int i = 0; i < safetensors_count(open_file); ++i)
        if (safetensors_at(open_file, i)->data < start) start = safetensors_at(open_file, i)->data;
    size_t at = data + (size_t)(tensor->data - start);
    safetensors_close(open_file);
    float value;
    memcpy(&value, text + at, sizeof value);
    const float CHANGED[] = {value + 0.5f, NAN};
    static const char *const MENTIONS[] = {"the most by 0.5 in model.norm.weight",
                                           "the most by nan in model.norm.weight"};
    for (int i = 0; i < 2; ++i) {
        memcpy(text + at, &CHANGED[i], sizeof value);
        file_test_write(t, "b/model.safetensors", text, bytes);
        EXPECT(t, 1, MENTIONS[i], "diff", a, b);
        EXPECT(t, 1, "          1/", "diff", a, b);
        EXPECT(t, 1, "1 of ", "diff", b, a);
    }
    shape.seed = 2;
    char *c = make_checkpoint(t, "c", &shape);
    EXPECT(t, 1, "v.norm_f.weight", "diff", a, c);
    shape.kind = "gpt2";
    char *d = make_checkpoint(t, "d", &shape);
    EXPECT(t, 1, "only in", "diff", a, d);
    EXPECT(t, 2, "nothing", "diff", a, "/nothing");
    EXPECT(t, 2, "train_gpt ckpt diff A B", "diff", a);
    EXPECT(t, 0, "example", "diff", "--help");
    char *const all[] = {a, b, c, d, file, text};
    for (int i = 0; i < 6; ++i) free(all[i]);
}

// ---- average ----

typedef struct {
    const Shape *shape;  // of [count] sources
    const double *share;
    int count;
    const ParamTable *params;
    StateKind kind;

} Expected;

static double mean_of(const Expected *e, StateKind kind, int param, int64_t index) {
    double sum = 0;
    for (int s = 0; s < e->count; ++s) {
        double x = (double)drawn(&e->shape[s], kind, param, index);
        if (kind == STATE_MASTER && e->shape[s].dtype == DTYPE_BF16 && !e->shape[s].masters)
            x = (double)bf16_to_f32(bf16_from_f32((float)x));
        sum += e->share[s] * x;
    }
    return sum;
}
// The fp64 sum is exact far below fp32 rounding: the stored value is within half a unit in the last place, plus a
// little for the fp64 sums.
static void expect_rounded(float found, double expected, const char *name, int64_t i) {
    double unit = fmax(fabs(expected), 0x1p-126) * 0x1p-24 * 1.0001 + 1e-16;
    if (!(fabs((double)found - expected) <= unit))
        fail_msg("%s[%lld]: %.9g, %.17g", name, (long long)i, found, expected);
}
static bool check_mean(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    const Expected *e = context;
    int64_t real = spec->real_rows * spec->dim[1];
    for (int64_t i = 0; i < real; ++i)
        expect_rounded(values[i], mean_of(e, STATE_MASTER, (int)(spec - e->params->spec), i), spec->name, i);
    return true;
}

static void test_average(void **state) {
    FileTest *t = *state;
    // fp32; bf16 with masters, on several ranks; bf16 without masters; weights only.
    const Shape SHAPES[] = {{"gpt2", 1, DTYPE_F32, false, {.data.world = 1}},
                            {"gpt2", 2, DTYPE_BF16, true, {.data.world = 3, .stage = 1}},
                            {"gpt2", 3, DTYPE_BF16, false, {.data.world = 2, .stage = 1}},
                            {"gpt2", 4, DTYPE_F32, false, {.data.world = 0}}};
    const double SHARES[] = {3.0 / 8, 1.0 / 8, 2.0 / 8, 2.0 / 8};
    char *dir[4];
    static const char *const NAMES[] = {"a", "b", "c", "d"};
    for (int i = 0; i < 4; ++i) dir[i] = make_checkpoint(t, NAMES[i], &SHAPES[i]);
    char *from = xasprintf("from=%s:3,%s:1,%s:2,%s:2", dir[0], dir[1], dir[2], dir[3]);
    char *out = file_test_path(t, "mean"), *to = assign("to", out);
    EXPECT(t, 0, "the mean of 4 models", "average", from, to);
    EXPECT(t, 0, "weights only", "verify", out);
    ModelConfig config;
    ParamTable params;
    file_test_expect_ok(t, ckpt_read_model(&config, &params, out, &t->err));
    Expected expected = {SHAPES, SHARES, 4, &params, STATE_MASTER};
    file_test_expect_ok(t, model_file_read(out, &config, &params, check_mean, &expected, &t->err));
    // The mean of one is itself.
    char *one = assign("from", dir[0]), *same = file_test_path(t, "same"), *to_same = assign("to", same);
    EXPECT(t, 0, "wrote", "average", one, to_same);
    EXPECT(t, 0, "all the same to the bit", "diff", dir[0], same);
    params_free(&params);
    char *const all[] = {from, out, to, one, same, to_same, dir[0], dir[1], dir[2], dir[3]};
    for (int i = 0; i < 10; ++i) free(all[i]);
}

static void test_average_with_state(void **state) {
    FileTest *t = *state;
    const Shape SHAPES[] = {{"qwen3", 1, DTYPE_BF16, true, {.data.world = 1, .muon = true}},
                            {"qwen3", 2, DTYPE_BF16, true, {.data.world = 3, .stage = 1, .muon = true}}};
    const double SHARES[] = {0.5, 0.5};
    char *dir[2] = {make_checkpoint(t, "a", &SHAPES[0]), make_checkpoint(t, "b", &SHAPES[1])};
    char *from = xasprintf("from=%s,%s", dir[0], dir[1]), *out = file_test_path(t, "mean"), *to = assign("to", out);
    EXPECT(t, 0, "the mean of 2", "average", from, to, "optimizer=average");
    EXPECT(t, 0, "matches its manifest\n", "verify", out);
    ModelConfig config;
    ParamTable params;
    file_test_expect_ok(t, ckpt_read_model(&config, &params, out, &t->err));
    Expected expected = {SHAPES, SHARES, 2, &params, STATE_MASTER};
    OptimizerFiles *files;
    StateKept kept;
    file_test_expect_ok(t, ckpt_open_optimizer(&files, &kept, out, &params, &t->err));
    assert_true(kept.muon && kept.masters);
    float *values = xmalloc(to_size(model_file_largest_param(&params)) * sizeof *values);
    for (int p = 0; p < params.count; ++p)
        for (int kind = 0; kind < STATE_KINDS; ++kind) {
            if (!optimizer_files_has(files, (StateKind)kind, p)) continue;
            int64_t elems = params.spec[p].elems;
            file_test_expect_ok(t, optimizer_files_read(files, (StateKind)kind, p, 0, elems, values, &t->err));
            for (int64_t i = 0; i < elems; ++i)
                expect_rounded(values[i], mean_of(&expected, (StateKind)kind, p, i), params.spec[p].name, i);
        }
    free(values);
    optimizer_files_close(files);
    params_free(&params);
    StateFile found;
    file_test_expect_ok(t, ckpt_read_state(&found, out, &t->err));
    assert_int_equal(found.progress.step, 7);
    char *const all[] = {from, out, to, dir[0], dir[1]};
    for (int i = 0; i < 5; ++i) free(all[i]);
}

static void test_average_refuses(void **state) {
    FileTest *t = *state;
    const Shape SHAPES[] = {{"gpt2", 1, DTYPE_F32, false, {.data.world = 1}}, {"qwen3", 1, DTYPE_F32, false, {.data.world = 1}},
                            {"gpt2", 1, DTYPE_F32, false, {.data.world = 1, .muon = true}},
                            {"gpt2", 1, DTYPE_F32, false, {.data.world = 0}}};
    static const char *const NAMES[] = {"a", "b", "c", "d"};
    char *dir[4], *from[4], *to = xasprintf("to=%s/mean", t->dir);
    for (int i = 0; i < 4; ++i) {
        dir[i] = make_checkpoint(t, NAMES[i], &SHAPES[i]);
        from[i] = xasprintf("from=%s,%s", dir[0], dir[i]);
    }
    char *there = assign("to", dir[1]), *negative = xasprintf("from=%s:-1", dir[0]);
    EXPECT(t, 1, "differs from that of", "average", from[1], to);
    EXPECT(t, 1, "differs in kind", "average", from[2], to, "optimizer=average");
    EXPECT(t, 1, "has no optimizer state", "average", from[3], to, "optimizer=average");
    EXPECT(t, 1, "is not overwritten", "average", from[3], there);
    EXPECT(t, 1, "expected a weight above 0", "average", negative, to);
    EXPECT(t, 1, "/nonexistent: cannot open", "average", "from=/nonexistent", to);
    EXPECT(t, 1, "separated by commas", "average", "from=,", to);
    EXPECT(t, 2, "dtype", "average", from[0], to, "dtype=fp8");
    EXPECT(t, 2, "dtype", "average", from[0], to, "dtype=bf16", "optimizer=average");
    EXPECT(t, 2, "from", "average", to);
    EXPECT(t, 0, "example", "average", "--help");
    assert_int_equal(file_test_count_entries(t->dir), 4);
    for (int i = 0; i < 4; ++i) {
        free(dir[i]);
        free(from[i]);
    }
    free(to);
    free(there);
    free(negative);
}

// ---- export ----

static void test_export_of_shards(void **state) {
    FileTest *t = *state;
    Shape shape = {"gpt2", 1, DTYPE_F32, false, {.data.world = 1}};
    char *plain = make_checkpoint(t, "plain", &shape);
    shape.ranks = (PartitionOptions){.data.world = 4, .stage = 3};
    char *many = make_checkpoint(t, "many", &shape), *from[2] = {assign("from", plain), assign("from", many)};
    static const char *const FORMATS[] = {"format=hf", "format=llmc"};
    for (int f = 0; f < 2; ++f) {
        char *out[2] = {xasprintf("%s/from_plain_%d", t->dir, f), xasprintf("%s/from_many_%d", t->dir, f)};
        for (int side = 0; side < 2; ++side) {
            char *to = assign("to", out[side]);
            EXPECT(t, 0, "wrote", "export", from[side], to, FORMATS[f], "dtype=bf16");
            free(to);
        }
        if (f == 0) expect_same_files(t, out[0], out[1]);
        else {
            char *text[2];
            size_t bytes[2];
            for (int side = 0; side < 2; ++side)
                file_test_expect_ok(t, file_read_all(out[side], 1 << 24, &text[side], &bytes[side], &t->err));
            assert_true(bytes[0] == bytes[1] && memcmp(text[0], text[1], bytes[0]) == 0);
            free(text[0]);
            free(text[1]);
        }
        free(out[0]);
        free(out[1]);
    }
    char *const all[] = {plain, many, from[0], from[1]};
    for (int i = 0; i < 4; ++i) free(all[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_reshard_both_ways), FILE_TEST(test_reshard_refuses),    FILE_TEST(test_verify),
        FILE_TEST(test_diff),              FILE_TEST(test_average),            FILE_TEST(test_average_with_state),
        FILE_TEST(test_average_refuses),   FILE_TEST(test_export_of_shards),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
