// control.c: see control.h. A rank's side: the calls, and the link's thread, which reports to the hub, passes results to
// the waiting caller and ends the process. The hub is in control_hub.c, how ranks find it in control_meet.c.
//
// The caller's thread and the link's thread share the lock; sending requires it. The process exits with the lock held,
// so that no other thread prints afterwards.
#include "llmc/ranks/control.h"

#include <errno.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "llmc/ranks/control_hub.h"

#define BEAT_SECONDS 0.5
#define ABORT_SECONDS 2.0   // control_abort waits for the hub
#define STDERR_SECONDS 1.0  // the last line waits for room in a full pipe

typedef struct {
    char host[LAUNCH_HOST_BYTES];
    int pid;
} RankName;

struct Control {
    int launch_rank, launch_world;
    double timeout_seconds, beat_seconds;
    RankName *names;  // (world)
    Hub *hub;         // rank 0
    pthread_t thread;
    int wake;  // eventfd: the thread must send something, or stop
    atomic_llong step;

    pthread_mutex_t probe_lock;
    void (*probe)(void *context, ControlStatus *out);
    void *probe_context;

    pthread_mutex_t lock;  // guards all below, and sending
    pthread_cond_t answered;
    Link link;
    int64_t called, returned;  // sequence numbers
    char what[CONTROL_WHAT_BYTES];
    bool closing;  // the last call is the goodbye
    struct {
        void *bytes;
        size_t count;
    } result[2];     // the waiting caller's buffers for the result, in this order
    bool leaving;    // this rank has called control_abort: its thread prints nothing from then on
    bool abandoned;  // the hub has acknowledged the abort, or is gone
    bool stop;       // the thread must end
};

// ---- the end of the process ----

// With the lock held, from the link's thread. Returns only when this rank has called control_abort.
static void end_process(Control *control, const char *text) {
    if (control->leaving) {
        control->abandoned = true;
        CHECK(pthread_cond_broadcast(&control->answered) == 0, "pthread_cond_broadcast");
        return;
    }
    char line[CONTROL_TEXT_BYTES + 32];
    int bytes = snprintf(line, sizeof line, "rank %d: %s\n", control->launch_rank, text);
    // One write, so that lines of several ranks do not mix. If it fails, there is no other way to report.
    ssize_t wrote = 0;
    if (wait_for_socket(STDERR_FILENO, POLLOUT, STDERR_SECONDS) != 0) do
            wrote = write(STDERR_FILENO, line, (size_t)bytes);
        while (wrote < 0 && errno == EINTR);
    _exit(1);
}

static ControlStatus ask_probe(Control *control) {
    ControlStatus status = {.waiting_seconds = -1};
    CHECK(pthread_mutex_lock(&control->probe_lock) == 0, "pthread_mutex_lock");
    if (control->probe != NULL) control->probe(control->probe_context, &status);
    CHECK(pthread_mutex_unlock(&control->probe_lock) == 0, "pthread_mutex_unlock");
    return status;
}

// Rank 0 is lost, and with it the hub that would report this.
static void end_without_hub(Control *control, const char *why) {
    char hub[128], text[CONTROL_TEXT_BYTES];
    control_describe_rank(control, 0, hub, sizeof hub);
    Peer me = {.rank = control->launch_rank,
               .step = atomic_load(&control->step),
               .called = control->called > control->returned,
               .last_sequence = control->called,
               .tensors = ask_probe(control)};
    me.tensors_since = me.tensors.waiting_seconds;  // only its sign is used
    memcpy(me.last_what, control->what, sizeof me.last_what);
    watch_describe_hub(hub, &me, why, text, sizeof text);
    // If rank 0 was only stopped, it reads this when it continues.
    if (!control->leaving) link_send(&control->link, FRAME_ABORT, &(Part){text, strlen(text)}, 1);
    end_process(control, text);
}

// ---- the link's thread ----

