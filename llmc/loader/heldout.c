// heldout.c: held-out text in order, every token predicted once; see heldout.h.
#include <stdlib.h>

#include "llmc/loader/heldout.h"
#include "llmc/loader/row_format.h"

struct HeldOut {
    ShardSet set;
    const RowFormat *format;
    RowSource stream;  // the set as the format reads it
    int64_t B, T, rows;
    BatchBuffer buffer;
};

static bool open_set(HeldOut *heldout, const SourceConfig *source, int64_t max_tokens, int64_t vocab, int32_t eot,
                     Error *err) {
    ShardSet *set = &heldout->set;
    if (!shard_set_open(set, source->val, err)) return error_prefix(err, "source %s: val", source->name);
    if (vocab == 0) vocab = set->vocab;
    if (eot < 0) eot = set->eot;
    if (!shard_set_check(set, vocab, eot, err)) return error_prefix(err, "source %s: val", source->name);
    if (source->doc_mask && eot < 0)
        return error_set(err, "source %s: doc_mask needs the end-of-text id, which neither the tokenizer nor the "
                         "held-out shards state", source->name);
    int64_t token_count = max_tokens > 0 ? min_i64(set->token_count - 1, max_tokens) + 1 : set->token_count;
    heldout->stream = (RowSource){.set = set, .token_count = token_count, .vocab = vocab, .eot = eot,
                                  .doc_mask = source->doc_mask, .heldout = true};
    heldout->rows = heldout->format->rows(&heldout->stream, heldout->T);
    if (heldout->rows < 1)
        return error_set(err, "source %s: expected at least 2 held-out tokens in %s, found %lld", source->name,
                         source->val, (long long)set->token_count);
    return true;
}

bool heldout_open(HeldOut **out, const SourceConfig *source, int64_t B, int64_t T, int64_t max_tokens, int64_t vocab,
                  int32_t eot, Error *err) {
    CHECK(B > 0 && T > 0 && max_tokens >= 0, "B=%lld T=%lld max_tokens=%lld", (long long)B, (long long)T,
          (long long)max_tokens);
    const RowFormat *format = row_format_find(source->format, err);
    if (format == NULL) return error_prefix(err, "source %s", source->name);
    HeldOut *heldout = xcalloc(1, sizeof *heldout);
    *heldout = (HeldOut){.format = format, .B = B, .T = T};
    if (!open_set(heldout, source, max_tokens, vocab, eot, err)) {
        heldout_close(heldout);
        return false;
    }
    RowSource *stream = &heldout->stream;
    stream->buffer_tokens = format->longest_read(T);
    stream->buffer = xcalloc(to_size(stream->buffer_tokens), sizeof *stream->buffer);
    bool doc = source->doc_mask, prefix = format->makes_prefix;
    batch_buffer_init(&heldout->buffer,
                      (BatchCapacity){.batches = 1, .rows = B, .tokens = B * T, .doc = doc, .prefix = prefix});
    batch_buffer_shape(&heldout->buffer, 1, B, T,
                       (doc ? (unsigned)BATCH_DOC : 0) | (prefix ? (unsigned)BATCH_PREFIX : 0));
    *out = heldout;
    return true;
}

void heldout_close(HeldOut *heldout) {
    shard_set_close(&heldout->set);
    batch_buffer_free(&heldout->buffer);
    free(heldout->stream.buffer);
    free(heldout);
}

int64_t heldout_batches(const HeldOut *heldout) { return div_up(heldout->rows, heldout->B); }


const Batch *heldout_batch(HeldOut *heldout, int64_t k, Error *err) {
    CHECK(k >= 0 && k < heldout_batches(heldout), "k=%lld of %lld", (long long)k,
          (long long)heldout_batches(heldout));
    for (int64_t b = 0; b < heldout->B; ++b) {
        BatchRow row = batch_buffer_row(&heldout->buffer, b);
        int64_t index = k * heldout->B + b;
        double weight_sum;
        if (index >= heldout->rows) batch_row_fill(&row, NULL, 0, -1);
        else if (!heldout->format->fill(&row, &weight_sum, &heldout->stream, index, 0, err)) return NULL;
        *row.source = 0;
        *row.row_index = index < heldout->rows ? index : -1;
    }
    return &heldout->buffer.batch[0];
}
