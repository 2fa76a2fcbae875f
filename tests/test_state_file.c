// test_state_file.c: state.json of a checkpoint: what is written reads back, and what is not as written is refused.
#include "llmc/state_file.h"

#include <stdlib.h>
#include <string.h>

#include "tests/file_test.h"

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

static void test_refused(void **state) {
    FileTest *t = *state;
    static const char *const GOOD =
        "{\"format\": 1, \"step\": 9, \"bad_steps\": 4, \"bad_in_row\": 2, \"seconds\": 1.5, "
        "\"optimizer\": \"adamw\", \"dtype\": \"fp32\", "
        "\"tokenizer_fingerprint\": \"0123456789abcdef\", \"config\": {}}";
    // what is replaced, by what, and what the message must name
    static const char *const CASES[][3] = {
        {"\"format\": 1, ", "", "format"},
        {"\"format\": 1", "\"format\": 2", "format"},
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
        {"{}}", "{}", "JSON"},
        {"{}}", "{}} x", "after"},
        {"{\"format\"", "[{\"format\"", "JSON"},
    };
    StateFile parsed;
    file_test_expect_ok(t, state_file_parse(&parsed, GOOD, "a/state.json", &t->err));
    assert_true(parsed.tokenizer_fingerprint == 0x0123456789abcdefu);
    assert_true(parsed.master_weights);  // as in files from before there was a choice
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        char *text = file_test_replaced(GOOD, CASES[i][0], CASES[i][1]);
        bool ok = state_file_parse(&parsed, text, "a/state.json", &t->err);
        if (ok) fail_msg("accepted: %s", text);
        if (strstr(t->err.message, "a/state.json") == NULL) fail_msg("'%s' does not name the file", t->err.message);
        file_test_expect_error(t, ok, CASES[i][2]);
        free(text);
    }
    static const char *const WHOLE[] = {"", "null", "[]", "7", "\"state\"", "{", "{}", "\xff{}"};
    for (size_t i = 0; i < sizeof WHOLE / sizeof WHOLE[0]; ++i)
        file_test_expect_error(t, state_file_parse(&parsed, WHOLE[i], "a/state.json", &t->err), "a/state.json");
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_round_trip), FILE_TEST(test_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
