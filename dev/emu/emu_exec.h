// emu_exec.h: how a kernel runs on the CPU: a grid's blocks one after the other, the threads of a block as fibers
// that meet in barriers and warp operations. emu_race.cpp is notified of its events. Must not
// know streams or the backend.
//
// A kernel that could not run on a GPU (diverged barriers, a warp operation that a named lane never joins, too much
// shared memory) aborts with a message that names kernel, block and thread.
#ifndef EMU_EXEC_H
#define EMU_EXEC_H

#include <cuda_runtime_api.h>

#include <stddef.h>
#include <stdint.h>

#define EMU_LANES 32
#define EMU_BLOCK_THREADS_LIMIT 1024
// Limit of shared memory without opting in; always the limit of SHARED_ARRAYs.
#define EMU_SHARED_DEFAULT_BYTES ((size_t)48 * 1024)

typedef struct EmuLaunch {
    const char *name;  // as written at the launch; a string literal
    dim3 grid, block;
    size_t smem_bytes;
    void (*call)(const void *arguments);  // runs the kernel for the thread that threadIdx names
    const void *arguments;
    size_t arguments_bytes;
} EmuLaunch;

// cudaLaunchKernel's immediate status for these sizes: cudaSuccess or cudaErrorInvalidConfiguration.
cudaError_t emu_check_launch(dim3 grid, dim3 block);
// Runs a launch to its end on the calling thread. Order of blocks and threads: TOKAMAK_EMU_ORDER=forward (the
// default), reverse or random, seeded by TOKAMAK_EMU_SEED.
void emu_run(const EmuLaunch *launch);

// ---- called by the thread of a kernel ----
// Shared memory of this block: one heap block for each key, filled with 0xff at the first call.
void *emu_shared(const void *key, const char *name, size_t bytes, size_t alignment);
void *emu_shared_dynamic(void);
void emu_syncthreads(void);

// An operation of a warp: each lane named in mask passes a pointer to its arguments and waits; the last one to arrive
// calls run once for all. lane[i] is the pointer of lane i, NULL for lanes outside the mask. `name` is for error
// messages; lanes that meet with different run functions abort.
typedef void EmuWarpRun(void *lane[EMU_LANES], unsigned mask);
void emu_warp_meet(unsigned mask, void *mine, EmuWarpRun *run, const char *name);
// The same for all 32 lanes, as PTX's .sync.aligned instructions require.
void emu_warp_collective(void *mine, void (*run)(void *lane[EMU_LANES]));

enum EmuShuffle { EMU_SHUFFLE_INDEX, EMU_SHUFFLE_UP, EMU_SHUFFLE_DOWN, EMU_SHUFFLE_XOR };
uint64_t emu_shuffle(unsigned mask, uint64_t bits, enum EmuShuffle kind, int operand, int width);
unsigned emu_ballot(unsigned mask, bool predicate);
void emu_syncwarp(unsigned mask);

// cp.async: a copy reads and writes only when its thread waits for it. Until then the destination holds 0xff bytes;
// copies without a wait before the end of the kernel never happen. The last bytes - source_bytes become zeros.
void emu_async_copy(void *destination, const void *source, size_t bytes, size_t source_bytes);
void emu_async_commit(void);
void emu_async_wait(int groups_left);  // cp.async.wait_group: all but the newest groups_left groups
void emu_async_wait_all(void);         // cp.async.wait_all: uncommitted copies too

// Prints the running kernel, block and thread, then the text, and aborts.
__attribute__((noreturn, format(printf, 1, 2))) void emu_kernel_abort(const char *format, ...);

#endif
