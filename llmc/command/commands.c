// commands.c: see commands.h. ckpt and verify have files of their own.
#include "llmc/command/commands.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/command/command_ckpt.h"
#include "llmc/command/command_options.h"
#include "llmc/command/command_verify.h"
#include "llmc/formats/model_file.h"
#include "llmc/run/open_model.h"
#include "llmc/run/run.h"
#include "llmc/plan/scaling.h"

static const char USAGE[] =
    "train_gpt: pretraining of decoder-only language models\n"
    "\n"
    "  train_gpt train  [run.conf] [key=value ...]   train, or go on with an interrupted run\n"
    "  train_gpt plan   [run.conf] [key=value ...]   every byte of that run; world=N: its speed on N ranks\n"
    "  train_gpt sample ckpt=DIR [key=value ...]     continue a prompt\n"
    "  train_gpt eval   ckpt=DIR data=GLOB ...       held-out loss, perplexity, bits per byte\n"
    "  train_gpt ckpt   verify|inspect|diff|reshard|average|export|import ...\n"
    "  train_gpt verify A B                          the step at which two runs first differ, and in what\n"
    "\n"
    "Each has --help, with an example.\n";

int command_fail(const Error *err) {
    fprintf(stderr, "train_gpt: %s\n", err->message);
    return 1;
}

static void print_config_help(const char *command, const char *filter) {
    bool train = strcmp(command, "train") == 0;
    printf(
        "train_gpt %s [run.conf] [key=value ...] [--print-config] [--help [NAME]]\n\n%s\n\n", command,
        train
            ? "Trains a model as the run file and the overrides say. The same command goes on after an interruption."
            : "Prints the bytes that the same `train` command will take on the device, without allocating them; with\n"
              "world=N those of the fullest of N ranks, and the speed to expect (docs/scaling.md).");
    printf("example\n  train_gpt %s runs/kjv.conf lr=1e-3 dtype=bf16\n\n", command);
    if (!train) scaling_options_help(stdout);
    config_help(stdout, filter);
}

int command_read_config(RunConfig *config, const char *command, int argc, char **argv) {
    const char *path = NULL;
    bool print = false;
    char **overrides = xcalloc((size_t)argc, sizeof *overrides);
    int override_count = 0;
    for (int i = 1; i < argc; ++i) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_config_help(command, i + 1 < argc ? argv[i + 1] : NULL);
            free(overrides);
            return 0;
        }
        if (strcmp(argv[i], "--print-config") == 0) {
            print = true;
        } else if (strchr(argv[i], '=') != NULL) {
            overrides[override_count++] = argv[i];
        } else if (path == NULL && argv[i][0] != '-') {
            path = argv[i];
        } else {
            fprintf(stderr, "train_gpt %s: unexpected \"%s\": expected one run file, key=value overrides or --help\n",
                    command, argv[i]);
            free(overrides);
            return 2;
        }
    }
    Error err = {""};
    bool ok = config_load(config, path, override_count, overrides, model_file_read_config, &err);
    free(overrides);
    if (!ok) {
        fprintf(stderr, "train_gpt %s: %s\n", command, err.message);
        return 2;
    }
    if (!print) return COMMAND_GOES_ON;
    config_print(stdout, config);
    return 0;
}

