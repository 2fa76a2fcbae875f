// command.h: functions and option rows shared by the commands of train_gpt. Only the commands and main print and
// choose exit codes: 0 success, 1 failure, 2 a mistake on the command line or in the run file.
#ifndef LLMC_COMMAND_H
#define LLMC_COMMAND_H

#include "llmc/base/option_table.h"
#include "llmc/config/config.h"
#include "llmc/run/open_model.h"

// Reads "COMMAND [run.conf] [key=value ...]" (argv[0] is the command). Returns OPTIONS_CONTINUE, or the exit code
// after printing help, the resolved config (--print-config) or an error.
int command_read_config(RunConfig *config, const char *command, int argc, char **argv);
// Prints the error, returns 1.
int command_fail(const Error *err);
// Appends the ids of "1 2 3" or "1,2,3" to out. Error: an id outside 0 .. vocab-1.
bool command_parse_ids(TokenList *out, const char *text, int64_t vocab, Error *err);

// Option rows that choose the model and the device; `open`: an OpenModelOptions with the defaults.
#define COMMAND_MODEL_ROWS(open)                                                                        \
    {"ckpt", OPTION_TO((open).path), .help = "checkpoint, Hugging Face directory or llm.c .bin"},       \
        {"tokenizer", OPTION_TO((open).tokenizer), .help = "file or directory; default: the model's"},  \
        {"device", OPTION_TO((open).device), .words = DEVICE_WORDS, .help = "device to run on"},        \
        {"dtype",                                                                                       \
         OPTION_TO((open).dtype),                                                                       \
         OPTION_WORD,                                                                                   \
         .words = DTYPE_WORDS,                                                                          \
         .word_count = WEIGHT_DTYPES,                                                                   \
         .help = "of weights and matmuls"},                                                            \
    {                                                                                                   \
        "threads", OPTION_TO((open).threads), OPTION_WHOLE, 0, 512, .help = "CPU threads; 0: all cores" \
    }

#endif
