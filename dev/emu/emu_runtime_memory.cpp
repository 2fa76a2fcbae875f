// emu_runtime_memory.cpp: memory of the emulated device, and copies.
//
// Each block of device memory is a separate mapping, filled with 0xff bytes (NaN), so that reads of unwritten memory
// show; its last byte is followed by guard pages and, under AddressSanitizer, immediately by poisoned bytes. A host
// that reads through a device pointer faults as it would with a real GPU: blocks up to a size
// (TOKAMAK_EMU_PROTECT_MIB) are inaccessible except while device work runs. Copies check that their pointers match
// their kind.
#include "emu_runtime_state.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#define PAGE ((size_t)4096)
#define GUARD ((size_t)16 * PAGE)
#define ALIGNMENT ((size_t)256)

static size_t up(size_t bytes, size_t multiple) { return (bytes + multiple - 1) / multiple * multiple; }

// Under AddressSanitizer poisons bytes, which costs little and gives a report; otherwise uses mprotect, by pages.
static void block_reach(uintptr_t start, const EmuBlock &block, bool reachable) {
#ifdef __SANITIZE_ADDRESS__
    if (reachable) ASAN_UNPOISON_MEMORY_REGION((void *)start, block.bytes);
    else ASAN_POISON_MEMORY_REGION((void *)start, block.bytes);
#else
    uintptr_t first = start / PAGE * PAGE, end = (uintptr_t)block.map + block.map_bytes - GUARD;
    if (mprotect((void *)first, end - first, reachable ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        emu_abort("mprotect of %zu bytes of device memory failed", block.bytes);
#endif
}

void emu_protect(bool reachable) {
    for (const auto &[start, block] : emu_runtime()->blocks)
        if (block.guarded) block_reach(start, block, reachable);
}

static std::map<uintptr_t, EmuBlock>::iterator block_around(const void *pointer) {
    EmuRuntime *rt = emu_runtime();
    auto next = rt->blocks.upper_bound((uintptr_t)pointer);
    if (next == rt->blocks.begin()) return rt->blocks.end();
    auto found = std::prev(next);
    return (uintptr_t)pointer - found->first < found->second.bytes ? found : rt->blocks.end();
}

bool emu_is_device_memory(const void *pointer, size_t bytes) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    auto found = block_around(pointer);
    return found != rt->blocks.end() && bytes <= found->first + found->second.bytes - (uintptr_t)pointer;
}

// (On current systems kernels can access all pinned memory. Here only memory allocated as mapped: not staging buffers.)
bool emu_is_mapped_memory(const void *pointer) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    auto next = rt->host_blocks.upper_bound((void *)pointer);
    if (next == rt->host_blocks.begin()) return false;
    auto found = std::prev(next);
    return found->second.mapped && (uintptr_t)pointer - (uintptr_t)found->first < found->second.bytes;
}

// ---- faults: a line that describes the address, before the program ends ----

static struct sigaction former_action;

static void explain_fault(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    const EmuRuntime *rt = emu_runtime();
    uintptr_t at = (uintptr_t)info->si_addr;
    for (const auto &[start, block] : rt->blocks) {
        if (at < (uintptr_t)block.map || at >= (uintptr_t)block.map + block.map_bytes) continue;
        if (at >= start && at - start < block.bytes)
            fprintf(stderr, "CUDA emulator: the host accessed device memory: byte %zu of a block of %zu\n", at - start,
                    block.bytes);
        else
            fprintf(stderr, "CUDA emulator: an access %zu bytes %s a block of %zu bytes of device memory\n",
                    at < start ? start - at : at - start - block.bytes, at < start ? "before" : "behind",
                    block.bytes);
    }
    sigaction(SIGSEGV, &former_action, NULL);  // the access is repeated and ends the program
}

// AddressSanitizer reports faults itself.
static void explain_faults(void) {
#ifndef __SANITIZE_ADDRESS__
    static const bool installed = [] {
        struct sigaction action = {};
        action.sa_sigaction = explain_fault;
        action.sa_flags = SA_SIGINFO;
        return sigaction(SIGSEGV, &action, &former_action) == 0;
    }();
    (void)installed;
#else
    (void)explain_fault, (void)former_action;
#endif
}

// ---- allocation ----

cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    if (pointer == NULL) return emu_set_error(cudaErrorInvalidValue);
    *pointer = NULL;
    if (bytes == 0) return cudaSuccess;
    if (bytes > rt->memory_bytes || up(bytes, ALIGNMENT) > rt->memory_bytes - rt->used_bytes)
        return emu_set_error(cudaErrorMemoryAllocation);
    EmuBlock block = {bytes, NULL, up(bytes, PAGE) + 2 * GUARD, bytes <= rt->protect_bytes};
    block.map = mmap(NULL, block.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block.map == MAP_FAILED) return emu_set_error(cudaErrorMemoryAllocation);
    uintptr_t first = (uintptr_t)block.map + GUARD, end = (uintptr_t)block.map + block.map_bytes - GUARD;
    uintptr_t start = end - up(bytes, ALIGNMENT);
    if (mprotect((void *)first, end - first, PROT_READ | PROT_WRITE) != 0) emu_abort("mprotect failed");
    madvise((void *)first, end - first, MADV_HUGEPAGE);  // a hint: large blocks are written faster
    memset((void *)start, 0xff, bytes);
#ifdef __SANITIZE_ADDRESS__
    ASAN_POISON_MEMORY_REGION(block.map, start - (uintptr_t)block.map);
    ASAN_POISON_MEMORY_REGION((void *)(start + bytes), end + GUARD - (start + bytes));
