// control_hub.c: see control_hub.h.
#include "llmc/ranks/control_hub.h"

#include <errno.h>
#include <math.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 256, EXTRA_NEWCOMERS = 64, SPARE_DESCRIPTORS = 256 };
#define HELLO_SECONDS 10.0  // a connection without a hello is then closed
#define ENDING_SECONDS 0.7  // for the other ranks to exit before rank 0
#define CLOSING_SECONDS 2.0

// ---- sending ----

static void watch_output(const Hub *hub, Peer *peer) {
    if (peer->link.fd < 0) return;
    uint32_t events = EPOLLIN | (link_has_output(&peer->link) ? (uint32_t)EPOLLOUT : 0);
    struct epoll_event event = {events, {.ptr = peer}};
    CHECK(epoll_ctl(hub->epoll, EPOLL_CTL_MOD, peer->link.fd, &event) == 0, "epoll_ctl: %s", strerror(errno));
}
static void send_to(const Hub *hub, Peer *peer, FrameType type, const Part *parts, int count) {
    bool had = link_has_output(&peer->link);
    link_send(&peer->link, type, parts, count);
    if (had != link_has_output(&peer->link)) watch_output(hub, peer);
}

// ---- the end of the run ----

static void tell_end(const Hub *hub, Peer *peer) {
    send_to(hub, peer, FRAME_ABORT, &(Part){hub->end_text, strlen(hub->end_text)}, 1);
}
static void forget_file(Hub *hub) {
    if (hub->file == NULL) return;
    meet_remove_file(hub->file, hub->place.nonce);
    free(hub->file);
    hub->file = NULL;
}
// The first cause is reported to all ranks; later ones are ignored.
static void end_run(Hub *hub) {
    if (hub->phase >= HUB_ENDING) return;
    forget_file(hub);
    hub->phase = HUB_ENDING;
    hub->phase_until = now_seconds() + ENDING_SECONDS;
    for (int rank = 1; rank < hub->world; ++rank)
        if (hub->peer[rank] != NULL) tell_end(hub, hub->peer[rank]);
}

// ---- connections ----

static void free_peer(Peer *peer) {
    link_free(&peer->link);
    free(peer);
}
static void forget_newcomer(Hub *hub, const Peer *peer) {
    for (int i = 0; i < hub->newcomers; ++i)
        if (hub->newcomer[i] == peer) {
            hub->newcomer[i] = hub->newcomer[--hub->newcomers];
            return;
        }
}

static void accept_newcomers(Hub *hub) {
    for (;;) {
        int fd = accept4(hub->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0 && (errno == EINTR || errno == ECONNABORTED)) continue;
        if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
            // Not while the ranks connect: hub_start has raised the limit. Later connections are not of this run.
            CHECK(epoll_ctl(hub->epoll, EPOLL_CTL_DEL, hub->listener, NULL) == 0, "epoll_ctl: %s", strerror(errno));
            return;
        }
        if (fd < 0) return;
        int yes = 1;
        if (hub->newcomers == hub->newcomers_room ||
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes) != 0) {
            close(fd);
            continue;
        }
        Peer *peer = xcalloc(1, sizeof *peer);
        link_init(&peer->link, fd, sizeof(HelloFrame));
        peer->rank = peer->pid = -1;
        peer->heard = hub->clock.now;
        peer->tensors_since = -1;
        struct epoll_event event = {EPOLLIN, {.ptr = peer}};
        CHECK(epoll_ctl(hub->epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl: %s", strerror(errno));
        hub->newcomer[hub->newcomers++] = peer;
    }
}

PRINTF_LIKE(4, 5) static void refuse(Hub *hub, Peer *peer, bool again, const char *format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    uint32_t code = again;
    link_send(&peer->link, FRAME_REFUSE, (Part[]){{&code, sizeof code}, {text, strlen(text)}}, 2);
    if (!again) snprintf(hub->refused, sizeof hub->refused, "%.*s", (int)sizeof hub->refused - 1, text);
    forget_newcomer(hub, peer);
    free_peer(peer);
}

