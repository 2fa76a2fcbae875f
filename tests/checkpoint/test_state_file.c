// test_state_file.c: state.json of a checkpoint: written values read back, and malformed files are refused.
#include "llmc/checkpoint/state_file.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/base/rng.h"
#include "tests/support/file_test.h"

static const StateFile STATE = {
    .progress = {.step = 1234567890123, .bad_steps = 7, .bad_in_row = 2, .seconds = 1234.375},
    .optimizer = "muon", .dtype = "bf16", .master_weights = true, .tokenizer_fingerprint = 0xfedcba9876543210u};

static void test_round_trip(void **state) {
    FileTest *t = *state;
    const StateFile STATES[] = {STATE, {.optimizer = "adamw", .dtype = "fp32", .progress = {.seconds = 0.0625}},
                                {.optimizer = "adamw", .dtype = "fp32", .tokenizer_fingerprint = 1,
                                 .progress = {.step = 999999999999999, .bad_steps = 1, .seconds = 12345678.875}}};
    for (size_t i = 0; i < sizeof STATES / sizeof STATES[0]; ++i) {
        char *text = state_file_write(&STATES[i], "{\"seed\": 1}");
        StateFile back;
        memset(&back, 0xff, sizeof back);
        file_test_expect_ok(t, state_file_parse(&back, text, "state.json", &t->err));
        assert_int_equal(back.progress.step, STATES[i].progress.step);
        assert_int_equal(back.progress.bad_steps, STATES[i].progress.bad_steps);
        assert_int_equal(back.progress.bad_in_row, STATES[i].progress.bad_in_row);
        assert_true(back.progress.seconds == STATES[i].progress.seconds);
        assert_string_equal(back.optimizer, STATES[i].optimizer);
        assert_string_equal(back.dtype, STATES[i].dtype);
        assert_int_equal(back.master_weights, STATES[i].master_weights);
        assert_true(back.tokenizer_fingerprint == STATES[i].tokenizer_fingerprint);
        assert_non_null(strstr(text, "\"seed\""));
        free(text);
    }
}

// To the bit, for any bits: they decide which steps a run skips, and a resumed run must skip the same.
static void test_what_the_guard_knows(void **state) {
    FileTest *t = *state;
    StateFile *file = xcalloc(1, sizeof *file), *back = xcalloc(1, sizeof *back);
    *file = STATE;
    RunProgress *progress = &file->progress;
    progress->spikes = 12345;
    progress->chain = 0x00ffee1234567890u;
    progress->chain_data = 0xffffffffffffffffu;
    progress->chain_step = progress->step - 1;
    for (int i = 0; i < DATA_SKIPS_MAX; ++i)
        progress->skip[progress->skip_count++] = (DataSkip){.at_step = i / 2 * 1000000007LL, .steps = i + 1};
    progress->skip[0].steps = (int64_t)1 << 32;
    while (progress->guard.count < GUARD_CAPACITY) {
        uint64_t i = (uint64_t)progress->guard.count;
        uint64_t bits = (uint64_t)rng_u32(3, RNG_STREAM_TEST, 2 * i) << 32 | rng_u32(3, RNG_STREAM_TEST, 2 * i + 1);
        if ((bits >> 52 & 0x7ff) == 0x7ff) bits ^= (uint64_t)1 << 60;  // finite
        GuardEntry *entry = &progress->guard.entry[progress->guard.count++];
        *entry = (GuardEntry){.step = progress->step - 3 * GUARD_CAPACITY + 3 * (int64_t)i, .norm = 0.1f + (float)i};
        memcpy(&entry->loss, &bits, sizeof bits);
    }
    progress->guard.entry[5].norm = 0x1p-1074;
    progress->guard.entry[6].norm = 1.7976931348623157e308;
    char *text = state_file_write(file, "{}");
    assert_true(strlen(text) < (size_t)1 << 18);  // far below the limit of readers
    memset(back, 0xff, sizeof *back);
    file_test_expect_ok(t, state_file_parse(back, text, "state.json", &t->err));
    assert_true(back->progress.spikes == 12345 && back->progress.chain == progress->chain);
    assert_int_equal(back->progress.skip_count, DATA_SKIPS_MAX);
    assert_memory_equal(back->progress.skip, progress->skip, sizeof progress->skip);
    assert_int_equal(back->progress.guard.count, GUARD_CAPACITY);
    assert_memory_equal(&back->progress.guard, &progress->guard, sizeof progress->guard);
    free(text);
    free(back);
    free(file);
}

