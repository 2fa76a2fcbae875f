// test_checkpoint.c: a checkpoint is complete or absent: kills at every stage, full disks, damage, pruning.
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "llmc/checkpoint/checkpoint.h"
#include "tests/support/file_test.h"

// ---- helpers ----

static char *run_path(const FileTest *t) { return file_test_path(t, "run"); }

static void write_file(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
    free(path);
}

static bool save(const FileTest *t, int64_t step, const char *weights, Error *err) {
    char *run = run_path(t);
    CheckpointWriter writer;
    bool ok = checkpoint_begin(&writer, run, step, err);
    free(run);
    if (!ok) return false;
    write_file(writer.dir, "model.safetensors", weights);
    ok = checkpoint_write_text(&writer, "state.json", "{\"step\":1}", err);
    if (!ok) {
        checkpoint_abort(&writer);
        return false;
    }
    return checkpoint_commit(&writer, err);
}
static void save_ok(FileTest *t, int64_t step) { file_test_expect_ok(t, save(t, step, "0123456789", &t->err)); }

static char *step_file(const FileTest *t, int64_t step, const char *name) {
    return xasprintf("%s/run/step_%08lld%s%s", t->dir, (long long)step, name[0] ? "/" : "", name);
}

// The newest is `step` (-1: none), and the text about skipped ones mentions `skipped` (NULL: none were skipped).
static void expect_newest(const FileTest *t, int64_t step, const char *mention) {
    char *run = run_path(t), *skipped, *newest = checkpoint_newest(run, &skipped);
    if (step < 0) assert_null(newest);
    else {
        assert_non_null(newest);
        assert_int_equal(checkpoint_step(newest), step);
        assert_true(checkpoint_verify(newest, true, NULL));
    }
    if (mention == NULL) assert_null(skipped);
    else {
        assert_non_null(skipped);
        if (strstr(skipped, mention) == NULL) fail_msg("'%s' does not mention '%s'", skipped, mention);
    }
    free(run);
    free(skipped);
    free(newest);
}

static int count_steps(const FileTest *t) {
    char *run = run_path(t);
    int count = file_test_count_entries(run);
    free(run);
    return count;
}

static bool step_exists(const FileTest *t, int64_t step) {
    char *path = step_file(t, step, "");
    bool exists = dir_exists(path);
    free(path);
    return exists;
}

// ---- tests ----

static void test_names(void **state) {
    (void)state;
    static const struct {
        const char *dir;
        int64_t step;
    } CASES[] = {{"step_00000000", 0},
                 {"a/b/step_00001234", 1234},
                 {"a/step_00001234/", 1234},
                 {"step_123456789", 123456789},
                 {"step_1234", -1},
                 {"step_0000123x", -1},
                 {"step_-0000123", -1},
                 {".tmp-step_00001234", -1},
                 {"step_", -1},
                 {"", -1},
                 {"/", -1},
                 {"step_00001234/model.safetensors", -1},
                 {"step_99999999999999999999", -1}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i)
        if (checkpoint_step(CASES[i].dir) != CASES[i].step)
            fail_msg("'%s': expected %lld, found %lld", CASES[i].dir, (long long)CASES[i].step,
                     (long long)checkpoint_step(CASES[i].dir));
}

static void test_write_and_verify(void **state) {
    FileTest *t = *state;
    expect_newest(t, -1, NULL);  // no run directory yet
    save_ok(t, 7);
    file_test_expect_ok(t, save(t, 12, "", &t->err));
    expect_newest(t, 12, NULL);
    assert_int_equal(count_steps(t), 2);
    char *path = step_file(t, 12, CHECKPOINT_MANIFEST), *text;
    file_test_expect_ok(t, file_read_all(path, 4096, &text, NULL, &t->err));
    assert_non_null(strstr(text, "\"model.safetensors\""));
    assert_non_null(strstr(text, "99aa06d3014798d86001c324468d497f"));  // XXH3-128 of nothing, as published
    assert_non_null(strstr(text, "\"state.json\""));
    free(text);
    free(path);
}

