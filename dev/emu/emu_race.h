// emu_race.h: events from emu_exec to the race detector (emu_race.cpp, in the race build only; otherwise these calls
// compile to nothing). A thread is identified by its number in the block.
#ifndef EMU_RACE_H
#define EMU_RACE_H

#include <stddef.h>

#ifdef TOKAMAK_EMU_RACE
// A launch begins. Its arguments and the fibers' stacks are not device memory.
void emu_race_launch(const void *arguments, size_t arguments_bytes, const void *stacks, size_t stacks_bytes);
void emu_race_block(void);                               // a block begins
void emu_race_thread(int thread);                        // this thread runs now; -1: none
void emu_race_barrier(void);                             // every thread of the block met
void emu_race_warp(int warp, unsigned lanes);            // these lanes met in __syncwarp
void emu_race_shared(const void *memory, size_t bytes);  // a block's shared memory, distinct from that of other blocks
void emu_race_read(const void *memory, size_t bytes);    // cp.async
void emu_race_write(const void *memory, size_t bytes);
#else
static inline void emu_race_launch(const void *, size_t, const void *, size_t) {}
static inline void emu_race_block(void) {}
static inline void emu_race_thread(int) {}
static inline void emu_race_barrier(void) {}
static inline void emu_race_warp(int, unsigned) {}
static inline void emu_race_shared(const void *, size_t) {}
static inline void emu_race_read(const void *, size_t) {}
static inline void emu_race_write(const void *, size_t) {}
#endif

#endif