static void take_result(Control *control, const Frame *frame) {
    int64_t sequence;
    size_t wanted = sizeof sequence + control->result[0].count + control->result[1].count;
    CHECK(frame->count == wanted && control->called == control->returned + 1, "a result of %zu bytes, expected %zu",
          frame->count, wanted);
    memcpy(&sequence, frame->bytes, sizeof sequence);
    CHECK(sequence == control->called, "result #%lld, expected #%lld", (long long)sequence,
          (long long)control->called);
    const uint8_t *next = frame->bytes + sizeof sequence;
    for (int i = 0; i < 2; ++i) {
        if (control->result[i].count > 0) memcpy(control->result[i].bytes, next, control->result[i].count);
        next += control->result[i].count;
    }
    control->returned = sequence;
    control->stop = control->closing;
    CHECK(pthread_cond_broadcast(&control->answered) == 0, "pthread_cond_broadcast");
}

// With the lock held. > 0: received something; 0: nothing; < 0: the connection is over.
static int receive(Control *control) {
    int got = link_receive(&control->link), more;
    Frame frame;
    // Frames may be left from meet_join, and the last frames may have arrived together with the end of the connection.
    while ((more = link_next(&control->link, &frame)) > 0) {
        if (frame.type == FRAME_RESULT && !control->leaving) take_result(control, &frame);
        if (frame.type != FRAME_ABORT) continue;
        char text[CONTROL_TEXT_BYTES];
        snprintf(text, sizeof text, "%.*s", (int)frame.count, (const char *)frame.bytes);
        end_process(control, text);
        return -1;
    }
    if (got >= 0 && more >= 0) return got;
    if (!control->stop)
        end_without_hub(control, "its connection closed (killed, crashed, or exited without goodbye)");
    return -1;
}

static void send_status(Control *control) {
    StatusFrame status = {.tensors = ask_probe(control)};
    CHECK(pthread_mutex_lock(&control->lock) == 0, "pthread_mutex_lock");
    status.step = atomic_load(&control->step);  // under the lock: not older than the step of a call sent before
    link_send(&control->link, FRAME_STATUS, &(Part){&status, sizeof status}, 1);
    CHECK(pthread_mutex_unlock(&control->lock) == 0, "pthread_mutex_unlock");
}

// Sleeps until an event on the link, a wake-up or the end of `seconds`.
static void sleep_on_link(Control *control, short events, double seconds) {
    struct pollfd ready[2] = {{control->link.fd, events, 0}, {control->wake, POLLIN, 0}};
    int count = poll(ready, 2, seconds > 0 ? (int)ceil(seconds * 1e3) : 0);
    CHECK(count >= 0 || errno == EINTR, "poll: %s", strerror(errno));
    uint64_t wakes;
    if (count > 0 && ready[1].revents != 0 && read(control->wake, &wakes, sizeof wakes) < 0)
        CHECK(errno == EAGAIN || errno == EINTR, "eventfd: %s", strerror(errno));
}

static void *link_thread(void *context) {
    Control *control = context;
    WatchClock clock;
    watch_clock_start(&clock, 2 * control->beat_seconds);
    double heard = clock.now, next_status = 0;
    short events = POLLIN;
    for (bool on = true; on;) {
        watch_clock_advance(&clock);
        if (now_seconds() >= next_status) {
            next_status = now_seconds() + control->beat_seconds;
            send_status(control);
        }
        CHECK(pthread_mutex_lock(&control->lock) == 0, "pthread_mutex_lock");
        int got = receive(control);
        if (got > 0) heard = clock.now;
        on = got >= 0;
        if (on && clock.now - heard >= control->timeout_seconds) {
            char why[64];
            snprintf(why, sizeof why, "silent for %.3g s", clock.now - heard);
            end_without_hub(control, why);
            on = false;
        }
        link_flush(&control->link);
        events = (short)(POLLIN | (link_has_output(&control->link) ? POLLOUT : 0));
        on = on && !control->stop;
        CHECK(pthread_mutex_unlock(&control->lock) == 0, "pthread_mutex_unlock");
        if (on) sleep_on_link(control, events, next_status - now_seconds());
    }
    return NULL;
}

static void wake_thread(const Control *control) {
    uint64_t one = 1;
    ssize_t wrote = write(control->wake, &one, sizeof one);
    CHECK(wrote == sizeof one, "eventfd: %s", strerror(errno));
}

