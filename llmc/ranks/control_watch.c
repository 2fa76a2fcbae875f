// control_watch.c: decides which rank is missing and writes the message that all ranks print (rules: control.h). Reads the
// hub and changes nothing.
//
// A rank waits in a control call (known exactly) or in a tensor collective (as it last reported). Each kind has its own
// sequence numbers: a rank is missing from number s when other ranks wait in s and it has not reached s.
#include <stdio.h>
#include <string.h>

#include "llmc/ranks/control_hub.h"

// Appends to text, truncated to text_bytes.
PRINTF_LIKE(3, 4) static void append(char *text, size_t text_bytes, const char *format, ...) {
    size_t used = strlen(text);
    va_list args;
    va_start(args, format);
    vsnprintf(text + used, text_bytes - used, format, args);
    va_end(args);
}

static void watch_name_peer(const Peer *peer, char *text, size_t text_bytes) {
    snprintf(text, text_bytes, "rank %d (%s, pid %d)", peer->rank, peer->host, peer->pid);
}

// ---- what ranks wait for ----

typedef struct {
    bool tensors;      // else: the current control call
    int64_t sequence;  // 0: no rank waits
    const char *what;
    double since;
} Wait;

// The earliest tensor collective after number `come_to` in which some rank has been waiting since `latest` or earlier.
static Wait find_tensor_wait(const Hub *hub, int64_t come_to, double latest) {
    Wait wait = {.tensors = true};
    for (int rank = 0; rank < hub->world; ++rank) {
        const Peer *peer = hub->peer[rank];
        int64_t sequence = peer->tensors.sequence;
        if (peer->tensors_since < 0 || peer->tensors_since > latest || sequence <= come_to) continue;
        if (wait.sequence == 0 || sequence < wait.sequence ||
            (sequence == wait.sequence && peer->tensors_since < wait.since))
            wait = (Wait){true, sequence, peer->tensors.what, peer->tensors_since};
    }
    return wait;
}
static Wait control_wait(const Hub *hub, double latest) {
    if (hub->arrived == 0 || hub->call_since > latest) return (Wait){0};
    return (Wait){false, hub->call.sequence, hub->call.what, hub->call_since};
}
static bool waits_itself(const Peer *peer) { return peer->called || peer->tensors_since >= 0; }

// What a rank has been missing from since `latest` or earlier: of the two kinds, the one with the longer wait.
static Wait find_missed(const Hub *hub, const Peer *peer, double latest) {
    Wait tensors = find_tensor_wait(hub, peer->tensors.sequence, latest);
    Wait control = peer->called ? (Wait){0} : control_wait(hub, latest);
    if (control.sequence == 0) return tensors;
    return tensors.sequence == 0 || control.since <= tensors.since ? control : tensors;
}

// ---- messages ----

static void append_collective(char *text, size_t text_bytes, bool tensors, const char *what, int64_t sequence) {
    append(text, text_bytes, "\"%s\" #%lld (%s)", what, (long long)sequence, tensors ? "tensors" : "control");
}

// "; it was in ...": the rank's own last activity.
static void append_activity(const Peer *peer, const char *it_was, char *text, size_t text_bytes) {
    bool in_tensors = peer->tensors_since >= 0, in = peer->called || in_tensors;
    bool control = in ? peer->called : peer->last_sequence > 0;
    bool tensors = in ? in_tensors : peer->tensors.sequence > 0;
    append(text, text_bytes, "; %s %s", it_was, in ? "in " : control || tensors ? "past " : "before any collective");
    if (control) append_collective(text, text_bytes, false, peer->last_what, peer->last_sequence);
    if (control && tensors) append(text, text_bytes, " and ");
    if (tensors) append_collective(text, text_bytes, true, peer->tensors.what, peer->tensors.sequence);
}

// why: "silent for 30 s" and the like.
static void describe(const Peer *peer, Wait missed, const char *why, char *text, size_t text_bytes) {
    watch_name_peer(peer, text, text_bytes);
    if (missed.sequence > 0) {
        append(text, text_bytes, " is missing from ");
        append_collective(text, text_bytes, missed.tensors, missed.what, missed.sequence);
    } else {
        append(text, text_bytes, " is missing");
    }
    append(text, text_bytes, " at step %lld: %s", (long long)peer->step, why);
    append_activity(peer, "it was", text, text_bytes);
}

