// eval.c: see eval.h.
#include "llmc/eval/eval.h"

#include <math.h>
#include <stdlib.h>

// What is summed over ranks: two counts (doubles below 2^53 are exact), then the loss of each batch by itself, which
// is 0 on the ranks that did not have it.
enum { SUM_TOKENS, SUM_TEXT_BYTES, SUM_BATCHES };

static void add_batch(double *sums, int64_t k, const Batch *batch, const float *nll, const Tokenizer *tokenizer) {
    for (int64_t i = 0; i < batch->B * batch->T; ++i) {
        if (batch->weights[i] == 0) continue;
        sums[SUM_BATCHES + k] += (double)nll[i];
        ++sums[SUM_TOKENS];
        if (tokenizer != NULL) sums[SUM_TEXT_BYTES] += tokenizer_text_bytes(tokenizer, batch->targets[i]);
    }
}

// Every rank runs the model as often as any other, for the model may be one that all of them hold together: who has
// no batch left repeats the last one for nothing.
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
           error_set(err, "the held-out loss could not be combined over the ranks: the run is ending");
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
    *result = (EvalResult){.tokens = (int64_t)sums[SUM_TOKENS], .text_bytes = (int64_t)sums[SUM_TEXT_BYTES],
                           .bits_per_byte = -1};
    free(sums);
    if (!ok) return false;
    result->loss = result->tokens > 0 ? nll / (double)result->tokens : 0;
    result->perplexity = exp(result->loss);
    if (result->text_bytes > 0) result->bits_per_byte = nll / (0.693147180559945309 * (double)result->text_bytes);
    return true;
}
