// command_ckpt.c: checkpoints from the command line: verify, inspect, export, import. Weights pass through host
// memory tensor by tensor; no device is opened.
#include "llmc/command_ckpt.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/checkpoint.h"
#include "llmc/command_options.h"
#include "llmc/commands.h"
#include "llmc/hf.h"
#include "llmc/run_state.h"

static const char USAGE[] =
    "train_gpt ckpt verify  DIR                       check every file against the manifest\n"
    "train_gpt ckpt inspect DIR                       what it is: model, step, tensors\n"
    "train_gpt ckpt export  from=DIR to=PATH ...      to llm.c's model file, or to a bare Hugging Face directory\n"
    "train_gpt ckpt import  from=PATH to=DIR ...      a Hugging Face directory or llm.c file as a verified model "
    "directory\n"
    "\n"
    "example\n"
    "  train_gpt ckpt verify runs/kjv/step_00000500\n"
    "  train_gpt ckpt export from=runs/kjv/step_00000500 to=kjv.bin format=llmc\n";

static int verify(const char *dir) {
    Error err = {""};
    if (!checkpoint_verify(dir, true, &err)) return command_fail(&err);
    printf("%s: complete, every file as its manifest says\n", dir);
    return 0;
}

static void print_state(const char *dir) {
    char *path = path_join(dir, "state.json"), *json = NULL;
    StateFile state;
    Error err = {""};
    if (file_exists(path) && file_read_all(path, (size_t)1 << 20, &json, NULL, &err) &&
        state_file_parse(&state, json, path, &err))
        printf("step %lld, %s, %s, %.1f s of training, %lld steps skipped\n", (long long)state.progress.step,
               state.optimizer, state.dtype, state.progress.seconds, (long long)state.progress.bad_steps);
    else printf("weights only: %s\n", err.message[0] ? err.message : "no state.json");
    free(json);
    free(path);
}

static int inspect(const char *dir) {
    Error err = {""};
    ModelConfig arch;
    if (!model_file_read_config(&arch, dir, &err) || !model_config_finish(&arch, &err)) return command_fail(&err);
    char model[256];
    model_config_describe(&arch, model, sizeof model);
    printf("%s\n%s\n", model, hf_architecture(&arch));
    print_state(dir);
    ParamTable params;
    params_build(&params, &arch);
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
// Conversion: all weights in one flat host array between a reader and a writer.

typedef struct {
    ModelConfig arch;
    ParamTable params;
    float *values;  // flat, params.total_elems
} HostModel;

static bool put_values(void *context, const ParamSpec *spec, const float *values, Error *err) {
    (void)err;
    memcpy(((HostModel *)context)->values + spec->offset, values, to_size(spec->elems) * sizeof *values);
    return true;
}
static bool get_values(void *context, const ParamSpec *spec, int64_t first, int64_t count, float *out, Error *err) {
    (void)err;
    memcpy(out, ((HostModel *)context)->values + spec->offset + first, to_size(count) * sizeof *out);
    return true;
}

static bool host_model_read(HostModel *model, const char *path, Error *err) {
    *model = (HostModel){0};
    if (!model_file_read_config(&model->arch, path, err) || !model_config_finish(&model->arch, err)) return false;
    params_build(&model->params, &model->arch);
    model->values = xcalloc(to_size(model->params.total_elems), sizeof *model->values);
    return model_file_read(path, &model->arch, &model->params, put_values, model, err);
}
static void host_model_free(HostModel *model) {
    free(model->values);
    params_free(&model->params);
}

// The tokenizer of `from`, copied into dir; a model without one is fine.
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

// A model directory at `to`, which must not exist: model.safetensors, config.json, tokenizer, manifest.
static bool write_directory(HostModel *model, const char *from, const char *to, const char *tokenizer, DType dtype,
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
    const char *from = NULL, *to = NULL, *format = "hf", *dtype_text = "fp32", *tokenizer = "";
    const CommandOption options[] = {
        {"from", COMMAND_TEXT, &from, 0, 0, "what to read: a directory or an llm.c .bin"},
        {"to", COMMAND_TEXT, &to, 0, 0, "what to write; must not exist"},
        {"format", COMMAND_TEXT, &format, 0, 0, "hf (a directory) or llmc (a file)"},
        {"dtype", COMMAND_TEXT, &dtype_text, 0, 0, "of the weights written: fp32 or bf16"},
        {"tokenizer", COMMAND_TEXT, &tokenizer, 0, 0, "tokenizer to put beside the model"},
        {NULL, COMMAND_TEXT, NULL, 0, 0, NULL}};
    int status = command_parse_options(options, USAGE, argc, argv);
    if (status != COMMAND_GOES_ON) return status;
    DType dtype;
    bool llmc = strcmp(format, "llmc") == 0;
    if (from == NULL || to == NULL || (!llmc && strcmp(format, "hf") != 0) || !dtype_parse(dtype_text, &dtype) ||
        (dtype != DTYPE_F32 && dtype != DTYPE_BF16)) {
        fprintf(stderr,
                "train_gpt ckpt %s: expected from=PATH, to=PATH, format hf or llmc, dtype fp32 or bf16, see --help\n",
                name);
        return 2;
    }
    Error err = {""};
    if (file_exists(to) || dir_exists(to)) {
        error_set(&err, "%s: already exists, and nothing is ever written over", to);
        return command_fail(&err);
    }
    HostModel model;
    bool ok = host_model_read(&model, from, &err);
    if (ok)
        ok = llmc ? model_file_write_llmc(to, &model.arch, &model.params, dtype, get_values, &model, &err)
                  : write_directory(&model, from, to, tokenizer, dtype, &err);
    host_model_free(&model);
    if (!ok) return command_fail(&err);
    printf("wrote %s\n", to);
    return 0;
}

int command_ckpt(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    bool help = strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0;
    if (strcmp(name, "export") == 0 || strcmp(name, "import") == 0) return convert(name, argc - 1, argv + 1);
    bool one_path = argc == 3 && argv[2][0] != '-';
    if (one_path && strcmp(name, "verify") == 0) return verify(argv[2]);
    if (one_path && strcmp(name, "inspect") == 0) return inspect(argv[2]);
    help = help || (argc == 3 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0));
    fputs(USAGE, help ? stdout : stderr);
    return help ? 0 : 2;
}
