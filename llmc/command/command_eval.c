// command_eval.c: train_gpt eval: the loss over held-out shards, or the logits of given tokens as raw fp32.
#include <stdlib.h>
#include <string.h>

#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/eval/eval.h"
#include "llmc/formats/model_file.h"

static const char USAGE[] =
    "train_gpt eval ckpt=DIR data=GLOB [key=value ...]\n"
    "\n"
    "Computes the held-out loss, perplexity and, with a tokenizer, bits per byte.\n"
    "\n"
    "example\n"
    "  train_gpt eval ckpt=runs/kjv/step_00000500 data='data/work/kjv_val_*.bin'";

// Writes the logits of one row of tokens as raw fp32 (tokens, V), for comparison with other programs.
static bool dump_logits(OpenModel *model, const TokenList *ids, const char *path, Error *err) {
    int64_t T = ids->count, V = model->model.config.V;
    float *logits = xmalloc(to_size(T * V) * sizeof *logits);
    float *weights = xcalloc(to_size(T), sizeof *weights);
    Batch batch = {.B = 1, .T = T, .tokens = ids->ids, .targets = ids->ids, .weights = weights};
    model_logits(&model->model, &batch, logits);
    bool ok = file_write_atomic(path, logits, to_size(T * V) * sizeof *logits, err);
    free(weights);
    free(logits);
    return ok;
}

static bool eval_data(OpenModel *model, const char *data, int64_t B, int64_t T, int64_t tokens, bool doc_mask,
                      Error *err) {
    SourceConfig source = {.doc_mask = doc_mask};
    if (strlen(data) >= sizeof source.val) return error_set(err, "data: the pattern is too long");
    memcpy(source.val, data, strlen(data) + 1);
    HeldOut *heldout = NULL;
    int32_t eot = model->tokenizer == NULL ? -1 : tokenizer_eot(model->tokenizer);
    if (!heldout_open(&heldout, &source, B, T, tokens, model->model.config.V, eot, err)) return false;
    EvalResult result;
    bool ok = eval_heldout(&result, &model->model, heldout, model->tokenizer, NULL, MESH_ALONE, err);
    heldout_close(heldout);
    if (!ok) return false;
    printf("%s: %lld tokens, loss %.6f nats per token, perplexity %.4f", data, (long long)result.tokens, result.loss,
           result.perplexity);
    if (result.bits_per_byte >= 0)
        printf(", %.6f bits per byte of %lld bytes", result.bits_per_byte, (long long)result.text_bytes);
    printf("\n");
    return true;
}

int command_eval(int argc, char **argv) {
    OpenModelOptions open = {.tokenizer = "", .device = "auto"};
    const char *data = NULL, *ids = NULL, *logits_out = NULL;
    int64_t batch_rows = 8, seq_len = 0, tokens = 0;
    bool doc_mask = false;
    const Option rows[] = {
        COMMAND_MODEL_ROWS(open),
        {"data", OPTION_TO(data), .help = "held-out shards: patterns separated by commas, one result each"},
        {"seq_len", OPTION_TO(seq_len), OPTION_WHOLE, 0, 1e9, .help = "row length in tokens; 0: the model's"},
        {"batch_rows", OPTION_TO(batch_rows), OPTION_WHOLE, 1, 1e6, .help = "rows of a batch"},
        {"tokens", OPTION_TO(tokens), OPTION_WHOLE, 0, 9e18, .help = "largest number of tokens; 0: all"},
        {"doc_mask", OPTION_TO(doc_mask), OPTION_BOOL, .help = "restrict attention to documents"},
        {"ids", OPTION_TO(ids), .help = "token ids \"1 2 3\" whose logits are written to logits_out"},
        {"logits_out", OPTION_TO(logits_out), .help = "file for raw fp32 logits (tokens, V)"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_KEYS, .program = "train_gpt", .about = USAGE};
    int status = options_read(&table, argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    bool dump = ids != NULL && logits_out != NULL;
    if (open.path == NULL || (data == NULL && !dump)) {
        fprintf(stderr, "train_gpt eval: expected ckpt=DIR and data=GLOB (or ids and logits_out), see --help\n");
        return 2;
    }
    Error err = {""};
    ModelConfig arch;
    TokenList list = {0};
    if (!model_file_read_config(&arch, open.path, &err)) return command_fail(&err);
    if (dump && !command_parse_ids(&list, ids, arch.V, &err)) return command_fail(&err);
    open.seq_len = seq_len > 0 ? seq_len : arch.max_seq_len;
    open.rows = max_i64(batch_rows * open.seq_len, list.count);
    OpenModel model;
    bool ok = open_model_load(&model, &open, &err);
    if (ok && dump) ok = dump_logits(&model, &list, logits_out, &err);
    char *patterns = data == NULL ? NULL : xstrdup(data), *rest = patterns;
    for (char *pattern = strsep(&rest, ","); ok && pattern != NULL; pattern = strsep(&rest, ","))
        ok = eval_data(&model, pattern, batch_rows, open.seq_len, tokens, doc_mask, &err);
    free(patterns);
    token_list_free(&list);
    open_model_close(&model);
    return ok ? 0 : command_fail(&err);
}
