// device.cu: the device half of the emulator (dev/emu/emu_device.h, emu_exec): thread indices, barriers, warp
// operations, shared memory, cp.async, atomics and intrinsics against CUDA's programming guide, in each order of
// threads. Faults are tested by faults.cu. tests/gpu/test_emu_device.sh runs it.
#include "llmc/cuda/gpu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
extern "C" {
#include <cmocka.h>
}

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OK(call) assert_int_equal((int)(call), (int)cudaSuccess)
#define THREADS 256

static const char *const ORDERS[] = {"forward", "reverse", "random"};

template <class T>
static T *device_new(size_t count) {
    void *pointer = NULL;
    OK(cudaMalloc(&pointer, count * sizeof(T)));
    return static_cast<T *>(pointer);
}
// Waits for the kernels before it.
template <class T>
static void device_read(T *to, const T *from, size_t count) {
    OK(cudaMemcpy(to, from, count * sizeof(T), cudaMemcpyDeviceToHost));
}

// ---- indices ----

__global__ void index_kernel(int *out) {
    int block = (int)(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
    int thread = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    int threads = (int)(blockDim.x * blockDim.y * blockDim.z);
    out[block * threads + thread] = (int)(threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z) + 1000 * block;
}
static void test_indices(void **) {
    enum { BLOCKS = 2 * 3 * 2, SIZE = 5 * 4 * 3 };
    int *out = device_new<int>(BLOCKS * SIZE), got[BLOCKS * SIZE];
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(cudaMemset(out, 0xff, sizeof got));
        OK(gpu_launch(index_kernel, dim3(2, 3, 2), dim3(5, 4, 3), 0, 0, out));
        device_read(got, out, BLOCKS * SIZE);
        for (int i = 0; i < BLOCKS * SIZE; i++) {
            int t = i % SIZE;
            assert_int_equal(got[i], t % 5 + 10 * (t / 5 % 4) + 100 * (t / 20) + 1000 * (i / SIZE));
        }
    }
    OK(cudaFree(out));
}

// ---- barriers and reductions ----

template <class T>
__global__ void __launch_bounds__(1024) reduce_kernel(float *sum, float *most, const T *in, int64_t count) {
    SHARED_ARRAY(float, partial, 32);
    float own = 0.0f, own_most = -INFINITY;
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
        float x = to_float(in[blockIdx.x * count + i]);
        own += x;
        own_most = fmaxf(own_most, x);
    }
    own = block_sum(own, partial);
    own_most = block_max(own_most, partial);
    if (threadIdx.x == 0) {
        sum[blockIdx.x] = own;
        most[blockIdx.x] = own_most;
    }
}
// The order of the sums is that of the source: the same bits in every order of threads.
static void test_reductions(void **) {
    enum { ROWS = 3, COUNT = 5000 };
    static bf16 host[ROWS * COUNT];
    for (int i = 0; i < ROWS * COUNT; i++) host[i] = from_float<bf16>(sinf((float)i) + (i == 7777 ? 5.0f : 0.0f));
    bf16 *in = device_new<bf16>(ROWS * COUNT);
    float *sum = device_new<float>(ROWS), *most = device_new<float>(ROWS);
    float sums[ROWS], first_sums[ROWS], mosts[ROWS];
    OK(cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice));
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(gpu_launch((reduce_kernel<bf16>), dim3(ROWS), dim3(1024), 0, 0, sum, most, in, COUNT));
        device_read(sums, sum, ROWS);
        device_read(mosts, most, ROWS);
        if (order == ORDERS[0]) memcpy(first_sums, sums, sizeof sums);
        assert_memory_equal(sums, first_sums, sizeof sums);
    }
    for (int row = 0; row < ROWS; row++) {
        double expected = 0.0;
        float expected_most = -INFINITY;
        for (int i = row * COUNT; i < (row + 1) * COUNT; i++) {
            expected += (double)to_float(host[i]);
            expected_most = fmaxf(expected_most, to_float(host[i]));
        }
        // 5000 additions of values below 1, 5 a thread and 10 levels: errors of 15 roundings of sums below 50.
        assert_true(fabs((double)sums[row] - expected) < 15 * 50 * 6e-8);
        assert_true(mosts[row] == expected_most);
    }
    OK(cudaFree(in));
    OK(cudaFree(sum));
    OK(cudaFree(most));
}