static void test_damage_is_named(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *name, *text, *mention;  // text NULL: the file is removed
        bool only_deep;
    } CASES[] = {
        {"model.safetensors", "01234", "expected 10 bytes, found 5", false},
        {"model.safetensors", "01234567890", "expected 10 bytes, found 11", false},
        {"model.safetensors", "0123456788", "changed since it was written", true},
        {"state.json", NULL, "state.json: missing", false},
        {CHECKPOINT_MANIFEST, NULL, "the checkpoint is incomplete", false},
        {CHECKPOINT_MANIFEST, "", "not valid JSON", false},
        {CHECKPOINT_MANIFEST, "{}", "expected an object with format", false},
        {CHECKPOINT_MANIFEST, "{\"format\":\"tokamak-manifest-2\",\"files\":{}}", "expected an object with format",
         false},
        {CHECKPOINT_MANIFEST, "{\"format\":\"tokamak-manifest-1\",\"format_version\":\"1\",\"files\":{}}",
         "expected \"format_version\" to be a whole number", false},
        {CHECKPOINT_MANIFEST,
         "{\"format\":\"tokamak-manifest-1\",\"files\":{\"../x\":{\"bytes\":0,\"xxh3_128\":\"\"}}}", "malformed",
         false},
        {CHECKPOINT_MANIFEST,
         "{\"format\":\"tokamak-manifest-1\",\"files\":{\"a\":{\"bytes\":-1.5,\"xxh3_128\":\"00\"}}}", "malformed",
         false},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        save_ok(t, 7);
        save_ok(t, 12);
        char *dir = step_file(t, 12, ""), *path = step_file(t, 12, CASES[i].name);
        file_test_expect_ok(t, checkpoint_verify(dir, true, &t->err));
        if (CASES[i].text == NULL) assert_int_equal(unlink(path), 0);
        else write_file(dir, CASES[i].name, CASES[i].text);
        file_test_expect_error(t, checkpoint_verify(dir, true, &t->err), CASES[i].mention);
        assert_true(checkpoint_verify(dir, false, NULL) == CASES[i].only_deep);
        expect_newest(t, 7, CASES[i].mention);
        free(dir);
        free(path);
    }
    file_test_expect_error(t, checkpoint_verify("/nonexistent/step_00000001", false, &t->err), "no such directory");
}

// If a process is killed at any stage, the previous checkpoint stays the newest; the next writer removes the leftovers.
enum { STAGES = 6 };
static void write_and_die(const FileTest *t, int stage) {
    char *run = run_path(t);
    CheckpointWriter writer;
    if (!checkpoint_begin(&writer, run, 12, NULL)) _exit(1);
    if (stage == 0) kill(getpid(), SIGKILL);
    write_file(writer.dir, "model.safetensors", "01234");
    if (stage == 1) kill(getpid(), SIGKILL);
    write_file(writer.dir, "model.safetensors", "0123456789");
    if (stage == 2) kill(getpid(), SIGKILL);
    checkpoint_write_text(&writer, "state.json", "{}", NULL);
    if (stage == 3) kill(getpid(), SIGKILL);
    if (stage == 4) {  // inside the manifest's own write
        write_file(writer.dir, CHECKPOINT_MANIFEST ".tmp", "{\"format\":");
        kill(getpid(), SIGKILL);
    }
    if (!checkpoint_commit(&writer, NULL)) _exit(1);
    if (stage == 5) kill(getpid(), SIGKILL);
    _exit(0);
}
static void test_kill_at_every_stage(void **state) {
    FileTest *t = *state;
    save_ok(t, 7);
    for (int stage = 0; stage < STAGES; ++stage) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) write_and_die(t, stage);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        expect_newest(t, stage == STAGES - 1 ? 12 : 7, NULL);  // temporary directories are ignored
        assert_int_equal(count_steps(t), 2);
    }
    save_ok(t, 13);
    assert_int_equal(count_steps(t), 3);
    expect_newest(t, 13, NULL);
}

