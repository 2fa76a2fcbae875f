// test_safetensors.c: round trips, every kind of invalid file, shards with an index, failing writes.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/formats/safetensors.h"
#include "tests/support/file_test.h"

// ---- helpers ----

// Writes a file with the given header text (its length is computed) and data_bytes bytes 0, 1, 2, ...
static void write_raw(const FileTest *t, const char *name, const char *header, size_t data_bytes) {
    size_t header_bytes = strlen(header), total = 8 + header_bytes + data_bytes;
    unsigned char *bytes = xmalloc(total);
    for (int i = 0; i < 8; ++i) bytes[i] = (unsigned char)((uint64_t)header_bytes >> (8 * i));
    memcpy(bytes + 8, header, header_bytes);
    for (size_t i = 0; i < data_bytes; ++i) bytes[8 + header_bytes + i] = (unsigned char)i;
    file_test_write(t, name, bytes, total);
    free(bytes);
}

static bool try_open(FileTest *t, const char *name) {
    SafeTensors *file;
    char *path = file_test_path(t, name);
    bool ok = safetensors_open(&file, path, &t->err);
    if (ok) safetensors_close(file);
    free(path);
    return ok;
}

typedef struct {
    const void *const *data;
    int calls, fail_at;
} Source;
// The tensors here are smaller than a chunk: each is fetched once, in order, whole; empty ones never.
static const void *fetch_from(void *context, int index, int64_t first, int64_t count, Error *err) {
    Source *source = context;
    assert_true(index >= source->calls && first == 0 && count > 0);
    source->calls = index + 1;
    if (index == source->fail_at) {
        error_set(err, "tensor %d is lost", index);
        return NULL;
    }
    return source->data[index];
}

// ---- round trip ----

static void test_round_trip(void **state) {
    FileTest *t = *state;
    const float f32[6] = {1, -2.5f, 1e-40f, 3e38f, 0, INFINITY};
    const uint16_t bf16[3] = {0x3f80, 0xc000, 0x7f80};
    const int32_t i32[2] = {-7, 2000000000};
    const uint8_t u8[5] = {1, 2, 3, 254, 255};
    const double f64[1] = {0.1};
    const SafeTensorSpec specs[] = {
        {"z.first", DTYPE_F32, 2, {2, 3}}, {"halves", DTYPE_BF16, 1, {3}}, {"bytes", DTYPE_U8, 1, {5}},
        {"ints", DTYPE_I32, 1, {2}},       {"scalar", DTYPE_F64, 0, {0}},  {"empty", DTYPE_F32, 3, {4, 0, 2}},
        {"na\"me \\ \xc3\xa4", DTYPE_U8, 2, {1, 5}},
    };
    const void *data[] = {f32, bf16, u8, i32, f64, f32, u8};
    Source source = {data, 0, -1};
    char *path = file_test_path(t, "a.safetensors");
    file_test_expect_ok(
        t, safetensors_write(path, specs, 7, "{\"format\":\"pt\",\"step\":\"12\"}", fetch_from, &source, &t->err));
    assert_int_equal(source.calls, 7);
    assert_int_equal(file_test_count_entries(t->dir), 1);

    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    assert_int_equal(safetensors_count(file), 7);
    file_test_expect_metadata(path, "format", "pt");
    file_test_expect_metadata(path, "step", "12");
    file_test_expect_metadata(path, "Format", NULL);
    assert_null(safetensors_find(file, "absent"));
    static const char *NAMES[] = {"F32", "BF16", "U8", "I32", "F64", "F32", "U8"};
    for (int i = 0; i < 7; ++i) {
        const SafeTensor *tensor = safetensors_find(file, specs[i].name);
        assert_non_null(tensor);
        assert_string_equal(tensor->dtype, NAMES[i]);
        assert_int_equal(tensor->ndim, specs[i].ndim);
        for (int d = 0; d < tensor->ndim; ++d) assert_int_equal(tensor->dim[d], specs[i].dim[d]);
        assert_memory_equal(tensor->data, data[i], tensor->bytes);
    }
    assert_int_equal((uintptr_t)safetensors_find(file, "z.first")->data % 8, 0);
    for (int i = 1; i < 7; ++i)
        assert_true(strcmp(safetensors_at(file, i - 1)->name, safetensors_at(file, i)->name) < 0);
    safetensors_close(file);
    free(path);
}

