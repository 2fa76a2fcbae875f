// emu_race.h: what emu_exec tells the race detector (emu_race.cpp, in the race build only; elsewhere these calls are
// compiled to nothing). A thread is its number in the block.
#ifndef EMU_RACE_H
#define EMU_RACE_H

#include <stddef.h>

#ifdef EMU_RACE
void emu_race_launch(void);                             // a launch begins
void emu_race_block(void);                              // a block begins
void emu_race_thread(int thread);                       // this thread runs from here on; -1: no kernel does
void emu_race_barrier(void);                            // every thread of the block met
void emu_race_warp(int warp, unsigned lanes);           // these lanes met in __syncwarp
void emu_race_forget(const void *memory, size_t bytes); // shared memory: fresh, whatever happened at its address
void emu_race_write(const void *memory, size_t bytes);  // cp.async
#else
static inline void emu_race_launch(void) {}
static inline void emu_race_block(void) {}
static inline void emu_race_thread(int) {}
static inline void emu_race_barrier(void) {}
static inline void emu_race_warp(int, unsigned) {}
static inline void emu_race_forget(const void *, size_t) {}
static inline void emu_race_write(const void *, size_t) {}
#endif

#endif
