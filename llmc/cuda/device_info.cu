// device_info.cu: the GPU's peak rates, from its data sheet or measured, and its telemetry, from NVML, which is
// opened at run time and may be absent. Must not know operations.
#include "llmc/base/plugin.h"
#include "llmc/cuda/backend_cuda.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- peaks ----

// Dense rates (vendors' headline figures are often with 2:4 sparsity, twice these) in TFLOP/s: bf16 inputs with fp32
// accumulation on tensor cores, and fp32 on the ordinary cores, which exact fp32 matmuls use. From NVIDIA's data
// sheet of each product. The first row whose words are all in the device's name applies.
typedef struct {
    const char *words;  // separated by spaces
    double bf16_tflops, fp32_tflops;
} GpuPeak;
static const GpuPeak GPU_PEAKS[] = {
    {"GB200", 2500, 80},
    {"B200", 2250, 75},
    {"H200", 989.4, 66.9},
    {"GH200", 989.4, 66.9},
    {"H100 PCIe", 756, 51.2},
    {"H100 NVL", 835, 60},
    {"H100", 989.4, 66.9},
    {"H800", 989.4, 66.9},
    {"H20", 148, 44},
    {"A100", 312, 19.5},
    {"A800", 312, 19.5},
    {"A40", 149.7, 37.4},
    {"A30", 165, 10.3},
    {"A10", 125, 31.2},
    {"L40S", 362, 91.6},
    {"L40", 181, 90.5},
    {"L4", 121, 30.3},
    {"RTX 5090", 209.5, 104.8},
    {"RTX 4090", 165.2, 82.6},
    {"RTX 3090", 71, 35.6},
};

// `word` as a whole word of `name`: "A10" is not in "NVIDIA A100".
static bool has_word(const char *name, const char *word, size_t length) {
    for (const char *at = name; *at != '\0'; ++at) {
        bool starts = at == name || !isalnum((unsigned char)at[-1]);
        if (starts && strncmp(at, word, length) == 0 && !isalnum((unsigned char)at[length])) return true;
    }
    return false;
}
static const GpuPeak *find_peak(const char *name) {
    for (const GpuPeak &row : GPU_PEAKS) {
        bool all = true;
        for (const char *word = row.words; *word != '\0' && all;) {
            size_t length = strcspn(word, " ");
            all = has_word(name, word, length);
            word += length + strspn(word + length, " ");
        }
        if (all) return &row;
    }
    return NULL;
}

// Measures a square product, the fastest of a few runs; the size grows until it takes long enough to time.
#define PEAK_LONG_ENOUGH_MS 5.0
#define PEAK_LARGEST 8192
static double measured_peak(Backend *be, DType dtype) {
    for (int64_t n = 512;; n *= 2) {
        Tensor t[3];
        Error err = {""};
        size_t bytes = to_size(n * n) * dtype_bytes(dtype);
        bool there = true;
        for (Tensor &tensor : t) {
            tensor = tensor_2d(be->alloc(be, bytes, &err), dtype, n, n);
            if (tensor.data != NULL) be->zero(be, tensor.data, bytes);
            else there = false;
        }
        double best_ms = 0;
        for (int i = 0; i < 4 && there; ++i) {
            MatmulArgs args;
            memset(&args, 0, sizeof args);
            args.trans_b = true;
            args.alpha = 1;
            Ticket from = be->mark(be);
            be->matmul(be, t[0], t[1], t[2], args);
            Ticket to = be->mark(be);
            if (!be->wait(be, to, &err)) break;
            double ms = be->elapsed_ms(be, from, to);
            if (i > 0 && (best_ms == 0 || ms < best_ms)) best_ms = ms;
        }
        for (Tensor &tensor : t) be->free(be, tensor.data, bytes);
        if (!there || best_ms <= 0) return 0;
        if (best_ms >= PEAK_LONG_ENOUGH_MS || n >= PEAK_LARGEST) {
            snprintf(be->peak_source, sizeof be->peak_source, "measured by products of %lld x %lld", (long long)n,
                     (long long)n);
            return 2.0 * (double)n * (double)n * (double)n / (best_ms * 1e-3);
        }
    }
}

double cuda_measure_peak(Backend *be, DType dtype) {
    const GpuPeak *known = find_peak(cuda_state(be)->gpu_name);
    if (known == NULL) return measured_peak(be, dtype);
    snprintf(be->peak_source, sizeof be->peak_source, "dense %s, data sheet of %s", dtype_name(dtype), known->words);
    return (dtype == DTYPE_F32 ? known->fp32_tflops : known->bf16_tflops) * 1e12;
}

// ---- NVML (building does not require nvml.h: these declarations are its stable C interface) ----

typedef struct nvmlDevice *NvmlDevice;
typedef struct {
    unsigned long long total, free, used;
} NvmlMemory;
#define NVML_CLOCK_SM 1
#define NVML_TEMPERATURE_GPU 0

typedef struct DeviceInfo {
    void *library;  // NULL: no NVML, no telemetry
    NvmlDevice device;
    int (*shutdown)(void);
    int (*clock)(NvmlDevice, int, unsigned *);
    int (*power)(NvmlDevice, unsigned *);  // milliwatts
    int (*temperature)(NvmlDevice, int, unsigned *);
    int (*memory)(NvmlDevice, NvmlMemory *);
} DeviceInfo;

struct DeviceInfo *device_info_open(int device, const char *pci_bus_id) {
    (void)device;
    DeviceInfo *info = (DeviceInfo *)xcalloc(1, sizeof *info);
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return info;
    int (*init)(void);
    int (*by_bus)(const char *, NvmlDevice *);
    const LibrarySymbol wanted[] = {{"nvmlInit_v2", &init},
                                    {"nvmlDeviceGetHandleByPciBusId_v2", &by_bus},
                                    {"nvmlShutdown", &info->shutdown},
                                    {"nvmlDeviceGetClockInfo", &info->clock},
                                    {"nvmlDeviceGetPowerUsage", &info->power},
                                    {"nvmlDeviceGetTemperature", &info->temperature},
                                    {"nvmlDeviceGetMemoryInfo", &info->memory}};
    if (library_symbols(library, "NVML", wanted, sizeof wanted / sizeof wanted[0], NULL) && init() == 0) {
        if (by_bus(pci_bus_id, &info->device) == 0) {
            info->library = library;
            return info;
        }
        info->shutdown();
    }
    dlclose(library);
    return info;
}

void device_info_close(struct DeviceInfo *info) {
    if (info == NULL) return;
    if (info->library != NULL) {
        info->shutdown();
        dlclose(info->library);
    }
    free(info);
}

bool device_info_telemetry(const struct DeviceInfo *info, DeviceTelemetry *out) {
    memset(out, 0, sizeof *out);
    if (info == NULL || info->library == NULL) return false;
    unsigned value;
    NvmlMemory memory;
    if (info->clock(info->device, NVML_CLOCK_SM, &value) == 0) out->clock_mhz = (double)value;
    if (info->power(info->device, &value) == 0) out->power_watts = (double)value * 1e-3;
    if (info->temperature(info->device, NVML_TEMPERATURE_GPU, &value) == 0) out->temperature_celsius = (double)value;
    if (info->memory(info->device, &memory) == 0) out->memory_used_bytes = (size_t)memory.used;
    return true;
}
