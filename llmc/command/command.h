// command.h: what the commands of train_gpt share. Only the commands and main print and choose exit codes: 0 fine, 1
// a failure, 2 a mistake on the command line or in the run file.
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
// "1 2 3", or with commas, to ids below vocab.
bool command_parse_ids(TokenList *out, const char *text, int64_t vocab, Error *err);

// Option rows that say which model is opened, and where; `open`: an OpenModelOptions that holds the defaults.
#define COMMAND_MODEL_ROWS(open)                                                                        \
    {"ckpt", OPTION_TO((open).path), .help = "checkpoint, Hugging Face directory or llm.c .bin"},       \
        {"tokenizer", OPTION_TO((open).tokenizer), .help = "tokenizer, if not beside the model"},       \
        {"device", OPTION_TO((open).device), .words = DEVICE_WORDS, .help = "where it runs"},           \
        {"dtype",                                                                                       \
         OPTION_TO((open).dtype),                                                                       \
         OPTION_WORD,                                                                                   \
         .words = DTYPE_WORDS,                                                                          \
         .word_count = WEIGHT_DTYPES,                                                                   \
         .help = "of weights and products"},                                                            \
    {                                                                                                   \
        "threads", OPTION_TO((open).threads), OPTION_WHOLE, 0, 512, .help = "CPU threads; 0: all cores" \
    }

#endif
