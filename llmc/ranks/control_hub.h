// control_hub.h: the hub that rank 0 runs: one thread, one connection to each rank. control_hub.c moves the data,
// control_watch.c decides when the run ends and writes the message; only these two access Hub. Must not know tensors.
#ifndef LLMC_CONTROL_HUB_H
#define LLMC_CONTROL_HUB_H

#include <pthread.h>
#include <stdatomic.h>

#include "llmc/ranks/control_meet.h"

// A rank as recorded by the hub, or a connection without a hello yet. Times are of Hub.clock.
typedef struct {
    Link link;
    int rank, pid;  // -1: no hello yet
    char host[LAUNCH_HOST_BYTES];
    double heard;  // when it last sent anything
    int64_t step;
    bool called;            // has reached the current call
    int64_t last_sequence;  // of the last call that it reached; 0: none
    char last_what[CONTROL_WHAT_BYTES];
    ControlStatus tensors;  // as last reported, at told_at
    double told_at;
    double tensors_since;  // since when it waits in tensors.sequence; < 0: it does not
} Peer;

typedef enum {
    HUB_MEETING,  // not all ranks have connected
    HUB_RUNNING,
    HUB_CLOSING,  // all ranks have said goodbye: waits until the connections are closed
    HUB_ENDING,   // the other ranks have been sent the reason; rank 0, whose exit ends this thread, follows last
    HUB_ENDED     // rank 0 has been sent it too
} HubPhase;

typedef struct Hub {
    pthread_t thread;
    int listener, epoll, wake;
    atomic_bool stop;
    HubPlace place;
    bool nonce_is_known;  // the ranks of this start have the nonce before they connect
    char *file;           // removed when all ranks have connected; NULL: none
    double timeout_seconds, beat_seconds;

    HubPhase phase;
    double phase_until;  // closing, ending: now_seconds()
    WatchClock clock;
    double next_beat;  // now_seconds()
    int world, come;   // ranks of the launch; ranks that have said hello
    Peer **peer;       // (world); NULL: not connected
    Peer **newcomer;   // connections without a hello
    int newcomers, newcomers_room;
    char refused[512];  // the last refusal while the ranks connect, for the message; "": none

    CallFrame call;  // the current call, valid when arrived > 0; call.sequence is always valid
    int arrived, first_rank;
    double call_since;  // when the first rank arrived
    uint8_t *rows;      // (world, row_bytes): the ranks' data
    size_t row_bytes, rows_room;

    int64_t least_come_to;  // the highest tensor collective that all ranks have reached, as reported
    double least_since;     // since when

    char end_text[CONTROL_TEXT_BYTES];  // ending: why
} Hub;

// Takes ownership of the listener (on errors too) and copies place. beat_seconds: interval of messages in both directions.
bool hub_start(Hub **out, int listener, const HubPlace *place, bool nonce_is_known, const char *file,
               double timeout_seconds, double beat_seconds, Error *err);
// now: stops at once; else waits until all ranks have closed (control_close). Joins the thread and frees.
void hub_stop(Hub *hub, bool now);

// ---- control_watch.c ----
// True: the run must end, and text says why. Checked twice a second.
bool watch_meeting(const Hub *hub, char *text, size_t text_bytes);
bool watch_ranks(const Hub *hub, char *text, size_t text_bytes);
void watch_describe_lost(const Hub *hub, const Peer *peer, char *text, size_t text_bytes);
void watch_describe_mismatch(const Hub *hub, const Peer *peer, const CallFrame *call, char *text, size_t text_bytes);
// For a rank that has lost the hub: `me` describes that rank as the hub's own record would.
void watch_describe_hub(const char *hub, const Peer *me, const char *why, char *text, size_t text_bytes);
#endif
