// batch.c: see batch.h.
#include "llmc/loader/batch.h"

#include <stdlib.h>
#include <string.h>

size_t batch_buffer_bytes(BatchCapacity capacity) {
    size_t token_bytes = 2 * sizeof(int32_t) + sizeof(float) + (capacity.doc ? sizeof(int32_t) : 0) +
                         (capacity.prefix ? sizeof(uint8_t) : 0);
    return to_size(capacity.tokens) * token_bytes + to_size(capacity.rows) * (sizeof(int32_t) + sizeof(int64_t)) +
           to_size(capacity.batches) * sizeof(Batch);
}

void batch_buffer_init(BatchBuffer *buffer, BatchCapacity capacity) {
    size_t tokens = to_size(capacity.tokens);
    *buffer = (BatchBuffer){.capacity = capacity};
    buffer->tokens = xcalloc(tokens, sizeof *buffer->tokens);
    buffer->targets = xcalloc(tokens, sizeof *buffer->targets);
    buffer->weights = xcalloc(tokens, sizeof *buffer->weights);
    if (capacity.doc) buffer->doc = xcalloc(tokens, sizeof *buffer->doc);
    if (capacity.prefix) buffer->prefix = xcalloc(tokens, sizeof *buffer->prefix);
    buffer->source = xcalloc(to_size(capacity.rows), sizeof *buffer->source);
    buffer->row_index = xcalloc(to_size(capacity.rows), sizeof *buffer->row_index);
    buffer->batch = xcalloc(to_size(capacity.batches), sizeof *buffer->batch);
}

void batch_buffer_free(BatchBuffer *buffer) {
    free(buffer->tokens);
    free(buffer->targets);
    free(buffer->weights);
    free(buffer->doc);
    free(buffer->prefix);
    free(buffer->source);
    free(buffer->row_index);
    free(buffer->batch);
    *buffer = (BatchBuffer){0};
}

void batch_buffer_shape(BatchBuffer *buffer, int64_t batches, int64_t B, int64_t T, unsigned parts) {
    const BatchCapacity *capacity = &buffer->capacity;
    CHECK(batches <= capacity->batches && batches * B <= capacity->rows && batches * B * T <= capacity->tokens,
          "%lld batches of (%lld, %lld) do not fit", (long long)batches, (long long)B, (long long)T);
    bool with_doc = (parts & BATCH_DOC) != 0, with_prefix = (parts & BATCH_PREFIX) != 0;
    CHECK((!with_doc || capacity->doc) && (!with_prefix || capacity->prefix), "no room for parts %#x", parts);
    for (int64_t m = 0; m < batches; ++m) {
        int64_t at = m * B * T;
        buffer->batch[m] = (Batch){.B = B, .T = T, .tokens = buffer->tokens + at, .targets = buffer->targets + at,
                                   .weights = buffer->weights + at, .doc = with_doc ? buffer->doc + at : NULL,
                                   .prefix = with_prefix ? buffer->prefix + at : NULL,
                                   .source = buffer->source + m * B, .row_index = buffer->row_index + m * B};
    }
}

BatchRow batch_buffer_row(BatchBuffer *buffer, int64_t row) {
    const Batch *first = &buffer->batch[0];
    int64_t at = row * first->T;
    CHECK(row >= 0 && row < buffer->capacity.rows && at + first->T <= buffer->capacity.tokens, "row=%lld",
          (long long)row);
    return (BatchRow){.T = first->T, .tokens = buffer->tokens + at, .targets = buffer->targets + at,
                      .weights = buffer->weights + at, .doc = first->doc != NULL ? buffer->doc + at : NULL,
                      .prefix = first->prefix != NULL ? buffer->prefix + at : NULL,
                      .source = buffer->source + row, .row_index = buffer->row_index + row};
}

double batch_row_fill(const BatchRow *row, const int32_t *stream, int64_t count, int32_t eot) {
    CHECK(count >= 0 && count <= row->T, "count=%lld T=%lld", (long long)count, (long long)row->T);
    size_t used_bytes = to_size(count) * sizeof(int32_t), padding_bytes = to_size(row->T - count) * sizeof(int32_t);
    if (count > 0) {
        memcpy(row->tokens, stream, used_bytes);
        memcpy(row->targets, stream + 1, used_bytes);
    }
    memset(row->tokens + count, 0, padding_bytes);
    memset(row->targets + count, 0, padding_bytes);
    for (int64_t i = 0; i < row->T; ++i) row->weights[i] = i < count ? 1 : 0;
    if (row->prefix != NULL) memset(row->prefix, 0, to_size(row->T));
    if (row->doc != NULL) {
        int32_t segment = 0;
        for (int64_t i = 0; i < row->T; ++i) {
            // A token at position 0 cannot start a second segment; padding belongs to the last one.
            if (i > 0 && i < count && eot >= 0 && stream[i] == eot) ++segment;
            row->doc[i] = segment;
        }
    }
    return (double)count;
}
