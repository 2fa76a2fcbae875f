// eval.c: see eval.h.
#include "llmc/eval.h"

#include <math.h>
#include <stdlib.h>

bool eval_heldout(EvalResult *result, Model *model, HeldOut *heldout, const Tokenizer *tokenizer, Error *err) {
    *result = (EvalResult){.bits_per_byte = -1};
    float *nll = xmalloc(to_size(model->shape.max_rows) * sizeof *nll);
    double nll_sum = 0;
    const Batch *batch = NULL;
    int64_t batches = heldout_batches(heldout);
    for (int64_t k = 0; k < batches && (batch = heldout_batch(heldout, k, err)) != NULL; ++k) {
        int64_t N = batch->B * batch->T;
        model_begin_step(model);
        model_forward(model, batch, 0, false);
        model->be->download(model->be, nll, model->nll.data, to_size(N) * sizeof *nll);
        for (int64_t i = 0; i < N; ++i) {
            if (batch->weights[i] == 0) continue;
            nll_sum += (double)nll[i];
            ++result->tokens;
            if (tokenizer != NULL) result->text_bytes += tokenizer_text_bytes(tokenizer, batch->targets[i]);
        }
    }
    free(nll);
    if (batches > 0 && batch == NULL) return false;
    result->loss = result->tokens > 0 ? nll_sum / (double)result->tokens : 0;
    result->perplexity = exp(result->loss);
    if (result->text_bytes > 0) result->bits_per_byte = nll_sum / (0.693147180559945309 * (double)result->text_bytes);
    return true;
}
