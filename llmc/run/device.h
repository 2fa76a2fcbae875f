// device.h: opens the backend that computes: the CPU, which is compiled in, or a plug-in found beside the program.
// Called once by a run, by inference and by benchmarks; knows nothing of what is computed.
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H

#include "llmc/backend/backend.h"

typedef struct {
    const char *device;      // "auto", "cpu", "cuda", "cudaemu"
    int threads;             // CPU: 0 for all
    const char *cpu_isa;     // CPU: "auto" or a level
    BackendOptions plugin;   // abi and backend_bytes are filled in here
} DeviceChoice;

// Where libllmc_<name>.so is expected: beside the program or one directory above it, or in $TOKAMAK_PLUGIN_DIR. The
// caller frees it; whether it is there is the caller's question.
char *device_plugin_path(const char *name);

// auto: the GPU where there is a driver and a plug-in that opens, else the CPU, and then `note` says in one line why.
// Any other device opens or is an error; nothing falls back.
Backend *device_open(const DeviceChoice *choice, char *note, size_t note_bytes, Error *err);
#endif
