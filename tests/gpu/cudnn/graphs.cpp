// graphs.cpp: the attention graphs of training, checked without a GPU: cuDNN's heuristics and support checks run for
// described devices (cuDNN 9.8 and newer). tests/gpu/test_cudnn_graphs.sh builds and runs it; it prints cmocka's
// lines. own_kernel_serves lists the cases without an engine, so that a change is noticed.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/cuda/cudnn_sdpa.h"

typedef struct {
    const char *name;
    int compute_capability, sm_count, shared_bytes, ctas_per_sm;
    long long l2_bytes, memory_bytes;
} Gpu;
static const Gpu GPUS[] = {
    {"A100", 80, 108, 166912, 32, 41943040LL, 85899345920LL},
    {"H100", 90, 132, 232448, 32, 52428800LL, 85899345920LL},
    {"B200", 100, 148, 232448, 32, 132644864LL, 193273528320LL},
};

// Heads of the presets in llmc/config/model_config.c, and one that no engine supports.
typedef struct {
    const char *models;
    int NH, NKV, HS, T;
} Heads;
static const Heads HEADS[] = {
    {"gpt2:124M", 12, 12, 64, 1024},     {"gpt2:350M", 16, 16, 64, 1024},     {"gpt2:774M", 20, 20, 64, 1024},
    {"gpt2:1.5B", 25, 25, 64, 1024},     {"gpt3:760M", 16, 16, 96, 1024},     {"gpt3:2.7B", 32, 32, 80, 1024},
    {"gpt3:1.3B", 16, 16, 128, 1024},    {"llama3:1B", 32, 8, 64, 4096},      {"llama3:3B", 24, 8, 128, 4096},
    {"llama3:8B", 32, 8, 128, 4096},     {"qwen2:0.5B", 14, 2, 64, 1024},     {"qwen2:1.5B", 12, 2, 128, 1024},
    {"qwen2:3B", 16, 2, 128, 4096},      {"qwen2:7B", 28, 4, 128, 4096},      {"qwen3:0.6B", 16, 8, 128, 4096},
    {"stories:15M", 6, 6, 48, 256},      {"stories:260K", 8, 4, 8, 512},      {"odd length", 12, 12, 64, 1000},
    {"heads of 100", 16, 16, 100, 1024}, {"heads of 300", 12, 12, 300, 1024}, {"heads of 304", 12, 12, 304, 1024},
};

typedef struct {
    const char *name;
    int window;
    bool ragged;
} Mask;
static const Mask MASKS[] = {
    {"causal", 0, false}, {"window", 256, false}, {"documents", 0, true}, {"documents_window", 256, true}};

typedef struct {
    const char *name;
    bool backward, deterministic;
} Pass;
static const Pass PASSES[] = {
    {"forward", false, true}, {"backward", true, true}, {"unordered backward", true, false}};

static SdpaShape shape_of(const CudnnApi *api, SdpaDevice device, Heads h, Mask mask, Pass pass) {
    SdpaShape s;
    memset(&s, 0, sizeof s);
    int64_t B = 16384 / h.T;
    s.batch = mask.ragged ? cudnn_document_places(B, h.T) : B;
    s.T = h.T;
    s.tokens = B * h.T;
    s.NH = s.row_NH = h.NH;
    s.NKV = s.row_NKV = h.NKV;
    s.HS = h.HS;
    s.window = mask.window;
    s.ragged = mask.ragged;
    s.backward = pass.backward;
    s.deterministic = pass.deterministic;
    s.stores_scores = cudnn_sdpa_stores_scores(api, device);
    return s;
}

// Cases that cuDNN refuses, or that need too much workspace (16384 tokens at a time).
static bool own_kernel_serves(Gpu gpu, Heads h, Mask mask, Pass pass) {
    if (h.HS % 8 != 0) return true;
    if (h.HS > 256 && pass.backward) return true;
    if (!mask.ragged) return false;
    if (gpu.compute_capability < 90) return true;
    if (!pass.backward) return false;
    if (h.HS % 16 != 0 || h.NH != h.NKV) return true;
    // Hopper's ordered backward pass would store score gradients for every document place.
    return pass.deterministic && gpu.compute_capability == 90 && h.T > 256;
}

