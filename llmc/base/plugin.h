// plugin.h: where the program's plug-ins (libllmc_cuda.so, libllmc_mpi.so) are looked for, and how their functions
// and those of other libraries that are opened at run time are found. Must not know what is in them.
#ifndef LLMC_PLUGIN_H
#define LLMC_PLUGIN_H

#include "llmc/base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

// Where libllmc_<name>.so is expected: beside the program or one directory above it, or in $TOKAMAK_PLUGIN_DIR. The
// caller frees it; whether it is there is the caller's question.
char *plugin_path(const char *name);

// Opens the library at path, for good, and returns its function `entry`; NULL: err holds the loader's words.
// everywhere: libraries that it opens itself find its names too (RTLD_GLOBAL).
void *plugin_entry(const char *path, const char *entry, bool everywhere, Error *err);

// Functions of a library that dlopen has opened.
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
