// command_sample.c: train_gpt sample: continues a prompt.
#include <stdlib.h>
#include <string.h>

#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/eval/sample.h"
#include "llmc/formats/model_file.h"

static const char USAGE[] =
    "train_gpt sample ckpt=DIR [key=value ...]\n"
    "\n"
    "Continues a prompt, token by token.\n"
    "\n"
    "example\n"
    "  train_gpt sample ckpt=runs/kjv/step_00000500 prompt=\"And God said\" tokens=200";

typedef struct {
    const Tokenizer *tokenizer;
    bool ids;
} SamplePrinter;

static bool print_token(void *context, int32_t id) {
    const SamplePrinter *printer = context;
    if (printer->ids || printer->tokenizer == NULL) {
        printf(" %d", id);
    } else if (id < tokenizer_vocab(printer->tokenizer)) {  // ids of a padded vocabulary have no text
        int32_t bytes;
        const uint8_t *token = tokenizer_token(printer->tokenizer, id, &bytes);
        fwrite(token, 1, (size_t)bytes, stdout);
    }
    fflush(stdout);
    return true;
}

static bool build_prompt(TokenList *out, const OpenModel *model, const char *prompt, const char *ids, Error *err) {
    if (ids != NULL) return command_parse_ids(out, ids, model->model.config.V, err);
    if (model->tokenizer == NULL)
        return error_set(
            err, "the model's directory has no tokenizer: set tokenizer=PATH, or give the prompt as ids=\"1 2 3\"");
    int32_t eot = tokenizer_eot(model->tokenizer);
    if (eot >= 0) token_list_push(out, eot);
    tokenizer_encode(model->tokenizer, out, prompt, (int64_t)strlen(prompt), false);
    return out->count > 0 ? true : error_set(err, "prompt: expected some text, found nothing");
}

int command_sample(int argc, char **argv) {
    OpenModelOptions open = {.tokenizer = "", .device = "auto", .rows = 256};
    const char *prompt = "", *ids = NULL;
    int64_t seed = 1, tokens = 256, top_k = 0, context = 0, samples = 1;
    double temperature = 0.8, top_p = 0.95;
    const Option rows[] = {
        COMMAND_MODEL_ROWS(open),
        {"prompt", OPTION_TO(prompt), .help = "text to continue"},
        {"ids", OPTION_TO(ids), .help = "prompt as token ids; the output is ids too"},
        {"tokens", OPTION_TO(tokens), OPTION_WHOLE, 1, 1e9, .help = "largest number of new tokens"},
        {"temperature", OPTION_TO(temperature), OPTION_REAL, 0, 100, .help = "0: greedy"},
        {"top_k", OPTION_TO(top_k), OPTION_WHOLE, 0, 1e9, .help = "sample from the k most likely tokens; 0: all"},
        {"top_p", OPTION_TO(top_p), OPTION_REAL, 0, 1,
         .help = "sample from the most likely tokens up to this total probability; 1: all"},
        {"seed", OPTION_TO(seed), OPTION_WHOLE, 0, 9e18, .help = "same seed, same text"},
        {"samples", OPTION_TO(samples), OPTION_WHOLE, 1, 1e6, .help = "continuations, with seeds seed, seed+1, ..."},
        {"context", OPTION_TO(context), OPTION_WHOLE, 0, 1e9,
         .help = "positions of the KV cache; 0: the model's length"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_KEYS, .program = "train_gpt", .about = USAGE};
    int status = options_read(&table, argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    Error err = {""};
    if (open.path == NULL) {
        fprintf(stderr, "train_gpt sample: expected ckpt=DIR, see --help\n");
        return 2;
    }
    ModelConfig arch;
    if (!model_file_read_config(&arch, open.path, &err)) return command_fail(&err);
    open.seq_len = open.cache_tokens = context > 0 ? context : arch.max_seq_len;
    OpenModel model;
    if (!open_model_load(&model, &open, &err)) return command_fail(&err);
    TokenList start = {0};
    bool ok = build_prompt(&start, &model, prompt, ids, &err);
    if (ok && start.count > open.cache_tokens)
        ok = error_set(&err, "prompt: %lld tokens do not fit the context of %lld", (long long)start.count,
                       (long long)open.cache_tokens);
    SamplePrinter printer = {model.tokenizer, ids != NULL};
    int32_t eot = model.tokenizer == NULL ? -1 : tokenizer_eot(model.tokenizer);
    for (int64_t i = 0; ok && i < samples; ++i) {
        SampleOptions sampling = {temperature, top_k, top_p, (uint64_t)(seed + i), tokens};
        printf("%s", ids != NULL ? ids : prompt);
        sample_continue(&model.model, start.ids, start.count, eot, &sampling, print_token, &printer);
        printf("%s", i + 1 < samples ? "\n\n" : "\n");
    }
    token_list_free(&start);
    open_model_close(&model);
    return ok ? 0 : command_fail(&err);
}
