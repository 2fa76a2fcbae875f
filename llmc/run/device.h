// device.h: opens the backend that computes: the CPU backend, which is compiled in, or a plug-in beside the program. Must
// not know what is computed.
#ifndef LLMC_DEVICE_H
#define LLMC_DEVICE_H

#include "llmc/backend/backend.h"
#include "llmc/config/config.h"

typedef struct {
    const char *device;      // "auto", "cpu", "cuda", "cudaemu"
    int threads;             // CPU: 0 for all
    const char *cpu_isa;     // CPU: "auto" or a level
    BackendOptions plugin;   // abi and backend_bytes are filled in here
} DeviceChoice;

// auto: the GPU if there is a driver and the plug-in opens; else the CPU, and `note` gives the reason in one line. Any
// other device opens or is an error: there is no fallback.
Backend *device_open(const DeviceChoice *choice, char *note, size_t note_bytes, Error *err);

// Opens libllmc_<device>.so beside the program or in $TOKAMAK_PLUGIN_DIR. device: "cuda", "cudaemu".
Backend *backend_plugin_open(const char *device, const BackendOptions *options, Error *err);

#define DEVICE_NOTE_BYTES 1200
// Opens the device of the config; note: why device=auto uses the CPU, "" if it does not. local_rank: index of the GPU;
// threads: of the CPU, if the config does not set them.
Backend *device_open_for(const RunConfig *config, int local_rank, int threads, char *note, size_t note_bytes,
                         Error *err);
#endif