// Kills at arbitrary moments: a child saves steps 1, 2, 3, ... as fast as it can and is killed some time after it reports
// progress.
static void test_kill_at_random_moments(void **state) {
    FileTest *t = *state;
    int64_t last = 0;
    save_ok(t, 0);
    for (int round = 0; round < 30; ++round) {
        int progress[2];
        assert_int_equal(pipe(progress), 0);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            char *run = run_path(t);
            const CheckpointRetention retention = {.keep_last = 2, .whole_step = -1};
            for (int64_t step = last + 1;; ++step)
                if (!save(t, step, "0123456789", NULL) || !checkpoint_prune(run, &retention, NULL) ||
                    (step == last + 1 && write(progress[1], "x", 1) != 1))
                    _exit(1);
        }
        close(progress[1]);  // then a failed child closes the pipe
        char seen;
        assert_int_equal(read(progress[0], &seen, 1), 1);
        close(progress[0]);
        usleep((useconds_t)(137 * round));
        kill(child, SIGKILL);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        char *run = run_path(t), *skipped, *newest = checkpoint_newest(run, &skipped);
        assert_non_null(newest);
        assert_null(skipped);
        assert_true(checkpoint_step(newest) > last);
        last = checkpoint_step(newest);
        free(newest);
        free(run);
    }
}

// A newer format is not skipped or overwritten: it is the newest, and reading it fails with a message.
static void test_newer_format(void **state) {
    FileTest *t = *state;
    save_ok(t, 7);
    save_ok(t, 8);
    char *run = run_path(t), *dir = xasprintf("%s/step_00000008", run), *path = path_join(dir, CHECKPOINT_MANIFEST);
    char *text, *newer;
    assert_true(file_read_all(path, 1 << 20, &text, NULL, &t->err));
    newer = file_test_replaced(text, "\"format_version\":\t1", "\"format_version\":\t2");
    assert_true(file_write_atomic(path, newer, strlen(newer), &t->err));
    char *skipped, *newest = checkpoint_newest(run, &skipped);
    assert_string_equal(newest, dir);
    assert_null(skipped);
    for (int deep = 0; deep < 2; ++deep)
        file_test_expect_error(t, checkpoint_verify(dir, deep, &t->err),
                               "step_00000008/MANIFEST.json: this checkpoint's manifest has format version 2, this program "
                               "reads versions up to 1: use the version of the program that wrote it, or a later one");
    free(newest);
    free(newer);
    free(text);
    free(path);
    free(dir);
    free(run);
}

static void test_full_disk(void **state) {
    FileTest *t = *state;
    save_ok(t, 7);
    char *run = run_path(t);
    CheckpointWriter writer;
    // No space for the state.
    char *large = xmalloc(100001);
    memset(large, 'x', 100000);
    large[100000] = '\0';
    file_test_expect_ok(t, checkpoint_begin(&writer, run, 12, &t->err));
    file_test_limit_file_size(50000);
    bool ok = checkpoint_write_text(&writer, "state.json", large, &t->err);
    file_test_expect_error(t, ok, "state.json: cannot write: File too large");
    checkpoint_abort(&writer);
    file_test_limit_file_size(0);
    // No space for the manifest: commit fails and cleans up.
    file_test_expect_ok(t, checkpoint_begin(&writer, run, 12, &t->err));
    file_test_expect_ok(t, checkpoint_write_text(&writer, "state.json", large, &t->err));
    file_test_limit_file_size(20);
    ok = checkpoint_commit(&writer, &t->err);
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, CHECKPOINT_MANIFEST ": cannot write: File too large");
    assert_int_equal(count_steps(t), 1);
    expect_newest(t, 7, NULL);
    save_ok(t, 12);
    expect_newest(t, 12, NULL);
    free(large);
    free(run);
}