#endif
    if (block.guarded && rt->running == 0) block_reach(start, block, false);
    explain_faults();
    rt->used_bytes += up(bytes, ALIGNMENT);
    rt->blocks[start] = block;
    *pointer = (void *)start;
    return cudaSuccess;
}

// Waits for the device, as the real function does.
cudaError_t cudaFree(void *pointer) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    if (pointer == NULL) return cudaSuccess;
    auto found = rt->blocks.find((uintptr_t)pointer);
    if (found == rt->blocks.end()) return emu_set_error(cudaErrorInvalidValue);
    emu_run_everything();
    EmuBlock block = found->second;
    rt->used_bytes -= up(block.bytes, ALIGNMENT);
    rt->blocks.erase(found);
#ifdef __SANITIZE_ADDRESS__
    ASAN_UNPOISON_MEMORY_REGION(block.map, block.map_bytes);
#endif
    munmap(block.map, block.map_bytes);
    return emu_set_error(rt->sticky);
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    *free_bytes = rt->memory_bytes - rt->used_bytes;
    *total_bytes = rt->memory_bytes;
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    if (pointer == NULL || (flags & ~7u) != 0) return emu_set_error(cudaErrorInvalidValue);
    *pointer = NULL;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(pointer, PAGE, up(bytes, PAGE)) != 0) return emu_set_error(cudaErrorMemoryAllocation);
    memset(*pointer, 0xff, bytes);
    rt->host_blocks[*pointer] = {bytes, (flags & cudaHostAllocMapped) != 0};
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **pointer, size_t bytes) {
    return cudaHostAlloc(pointer, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *pointer) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    if (pointer == NULL) return cudaSuccess;
    if (rt->host_blocks.count(pointer) == 0) return emu_set_error(cudaErrorInvalidValue);
    emu_run_everything();
    rt->host_blocks.erase(pointer);
    free(pointer);
    return emu_set_error(rt->sticky);
}

// ---- copies ----

enum Place { PLACE_HOST, PLACE_DEVICE, PLACE_OUTSIDE };

// Host memory; inside a device block; or a range that exceeds its device block.
static Place place_of(const void *pointer, size_t bytes) {
    EmuRuntime *rt = emu_runtime();
    auto found = block_around(pointer);
    if (found == rt->blocks.end()) {
        auto next = rt->blocks.upper_bound((uintptr_t)pointer);
        return next != rt->blocks.end() && (uintptr_t)pointer + bytes > next->first ? PLACE_OUTSIDE : PLACE_HOST;
    }
    return bytes <= found->first + found->second.bytes - (uintptr_t)pointer ? PLACE_DEVICE : PLACE_OUTSIDE;
}

static cudaError_t copy_checked(const void *to, size_t to_bytes, const void *from, size_t from_bytes,
                                cudaMemcpyKind kind) {
    if (to == NULL || from == NULL) return cudaErrorInvalidValue;
    Place to_place = place_of(to, to_bytes), from_place = place_of(from, from_bytes);
    if (to_place == PLACE_OUTSIDE || from_place == PLACE_OUTSIDE) return cudaErrorInvalidValue;
    bool to_device = to_place == PLACE_DEVICE, from_device = from_place == PLACE_DEVICE;
    switch (kind) {
    case cudaMemcpyHostToHost: return !to_device && !from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyHostToDevice: return to_device && !from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToHost: return !to_device && from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDeviceToDevice: return to_device && from_device ? cudaSuccess : cudaErrorInvalidValue;
    case cudaMemcpyDefault: return cudaSuccess;
    default: return cudaErrorInvalidMemcpyDirection;
    }
}

// Host memory is read and written when the copy runs, pinned or not: CUDA guarantees no more.
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    return cudaMemcpy2DAsync(to, bytes, from, bytes, bytes, 1, kind, stream);
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    if (width == 0 || height == 0) return cudaSuccess;
    if (width > to_pitch || width > from_pitch) return emu_set_error(cudaErrorInvalidPitchValue);
    error = copy_checked(to, (height - 1) * to_pitch + width, from, (height - 1) * from_pitch + width, kind);
    if (error != cudaSuccess) return emu_set_error(error);
    return emu_enqueue(stream, "memory copy", [=] {
        for (size_t row = 0; row < height; row++)
            memcpy((char *)to + row * to_pitch, (const char *)from + row * from_pitch, width);
        return cudaSuccess;
    });
}

// Runs on the default stream. Only copies within the device return before completion.
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    error = cudaMemcpyAsync(to, from, bytes, kind, NULL);
    if (error != cudaSuccess || bytes == 0) return error;
    if (place_of(to, bytes) == PLACE_DEVICE && place_of(from, bytes) == PLACE_DEVICE) return cudaSuccess;
    return cudaStreamSynchronize(NULL);
}

cudaError_t cudaMemsetAsync(void *pointer, int value, size_t bytes, cudaStream_t stream) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready();
    if (error != cudaSuccess) return emu_set_error(error);
    if (bytes == 0) return cudaSuccess;
    if (place_of(pointer, bytes) != PLACE_DEVICE) return emu_set_error(cudaErrorInvalidValue);
    return emu_enqueue(stream, "memory set", [=] {
        memset(pointer, value, bytes);
        return cudaSuccess;
    });
}

cudaError_t cudaMemset(void *pointer, int value, size_t bytes) {
    EmuRuntime *rt = emu_runtime();
    std::lock_guard<std::recursive_mutex> lock(rt->mutex);
    cudaError_t error = emu_ready_uncaptured();
    if (error != cudaSuccess) return emu_set_error(error);
    return cudaMemsetAsync(pointer, value, bytes, NULL);
}
