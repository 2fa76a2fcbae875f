// test_json.c: input that the strict reader refuses and cJSON alone accepts; exact numbers.
#include <string.h>

#include "llmc/base/json.h"
#include "tests/support/file_test.h"

static cJSON *parse(FileTest *t, const char *text) { return json_parse(text, strlen(text), "x.json", &t->err); }

static void test_refused(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *text, *mention;
    } CASES[] = {
        {"", "not valid JSON"},
        {"{\"a\":}", "not valid JSON near byte"},
        {"[1]", "expected a JSON object"},
        {"7", "expected a JSON object"},
        {"{} {}", "more text at byte 3"},
        {"{}\x0b", "control characters"},
        {"{\"\xff\":1}", "UTF-8"},
        {"{\"a\\u0000b\":1}", "control"},
        {"{\"a\":1,\"a\":1}", "duplicate JSON key 'a'"},
        {"{\"a\":1,\"\\u0061\":2}", "duplicate JSON key 'a'"},
        {"{\"o\":[{\"b\":{\"c\":1,\"d\":2,\"c\":3}}]}", "duplicate JSON key 'c'"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        cJSON *root = parse(t, CASES[i].text);
        file_test_expect_error(t, root != NULL, CASES[i].mention);
    }
    file_test_write(t, "nul.json", "{\"a\":\"b\0c\"}", 11);
    char *path = file_test_path(t, "nul.json");
    file_test_expect_error(t, json_parse_file(path, 100, &t->err) != NULL, "control characters");
    file_test_expect_error(t, json_parse_file(path, 10, &t->err) != NULL, "at most 10 bytes");
    cJSON_free(path);
}

static void test_accepted(void **state) {
    FileTest *t = *state;
    cJSON *root =
        parse(t, " {\"a\\\\u0000\": \"\\u00e4\\ud83d\\ude00\", \"A\": {\"x\": 1}, \"B\": {\"x\": 1}}\r\n\t ");
    file_test_expect_ok(t, root != NULL);
    assert_string_equal(json_find(root, "a\\u0000")->valuestring, "\xc3\xa4\xf0\x9f\x98\x80");
    assert_null(json_find(root, "b"));  // keys are case-sensitive
    cJSON_Delete(root);
}

static void test_numbers(void **state) {
    FileTest *t = *state;
    cJSON *root =
        parse(t, "{\"i\":[0,-7,9007199254740992,1e3], \"no\":[1.5,1e16,9007199254740994,1e400,\"1\",true,null]}");
    file_test_expect_ok(t, root != NULL);
    static const int64_t EXPECTED[] = {0, -7, 9007199254740992, 1000};
    int at = 0;
    int64_t value;
    for (const cJSON *item = json_find(root, "i")->child; item != NULL; item = item->next) {
        assert_true(json_as_i64(item, &value));
        assert_true(value == EXPECTED[at++]);
    }
    for (const cJSON *item = json_find(root, "no")->child; item != NULL; item = item->next)
        assert_false(json_as_i64(item, &value));
    double real;
    assert_false(json_as_i64(NULL, &value) || json_as_f64(NULL, &real));
    assert_true(json_as_f64(json_find(root, "no")->child, &real) && real == 1.5);
    cJSON_Delete(root);
}

int main(void) {
    const struct CMUnitTest tests[] = {FILE_TEST(test_refused), FILE_TEST(test_accepted), FILE_TEST(test_numbers)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
