// command_ckpt.c: train_gpt ckpt: verify, inspect, export and import; dispatches the other subcommands. Weights pass
// through host memory one tensor at a time. Must not know devices: none is opened.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/command/ckpt_common.h"
#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/tokenizer/tokenizer.h"

static const char USAGE[] =
    "train_gpt ckpt verify  DIR|RUN                   checks every file against the manifest\n"
    "train_gpt ckpt inspect DIR                       prints model, step and tensors\n"
    "train_gpt ckpt diff    A B                       which tensors differ, and by how much\n"
    "train_gpt ckpt reshard from=DIR to=DIR ranks=N   the same checkpoint as the files of N ranks\n"
    "train_gpt ckpt average from=A,B,... to=DIR ...   the mean of the weights of several checkpoints\n"
    "train_gpt ckpt export  from=DIR to=PATH ...      writes llm.c's model file or a bare Hugging Face directory\n"
    "train_gpt ckpt import  from=PATH to=DIR ...      converts a Hugging Face directory or llm.c file to a model "
    "directory\n"
    "\n"
    "example\n"
    "  train_gpt ckpt verify runs/kjv/step_00000500\n"
    "  train_gpt ckpt export from=runs/kjv/step_00000500 to=kjv.bin format=llmc\n"
    "\n"
    "diff, reshard, average, export and import have their own --help.\n";

// ---- verify ----

// Checks that the files of the manifest are a complete model and, if there is optimizer state, a complete one.
static bool check_contents(const char *dir, int *optimizer_files, Error *err) {
    ModelConfig arch;
    ParamTable params;
    if (!ckpt_read_model(&arch, &params, dir, err)) return false;
    ModelReader *model = NULL;
    OptimizerFiles *files = NULL;
    StateFile state;
    StateKept kept = {0};
    bool ok = model_reader_open(&model, dir, &arch, &params, err);
    *optimizer_files = 0;
    if (ok && optimizer_files_exist(dir)) {
        ok = ckpt_open_optimizer(&files, &kept, dir, &params, err) && ckpt_read_state(&state, dir, err);
        if (ok && kept.muon != (strcmp(state.optimizer, word_of(OPTIMIZER_WORDS, OPTIMIZER_MUON)) == 0))
            ok = error_set(err, "%s: state.json says the optimizer is %s, but its tensors are those of %s", dir,
                           state.optimizer,
                           word_of(OPTIMIZER_WORDS, kept.muon ? OPTIMIZER_MUON : OPTIMIZER_ADAMW));
        if (ok) *optimizer_files = optimizer_files_count(files);
    }
    optimizer_files_close(files);
    model_reader_close(model);
    params_free(&params);
    return ok;
}

static bool verify_one(const char *dir) {
    Error err = {""};
    int files;
    if (!checkpoint_verify(dir, true, &err) || !check_contents(dir, &files, &err)) {
        fprintf(stderr, "train_gpt: DAMAGED: %s\n", err.message);
        return false;
    }
    printf("%s: complete, every file matches its manifest", dir);
    if (files > 1) printf("; written by %d ranks", files);
    printf("%s\n", files == 0 ? "; weights only" : "");
    return true;
}

static int verify(const char *dir) {
    NameList steps = {0};
    char *manifest = path_join(dir, CHECKPOINT_MANIFEST);
    bool run = dir_exists(dir) && !file_exists(manifest) && checkpoint_step(dir) < 0 &&
               checkpoint_list(&steps, dir, NULL) && steps.count > 0;
    free(manifest);
    bool whole = true;
    for (int i = 0; run && i < steps.count; ++i) whole = verify_one(steps.name[i]) && whole;
    name_list_free(&steps);
    if (!run) whole = verify_one(dir);
    return whole ? 0 : 1;
}

// ---- inspect ----

static void print_state(const char *dir) {
    char *path = path_join(dir, "state.json");
    StateFile state;
    Error err = {""};
    if (file_exists(path) && ckpt_read_state(&state, dir, &err))
        printf("step %lld, %s, %s, %.1f s of training, %lld steps skipped\n", (long long)state.progress.step,
               state.optimizer, state.dtype, state.progress.seconds, (long long)state.progress.bad_steps);
    else printf("weights only: %s\n", err.message[0] ? err.message : "no state.json");
    free(path);
}

static int inspect(const char *dir) {
    Error err = {""};
    ModelConfig arch;
    ParamTable params;
    if (!ckpt_read_model(&arch, &params, dir, &err)) return command_fail(&err);
    char model[256];
    params_describe(&arch, model, sizeof model);
    printf("%s\n%s\n", model, hf_architecture(&arch));
    print_state(dir);
    for (int i = 0; i < params.count; ++i) {
        const ParamSpec *spec = &params.spec[i];
        printf("  %-32s %8lld", spec->name, (long long)spec->real_rows);
        if (spec->ndim == 2) printf(" x %lld", (long long)spec->dim[1]);
        printf("\n");
    }
    params_free(&params);
    return 0;
}

// ---------------------------------------------------------------------------------------------------------------
// Conversion: one parameter at a time between a reader and a writer.

typedef struct {
    ModelConfig arch;
    ParamTable params;
    ModelReader *reader;
    const ParamSpec *held;  // the parameter whose values are loaded; NULL: none
    float *values;          // room for the largest parameter
} Source;

