// command_ckpt_average.c: train_gpt ckpt average: the mean of several checkpoints' weights, one parameter at a time
// (Izmailov et al. 2018, "Averaging weights leads to wider optima"; the last few of a run: Vaswani et al. 2017).
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/command/ckpt_common.h"
#include "llmc/command/command.h"
#include "llmc/tokenizer/tokenizer.h"

static const char USAGE[] =
    "train_gpt ckpt average from=A,B,... to=DIR [key=value ...]\n"
    "\n"
    "Averages the weights of several checkpoints of one architecture in fp64. Fp32 master weights are used where a\n"
    "checkpoint has them, the weights otherwise. A:2 counts twice as much as B:1 or B. The result has optimizer\n"
    "state only with optimizer=average.\n"
    "\n"
    "example\n"
    "  train_gpt ckpt average from=run/step_00000900,run/step_00001000 to=mean\n"
    "  train_gpt ckpt average from=a/step_00001000:3,b/step_00001000:1 to=mixed dtype=bf16\n";

#define MOST_SOURCES 256

typedef struct {
    char *path;
    double share;  // weight in the mean; all sum to 1
    ModelReader *reader;
    OptimizerFiles *files;  // NULL: none
    StateKept kept;
} Source;

typedef struct {
    Source *source;
    int count;
    ModelConfig config;
    ParamTable params;
float *values;              // one parameter of one source
double *sum;                // of the same parameter over sources
    const ParamSpec *averaged;  // the parameter whose mean is in `mean`
    float *mean;
} Average;

// ---- the list of sources ----

// "path:weight" or "path"; a colon without a number after it is part of the path.
static bool parse_source(Source *out, const char *word, Error *err) {
    const char *colon = strrchr(word, ':');
    double share = 1;
    bool weighted = colon != NULL && parse_f64(colon + 1, &share);
    if (weighted && !(share > 0)) return error_set(err, "from: expected a weight above 0, found \"%s\"", word);
    if (word[0] == '\0' || colon == word) return error_set(err, "from: expected paths separated by commas");
    *out = (Source){.share = share};
    out->path = weighted ? xasprintf("%.*s", (int)(colon - word), word) : xstrdup(word);
    return true;
}

static bool parse_sources(Average *average, const char *from, Error *err) {
    char *copy = xstrdup(from), *rest = copy;
    double total = 0;
    bool ok = true;
    average->source = xcalloc(MOST_SOURCES, sizeof *average->source);
    for (char *word = strsep(&rest, ","); word != NULL && ok; word = strsep(&rest, ",")) {
        ok = average->count < MOST_SOURCES || error_set(err, "from: expected at most %d paths", MOST_SOURCES);
        ok = ok && parse_source(&average->source[average->count], word, err);
        if (ok) total += average->source[average->count++].share;
    }
    for (int i = 0; i < average->count; ++i) average->source[i].share /= total;
    free(copy);
    return ok;
}

static bool open_source(Average *average, Source *source, Error *err) {
    ModelConfig config;
    if (!ckpt_check_source(source->path, err) || !model_file_read_config(&config, source->path, err) ||
        !model_config_finish(&config, err))
        return false;
    if (!model_file_same_architecture(&average->config, &config)) {
        char theirs[256], first[256];
        params_describe(&config, theirs, sizeof theirs);
        params_describe(&average->config, first, sizeof first);
        return error_set(err, "%s: its architecture (%s) differs from that of %s (%s)", source->path, theirs,
                         average->source[0].path, first);
    }
    return model_reader_open(&source->reader, source->path, &average->config, &average->params, err) &&
           (!optimizer_files_exist(source->path) ||
            ckpt_open_optimizer(&source->files, &source->kept, source->path, &average->params, err));
}

