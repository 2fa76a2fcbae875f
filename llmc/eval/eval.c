// eval.c: see eval.h.
#include "llmc/eval/eval.h"

#include <math.h>
#include <stdlib.h>

// The values summed over ranks: two counts (exact in doubles below 2^53), then the loss of each batch, which is 0 on
// ranks that did not compute it.
enum { SUM_TOKENS, SUM_TEXT_BYTES, SUM_BATCHES };

static void add_batch(double *sums, int64_t k, const Batch *batch, const float *nll, const Tokenizer *tokenizer) {
    for (int64_t i = 0; i < batch->B * batch->T; ++i) {
        if (batch->weights[i] == 0) continue;
        sums[SUM_BATCHES + k] += (double)nll[i];
        ++sums[SUM_TOKENS];
        if (tokenizer != NULL) sums[SUM_TEXT_BYTES] += tokenizer_text_bytes(tokenizer, batch->targets[i]);
    }
}

// All ranks must run the model equally often, because its weights may be sharded over them: a rank without a batch left
// computes the last one again and ignores the result.
static bool run_batches(double *sums, Model *model, HeldOut *heldout, const Tokenizer *tokenizer, MeshAxis data,
                        Error *err) {
    int64_t batches = heldout_batches(heldout);
    float *nll = xmalloc(to_size(model->shape.max_rows) * sizeof *nll);
    bool ok = true;
    for (int64_t first = 0; first < batches; first += data.world) {
        int64_t k = first + data.rank;
        const Batch *batch = heldout_batch(heldout, min_i64(k, batches - 1), err);
        ok = batch != NULL;
        if (!ok) break;
        model_begin_step(model);
        model_forward(model, batch, 0, false);
        model->be->download(model->be, nll, model->nll.data, to_size(batch->B * batch->T) * sizeof *nll);
        if (k < batches) add_batch(sums, k, batch, nll, tokenizer);
    }
    free(nll);
    return ok;
}

static bool combine(double *sums, int64_t batches, Control *control, Error *err) {
    CHECK(batches < INT32_MAX - SUM_BATCHES, "batches=%lld", (long long)batches);
    return control_reduce(control, "held-out loss", sums, SUM_BATCHES + (int)batches, NULL, 0) ||
           error_set(err, "the held-out loss could not be reduced over the ranks: the run is ending");
}

EvalResult eval_result(double nll, int64_t tokens, int64_t text_bytes) {
    const double ln2 = 0.693147180559945309;
    EvalResult result = {.tokens = tokens, .text_bytes = text_bytes, .bits_per_byte = -1};
    result.loss = tokens > 0 ? nll / (double)tokens : 0;
    result.perplexity = exp(result.loss);
    if (text_bytes > 0) result.bits_per_byte = nll / (ln2 * (double)text_bytes);
    return result;
}

bool eval_heldout(EvalResult *result, Model *model, HeldOut *heldout, const Tokenizer *tokenizer, Control *control,
                  MeshAxis data, Error *err) {
    int64_t batches = heldout_batches(heldout);
    CHECK(mesh_axis_is_valid(data), "rank=%d world=%d", data.rank, data.world);
    double *sums = xcalloc(to_size(SUM_BATCHES + batches), sizeof *sums);
    bool ok = run_batches(sums, model, heldout, tokenizer, data, err) &&
              (data.world == 1 || combine(sums, batches, control, err));
    double nll = 0;
    for (int64_t k = 0; k < batches; ++k) nll += sums[SUM_BATCHES + k];
    *result = eval_result(nll, (int64_t)sums[SUM_TOKENS], (int64_t)sums[SUM_TEXT_BYTES]);
    free(sums);
    return ok;
}
