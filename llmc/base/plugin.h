// plugin.h: where the program's plug-ins (libllmc_cuda.so, libllmc_mpi.so) are looked for. Must not know what is in them.
#ifndef LLMC_PLUGIN_H
#define LLMC_PLUGIN_H

#include "llmc/base/common.h"

// Where libllmc_<name>.so is expected: beside the program or one directory above it, or in $TOKAMAK_PLUGIN_DIR. The
// caller frees it; whether it is there is the caller's question.
char *plugin_path(const char *name);
#endif
