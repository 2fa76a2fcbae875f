// test_batch.c: rows are written completely, memory around them is unchanged, and batches are contiguous views.
#include "llmc/loader/batch.h"

#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

// A buffer with capacity for more than its 3 batches of (2, 4); every array is poisoned.
static void poisoned_init(BatchBuffer *buffer, bool with_doc) {
    batch_buffer_init(buffer, (BatchCapacity){.batches = 4, .rows = 10, .tokens = 50, .doc = with_doc});
    memset(buffer->tokens, 0xAB, 50 * sizeof(int32_t));
    memset(buffer->targets, 0xAB, 50 * sizeof(int32_t));
    memset(buffer->weights, 0xFF, 50 * sizeof(float));  // NaN
    if (with_doc) memset(buffer->doc, 0xAB, 50 * sizeof(int32_t));
    batch_buffer_shape(buffer, 3, 2, 4, with_doc);
}

static void check_row(int64_t count, int32_t eot, const int32_t *expected_doc) {
    const int32_t stream[5] = {9, 9, 5, 9, 7}, poison = (int32_t)0xABABABAB;
    BatchBuffer buffer;
    poisoned_init(&buffer, expected_doc != NULL);
    BatchRow row = batch_buffer_row(&buffer, 3);  // row 1 of batch 1
    assert_true(batch_row_fill(&row, stream, count, eot) == (double)count);
    *row.source = 6;
    *row.row_index = (int64_t)5 << 40;
    const Batch *batch = &buffer.batch[1];
    assert_true(batch->B == 2 && batch->T == 4 && batch->prefix == NULL && batch->source[1] == 6);
    assert_true(batch->row_index[1] == (int64_t)5 << 40 && batch->row_index[0] == 0);
    assert_true((batch->doc != NULL) == (expected_doc != NULL));
    for (int i = 0; i < 4; ++i) {
        assert_int_equal(batch->tokens[4 + i], i < count ? stream[i] : 0);
        assert_int_equal(batch->targets[4 + i], i < count ? stream[i + 1] : 0);
        assert_true(batch->weights[4 + i] == (i < count ? 1.0f : 0.0f));
        if (expected_doc != NULL) assert_int_equal(batch->doc[4 + i], expected_doc[i]);
    }
    const int64_t neighbours[2] = {11, 16};  // the elements before and after row 3
    for (int n = 0; n < 2; ++n) {
        assert_int_equal(buffer.tokens[neighbours[n]], poison);
        assert_int_equal(buffer.targets[neighbours[n]], poison);
        assert_true(buffer.weights[neighbours[n]] != buffer.weights[neighbours[n]]);
        if (expected_doc != NULL) assert_int_equal(buffer.doc[neighbours[n]], poison);
    }
    batch_buffer_free(&buffer);
}

static void test_rows(void **state) {
    (void)state;
    check_row(4, -1, NULL);
    check_row(4, 9, NULL);
    check_row(4, 9, (int32_t[]){0, 1, 1, 2});   // an end-of-text token at position 0 starts segment 0
    check_row(4, 5, (int32_t[]){0, 0, 1, 1});
    check_row(4, 7, (int32_t[]){0, 0, 0, 0});   // only as the last target: the segment starts in the next row
    check_row(4, -1, (int32_t[]){0, 0, 0, 0});
    check_row(3, 9, (int32_t[]){0, 1, 1, 1});   // padding belongs to the last segment
    check_row(0, 9, (int32_t[]){0, 0, 0, 0});
    check_row(3, 0, (int32_t[]){0, 0, 0, 0});   // padding tokens are not end-of-text tokens
}

static void test_batches_stand_in_line(void **state) {
    (void)state;
    BatchBuffer buffer;
    poisoned_init(&buffer, true);
    for (int m = 0; m < 3; ++m) {
        const Batch *batch = &buffer.batch[m];
        assert_true(batch->tokens == buffer.tokens + 8 * m && batch->targets == buffer.targets + 8 * m);
        assert_true(batch->weights == buffer.weights + 8 * m && batch->doc == buffer.doc + 8 * m);
        assert_true(batch->source == buffer.source + 2 * m && batch->row_index == buffer.row_index + 2 * m);
    }
    batch_buffer_shape(&buffer, 1, 5, 10, false);  // another phase: same memory, other shape
    assert_true(buffer.batch[0].B == 5 && buffer.batch[0].T == 10 && buffer.batch[0].doc == NULL);
    BatchRow last = batch_buffer_row(&buffer, 4);
    assert_true(last.tokens == buffer.tokens + 40 && last.doc == NULL);
    batch_buffer_free(&buffer);
}

static void test_bytes(void **state) {
    (void)state;
    BatchCapacity capacity = {.batches = 4, .rows = 10, .tokens = 50};
    assert_int_equal(batch_buffer_bytes(capacity), 50 * 12 + 10 * 12 + 4 * sizeof(Batch));
    capacity.doc = true;
    assert_int_equal(batch_buffer_bytes(capacity), 50 * 16 + 10 * 12 + 4 * sizeof(Batch));
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
        cmocka_unit_test(test_rows),
        cmocka_unit_test(test_batches_stand_in_line),
        cmocka_unit_test(test_bytes),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
