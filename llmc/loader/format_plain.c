// format_plain.c: plain text. Row k predicts stream[kT+1 .. kT+T] from stream[kT .. kT+T-1], every token with weight 1;
// with a document mask a segment starts at each end-of-text token. Rows may cross shards and begin inside documents.
#include "llmc/loader/row_format.h"

static int64_t plain_rows(const RowSource *source, int64_t T) {
    int64_t predictions = max_i64(0, source->token_count - 1);
    return source->heldout ? div_up(predictions, T) : predictions / T;
}

static int64_t plain_longest_read(int64_t T) { return T + 1; }

static bool plain_fill(const BatchRow *row, double *weight_sum, const RowSource *source, int64_t index, uint64_t seed,
                       Error *err) {
    (void)seed;
    int64_t first = index * row->T;
    int64_t count = min_i64(row->T, source->token_count - 1 - first);
    const int32_t *text = row_source_read(source, first, count + 1, err);
    if (text == NULL) return false;
    *weight_sum = batch_row_fill(row, text, count, source->doc_mask ? source->eot : -1);
    return true;
}

const RowFormat ROW_FORMAT_PLAIN = {
    .name = "plain", .rows = plain_rows, .longest_read = plain_longest_read, .fill = plain_fill};
