// option_table.h: options as tables: a row holds an option's name, type, target, range and help text, and drives
// parsing, checks, printing and --help, for the run's options (config) and the commands of train_gpt, prep and bench.
// Strict: an unknown name, a malformed value and a value out of range are errors that name what was expected and
// found.
#ifndef LLMC_OPTION_TABLE_H
#define LLMC_OPTION_TABLE_H

#include <stdio.h>

#include "llmc/base/common.h"
#include "llmc/base/words.h"

typedef enum {
    OPTION_TEXT,   // const char *: any text; it points into argv
    OPTION_CHARS,  // char[bytes]: a copy, padded with zeros
    OPTION_WHOLE,  // int64_t, also as 64k, 1M, 2G, 4Ki
    OPTION_REAL,   // double
    OPTION_FLOAT,  // float
    OPTION_BOOL,   // bool: true or false, yes or no, on or off, 1 or 0
    OPTION_FLAG,   // bool: --name alone makes it true
    OPTION_WORD    // a C enum
} OptionKind;

typedef struct {
    const char *name;
    unsigned scopes;       // where the option may be given; used by the config's sections only
    void *target;          // address of the value, which holds the default; NULL: `offset` within the table's base
    size_t offset, bytes;  // bytes 0: the owner handles the row; no value is stored
    OptionKind kind;
    double min, max;       // of numbers; TEXT: min is the least number of bytes
    const Word *words;     // of WORD; CHARS and TEXT: the allowed texts, or NULL
    int word_count;        // only the first word_count are allowed; 0: all
    const char *fallback;  // the default as text, if the target does not hold it; NULL: `help` states it
    const char *group;     // heading in --help, on the first row of each group; or NULL
    const char *help;
} Option;

// A row's target: a variable, or a field of the table's base struct. kind, min and max may follow:
//     {"tokens", OPTION_TO(tokens), OPTION_WHOLE, 1, 1e9, .help = "new tokens at most"}
#define OPTION_TO(variable) .target = &(variable), .bytes = sizeof(variable)
#define OPTION_AT(type, field) .offset = offsetof(type, field), .bytes = sizeof(((type *)0)->field)

typedef enum {
    OPTIONS_DASHES,  // --name value, --name=value, --flag
    OPTIONS_KEYS     // name=value
} OptionSpelling;

typedef struct {
    const Option *rows;
    int count;
    OptionSpelling spelling;
    void *base;           // the struct that offsets refer to; NULL if all rows have targets
    const char *program;  // "train_gpt", the prefix of messages; the command's name follows
    const char *about;    // printed before the options: usage, description, example
} OptionTable;
#define OPTION_ROWS(array) .rows = (array), .count = (int)(sizeof(array) / sizeof((array)[0]))

typedef enum { OPTIONS_OK, OPTIONS_HELP, OPTIONS_ERROR } OptionsResult;

// Parses argv[0, argc), which begins after the command's name; the last value of a repeated option counts. Arguments
// that are not options move to the front of argv, *rest_count of them; with rest_count NULL they are an error. With
// dashes, "-" and everything after "--" are such arguments. OPTIONS_HELP: --help or -h was given and the help was
// printed.
OptionsResult options_parse(int *rest_count, int argc, char **argv, const OptionTable *table, Error *err);
// The same for a command that takes only options; argv[0] is its name. Prints errors. Returns OPTIONS_CONTINUE, or
// the exit code after help (0) or an error (2).
#define OPTIONS_CONTINUE (-1)
int options_read(const OptionTable *table, int argc, char **argv);
// Removes the arguments name=value whose names are in the table from argv and keeps the others.
bool options_take(int *argc, char **argv, const OptionTable *table, Error *err);

// ---- rows ----
int options_find(const OptionTable *table, const char *name);  // index, or -1
// By edit distance; never NULL.
const char *options_nearest(const OptionTable *table, const char *name);
size_t edit_distance(const char *a, const char *b);  // of the first 64 bytes of each
// "unknown option 'x'; did you mean 'y'? (--help lists all)"; returns false.
bool options_unknown(Error *err, const OptionTable *table, const char *name);

// Parses text into the row's target. On failure fills err with "expected ..., found ...", without the name.
bool option_store(const Option *option, void *base, const char *text, Error *err);
// The value as text that option_store reads back to the same value. Caller frees.
char *option_format(const Option *option, const void *base);

// ---- help ----
// A row: name, meaning, range or words, default; broken into lines.
void option_print(FILE *out, const Option *option, OptionSpelling spelling, const void *base);

#endif
