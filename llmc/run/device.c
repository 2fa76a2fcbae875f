// device.c: see device.h.
#include "llmc/run/device.h"

#include "llmc/base/plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

Backend *backend_plugin_open(const char *device, const BackendOptions *options, Error *err) {
    char *path = plugin_path(device);
    Backend *be = NULL;
    Error why = {""};
    void *symbol = file_exists(path) ? plugin_entry(path, "backend_plugin_entry", false, &why) : NULL;
    if (!file_exists(path)) {
        error_set(err, "device=%s: the plug-in %s is not there: run `make %s` (it needs the CUDA toolkit; `make config` "
                       "shows what was found)", device, path, strcmp(device, "cudaemu") == 0 ? "emu" : "cuda");
    } else if (symbol == NULL) {
        error_set(err,
                  "device=%s: cannot open %s: %s; if a CUDA library is missing, add its directory to "
                  "LD_LIBRARY_PATH",
                  device, path, why.message);
    } else {
        BackendPluginEntry *entry;
        memcpy(&entry, &symbol, sizeof entry);
        BackendOptions complete = *options;
        complete.abi = BACKEND_ABI;
        complete.backend_bytes = sizeof(Backend);
        be = entry(&complete, err);
        if (be == NULL) error_prefix(err, "device=%s", device);
    }
    // The library stays open: its code runs until the backend is closed, and the driver does not support unloading.
    free(path);
    return be;
}

// Opening a plug-in loads hundreds of megabytes of libraries; without a driver it is not tried.
static bool driver_is_present(void) {
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (driver != NULL) dlclose(driver);
    return driver != NULL;
}

Backend *device_open(const DeviceChoice *choice, char *note, size_t note_bytes, Error *err) {
    note[0] = '\0';
    if (strcmp(choice->device, "cpu") == 0) return backend_cpu_open(choice->threads, choice->cpu_isa, err);
    if (strcmp(choice->device, "cuda") == 0 && !driver_is_present()) {
        error_set(err, "device=cuda: there is no NVIDIA driver on this machine (libcuda.so.1 is not found); install one, "
                       "or use device=cpu");
        return NULL;
    }
    if (strcmp(choice->device, "auto") != 0) return backend_plugin_open(choice->device, &choice->plugin, err);
    Error why = {""};
    Backend *be = NULL;
    if (!driver_is_present()) {
        error_set(&why, "there is no NVIDIA driver (libcuda.so.1 is not found)");
    } else {
        be = backend_plugin_open("cuda", &choice->plugin, &why);
    }
    if (be != NULL) return be;
    snprintf(note, note_bytes, "device=auto: using the CPU: %s", why.message);
    return backend_cpu_open(choice->threads, choice->cpu_isa, err);
}

// The directory that stores measured choices between runs: in the user's cache directory. NULL: there is none.
static char *cache_dir(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache != NULL && cache[0] == '/') return xasprintf("%s/tokamak", cache);
    return home != NULL && home[0] == '/' ? xasprintf("%s/.cache/tokamak", home) : NULL;
}

Backend *device_open_for(const RunConfig *config, int local_rank, int threads, char *note, size_t note_bytes,
                         Error *err) {
    char *cache = cache_dir();
    DeviceChoice choice = {.device = config->device,
                           .threads = config->threads > 0 ? (int)config->threads : threads,
                           .cpu_isa = config->cpu_isa,
                           .plugin = {.device_index = local_rank, .attention = config->attention, .cache_dir = cache,
                                      .graphs = config->graphs}};
    Backend *be = device_open(&choice, note, note_bytes, err);
    free(cache);
    return be;
}
