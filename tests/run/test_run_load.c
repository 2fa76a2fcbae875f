// test_run_load.c: whole runs in and out of checkpoints: to the bit, across dtypes, and refused where they do not
// fit.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "llmc/base/rng.h"
#include "llmc/run/run_save.h"
#include "llmc/run/run_load.h"
#include "tests/support/file_test.h"
#include "tests/support/model_test.h"
#include "tests/support/shard_test.h"

#define OVERRIDES 40
typedef struct {
    char *text[OVERRIDES];
    int count;
} Overrides;

static void add(Overrides *o, char *text) {
    assert_true(o->count < OVERRIDES);
    o->text[o->count++] = text;
}

// A tiny run on random bytes in the test's directory; `extra` options, separated by spaces, win.
static void load_config(FileTest *t, RunConfig *config, const char *out_dir, const char *extra) {
    char *shard = file_test_path(t, "train.bin");
    if (!file_exists(shard)) {
        int32_t tokens[900];
        for (int i = 0; i < 900; ++i) tokens[i] = (int32_t)(rng_u32(1, RNG_STREAM_TEST, (uint64_t)i) % 256);
        shard_test_write(shard, 2, tokens, 900, 257, -1);
    }
    Overrides o = {.count = 0};
    static const char *const BASE[] = {
        "model=llama:d1", "layers=2", "channels=16", "heads=2", "kv_heads=1", "ffn=24", "vocab=300", "max_seq_len=16",
        "qk_norm=true", "batch_rows=2", "batch_tokens=64", "steps=12", "lr=0.01", "warmup_steps=2",
        "progress_bar=false", "tokenizer=bytes", "threads=2", "init_std=0.1"};
    for (size_t i = 0; i < sizeof BASE / sizeof BASE[0]; ++i) add(&o, xstrdup(BASE[i]));
    add(&o, xasprintf("train=%s", shard));
    add(&o, xasprintf("out_dir=%s/%s", t->dir, out_dir));
    char *words = xstrdup(extra), *rest = words;
    for (char *word; (word = strsep(&rest, " ")) != NULL;)
        if (*word != '\0') add(&o, xstrdup(word));
    file_test_expect_ok(t, config_load(config, NULL, o.count, o.text, NULL, &t->err));
    while (o.count > 0) free(o.text[--o.count]);
    free(words);
    free(shard);
}

static Run *open_run(FileTest *t, const char *out_dir, const char *extra) {
    RunConfig *config = xmalloc(sizeof *config);
    Run *run = xmalloc(sizeof *run);
    load_config(t, config, out_dir, extra);
    file_test_expect_ok(t, run_open(run, config, &t->err));
    free(config);
    return run;
}
static void close_run(Run *run) {
    run_close(run);
    free(run);
}

// The steps of the training loop without its reports. Returns the sum of the losses.
static double train_steps(FileTest *t, Run *run, int count) {
    double losses = 0;
    for (int i = 0; i < count; ++i) {
        run->batch = loader_next(run->loader, &t->err);
        file_test_expect_ok(t, run_begin_step(run, 0, &t->err));
        const StepBatch *step = run->batch;
        model_begin_step(&run->model);
        for (int64_t m = 0; m < step->micro_batches; ++m) {
            model_forward(&run->model, &step->batch[m], 1 / step->weight_sum, true);
            model_backward(&run->model);
        }
        int64_t done = run->progress.step;
        optimizer_step(&run->optimizer, &run->model, &run->config, schedule_lr(&run->schedule, done),
                       schedule_lr_factor(&run->schedule, done), done + 1);
        assert_int_equal(model_test_stats(&run->optimizer, &run->model).skip, 0);
        losses += model_test_loss_sum(&run->model);
        run->progress.step = done + 1;
    }
    return losses;
}

typedef struct {
    int64_t elems, v_elems;
    float *master, *m, *v;  // master: NULL in runs without
    uint16_t *weights;      // bf16 runs
} Bits;