static bool average_open(Average *average, const char *from, Error *err) {
    *average = (Average){0};
    if (!parse_sources(average, from, err) ||
        !ckpt_read_model(&average->config, &average->params, average->source[0].path, err))
        return false;
    size_t largest = to_size(model_file_largest_param(&average->params));
    average->values = xmalloc(largest * sizeof *average->values);
    average->sum = xmalloc(largest * sizeof *average->sum);
    average->mean = xmalloc(largest * sizeof *average->mean);
    bool ok = true;
    for (int i = 0; i < average->count && ok; ++i) ok = open_source(average, &average->source[i], err);
    return ok;
}

static void average_close(Average *average) {
    for (int i = 0; i < average->count; ++i) {
        model_reader_close(average->source[i].reader);
        optimizer_files_close(average->source[i].files);
        free(average->source[i].path);
    }
    free(average->source);
    free(average->values);
    free(average->sum);
    free(average->mean);
    params_free(&average->params);
}

// ---- means ----

// average->mean (elems) = the weighted mean over the sources of what `read` puts into average->values.
typedef bool (*ReadValues)(Average *average, Source *source, int param, StateKind kind, Error *err);
static bool take_mean(Average *average, ReadValues read, int param, StateKind kind, Error *err) {
    int64_t elems = average->params.spec[param].elems;
    for (int64_t i = 0; i < elems; ++i) average->sum[i] = 0;
    for (int s = 0; s < average->count; ++s) {
        Source *source = &average->source[s];
        if (!read(average, source, param, kind, err)) return false;
        for (int64_t i = 0; i < elems; ++i) average->sum[i] += source->share * (double)average->values[i];
    }
    for (int64_t i = 0; i < elems; ++i) average->mean[i] = (float)average->sum[i];
    return true;
}

static bool read_state(Average *average, Source *source, int param, StateKind kind, Error *err) {
    int64_t elems = average->params.spec[param].elems;
    bool ok = optimizer_files_read(source->files, kind, param, 0, elems, average->values, err);
    optimizer_files_release(source->files, kind, param);
    return ok;
}

static bool read_weights(Average *average, Source *source, int param, StateKind kind, Error *err) {
    if (source->kept.masters) return read_state(average, source, param, kind, err);
    return model_reader_read(source->reader, &average->params.spec[param], average->values, err);
}

static bool get_mean(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    Average *average = context;
    if (average->averaged != spec) {
        average->averaged = NULL;
        if (!take_mean(average, read_weights, (int)(spec - average->params.spec), STATE_MASTER, err)) return false;
        average->averaged = spec;
    }
    memcpy(out, average->mean + first, to_size(count) * sizeof *out);
    return true;
}

typedef struct {
    Average *average;
    const StatePiece *list;
} StateSource;
static const void *fetch_mean(void *context, int index, int64_t first, int64_t count, Error *err) {
    (void)count;
    StateSource *source = context;
    const StatePiece *piece = &source->list[index];
    source->average->averaged = NULL;
    if (first == 0 && !take_mean(source->average, read_state, piece->param, piece->kind, err)) return NULL;
    return source->average->mean + first;
}

// ---- the result ----

// Checks that every source has optimizer state, with the same optimizer, dtype and master weights.
static bool check_states(DType *dtype, const Average *average, Error *err) {
    StateFile first, other;
    if (!ckpt_read_state(&first, average->source[0].path, err)) return false;
    for (int i = 0; i < average->count; ++i) {
        const Source *source = &average->source[i];
        if (source->files == NULL) return error_set(err, "%s: has no optimizer state", source->path);
        if (!ckpt_read_state(&other, source->path, err)) return false;
        if (strcmp(other.optimizer, first.optimizer) != 0 || strcmp(other.dtype, first.dtype) != 0 ||
            source->kept.masters != average->source[0].kept.masters ||
            source->kept.muon != average->source[0].kept.muon)
            return error_set(err, "%s: its optimizer state (%s, %s, %s masters) differs in kind from that of %s",
                             source->path, other.optimizer, other.dtype, source->kept.masters ? "with" : "without",
                             average->source[0].path);
    }
    return dtype_parse(first.dtype, dtype) || error_set(err, "state.json: dtype %s", first.dtype);
}

