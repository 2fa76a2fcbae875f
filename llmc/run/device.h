// device.h: opens the backend that computes: the CPU, which is compiled in, or a plug-in found beside the program.
// Called once by a run, by inference and by benchmarks; knows nothing of what is computed.
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

// auto: the GPU where there is a driver and a plug-in that opens, else the CPU, and then `note` says in one line why.
// Any other device opens or is an error; nothing falls back.
Backend *device_open(const DeviceChoice *choice, char *note, size_t note_bytes, Error *err);

#define DEVICE_NOTE_BYTES 1200
// Opens the device that the options name; note: why device=auto took the CPU, "" if it did not. local_rank: which GPU;
// threads: where the config leaves them open.
Backend *device_open_for(const RunConfig *config, int local_rank, int threads, char *note, size_t note_bytes,
                         Error *err);
#endif