// ---- warp operations ----

struct WarpResults {
    double index, up, down, exclusive;
    int narrow, halves, segment, votes, any, all;
};
__global__ void warp_kernel(WarpResults *out) {
    int lane = (int)threadIdx.x % WARP;
    double value = 100.0 + lane;
    WarpResults r;
    r.index = __shfl_sync(FULL_MASK, value, lane / 2 + WARP);  // the lane counts modulo the width
    r.up = __shfl_up_sync(FULL_MASK, value, 3);
    r.down = __shfl_down_sync(FULL_MASK, value, 5);
    r.exclusive = __shfl_xor_sync(FULL_MASK, value, 21);
    r.narrow = (int)to_float(__shfl_xor_sync(FULL_MASK, from_float<bf16>((float)lane), 1));
    r.segment = __shfl_down_sync(FULL_MASK, lane, 2, 8) + 100 * __shfl_sync(FULL_MASK, lane, 9, 8);
    unsigned own = lane < 11 ? (1u << 11) - 1 : FULL_MASK << 11;
    r.halves = 0;
    for (int i = 0; i < (lane < 11 ? 3 : 2); i++) r.halves += __shfl_sync(own, lane + i, lane < 11 ? 4 : 20);
    r.votes = (int)__ballot_sync(FULL_MASK, lane % 3 == 0);
    r.any = __any_sync(FULL_MASK, lane == 31) + 2 * __any_sync(FULL_MASK, lane == 32);
    r.all = __all_sync(FULL_MASK, lane < 32) + 2 * __all_sync(own, lane < 11);
    out[threadIdx.x] = r;
}
static void test_warp_operations(void **) {
    WarpResults *out = device_new<WarpResults>(THREADS), got[THREADS];
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(gpu_launch(warp_kernel, dim3(1), dim3(THREADS), 0, 0, out));
        device_read(got, out, THREADS);
        for (int t = 0; t < THREADS; t++) {
            int lane = t % WARP;
            assert_true(got[t].index == 100.0 + lane / 2);
            assert_true(got[t].up == 100.0 + (lane < 3 ? lane : lane - 3));
            assert_true(got[t].down == 100.0 + (lane + 5 > 31 ? lane : lane + 5));
            assert_true(got[t].exclusive == 100.0 + (lane ^ 21));
            assert_int_equal(got[t].narrow, lane ^ 1);
            assert_int_equal(got[t].segment, (lane % 8 + 2 > 7 ? lane : lane + 2) + 100 * (lane / 8 * 8 + 1));
            assert_int_equal(got[t].halves, lane < 11 ? 4 + 5 + 6 : 20 + 21);
            assert_int_equal(got[t].votes, 0x49249249);
            assert_int_equal(got[t].any, 1);
            assert_int_equal(got[t].all, 1 + (lane < 11 ? 2 : 0));
        }
    }
    OK(cudaFree(out));
}

// Lane i receives the sum over the lanes i, i + 1, ...
struct Suffix {
    int given, got;
};
static void suffix_run(void *lane[EMU_LANES]) {
    int sum = 0;
    for (int i = EMU_LANES - 1; i >= 0; i--) {
        Suffix *suffix = static_cast<Suffix *>(lane[i]);
        suffix->got = sum += suffix->given;
    }
}
__global__ void collective_kernel(int *out) {
    for (int i = 0; i < 3; i++) {
        Suffix suffix = {(int)threadIdx.x % WARP + i, -1};
        emu_warp_collective(&suffix, suffix_run);
        out[threadIdx.x * 3 + i] = suffix.got;
    }
}
static void test_collective(void **) {
    int *out = device_new<int>(THREADS * 3), got[THREADS * 3];
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(gpu_launch(collective_kernel, dim3(1), dim3(THREADS), 0, 0, out));
        device_read(got, out, THREADS * 3);
        for (int t = 0; t < THREADS * 3; t++) {
            int lane = t / 3 % WARP, rest = WARP - lane;
            assert_int_equal(got[t], rest * (t % 3) + (lane + 31) * rest / 2);
        }
    }
    OK(cudaFree(out));
}

