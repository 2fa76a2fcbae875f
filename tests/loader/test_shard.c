// test_shard.c: shards from the writer and from bytes given here read back exactly; every malformed file gives an error
// that names it.
#include "llmc/loader/shard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/support/file_test.h"
#include "tests/support/shard_test.h"

// The token that every test expects at a position; its values use all bytes of the width.
static int32_t token_at(int64_t position, int64_t vocab) {
    return (int32_t)(((uint64_t)position * 2654435761u + 12345u) % (uint64_t)vocab);
}

static void write_tokens(const char *path, int version, int64_t vocab, int64_t first, int64_t count) {
    int32_t *tokens = xmalloc(to_size(count + 1) * sizeof *tokens);
    for (int64_t i = 0; i < count; ++i) tokens[i] = token_at(first + i, vocab);
    shard_test_write(path, version, tokens, count, vocab, 0);
    free(tokens);
}

// A file with the given header fields (the rest 0) and a size, which may be sparse.
static char *write_raw(const char *name, const int32_t *fields, int field_count, int64_t file_bytes) {
    int32_t header[256] = {0};
    if (field_count > 0) memcpy(header, fields, (size_t)field_count * sizeof *fields);
    char *path = path_join(file_test_dir, name);
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    size_t head_bytes = file_bytes < SHARD_HEADER_BYTES ? to_size(file_bytes) : SHARD_HEADER_BYTES;
    assert_true(fwrite(header, 1, head_bytes, file) == head_bytes);
    assert_true(fflush(file) == 0 && ftruncate(fileno(file), file_bytes) == 0);
    fclose(file);
    return path;
}

static void check_round_trip(int version, int64_t vocab, int expected_bytes) {
    enum { COUNT = 40000 };  // more than one chunk of the reader
    char *path = path_join(file_test_dir, "round.bin");
    write_tokens(path, version, vocab, 0, COUNT);
    Error err = {""};
    Shard shard;
    assert_true(shard_open(&shard, path, &err));
    assert_int_equal(shard.token_count, COUNT);
    assert_int_equal(shard.bytes_per_token, expected_bytes);
    assert_int_equal(shard.vocab, version == 2 ? vocab : 0);
    assert_int_equal(shard.eot, version == 2 ? 0 : -1);
    assert_true(shard_check_range(&shard, 0, COUNT, vocab, &err));
    int32_t *tokens = xmalloc(COUNT * sizeof *tokens);
    int64_t ranges[][2] = {{0, COUNT}, {1, COUNT - 1}, {COUNT - 1, 1}, {17, 100}, {16384, 16384}, {5, 0}, {COUNT, 0}};
    for (size_t r = 0; r < sizeof ranges / sizeof ranges[0]; ++r) {
        memset(tokens, 0xAB, COUNT * sizeof *tokens);
        assert_true(shard_read(tokens, &shard, ranges[r][0], ranges[r][1], vocab, &err));
        for (int64_t i = 0; i < ranges[r][1]; ++i) assert_int_equal(tokens[i], token_at(ranges[r][0] + i, vocab));
        if (ranges[r][1] < COUNT) assert_int_equal(tokens[ranges[r][1]], (int32_t)0xABABABAB);  // not written
    }
    shard_close(&shard);
    free(tokens);
    free(path);
}
static void test_round_trips(void **state) {
    (void)state;
    check_round_trip(1, 50257, 2);
    check_round_trip(1, 65536, 2);
    check_round_trip(2, 50257, 2);
    check_round_trip(2, 65536, 2);
    check_round_trip(2, 65537, 4);
    check_round_trip(2, 2147483647, 4);
}

