// plugin.c: see plugin.h.
#include "llmc/base/plugin.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// The directory of the running program; its plug-ins are there too.
static char *program_dir(void) {
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0) return xstrdup(".");
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash != NULL) *slash = '\0';
    return xstrdup(path);
}

// Tests are programs one directory below the plug-ins.
char *plugin_path(const char *name) {
    char *file = xasprintf("libllmc_%s.so", name);
    const char *given = getenv("TOKAMAK_PLUGIN_DIR");
    bool named = given != NULL && given[0] != '\0';
    char *dir = named ? xstrdup(given) : program_dir();
    char *path = path_join(dir, file);
    if (!named && !file_exists(path)) {
        char *above = xasprintf("%s/../%s", dir, file);
        if (file_exists(above)) {
            free(path);
            path = above;
        } else {
            free(above);
        }
    }
    free(dir);
    free(file);
    return path;
}

void *plugin_entry(const char *path, const char *entry, bool everywhere, Error *err) {
    void *library = dlopen(path, RTLD_NOW | (everywhere ? RTLD_GLOBAL : RTLD_LOCAL));
    void *symbol = library == NULL ? NULL : dlsym(library, entry);
    if (symbol != NULL) return symbol;
    error_set(err, "%s", dlerror());
    if (library != NULL) dlclose(library);
    return NULL;
}

bool library_symbols(void *library, const char *library_name, const LibrarySymbol *symbols, int count, Error *err) {
    for (int i = 0; i < count; ++i) {
        void *symbol = dlsym(library, symbols[i].name);
        if (symbol == NULL) return error_set(err, "%s has no function %s", library_name, symbols[i].name);
        memcpy(symbols[i].function, &symbol, sizeof symbol);
    }
    return true;
}