// "; likewise rank 3, 5-9": ranks for which `counts` holds, except `but`.
static void append_others(const Hub *hub, const Peer *but, bool (*counts)(const Hub *, const Peer *), char *text,
                          size_t text_bytes) {
    bool any = false;
    for (int rank = 0; rank < hub->world; ++rank) {
        int last = rank;
        while (last < hub->world && hub->peer[last] != but && counts(hub, hub->peer[last])) ++last;
        if (last == rank) continue;
        append(text, text_bytes, any ? ", %d" : "; likewise rank %d", rank);
        if (last - 1 > rank) append(text, text_bytes, "-%d", last - 1);
        any = true;
        rank = last;
    }
}

// ---- verdicts ----

static bool is_silent(const Hub *hub, const Peer *peer) {
    return hub->clock.now - peer->heard >= hub->timeout_seconds;
}
// Missing although other ranks have waited for timeout_seconds. For tensors, the time counts back from the rank's own last
// report: an old report does not prove that it has not arrived since.
static bool is_hung(const Hub *hub, const Peer *peer) {
    double latest = hub->clock.now - hub->timeout_seconds;
    if (!peer->called && control_wait(hub, latest).sequence > 0) return true;
    latest = peer->told_at - hub->timeout_seconds;
    return find_tensor_wait(hub, peer->tensors.sequence, latest).sequence > 0;
}
static bool is_hung_and_free(const Hub *hub, const Peer *peer) { return !waits_itself(peer) && is_hung(hub, peer); }

static bool find_silent(const Hub *hub, char *text, size_t text_bytes) {
    const Peer *found = NULL;
    for (int rank = 0; rank < hub->world; ++rank) {
        const Peer *peer = hub->peer[rank];
        if (is_silent(hub, peer) && (found == NULL || peer->heard < found->heard)) found = peer;
    }
    if (found == NULL) return false;
    char why[64];
    snprintf(why, sizeof why, "silent for %.3g s", hub->clock.now - found->heard);
    describe(found, find_missed(hub, found, hub->clock.now), why, text, text_bytes);
    append_others(hub, found, is_silent, text, text_bytes);
    return true;
}

// No rank can be missing unless some rank has waited for long: a cheap test before the searches below.
static bool anybody_waits_long(const Hub *hub) {
    double latest = hub->clock.now - hub->timeout_seconds;
    if (control_wait(hub, latest).sequence > 0) return true;
    for (int rank = 0; rank < hub->world; ++rank)
        if (hub->peer[rank]->tensors_since >= 0 && hub->peer[rank]->tensors_since <= latest) return true;
    return false;
}

// Of the missing ranks, one that does not wait itself (the waiting ones may only be waiting for it); of these, the one
// that is furthest behind.
static bool find_hung(const Hub *hub, char *text, size_t text_bytes) {
    const Peer *found = NULL;
    for (int rank = 0; rank < hub->world; ++rank) {
        const Peer *peer = hub->peer[rank];
        if (!is_hung(hub, peer)) continue;
        bool better = found == NULL || (waits_itself(found) && !waits_itself(peer)) ||
                      (waits_itself(found) == waits_itself(peer) && peer->tensors.sequence < found->tensors.sequence);
        if (better) found = peer;
    }
    if (found == NULL) return false;
    Wait missed = find_missed(hub, found, hub->clock.now - hub->timeout_seconds);
    char why[64];
    snprintf(why, sizeof why, "other ranks have waited in it for %.3g s", hub->clock.now - missed.since);
    describe(found, missed, why, text, text_bytes);
    if (!waits_itself(found)) append_others(hub, found, is_hung_and_free, text, text_bytes);
    return true;
}

// All ranks reached a collective timeout_seconds ago and it does not complete: the network or its library hangs.
static bool find_stuck(const Hub *hub, char *text, size_t text_bytes) {
    const Peer *stuck = NULL;
    double latest = hub->clock.now - hub->timeout_seconds;
    for (int rank = 0; rank < hub->world; ++rank) {
        const Peer *peer = hub->peer[rank];
        bool waits = peer->tensors_since >= 0 && peer->tensors_since <= latest;
        if (waits && peer->tensors.sequence <= hub->least_come_to) stuck = peer;
    }
    if (stuck == NULL || hub->least_since > latest) return false;
    watch_name_peer(stuck, text, text_bytes);
    append(text, text_bytes, " is stuck in ");
    append_collective(text, text_bytes, true, stuck->tensors.what, stuck->tensors.sequence);
    append(text, text_bytes,
           " at step %lld: it has waited for %.3g s, and no rank is missing from it (does the network "
           "or a device hang?)",
           (long long)stuck->step, hub->clock.now - stuck->tensors_since);
    return true;
}

