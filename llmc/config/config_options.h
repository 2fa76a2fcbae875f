// config_options.h: the option table and what follows from a row alone: parsing, range checks, formatting, --help.
// Private to config.c and config_file.c; a new option is one row in config_options.c and one field in config.h.
#ifndef LLMC_CONFIG_OPTIONS_H
#define LLMC_CONFIG_OPTIONS_H

#include "llmc/config/config.h"

// Where an option may be written. Its field is in PhaseConfig if phases have it, in SourceConfig if sources have it,
// else in RunConfig; at run level it is then the default of all phases or sources.
enum {
    SCOPE_RUN = 1,
    SCOPE_SOURCE = 2,
    SCOPE_PHASE = 4,
    SCOPE_ARCHITECTURE = 8  // with SCOPE_RUN: a field of RunConfig.arch, whose default is the preset's
};

typedef enum { OPTION_TEXT, OPTION_INT, OPTION_REAL, OPTION_FLOAT, OPTION_BOOL, OPTION_ENUM } OptionType;

typedef struct {
    const char *name;
    unsigned scopes;
    size_t offset, bytes;  // of the field; bytes 0: no field, config.c turns the option into others (steps, bias)
    OptionType type;       // char[bytes], int64_t, double, float, bool, a C enum
    double min, max;       // of numbers
    const char *names;     // words of an enum in its order, or the only texts allowed; separated by spaces; else NULL
    const char *fallback;  // default as text; NULL: derived, as `help` says
    const char *group;     // heading in --help and in the printed config, on the first row of each
    const char *help;
} Option;

#define OPTION_LIMIT 96  // rows that arrays over the table have room for
extern const Option OPTIONS[];
extern const int OPTION_COUNT;

int option_find(const char *name);             // index in the table, or -1
int option_index(const char *name);            // CHECKs that the name exists
const char *option_nearest(const char *name);  // by edit distance; never NULL
size_t edit_distance(const char *a, const char *b);

// Parses text into the row's field within the struct at base. On failure fills err with "expected ..., found ...".
bool option_store(const Option *option, void *base, const char *text, Error *err);
// The field as text that option_store reads back to the same value. Caller frees.
char *option_format(const Option *option, const void *base);

#endif
