// options.h: the command line of prep: one table of options per command drives parsing, range checks and --help.
// Strict: an unknown option, a missing or malformed value and a value out of range are errors that say what was
// expected.
#ifndef DATA_OPTIONS_H
#define DATA_OPTIONS_H

#include "llmc/base/common.h"

typedef enum { OPTION_TEXT, OPTION_COUNT, OPTION_REAL, OPTION_CHOICE, OPTION_FLAG } OptionKind;

typedef struct {
    const char *name;  // without the dashes
    OptionKind kind;
    void *target;  // const char *, int64_t, double, int (index into choices), bool; holds the default
    const char *help;
    double min, max;      // of COUNT and REAL
    const char *choices;  // of CHOICE: "a|b|c"
} Option;

typedef struct {
    const char *usage;    // "prep tokenize [options] FILE..."
    const char *summary;  // what the command does
    const char *example;  // indented lines
} CommandHelp;

typedef enum { OPTIONS_OK, OPTIONS_HELP, OPTIONS_ERROR } OptionsResult;

// Parses argv[0, argc) (after the command's name). Options are --name value or --name=value, in any order; the rest
// are moved to the front of argv, *rest_count of them; after "--" everything is rest. OPTIONS_HELP: --help was asked
// for, and printed.
OptionsResult options_parse(int *rest_count, int argc, char **argv, const Option *options, int option_count,
                            const CommandHelp *help, Error *err);

#endif
