// plugin.h: finds the program's plug-ins (libllmc_cuda.so, libllmc_mpi.so) and the functions of libraries that are
// opened at run time. Must not know what the libraries do.
#ifndef LLMC_PLUGIN_H
#define LLMC_PLUGIN_H

#include "llmc/base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// The path where libllmc_<name>.so is expected: beside the program, one directory above it, or in
// $TOKAMAK_PLUGIN_DIR. The caller frees it and checks whether the file exists.
char *plugin_path(const char *name);

// Opens the library at path, which is never closed, and returns its function `entry`; NULL: err holds the loader's
// message. everywhere: its symbols are visible to libraries loaded later (RTLD_GLOBAL).
void *plugin_entry(const char *path, const char *entry, bool everywhere, Error *err);

// A function of a library opened by dlopen.
typedef struct {
    const char *name;
    void *function;  // the address of a function pointer
} LibrarySymbol;
// Sets them all. Errors: "LIBRARY has no function NAME".
bool library_symbols(void *library, const char *library_name, const LibrarySymbol *symbols, int count, Error *err);

#ifdef __cplusplus
}
#endif
#endif