static void test_unwritable_places(void **state) {
    FileTest *t = *state;
    CheckpointWriter writer;
    file_test_write(t, "file", "x", 1);
    char *path = file_test_path(t, "file");
    file_test_expect_error(t, checkpoint_begin(&writer, path, 1, &t->err), "cannot create directory");
    free(path);
    path = file_test_path(t, "absent/model");
    file_test_expect_error(t, checkpoint_begin_at(&writer, path, &t->err), "cannot create directory");
    free(path);
    if (geteuid() == 0) return;  // root may write anywhere
    path = file_test_path(t, "run");
    assert_int_equal(mkdir(path, 0555), 0);
    file_test_expect_error(t, checkpoint_begin(&writer, path, 1, &t->err), "Permission denied");
    assert_int_equal(chmod(path, 0755), 0);
    free(path);
}

static void test_saving_a_step_again_replaces_it(void **state) {
    FileTest *t = *state;
    save_ok(t, 7);
    file_test_expect_ok(t, save(t, 7, "abcdefghij", &t->err));
    assert_int_equal(count_steps(t), 1);
    expect_newest(t, 7, NULL);
    char *path = step_file(t, 7, "model.safetensors"), *text;
    file_test_expect_ok(t, file_read_all(path, 100, &text, NULL, &t->err));
    assert_string_equal(text, "abcdefghij");
    free(text);
    free(path);
}

static void test_any_path(void **state) {
    FileTest *t = *state;
    char *path = file_test_path(t, "exported/");
    CheckpointWriter writer;
    file_test_expect_ok(t, checkpoint_begin_at(&writer, path, &t->err));
    assert_false(dir_exists(path));
    file_test_expect_ok(t, checkpoint_write_text(&writer, "config.json", "{}", &t->err));
    file_test_expect_ok(t, checkpoint_commit(&writer, &t->err));
    file_test_expect_ok(t, checkpoint_verify(path, true, &t->err));
    assert_int_equal(file_test_count_entries(t->dir), 1);
    free(path);
}

static void test_only_plain_files(void **state) {
    FileTest *t = *state;
    char *run = run_path(t);
    CheckpointWriter writer;
    file_test_expect_ok(t, checkpoint_begin(&writer, run, 1, &t->err));
    char *inner = path_join(writer.dir, "inner");
    assert_int_equal(mkdir(inner, 0755), 0);
    file_test_expect_error(t, checkpoint_commit(&writer, &t->err), "plain files only");
    assert_int_equal(count_steps(t), 0);
    free(inner);
    free(run);
}

static void test_abort_leaves_nothing(void **state) {
    FileTest *t = *state;
    char *run = run_path(t);
    CheckpointWriter writer;
    file_test_expect_ok(t, checkpoint_begin(&writer, run, 1, &t->err));
    write_file(writer.dir, "model.safetensors", "x");
    checkpoint_abort(&writer);
    assert_int_equal(count_steps(t), 0);
    free(run);
}

static void prune_keeping(FileTest *t, int64_t keep_last, int64_t keep_every, int64_t whole_step) {
    char *run = run_path(t);
    const CheckpointRetention retention = {keep_last, keep_every, whole_step};
    file_test_expect_ok(t, checkpoint_prune(run, &retention, &t->err));
    free(run);
}
static void prune(FileTest *t, int64_t keep_last) { prune_keeping(t, keep_last, 0, -1); }
static void damage(const FileTest *t, int64_t step) {
    char *dir = step_file(t, step, "");
    write_file(dir, "model.safetensors", "9876543210");  // same size: only the hash differs
    free(dir);
}
static void test_prune(void **state) {
    FileTest *t = *state;
    prune(t, 1);  // no checkpoint yet
    for (int64_t step = 1; step <= 5; ++step) save_ok(t, step);
    prune(t, 0);
    assert_int_equal(count_steps(t), 5);
    prune(t, 9);
    assert_int_equal(count_steps(t), 5);
    prune(t, 3);
    assert_int_equal(count_steps(t), 3);
    assert_true(step_exists(t, 5) && step_exists(t, 4) && step_exists(t, 3));
    // The newest are damaged: what is kept is the newest whole one.
    damage(t, 5);
    damage(t, 4);
    prune(t, 1);
    expect_newest(t, 3, "step_00000005/model.safetensors: changed");
    save_ok(t, 6);
    prune(t, 1);
    expect_newest(t, 6, NULL);
    assert_int_equal(count_steps(t), 1);  // with a newer whole one, the damaged ones are deleted too
}

