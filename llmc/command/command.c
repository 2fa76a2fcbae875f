// command.c: see command.h.
#include "llmc/command/command.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/formats/model_file.h"
#include "llmc/plan/scaling.h"

int command_fail(const Error *err) {
    fprintf(stderr, "train_gpt: %s\n", err->message);
    return 1;
}

// "1 2 3" to ids; error: an id outside 0 .. vocab-1.
bool command_parse_ids(TokenList *out, const char *text, int64_t vocab, Error *err) {
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

static void print_config_help(const char *command, const char *filter) {
    bool train = strcmp(command, "train") == 0;
    printf(
        "train_gpt %s [run.conf] [key=value ...] [--print-config] [--help [NAME]]\n\n%s\n\n", command,
        train
            ? "Trains a model as the run file and the overrides say. The same command resumes an interrupted run."
            : "Prints the device memory that the same `train` command will use, without allocating it. With world=N:\n"
              "the memory of the rank that uses most, and the predicted speed (docs/scaling.md).");
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
        if (is_help_word(argv[i])) {
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
    if (!print) return OPTIONS_CONTINUE;
    config_print(stdout, config);
    return 0;
}