static void start_running(Hub *hub) {
    forget_file(hub);
    hub->phase = HUB_RUNNING;
    // The table of ranks: pid, length of the host's name, name.
    uint8_t *table = xmalloc((size_t)hub->world * (sizeof(int32_t) + 1 + LAUNCH_HOST_BYTES)), *next = table;
    for (int rank = 0; rank < hub->world; ++rank) {
        const Peer *peer = hub->peer[rank];
        int32_t pid = peer->pid;
        size_t length = strlen(peer->host);
        memcpy(next, &pid, sizeof pid);
        next[sizeof pid] = (uint8_t)length;
        memcpy(next + sizeof pid + 1, peer->host, length);
        next += sizeof pid + 1 + length;
    }
    for (int rank = 0; rank < hub->world; ++rank) {
        hub->peer[rank]->heard = hub->peer[rank]->told_at = hub->clock.now;
        send_to(hub, hub->peer[rank], FRAME_START, &(Part){table, (size_t)(next - table)}, 1);
    }
    free(table);
}

// The first frame of a connection: the connection becomes a rank's, or is refused and freed. A hub of another start, or
// one whose ranks are complete, may belong to an earlier run that is about to end, so the refused rank may try again.
static void receive_hello(Hub *hub, Peer *peer, const Frame *frame) {
    HelloFrame hello;
    if (frame->type != FRAME_HELLO || frame->count != sizeof hello ||
        memcmp(frame->bytes, CONTROL_MAGIC, sizeof CONTROL_MAGIC) != 0) {
        forget_newcomer(hub, peer);
        free_peer(peer);
        return;
    }
    memcpy(&hello, frame->bytes, sizeof hello);
    hello.host[LAUNCH_HOST_BYTES - 1] = '\0';
    static const uint8_t UNKNOWN[CONTROL_NONCE_BYTES];
    bool knows = memcmp(hello.nonce, hub->place.nonce, sizeof hello.nonce) == 0;
    bool may_ask = !hub->nonce_is_known && memcmp(hello.nonce, UNKNOWN, sizeof UNKNOWN) == 0;
    if (hello.version != CONTROL_VERSION) {
        refuse(hub, peer, false,
               "rank 0 on %s has version %d of the protocol, rank %d on %s has version %u: start the "
               "same build everywhere",
               hub->place.host, CONTROL_VERSION, hello.rank, hello.host, hello.version);
    } else if (!knows && !may_ask) {
        refuse(hub, peer, true, "the hub there belongs to another start: host %s, pid %d, since %s", hub->place.host,
               hub->place.pid, hub->place.started);
    } else if (hub->phase != HUB_MEETING) {
        refuse(hub, peer, true,
               "the run there is complete: its %d ranks connected after its start at %s (rank 0: %s, pid %d)", hub->world,
               hub->place.started, hub->place.host, hub->place.pid);
    } else if (hello.world != hub->world || hello.rank < 0 || hello.rank >= hub->world) {
        refuse(hub, peer, false, "rank %d (%s, pid %d) was started as one of %d, rank 0 (%s, pid %d) as one of %d",
               hello.rank, hello.host, hello.pid, hello.world, hub->place.host, hub->place.pid, hub->world);
    } else if (hub->peer[hello.rank] != NULL) {
        const Peer *first = hub->peer[hello.rank];
        refuse(hub, peer, false,
               "two processes are rank %d: pid %d on %s, and pid %d on %s (do two runs use the same "
               "address or directory?)",
               hello.rank, first->pid, first->host, hello.pid, hello.host);
    } else {
        forget_newcomer(hub, peer);
        peer->rank = hello.rank;
        peer->pid = hello.pid;
        memcpy(peer->host, hello.host, sizeof peer->host);
        peer->link.max_frame = sizeof(CallFrame) + CONTROL_DATA_BYTES;
        hub->peer[hello.rank] = peer;
        WelcomeFrame welcome = {CONTROL_MAGIC, CONTROL_VERSION, {0}};
        memcpy(welcome.nonce, hub->place.nonce, sizeof welcome.nonce);
        send_to(hub, peer, FRAME_WELCOME, &(Part){&welcome, sizeof welcome}, 1);
        if (++hub->come == hub->world) start_running(hub);
    }
}

// ---- collectives ----

static size_t data_bytes(const CallFrame *call, int rank) {
    if (call->kind == CALL_REDUCE) return sizeof(double) * ((size_t)call->sums + (size_t)call->maxes);
    if (call->kind == CALL_GATHER) return call->count;
    return call->kind == CALL_BROADCAST && rank == 0 ? call->count : 0;
}

