// emu_runtime.cpp: the emulated CUDA runtime's settings, errors and device. NVIDIA's cuda_runtime_api.h declares the
// functions, so the compiler checks their signatures; a function that emu_runtime*.cpp does not define is a link
// error.
//
// The device is described by the environment, read at first use:
//   TOKAMAK_EMU_CC=75|80|90|100     compute capability (90)
//   TOKAMAK_EMU_SMS=n               multiprocessors (4)
//   TOKAMAK_EMU_MEMORY_MIB=n        memory (4096)
//   TOKAMAK_EMU_STREAMS=lazy|eager|overtake    order of work (lazy); see emu_runtime.h
//   TOKAMAK_EMU_PROTECT_MIB=n       blocks of up to this size are inaccessible to the host except while work runs
//                                   (1 under AddressSanitizer, else 0: costs some microseconds per wait and block)
//   TOKAMAK_EMU_DRIVER=n            driver version (that of the headers); 0: none; older: cudaErrorInsufficientDriver
//   TOKAMAK_EMU_DEVICES=n           devices, 0 to 8 (1)
//   TOKAMAK_EMU_FAIL=error@n        the n-th launch, copy or library call fails: cudaErrorECCUncorrectable@500
#include "emu_runtime_state.h"

#include <algorithm>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARED_DEFAULT 49152
#ifdef __SANITIZE_ADDRESS__
#define PROTECT_MIB 1
#else
#define PROTECT_MIB 0
#endif