static int command_plan(int argc, char **argv) {
    RunConfig config;
    Error err = {""};
    ScalingOptions scaling = {0};
    if (!scaling_take_options(&scaling, &argc, argv, &err)) {
        fprintf(stderr, "train_gpt plan: %s\n", err.message);
        return 2;
    }
    int status = command_read_config(&config, "plan", argc, argv);
    if (status != COMMAND_GOES_ON) return status;
    Tokenizer *tokenizer = NULL;
    Schedule schedule;
    const int world = (int)max_i64(scaling.world, 1);
    const bool lanes = config.deterministic == DETERMINISTIC_LANES;
    bool ok = run_find_tokenizer(&tokenizer, &config, &err) && run_resolve_model(&config, tokenizer, &err) &&
              schedule_build(&schedule, &config, world, &err) &&
              partition_check(&(PartitionOptions){.data.world = world, .lanes = lanes}, &err);
    tokenizer_free(tokenizer);
    if (!ok) return command_fail(&err);
    char note[DEVICE_NOTE_BYTES];
    // A plan for a GPU can be made where there is none.
    const bool for_gpu = scaling.gpu[0] != '\0' && strcmp(scaling.gpu, "cpu") != 0;
    if (for_gpu && strcmp(config.device, "auto") == 0) snprintf(config.device, sizeof config.device, "cuda");
    Backend *be = device_open_for(&config, 0, 0, note, sizeof note, &err);
    bool elsewhere = be == NULL && strcmp(config.device, "cuda") == 0;
    if (be == NULL && !elsewhere) return command_fail(&err);
    const char *comm = be != NULL ? comm_kind(be, world) : "nccl";
    PlanRank rank = world > 1 ? plan_fullest_rank(&config, world, comm) : PLAN_ALONE;
    MemoryPlan plan;
    plan_compute(&plan, &config, &schedule, rank, be);
    size_t available = elsewhere ? 0 : be->memory_free(be);
    if (note[0] != '\0') printf("%s\n", note);
    if (elsewhere) printf("planned for a GPU elsewhere: %s\n", err.message);
    else printf("%s\n", be->description);
    if (world > 1) printf("rank %d of %d, zero=%d: no rank takes more\n", rank.data.rank, world, (int)config.zero);
    plan_print(stdout, &plan, &config, available);
    bool fits = available == 0 || plan.device_bytes <= available;
    if (!fits) {
        char options[600];
        plan_suggest(options, sizeof options, &config, &schedule, rank, be, available);
        printf("what would fit: %s\n", options);
    }
    const bool on_cpu = be != NULL && be->shares_host_memory;
    if (be != NULL) be->close(be);
    if (scaling.world == 0) return fits ? 0 : 1;
    if (scaling.gpu[0] == '\0') snprintf(scaling.gpu, sizeof scaling.gpu, "%s", on_cpu ? "cpu" : "h100");
    printf("\n");
    return scaling_print(stdout, &config, &scaling, &err) ? 0 : command_fail(&err);
}

// ---------------------------------------------------------------------------------------------------------------
// sample

typedef struct {
    const Tokenizer *tokenizer;
    bool ids;
} SamplePrinter;

static bool print_token(void *context, int32_t id) {
    const SamplePrinter *printer = context;
    if (printer->ids || printer->tokenizer == NULL) {
        printf(" %d", id);
    } else if (id < tokenizer_vocab(printer->tokenizer)) {  // else the model's vocabulary is larger: no text
        int32_t bytes;
        const uint8_t *token = tokenizer_token(printer->tokenizer, id, &bytes);
        fwrite(token, 1, (size_t)bytes, stdout);
    }
    fflush(stdout);
    return true;
}

// "1 2 3" to ids below vocab.
static bool parse_ids(TokenList *out, const char *text, int64_t vocab, Error *err) {
    char *copy = xstrdup(text), *rest = copy;
    bool ok = true;
    for (char *word = strsep(&rest, " ,"); word != NULL && ok; word = strsep(&rest, " ,")) {
        int64_t id;
        if (word[0] == '\0') continue;
        if (!parse_i64(word, &id) || id < 0 || id >= vocab)
            ok = error_set(err, "ids: expected token ids from 0 to %lld, found \"%s\"", (long long)vocab - 1, word);
        else token_list_push(out, (int32_t)id);
    }
    free(copy);
    return ok;
}

static bool build_prompt(TokenList *out, const OpenModel *model, const char *prompt, const char *ids,
                         Error *err) {
    if (ids != NULL) return parse_ids(out, ids, model->model.config.V, err);
    if (model->tokenizer == NULL)
        return error_set(
            err, "this model has no tokenizer beside it: give tokenizer=PATH, or the prompt as ids=\"1 2 3\"");
    int32_t eot = tokenizer_eot(model->tokenizer);
    if (eot >= 0) token_list_push(out, eot);
    tokenizer_encode(model->tokenizer, out, prompt, (int64_t)strlen(prompt), false);
    return out->count > 0 ? true : error_set(err, "prompt: expected some text, found nothing");
}

