// emu_fiber.h: the stacks of emu_exec. A switch is ten instructions on x86-64 and swapcontext elsewhere;
// AddressSanitizer is notified of each one. Must not know kernels.
#ifndef EMU_FIBER_H
#define EMU_FIBER_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && !defined(EMU_PORTABLE)
#define EMU_FIBER_ASSEMBLY 1
#else
#include <ucontext.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#define EMU_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define EMU_ASAN 1
#endif
#endif
#ifdef EMU_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

typedef struct EmuFiber {
    void *stack_pointer;  // while another fiber runs
    unsigned char *stack;
    size_t stack_bytes;
    void *fake_stack;  // AddressSanitizer's
#ifndef EMU_FIBER_ASSEMBLY
    ucontext_t context;
#endif
    int thread;  // emu_exec's: the thread of the block that it runs
    struct EmuFiber *next_idle;
} EmuFiber;

// The stacks of one host thread: fibers 0 to count - 1, and the host thread's own stack.
typedef struct EmuFibers {
    unsigned char *region;
    size_t region_bytes;
    int made;
    EmuFiber host;
    EmuFiber *fibers;
} EmuFibers;

void emu_fibers_open(EmuFibers *all, int most);
void emu_fibers_close(EmuFibers *all);
// A new fiber, which runs entry() when switched to; entry never returns.
EmuFiber *emu_fiber_make(EmuFibers *all, void (*entry)(void));
// `from` must be the running fiber; returns when a fiber switches back to it.
void emu_fiber_switch(EmuFiber *from, EmuFiber *to);
// entry must call this first.
void emu_fiber_entered(void);

#endif