// Bytes of llm.c's two formats, built here from their description.
static void test_files_of_llmc(void **state) {
    (void)state;
    const uint16_t narrow[3] = {50256, 0, 65535};
    const uint32_t wide[2] = {128000, 7};
    char *path1 = write_raw("gpt2.bin", (int32_t[]){20240520, 1, 3}, 3, 1024);
    char *path2 = write_raw("llama.bin", (int32_t[]){20240801, 7, 2}, 3, 1024);
    FILE *file = fopen(path1, "ab");
    assert_true(fwrite(narrow, 2, 3, file) == 3 && fclose(file) == 0);
    file = fopen(path2, "ab");
    assert_true(fwrite(wide, 4, 2, file) == 2 && fclose(file) == 0);
    Error err = {""};
    Shard shard;
    int32_t tokens[3];
    assert_true(shard_open(&shard, path1, &err) && shard_read(tokens, &shard, 0, 3, 65536, &err));
    assert_true(tokens[0] == 50256 && tokens[1] == 0 && tokens[2] == 65535);
    assert_false(shard_read(tokens, &shard, 0, 3, 65535, &err));
    shard_close(&shard);
    assert_true(shard_open(&shard, path2, &err) && shard_read(tokens, &shard, 0, 2, 0, &err));
    assert_true(tokens[0] == 128000 && tokens[1] == 7 && shard.vocab == 0 && shard.eot == -1);
    shard_close(&shard);
    // A version-1 file is byte-identical to llm.c's: 1024 header bytes, then uint16.
    char *ours = path_join(file_test_dir, "ours.bin"), *bytes;
    size_t byte_count;
    ShardWriter *writer = shard_writer_open(ours, 1, 65536, -1, &err);
    assert_true(shard_writer_append(writer, (int32_t[]){50256, 0, 65535}, 3, &err));
    assert_true(shard_writer_finish(writer, &err));
    char *theirs;
    size_t theirs_count;
    assert_true(file_read_all(ours, 1 << 20, &bytes, &byte_count, &err));
    assert_true(file_read_all(path1, 1 << 20, &theirs, &theirs_count, &err));
    assert_int_equal(byte_count, theirs_count);
    assert_memory_equal(bytes, theirs, byte_count);
    free(bytes);
    free(theirs);
    free(ours);
    free(path1);
    free(path2);
}

static void expect_refused(char *path, const char *fragment) {
    Error err = {""};
    Shard shard;
    assert_false(shard_open(&shard, path, &err));
    if (strstr(err.message, path) == NULL || strstr(err.message, fragment) == NULL)
        fail_msg("expected \"%s\" and the path in: %s", fragment, err.message);
    free(path);
}
static void test_malformed_files(void **state) {
    (void)state;
    const int32_t M = SHARD_MAGIC;
    expect_refused(path_join(file_test_dir, "absent.bin"), "No such file");
    expect_refused(xstrdup(file_test_dir), "regular file");
    char *fifo = path_join(file_test_dir, "fifo");
    assert_int_equal(mkfifo(fifo, 0600), 0);
    expect_refused(fifo, "regular file");
    expect_refused(write_raw("m", NULL, 0, 0), "found a file of 0");
    expect_refused(write_raw("m", (int32_t[]){M, 1, 0}, 3, 1023), "found a file of 1023");
    expect_refused(write_raw("m", (int32_t[]){20240521, 1, 2}, 3, 1028), "found 20240521");
    expect_refused(write_raw("m", (int32_t[]){M, 3, 2}, 3, 1028), "format version 3, this program reads versions up to 2");
    expect_refused(write_raw("m", (int32_t[]){M, 7, 2}, 3, 1032), "format version 7, this program reads versions up to 2");
    expect_refused(write_raw("m", (int32_t[]){M, 0, 2}, 3, 1028), "expected version 1 or 2, found 0");
    expect_refused(write_raw("m", (int32_t[]){SHARD_MAGIC_LLAMA3, 1, 2}, 3, 1028), "expected version 7, found 1");
    expect_refused(write_raw("m", (int32_t[]){M, 1, 3}, 3, 1028), "truncated");
    expect_refused(write_raw("m", (int32_t[]){M, 1, 1}, 3, 1028), "too long");
    expect_refused(write_raw("m", (int32_t[]){M, 1, 2}, 3, 1027), "found 1027");
    expect_refused(write_raw("m", (int32_t[]){M, 1, -2}, 3, 1020 + 4), "found -2");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, -1, 2, 100, -1}, 7, 1028), "found -4294967294");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0x7fffffff, 2, 100, -1}, 7, 1028), "token count");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 1, 2, 100, -1}, 7, 1028), "truncated");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 3, 100, -1}, 7, 1030), "2 or 4 bytes a token, found 3");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 0, 100, -1}, 7, 1028), "found 0");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 2, 0, -1}, 7, 1028), "vocabulary");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 2, 65537, -1}, 7, 1028), "vocabulary");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 4, -5, -1}, 7, 1032), "vocabulary");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 2, 100, 100}, 7, 1028), "end-of-text");
    expect_refused(write_raw("m", (int32_t[]){M, 2, 2, 0, 2, 100, -2}, 7, 1028), "end-of-text");
    Shard shard;  // well-formed variants are accepted, including an empty shard
    char *path = write_raw("m", (int32_t[]){M, 2, 2, 0, 2, 100, 99}, 7, 1028);
    assert_true(shard_open(&shard, path, NULL));
    shard_close(&shard);
    free(path);
    path = write_raw("m", (int32_t[]){M, 1, 0}, 3, 1024);
    assert_true(shard_open(&shard, path, NULL) && shard.token_count == 0);
    shard_close(&shard);
    free(path);
}