static Bits bits_of(const Run *run) {
    const Model *model = &run->model;
    Bits b = {.elems = model->params.total_elems, .v_elems = model->part.v_elems};
    if (model->master != NULL) b.master = model_test_download(run->be, model->master, b.elems);
    b.m = model_test_download(run->be, run->optimizer.m, b.elems);
    b.v = model_test_download(run->be, run->optimizer.v, b.v_elems);
    if (run->config.dtype != DTYPE_BF16) return b;
    b.weights = xmalloc(to_size(b.elems) * sizeof *b.weights);
    run->be->download(run->be, b.weights, model->weights, to_size(b.elems) * sizeof *b.weights);
    return b;
}
static void bits_free(Bits *b) {
    free(b->master);
    free(b->m);
    free(b->v);
    free(b->weights);
}
// Everything that the next step depends on.
static void check_same_bits(const Bits *a, const Bits *b) {
    assert_true(a->elems == b->elems && a->v_elems == b->v_elems);
    if (a->master != NULL && b->master != NULL)
        assert_memory_equal(a->master, b->master, to_size(a->elems) * sizeof *a->master);
    assert_memory_equal(a->m, b->m, to_size(a->elems) * sizeof *a->m);
    assert_memory_equal(a->v, b->v, to_size(a->v_elems) * sizeof *a->v);
    if (a->weights != NULL && b->weights != NULL)
        assert_memory_equal(a->weights, b->weights, to_size(a->elems) * sizeof *a->weights);
}
static void check_rounded(const Bits *b) {
    if (b->master == NULL) return;
    for (int64_t i = 0; i < b->elems; ++i) assert_int_equal(b->weights[i], bf16_from_f32(b->master[i]));
}

// Five steps and a checkpoint, then three more; a run resumed from the checkpoint is the same at both points.
static void check_resume(FileTest *t, const char *out_dir, const char *extra) {
    Run *run = open_run(t, out_dir, extra);
    train_steps(t, run, 5);
    run->progress.seconds = 1234.375;
    run->progress.bad_steps = 3;
    run->progress.bad_in_row = 1;
    file_test_expect_ok(t, run_save(run, &t->err) && run_save_finish(run, &t->err));
    Bits at_5 = bits_of(run);
    double losses = train_steps(t, run, 3);
    Bits at_8 = bits_of(run);
    close_run(run);

    char *other = xasprintf("%s seed=77", extra);  // fresh weights would be others
    run = open_run(t, out_dir, extra);
    assert_int_equal(run->progress.step, 5);
    assert_int_equal(run->progress.bad_steps, 3);
    assert_int_equal(run->progress.bad_in_row, 1);
    assert_true(run->progress.seconds == 1234.375);
    Bits resumed = bits_of(run);
    check_same_bits(&resumed, &at_5);
    bits_free(&resumed);
    assert_true(train_steps(t, run, 3) == losses);
    resumed = bits_of(run);
    check_same_bits(&resumed, &at_8);
    if (resumed.weights != NULL) check_rounded(&resumed);
    bits_free(&resumed);
    close_run(run);

    // Into a run elsewhere, over weights that are not its own.
    char *elsewhere = xasprintf("%s_elsewhere", out_dir), *dir = xasprintf("%s/%s/step_00000005", t->dir, out_dir);
    run = open_run(t, elsewhere, other);
    train_steps(t, run, 1);
    file_test_expect_ok(t, run_load(run, dir, &t->err));
    resumed = bits_of(run);
    check_same_bits(&resumed, &at_5);
    bits_free(&resumed);
    close_run(run);
    free(other);
    free(elsewhere);
    free(dir);
    bits_free(&at_5);
    bits_free(&at_8);
}

static void test_resume_to_the_bit(void **state) {
    FileTest *t = *state;
    check_resume(t, "f_a", "dtype=fp32");
    check_resume(t, "f_m", "dtype=fp32 optimizer=muon");
    check_resume(t, "b_a", "dtype=bf16");
    check_resume(t, "b_m", "dtype=bf16 optimizer=muon recompute=block");
    check_resume(t, "g_m", "dtype=bf16 optimizer=muon model=gpt2:d1 vocab=257 qk_norm=false kv_heads=2");
    check_resume(t, "s_a", "dtype=bf16 master_weights=false");
    check_resume(t, "s_m", "dtype=bf16 master_weights=false optimizer=muon");
    // No class of transformers computes this one.
    check_resume(t, "w_a", "dtype=bf16 window=3 logit_softcap=5 activation=relu2 tied=true");
}

