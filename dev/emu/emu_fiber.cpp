// emu_fiber.cpp: see emu_fiber.h.
#include "emu_fiber.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifdef EMU_ASAN
#define STACK_BYTES ((size_t)256 * 1024)
#else
#define STACK_BYTES ((size_t)64 * 1024)
#endif

// A guard page below each stack stops a kernel that overflows it. The distance is not a power of two, and stacks start
// at different lines of a page, so that the tops of 1024 stacks do not compete for the same cache sets.
static size_t page_bytes(void) { return (size_t)sysconf(_SC_PAGESIZE); }
static size_t slot_bytes(void) { return STACK_BYTES + page_bytes(); }

static void stack_of_host(EmuFiber *host) {
    pthread_attr_t attributes;
    void *stack = NULL;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) abort();
    if (pthread_attr_getstack(&attributes, &stack, &host->stack_bytes) != 0) abort();
    pthread_attr_destroy(&attributes);
    host->stack = (unsigned char *)stack;
}

void emu_fibers_open(EmuFibers *all, int most) {
    memset(all, 0, sizeof *all);
    all->region_bytes = slot_bytes() * (size_t)most;
    void *region = mmap(NULL, all->region_bytes, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    all->fibers = (EmuFiber *)calloc((size_t)most, sizeof(EmuFiber));
    if (region == MAP_FAILED || all->fibers == NULL) {
        fprintf(stderr, "CUDA emulator: no memory for the stacks of a block's threads\n");
        abort();
    }
    all->region = (unsigned char *)region;
    stack_of_host(&all->host);
}

void emu_fibers_close(EmuFibers *all) {
    munmap(all->region, all->region_bytes);
    free(all->fibers);
}

#ifdef EMU_FIBER_ASSEMBLY
// emu_fiber_jump(void **save, void *load): pushes the callee-saved registers on the old stack and pops those of the
// new one.
extern "C" void emu_fiber_jump(void **save, void *load);
__asm__(
    ".text\n"
    ".type emu_fiber_jump, @function\n"
    ".hidden emu_fiber_jump\n"
    ".globl emu_fiber_jump\n"
    "emu_fiber_jump:\n"
    "    push %rbp\n    push %rbx\n    push %r12\n    push %r13\n    push %r14\n    push %r15\n"
    "    mov %rsp, (%rdi)\n"
    "    mov %rsi, %rsp\n"
    "    pop %r15\n    pop %r14\n    pop %r13\n    pop %r12\n    pop %rbx\n    pop %rbp\n"
    "    ret\n"
    ".size emu_fiber_jump, . - emu_fiber_jump\n");

static void prepare(EmuFiber *fiber, int index, void (*entry)(void)) {
    size_t colour = (size_t)(index * 5 % 64) * 64;
    uintptr_t *top = (uintptr_t *)(fiber->stack + fiber->stack_bytes - colour - 64);
    // Six registers, entry as the return address, and return address 0 for entry, where a backtrace ends.
    fiber->stack_pointer = memset(top - 8, 0, 8 * sizeof *top);
    top[-2] = (uintptr_t)entry;
}
static void jump(EmuFiber *from, EmuFiber *to) { emu_fiber_jump(&from->stack_pointer, to->stack_pointer); }
#else
static void prepare(EmuFiber *fiber, int index, void (*entry)(void)) {
    (void)index;
    if (getcontext(&fiber->context) != 0) abort();
    fiber->context.uc_stack.ss_sp = fiber->stack;
    fiber->context.uc_stack.ss_size = fiber->stack_bytes;
    makecontext(&fiber->context, entry, 0);
}
static void jump(EmuFiber *from, EmuFiber *to) {
    if (swapcontext(&from->context, &to->context) != 0) abort();
}
#endif

EmuFiber *emu_fiber_make(EmuFibers *all, void (*entry)(void)) {
    int index = all->made++;
    unsigned char *slot = all->region + slot_bytes() * (size_t)index;
    if (mprotect(slot, page_bytes(), PROT_NONE) != 0) abort();
    EmuFiber *fiber = &all->fibers[index];
    fiber->stack = slot + page_bytes();
    fiber->stack_bytes = STACK_BYTES;
    prepare(fiber, index, entry);
    return fiber;
}

void emu_fiber_switch(EmuFiber *from, EmuFiber *to) {
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->stack_bytes);
#endif
    jump(from, to);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, NULL, NULL);
#endif
}

void emu_fiber_entered(void) {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
}
