// emu_runtime.h: what the emulated CUDA runtime offers beyond the functions that NVIDIA's headers declare: how the
// device half (emu_device.h, emu_exec) and the library shims (emu_cublaslt) put work on a stream, and what device
// they are on.
//
// Streams are lazy: work runs when somebody waits for a point behind it (a stream, an event, a synchronous copy), and
// then only what that point depends on. TOKAMAK_EMU_STREAMS chooses another order that CUDA allows just as well:
// eager (each piece of work at once) or overtake (other streams run ahead of the one that is waited for).
#ifndef DEV_EMU_RUNTIME_H
#define DEV_EMU_RUNTIME_H

#include <cuda_runtime_api.h>

#include <functional>

// Puts `work` on the stream (or into the graph that the stream is capturing, to run at each launch of it). What
// `work` refers to by pointer is read when it runs, what it holds by value is fixed now. `name` is for messages and
// must live for ever. An error that `work` returns ends the device's context: every later call returns it. Returns
// why the work was not accepted.
cudaError_t emu_enqueue(cudaStream_t stream, const char *name, std::function<cudaError_t()> work);

// Dynamic shared memory that a launch of this kernel may ask for: 48 KiB, or more after cudaFuncSetAttribute.
size_t emu_shared_limit(const void *kernel);

// Compute capability as one number: 75, 80, 90, 100 (TOKAMAK_EMU_CC).
int emu_compute_capability(void);

// Whether [pointer, pointer + bytes) lies in one block of cudaMalloc. Such memory is out of the host's reach except
// while work runs.
bool emu_is_device_memory(const void *pointer, size_t bytes);

// Whether the byte is in pinned host memory that was allocated for kernels too (cudaHostAllocMapped).
bool emu_is_mapped_memory(const void *pointer);

// Keeps `error` as the thread's last error and returns it, as each function of the runtime does.
cudaError_t emu_set_error(cudaError_t error);

#endif
