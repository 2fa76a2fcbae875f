// faults.cu: kernels with one fault each, and their correct twins. tests/gpu/test_emu_device.sh runs them on the
// emulator, as `faults NAME` and `faults NAME clean`, and lists which build must find which fault. Exit status 0: the
// result is right; 3: it is wrong, or CUDA returned an error; a fault detected by the emulator aborts.
#include "llmc/cuda/gpu.h"

#include <stdio.h>
#include <string.h>

#define THREADS 128
#define ROW (THREADS / 2)

// ---- one block, `in` and `out` of THREADS elements; the correct result is reference() ----

// out[t] = in[t] + in[t - 1], the neighbour's value through shared memory.
__global__ void barrier_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[t] = in[t];
    if (clean) __syncthreads();
    out[t] = tile[t] + (t > 0 ? tile[t - 1] : 0.0f);
}
// The same; only neighbours in a warp exchange through shared memory, the others through global memory.
__global__ void syncwarp_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[t] = in[t];
    if (clean) __syncwarp();
    float before = t % WARP > 0 ? tile[t - 1] : t > 0 ? in[t - 1] : 0.0f;
    out[t] = tile[t] + before;
    if (clean) __syncwarp();
    tile[t] = before;  // while the next lane may still read it
}
__global__ void global_bounds_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    out[t] = in[t] + (t > 0 ? in[t - 1] : 0.0f);
    if (!clean && t == 0) out[THREADS] = 0.0f;
}
__global__ void shared_bounds_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[clean ? t : t + 1] = in[t];
    __syncthreads();
    out[t] = tile[clean ? t : t + 1] + (t > 0 ? tile[clean ? t - 1 : t] : 0.0f);
}
__global__ void dynamic_bounds_kernel(float *out, const float *in, bool clean) {
    SHARED_DYNAMIC(float, tile);  // THREADS elements
    int t = (int)threadIdx.x, at = clean ? t : t + 1;
    tile[at] = in[t];
    __syncthreads();
    out[t] = tile[at] + (t > 0 ? tile[at - 1] : 0.0f);
}
__global__ void uninitialised_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS + 1);
    int t = (int)threadIdx.x;
    tile[t + 1] = in[t];
    if (clean && t == 0) tile[0] = 0.0f;
    __syncthreads();
    out[t] = tile[t + 1] + tile[t];
}
__global__ void async_wait_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS);
    int t = (int)threadIdx.x;
    if (t % 4 == 0) emu_async_copy(tile + t, in + t, 16, 16);
    emu_async_commit();
    if (clean) emu_async_wait(0);
    __syncthreads();
    out[t] = tile[t] + (t > 0 ? tile[t - 1] : 0.0f);
}
// Two halves of the row through one buffer: the second may be requested only after all reads of the first.
__global__ void async_refill_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, ROW);
    int t = (int)threadIdx.x;
    for (int part = 0; part < 2; part++) {
        if (t % 4 == 0 && t < ROW) emu_async_copy(tile + t, in + part * ROW + t, 16, 16);
        emu_async_commit();
        emu_async_wait(0);
        __syncthreads();
        int at = t - part * ROW;
        if (at >= 0 && at < ROW) out[t] = tile[at] + (at > 0 ? tile[at - 1] : t > 0 ? in[t - 1] : 0.0f);
        if (clean) __syncthreads();
    }
}
__global__ void diverged_barrier_kernel(float *out, const float *in, bool clean) {
    SHARED_ARRAY(float, tile, THREADS);
    int t = (int)threadIdx.x;
    tile[t] = in[t];
    if (!clean && t == THREADS - 1) return;
    __syncthreads();
    out[t] = tile[t] + (t > 0 ? tile[t - 1] : 0.0f);
}
__global__ void missing_lane_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    if (!clean && t == 70) return;
    float before = __shfl_up_sync(FULL_MASK, in[t], 1);
    out[t] = in[t] + (t % WARP > 0 ? before : t > 0 ? in[t - 1] : 0.0f);
}
__global__ void own_lane_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    float before = 0.0f;
    if (t % WARP < 16) before = __shfl_up_sync(clean ? 0xffffu : 0xff00u, in[t], 1);
    else before = __shfl_up_sync(0xffff0000u, in[t], 1);
    out[t] = in[t] + (t % 16 > 0 ? before : t > 0 ? in[t - 1] : 0.0f);
}
__global__ void diverged_warp_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    float before = t > 0 ? in[t - 1] : 0.0f;
    if (clean || t % 2 == 0) __syncwarp();
    else before += (float)__any_sync(FULL_MASK, 0);
    out[t] = in[t] + before;
}
// The value of a lane outside the mask is undefined.
__global__ void shuffle_source_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x, lane = t % WARP;
    float before = 0.0f;
    if (lane < 31) before = __shfl_sync(0x7fffffffu, in[t], clean ? (lane + 30) % 31 : (lane + 31) % WARP);
    out[t] = in[t] + (lane > 0 && lane < 31 ? before : (t > 0 ? in[t - 1] : 0.0f) + 0.0f * before);
}
__global__ void misaligned_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    if (!clean && t == 0) out[0] = pack_load<float, 4>(in + 1).v[3];
    out[t] = in[t] + (t > 0 ? in[t - 1] : 0.0f);
}
__global__ void shared_limit_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    if (!clean) {
        SHARED_ARRAY(float, large, 48 * 1024 / 4 + 1);
        large[t] = 0.0f;
    }
    out[t] = in[t] + (t > 0 ? in[t - 1] : 0.0f);
}

