// config_options.h: the table of every option of a run (option_table.h says what a row is and does).
// Private to config.c and config_file.c; a new option is one row in config_options.c and one field in config.h.
#ifndef LLMC_CONFIG_OPTIONS_H
#define LLMC_CONFIG_OPTIONS_H

#include "llmc/base/option_table.h"
#include "llmc/config/config.h"

// Option.scopes: where an option may be written. A row without bytes has no field: config.c turns it into others
// (steps, bias). Its field is in PhaseConfig if phases have it, in SourceConfig if sources have it,
// else in RunConfig; at run level it is then the default of all phases or sources.
enum {
    SCOPE_RUN = 1,
    SCOPE_SOURCE = 2,
    SCOPE_PHASE = 4,
    SCOPE_ARCHITECTURE = 8  // with SCOPE_RUN: a field of RunConfig.arch, whose default is the preset's
};

#define OPTION_LIMIT 96  // rows that arrays over the table have room for
extern const Option OPTIONS[];
extern const int OPTION_COUNT;

extern const OptionTable RUN_OPTIONS;

int option_find(const char *name);   // index in the table, or -1
int option_index(const char *name);  // CHECKs that the name exists

#endif