// Row 0 becomes the sum and the maximum of all rows. The tree depends only on the number of ranks.
static void reduce_rows(Hub *hub) {
    int64_t world = hub->world, sums = hub->call.sums, n = sums + hub->call.maxes;
    double *rows = (double *)(void *)hub->rows;
    for (int64_t stride = 1; stride < world; stride *= 2)
        for (int64_t r = 0; r + stride < world; r += 2 * stride) {
            double *a = rows + r * n;
            const double *b = rows + (r + stride) * n;
            for (int64_t i = 0; i < sums; ++i) a[i] += b[i];
            for (int64_t i = sums; i < n; ++i)  // NaN wins
                if (b[i] > a[i] || isnan(b[i])) a[i] = isnan(a[i]) ? a[i] : b[i];
        }
}

static void finish_call(Hub *hub) {
    CallKind kind = (CallKind)hub->call.kind;
    if (kind == CALL_REDUCE) reduce_rows(hub);
    size_t bytes = kind == CALL_GATHER ? hub->row_bytes * (size_t)hub->world : hub->row_bytes;
    int64_t sequence = hub->call.sequence;
    if (kind == CALL_CLOSE) {
        hub->phase = HUB_CLOSING;
        hub->phase_until = now_seconds() + CLOSING_SECONDS;
    }
    hub->arrived = 0;
    hub->call.sequence = sequence + 1;
    for (int rank = 0; rank < hub->world; ++rank) {
        hub->peer[rank]->called = false;
        send_to(hub, hub->peer[rank], FRAME_RESULT, (Part[]){{&sequence, sizeof sequence}, {hub->rows, bytes}}, 2);
    }
}

static void receive_call(Hub *hub, Peer *peer, const Frame *frame) {
    CallFrame call;
    if (frame->count < sizeof call || hub->phase != HUB_RUNNING) return;
    memcpy(&call, frame->bytes, sizeof call);
    call.what[CONTROL_WHAT_BYTES - 1] = '\0';
    peer->step = call.step;
    call.step = 0;
    if (hub->arrived == 0 && call.sequence == hub->call.sequence) {
        hub->call = call;
        hub->first_rank = peer->rank;
        hub->call_since = hub->clock.now;
        hub->row_bytes = data_bytes(&call, 0);
        size_t wanted = hub->row_bytes * (call.kind == CALL_BROADCAST ? 1 : (size_t)hub->world);
        if (wanted > hub->rows_room) {
            hub->rows_room = wanted;
            hub->rows = xrealloc(hub->rows, wanted);
        }
    }
    size_t bytes = frame->count - sizeof call;
    if (peer->called || memcmp(&call, &hub->call, sizeof call) != 0 || bytes != data_bytes(&call, peer->rank)) {
        watch_describe_mismatch(hub, peer, &call, hub->end_text, sizeof hub->end_text);
        end_run(hub);
        return;
    }
    peer->called = true;
    peer->last_sequence = call.sequence;
    memcpy(peer->last_what, call.what, sizeof peer->last_what);
    if (bytes > 0) memcpy(hub->rows + (size_t)peer->rank * hub->row_bytes, frame->bytes + sizeof call, bytes);
    if (++hub->arrived == hub->world) finish_call(hub);
}

static void receive_status(Hub *hub, Peer *peer, const Frame *frame) {
    StatusFrame status;
    if (frame->count != sizeof status) return;
    memcpy(&status, frame->bytes, sizeof status);
    status.tensors.what[sizeof status.tensors.what - 1] = '\0';
    peer->step = status.step;
    bool waits = status.tensors.waiting_seconds >= 0;
    bool waited = peer->tensors_since >= 0 && peer->tensors.sequence == status.tensors.sequence;
    // Counted by the hub's clock: a rank's own clock also ran while the whole run was suspended.
    if (!waits) peer->tensors_since = -1;
    else if (!waited) peer->tensors_since = hub->clock.now - fmin(status.tensors.waiting_seconds, hub->beat_seconds);
    peer->tensors = status.tensors;
    peer->told_at = hub->clock.now;
}

// ---- the thread ----