// ---- several blocks ----

__global__ void global_race_kernel(float *out, const float *in, bool clean) {
    int t = (int)threadIdx.x;
    if (!clean || blockIdx.x == 0) out[t] = in[t] + (t > 0 ? in[t - 1] : 0.0f);
}
// Blocks of ROW threads: each element once, but a block reads elements that another block writes.
__global__ void global_read_kernel(float *out, const float *in, bool clean) {
    int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    out[t] = in[t];
    if (clean || t != ROW) out[t] += t > 0 ? in[t - 1] : 0.0f;
    else out[t] += out[ROW - 1] - in[t - 2];
}
// Elements of two bytes: neighbours share a word and do not race.
__global__ void atomic_kernel(float *out, const float *in, int *count, bf16 *halves, bool clean) {
    int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    if (clean) atomicAdd(count, 1);
    else *count += 1;
    halves[t] = from_float<bf16>(in[t]);
    out[t] = to_float(halves[t]) + (t > 0 ? in[t - 1] : 0.0f);
}
__global__ void host_pointer_kernel(float *out, const float *in, const float *host) {
    int t = (int)threadIdx.x;
    out[t] = host[t] + (t > 0 ? in[t - 1] : 0.0f);
}
__global__ void fill_kernel(float *to, const float *from) { to[threadIdx.x] = from[threadIdx.x]; }

// ---- host ----

typedef struct Fault {
    const char *name;
    void (*kernel)(float *out, const float *in, bool clean);
    unsigned blocks, threads;
} Fault;
static const Fault FAULTS[] = {
    {"barrier", barrier_kernel, 1, THREADS},
    {"syncwarp", syncwarp_kernel, 1, THREADS},
    {"global_bounds", global_bounds_kernel, 1, THREADS},
    {"shared_bounds", shared_bounds_kernel, 1, THREADS},
    {"dynamic_bounds", dynamic_bounds_kernel, 1, THREADS},
    {"uninitialised", uninitialised_kernel, 1, THREADS},
    {"async_wait", async_wait_kernel, 1, THREADS},
    {"async_refill", async_refill_kernel, 1, THREADS},
    {"diverged_barrier", diverged_barrier_kernel, 1, THREADS},
    {"missing_lane", missing_lane_kernel, 1, THREADS},
    {"own_lane", own_lane_kernel, 1, THREADS},
    {"diverged_warp", diverged_warp_kernel, 1, THREADS},
    {"shuffle_source", shuffle_source_kernel, 1, THREADS},
    {"misaligned", misaligned_kernel, 1, THREADS},
    {"shared_limit", shared_limit_kernel, 1, THREADS},
    {"global_race", global_race_kernel, 2, THREADS},
    {"global_read", global_read_kernel, 2, ROW},
};

static float *device_floats(size_t count) {
    void *pointer = NULL;
    return cudaMalloc(&pointer, count * sizeof(float)) == cudaSuccess ? (float *)pointer : NULL;
}