// Changing dtype keeps masters and moments; only what bf16 weights cannot hold is rounded.
static void check_dtypes(FileTest *t, const char *optimizer, const char *from, const char *to) {
    char *first = xasprintf("%s_%s", optimizer, from), *second = xasprintf("%s_then_%s", first, to);
    char *extra = xasprintf("dtype=%s optimizer=%s", from, optimizer);
    char *dir = xasprintf("%s/%s/step_00000003", t->dir, first);
    Run *run = open_run(t, first, extra);
    train_steps(t, run, 3);
    file_test_expect_ok(t, run_save(run, &t->err) && run_save_finish(run, &t->err));
    Bits saved = bits_of(run);
    close_run(run);
    free(extra);
    extra = xasprintf("dtype=%s optimizer=%s resume=%s", to, optimizer, dir);
    run = open_run(t, second, extra);
    assert_int_equal(run->progress.step, 3);
    Bits loaded = bits_of(run);
    check_same_bits(&loaded, &saved);
    if (loaded.weights != NULL) check_rounded(&loaded);
    train_steps(t, run, 1);
    close_run(run);
    bits_free(&saved);
    bits_free(&loaded);
    free(first);
    free(second);
    free(extra);
    free(dir);
}
static void test_another_dtype(void **state) {
    FileTest *t = *state;
    check_dtypes(t, "adamw", "fp32", "bf16");
    check_dtypes(t, "adamw", "bf16", "fp32");
    check_dtypes(t, "muon", "fp32", "bf16");
    check_dtypes(t, "muon", "bf16", "fp32");
}

// With masters or without: bf16 weights stay to the bit whenever they were or become the whole value, masters that
// are new begin as the weights, moments stay.
static void check_masters(FileTest *t, const char *name, const char *from, const char *to) {
    char *first = xasprintf("from_%s", name), *second = xasprintf("to_%s", name);
    char *dir = xasprintf("%s/%s/step_00000003", t->dir, first);
    Run *run = open_run(t, first, from);
    train_steps(t, run, 3);
    file_test_expect_ok(t, run_save(run, &t->err) && run_save_finish(run, &t->err));
    Bits saved = bits_of(run);
    close_run(run);
    char *extra = xasprintf("%s resume=%s", to, dir);
    run = open_run(t, second, extra);
    Bits loaded = bits_of(run);
    assert_true((saved.master == NULL) != (loaded.master == NULL));
    check_same_bits(&loaded, &saved);
    const Bits *with = saved.master != NULL ? &saved : &loaded, *without = saved.master != NULL ? &loaded : &saved;
    for (int64_t i = 0; i < saved.elems; ++i) {
        assert_int_equal(without->weights[i], bf16_from_f32(with->master[i]));
        if (without == &saved) assert_true(with->master[i] == bf16_to_f32(saved.weights[i]));
    }
    train_steps(t, run, 1);
    close_run(run);
    bits_free(&saved);
    bits_free(&loaded);
    free(first);
    free(second);
    free(dir);
    free(extra);
}
static void test_other_masters(void **state) {
    FileTest *t = *state;
    check_masters(t, "none_a", "dtype=bf16", "dtype=bf16 master_weights=false");
    check_masters(t, "some_a", "dtype=bf16 master_weights=false", "dtype=bf16");
    check_masters(t, "some_m", "dtype=bf16 master_weights=false optimizer=muon", "dtype=bf16 optimizer=muon");
    check_masters(t, "fp32", "dtype=bf16 master_weights=false", "dtype=fp32");
    check_masters(t, "from_fp32", "dtype=fp32 optimizer=muon", "dtype=bf16 master_weights=false optimizer=muon");
}

// ---- what does not fit ----

static void check_refused(FileTest *t, const char *dir, const char *extra, const char *mention) {
    char *out_dir = xasprintf("refused_%d", file_test_count_entries(t->dir));
    Run *run = open_run(t, out_dir, extra);
    file_test_expect_error(t, run_load(run, dir, &t->err), mention);
    close_run(run);
    free(out_dir);
}

// A checkpoint of AdamW in bf16; caller frees the name.
static char *make_checkpoint(FileTest *t, const char *out_dir, const char *extra) {
    Run *run = open_run(t, out_dir, extra);
    train_steps(t, run, 1);
    file_test_expect_ok(t, run_save(run, &t->err) && run_save_finish(run, &t->err));
    close_run(run);
    return xasprintf("%s/%s/step_00000001", t->dir, out_dir);
}