static void lose_peer(Hub *hub, Peer *peer) {
    if (peer->rank < 0) {
        forget_newcomer(hub, peer);
        free_peer(peer);
        return;
    }
    if (hub->phase == HUB_MEETING) {  // the rank may be restarted
        hub->peer[peer->rank] = NULL;
        --hub->come;
        free_peer(peer);
        return;
    }
    if (hub->phase == HUB_RUNNING) {
        watch_describe_lost(hub, peer, hub->end_text, sizeof hub->end_text);
        end_run(hub);
    }
    close(peer->link.fd);
    peer->link.fd = -1;
}

static void receive_from(Hub *hub, Peer *peer) {
    int got = link_receive(&peer->link);
    if (got > 0) peer->heard = hub->clock.now;
    Frame frame;
    int more = 0;
    while (got > 0 && (more = link_next(&peer->link, &frame)) > 0) {
        if (peer->rank < 0) {
            receive_hello(hub, peer, &frame);  // may free peer; a rank sends nothing else before the welcome
            return;
        }
        if (frame.type == FRAME_CALL) receive_call(hub, peer, &frame);
        if (frame.type == FRAME_STATUS) receive_status(hub, peer, &frame);
        if (frame.type == FRAME_ABORT && hub->phase < HUB_ENDING) {
            snprintf(hub->end_text, sizeof hub->end_text, "%.*s", (int)frame.count, (const char *)frame.bytes);
            end_run(hub);
        }
    }
    if (got < 0 || more < 0) lose_peer(hub, peer);
}

static void note_least(Hub *hub) {
    int64_t least = INT64_MAX;
    for (int rank = 0; rank < hub->world; ++rank) least = min_i64(least, hub->peer[rank]->tensors.sequence);
    if (least == hub->least_come_to) return;
    hub->least_come_to = least;
    hub->least_since = hub->clock.now;
}

static void beat(Hub *hub) {
    hub->next_beat = now_seconds() + hub->beat_seconds;
    for (int i = hub->newcomers; i-- > 0;) {
        Peer *peer = hub->newcomer[i];
        if (hub->clock.now - peer->heard > HELLO_SECONDS) {
            forget_newcomer(hub, peer);
            free_peer(peer);
        }
    }
    if (hub->phase > HUB_RUNNING) return;
    for (int rank = 0; rank < hub->world; ++rank)
        if (hub->peer[rank] != NULL) send_to(hub, hub->peer[rank], FRAME_BEAT, NULL, 0);
    if (hub->phase == HUB_RUNNING) note_least(hub);
    bool over = (hub->phase == HUB_MEETING ? watch_meeting : watch_ranks)(hub, hub->end_text, sizeof hub->end_text);
    if (over) end_run(hub);
}

// True: the thread can end.
static bool advance_phase(Hub *hub) {
    if (hub->phase < HUB_CLOSING) return false;
    bool others = false, first = hub->peer[0] != NULL && hub->peer[0]->link.fd >= 0;
    for (int rank = 1; rank < hub->world; ++rank)
        others = others || (hub->peer[rank] != NULL && hub->peer[rank]->link.fd >= 0);
    bool late = now_seconds() >= hub->phase_until;
    if (hub->phase == HUB_CLOSING) return late || (!others && !first);
    if (hub->phase == HUB_ENDING && (late || !others)) {
        if (first) tell_end(hub, hub->peer[0]);
        hub->phase = HUB_ENDED;
    }
    return hub->phase == HUB_ENDED && !first;
}

static void *hub_thread(void *context) {
    Hub *hub = context;
    struct epoll_event events[EVENTS];
    hub->next_beat = now_seconds();
    while (!atomic_load(&hub->stop) && !advance_phase(hub)) {
        double left = hub->next_beat - now_seconds();
        if (hub->phase == HUB_CLOSING || hub->phase == HUB_ENDING)
            left = fmin(left, hub->phase_until - now_seconds());
        int ready = epoll_wait(hub->epoll, events, EVENTS, left > 0 ? (int)ceil(left * 1e3) : 0);
        CHECK(ready >= 0 || errno == EINTR, "epoll_wait: %s", strerror(errno));
        watch_clock_advance(&hub->clock);
        for (int i = 0; i < ready; ++i) {
            void *what = events[i].data.ptr;
            if (what == &hub->wake) continue;  // stop is set
            if (what == &hub->listener) {
                accept_newcomers(hub);
                continue;
            }
            Peer *peer = what;
            if (events[i].events & EPOLLOUT) {
                link_flush(&peer->link);
                watch_output(hub, peer);
            }
            if (events[i].events & ~(uint32_t)EPOLLOUT) receive_from(hub, peer);
        }
        // Read all that has arrived before deciding that a rank is missing.
        if (ready < EVENTS && now_seconds() >= hub->next_beat) beat(hub);
    }
    return NULL;
}