// ---- shared memory ----

static __device__ float *helper_array() {
    SHARED_ARRAY(float, name, 8);
    return name;
}
__global__ void shared_kernel(int *bad) {
    SHARED_ARRAY(float, name, 8);
    SHARED_ARRAY(double, wide, 5);
    SHARED_DYNAMIC(float, dynamic);
    int t = (int)threadIdx.x;
    // New in each block, filled with NaN; one array per declaration; the same for all threads.
    bool fresh = isnan(name[t % 8]) && isnan(wide[t % 5]) && isnan(dynamic[t]) && isnan(helper_array()[t % 8]);
    bool sized = sizeof(name) == 8 * sizeof(float) && sizeof(wide) == 5 * sizeof(double);
    bool aligned = (uintptr_t)name % 16 == 0 && (uintptr_t)wide % 16 == 0 && (uintptr_t)dynamic % 128 == 0;
    __syncthreads();
    if (t < 8) name[t] = (float)t;
    if (t >= 64 && t < 72) helper_array()[t - 64] = (float)t;
    dynamic[t] = (float)-t;
    __syncthreads();
    bool kept = name[t % 8] == (float)(t % 8) && helper_array()[t % 8] == (float)(t % 8 + 64) &&
                dynamic[THREADS - 1 - t] == (float)(t + 1 - THREADS);
    if (!fresh || !sized || !aligned || !kept) atomicAdd(bad, 1);
}
static void test_shared_memory(void **) {
    int *bad = device_new<int>(1), got = -1;
    OK(cudaMemset(bad, 0, sizeof(int)));
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(gpu_launch(shared_kernel, dim3(5), dim3(THREADS), THREADS * sizeof(float), 0, bad));
        OK(gpu_launch(shared_kernel, dim3(2), dim3(THREADS), (size_t)200 * 1024, 0, bad));
    }
    device_read(&got, bad, 1);
    assert_int_equal(got, 0);
    OK(cudaFree(bad));
}

// ---- cp.async ----

__global__ void async_kernel(float *out, const float *in) {
    SHARED_ARRAY(float, tile, 3 * 4 * WARP);
    int t = (int)threadIdx.x, at = 4 * t;
    float *first = tile, *second = tile + 4 * WARP, *third = tile + 8 * WARP;
    emu_async_copy(first + at, in + at, 16, 16);
    emu_async_commit();
    emu_async_copy(second + at, in + at, 16, 4);  // the rest are zeros
    emu_async_commit();
    emu_async_copy(third + at, in + at, 8, 8);
    bool pending = isnan(first[at]) && isnan(second[at]) && isnan(third[at]);
    emu_async_wait(1);  // the newest committed group may still be pending; uncommitted copies are
    bool one_done = first[at + 3] == in[at + 3] && isnan(second[at]) && isnan(third[at]);
    emu_async_wait(0);
    bool two_done = second[at] == in[at] && second[at + 1] == 0.0f && second[at + 3] == 0.0f && isnan(third[at]);
    emu_async_wait_all();
    bool all_done = third[at + 1] == in[at + 1] && isnan(third[at + 2]);
    __syncthreads();
    float seen = pending && one_done && two_done && all_done ? 0.0f : NAN;
    for (int i = 0; i < 4; i++) out[at + i] = first[4 * WARP - 1 - at - i] + seen;
}
static void test_async_copies(void **) {
    enum { COUNT = 4 * WARP };
    float host[COUNT], got[COUNT], *in = device_new<float>(COUNT), *out = device_new<float>(COUNT);
    for (int i = 0; i < COUNT; i++) host[i] = (float)i + 1.0f;
    OK(cudaMemcpy(in, host, sizeof host, cudaMemcpyHostToDevice));
    for (const char *order : ORDERS) {
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(gpu_launch(async_kernel, dim3(1), dim3(WARP), 0, 0, out, in));
        device_read(got, out, COUNT);
        for (int i = 0; i < COUNT; i++) assert_true(got[i] == host[COUNT - 1 - i]);
    }
    OK(cudaFree(in));
    OK(cudaFree(out));
}