static bool get_values(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    Source *source = context;
    if (source->held != spec) {
        source->held = NULL;
        if (!model_reader_read(source->reader, spec, source->values, err)) return false;
        source->held = spec;
    }
    memcpy(out, source->values + first, to_size(count) * sizeof *out);
    return true;
}

static bool source_open(Source *source, const char *path, Error *err) {
    *source = (Source){0};
    if (!ckpt_read_model(&source->arch, &source->params, path, err) ||
        !model_reader_open(&source->reader, path, &source->arch, &source->params, err))
        return false;
    source->values = xmalloc(to_size(model_file_largest_param(&source->params)) * sizeof *source->values);
    return true;
}
static void source_close(Source *source) {
    model_reader_close(source->reader);
    free(source->values);
    params_free(&source->params);
}

// Copies the tokenizer of `from`, if it has one, into dir. *eot: its end-of-text id, or -1.
static bool copy_tokenizer(const char *from, const char *explicit_path, const char *dir, int32_t *eot, Error *err) {
    char *beside = path_join(from, "tokenizer.json");
    const char *source = explicit_path[0] != '\0' ? explicit_path : file_exists(beside) ? beside : NULL;
    *eot = -1;
    bool ok = true;
    if (source != NULL) {
        Tokenizer *tokenizer = tokenizer_load(source, err);
        ok = tokenizer != NULL && tokenizer_save(tokenizer, dir, err);
        if (ok) *eot = tokenizer_eot(tokenizer);
        tokenizer_free(tokenizer);
    }
    free(beside);
    return ok;
}

// Writes the model directory `to`, which must not exist: model.safetensors, config.json, tokenizer, manifest.
static bool write_directory(Source *model, const char *from, const char *to, const char *tokenizer, DType dtype,
                            Error *err) {
    CheckpointWriter writer;
    if (!checkpoint_begin_at(&writer, to, err)) return false;
    int32_t eot;
    bool ok = copy_tokenizer(from, tokenizer, writer.dir, &eot, err) &&
              model_file_write_hf(writer.dir, &model->arch, &model->params, dtype, get_values, model, err);
    if (ok) {
        char *config = hf_config_write(&model->arch, dtype, eot, eot);
        ok = checkpoint_write_text(&writer, "config.json", config, err);
        free(config);
    }
    if (ok) return checkpoint_commit(&writer, err);
    checkpoint_abort(&writer);
    return false;
}

static int convert(const char *name, int argc, char **argv) {
    enum { FORMAT_HF, FORMAT_LLMC };
    static const Word FORMAT_WORDS[] = {{FORMAT_HF, "hf"}, {FORMAT_LLMC, "llmc"}, {0, NULL}};
    const char *from = NULL, *to = NULL, *tokenizer = "";
    int format = FORMAT_HF;
    DType dtype = DTYPE_F32;
    const Option rows[] = {
        {"from", OPTION_TO(from), .help = "source: a directory or an llm.c .bin"},
        {"to", OPTION_TO(to), .help = "destination; must not exist"},
        {"format", OPTION_TO(format), OPTION_WORD, .words = FORMAT_WORDS, .help = "hf: a directory; llmc: a file"},
        {"dtype", OPTION_TO(dtype), OPTION_WORD, .words = DTYPE_WORDS, .word_count = WEIGHT_DTYPES,
         .help = "of the written weights"},
        {"tokenizer", OPTION_TO(tokenizer), .help = "file or directory; default: the source's"}};
    const OptionTable table = {OPTION_ROWS(rows), OPTIONS_KEYS, .program = "train_gpt ckpt", .about = USAGE};
    int status = options_read(&table, argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    bool llmc = format == FORMAT_LLMC;
    if (from == NULL || to == NULL) {
        fprintf(stderr, "train_gpt ckpt %s: expected from=PATH and to=PATH, see --help\n", name);
        return 2;
    }
    Error err = {""};
    if (!ckpt_refuse_existing(to, &err)) return command_fail(&err);
    Source model;
    bool ok = source_open(&model, from, &err);
    if (ok)
        ok = llmc ? model_file_write_llmc(to, &model.arch, &model.params, dtype, get_values, &model, &err)
                  : write_directory(&model, from, to, tokenizer, dtype, &err);
    source_close(&model);
    if (!ok) return command_fail(&err);
    printf("wrote %s\n", to);
    return 0;
}

int command_ckpt(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    bool help = is_help_word(name);
    if (strcmp(name, "export") == 0 || strcmp(name, "import") == 0) return convert(name, argc - 1, argv + 1);
    if (strcmp(name, "reshard") == 0) return command_ckpt_reshard(argc - 1, argv + 1);
    if (strcmp(name, "diff") == 0) return command_ckpt_diff(argc - 1, argv + 1);
    if (strcmp(name, "average") == 0) return command_ckpt_average(argc - 1, argv + 1);
    bool one_path = argc == 3 && argv[2][0] != '-';
    if (one_path && strcmp(name, "verify") == 0) return verify(argv[2]);
    if (one_path && strcmp(name, "inspect") == 0) return inspect(argv[2]);
    help = help || (argc == 3 && is_help_word(argv[2]));
    fputs(USAGE, help ? stdout : stderr);
    return help ? 0 : 2;
}
