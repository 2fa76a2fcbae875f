// emu_runtime.h: functions of the emulated CUDA runtime beyond those in NVIDIA's headers: how the device half
// (emu_device.h, emu_exec) and the library shims (emu_cublaslt) put work on a stream and query their device.
//
// Streams are lazy: work runs when a caller waits for a point after it (a stream, an event, a synchronous copy), and
// then only the work that this point depends on. TOKAMAK_EMU_STREAMS selects another order that CUDA also allows:
// eager (each piece of work immediately) or overtake (other streams run ahead of the one that is waited for).
#ifndef DEV_EMU_RUNTIME_H
#define DEV_EMU_RUNTIME_H

#include <cuda_runtime_api.h>

#include <functional>

// Puts `work` on the stream (or into the graph that the stream is capturing, to run at each launch of it). Data that
// `work` refers to by pointer is read when it runs, data that it holds by value is fixed now. `name` is for messages
// and must be valid forever. An error returned by `work` ends the device's context: every later call returns it.
// Returns cudaSuccess or why the work was not accepted.
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, std::function<cudaError_t()> work);

// Limit of a launch's dynamic shared memory for this kernel: 48 KiB, or more after cudaFuncSetAttribute.
size_t emu_shared_limit(const void *kernel);

// Compute capability as one number: 75, 80, 90, 100 (TOKAMAK_EMU_CC).
int emu_compute_capability(void);

// Whether [pointer, pointer + bytes) is in one block of cudaMalloc. Such memory is inaccessible to the host except
// while work runs.
bool emu_is_device_memory(const void *pointer, size_t bytes);

// Whether the byte is in pinned host memory that kernels may access (cudaHostAllocMapped).
bool emu_is_mapped_memory(const void *pointer);

// Stores `error` as the thread's last error and returns it, as each function of the runtime does.
cudaError_t emu_set_error(cudaError_t error);

#endif