static void test_conversion_to_f32(void **state) {
    FileTest *t = *state;
    write_raw(t, "a.safetensors", "{\"h\":{\"dtype\":\"F16\",\"shape\":[65536],\"data_offsets\":[0,131072]}}",
              131072);
    // Replace the data with all fp16 values, in order; the header is 67 bytes long, so they are unaligned.
    char *path = file_test_path(t, "a.safetensors");
    FILE *raw = fopen(path, "r+b");
    fseek(raw, -131072, SEEK_END);
    for (uint32_t h = 0; h < 65536; ++h) {
        const uint16_t half = (uint16_t)h;
        fwrite(&half, 2, 1, raw);
    }
    fclose(raw);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    const SafeTensor *tensor = safetensors_at(file, 0);
    assert_int_not_equal((uintptr_t)tensor->data % 2, 0);
    float *values = xmalloc(65536 * sizeof *values);
    file_test_expect_ok(t, safetensors_read_f32(tensor, 0, 65536, values, &t->err));
    for (int h = 0; h < 65536; ++h) {
        int exponent = (h >> 10) & 31, fraction = h & 1023;
        double size = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
        if (exponent == 31) size = fraction != 0 ? NAN : INFINITY;
        double expected = h & 0x8000 ? -size : size;
        if (isnan(expected)) assert_true(isnan(values[h]));
        else assert_true((double)values[h] == expected && !signbit(values[h]) == !signbit(expected));
    }
    float part[3];
    file_test_expect_ok(t, safetensors_read_f32(tensor, 0x3c00, 3, part, &t->err));
    assert_true(part[0] == 1 && part[1] == 1.0009765625f);
    free(values);
    safetensors_close(file);
    free(path);
}

static void test_conversion_of_other_dtypes(void **state) {
    FileTest *t = *state;
    const double f64[2] = {0.1, -1e300};
    const uint16_t bf16[2] = {0x3fc0, 0x8000};
    const int32_t i32[1] = {5};
    const SafeTensorSpec specs[] = {{"d", DTYPE_F64, 1, {2}}, {"b", DTYPE_BF16, 1, {2}}, {"i", DTYPE_I32, 1, {1}}};
    const void *data[] = {f64, bf16, i32};
    Source source = {data, 0, -1};
    char *path = file_test_path(t, "a.safetensors");
    file_test_expect_ok(t, safetensors_write(path, specs, 3, NULL, fetch_from, &source, &t->err));
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    float out[2];
    file_test_expect_ok(t, safetensors_read_f32(safetensors_find(file, "d"), 0, 2, out, &t->err));
    assert_true(out[0] == 0.1f && isinf(out[1]) && out[1] < 0);
    file_test_expect_ok(t, safetensors_read_f32(safetensors_find(file, "b"), 0, 2, out, &t->err));
    assert_true(out[0] == 1.5f && out[1] == 0 && signbit(out[1]));
    file_test_expect_error(t, safetensors_read_f32(safetensors_find(file, "i"), 0, 1, out, &t->err), "found I32");
    safetensors_close(file);
    free(path);
}

// ---- invalid files ----

static void test_accepted(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *header;
        size_t data_bytes;
    } CASES[] = {
        {"{}", 0},
        {"{}      ", 0},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4},
        {"{\"a\":{\"shape\":[0,7],\"data_offsets\":[0,0],\"dtype\":\"I64\"}}", 0},
        {"{\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]},"
         "\"a\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]}}", 3},
        {"{\"__metadata__\":{},\"a\":{\"dtype\":\"F8_E4M3\",\"shape\":[1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]}}", 1},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        write_raw(t, "a.safetensors", CASES[i].header, CASES[i].data_bytes);
        file_test_expect_ok(t, try_open(t, "a.safetensors"));
    }
}

