// run_report.c: reports of a run: held-out loss, samples, the cost of communication, the summary.
#include "llmc/run/run.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static void log_result(Run *run, const char *source, const EvalResult *result) {
    EvalRecord record = {.step = run->progress.step,
                         .tokens = schedule_tokens_before(&run->schedule, run->progress.step),
                         .source = source,
                         .loss = result->loss,
                         .perplexity = result->perplexity,
                         .bits_per_byte = result->bits_per_byte};
    logger_eval(run->logger, &record);
}

bool run_evaluate(Run *run, Error *err) {
    double nll = 0;
    int64_t tokens = 0, sources = 0, bytes = 0;
    for (int s = 0; s < run->config.source_count; ++s) {
        if (run->heldout[s] == NULL) continue;
        EvalResult result;
        if (!eval_heldout(&result, &run->model, run->heldout[s], run->tokenizer, run->control,
                          run->mesh.data.axis, err))
            return false;
        log_result(run, run->config.source[s].name, &result);
        nll += result.loss * (double)result.tokens;
        tokens += result.tokens;
        bytes += result.text_bytes;
        ++sources;
    }
    EvalResult mean = eval_result(nll, tokens, bytes);
    if (sources > 1) log_result(run, "mean", &mean);
    return true;
}

typedef struct {
    const Tokenizer *tokenizer;
    char *text;
    size_t length;
} SampleText;

static bool append_token(void *context, int32_t id) {
    SampleText *sample = context;
    int32_t bytes;
    if (id >= tokenizer_vocab(sample->tokenizer)) return true;  // the model's vocabulary is larger: this id has no text
    const uint8_t *token = tokenizer_token(sample->tokenizer, id, &bytes);
    sample->text = xrealloc(sample->text, sample->length + (size_t)bytes + 1);
    memcpy(sample->text + sample->length, token, (size_t)bytes);
    sample->length += (size_t)bytes;
    sample->text[sample->length] = '\0';
    return true;
}

void run_sample(Run *run) {
    if (run->tokenizer == NULL || run->model.shape.cache_tokens == 0) return;
    int32_t eot = tokenizer_eot(run->tokenizer);
    TokenList prompt = {0};
    // The prompt follows an end-of-text token, like every document in the shards.
    if (eot >= 0) token_list_push(&prompt, eot);
    tokenizer_encode(run->tokenizer, &prompt, run->config.sample_prompt, (int64_t)strlen(run->config.sample_prompt),
                     false);
    if (prompt.count == 0 || prompt.count >= run->model.shape.cache_tokens) {
        token_list_free(&prompt);
        return;
    }
    SampleOptions options = {.temperature = 0.8,
                             .top_p = 0.95,
                             .seed = (uint64_t)run->config.seed,
                             .max_tokens = run->config.sample_tokens};
    SampleText sample = {.tokenizer = run->tokenizer,
                         .text = xstrdup(run->config.sample_prompt),
                         .length = strlen(run->config.sample_prompt)};
    // In ZeRO stage 3 every token is a collective, so no rank may stop before the others, and ranks on different
    // processors may draw different tokens.
    int32_t stop = run->model.part.options.stage == 3 ? -1 : eot;
    sample_continue(&run->model, prompt.ids, prompt.count, stop, &options, append_token, &sample);
    logger_sample(run->logger, run->progress.step, sample.text);
    free(sample.text);
    token_list_free(&prompt);
}

// Peak resident memory of this process, "VmHWM" of /proc; 0: unknown.
static double peak_resident_bytes(void) {
    char line[256];
    double kib = 0;
    FILE *file = fopen("/proc/self/status", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "VmHWM: %lf kB", &kib) == 1) break;
    if (file != NULL) fclose(file);
    return kib * 1024;
}

void run_report_ranks(Run *run) {
    int world = run->launch.world;
    if (world == 1) return;
    const double mine[2] = {peak_resident_bytes(), (double)run->plan.total_bytes};
    double(*all)[2] = xcalloc((size_t)world, sizeof *all);
    if (control_gather(run->control, "memory of ranks", all, mine, sizeof mine)) {
        int off = 0;
        for (int r = 1; r < world; ++r)
            if (fabs(all[r][0] / all[r][1] - 1) > fabs(all[off][0] / all[off][1] - 1)) off = r;
        CommStats stats;
        run->mesh.data.comm->stats(run->mesh.data.comm, &stats);
        double steps = (double)max_i64(1, run->reported);
        logger_message(run->logger,
                       "ranks    communication %.1f ms a step, %.0f %% of it hidden; %.1f MiB sent per step and rank",
                       stats.busy_seconds / steps * 1e3,
                       100 * (1 - stats.exposed_seconds / fmax(stats.busy_seconds, 1e-9)),
                       (double)stats.bytes / steps / 1048576.0);
        if (run->be->shares_host_memory)
            logger_message(run->logger, "memory   rank 0 used %.1f MiB of %.1f planned; largest difference: rank %d, %.1f "
                                        "of %.1f (%+.1f %%)", all[0][0] / 1048576.0, all[0][1] / 1048576.0, off,
                           all[off][0] / 1048576.0, all[off][1] / 1048576.0,
                           100 * (all[off][0] / all[off][1] - 1));
    }
    free(all);
}

void run_print_summary(const Run *run) {
    if (run->launch.rank > 0) return;
    const char *dir = run->config.out_dir;
    char checkpoint[CONFIG_PATH_BYTES + 32];
    snprintf(checkpoint, sizeof checkpoint, "%s/step_%08lld", dir, (long long)run->progress.step);
    printf("\nstep %lld, %.1f s of training\n", (long long)run->progress.step, run->progress.seconds);
    printf("  checkpoint   %s   (a Hugging Face model directory)\n", checkpoint);
    printf("  loss curve   %s/loss.svg\n", dir);
    printf("  metrics      %s/metrics.jsonl, and TensorBoard events beside it: tensorboard --logdir %s\n", dir, dir);
    printf("try next\n");
    if (run->tokenizer != NULL) printf("  train_gpt sample ckpt=%s prompt=\"Once\"\n", checkpoint);
    if (run->config.source_count > 0 && run->config.source[0].val[0] != '\0')
        printf("  train_gpt eval ckpt=%s data='%s'\n", checkpoint, run->config.source[0].val);
    printf("  train_gpt ckpt verify %s\n", checkpoint);
}
