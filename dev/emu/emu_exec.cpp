// emu_exec.cpp: see emu_exec.h. One Executor per host thread holds the fibers and the running block. Threads of a
// block run until they wait; a queue orders the ready threads. A thread that never waits leaves its fiber to the next
// thread, so kernels without barriers run on one fiber.
#include "emu_device.h"
#include "emu_fiber.h"
#include "emu_race.h"

#include <memory>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#define QUEUE_SIZE 1024  // a power of two; a thread is in it once at most
#define WARPS_LIMIT (EMU_BLOCK_THREADS_LIMIT / EMU_LANES)

#define DEFINE_THREAD_LOCAL __thread __attribute__((tls_model("initial-exec")))
DEFINE_THREAD_LOCAL uint3 threadIdx, blockIdx;
DEFINE_THREAD_LOCAL dim3 blockDim, gridDim;

enum Order { ORDER_FORWARD, ORDER_REVERSE, ORDER_RANDOM };
enum State { STATE_READY, STATE_BARRIER, STATE_WARP, STATE_LEFT };

struct AsyncCopy {
    unsigned char *destination;
    const unsigned char *source;
    size_t bytes, source_bytes;
    int group;
};
struct AsyncCopies {
    std::vector<AsyncCopy> pending;  // oldest first
    int group;                       // of the next copy; the number of commits so far
};

struct Thread {
    EmuFiber *fiber;  // NULL before it starts and after it exits
    enum State state;
    unsigned mask;          // of the warp operation that it waits in
    const char *operation;  // the operation's name
};

// Lanes that have arrived at one warp operation. Lanes of different masks are independent.
struct Meeting {
    unsigned mask, arrived;
    EmuWarpRun *run;
    const char *name;
    void *lane[EMU_LANES];
};
struct Warp {
    unsigned exists;  // the lanes that the block has
    int open;
    struct Meeting meetings[EMU_LANES];
};

struct SharedArray {
    const void *key;
    const char *name;
    void *memory;
    size_t bytes;
};

struct Executor {
    EmuFibers fibers;
    EmuFiber *idle = NULL, *newest = NULL;
    uint64_t launches = 0, random = 0;

    const EmuLaunch *launch;
    enum Order order;
    int count, left, at_barrier, current;  // threads of the block: all, exited, waiting, running
    Thread threads[EMU_BLOCK_THREADS_LIMIT];
    uint3 index[EMU_BLOCK_THREADS_LIMIT];
    Warp warps[WARPS_LIMIT];
    int queue[QUEUE_SIZE];  // ready threads: queued of them from head on
    unsigned head, queued;
    std::vector<SharedArray> shared;  // of this block
    void *shared_dynamic = NULL;
    std::vector<AsyncCopies> copies;  // by thread; empty unless the block copies asynchronously
    std::vector<unsigned> blocks;     // order of the grid's blocks

    Executor() { emu_fibers_open(&fibers, EMU_BLOCK_THREADS_LIMIT); }
    ~Executor() { emu_fibers_close(&fibers); }

    struct sigaction former_actions[2];  // restored after a kernel, during which we handle faults
    stack_t former_stack;
    unsigned char signal_stack[64 * 1024];
};
// The executor whose kernel runs on this host thread; NULL outside kernels.
static DEFINE_THREAD_LOCAL Executor *running;

// ---- messages ----

static void print_place(FILE *to) {
    const Executor *e = running;
    if (e == NULL) return;
    fprintf(to, "kernel %s, block (%u,%u,%u) of (%u,%u,%u)", e->launch->name, blockIdx.x, blockIdx.y, blockIdx.z,
            gridDim.x, gridDim.y, gridDim.z);
    if (e->current >= 0) fprintf(to, ", thread (%u,%u,%u)", threadIdx.x, threadIdx.y, threadIdx.z);
    fprintf(to, " of (%u,%u,%u): ", blockDim.x, blockDim.y, blockDim.z);
}

