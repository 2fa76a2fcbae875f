// config_options.h: the table of all options of a run (rows: option_table.h). Private to this room. A new option is one
// row in config_options.c and one field in config.h.
#ifndef LLMC_CONFIG_OPTIONS_H
#define LLMC_CONFIG_OPTIONS_H

#include "llmc/base/option_table.h"
#include "llmc/config/config.h"

// Option.scopes: where an option may be written. With SCOPE_PHASE its field is in PhaseConfig, with SCOPE_SOURCE in
// SourceConfig, else in RunConfig; at run level the first two are defaults of all phases or sources. A row without
// bytes has no field: config.c sets other fields from it (steps, bias).
enum {
    SCOPE_RUN = 1,
    SCOPE_SOURCE = 2,
    SCOPE_PHASE = 4,
    SCOPE_ARCHITECTURE = 8  // with SCOPE_RUN: a field of RunConfig.arch; the preset gives the default
};

#define OPTION_LIMIT 96  // size of arrays indexed by row of the table
extern const Option OPTIONS[];
extern const int OPTION_COUNT;

extern const OptionTable RUN_OPTIONS;

int option_find(const char *name);   // index in the table, or -1
int option_index(const char *name);  // CHECKs that the name exists

#endif