// ---- start and stop ----

static bool allow_descriptors(int world, Error *err) {
    struct rlimit limit;
    rlim_t wanted = (rlim_t)world + EXTRA_NEWCOMERS + SPARE_DESCRIPTORS;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return error_set(err, "getrlimit failed: %s", strerror(errno));
    if (limit.rlim_cur >= wanted) return true;
    if (limit.rlim_max < wanted)
        return error_set(err,
                         "rank 0 needs %llu open files for %d ranks, and %llu are allowed: raise the hard limit "
                         "(ulimit -Hn)",
                         (unsigned long long)wanted, world, (unsigned long long)limit.rlim_max);
    limit.rlim_cur = wanted;
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return error_set(err, "setrlimit failed: %s", strerror(errno));
    return true;
}

static void free_hub(Hub *hub) {
    for (int rank = 0; rank < hub->world; ++rank)
        if (hub->peer[rank] != NULL) free_peer(hub->peer[rank]);
    while (hub->newcomers > 0) free_peer(hub->newcomer[--hub->newcomers]);
    forget_file(hub);
    close(hub->listener);
    if (hub->epoll >= 0) close(hub->epoll);
    if (hub->wake >= 0) close(hub->wake);
    free(hub->peer);
    free(hub->newcomer);
    free(hub->rows);
    free(hub);
}

bool hub_start(Hub **out, int listener, const HubPlace *place, bool nonce_is_known, const char *file,
               double timeout_seconds, double beat_seconds, Error *err) {
    Hub *hub = xcalloc(1, sizeof *hub);
    hub->listener = listener;
    hub->place = *place;
    hub->nonce_is_known = nonce_is_known;
    hub->file = file == NULL ? NULL : xstrdup(file);
    hub->timeout_seconds = timeout_seconds;
    hub->beat_seconds = beat_seconds;
    hub->world = place->world;
    hub->peer = xcalloc((size_t)hub->world, sizeof *hub->peer);
    hub->newcomers_room = hub->world + EXTRA_NEWCOMERS;
    hub->newcomer = xcalloc((size_t)hub->newcomers_room, sizeof(Peer *));
    hub->call.sequence = 1;
    hub->epoll = epoll_create1(EPOLL_CLOEXEC);
    hub->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    atomic_init(&hub->stop, false);
    watch_clock_start(&hub->clock, 2 * beat_seconds);
    struct epoll_event listening = {EPOLLIN, {.ptr = &hub->listener}}, waking = {EPOLLIN, {.ptr = &hub->wake}};
    int reason = 0;
    if (!allow_descriptors(hub->world, err)) {
        free_hub(hub);
        return false;
    }
    if (hub->epoll < 0 || hub->wake < 0 || epoll_ctl(hub->epoll, EPOLL_CTL_ADD, listener, &listening) != 0 ||
        epoll_ctl(hub->epoll, EPOLL_CTL_ADD, hub->wake, &waking) != 0)
        reason = errno;
    sigset_t all, before;  // signals are the main thread's
    sigfillset(&all);
    if (reason == 0) reason = pthread_sigmask(SIG_SETMASK, &all, &before);
    if (reason == 0) {
        reason = pthread_create(&hub->thread, NULL, hub_thread, hub);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (reason != 0) {
        free_hub(hub);
        return error_set(err, "cannot start the hub of the ranks: %s", strerror(reason));
    }
    *out = hub;
    return true;
}

void hub_stop(Hub *hub, bool now) {
    if (now) {
        atomic_store(&hub->stop, true);
        uint64_t one = 1;
        ssize_t wrote = write(hub->wake, &one, sizeof one);
        CHECK(wrote == sizeof one, "eventfd: %s", strerror(errno));
    }
    int reason = pthread_join(hub->thread, NULL);
    CHECK(reason == 0, "pthread_join: %s", strerror(reason));
    free_hub(hub);
}