// A table: which of steps 1 to 12 are kept, with some of them damaged.
static void test_retention(void **state) {
    FileTest *t = *state;
    static const struct {
        int64_t keep_last, keep_every, damaged[3], stay[13];
    } CASES[] = {
        {2, 0, {0}, {11, 12}},
        {1, 5, {0}, {5, 10, 12}},
        {3, 4, {0}, {4, 8, 10, 11, 12}},
        {1, 1, {0}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
        {1, 100, {0}, {12}},
        {1, 5, {12}, {5, 10, 11, 12}},         // the damaged one is newer than the newest whole one
        {2, 6, {11, 6}, {6, 11, 12}},          // below a whole one only sizes are checked
        {20, 5, {3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
        {0, 5, {3}, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        char *run = run_path(t);
        file_test_expect_ok(t, remove_tree(run, &t->err));
        free(run);
        for (int64_t step = 1; step <= 12; ++step) save_ok(t, step);
        for (int d = 0; d < 3 && CASES[i].damaged[d] > 0; ++d) damage(t, CASES[i].damaged[d]);
        prune_keeping(t, CASES[i].keep_last, CASES[i].keep_every, -1);
        for (int64_t step = 1, s = 0; step <= 12; ++step) {
            bool expected = CASES[i].stay[s] == step;
            if (step_exists(t, step) != expected)
                fail_msg("case %d: step %lld %s", (int)i, (long long)step, expected ? "is gone" : "is still there");
            s += expected;
        }
    }
}

// A checkpoint that was just committed (whole_step) is not hashed again, even if it is damaged.
static void test_prune_trusts_the_commit(void **state) {
    FileTest *t = *state;
    for (int64_t step = 1; step <= 3; ++step) save_ok(t, step);
    damage(t, 3);
    prune_keeping(t, 1, 0, -1);
    assert_true(step_exists(t, 2) && step_exists(t, 3));
    prune_keeping(t, 1, 0, 3);
    assert_true(!step_exists(t, 2) && step_exists(t, 3));
    // A run that rewinds saves at a lower step than existing checkpoints.
    save_ok(t, 1);
    save_ok(t, 4);
    prune_keeping(t, 1, 0, 1);
    assert_true(step_exists(t, 1) && !step_exists(t, 3) && step_exists(t, 4));
}

// ---- several writers of one checkpoint ----

static void begin_all(FileTest *t, CheckpointWriter *writer, int ranks) {
    char *run = run_path(t);
    file_test_expect_ok(t, checkpoint_begin(&writer[0], run, 7, &t->err));
    writer[0].parts = ranks;
    for (int r = 1; r < ranks; ++r) file_test_expect_ok(t, checkpoint_attach(&writer[r], run, 7, 0, &t->err));
    free(run);
}
static void write_share(FileTest *t, CheckpointWriter *writer, int rank) {
    char *name = xasprintf("model-%d", rank), *text = xasprintf("weights of rank %d", rank);
    write_file(writer->dir, name, text);
    file_test_expect_ok(t, checkpoint_write_part(writer, rank, (const char *const[]){name}, 1, &t->err));
    free(name);
    free(text);
}
enum { RANKS = 3 };
static void test_parts(void **state) {
    FileTest *t = *state;
    CheckpointWriter writer[RANKS];
    begin_all(t, writer, RANKS);
    for (int r = RANKS - 1; r >= 0; --r) write_share(t, &writer[r], r);
    write_file(writer[0].dir, "config.json", "{}");  // in no part
    for (int r = 1; r < RANKS; ++r) checkpoint_detach(&writer[r]);
    file_test_expect_ok(t, checkpoint_commit(&writer[0], &t->err));
    expect_newest(t, 7, NULL);
    char *dir = step_file(t, 7, "");
    assert_int_equal(file_test_count_entries(dir), RANKS + 2);  // all parts are deleted
    write_file(dir, "model-1", "weights of rank 2");
    file_test_expect_error(t, checkpoint_verify(dir, true, &t->err), "model-1: changed");
    free(dir);
}

static void test_parts_that_do_not_fit(void **state) {
    FileTest *t = *state;
    static const char *const MENTIONS[] = {"MANIFEST.part-00002.json: missing", "model-1: missing",
                                           "model-1: expected 17 bytes, found 5", "is in another part too",
                                           "MANIFEST.part-00002.json: not valid JSON"};
    save_ok(t, 3);
    for (int damaged = 0; damaged < 5; ++damaged) {
        CheckpointWriter writer[RANKS];
        begin_all(t, writer, RANKS);
        for (int r = 0; r < RANKS; ++r) write_share(t, &writer[r], r);
        char *path = path_join(writer[0].dir, damaged == 0 ? "MANIFEST.part-00002.json" : "model-1");
        if (damaged < 2) assert_int_equal(unlink(path), 0);
        if (damaged == 2) write_file(writer[0].dir, "model-1", "short");
        if (damaged == 3)
            file_test_expect_ok(t, checkpoint_write_part(&writer[2], 2, &(const char *){"model-1"}, 1, &t->err));
        if (damaged == 4) write_file(writer[0].dir, "MANIFEST.part-00002.json", "{");
        free(path);
        for (int r = 1; r < RANKS; ++r) checkpoint_detach(&writer[r]);
        file_test_expect_error(t, checkpoint_commit(&writer[0], &t->err), MENTIONS[damaged]);
        expect_newest(t, 3, NULL);
        assert_int_equal(count_steps(t), 1);
    }
}

static void test_attach_needs_the_directory(void **state) {
    FileTest *t = *state;
    CheckpointWriter writer;
    char *run = run_path(t);
    file_test_expect_error(t, checkpoint_attach(&writer, run, 7, 0.1, &t->err), "a file system that all ranks share");
    // One that appears late is found.
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        CheckpointWriter late;
        usleep(100000);
        _exit(checkpoint_begin(&late, run, 7, NULL) ? 0 : 1);
    }
    file_test_expect_ok(t, checkpoint_attach(&writer, run, 7, 10, &t->err));
    checkpoint_detach(&writer);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    free(run);
}

static void test_interrupted_deletion_is_finished(void **state) {
    FileTest *t = *state;
    save_ok(t, 1);
    save_ok(t, 2);
    char *from = step_file(t, 1, ""), *to = xasprintf("%s/run/.del-step_00000001", t->dir);
    assert_int_equal(rename(from, to), 0);
    free(from);
    free(to);
    expect_newest(t, 2, NULL);
    save_ok(t, 3);
    assert_int_equal(count_steps(t), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_names), FILE_TEST(test_write_and_verify), FILE_TEST(test_damage_is_named),
        FILE_TEST(test_kill_at_every_stage), FILE_TEST(test_kill_at_random_moments), FILE_TEST(test_full_disk), FILE_TEST(test_newer_format),
        FILE_TEST(test_unwritable_places), FILE_TEST(test_saving_a_step_again_replaces_it), FILE_TEST(test_any_path),
        FILE_TEST(test_only_plain_files), FILE_TEST(test_abort_leaves_nothing), FILE_TEST(test_prune),
        FILE_TEST(test_retention), FILE_TEST(test_prune_trusts_the_commit), FILE_TEST(test_parts),
        FILE_TEST(test_parts_that_do_not_fit), FILE_TEST(test_attach_needs_the_directory),
        FILE_TEST(test_interrupted_deletion_is_finished),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
