// batch.h: the input of training and evaluation: rows of tokens with targets, loss weights, segment ids and prefixes,
// and the host memory that holds them. Must not know files or devices.
#ifndef LLMC_BATCH_H
#define LLMC_BATCH_H

#include "llmc/base/common.h"

// Rows of one micro-batch (B, T), host memory.
typedef struct {
    int64_t B, T;
    const int32_t *tokens;   // (B,T)
    const int32_t *targets;  // (B,T)
    const float *weights;    // (B,T) loss weight; 0: the token adds nothing to the loss
    const int32_t *doc;      // (B,T) segment id within the row, from 0, non-decreasing; NULL: no document mask
    const uint8_t *prefix;   // (B,T) 1: visible to the whole segment; NULL: causal
    const int32_t *source;   // (B) source of the row
    const int64_t *row_index;  // (B) index of the row in its source (rows of T tokens); -1: padding
} Batch;

// The most that a buffer must hold: the micro-batches of one step, their rows contiguous.
typedef struct {
    int64_t batches, rows, tokens;
    bool doc, prefix;  // room for them
} BatchCapacity;

typedef struct {
    BatchCapacity capacity;
    int32_t *tokens, *targets, *doc, *source;
    int64_t *row_index;
    float *weights;
    uint8_t *prefix;
    Batch *batch;  // [capacity.batches]
} BatchBuffer;

// Host bytes that batch_buffer_init takes.
size_t batch_buffer_bytes(BatchCapacity capacity);
void batch_buffer_init(BatchBuffer *buffer, BatchCapacity capacity);
void batch_buffer_free(BatchBuffer *buffer);
// The optional arrays of a batch.
enum { BATCH_DOC = 1, BATCH_PREFIX = 2 };
// Makes batch[0..batches) contiguous views of (B,T) each. parts: which of the optional arrays they have (BATCH_DOC,
// BATCH_PREFIX or both).
void batch_buffer_shape(BatchBuffer *buffer, int64_t batches, int64_t B, int64_t T, unsigned parts);

// One row of a batch, of T tokens, to be written: what a RowFormat fills.
typedef struct {
    int64_t T;
    int32_t *tokens, *targets;
    float *weights;
    int32_t *doc;     // NULL when the batch has no segment ids
    uint8_t *prefix;  // NULL when the batch has no prefixes
    int32_t *source;     // one element
    int64_t *row_index;  // one element
} BatchRow;

BatchRow batch_buffer_row(BatchBuffer *buffer, int64_t row);
// Plain text: tokens[i] = stream[i], targets[i] = stream[i+1], weight 1, for i < count <= T; the rest of the row is
// token 0 with weight 0. stream holds count+1 tokens. A segment starts at each token `eot`, which precedes each
// document; eot -1: one segment. No prefix. Returns the sum of the weights. count 0 makes a row of padding.
double batch_row_fill(const BatchRow *row, const int32_t *stream, int64_t count, int32_t eot);
#endif