// ---- atomics and intrinsics ----

struct Counters {
    int sum, most, least, claimed;
    unsigned votes;
    unsigned long long total;
};
__global__ void atomic_kernel(Counters *c) {
    int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&c->sum, t);
    atomicMax(&c->most, t);
    atomicMin(&c->least, -t);
    atomicOr(&c->votes, 1u << (t % 31));
    atomicAdd(&c->total, (unsigned long long)t << 32);
    atomicCAS(&c->claimed, -1, t % 7);  // the first one wins
}
static void test_atomics(void **) {
    Counters got, *c = device_new<Counters>(1);
    for (const char *order : ORDERS) {
        const Counters start = {0, 0, 0, -1, 0, 0};
        setenv("TOKAMAK_EMU_ORDER", order, 1);
        OK(cudaMemcpy(c, &start, sizeof start, cudaMemcpyHostToDevice));
        OK(gpu_launch(atomic_kernel, dim3(4), dim3(THREADS), 0, 0, c));
        device_read(&got, c, 1);
        assert_int_equal(got.sum, 1023 * 512);
        assert_int_equal(got.most, 1023);
        assert_int_equal(got.least, -1023);
        assert_int_equal(got.votes, 0x7fffffff);
        assert_true(got.total == (unsigned long long)(1023 * 512) << 32);
        assert_in_range(got.claimed, 0, 6);
    }
    OK(cudaFree(c));
}

static void test_intrinsics(void **) {
    assert_int_equal(__float_as_uint(-2.0f), 0xc0000000u);
    assert_true(__uint_as_float(0x3f800000u) == 1.0f && __int_as_float(0x40000000) == 2.0f);
    assert_int_equal(__umulhi(0x80000000u, 6), 3);
    assert_int_equal(__mulhi(-0x40000000, 8), -2);
    assert_true(__umul64hi(1ull << 63, 6) == 3);
    assert_int_equal(__popc(0xf0f0u), 8);
    assert_int_equal(__clz(0), 32);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__brev(0x1u), 0x80000000u);
    assert_int_equal(__brev(0x12345678u), 0x1e6a2c48u);
    assert_int_equal(__byte_perm(0x33221100u, 0x77665544u, 0x7520u), 0x77552200u);
    assert_int_equal(__byte_perm(0x80u, 0, 0x8888u), 0xffffffffu);
    assert_true(__saturatef(2.0f) == 1.0f && __saturatef(-1.0f) == 0.0f && __saturatef(0.25f) == 0.25f);
    assert_true(__saturatef(NAN) == 0.0f);  // as CUDA defines it
    assert_true(rsqrtf(0.25f) == 2.0f && __frcp_rn(4.0f) == 0.25f && __fmaf_rn(2.0f, 3.0f, 1.0f) == 7.0f);
    assert_true(max(2u, 3u) == 3u && min(-1, 2) == -1 && max(NAN, 1.0f) == 1.0f);
    int four[4] = {1, 2, 3, 4};
    __stcs(four + 1, 7);
    assert_int_equal(__ldg(four + 1), 7);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_indices),         cmocka_unit_test(test_reductions),
        cmocka_unit_test(test_warp_operations), cmocka_unit_test(test_collective),
        cmocka_unit_test(test_shared_memory),   cmocka_unit_test(test_async_copies),
        cmocka_unit_test(test_atomics),         cmocka_unit_test(test_intrinsics),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