static bool make_device(SdpaDevice *out, const CudnnApi *api, Gpu gpu) {
    char json[1024];
    int length = snprintf(
        json, sizeof json,
        "{\"deviceVer\":%d,\"driverVer\":13000,\"cudaDeviceId\":0,\"maxGridSize\":[2147483647,65535,65535],"
        "\"maxBlockSize\":[1024,1024,64],\"regsPerBlock\":65536,\"multiProcessorCount\":%d,\"warpSize\":32,"
        "\"maxSharedMemoryPerBlock\":49152,\"maxSharedMemoryPerBlockOptin\":%d,\"reservedSharedMemoryPerBlock\":1024,"
        "\"maxRegistersPerSM\":65536,\"maxCtasPerSM\":%d,\"maxThreadsPerBlock\":1024,\"maxThreadsPerSM\":2048,"
        "\"pciDeviceId\":0,\"isTccDriver\":0,\"supportCoopLaunch\":1,\"smClockRateKHz\":1410000,"
        "\"memClockRateKHz\":1593000,\"l2CacheSize\":%lld,\"totalGlobalMem\":%lld,\"deviceName\":\"%s\"}",
        gpu.compute_capability * 10, gpu.sm_count, gpu.shared_bytes, gpu.ctas_per_sm, gpu.l2_bytes, gpu.memory_bytes,
        gpu.name);
    memset(out, 0, sizeof *out);
    out->compute_capability = gpu.compute_capability;
    cudnnStatus_t status = api->make(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &out->description);
    if (status == CUDNN_STATUS_SUCCESS)
        status = api->set(out->description, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, length + 1,
                          json);
    if (status == CUDNN_STATUS_SUCCESS) status = api->finalize(out->description);
    if (status == CUDNN_STATUS_SUCCESS) return true;
    char text[512];
    cudnn_api_error(api, status, text, sizeof text);
    printf("the description of %s: %s\n", gpu.name, text);
    return false;
}

// One case; prints unexpected results, or with verbose all results.
static bool check_case(const CudnnApi *api, SdpaDevice device, Gpu gpu, Heads h, Mask mask, Pass pass, bool verbose) {
    SdpaShape whole = shape_of(api, device, h, mask, pass), shape = cudnn_slice(whole);
    SdpaPlan plan;
    Error err;
    char reason[1200] = "";
    int64_t allowed = cudnn_engine_bytes(shape);
    if (shape.batch == 0) {
        snprintf(reason, sizeof reason, "workspace of %lld MiB", (long long)(cudnn_workspace_bytes(whole) >> 20));
    } else if (!cudnn_sdpa_build(&plan, api, device, &shape, &err)) {
        snprintf(reason, sizeof reason, "%s", err.message);
    } else if (plan.workspace_bytes > allowed) {
        printf("%s %s %s %s: engine %lld needs %lld bytes, the plan has at most %lld\n", gpu.name, h.models,
               mask.name, pass.name, (long long)plan.engine, (long long)plan.workspace_bytes, (long long)allowed);
        return false;
    }
    int64_t planned = cudnn_attention_plan_bytes(whole.tokens, h.T, h.NH, h.NKV, h.HS);
    if (shape.batch > 0 && cudnn_workspace_bytes(shape) > planned) {
        printf("%s %s %s %s: needs %lld bytes, the plan has at most %lld\n", gpu.name, h.models, mask.name,
               pass.name, (long long)cudnn_workspace_bytes(shape), (long long)planned);
        return false;
    }
    bool served = reason[0] == '\0', expected = !own_kernel_serves(gpu, h, mask, pass);
    if (served != expected || verbose)
        printf("%s %s %s %s: %s%s%s\n", gpu.name, h.models, mask.name, pass.name,
               served ? "served by cuDNN" : "own kernel: ", served ? "" : reason,
               served == expected ? "" : expected ? ", expected cuDNN" : ", expected the own kernel");
    if (served && verbose)
        printf("    engine %lld, %lld of %lld MiB, %lld sequences of %lld heads at once\n", (long long)plan.engine,
               (long long)(plan.workspace_bytes >> 20), (long long)(allowed >> 20), (long long)shape.batch,
               (long long)shape.NH);
    return served == expected;
}

int main(int argc, char **argv) {
    bool verbose = argc > 1 && strcmp(argv[1], "-v") == 0;
    CudnnApi api;
    Error err;
    if (!cudnn_api_open(&api, &err)) {
        printf("[ RUN      ] cudnn_graphs\n%s\n[  SKIPPED ] cudnn_graphs\n", err.message);
        return 0;
    }
    // cuDNN opens and closes the runtime compiler for every query, which takes longer than the query: keep it open.
    if (dlopen("libnvrtc.so.13", RTLD_LAZY) == NULL) dlopen("libnvrtc.so.12", RTLD_LAZY);
    int failures = 0;
    for (const Gpu &gpu : GPUS) {
        SdpaDevice device;
        bool described = make_device(&device, &api, gpu);
        for (const Mask &mask : MASKS) {
            printf("[ RUN      ] cudnn_graphs_%s_%s\n", gpu.name, mask.name);
            bool ok = described;
            for (const Heads &h : HEADS)
                for (const Pass &pass : PASSES)
                    if (described && !check_case(&api, device, gpu, h, mask, pass, verbose)) ok = false;
            printf("[%s] cudnn_graphs_%s_%s\n", ok ? "       OK " : "  FAILED  ", gpu.name, mask.name);
            failures += !ok;
        }
        if (described) api.drop(device.description);
    }
    cudnn_api_close(&api);
    return failures > 0;
}