void emu_kernel_abort(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fflush(stdout);
    fputs("CUDA emulator: ", stderr);
    print_place(stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

// A fault in a kernel is reported with the thread that caused it. AddressSanitizer has its own report; the thread
// is added to it.
static const int FAULTS[2] = {SIGSEGV, SIGBUS};
#ifdef EMU_ASAN
static void add_to_report(void) {
    if (running == NULL) return;
    fputs("CUDA emulator: the report above is about ", stderr);
    print_place(stderr);
    fputc('\n', stderr);
}
static void faults_catch(Executor *) { __sanitizer_set_death_callback(add_to_report); }
static void faults_release(Executor *) {}
#else
static void on_fault(int, siginfo_t *info, void *) {
    emu_kernel_abort("illegal address %p (or a thread used more than its stack)", info->si_addr);
}
static void faults_catch(Executor *e) {
    stack_t stack = {};
    stack.ss_sp = e->signal_stack;
    stack.ss_size = sizeof e->signal_stack;
    sigaltstack(&stack, &e->former_stack);
    struct sigaction action = {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 2; i++) sigaction(FAULTS[i], &action, &e->former_actions[i]);
}
static void faults_release(Executor *e) {
    for (int i = 0; i < 2; i++) sigaction(FAULTS[i], &e->former_actions[i], NULL);
    sigaltstack(&e->former_stack, NULL);
}
#endif

static Executor *in_kernel(void) {
    if (running == NULL) emu_kernel_abort("a barrier, warp operation or shared memory outside a kernel");
    return running;
}

static void describe_lane(const Executor *e, int thread, char *text, size_t size) {
    const Thread *t = &e->threads[thread];
    switch (t->state) {
    case STATE_READY: snprintf(text, size, "runs"); break;
    case STATE_BARRIER: snprintf(text, size, "waits in __syncthreads"); break;
    case STATE_WARP: snprintf(text, size, "waits in %s with mask 0x%08x", t->operation, t->mask); break;
    case STATE_LEFT: snprintf(text, size, "has exited"); break;
    }
}

// Deadlock: some threads wait for others that wait elsewhere or have exited.
__attribute__((noreturn)) static void abort_stuck(Executor *e) {
    int waiting = -1, other = -1;  // the first thread in a warp operation, else at the barrier; one that it waits for
    for (int i = 0; i < e->count && waiting < 0; i++)
        if (e->threads[i].state == STATE_WARP) waiting = i;
    char what[128], misses[128];
    if (waiting >= 0) {
        const Thread *t = &e->threads[waiting];
        int first = waiting / EMU_LANES * EMU_LANES;
        for (int lane = 0; lane < EMU_LANES && other < 0; lane++) {
            const Thread *peer = &e->threads[first + lane];
            bool named = (t->mask >> lane) & 1;
            bool there = peer->state == STATE_WARP && peer->mask == t->mask && peer->operation == t->operation;
            if (named && !there) other = first + lane;
        }
    } else {
        for (int i = 0; i < e->count && waiting < 0; i++)
            if (e->threads[i].state == STATE_BARRIER) waiting = i;
        for (int i = 0; i < e->count && other < 0; i++)
            if (e->threads[i].state != STATE_BARRIER) other = i;
    }
    describe_lane(e, waiting, what, sizeof what);
    describe_lane(e, other, misses, sizeof misses);
    threadIdx = e->index[waiting];
    e->current = waiting;
    emu_kernel_abort(
        "%s forever: this thread %s, but thread (%u,%u,%u) %s (%d threads in all: %d in __syncthreads, "
        "%d have exited)",
        e->threads[waiting].state == STATE_BARRIER ? "diverged barrier, waiting" : "waiting", what, e->index[other].x,
        e->index[other].y, e->index[other].z, misses, e->count, e->at_barrier, e->left);
}

// ---- order ----

static uint64_t next_random(Executor *e) {  // splitmix64
    uint64_t x = e->random += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// 0 to count - 1 in the launch's order.
template <class T>
static void fill_order(Executor *e, T *order, size_t count) {
    for (size_t i = 0; i < count; i++) order[i] = (T)(e->order == ORDER_REVERSE ? count - 1 - i : i);
    if (e->order != ORDER_RANDOM) return;
    for (size_t i = count; i > 1; i--) {
        size_t j = (size_t)(next_random(e) % i);
        T swapped = order[j];
        order[j] = order[i - 1];
        order[i - 1] = swapped;
    }
}

static void choose_order(Executor *e) {
    const char *order = getenv("TOKAMAK_EMU_ORDER"), *seed = getenv("TOKAMAK_EMU_SEED");
    char *end = NULL;
    uint64_t number = seed != NULL ? strtoull(seed, &end, 10) : 0;
    if (seed != NULL && (*seed == '\0' || *end != '\0'))
        emu_kernel_abort("TOKAMAK_EMU_SEED=%s: expected a whole number", seed);
    if (order == NULL || *order == '\0' || strcmp(order, "forward") == 0) e->order = ORDER_FORWARD;
    else if (strcmp(order, "reverse") == 0) e->order = ORDER_REVERSE;
    else if (strcmp(order, "random") == 0) e->order = ORDER_RANDOM;
    else emu_kernel_abort("TOKAMAK_EMU_ORDER=%s: expected forward, reverse or random", order);
    e->random = number * 0x9e3779b97f4a7c15u + e->launches;
}

static void queue_push_back(Executor *e, int thread) {
    e->threads[thread].state = STATE_READY;
    e->queue[(e->head + e->queued++) % QUEUE_SIZE] = thread;
}
static void queue_push_front(Executor *e, int thread) {
    e->threads[thread].state = STATE_READY;
    e->head = (e->head + QUEUE_SIZE - 1) % QUEUE_SIZE;
    e->queue[e->head] = thread;
    e->queued++;
}

// ---- fibers and threads ----

static void fiber_run(void);

// The next fiber: that of the next ready thread, or the host's when the block is done.
static EmuFiber *next_fiber(Executor *e, EmuFiber *own_idle) {
    if (e->queued == 0) {
        if (e->left != e->count) abort_stuck(e);
        return &e->fibers.host;
    }
    int thread = e->queue[e->head];
    e->head = (e->head + 1) % QUEUE_SIZE;
    e->queued--;
    Thread *t = &e->threads[thread];
    if (t->fiber != NULL) return t->fiber;
    EmuFiber *fiber = own_idle;
    if (fiber == NULL && e->idle != NULL) {
        fiber = e->idle;
        e->idle = fiber->next_idle;
    }
    if (fiber == NULL) fiber = e->newest = emu_fiber_make(&e->fibers, fiber_run);
    fiber->thread = thread;
    t->fiber = fiber;
    return fiber;
}

static void thread_enter(Executor *e, int thread) {
    e->current = thread;
    threadIdx = e->index[thread];
    emu_race_thread(thread);
}

// A fiber runs threads one after the other, until all threads have started.
static void fiber_run(void) {
    emu_fiber_entered();
    EmuFiber *self = running->newest;
    for (;;) {
        Executor *e = running;
        thread_enter(e, self->thread);
        e->launch->call(e->launch->arguments);
        Thread *t = &e->threads[self->thread];
        t->fiber = NULL;
        t->state = STATE_LEFT;
        e->left++;
        EmuFiber *next = next_fiber(e, self);
        if (next == self) continue;
        self->next_idle = e->idle;
        e->idle = self;
        emu_fiber_switch(self, next);
    }
}

// Suspends the running thread; returns when it is scheduled again.
static void thread_wait(Executor *e) {
    int thread = e->current;
    EmuFiber *self = e->threads[thread].fiber, *next = next_fiber(e, NULL);
    if (next != self) emu_fiber_switch(self, next);
    thread_enter(e, thread);
}

// ---- barriers and warp operations ----

void emu_syncthreads(void) {
    Executor *e = in_kernel();
    e->threads[e->current].state = STATE_BARRIER;
    if (++e->at_barrier == e->count) {
        int order[EMU_BLOCK_THREADS_LIMIT];
        e->at_barrier = 0;
        emu_race_barrier();
        fill_order(e, order, (size_t)e->count);
        for (int i = 0; i < e->count; i++) queue_push_back(e, order[i]);
    }
    thread_wait(e);
}

// The lanes of a warp that met continue before other threads: few stacks are in the caches, and warps drift as far
// apart as barriers allow.
static void release_lanes(Executor *e, int warp, unsigned lanes) {
    int order[EMU_LANES];
    fill_order(e, order, EMU_LANES);
    bool front = e->order != ORDER_RANDOM || (next_random(e) & 1) != 0;
    for (int i = 0; i < EMU_LANES; i++) {
        int lane = order[front ? EMU_LANES - 1 - i : i];
        if (((lanes >> lane) & 1) == 0) continue;
        if (front) queue_push_front(e, warp * EMU_LANES + lane);
        else queue_push_back(e, warp * EMU_LANES + lane);
    }
}

static Meeting *meeting_of(Warp *warp, unsigned mask, EmuWarpRun *run, const char *name) {
    for (int i = 0; i < warp->open; i++) {
        Meeting *meeting = &warp->meetings[i];
        if (meeting->mask != mask) continue;
        if (meeting->run != run)
            emu_kernel_abort("diverged warp: this lane calls %s, others wait in %s, both with mask 0x%08x", name,
                             meeting->name, mask);
        return meeting;
    }
    if ((mask & ~warp->exists) != 0)
        emu_kernel_abort("%s: mask 0x%08x names lanes that the block does not have (it has 0x%08x)", name, mask,
                         warp->exists);
    Meeting *meeting = &warp->meetings[warp->open++];
    *meeting = {};
    meeting->mask = mask;
    meeting->run = run;
    meeting->name = name;
    return meeting;
}

void emu_warp_meet(unsigned mask, void *mine, EmuWarpRun *run, const char *name) {
    Executor *e = in_kernel();
    int index = e->current / EMU_LANES, lane = e->current % EMU_LANES;
    Warp *warp = &e->warps[index];
    if (((mask >> lane) & 1) == 0)
        emu_kernel_abort("%s: mask 0x%08x lacks the calling lane %d", name, mask, lane);
    Meeting *meeting = meeting_of(warp, mask, run, name);
    meeting->lane[lane] = mine;
    meeting->arrived |= 1u << lane;
    Thread *t = &e->threads[e->current];
    t->state = STATE_WARP;
    t->mask = mask;
    t->operation = name;
    if (meeting->arrived == mask) {
        if (run != NULL) run(meeting->lane, mask);
        *meeting = warp->meetings[--warp->open];
        release_lanes(e, index, mask);
    }
    thread_wait(e);
}

struct Collective {
    void *mine;
    void (*run)(void *lane[EMU_LANES]);
};
static void run_collective(void *lane[EMU_LANES], unsigned) {
    void *mine[EMU_LANES];
    void (*run)(void *lane[EMU_LANES]) = static_cast<Collective *>(lane[0])->run;
    for (int i = 0; i < EMU_LANES; i++) {
        const Collective *collective = static_cast<Collective *>(lane[i]);
        if (collective->run != run) emu_kernel_abort("diverged warp: lanes 0 and %d meet in different operations", i);
        mine[i] = collective->mine;
    }
    run(mine);
}
void emu_warp_collective(void *mine, void (*run)(void *lane[EMU_LANES])) {
    Collective collective = {mine, run};
    emu_warp_meet(0xffffffffu, &collective, run_collective, "a warp-wide instruction");
}

struct Shuffle {
    uint64_t bits, result;
    int operand, width;
};
// The source lane of `lane`: itself at the end of the segment of `width` lanes.
static int shuffle_source(enum EmuShuffle kind, int lane, int operand, int width) {
    int first = lane & ~(width - 1), in_segment = lane & (width - 1);
    switch (kind) {
    case EMU_SHUFFLE_INDEX: return first + (operand & (width - 1));
    case EMU_SHUFFLE_UP: return operand > in_segment ? lane : lane - operand;
    case EMU_SHUFFLE_DOWN: return in_segment + operand >= width ? lane : lane + operand;
    case EMU_SHUFFLE_XOR: return (lane ^ operand) >= first + width ? lane : lane ^ operand;
    }
    return lane;
}
template <enum EmuShuffle kind>
static void run_shuffle(void *lane[EMU_LANES], unsigned mask) {
    for (int i = 0; i < EMU_LANES; i++) {
        if (lane[i] == NULL) continue;
        Shuffle *to = static_cast<Shuffle *>(lane[i]);
        int source = shuffle_source(kind, i, to->operand, to->width);
        // The value of a lane outside the mask is undefined: the bits of a NaN.
        to->result = (mask >> source) & 1 ? static_cast<Shuffle *>(lane[source])->bits : ~(uint64_t)0;
    }
}
uint64_t emu_shuffle(unsigned mask, uint64_t bits, enum EmuShuffle kind, int operand, int width) {
    static EmuWarpRun *const runs[] = {run_shuffle<EMU_SHUFFLE_INDEX>, run_shuffle<EMU_SHUFFLE_UP>,
                                       run_shuffle<EMU_SHUFFLE_DOWN>, run_shuffle<EMU_SHUFFLE_XOR>};
    static const char *const names[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync", "__shfl_xor_sync"};
    if (width < 1 || width > EMU_LANES || (width & (width - 1)) != 0)
        emu_kernel_abort("%s: width %d is no power of two up to 32", names[kind], width);
    if (operand < 0 && kind != EMU_SHUFFLE_INDEX) emu_kernel_abort("%s: operand %d", names[kind], operand);
    Shuffle shuffle = {bits, 0, kind == EMU_SHUFFLE_INDEX ? operand & 31 : operand < 32 ? operand : 32, width};
    emu_warp_meet(mask, &shuffle, runs[kind], names[kind]);
    return shuffle.result;
}

struct Ballot {
    bool predicate;
    unsigned result;
};
static void run_ballot(void *lane[EMU_LANES], unsigned) {
    unsigned votes = 0;
    for (int i = 0; i < EMU_LANES; i++)
        if (lane[i] != NULL && static_cast<Ballot *>(lane[i])->predicate) votes |= 1u << i;
    for (int i = 0; i < EMU_LANES; i++)
        if (lane[i] != NULL) static_cast<Ballot *>(lane[i])->result = votes;
}
unsigned emu_ballot(unsigned mask, bool predicate) {
    Ballot ballot = {predicate, 0};
    emu_warp_meet(mask, &ballot, run_ballot, "a vote (__ballot_sync, __any_sync, __all_sync)");
    return ballot.result;
}

// The only warp operation that orders memory; shuffles and votes do not.
static void run_syncwarp(void *[EMU_LANES], unsigned mask) { emu_race_warp(running->current / EMU_LANES, mask); }
void emu_syncwarp(unsigned mask) { emu_warp_meet(mask, NULL, run_syncwarp, "__syncwarp"); }

// ---- shared memory ----

static void *shared_memory(size_t bytes, size_t alignment) {
    void *memory = NULL;
    if (posix_memalign(&memory, alignment, bytes) != 0)
        emu_kernel_abort("no memory for %zu bytes of shared memory", bytes);
    memset(memory, 0xff, bytes);
    emu_race_shared(memory, bytes);
    return memory;
}

void *emu_shared(const void *key, const char *name, size_t bytes, size_t alignment) {
    Executor *e = in_kernel();
    size_t total = bytes;
    for (const SharedArray &array : e->shared) {
        if (array.key == key) return array.memory;
        total += array.bytes;
    }
    if (total > EMU_SHARED_DEFAULT_BYTES)
        emu_kernel_abort("the SHARED_ARRAYs up to %s take %zu bytes, a kernel may have %zu", name, total,
                         EMU_SHARED_DEFAULT_BYTES);
    size_t limit = EMU_SHARED_DEFAULT_BYTES;
    if (e->launch->smem_bytes > limit) {
        int optin = 0;
        cudaDeviceGetAttribute(&optin, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0);
        limit = (size_t)optin;
    }
    if (total + e->launch->smem_bytes > limit)
        emu_kernel_abort("%zu bytes of SHARED_ARRAYs up to %s and %zu of dynamic shared memory are more than %zu",
                         total, name, e->launch->smem_bytes, limit);
    void *memory = shared_memory(bytes, alignment < 16 ? 16 : alignment);
    e->shared.push_back({key, name, memory, bytes});
    return memory;
}

void *emu_shared_dynamic(void) {
    Executor *e = in_kernel();
    if (e->shared_dynamic == NULL) e->shared_dynamic = shared_memory(e->launch->smem_bytes, 128);
    return e->shared_dynamic;
}

// ---- cp.async ----

static AsyncCopies *async_copies(Executor *e) {
    if (e->copies.empty()) e->copies.resize((size_t)e->count);
    return &e->copies[(size_t)e->current];
}

void emu_async_copy(void *destination, const void *source, size_t bytes, size_t source_bytes) {
    AsyncCopies *copies = async_copies(in_kernel());
    bool sizes = (bytes == 4 || bytes == 8 || bytes == 16) && source_bytes <= bytes;
    if (!sizes || ((uintptr_t)destination % bytes) != 0 || ((uintptr_t)source % bytes) != 0)
        emu_kernel_abort(
            "cp.async of %zu bytes (%zu from the source) from %p to %p: 4, 8 or 16 aligned bytes are allowed", bytes,
            source_bytes, source, destination);
    emu_race_read(source, source_bytes);
    emu_race_write(destination, bytes);
    memset(destination, 0xff, bytes);
    copies->pending.push_back(
        {(unsigned char *)destination, (const unsigned char *)source, bytes, source_bytes, copies->group});
}

void emu_async_commit(void) { async_copies(in_kernel())->group++; }

static void async_finish(AsyncCopies *copies, int before_group) {
    size_t done = 0;
    while (done < copies->pending.size() && copies->pending[done].group < before_group) {
        const AsyncCopy *copy = &copies->pending[done++];
        emu_race_read(copy->source, copy->source_bytes);
        emu_race_write(copy->destination, copy->bytes);
        memcpy(copy->destination, copy->source, copy->source_bytes);
        memset(copy->destination + copy->source_bytes, 0, copy->bytes - copy->source_bytes);
    }
    copies->pending.erase(copies->pending.begin(), copies->pending.begin() + (ptrdiff_t)done);
}
void emu_async_wait(int groups_left) {
    AsyncCopies *copies = async_copies(in_kernel());
    async_finish(copies, copies->group - groups_left);
}
void emu_async_wait_all(void) {
    AsyncCopies *copies = async_copies(in_kernel());
    async_finish(copies, copies->group + 1);
}

// ---- launches ----

cudaError_t emu_check_launch(dim3 grid, dim3 block) {
    bool grid_fits =
        grid.x >= 1 && grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
    bool block_fits = block.x >= 1 && block.x <= 1024 && block.y >= 1 && block.y <= 1024 && block.z >= 1 &&
                      block.z <= 64 && (uint64_t)block.x * block.y * block.z <= EMU_BLOCK_THREADS_LIMIT;
    return grid_fits && block_fits ? cudaSuccess : cudaErrorInvalidConfiguration;
}

static void block_run(Executor *e, unsigned number) {
    const EmuLaunch *launch = e->launch;
    blockIdx.x = number % launch->grid.x;
    blockIdx.y = number / launch->grid.x % launch->grid.y;
    blockIdx.z = number / launch->grid.x / launch->grid.y;
    e->left = e->at_barrier = 0;
    e->head = e->queued = 0;
    memset(e->threads, 0, (size_t)e->count * sizeof(Thread));
    fill_order(e, e->queue, (size_t)e->count);
    e->queued = (unsigned)e->count;
    emu_race_block();

    emu_fiber_switch(&e->fibers.host, next_fiber(e, NULL));

    e->current = -1;
    emu_race_thread(-1);
    for (const SharedArray &array : e->shared) free(array.memory);
    e->shared.clear();
    free(e->shared_dynamic);
    e->shared_dynamic = NULL;
    e->copies.clear();
}

void emu_run(const EmuLaunch *launch) {
    static thread_local std::unique_ptr<Executor> own;
    if (running != NULL) emu_kernel_abort("launch of %s from within a kernel", launch->name);
    if (own == nullptr) own = std::make_unique<Executor>();
    Executor *e = own.get();
    e->launch = launch;
    e->launches++;
    e->current = -1;
    e->count = (int)(launch->block.x * launch->block.y * launch->block.z);
    gridDim = launch->grid;
    blockDim = launch->block;
    choose_order(e);
    for (int i = 0; i < e->count; i++) {
        unsigned x = (unsigned)i % blockDim.x, rest = (unsigned)i / blockDim.x;
        e->index[i] = {x, rest % blockDim.y, rest / blockDim.y};
    }
    for (int warp = 0; warp * EMU_LANES < e->count; warp++) {
        int lanes = e->count - warp * EMU_LANES;
        e->warps[warp].exists = lanes >= EMU_LANES ? 0xffffffffu : (1u << lanes) - 1;
        e->warps[warp].open = 0;
    }
    e->blocks.resize((size_t)launch->grid.x * launch->grid.y * launch->grid.z);
    fill_order(e, e->blocks.data(), e->blocks.size());

    running = e;
    faults_catch(e);
    emu_race_launch(launch->arguments, launch->arguments_bytes, e->fibers.region, e->fibers.region_bytes);
    for (unsigned number : e->blocks) block_run(e, number);
    faults_release(e);
    running = NULL;
}
