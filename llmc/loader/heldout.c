// heldout.c: held-out text in order, every token predicted once; see heldout.h.
#include <stdlib.h>

#include "llmc/loader/heldout.h"
#include "llmc/loader/shard.h"

struct HeldOut {
    ShardSet set;
    int64_t B, T, vocab;
    int64_t predictions;
    int32_t eot;  // -1 without a document mask
    int32_t *stream;
    BatchBuffer buffer;
};

bool heldout_open(HeldOut **out, const SourceConfig *source, int64_t B, int64_t T, int64_t max_tokens, int64_t vocab,
                  int32_t eot, Error *err) {
    CHECK(B > 0 && T > 0 && max_tokens >= 0, "B=%lld T=%lld max_tokens=%lld", (long long)B, (long long)T,
          (long long)max_tokens);
    ShardSet set;
    if (!shard_set_open(&set, source->val, err)) return error_prefix(err, "source %s: val", source->name);
    if (vocab == 0) vocab = set.vocab;
    if (eot < 0) eot = set.eot;
    bool ok = shard_set_check(&set, vocab, eot, err) || error_prefix(err, "source %s: val", source->name);
    if (ok && source->doc_mask && eot < 0)
        ok = error_set(err, "source %s: doc_mask needs the end-of-text id, which neither the tokenizer nor the "
                       "held-out shards state", source->name);
    if (ok && set.token_count < 2)
        ok = error_set(err, "source %s: expected at least 2 held-out tokens in %s, found %lld", source->name,
                       source->val, (long long)set.token_count);
    if (!ok) {
        shard_set_close(&set);
        return false;
    }
    HeldOut *heldout = xcalloc(1, sizeof *heldout);
    *heldout = (HeldOut){.set = set, .B = B, .T = T, .vocab = vocab, .predictions = set.token_count - 1,
                         .eot = source->doc_mask ? eot : -1};
    if (max_tokens > 0) heldout->predictions = min_i64(heldout->predictions, max_tokens);
    heldout->stream = xcalloc(to_size(T + 1), sizeof *heldout->stream);
    batch_buffer_init(&heldout->buffer,
                      (BatchCapacity){.batches = 1, .rows = B, .tokens = B * T, .doc = source->doc_mask});
    batch_buffer_shape(&heldout->buffer, 1, B, T, source->doc_mask);
    *out = heldout;
    return true;
}

void heldout_close(HeldOut *heldout) {
    shard_set_close(&heldout->set);
    batch_buffer_free(&heldout->buffer);
    free(heldout->stream);
    free(heldout);
}

int64_t heldout_batches(const HeldOut *heldout) {
    return div_up(div_up(heldout->predictions, heldout->T), heldout->B);
}

int64_t heldout_tokens(const HeldOut *heldout) { return heldout->predictions; }

const Batch *heldout_batch(HeldOut *heldout, int64_t k, Error *err) {
    CHECK(k >= 0 && k < heldout_batches(heldout), "k=%lld of %lld", (long long)k,
          (long long)heldout_batches(heldout));
    for (int64_t b = 0; b < heldout->B; ++b) {
        int64_t first = (k * heldout->B + b) * heldout->T;
        int64_t count = max_i64(0, min_i64(heldout->T, heldout->predictions - first));
        if (count > 0 && !shard_set_read(heldout->stream, &heldout->set, first, count + 1, heldout->vocab, err))
            return NULL;
        BatchRow row = batch_buffer_row(&heldout->buffer, b);
        batch_row_fill(&row, heldout->stream, count, heldout->eot);
        *row.source = 0;
        *row.row_index = count > 0 ? first / heldout->T : -1;
    }
    return &heldout->buffer.batch[0];
}