// ---- calls ----

// Sends the call and waits for its result, which goes to control->result.
static bool call(Control *control, CallKind kind, const char *what, CallFrame frame, const Part *data, int parts) {
    CHECK(strlen(what) < CONTROL_WHAT_BYTES, "the name of a call is too long: %s", what);
    CHECK(pthread_mutex_lock(&control->lock) == 0, "pthread_mutex_lock");
    bool on = !control->leaving;
    if (on) {
        frame.sequence = ++control->called;
        frame.step = atomic_load(&control->step);
        frame.kind = (int32_t)kind;
        control->closing = kind == CALL_CLOSE;
        memset(control->what, 0, sizeof control->what);
        memcpy(control->what, what, strlen(what));
        memcpy(frame.what, control->what, sizeof frame.what);
        Part all[3] = {{&frame, sizeof frame}};
        for (int i = 0; i < parts; ++i) all[i + 1] = data[i];
        link_send(&control->link, FRAME_CALL, all, parts + 1);
        if (link_has_output(&control->link)) wake_thread(control);
        // If the run ends meanwhile, the process exits, unless another thread of this rank has called control_abort.
        while (control->returned < control->called && !control->leaving)
            CHECK(pthread_cond_wait(&control->answered, &control->lock) == 0, "pthread_cond_wait");
        on = control->returned == control->called;
    }
    CHECK(pthread_mutex_unlock(&control->lock) == 0, "pthread_mutex_unlock");
    return on;
}
static void expect_result(Control *control, void *first, size_t first_bytes, void *second, size_t second_bytes) {
    CHECK(first_bytes <= CONTROL_DATA_BYTES && second_bytes <= CONTROL_DATA_BYTES - first_bytes, "%zu + %zu bytes",
          first_bytes, second_bytes);
    control->result[0].bytes = first;
    control->result[0].count = first_bytes;
    control->result[1].bytes = second;
    control->result[1].count = second_bytes;
}

bool control_reduce(Control *control, const char *what, double *sum, int sums, double *max, int maxes) {
    CHECK(sums >= 0 && maxes >= 0, "sums=%d maxes=%d", sums, maxes);
    if (control == NULL) return true;
    size_t sum_bytes = sizeof(double) * (size_t)sums, max_bytes = sizeof(double) * (size_t)maxes;
    expect_result(control, sum, sum_bytes, max, max_bytes);
    const Part data[2] = {{sum, sum_bytes}, {max, max_bytes}};
    return call(control, CALL_REDUCE, what, (CallFrame){.sums = sums, .maxes = maxes}, data, 2);
}

bool control_broadcast(Control *control, const char *what, void *bytes, size_t count) {
    if (control == NULL) return true;
    expect_result(control, bytes, count, NULL, 0);
    const Part data = {bytes, count};
    return call(control, CALL_BROADCAST, what, (CallFrame){.count = count}, &data, control->launch_rank == 0 ? 1 : 0);
}

bool control_gather(Control *control, const char *what, void *all, const void *mine, size_t count) {
    if (control == NULL) {
        if (count > 0) memmove(all, mine, count);
        return true;
    }
    CHECK(count <= CONTROL_DATA_BYTES / (size_t)control->launch_world, "%zu bytes from each of %d ranks", count,
          control->launch_world);
    expect_result(control, all, count * (size_t)control->launch_world, NULL, 0);
    const Part data = {mine, count};
    return call(control, CALL_GATHER, what, (CallFrame){.count = count}, &data, 1);
}

void control_set_step(Control *control, int64_t step) {
    if (control != NULL) atomic_store(&control->step, step);
}

void control_set_probe(Control *control, void (*probe)(void *context, ControlStatus *out), void *context) {
    if (control == NULL) return;
    CHECK(pthread_mutex_lock(&control->probe_lock) == 0, "pthread_mutex_lock");
    control->probe = probe;
    control->probe_context = context;
    CHECK(pthread_mutex_unlock(&control->probe_lock) == 0, "pthread_mutex_unlock");
}