static void test_refused(void **state) {
    FileTest *t = *state;
    static const char *const GOOD =
        "{\"format\": 1, \"step\": 9, \"bad_steps\": 4, \"bad_in_row\": 2, \"seconds\": 1.5, "
        "\"optimizer\": \"adamw\", \"dtype\": \"fp32\", "
        "\"tokenizer_fingerprint\": \"0123456789abcdef\", \"spikes\": 1, \"chain\": \"fedcba9876543210\", "
        "\"skips\": [[3, 2], [3, 1]], \"guard\": [[7, 2.5, 0.5], [8, -3.5, 1]], \"config\": {}}";
    // the text that is replaced, its replacement, and the text that the message must contain
    static const char *const CASES[][3] = {
        {"\"format\": 1, ", "", "expected \"format_version\""},
        {"\"format\": 1", "\"format\": 2", "format version 2, this program reads versions up to 1"},
        {"\"format\": 1", "\"format_version\": 2", "format version 2, this program reads versions up to 1"},
        {"\"format\": 1", "\"format_version\": 0", "version of 1 or more, found 0"},
        {"\"format\": 1", "\"format_version\": \"1\"", "format_version"},
        {"\"format\": 1", "\"format\": \"1\"", "format"},
        {"\"step\": 9, ", "", "step"},
        {"\"step\": 9", "\"step\": -1", "step"},
        {"\"step\": 9", "\"step\": 1.5", "step"},
        {"\"step\": 9", "\"step\": 1e300", "step"},
        {"\"step\": 9", "\"step\": 1e999", "step"},
        {"\"step\": 9", "\"step\": null", "step"},
        {"\"step\": 9", "\"step\": [9]", "step"},
        {"\"step\": 9", "\"step\": 9, \"step\": 10", "step"},
        {"\"step\": 9", "\"Step\": 9", "step"},
        {"\"step\": 9", "\"step\": 3", "bad_steps"},
        {"\"bad_steps\": 4, ", "", "bad_steps"},
        {"\"bad_steps\": 4", "\"bad_steps\": true", "bad_steps"},
        {"\"bad_steps\": 4", "\"bad_steps\": 1", "bad_in_row"},
        {"\"bad_in_row\": 2, ", "", "bad_in_row"},
        {"\"bad_in_row\": 2", "\"bad_in_row\": -2", "bad_in_row"},
        {"\"seconds\": 1.5, ", "", "seconds"},
        {"\"seconds\": 1.5", "\"seconds\": -1.5", "seconds"},
        {"\"seconds\": 1.5", "\"seconds\": 1e999", "seconds"},
        {"\"seconds\": 1.5", "\"seconds\": \"1.5\"", "seconds"},
        {"\"optimizer\": \"adamw\", ", "", "optimizer"},
        {"\"adamw\"", "\"sgd\"", "optimizer"},
        {"\"adamw\"", "5", "optimizer"},
        {"\"adamw\"", "\"adamw adamw adamw adamw adamw adamw adamw\"", "optimizer"},
        {"\"dtype\": \"fp32\", ", "", "dtype"},
        {"\"fp32\"", "\"fp16\"", "dtype"},
        {"\"fp32\"", "null", "dtype"},
        {"\"format\": 1", "\"format\": 1, \"master_weights\": 1", "master_weights"},
        {"\"tokenizer_fingerprint\": \"0123456789abcdef\", ", "", "tokenizer_fingerprint"},
        {"0123456789abcdef", "", "tokenizer_fingerprint"},
        {"0123456789abcdef", "123456789abcdef", "tokenizer_fingerprint"},
        {"0123456789abcdef", "00123456789abcdef", "tokenizer_fingerprint"},
        {"0123456789abcdef", " 12345678 abcdef", "tokenizer_fingerprint"},
        {"0123456789abcdef", "-123456789abcdef", "tokenizer_fingerprint"},
        {"0123456789abcdef", "0x23456789abcdef", "tokenizer_fingerprint"},
        {"\"0123456789abcdef\"", "81985529216486895", "tokenizer_fingerprint"},
        {"\"spikes\": 1, ", "\"spikes\": -1, ", "spikes"},
        {"\"spikes\": 1, ", "\"spikes\": null, ", "spikes"},
        {"fedcba9876543210", "fedcba987654321", "chain"},
        {"\"fedcba9876543210\"", "1", "chain"},
        {"[[3, 2], [3, 1]]", "7", "skips"},
        {"[[3, 2], [3, 1]]", "{}", "skips"},
        {"[[3, 2], [3, 1]]", "[3, 2]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 2, 1]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 2], [2, 1]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[-1, 2]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[10, 2]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[1.5, 2]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 0]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 1.5]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 4294967297]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, 1e999]]", "skips"},
        {"[[3, 2], [3, 1]]", "[[3, \"1\"]]", "skips"},
        {"[8, -3.5, 1]", "[0, 1, 1], [8, 1, 1]", "guard"},
        {"[8, -3.5, 1]", "[7, 1, 1]", "guard"},
        {"[8, -3.5, 1]", "[10, 1, 1]", "guard"},
        {"[8, -3.5, 1]", "[8, 1]", "guard"},
        {"[8, -3.5, 1]", "[8, 1, -1]", "guard"},
        {"[8, -3.5, 1]", "[8, 1e999, 1]", "guard"},
        {"[8, -3.5, 1]", "[8, 1, null]", "guard"},
        {"[8, -3.5, 1]", "8", "guard"},
        {"\"skips\"", "\"chain_step\": 999999, \"skips\"", "chain_step"},
        {"\"skips\"", "\"chain_step\": -1, \"skips\"", "chain_step"},
        {"\"skips\"", "\"chain_data\": \"12\", \"skips\"", "chain_data"},
        {"{}}", "{}", "JSON"},
        {"{}}", "{}} x", "after"},
        {"{\"format\"", "[{\"format\"", "JSON"},
    };
    StateFile parsed;
    file_test_expect_ok(t, state_file_parse(&parsed, GOOD, "a/state.json", &t->err));
    assert_true(parsed.tokenizer_fingerprint == 0x0123456789abcdefu);
    assert_true(parsed.master_weights);  // as in files older than the option
    const RunProgress *progress = &parsed.progress;
    assert_true(progress->spikes == 1 && progress->chain == 0xfedcba9876543210u && progress->skip_count == 2);
    assert_true(progress->chain_step == progress->step && progress->chain_data == 0);  // likewise
    assert_true(progress->skip[0].at_step == 3 && progress->skip[1].steps == 1 && progress->guard.count == 2);
    assert_true(progress->guard.entry[1].loss == -3.5 && progress->guard.entry[0].norm == 0.5);
    char *old = file_test_replaced(GOOD, "\"spikes\": 1, \"chain\": \"fedcba9876543210\", "
                                   "\"skips\": [[3, 2], [3, 1]], \"guard\": [[7, 2.5, 0.5], [8, -3.5, 1]], ", "");
    file_test_expect_ok(t, state_file_parse(&parsed, old, "a/state.json", &t->err));
    assert_true(progress->spikes == 0 && progress->chain == 0 && progress->skip_count == 0);
    assert_int_equal(progress->guard.count, 0);
    free(old);
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        char *text = file_test_replaced(GOOD, CASES[i][0], CASES[i][1]);
        bool ok = state_file_parse(&parsed, text, "a/state.json", &t->err);
        if (ok) fail_msg("accepted: %s", text);
        if (strstr(t->err.message, "a/state.json") == NULL) fail_msg("'%s' does not name the file", t->err.message);
        file_test_expect_error(t, ok, CASES[i][2]);
        free(text);
    }
    char *most = xstrdup("[[1, 1]");
    for (int i = 1; i <= DATA_SKIPS_MAX; ++i) {
        char *list = xasprintf("%s]", most);
        char *text = file_test_replaced(GOOD, "[[3, 2], [3, 1]]", list);
        file_test_expect_ok(t, state_file_parse(&parsed, text, "a/state.json", &t->err));
        assert_int_equal(parsed.progress.skip_count, i);
        free(text);
        free(list);
        char *more = xasprintf("%s, [1, 1]", most);
        free(most);
        most = more;
    }
    char *text = file_test_replaced(GOOD, "[[3, 2], [3, 1]", most);
    file_test_expect_error(t, state_file_parse(&parsed, text, "a/state.json", &t->err), "at most 64");
    free(text);
    free(most);
    static const char *const WHOLE[] = {"", "null", "[]", "7", "\"state\"", "{", "{}", "\xff{}"};
    for (size_t i = 0; i < sizeof WHOLE / sizeof WHOLE[0]; ++i)
        file_test_expect_error(t, state_file_parse(&parsed, WHOLE[i], "a/state.json", &t->err), "a/state.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_round_trip), FILE_TEST(test_what_the_guard_knows),
                                       FILE_TEST(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
