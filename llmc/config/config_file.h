// config_file.h: the run file and overrides as text: the value of each key and where it was given. Private to config.c.
#ifndef LLMC_CONFIG_FILE_H
#define LLMC_CONFIG_FILE_H

#include "llmc/config/config_options.h"

// One value as written in the file or an override. text NULL: not given.
typedef struct {
    char *text;   // unquoted; already accepted by option_store
    char *where;  // "run.conf:12" or "override 'lr=1e-3'", for messages
    bool is_override;
} Given;

typedef struct {
    char source[CONFIG_NAME_BYTES];
    Given given;
} GivenWeight;  // weight.SOURCE of a phase

typedef struct {
    unsigned scope;  // SCOPE_RUN, SCOPE_SOURCE or SCOPE_PHASE
    char name[CONFIG_NAME_BYTES];
    Given given[OPTION_LIMIT];
    GivenWeight weight[CONFIG_MAX_SOURCES];
    int weight_count;
} Section;

typedef struct {
    Section *section;  // [0] is the run level; then in the order of the file
    int count;
} Draft;

// Reads the file (may be NULL) and then the overrides. Rejects unknown and misplaced keys, values that do not parse
// or are out of range, and keys that the file gives twice. Call draft_free also after an error.
bool draft_read(Draft *draft, const char *path, int override_count, char *const *overrides, Error *err);
void draft_free(Draft *draft);
// The section, or NULL.
Section *draft_find(const Draft *draft, unsigned scope, const char *name);
int draft_count(const Draft *draft, unsigned scope);

// "key = value\n", quoted and split into continuation lines if that is needed to read the same text back.
void draft_print_value(FILE *out, const char *key, const char *text);

#endif