static void test_another_run(void **state) {
    FileTest *t = *state;
    char *dir = make_checkpoint(t, "run", "");
    check_refused(t, dir, "optimizer=muon", "optimizer=adamw");
    static const char *const ARCHITECTURES[] = {
        "layers=1",  "channels=24 head_size=8", "heads=4 kv_heads=1", "ffn=25",
        "vocab=299", "qk_norm=false",           "window=4",           "logit_softcap=3",
        "tied=true", "rope_theta=5000",         "norm_eps=1e-6",      "qkv_bias=true"};
    for (size_t i = 0; i < sizeof ARCHITECTURES / sizeof ARCHITECTURES[0]; ++i)
        check_refused(t, dir, ARCHITECTURES[i], "architecture");

    // Another tokenizer of a vocabulary that fits.
    WordCounts *counts = word_counts_new();
    static const char TEXT[] = "another another another tokenizer";
    word_counts_add(counts, TEXT, (int64_t)sizeof TEXT - 1);
    Tokenizer *bpe = tokenizer_train(counts, &(TokenizerTraining){.vocab = 260, .min_count = 1}, &t->err);
    file_test_expect_ok(t, bpe != NULL && tokenizer_save(bpe, t->dir, &t->err));
    tokenizer_free(bpe);
    word_counts_free(counts);
    char *extra = xasprintf("tokenizer=%s", t->dir);
    check_refused(t, dir, extra, "tokenizer");
    free(extra);
    char *none = xasprintf("%s/nowhere", t->dir);
    check_refused(t, none, "", "nowhere");
    free(none);
    free(dir);
}

static void read_text(FileTest *t, char **text, size_t *bytes, const char *dir, const char *name) {
    char *path = path_join(dir, name);
    file_test_expect_ok(t, file_read_all(path, 1 << 24, text, bytes, &t->err));
    free(path);
}
static void write_text(FileTest *t, const char *dir, const char *name, const char *text, size_t bytes) {
    char *path = path_join(dir, name);
    file_test_expect_ok(t, file_write_atomic(path, text, bytes, &t->err));
    free(path);
}

// The header's length does not change: `to` is as long as `from`.
static void check_optimizer_file(FileTest *t, const char *dir, const char *from, const char *to,
                                 const char *mention) {
    size_t bytes;
    char *good;
    read_text(t, &good, &bytes, dir, "optimizer.safetensors");
    char *bad = xmalloc(bytes);
    memcpy(bad, good, bytes);
    assert_int_equal(strlen(from), strlen(to));
    char *at = memmem(bad, bytes, from, strlen(from));
    if (at == NULL) fail_msg("optimizer.safetensors does not hold %s", from);
    memcpy(at, to, strlen(to));
    write_text(t, dir, "optimizer.safetensors", bad, bytes);
    check_refused(t, dir, "dtype=bf16", mention);
    write_text(t, dir, "optimizer.safetensors", good, bytes);
    free(good);
    free(bad);
}

static void test_damaged(void **state) {
    FileTest *t = *state;
    char *dir = make_checkpoint(t, "run", "dtype=bf16");
    check_optimizer_file(t, dir, "\"m.block.0.norm1.weight\"", "\"n.block.0.norm1.weight\"",
                         "n.block.0.norm1.weight");
    check_optimizer_file(t, dir, "\"v.norm_f.weight\"", "\"w.norm_f.weight\"", "w.norm_f.weight");
    check_optimizer_file(t, dir, "\"master.wte\"", "\"Master.wte\"", "Master.wte");
    check_optimizer_file(t, dir, "[16,24]", "[24,16]", "fp32 values");

    static const char *const FILES[] = {"optimizer.safetensors", "state.json", "model.safetensors", "config.json"};
    for (int i = 0; i < 4; ++i) {
        size_t bytes;
        char *good;
        read_text(t, &good, &bytes, dir, FILES[i]);
        write_text(t, dir, FILES[i], good, bytes / 2);
        check_refused(t, dir, "dtype=bf16", FILES[i]);
        char *path = path_join(dir, FILES[i]);
        remove(path);
        check_refused(t, dir, "dtype=bf16", i == 2 ? "safetensors" : FILES[i]);
        free(path);
        write_text(t, dir, FILES[i], good, bytes);
        free(good);
    }
    // Nothing of this has harmed the checkpoint itself.
    Run *run = open_run(t, "again", "dtype=bf16");
    file_test_expect_ok(t, run_load(run, dir, &t->err));
    assert_int_equal(run->progress.step, 1);
    close_run(run);
    // resume=DIR looks at the hashes first.
    size_t bytes;
    char *good;
    read_text(t, &good, &bytes, dir, "state.json");
    char *bad = file_test_replaced(good, "\"step\":\t1", "\"step\":\t2");
    write_text(t, dir, "state.json", bad, strlen(bad));
    RunConfig *config = xmalloc(sizeof *config);
    run = xmalloc(sizeof *run);
    char *extra = xasprintf("dtype=bf16 resume=%s", dir);
    load_config(t, config, "verified", extra);
    file_test_expect_error(t, run_open(run, config, &t->err), "state.json");
    run_close(run);
    free(run);
    free(config);
    free(extra);
    free(good);
    free(bad);
    free(dir);
}

// ---- when saving fails ----