static int command_sample(int argc, char **argv) {
    const char *ckpt = NULL, *prompt = "", *ids = NULL, *tokenizer = "", *device = "auto", *dtype = "fp32";
    int64_t seed = 1, tokens = 256, top_k = 0, context = 0, threads = 0, samples = 1;
    double temperature = 0.8, top_p = 0.95;
    const CommandOption options[] = {
        {"ckpt", COMMAND_TEXT, &ckpt, 0, 0, "checkpoint, Hugging Face directory or llm.c .bin"},
        {"prompt", COMMAND_TEXT, &prompt, 0, 0, "text to continue"},
        {"ids", COMMAND_TEXT, &ids, 0, 0, "prompt as token ids; output as ids too"},
        {"tokens", COMMAND_COUNT, &tokens, 1, 1e9, "new tokens at most"},
        {"temperature", COMMAND_REAL, &temperature, 0, 100, "0: greedy"},
        {"top_k", COMMAND_COUNT, &top_k, 0, 1e9, "keep the k likeliest, 0: all"},
        {"top_p", COMMAND_REAL, &top_p, 0, 1, "keep the likeliest that reach this probability, 1: all"},
        {"seed", COMMAND_COUNT, &seed, 0, 9e18, "same seed, same text"},
        {"samples", COMMAND_COUNT, &samples, 1, 1e6, "how many continuations, seeds counting up"},
        {"context", COMMAND_COUNT, &context, 0, 1e9, "positions of the KV cache, 0: the model's length"},
        {"tokenizer", COMMAND_TEXT, &tokenizer, 0, 0, "tokenizer, if not beside the model"},
        {"device", COMMAND_TEXT, &device, 0, 0, "auto, cpu, cuda, cudaemu"},
        {"dtype", COMMAND_TEXT, &dtype, 0, 0, "fp32 or bf16"},
        {"threads", COMMAND_COUNT, &threads, 0, 512, "0: all cores"},
        {NULL, COMMAND_TEXT, NULL, 0, 0, NULL}};
    int status = command_parse_options(
        options,
        "train_gpt sample ckpt=DIR [key=value ...]\n\nContinues a prompt, token by token.\n\n"
        "example\n  train_gpt sample ckpt=runs/kjv/step_00000500 prompt=\"And God said\" tokens=200",
        argc, argv);
    if (status != COMMAND_GOES_ON) return status;
    Error err = {""};
    OpenModelOptions open = {
        .path = ckpt, .tokenizer = tokenizer, .device = device, .threads = (int)threads, .rows = 256};
    if (ckpt == NULL || !dtype_parse(dtype, &open.dtype) || (open.dtype != DTYPE_F32 && open.dtype != DTYPE_BF16)) {
        fprintf(stderr, "train_gpt sample: expected ckpt=DIR and dtype fp32 or bf16, see --help\n");
        return 2;
    }
    ModelConfig arch;
    if (!model_file_read_config(&arch, ckpt, &err)) return command_fail(&err);
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

// ---------------------------------------------------------------------------------------------------------------
// eval

// Rows of the stream's logits as raw fp32 (tokens, V), for comparison with other programs.
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
    printf("%s: %lld tokens, loss %.6f nats a token, perplexity %.4f", data, (long long)result.tokens, result.loss,
           result.perplexity);
    if (result.bits_per_byte >= 0)
        printf(", %.6f bits per byte of %lld bytes", result.bits_per_byte, (long long)result.text_bytes);
    printf("\n");
    return true;
}