// A copy on one stream of the output of a kernel on another stream.
static cudaError_t run_streams(float *out, const float *in, bool clean) {
    float *between = device_floats(THREADS);
    cudaStream_t first, second;
    cudaEvent_t made;
    cudaError_t status = cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
    if (status == cudaSuccess) status = cudaEventCreateWithFlags(&made, cudaEventDisableTiming);
    if (status == cudaSuccess) status = gpu_launch(fill_kernel, dim3(1), dim3(THREADS), 0, first, between, in);
    if (status == cudaSuccess) status = cudaEventRecord(made, first);
    if (status == cudaSuccess && clean) status = cudaStreamWaitEvent(second, made, 0);
    if (status == cudaSuccess)
        status = gpu_launch(barrier_kernel, dim3(1), dim3(THREADS), 0, second, out, between, true);
    if (status == cudaSuccess) status = cudaStreamSynchronize(second);
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    return status;
}

static cudaError_t run_fault(const char *name, float *out, const float *in, const float *host, bool clean) {
    for (const Fault &fault : FAULTS)
        if (strcmp(name, fault.name) == 0)
            return gpu_launch(fault.kernel, dim3(fault.blocks), dim3(fault.threads), THREADS * sizeof(float), 0, out,
                              in, clean);
    if (strcmp(name, "event") == 0) return run_streams(out, in, clean);
    if (strcmp(name, "atomic") == 0) {
        void *count = device_floats(1), *halves = device_floats(THREADS / 2);
        return gpu_launch(atomic_kernel, dim3(2), dim3(ROW), 0, 0, out, in, (int *)count, (bf16 *)halves, clean);
    }
    if (strcmp(name, "host_pointer") == 0)
        return gpu_launch(host_pointer_kernel, dim3(1), dim3(THREADS), 0, 0, out, in, clean ? in : host);
    if (strcmp(name, "block_size") == 0)
        return gpu_launch(global_bounds_kernel, dim3(1), clean ? dim3(THREADS) : dim3(1025), 0, 0, out, in, true);
    if (strcmp(name, "grid_size") == 0)
        return gpu_launch(global_bounds_kernel, dim3(1, 1, clean ? 1 : 65536), dim3(THREADS), 0, 0, out, in, true);
    if (strcmp(name, "empty_grid") == 0)
        return gpu_launch(global_bounds_kernel, dim3(clean ? 1 : 0), dim3(THREADS), 0, 0, out, in, true);
    if (strcmp(name, "dynamic_limit") == 0)
        return gpu_launch(dynamic_bounds_kernel, dim3(1), dim3(THREADS), (size_t)(clean ? 227 : 228) * 1024, 0, out,
                          in, true);
    fprintf(stderr, "no fault is called %s\n", name);
    return cudaErrorInvalidValue;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "build") == 0) {
#if defined(TOKAMAK_EMU_RACE)
        puts("race");
#elif defined(__SANITIZE_ADDRESS__)
        puts("asan");
#else
        puts("plain");
#endif
        return 0;
    }
    if (argc < 2 || argc > 3) return 2;
    float host_in[THREADS], host_out[THREADS];
    for (int i = 0; i < THREADS; i++) host_in[i] = (float)(i * i % 61) + 1.0f;
    float *in = device_floats(THREADS), *out = device_floats(THREADS);
    cudaError_t status = cudaMemcpy(in, host_in, sizeof host_in, cudaMemcpyHostToDevice);
    if (status == cudaSuccess) status = run_fault(argv[1], out, in, host_in, argc == 3);
    if (status == cudaSuccess) status = cudaDeviceSynchronize();
    if (status == cudaSuccess) status = cudaMemcpy(host_out, out, sizeof host_out, cudaMemcpyDeviceToHost);
    if (status != cudaSuccess) {
        printf("%s\n", cudaGetErrorName(status));
        return 3;
    }
    for (int i = 0; i < THREADS; i++) {
        float expected = host_in[i] + (i > 0 ? host_in[i - 1] : 0.0f);
        if (host_out[i] == expected) continue;
        printf("wrong result: element %d is %g instead of %g\n", i, (double)host_out[i], (double)expected);
        return 3;
    }
    return 0;
}