static void test_ids_past_the_vocabulary(void **state) {
    (void)state;
    enum { COUNT = 70000, BAD = 50001 };
    int32_t *tokens = xcalloc(COUNT, sizeof *tokens);
    tokens[BAD] = 600;
    char *path = path_join(file_test_dir, "range.bin");
    for (int wide = 0; wide <= 1; ++wide) {
        Error err = {""};
        ShardWriter *writer = shard_writer_open(path, 2, wide ? 100000 : 1000, -1, &err);
        assert_true(shard_writer_append(writer, tokens, COUNT, &err) && shard_writer_finish(writer, &err));
        Shard shard;
        assert_true(shard_open(&shard, path, &err));
        assert_true(shard_check_range(&shard, 0, COUNT, 601, &err));
        assert_true(shard_check_range(&shard, 0, BAD, 600, &err));
        assert_true(shard_check_range(&shard, BAD + 1, COUNT - BAD - 1, 600, &err));
        assert_false(shard_check_range(&shard, 0, COUNT, 600, &err));
        assert_non_null(strstr(err.message, path));
        assert_non_null(strstr(err.message, "below 600, found 600 at position 50001"));
        assert_false(shard_check_range(&shard, BAD, 1, 600, &err));
        shard_close(&shard);
    }
    // An id that int32 cannot hold is an error even if the vocabulary is unknown.
    char *raw = write_raw("big.bin", (int32_t[]){SHARD_MAGIC_LLAMA3, 7, 1}, 3, 1024);
    FILE *file = fopen(raw, "ab");
    assert_true(fwrite((uint32_t[]){0x80000000u}, 4, 1, file) == 1 && fclose(file) == 0);
    Error err = {""};
    Shard shard;
    int32_t token;
    assert_true(shard_open(&shard, raw, &err));
    assert_false(shard_read(&token, &shard, 0, 1, 0, &err));
    assert_non_null(strstr(err.message, "found 2147483648 at position 0"));
    shard_close(&shard);
    free(raw);
    free(path);
    free(tokens);
}