struct ErrorText {
    cudaError_t code;
    const char *name, *text;
};
#define ERROR_TEXT(code, text) \
    { code, #code, text }
static const ErrorText ERRORS[] = {
    ERROR_TEXT(cudaSuccess, "no error"),
    ERROR_TEXT(cudaErrorInvalidValue, "invalid argument"),
    ERROR_TEXT(cudaErrorMemoryAllocation, "out of memory"),
    ERROR_TEXT(cudaErrorInitializationError, "initialization error"),
    ERROR_TEXT(cudaErrorInvalidConfiguration, "invalid configuration argument"),
    ERROR_TEXT(cudaErrorInvalidPitchValue, "invalid pitch argument"),
    ERROR_TEXT(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy"),
    ERROR_TEXT(cudaErrorInvalidDeviceFunction, "invalid device function"),
    ERROR_TEXT(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version"),
    ERROR_TEXT(cudaErrorNoDevice, "no CUDA-capable device is detected"),
    ERROR_TEXT(cudaErrorInvalidDevice, "invalid device ordinal"),
    ERROR_TEXT(cudaErrorDevicesUnavailable, "CUDA-capable device(s) is/are busy or unavailable"),
    ERROR_TEXT(cudaErrorNoKernelImageForDevice, "no kernel image is available for execution on the device"),
    ERROR_TEXT(cudaErrorECCUncorrectable, "uncorrectable ECC error encountered"),
    ERROR_TEXT(cudaErrorNvlinkUncorrectable, "uncorrectable NVLink error detected during the execution"),
    ERROR_TEXT(cudaErrorInvalidResourceHandle, "invalid resource handle"),
    ERROR_TEXT(cudaErrorIllegalState, "the operation cannot be performed in the present state"),
    ERROR_TEXT(cudaErrorNotReady, "device not ready"),
    ERROR_TEXT(cudaErrorIllegalAddress, "an illegal memory access was encountered"),
    ERROR_TEXT(cudaErrorLaunchOutOfResources, "too many resources requested for launch"),
    ERROR_TEXT(cudaErrorLaunchTimeout, "the launch timed out and was terminated"),
    ERROR_TEXT(cudaErrorAssert, "device-side assert triggered"),
    ERROR_TEXT(cudaErrorHardwareStackError, "hardware stack error"),
    ERROR_TEXT(cudaErrorIllegalInstruction, "an illegal instruction was encountered"),
    ERROR_TEXT(cudaErrorMisalignedAddress, "misaligned address"),
    ERROR_TEXT(cudaErrorInvalidAddressSpace, "operation not supported on global/shared address space"),
    ERROR_TEXT(cudaErrorInvalidPc, "invalid program counter"),
    ERROR_TEXT(cudaErrorLaunchFailure, "unspecified launch failure"),
    ERROR_TEXT(cudaErrorNotPermitted, "operation not permitted"),
    ERROR_TEXT(cudaErrorNotSupported, "operation not supported"),
    ERROR_TEXT(cudaErrorSystemNotReady, "system not yet initialized"),
    ERROR_TEXT(cudaErrorSystemDriverMismatch, "system has unsupported display driver / cuda driver combination"),
    ERROR_TEXT(cudaErrorContained, "Invalid access of peer GPU memory over nvlink or a hardware error"),
    ERROR_TEXT(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing"),
    ERROR_TEXT(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture"),
    ERROR_TEXT(cudaErrorStreamCaptureMerge, "operation would result in a merge of separate capture sequences"),
    ERROR_TEXT(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began"),
    ERROR_TEXT(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work"),
    ERROR_TEXT(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream"),
    ERROR_TEXT(cudaErrorStreamCaptureImplicit,
               "operation would make the legacy stream depend on a capturing blocking stream"),
    ERROR_TEXT(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing stream"),
    ERROR_TEXT(cudaErrorStreamCaptureWrongThread,
               "attempt to terminate a thread-local capture sequence from another thread"),
    ERROR_TEXT(cudaErrorUnknown, "unknown error"),
};

void emu_abort(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("CUDA emulator: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

// ---- settings ----

int64_t emu_env(const char *name, int64_t otherwise, int64_t least, int64_t most) {
    const char *text = getenv(name);
    if (text == NULL || *text == '\0') return otherwise;
    char *end = NULL;
    long long value = strtoll(text, &end, 10);
    if (*end != '\0' || value < least || value > most)
        emu_abort("%s=%s: expected a whole number from %lld to %lld", name, text, (long long)least, (long long)most);
    return value;
}

static EmuOrder order_from_env(void) {
    const char *text = getenv("TOKAMAK_EMU_STREAMS");
    if (text == NULL || *text == '\0' || strcmp(text, "lazy") == 0) return EMU_LAZY;
    if (strcmp(text, "eager") == 0) return EMU_EAGER;
    if (strcmp(text, "overtake") == 0) return EMU_OVERTAKE;
    emu_abort("TOKAMAK_EMU_STREAMS=%s: expected lazy, eager or overtake", text);
}

static void failure_from_env(EmuRuntime *rt) {
    const char *text = getenv("TOKAMAK_EMU_FAIL");
    if (text == NULL || *text == '\0') return;
    const char *at = strchr(text, '@');
    char *end = NULL;
    rt->fail_at = at != NULL ? strtoll(at + 1, &end, 10) : 0;
    for (const ErrorText &known : ERRORS)
        if (at != NULL && strlen(known.name) == (size_t)(at - text) &&
            memcmp(known.name, text, (size_t)(at - text)) == 0)
            rt->fail_with = known.code;
    if (rt->fail_with == cudaSuccess || *end != '\0' || rt->fail_at < 1)
        emu_abort("TOKAMAK_EMU_FAIL=%s: expected an error's name and a count, as in cudaErrorLaunchFailure@20", text);
}

static EmuRuntime *runtime_open(void) {
    EmuRuntime *rt = new EmuRuntime();
    rt->driver_version = (int)emu_env("TOKAMAK_EMU_DRIVER", CUDART_VERSION, 0, 1000000);
    rt->devices = (int)emu_env("TOKAMAK_EMU_DEVICES", 1, 0, 8);
    rt->capability = (int)emu_env("TOKAMAK_EMU_CC", 90, 50, 129);
    rt->sm_count = (int)emu_env("TOKAMAK_EMU_SMS", 4, 1, 1024);
    rt->memory_bytes = (size_t)emu_env("TOKAMAK_EMU_MEMORY_MIB", 4096, 1, 1 << 20) << 20;
    rt->order = order_from_env();
    rt->protect_bytes = (size_t)emu_env("TOKAMAK_EMU_PROTECT_MIB", PROTECT_MIB, 0, 1 << 20) << 20;
    failure_from_env(rt);
    rt->default_stream.blocking = true;
    rt->streams.push_back(&rt->default_stream);
    return rt;
}

// Never destroyed: libraries may call the runtime from their own destructors.
EmuRuntime *emu_runtime(void) {
    static EmuRuntime *const runtime = runtime_open();
    return runtime;
}

// ---- errors ----

static thread_local cudaError_t last_error = cudaSuccess;
static thread_local int current_device = 0;

cudaError_t emu_set_error(cudaError_t error) {
    if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
    return error;
}

cudaError_t emu_ready(void) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    if (rt->driver_version / 1000 < CUDART_VERSION / 1000) return cudaErrorInsufficientDriver;
    if (rt->devices == 0) return cudaErrorNoDevice;
    return rt->sticky;
}

cudaError_t cudaPeekAtLastError(void) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    return rt->sticky != cudaSuccess ? rt->sticky : last_error;
}

cudaError_t cudaGetLastError(void) {
    cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}

const char *cudaGetErrorName(cudaError_t error) {
    for (const ErrorText &known : ERRORS)
        if (known.code == error) return known.name;
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error) {
    for (const ErrorText &known : ERRORS)
        if (known.code == error) return known.text;
    return "unrecognized error code";
}

// ---- versions and devices ----

cudaError_t cudaDriverGetVersion(int *version) {
    *version = emu_runtime()->driver_version;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *count) {
    *count = 0;
    cudaError_t error = emu_ready();
    if (error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice) return emu_set_error(error);
    *count = emu_runtime()->devices;
    return cudaSuccess;
}

static cudaError_t device_exists(int device) {
    cudaError_t error = emu_ready();
    if (error == cudaSuccess && (device < 0 || device >= emu_runtime()->devices)) error = cudaErrorInvalidDevice;
    return emu_set_error(error);
}

cudaError_t cudaSetDevice(int device) {
    cudaError_t error = device_exists(device);
    if (error == cudaSuccess) current_device = device;
    return error;
}

cudaError_t cudaGetDevice(int *device) {
    *device = current_device;
    return emu_set_error(emu_ready());
}

int emu_compute_capability(void) { return emu_runtime()->capability; }

static size_t shared_optin(int capability) {
    if (capability >= 120) return 99 << 10;
    if (capability >= 90) return 227 << 10;
    if (capability == 80 || capability == 87) return 163 << 10;
    if (capability > 80) return 99 << 10;
    return capability >= 75 ? 64 << 10 : SHARED_DEFAULT;
}

static int clock_khz(void) { return 1000000; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *prop, int device) {
    cudaError_t error = device_exists(device);
    if (error != cudaSuccess) return error;
    const EmuRuntime *rt = emu_runtime();
    memset(prop, 0, sizeof *prop);
    snprintf(prop->name, sizeof prop->name, "Emulated GPU");
    memset(prop->uuid.bytes, 0xe0 + device, sizeof prop->uuid.bytes);
    prop->totalGlobalMem = rt->memory_bytes;
    prop->sharedMemPerBlock = SHARED_DEFAULT;
    prop->sharedMemPerBlockOptin = shared_optin(rt->capability);
    prop->sharedMemPerMultiprocessor = prop->sharedMemPerBlockOptin + 1024;
    prop->reservedSharedMemPerBlock = 1024;
    prop->regsPerBlock = prop->regsPerMultiprocessor = 65536;
    prop->warpSize = 32;
    prop->memPitch = 0x7fffffff;
    prop->maxThreadsPerBlock = 1024;
    prop->maxThreadsDim[0] = prop->maxThreadsDim[1] = 1024;
    prop->maxThreadsDim[2] = 64;
    prop->maxGridSize[0] = 0x7fffffff;
    prop->maxGridSize[1] = prop->maxGridSize[2] = 65535;
    prop->totalConstMem = 65536;
    prop->major = rt->capability / 10;
    prop->minor = rt->capability % 10;
    prop->textureAlignment = 512;
    prop->multiProcessorCount = rt->sm_count;
    prop->canMapHostMemory = 1;
    prop->concurrentKernels = 1;
    prop->ECCEnabled = 1;
    prop->pciBusID = 0xe0 + device;
    prop->asyncEngineCount = 2;
    prop->unifiedAddressing = 1;
    prop->memoryBusWidth = 64;
    prop->l2CacheSize = 4 << 20;
    prop->maxThreadsPerMultiProcessor = rt->capability == 75 ? 1024 : 2048;
    prop->maxBlocksPerMultiProcessor = rt->capability == 75 ? 16 : 32;
    prop->streamPrioritiesSupported = 1;
    prop->globalL1CacheSupported = prop->localL1CacheSupported = 1;
    prop->hostRegisterSupported = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp prop;
    cudaError_t error = cudaGetDeviceProperties(&prop, device);
    if (error != cudaSuccess) return error;
    switch ((int)attribute) {
    case cudaDevAttrMaxThreadsPerBlock: *value = prop.maxThreadsPerBlock; break;
    case cudaDevAttrMaxGridDimX: *value = prop.maxGridSize[0]; break;
    case cudaDevAttrMaxGridDimY: *value = prop.maxGridSize[1]; break;
    case cudaDevAttrMaxGridDimZ: *value = prop.maxGridSize[2]; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)prop.sharedMemPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)prop.sharedMemPerBlockOptin; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = (int)prop.sharedMemPerMultiprocessor; break;
    case cudaDevAttrReservedSharedMemoryPerBlock: *value = (int)prop.reservedSharedMemPerBlock; break;
    case cudaDevAttrMaxRegistersPerBlock: *value = prop.regsPerBlock; break;
    case cudaDevAttrMaxRegistersPerMultiprocessor: *value = prop.regsPerMultiprocessor; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = prop.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *value = prop.maxBlocksPerMultiProcessor; break;
    case cudaDevAttrWarpSize: *value = prop.warpSize; break;
    case cudaDevAttrClockRate: *value = clock_khz(); break;
    case cudaDevAttrMemoryClockRate: *value = clock_khz(); break;
    case cudaDevAttrGlobalMemoryBusWidth: *value = prop.memoryBusWidth; break;
    case cudaDevAttrL2CacheSize: *value = prop.l2CacheSize; break;
    case cudaDevAttrMultiProcessorCount: *value = prop.multiProcessorCount; break;
    case cudaDevAttrComputeCapabilityMajor: *value = prop.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = prop.minor; break;
    case cudaDevAttrEccEnabled: *value = prop.ECCEnabled; break;
    case cudaDevAttrIntegrated: *value = prop.integrated; break;
    case cudaDevAttrAsyncEngineCount: *value = prop.asyncEngineCount; break;
    case cudaDevAttrConcurrentKernels: *value = prop.concurrentKernels; break;
    case cudaDevAttrPciBusId: *value = prop.pciBusID; break;
    case cudaDevAttrPciDeviceId: *value = prop.pciDeviceID; break;
    case cudaDevAttrPciDomainId: *value = prop.pciDomainID; break;
    default: emu_abort("cudaDeviceGetAttribute: cudaDeviceAttr %d (driver_types.h) is not emulated", (int)attribute);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    cudaDeviceProp prop;
    cudaError_t error = cudaGetDeviceProperties(&prop, device);
    if (error != cudaSuccess) return error;
    int needed = snprintf(id, (size_t)length, "%04x:%02x:%02x.0", prop.pciDomainID, prop.pciBusID, prop.pciDeviceID);
    return needed < length ? cudaSuccess : emu_set_error(cudaErrorInvalidValue);
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return emu_set_error(emu_ready());
}

// ---- kernels' attributes ----

size_t emu_shared_limit(const void *kernel) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    auto found = rt->shared_limits.find(kernel);
    return found == rt->shared_limits.end() ? SHARED_DEFAULT
                                            : std::max((size_t)SHARED_DEFAULT, (size_t)found->second);
}

cudaError_t cudaFuncSetAttribute(const void *kernel, cudaFuncAttribute attribute, int value) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    switch ((int)attribute) {
    case cudaFuncAttributeMaxDynamicSharedMemorySize:
        if (value < 0 || (size_t)value > shared_optin(rt->capability)) return emu_set_error(cudaErrorInvalidValue);
        rt->shared_limits[kernel] = value;
        return cudaSuccess;
    case cudaFuncAttributePreferredSharedMemoryCarveout:
        return value < -1 || value > 100 ? emu_set_error(cudaErrorInvalidValue) : cudaSuccess;
    default: emu_abort("cudaFuncSetAttribute: cudaFuncAttribute %d (driver_types.h) is not emulated", (int)attribute);
    }
}

// Registers and local memory are unknown here: 0.
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *kernel) {
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->maxDynamicSharedSizeBytes = (int)emu_shared_limit(kernel);
    attributes->binaryVersion = attributes->ptxVersion = emu_compute_capability();
    return cudaSuccess;
}
