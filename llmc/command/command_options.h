// command_options.h: "key=value" options of the small commands (sample, eval, ckpt): a table that parses, checks and
// prints its own help.
#ifndef LLMC_COMMAND_OPTIONS_H
#define LLMC_COMMAND_OPTIONS_H

#include "llmc/base/common.h"

typedef enum { COMMAND_TEXT, COMMAND_COUNT, COMMAND_REAL } CommandOptionKind;

typedef struct {
    const char *key;
    CommandOptionKind kind;
    void *out;           // const char **, int64_t * or double *, holding the default
    double least, most;  // of numbers
    const char *help;
} CommandOption;

// argv[0] is the command's name. Returns COMMAND_GOES_ON, or the exit code after help or an error. The table ends
// with a row whose key is NULL. usage: the first line of the help, then the description, then an example.
int command_parse_options(const CommandOption *options, const char *usage, int argc, char **argv);

#endif
