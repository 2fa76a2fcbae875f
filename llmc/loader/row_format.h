// row_format.h: how rows are made from the tokens of a source. A format is a struct of functions and one row of the
// table ROW_FORMATS (row_formats.c); training and held-out rows are made by the same functions. A format reads its
// source only through row_source_read. Must not know the mixture, steps, ranks or the loader.
#ifndef LLMC_ROW_FORMAT_H
#define LLMC_ROW_FORMAT_H

#include "llmc/loader/batch.h"
#include "llmc/loader/shard.h"

// What a format reads: a stream of tokens in which the token `eot` precedes each document.
typedef struct {
    const ShardSet *set;
    int64_t token_count;  // tokens [0, token_count) of the set may be read
    int64_t vocab;        // ids >= vocab are errors; 0: any id is allowed
    int32_t eot;          // -1: unknown
    bool doc_mask;        // attention stays inside documents: rows have segment ids
    bool heldout;         // the rest of the text at the end makes one more row, padded with weight 0; two tokens are
                          // enough for a row
    int32_t *buffer;      // [buffer_tokens] destination of reads; owned by the caller, may be shared by sources
    int64_t buffer_tokens;
} RowSource;

// Tokens [first, first + count) of the source, valid until the next read; count <= buffer_tokens. NULL and err as
// shard_set_read.
const int32_t *row_source_read(const RowSource *source, int64_t first, int64_t count, Error *err);

typedef struct {
    const char *name;
    bool makes_prefix;  // its rows may have prefixes: batches of a phase that uses it have `prefix`
    // Number of rows of T tokens in the source; 0: it is too short. A pure function of token_count, heldout and T.
    int64_t (*rows)(const RowSource *source, int64_t T);
    // The most tokens that a row of T tokens reads at once; a source of this many tokens has at least one row.
    int64_t (*longest_read)(int64_t T);
    // Writes every element of the row's arrays, for index in [0, rows): tokens and targets (ids below source->vocab),
    // weights >= 0, doc where it is not NULL (0 without source->doc_mask), prefix where it is not NULL (it never is
    // if makes_prefix). batch_row_fill with count 0 makes a row of padding to start from. The caller sets `source` and
    // `row_index`.
    // The same arguments give the same bits: random numbers are drawn from (seed, index), where seed is that of this
    // source and epoch. *weight_sum = the sum of the weights in double. False and err when the source cannot be read.
    // Allocates nothing.
    bool (*fill)(const BatchRow *row, double *weight_sum, const RowSource *source, int64_t index, uint64_t seed,
                 Error *err);
} RowFormat;

extern const RowFormat *const ROW_FORMATS[];  // ends with NULL; the first one is the default
// name "": the default. NULL and an err that lists all formats when none has this name.
const RowFormat *row_format_find(const char *name, Error *err);
#endif