#define ENTRY(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"
static void test_rejected(void **state) {
    FileTest *t = *state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *mention;
    } CASES[] = {
        {"[]", 0, "begins with '{'"},
        {" {}", 0, "begins with '{'"},
        {"{", 1, "not valid JSON"},
        {"{}x", 0, "more text"},
        {"{\"a\":1}", 0, "exactly dtype, shape and data_offsets"},
        {"{\"a\":[1,2,3]}", 0, "exactly dtype, shape and data_offsets"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "exactly dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4, "exactly dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "duplicate JSON key"},
        {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "exactly dtype"},
        {"{" ENTRY("a", "F31", "[1]", "[0,4]") "}", 4, "unknown dtype 'F31'"},
        {"{" ENTRY("a", "F32", "1", "[0,4]") "}", 4, "no shape array"},
        {"{" ENTRY("a", "F32", "[-1]", "[0,4]") "}", 4, "whole numbers"},
        {"{" ENTRY("a", "F32", "[1.5]", "[0,6]") "}", 6, "whole numbers"},
        {"{" ENTRY("a", "F32", "[\"1\"]", "[0,4]") "}", 4, "whole numbers"},
        {"{" ENTRY("a", "F32", "[1e400]", "[0,4]") "}", 4, "whole numbers"},
        {"{" ENTRY("a", "F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "more than 8 dimensions"},
        {"{" ENTRY("a", "F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "overflows"},
        {"{" ENTRY("a", "F64", "[2305843009213693952]", "[0,0]") "}", 0, "whole numbers"},
        {"{" ENTRY("a", "F32", "[1]", "[0,5]") "}", 5, "need 4 bytes, its data_offsets span 5"},
        {"{" ENTRY("a", "F32", "[2]", "[0,4]") "}", 4, "need 8 bytes"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "}", 3, "of which there are 3"},
        {"{" ENTRY("a", "F32", "[1]", "[0]") "}", 4, "data_offsets [begin, end]"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4,8]") "}", 8, "data_offsets [begin, end]"},
        {"{" ENTRY("a", "F32", "[1]", "[4,0]") "}", 4, "data_offsets [begin, end]"},
        {"{" ENTRY("a", "F32", "[1]", "[-4,0]") "}", 4, "data_offsets [begin, end]"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("a", "F32", "[1]", "[4,8]") "}", 8, "duplicate JSON key"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("b", "F32", "[1]", "[0,4]") "}", 4, "overlap"},
        {"{" ENTRY("a", "F32", "[2]", "[0,8]") "," ENTRY("b", "F32", "[2]", "[4,12]") "}", 12, "overlap"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "," ENTRY("b", "F32", "[1]", "[8,12]") "}", 12, "gap"},
        {"{" ENTRY("a", "F32", "[1]", "[4,8]") "}", 8, "gap"},
        {"{" ENTRY("a", "F32", "[1]", "[0,4]") "}", 5, "cover 4 bytes of data, the file has 5"},
        {"{}", 1, "cover 0 bytes"},
        {"{\"__metadata__\":[]}", 0, "__metadata__ is not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "expected text as the value of 'a'"},
        {"{\"__metadata__\":{\"a\":\"\xff\"}}", 0, "UTF-8"},
        {"{\"__metadata__\":{\"a\":\"\xc0\xaf\"}}", 0, "UTF-8"},          // overlong '/'
        {"{\"__metadata__\":{\"a\":\"\xed\xa0\x80\"}}", 0, "UTF-8"},      // surrogate
        {"{\"__metadata__\":{\"a\":\"\xf4\x90\x80\x80\"}}", 0, "UTF-8"},  // beyond 10FFFF
        {"{\"__metadata__\":{\"a\":\"\xe2\x82\"}}", 0, "UTF-8"},          // truncated
        {"{\"__metadata__\":{\"a\":\"\\ud800\"}}", 0, "not valid JSON"},
        {"{\"__metadata__\":{\"a\\u0000b\":\"\"}}", 0, "control characters"},
        {"{\"__metadata__\":{\"a\":\"\x01\"}}", 0, "control characters"},
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        write_raw(t, "a.safetensors", CASES[i].header, CASES[i].data_bytes);
        print_message("  %s\n", CASES[i].mention);
        file_test_expect_error(t, try_open(t, "a.safetensors"), CASES[i].mention);
    }
    // 1000 levels of nesting: no deep recursion here or in cJSON.
    char *deep = xmalloc(40000);
    memset(deep, '[', 39999);
    memcpy(deep, "{\"a\":", 5);
    deep[39999] = '\0';
    write_raw(t, "a.safetensors", deep, 0);
    file_test_expect_error(t, try_open(t, "a.safetensors"), "not valid JSON");
    free(deep);
}

static void test_bad_lengths(void **state) {
    FileTest *t = *state;
    file_test_expect_error(t, try_open(t, "absent.safetensors"), "cannot open");
    file_test_write(t, "empty", "", 0);
    file_test_expect_error(t, try_open(t, "empty"), "at least 10 bytes, found 0");
    unsigned char bytes[16] = {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'};
    file_test_write(t, "huge", bytes, sizeof bytes);
    file_test_expect_error(t, try_open(t, "huge"), "found the length 18446744073709551615");
    memset(bytes, 0, 8);
    file_test_write(t, "none", bytes, sizeof bytes);
    file_test_expect_error(t, try_open(t, "none"), "begins with '{'");
    bytes[0] = 9;  // one more than the file has
    file_test_write(t, "long", bytes, sizeof bytes);
    file_test_expect_error(t, try_open(t, "long"), "at most 8 bytes, found the length 9");

    char *path = file_test_path(t, "sparse");  // a header over the limit of the format, in a file that is long enough
    FILE *file = fopen(path, "wb");
    const unsigned char length[10] = {0x01, 0xe1, 0xf5, 0x05, 0, 0, 0, 0, '{', '}'};  // 100,000,001
    fwrite(length, 1, sizeof length, file);
    fseek(file, 100000100, SEEK_SET);
    fputc(0, file);
    fclose(file);
    file_test_expect_error(t, try_open(t, "sparse"), "at most 100000000 bytes, found the length 100000001");
    free(path);
    file_test_expect_error(t, try_open(t, ""), "model.safetensors or");
}

// Every truncation fails; a corrupted header byte may be accepted or not, but never crashes.
static void test_truncation_and_corruption(void **state) {
    FileTest *t = *state;
    const char *header = "{\"__metadata__\":{\"format\":\"pt\"}," ENTRY("a.weight", "F32", "[2,3]", "[0,24]") ","
                         ENTRY("b\\u00e4", "BF16", "[4]", "[24,32]") "}";
    size_t total = 8 + strlen(header) + 32;
    write_raw(t, "whole", header, 32);
    char *path = file_test_path(t, "whole"), *bytes;
    assert_true(file_read_all(path, 1 << 20, &bytes, NULL, NULL));
    for (size_t length = 0; length < total; ++length) {
        file_test_write(t, "cut", bytes, length);
        assert_false(try_open(t, "cut"));
    }
    int accepted = 0;
    for (size_t at = 0; at < total - 32; ++at)
        for (int bit = 0; bit < 8; bit += 3) {
            bytes[at] = (char)(bytes[at] ^ (1 << bit));
            file_test_write(t, "flipped", bytes, total);
            accepted += try_open(t, "flipped");
            bytes[at] = (char)(bytes[at] ^ (1 << bit));
        }
    assert_true(accepted > 0 && accepted < (int)total);  // a changed name is valid, a changed size is not
    free(bytes);
    free(path);
}

// ---- shards ----

static void write_index(const FileTest *t, const char *text) {
    file_test_write(t, "model.safetensors.index.json", text, strlen(text));
}
static void test_shards(void **state) {
    FileTest *t = *state;
    write_raw(t, "s1.safetensors", "{\"__metadata__\":{\"k\":\"one\"}," ENTRY("b", "U8", "[2]", "[0,2]") "}", 2);
    write_raw(t, "s2.safetensors", "{" ENTRY("c", "U8", "[1]", "[0,1]") "," ENTRY("a", "U8", "[3]", "[1,4]") "}", 4);
    write_index(t,
                "{\"metadata\":{\"total_size\":6},\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\","
                "\"c\":\"s2.safetensors\"}}");
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, t->dir, &t->err));
    assert_int_equal(safetensors_count(file), 3);
    const SafeTensor *a = safetensors_find(file, "a");
    assert_int_equal(a->bytes, 3);
    assert_int_equal(a->data[0], 1);
    assert_int_equal(a->file, safetensors_find(file, "c")->file);
    assert_int_not_equal(a->file, safetensors_find(file, "b")->file);
    safetensors_close(file);

    static const struct {
        const char *weight_map, *mention;
    } BAD[] = {
        {"{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}", "hold 3 tensors, the index names 2"},
        {"{\"a\":\"s1.safetensors\",\"b\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}",
         "'a' is not in 's1.safetensors'"},
        {"{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\",\"c\":\"s2.safetensors\",\"d\":\"s1.safetensors\"}",
         "'d' is not in"},
        {"{\"a\":\"../s2.safetensors\"}", "name of a file in this directory"},
        {"{\"a\":\"sub/s2.safetensors\"}", "name of a file in this directory"},
        {"{\"a\":\"/etc/passwd\"}", "name of a file in this directory"},
        {"{\"a\":\"..\"}", "name of a file in this directory"},
        {"{\"a\":\"\"}", "name of a file in this directory"},
        {"{\"a\":7}", "expected a file name"},
        {"{\"a\":\"s3.safetensors\"}", "s3.safetensors: cannot open"},
        {"[]", "expected an object 'weight_map'"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof BAD[0]; ++i) {
        char *text = xasprintf("{\"weight_map\":%s}", BAD[i].weight_map);
        write_index(t, text);
        free(text);
        file_test_expect_error(t, try_open(t, "model.safetensors.index.json"), BAD[i].mention);
    }
    // The same tensor in two files.
    write_raw(t, "s1.safetensors", "{" ENTRY("a", "U8", "[2]", "[0,2]") "}", 2);
    write_index(t, "{\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}}");
    file_test_expect_error(t, try_open(t, "model.safetensors.index.json"), "found 'a' twice");
}

// ---- writes that fail ----

static void test_failed_writes_leave_the_old_file(void **state) {
    FileTest *t = *state;
    enum { ELEMS = 100000 };
    float *big = xcalloc(ELEMS, sizeof *big);
    const void *data[] = {big, big};
    const SafeTensorSpec specs[] = {{"a", DTYPE_F32, 1, {ELEMS}}, {"b", DTYPE_F32, 1, {ELEMS}}};
    char *path = file_test_path(t, "a.safetensors");
    Source source = {data, 0, -1};
    file_test_expect_ok(t, safetensors_write(path, specs, 1, NULL, fetch_from, &source, &t->err));

    source = (Source){data, 0, 1};
    file_test_expect_error(t, safetensors_write(path, specs, 2, NULL, fetch_from, &source, &t->err),
                           "tensor 1 is lost");
    source = (Source){data, 0, -1};
    file_test_limit_file_size(500000);
    bool ok = safetensors_write(path, specs, 2, NULL, fetch_from, &source, &t->err);
    file_test_limit_file_size(0);
    file_test_expect_error(t, ok, "a.safetensors: cannot write: File too large");

    assert_int_equal(file_test_count_entries(t->dir), 1);
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    assert_int_equal(safetensors_count(file), 1);
    safetensors_close(file);
    free(path);

    path = file_test_path(t, "no/such/a.safetensors");
    source = (Source){data, 0, -1};
    file_test_expect_error(t, safetensors_write(path, specs, 1, NULL, fetch_from, &source, &t->err), "cannot create");
    free(path);
    free(big);
}

// Tensors longer than a chunk are fetched in pieces and written in order.
static const void *fetch_counting(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)err;
    int32_t *chunk = context;
    assert_true(count > 0 && count <= SAFETENSORS_CHUNK_ELEMS && first % SAFETENSORS_CHUNK_ELEMS == 0);
    for (int64_t i = 0; i < count; ++i) chunk[i] = (int32_t)(first + i) + index;
    return chunk;
}
static void test_long_tensors(void **state) {
    FileTest *t = *state;
    const int64_t elems = 2 * SAFETENSORS_CHUNK_ELEMS + 5;
    const SafeTensorSpec specs[] = {{"a", DTYPE_I32, 1, {elems}}, {"b", DTYPE_I32, 1, {SAFETENSORS_CHUNK_ELEMS}}};
    int32_t *chunk = xmalloc(to_size(SAFETENSORS_CHUNK_ELEMS) * sizeof *chunk);
    char *path = file_test_path(t, "a.safetensors");
    file_test_expect_ok(t, safetensors_write(path, specs, 2, NULL, fetch_counting, chunk, &t->err));
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, path, &t->err));
    for (int k = 0; k < 2; ++k) {
        const SafeTensor *tensor = safetensors_find(file, specs[k].name);
        int64_t wrong = 0;
        for (int64_t i = 0; i < specs[k].dim[0]; ++i) {
            int32_t value;
            memcpy(&value, tensor->data + 4 * i, sizeof value);
            wrong += value != i + k;
        }
        assert_int_equal(wrong, 0);
        safetensors_release(tensor);
        assert_int_equal(tensor->data[4], 1 + k);  // released pages are read from the file again
    }
    safetensors_close(file);
    free(path);
    free(chunk);
}

// ---- a real file ----

static void test_real_model(void **state) {
    FileTest *t = *state;
    const char *dir = "../shared/data/models/stories260K_hf";
    if (!dir_exists(dir)) {
        print_message("skipped: %s is absent\n", dir);
        skip();
    }
    SafeTensors *file;
    file_test_expect_ok(t, safetensors_open(&file, dir, &t->err));
    assert_int_equal(safetensors_count(file), 47);
    const SafeTensor *tensor = safetensors_find(file, "model.layers.4.mlp.up_proj.weight");
    assert_non_null(tensor);
    assert_int_equal(tensor->dim[0], 172);
    assert_int_equal(tensor->dim[1], 64);
    safetensors_close(file);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        FILE_TEST(test_round_trip), FILE_TEST(test_conversion_to_f32), FILE_TEST(test_conversion_of_other_dtypes),
        FILE_TEST(test_accepted), FILE_TEST(test_rejected), FILE_TEST(test_bad_lengths),
        FILE_TEST(test_truncation_and_corruption), FILE_TEST(test_shards),
        FILE_TEST(test_failed_writes_leave_the_old_file), FILE_TEST(test_long_tensors), FILE_TEST(test_real_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