static void test_set_is_one_stream(void **state) {
    (void)state;
    enum { VOCAB = 70000 };
    // Sizes 5, 0, 1, 30000, 2; written in another order than their names; the empty one is in the middle.
    const int64_t sizes[5] = {5, 0, 1, 30000, 2};
    int64_t first[6] = {0};
    for (int i = 0; i < 5; ++i) first[i + 1] = first[i] + sizes[i];
    for (int i = 4; i >= 0; --i) {
        char *path = xasprintf("%s/set_%06d.bin", file_test_dir, i);
        write_tokens(path, 2, VOCAB, first[i], sizes[i]);
        free(path);
    }
    char *pattern = path_join(file_test_dir, "set_*.bin");
    Error err = {""};
    ShardSet set;
    assert_true(shard_set_open(&set, pattern, &err));
    assert_true(set.shard_count == 5 && set.token_count == 30008 && set.vocab == VOCAB && set.eot == 0);
    int32_t *tokens = xmalloc(30008 * sizeof *tokens);
    for (int64_t from = 0; from < 10; ++from) {
        for (int64_t to = from; to <= 30008; to += to < 12 || to > 29990 ? 1 : 997) {
            assert_true(shard_set_read(tokens, &set, from, to - from, VOCAB, &err));
            for (int64_t i = from; i < to; ++i)
                if (tokens[i - from] != token_at(i, VOCAB)) fail_msg("range [%ld, %ld) at %ld", from, to, i);
        }
    }
    shard_set_close(&set);
    assert_false(shard_set_open(&set, "", &err));
    char *nothing = path_join(file_test_dir, "nothing_*.bin");
    assert_false(shard_set_open(&set, nothing, &err));
    assert_non_null(strstr(err.message, nothing));
    // One bad shard makes the set an error; so do shards with different end-of-text ids.
    char *path = write_raw("set_999999.bin", (int32_t[]){SHARD_MAGIC, 2, 0, 0, 2, 100, 7}, 7, 1024);
    assert_false(shard_set_open(&set, pattern, &err));
    assert_non_null(strstr(err.message, "expected end-of-text id 0"));
    assert_int_equal(truncate(path, 1000), 0);
    assert_false(shard_set_open(&set, pattern, &err));
    assert_non_null(strstr(err.message, path));
    free(path);
    free(nothing);
    free(tokens);
    free(pattern);
}

// Offsets past 2 and 4 GiB, through a sparse file: only the blocks written take space.
static void test_offsets_past_4_gib(void **state) {
    (void)state;
    const int64_t COUNT = (int64_t)5 << 29, AT = COUNT - 3;  // 5 GiB of uint16
    const int32_t header[7] = {SHARD_MAGIC, 2, (int32_t)(uint32_t)COUNT, (int32_t)(COUNT >> 32), 2, 60000, -1};
    char *path = write_raw("sparse.bin", header, 7, SHARD_HEADER_BYTES);
    if (truncate(path, SHARD_HEADER_BYTES + 2 * COUNT) != 0) {
        print_message("skipped: no sparse file of 5 GiB in %s\n", file_test_dir);
        free(path);
        skip();
    }
    FILE *file = fopen(path, "r+b");
    assert_true(fseek(file, SHARD_HEADER_BYTES + 2 * AT, SEEK_SET) == 0);
    assert_true(fwrite((uint16_t[]){1111, 59999, 3}, 2, 3, file) == 3 && fclose(file) == 0);
    Error err = {""};
    ShardSet set;
    assert_true(shard_set_open(&set, path, &err));
    assert_true(set.token_count == COUNT);
    int32_t tokens[5];
    assert_true(shard_set_read(tokens, &set, AT - 2, 5, 60000, &err));
    assert_true(tokens[0] == 0 && tokens[1] == 0 && tokens[2] == 1111 && tokens[3] == 59999 && tokens[4] == 3);
    assert_false(shard_check_range(&set.shard[0], AT, 3, 59999, &err));
    assert_non_null(strstr(err.message, "position 2684354558"));
    shard_set_close(&set);
    unlink(path);
    free(path);
}

