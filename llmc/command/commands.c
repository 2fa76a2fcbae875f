// commands.c: see commands.h.
#include "llmc/command/commands.h"

#include <stdio.h>
#include <string.h>

#include "llmc/base/common.h"

static const char USAGE[] =
    "train_gpt: pretraining of decoder-only language models\n"
    "\n"
    "  train_gpt train  [run.conf] [key=value ...]   train, or resume an interrupted run\n"
    "  train_gpt plan   [run.conf] [key=value ...]   memory of that run; world=N: speed on N ranks\n"
    "  train_gpt sample ckpt=DIR [key=value ...]     continue a prompt\n"
    "  train_gpt eval   ckpt=DIR data=GLOB ...       held-out loss, perplexity, bits per byte\n"
    "  train_gpt ckpt   verify|inspect|diff|reshard|average|export|import ...\n"
    "  train_gpt verify A B                          the step at which two runs first differ, and in what\n"
    "\n"
    "Each command has --help, with an example.\n";

int command_main(int argc, char **argv) {
    static const struct {
        const char *name;
        int (*run)(int argc, char **argv);
    } COMMANDS[] = {
        {"plan", command_plan}, {"sample", command_sample}, {"eval", command_eval}, {"ckpt", command_ckpt},
        {"verify", command_verify}};
    if (argc < 2 || is_help_word(argv[1]) || strcmp(argv[1], "help") == 0) {
        fputs(USAGE, argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    for (size_t i = 0; i < sizeof COMMANDS / sizeof COMMANDS[0]; ++i)
        if (strcmp(argv[1], COMMANDS[i].name) == 0) return COMMANDS[i].run(argc - 1, argv + 1);
    fprintf(stderr, "train_gpt: unknown command \"%s\"\n\n%s", argv[1], USAGE);
    return 2;
}