static bool write_state(Average *average, const char *dir, Error *err) {
    const Source *last = &average->source[average->count - 1];
    PartitionOptions options = {.data = MESH_ALONE, .muon = last->kept.muon};
    StatePiece *list;
    int count = state_pieces(&list, &average->params, &options, &last->kept);
    StateSource source = {average, list};
    bool ok = optimizer_file_write(dir, 0, 1, &average->params, list, count, fetch_mean, &source, err) &&
              ckpt_copy_file(last->path, dir, "state.json", err);
    free(list);
    return ok;
}

static bool write_result(Average *average, CheckpointWriter *writer, DType dtype, bool state, Error *err) {
    const char *from = average->source[average->count - 1].path;
    int32_t eot = -1;
    char *tokenizer_path = path_join(from, "tokenizer.json");
    bool has_tokenizer = file_exists(tokenizer_path), ok = true;
    if (has_tokenizer) {
        Tokenizer *tokenizer = tokenizer_load(tokenizer_path, err);
        ok = tokenizer != NULL && tokenizer_save(tokenizer, writer->dir, err);
        if (ok) eot = tokenizer_eot(tokenizer);
        tokenizer_free(tokenizer);
    }
    free(tokenizer_path);
    char *config = hf_config_write(&average->config, dtype, eot, eot);
    ok = ok && checkpoint_write_text(writer, "config.json", config, err) &&
         model_file_write_hf(writer->dir, &average->config, &average->params, dtype, get_mean, average, err) &&
         (!state || write_state(average, writer->dir, err));
    free(config);
    return ok;
}

static bool make_average(Average *average, const char *from, const char *to, DType dtype, bool state, Error *err) {
    if (!ckpt_refuse_existing(to, err) || !average_open(average, from, err)) return false;
    if (state && !check_states(&dtype, average, err)) return false;
    CheckpointWriter writer;
    if (!checkpoint_begin_at(&writer, to, err)) return false;
    if (write_result(average, &writer, dtype, state, err)) return checkpoint_commit(&writer, err);
    checkpoint_abort(&writer);
    return false;
}

int command_ckpt_average(int argc, char **argv) {
    static const Word OPTIMIZER_CHOICES[] = {{false, "none"}, {true, "average"}, {0, NULL}};
    const char *from = NULL, *to = NULL, *dtype_text = NULL;
    int average_state = false;
    const Option rows[] = {
        {"from", OPTION_TO(from), .help = "checkpoints or Hugging Face directories, with commas; PATH:W sets a weight"},
        {"to", OPTION_TO(to), .help = "directory to write; must not exist"},
        {"dtype", OPTION_TO(dtype_text), .words = DTYPE_WORDS, .word_count = WEIGHT_DTYPES,
         .help = "of the written weights; default: fp32"},
        {"optimizer", OPTION_TO(average_state), OPTION_WORD, .words = OPTIMIZER_CHOICES,
         .help = "average: moments and masters too, and the last one's state.json: a run can resume from it"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_KEYS, .program = "train_gpt ckpt", .about = USAGE};
    int status = options_read(&table, argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    DType dtype = DTYPE_F32;
    bool state = average_state;
    if (from == NULL || to == NULL || (dtype_text != NULL && state)) {
        fprintf(stderr,
                "train_gpt ckpt average: expected from=A,B,... and to=DIR, without dtype if optimizer=average "
                "(the checkpoints' dtype is kept); see --help\n");
        return 2;
    }
    if (dtype_text != NULL) dtype_parse(dtype_text, &dtype);
    Error err = {""};
    Average average = {0};
    bool ok = make_average(&average, from, to, dtype, state, &err);
    int count = average.count;
    average_close(&average);
    if (!ok) return command_fail(&err);
    printf("wrote %s: the mean of %d model%s\n", to, count, count == 1 ? "" : "s");
    return 0;
}