static int command_eval(int argc, char **argv) {
    const char *ckpt = NULL, *data = NULL, *ids = NULL, *logits_out = NULL, *tokenizer = "", *device = "auto",
               *dtype = "fp32";
    int64_t batch_rows = 8, seq_len = 0, tokens = 0, threads = 0, doc_mask = 0;
    const CommandOption options[] = {
        {"ckpt", COMMAND_TEXT, &ckpt, 0, 0, "checkpoint, Hugging Face directory or llm.c .bin"},
        {"data", COMMAND_TEXT, &data, 0, 0, "held-out shards, patterns separated by commas: one result each"},
        {"seq_len", COMMAND_COUNT, &seq_len, 0, 1e9, "row length, 0: the model's"},
        {"batch_rows", COMMAND_COUNT, &batch_rows, 1, 1e6, "rows at a time"},
        {"tokens", COMMAND_COUNT, &tokens, 0, 9e18, "tokens at most, 0: all"},
        {"doc_mask", COMMAND_COUNT, &doc_mask, 0, 1, "1: attention stays inside documents"},
        {"ids", COMMAND_TEXT, &ids, 0, 0, "token ids \"1 2 3\" to write the logits of (with logits_out)"},
        {"logits_out", COMMAND_TEXT, &logits_out, 0, 0, "file for raw fp32 logits (tokens, V)"},
        {"tokenizer", COMMAND_TEXT, &tokenizer, 0, 0, "tokenizer, if not beside the model"},
        {"device", COMMAND_TEXT, &device, 0, 0, "auto, cpu, cuda, cudaemu"},
        {"dtype", COMMAND_TEXT, &dtype, 0, 0, "fp32 or bf16"},
        {"threads", COMMAND_COUNT, &threads, 0, 512, "0: all cores"},
        {NULL, COMMAND_TEXT, NULL, 0, 0, NULL}};
    int status =
        command_parse_options(options,
                              "train_gpt eval ckpt=DIR data=GLOB [key=value ...]\n\n"
                              "Held-out loss, perplexity and, with a tokenizer, bits per byte.\n\n"
                              "example\n  train_gpt eval ckpt=runs/kjv/step_00000500 data='data/work/kjv_val_*.bin'",
                              argc, argv);
    if (status != COMMAND_GOES_ON) return status;
    OpenModelOptions open = {.path = ckpt, .tokenizer = tokenizer, .device = device, .threads = (int)threads};
    bool dump = ids != NULL && logits_out != NULL;
    if (ckpt == NULL || (data == NULL && !dump) || !dtype_parse(dtype, &open.dtype) ||
        (open.dtype != DTYPE_F32 && open.dtype != DTYPE_BF16)) {
        fprintf(stderr,
                "train_gpt eval: expected ckpt=DIR, data=GLOB (or ids and logits_out) and dtype fp32 or bf16, see "
                "--help\n");
        return 2;
    }
    Error err = {""};
    ModelConfig arch;
    TokenList list = {0};
    if (!model_file_read_config(&arch, ckpt, &err)) return command_fail(&err);
    if (dump && !parse_ids(&list, ids, arch.V, &err)) return command_fail(&err);
    open.seq_len = seq_len > 0 ? seq_len : arch.max_seq_len;
    open.rows = max_i64(batch_rows * open.seq_len, list.count);
    OpenModel model;
    bool ok = open_model_load(&model, &open, &err);
    if (ok && dump) ok = dump_logits(&model, &list, logits_out, &err);
    char *patterns = data == NULL ? NULL : xstrdup(data), *rest = patterns;
    for (char *pattern = strsep(&rest, ","); ok && pattern != NULL; pattern = strsep(&rest, ","))
        ok = eval_data(&model, pattern, batch_rows, open.seq_len, tokens, doc_mask != 0, &err);
    free(patterns);
    token_list_free(&list);
    open_model_close(&model);
    return ok ? 0 : command_fail(&err);
}

int command_main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } COMMANDS[] = {
        {"plan", command_plan}, {"sample", command_sample}, {"eval", command_eval}, {"ckpt", command_ckpt},
        {"verify", command_verify}};
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
        fputs(USAGE, argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; ++i)
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "train_gpt: unknown command \"%s\"\n\n%s", argv[1], USAGE);
    return 2;
}