static bool save_and_finish(Run *run, Error *err) { return run_save(run, err) && run_save_finish(run, err); }

static void check_full_disk(FileTest *t, const char *out_dir, const char *extra) {
    Run *run = open_run(t, out_dir, extra);
    train_steps(t, run, 1);
    file_test_expect_ok(t, save_and_finish(run, &t->err));
    train_steps(t, run, 1);
    file_test_limit_file_size(8192);
    bool stopped = save_and_finish(run, &t->err);
    run->config.on_save_error = ON_SAVE_ERROR_CONTINUE;
    Error other = {""};
    bool went_on = save_and_finish(run, &other);
    file_test_limit_file_size(0);
    file_test_expect_error(t, stopped, "safetensors");
    assert_true(went_on && other.message[0] == '\0');
    char *skipped = NULL, *newest = checkpoint_newest(run->config.out_dir, &skipped);
    assert_int_equal(checkpoint_step(newest), 1);
    assert_null(skipped);
    free(newest);
    // With room again it goes on.
    file_test_expect_ok(t, save_and_finish(run, &t->err));
    newest = checkpoint_newest(run->config.out_dir, &skipped);
    assert_int_equal(checkpoint_step(newest), 2);
    free(newest);
    close_run(run);
}
static void test_full_disk(void **state) {
    check_full_disk(*state, "beside", "on_save_error=stop");
    check_full_disk(*state, "at_once", "on_save_error=stop async_save=false");
}

// What is saved is the moment of the call, however far training has gone when it is written; and a run that ends, in
// whatever way, first finishes what it was writing.
static void test_saved_beside_training(void **state) {
    FileTest *t = *state;
    static const char *const EXTRAS[] = {"dtype=fp32", "dtype=bf16 optimizer=muon", "dtype=bf16 master_weights=false",
                                         "model=gpt2:d1 vocab=257 qk_norm=false kv_heads=2 async_save=false"};
    for (int i = 0; i < 4; ++i) {
        char *out_dir = xasprintf("beside_%d", i);
        Run *run = open_run(t, out_dir, EXTRAS[i]);
        train_steps(t, run, 2);
        Bits at_2 = bits_of(run);
        file_test_expect_ok(t, run_save(run, &t->err));
        train_steps(t, run, 2);
        close_run(run);
        run = open_run(t, out_dir, EXTRAS[i]);
        assert_int_equal(run->progress.step, 2);
        Bits resumed = bits_of(run);
        check_same_bits(&resumed, &at_2);
        bits_free(&resumed);
        bits_free(&at_2);
        close_run(run);
        free(out_dir);
    }
}

// A second save waits for the first; and the votes of steps are enough to see one through.
static void test_saves_follow_each_other(void **state) {
    FileTest *t = *state;
    Run *run = open_run(t, "run", "keep_last=0");
    for (int i = 1; i <= 3; ++i) {
        train_steps(t, run, 1);
        file_test_expect_ok(t, run_save(run, &t->err));
    }
    double until = now_seconds() + 20;
    char *last = xasprintf("%s/step_00000003", run->config.out_dir);
    while (!dir_exists(last) && now_seconds() < until) {
        double votes[SAVER_VOTES];
        usleep(1000);
        run_save_vote(run, votes);
        file_test_expect_ok(t, run_save_poll(run, votes, &t->err));
    }
    for (int i = 1; i <= 3; ++i) {
        char *dir = xasprintf("%s/step_%08d", run->config.out_dir, i);
        file_test_expect_ok(t, checkpoint_verify(dir, true, &t->err));
        free(dir);
    }
    free(last);
    close_run(run);
}

static void test_keep_last(void **state) {
    FileTest *t = *state;
    Run *run = open_run(t, "run", "keep_last=2");
    for (int i = 0; i < 4; ++i) {
        train_steps(t, run, 1);
        file_test_expect_ok(t, run_save(run, &t->err) && run_save_finish(run, &t->err));
    }
    static const bool THERE[] = {false, false, true, true};
    for (int i = 0; i < 4; ++i) {
        char *dir = xasprintf("%s/step_%08d", run->config.out_dir, i + 1);
        assert_int_equal(dir_exists(dir), THERE[i]);
        free(dir);
    }
    close_run(run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_resume_to_the_bit), FILE_TEST(test_another_dtype), FILE_TEST(test_other_masters),
        FILE_TEST(test_another_run),       FILE_TEST(test_damaged),       FILE_TEST(test_full_disk),
        FILE_TEST(test_keep_last),         FILE_TEST(test_saved_beside_training),
        FILE_TEST(test_saves_follow_each_other),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