static void test_files_that_change_while_open(void **state) {
    (void)state;
    char *path = path_join(file_test_dir, "changing.bin");
    write_tokens(path, 1, 50000, 0, 10000);
    Error err = {""};
    Shard shard;
    int32_t tokens[10];
    assert_true(shard_open(&shard, path, &err));
    assert_int_equal(truncate(path, SHARD_HEADER_BYTES + 2 * 5000 + 1), 0);
    assert_true(shard_read(tokens, &shard, 4990, 10, 50000, &err));
    assert_false(shard_read(tokens, &shard, 4995, 10, 50000, &err));
    assert_non_null(strstr(err.message, path));
    assert_non_null(strstr(err.message, "truncated while in use"));
    assert_int_equal(unlink(path), 0);  // a deleted file stays readable
    assert_true(shard_read(tokens, &shard, 10, 10, 50000, &err));
    assert_int_equal(tokens[9], token_at(19, 50000));
    shard_close(&shard);
    free(path);
}

static void test_writer_leaves_nothing_half_written(void **state) {
    (void)state;
    char *path = path_join(file_test_dir, "atomic.bin"), *temporary = path_join(file_test_dir, "atomic.bin.tmp");
    write_tokens(path, 1, 100, 0, 10);
    Error err = {""};
    ShardWriter *writer = shard_writer_open(path, 1, 100, -1, &err);
    assert_true(shard_writer_append(writer, (int32_t[]){1, 2, 3}, 3, &err));
    assert_false(shard_writer_append(writer, (int32_t[]){4, 100}, 2, &err));
    assert_non_null(strstr(err.message, "found 100 at position 4"));
    shard_writer_abort(writer);
    assert_false(file_exists(temporary));
    Shard shard;
    assert_true(shard_open(&shard, path, &err) && shard.token_count == 10);  // the old file is unchanged
    shard_close(&shard);
    writer = shard_writer_open(path, 2, 100, 99, &err);
    assert_false(shard_writer_append(writer, (int32_t[]){-1}, 1, &err));
    shard_writer_abort(writer);
    assert_null(shard_writer_open(path, 1, 65537, -1, &err));
    assert_non_null(strstr(err.message, "version 2"));
    char *nowhere = path_join(file_test_dir, "no/such/file_test_dir.bin");
    assert_null(shard_writer_open(nowhere, 1, 100, -1, &err));
    assert_non_null(strstr(err.message, nowhere));
    // A failing rename (the target is a directory) is an error and leaves no temporary file.
    char *taken = path_join(file_test_dir, "taken"), *taken_temporary = path_join(file_test_dir, "taken.tmp");
    assert_true(make_dirs(taken, &err));
    writer = shard_writer_open(taken, 1, 100, -1, &err);
    assert_false(shard_writer_finish(writer, &err));
    assert_false(file_exists(taken_temporary));
    free(taken);
    free(taken_temporary);
    free(nowhere);
    free(path);
    free(temporary);
}

static void test_full_disk(void **state) {
    (void)state;
    if (access("/dev/full", W_OK) != 0) {
        print_message("skipped: no /dev/full here\n");
        skip();
    }
    char *path = path_join(file_test_dir, "full.bin"), *temporary = path_join(file_test_dir, "full.bin.tmp");
    assert_int_equal(symlink("/dev/full", temporary), 0);
    Error err = {""};
    ShardWriter *writer = shard_writer_open(path, 1, 100, -1, &err);
    assert_non_null(writer);
    assert_true(shard_writer_append(writer, (int32_t[]){1}, 1, &err));
    assert_false(shard_writer_finish(writer, &err));
    assert_non_null(strstr(err.message, "No space left"));
    assert_false(file_exists(path));
    free(path);
    free(temporary);
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test_setup_teardown(test_round_trips, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_files_of_llmc, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_malformed_files, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_ids_past_the_vocabulary, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_set_is_one_stream, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_offsets_past_4_gib, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_files_that_change_while_open, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_writer_leaves_nothing_half_written, file_test_dir_setup, file_test_dir_teardown),
        cmocka_unit_test_setup_teardown(test_full_disk, file_test_dir_setup, file_test_dir_teardown),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