bool watch_ranks(const Hub *hub, char *text, size_t text_bytes) {
    if (find_silent(hub, text, text_bytes)) return true;
    return anybody_waits_long(hub) && (find_hung(hub, text, text_bytes) || find_stuck(hub, text, text_bytes));
}

void watch_describe_lost(const Hub *hub, const Peer *peer, char *text, size_t text_bytes) {
    describe(peer, find_missed(hub, peer, hub->clock.now),
             "its connection closed (killed, crashed, or exited without goodbye)", text, text_bytes);
}

void watch_describe_hub(const char *hub, const Peer *me, const char *why, char *text, size_t text_bytes) {
    snprintf(text, text_bytes, "%s is missing", hub);
    if (me->called) {
        append(text, text_bytes, " from ");
        append_collective(text, text_bytes, false, me->last_what, me->last_sequence);
    }
    append(text, text_bytes, " at step %lld: %s", (long long)me->step, why);
    char self[32];
    snprintf(self, sizeof self, "rank %d was", me->rank);
    append_activity(me, self, text, text_bytes);
}

static void append_call(char *text, size_t text_bytes, const CallFrame *call) {
    append_collective(text, text_bytes, false, call->what, call->sequence);
    if (call->kind == CALL_REDUCE)
        append(text, text_bytes, " (reduce of %d sums, %d maxima)", call->sums, call->maxes);
    else if (call->kind == CALL_CLOSE) append(text, text_bytes, " (goodbye)");
    else
        append(text, text_bytes, " (%s of %llu bytes)", call->kind == CALL_GATHER ? "gather" : "broadcast",
               (unsigned long long)call->count);
}
void watch_describe_mismatch(const Hub *hub, const Peer *peer, const CallFrame *call, char *text, size_t text_bytes) {
    watch_name_peer(peer, text, text_bytes);
    append(text, text_bytes, " called ");
    append_call(text, text_bytes, call);
    append(text, text_bytes, " at step %lld where ", (long long)peer->step);
    char first[128];
    watch_name_peer(hub->peer[hub->first_rank], first, sizeof first);
    append(text, text_bytes, "%s called ", first);
    append_call(text, text_bytes, &hub->call);
    append(text, text_bytes, ": all ranks must call the same (different builds or options?)");
}

// ---- while the ranks connect ----

static void append_came(const Hub *hub, char *text, size_t text_bytes) {
    enum { NAMED = 8 };
    int named = 0;
    for (int rank = 0; rank < hub->world && named < NAMED; ++rank) {
        if (hub->peer[rank] == NULL) continue;
        char name[128];
        watch_name_peer(hub->peer[rank], name, sizeof name);
        append(text, text_bytes, "%s%s", named++ == 0 ? "" : ", ", name);
    }
    if (hub->come > named) append(text, text_bytes, " and %d more", hub->come - named);
    append(text, text_bytes, hub->come == 0 ? "none connected" : " connected");
}

bool watch_meeting(const Hub *hub, char *text, size_t text_bytes) {
    enum { RANGES = 16 };
    if (hub->clock.now < hub->timeout_seconds) return false;
    snprintf(text, text_bytes, "%d of %d ranks did not connect within %g s: ", hub->world - hub->come, hub->world,
             hub->timeout_seconds);
    int ranges = 0;
    for (int rank = 0; rank < hub->world; ++rank) {
        int last = rank;
        while (last < hub->world && hub->peer[last] == NULL) ++last;
        if (last == rank) continue;
        if (ranges == RANGES) {
            append(text, text_bytes, " and others");
            break;
        }
        append(text, text_bytes, ranges++ == 0 ? "%d" : ", %d", rank);
        if (last - 1 > rank) append(text, text_bytes, "-%d", last - 1);
        rank = last;
    }
    append(text, text_bytes, "; ");
    append_came(hub, text, text_bytes);
    if (hub->refused[0] != '\0') append(text, text_bytes, "; refused: %s", hub->refused);
    return true;
}