void control_describe_rank(const Control *control, int rank, char *out, size_t out_bytes) {
    CHECK(control == NULL ? rank == 0 : rank >= 0 && rank < control->launch_world, "rank=%d", rank);
    char here[LAUNCH_HOST_BYTES] = "?";
    if (control == NULL) {
        if (gethostname(here, sizeof here - 1) != 0) snprintf(here, sizeof here, "?");
        snprintf(out, out_bytes, "rank 0 (%s, pid %d)", here, (int)getpid());
        return;
    }
    snprintf(out, out_bytes, "rank %d (%s, pid %d)", rank, control->names[rank].host, control->names[rank].pid);
}

void control_abort(Control *control, const char *why) {
    if (control == NULL) return;
    char text[CONTROL_TEXT_BYTES];
    control_describe_rank(control, control->launch_rank, text, sizeof text);
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, " ends the run at step %lld: %s", (long long)control->step, why);
    struct timespec until;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0, "clock_gettime");
    until.tv_sec += (time_t)ABORT_SECONDS;
    CHECK(pthread_mutex_lock(&control->lock) == 0, "pthread_mutex_lock");
    if (!control->leaving) {
        control->leaving = true;
        CHECK(pthread_cond_broadcast(&control->answered) == 0, "pthread_cond_broadcast");
        link_send(&control->link, FRAME_ABORT, &(Part){text, strlen(text)}, 1);
        if (link_has_output(&control->link)) wake_thread(control);
    }
    while (!control->abandoned) {
        int reason = pthread_cond_timedwait(&control->answered, &control->lock, &until);
        if (reason == ETIMEDOUT) break;
        CHECK(reason == 0, "pthread_cond_timedwait: %s", strerror(reason));
    }
    CHECK(pthread_mutex_unlock(&control->lock) == 0, "pthread_mutex_unlock");
}

// ---- open and close ----

static bool read_names(Control *control, const Frame *table) {
    control->names = xcalloc((size_t)control->launch_world, sizeof *control->names);
    const uint8_t *next = table->bytes, *end = table->bytes + table->count;
    for (int rank = 0; rank < control->launch_world; ++rank) {
        RankName *name = &control->names[rank];
        int32_t pid;
        if ((size_t)(end - next) < sizeof pid + 1) return false;
        memcpy(&pid, next, sizeof pid);
        size_t length = next[sizeof pid];
        next += sizeof pid + 1;
        if (length >= sizeof name->host || (size_t)(end - next) < length) return false;
        memcpy(name->host, next, length);
        name->pid = pid;
        next += length;
    }
    return next == end;
}

// Rank 0: listens, starts the hub and writes the launch's file with its place.
static bool open_hub(Control *control, HubPlace *place, const Launch *launch, const ControlOptions *options,
                     Error *err) {
    bool by_file = options->share == NULL && launch->kind == LAUNCH_DIRECTORY;
    bool by_port = options->share == NULL && launch->kind == LAUNCH_TCP;
    int listener;
    if (!meet_listen(&listener, place, launch, !by_port, options->timeout_seconds, err)) return false;
    char *file = by_file ? meet_file(launch) : NULL;
    bool ok = hub_start(&control->hub, listener, place, !by_port, file, options->timeout_seconds,
                        control->beat_seconds, err);
    if (ok && by_file) {
        char text[PLACE_TEXT_BYTES];
        meet_write_place(text, place);
        ok = make_dirs(launch->directory, err) && file_write_atomic(file, text, strlen(text), err);
    }
    free(file);
    return ok;
}

// Rank 0 shares the place of its hub, or its error, so that the other ranks do not wait for a hub.
static bool share_place(HubPlace *place, bool opened, const Launch *launch, const ControlOptions *options,
                        Error *err) {
    char text[PLACE_TEXT_BYTES] = "";
    if (launch->rank == 0) {
        if (opened) meet_write_place(text, place);
        else if (err != NULL) snprintf(text, sizeof text, "!%s", err->message);
    }
    Error sharing = {""};
    if (!options->share(options->share_context, text, sizeof text, &sharing)) {
        if (opened || launch->rank != 0) error_set(err, "%s", sharing.message);
        return false;
    }
    if (launch->rank == 0) return opened;
    text[sizeof text - 1] = '\0';
    if (text[0] == '!') return error_set(err, "%s", text + 1);
    return meet_read_place(place, text, err) || error_prefix(err, "the place of the hub shared by rank 0");
}

