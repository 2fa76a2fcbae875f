// prep.c: main of prep, which turns raw text into a tokenizer and token shards. It only selects the command; each
// command has its own file.
#include "data/prep.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv, Error *err);
    const char *summary;
} COMMANDS[] = {
    {"train-tokenizer", prep_train_tokenizer, "learn a byte-level BPE vocabulary from text"},
    {"tokenize", prep_tokenize, "turn text into token shards for training and validation"},
    {"inspect", prep_inspect, "print what a shard, a dataset or a tokenizer holds"},
};
enum { COMMAND_COUNT = sizeof COMMANDS / sizeof COMMANDS[0] };

static void print_usage(FILE *out) {
    fprintf(out, "usage: prep COMMAND [options] ...\n\n");
    for (int i = 0; i < COMMAND_COUNT; ++i) fprintf(out, "  %-16s %s\n", COMMANDS[i].name, COMMANDS[i].summary);
    fprintf(out, "\n'prep COMMAND --help' lists the options of a command, with an example.\n");
}

int main(int argc, char **argv) {
    const char *name = argc > 1 ? argv[1] : "";
    if (is_help_word(name)) {
        print_usage(stdout);
        return EXIT_OK;
    }
    for (int i = 0; i < COMMAND_COUNT; ++i) {
        if (strcmp(name, COMMANDS[i].name) != 0) continue;
        Error err = {""};
        int code = COMMANDS[i].run(argc - 2, argv + 2, &err);
        if (code != EXIT_OK) fprintf(stderr, "prep %s: %s\n", name, err.message);
        return code;
    }
    if (argc > 1) fprintf(stderr, "prep: unknown command '%s'\n", name);
    print_usage(stderr);
    return EXIT_USAGE;
}