static bool start_thread(Control *control, Error *err) {
    sigset_t all, before;  // signals are the main thread's
    sigfillset(&all);
    int reason = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (reason == 0) {
        reason = pthread_create(&control->thread, NULL, link_thread, control);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    return reason == 0 ? true : error_set(err, "cannot start the control thread: %s", strerror(reason));
}

static void free_control(Control *control) {
    link_free(&control->link);
    if (control->hub != NULL) hub_stop(control->hub, true);
    if (control->wake >= 0) close(control->wake);
    pthread_cond_destroy(&control->answered);
    pthread_mutex_destroy(&control->lock);
    pthread_mutex_destroy(&control->probe_lock);
    free(control->names);
    free(control);
}

static bool connect_ranks(Control *control, const Launch *launch, const ControlOptions *options, Error *err) {
    HubPlace place = {0};
    bool ok = launch->rank != 0 || open_hub(control, &place, launch, options, err);
    if (options->share != NULL) ok = share_place(&place, ok, launch, options, err);
    if (!ok) return false;
    bool known = launch->rank == 0 || options->share != NULL;
    const Meeting meeting = {launch, known ? &place : NULL, options->timeout_seconds};
    Frame table;
    if (!meet_join(&control->link, &table, &meeting, err)) return false;
    if (!read_names(control, &table)) return error_set(err, "rank 0 sent an invalid table of ranks");
    return start_thread(control, err);
}

bool control_open(Control **out, const Launch *launch, const ControlOptions *options, Error *err) {
    CHECK(launch->world >= 1 && launch->rank >= 0 && launch->rank < launch->world, "rank=%d world=%d", launch->rank,
          launch->world);
    CHECK(options->timeout_seconds > 0, "timeout_seconds=%g", options->timeout_seconds);
    *out = NULL;
    if (launch->world == 1) return true;
    CHECK(options->share != NULL || launch->kind == LAUNCH_TCP || launch->kind == LAUNCH_DIRECTORY,
          "no meeting place for %s ranks", launch_kind_name(launch->kind));
    Control *control = xcalloc(1, sizeof *control);
    control->launch_rank = launch->rank;
    control->launch_world = launch->world;
    control->timeout_seconds = options->timeout_seconds;
    control->beat_seconds = fmin(BEAT_SECONDS, options->timeout_seconds / 4);
    control->link.fd = -1;
    atomic_init(&control->step, 0);
    control->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    pthread_condattr_t monotonic;
    CHECK(pthread_mutex_init(&control->lock, NULL) == 0 && pthread_mutex_init(&control->probe_lock, NULL) == 0 &&
              pthread_condattr_init(&monotonic) == 0 && pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC) == 0 &&
              pthread_cond_init(&control->answered, &monotonic) == 0 && pthread_condattr_destroy(&monotonic) == 0,
          "out of resources for a lock");
    bool ok = control->wake >= 0 ? connect_ranks(control, launch, options, err)
                                 : error_set(err, "eventfd: %s", strerror(errno));
    if (!ok) {
        free_control(control);
        return false;
    }
    *out = control;
    return true;
}

void control_close(Control *control) {
    if (control == NULL) return;
    expect_result(control, NULL, 0, NULL, 0);
    bool goodbye = call(control, CALL_CLOSE, "goodbye", (CallFrame){0}, NULL, 0);
    CHECK(pthread_mutex_lock(&control->lock) == 0, "pthread_mutex_lock");
    control->stop = true;
    CHECK(pthread_mutex_unlock(&control->lock) == 0, "pthread_mutex_unlock");
    wake_thread(control);
    int reason = pthread_join(control->thread, NULL);
    CHECK(reason == 0, "pthread_join: %s", strerror(reason));
    link_free(&control->link);
    if (control->hub != NULL) hub_stop(control->hub, !goodbye);
    control->hub = NULL;
    free_control(control);
}
