// control_hub.h: the hub that rank 0 keeps: one thread, one connection to each rank. control_hub.c moves the data and
// control_watch.c decides who ends the run and in which words; Hub is known to these two only. control.c starts and
// stops it.
#ifndef LLMC_CONTROL_HUB_H
#define LLMC_CONTROL_HUB_H

#include <pthread.h>
#include <stdatomic.h>

#include "llmc/ranks/control_meet.h"

// What the hub knows of a rank, or of a connection that has not said hello. Times are of Hub.clock.
typedef struct {
    Link link;
    int rank, pid;  // -1: no hello yet
    char host[LAUNCH_HOST_BYTES];
    double heard;  // when anything came from it
    int64_t step;
    bool called;            // has come to the current call
    int64_t last_sequence;  // of the last call that it came to; 0: none
    char last_what[CONTROL_WHAT_BYTES];
    ControlStatus tensors;  // as last told, at told_at
    double told_at;
    double tensors_since;  // since when it waits in tensors.sequence; < 0: it does not
} Peer;

typedef enum {
    HUB_MEETING,  // not everybody has come
    HUB_RUNNING,
    HUB_CLOSING,  // everybody has said goodbye: waits until the connections are closed
    HUB_ENDING,   // the others have been told why the run ends; rank 0, whose exit ends this thread, comes last
    HUB_ENDED     // rank 0 knows too
} HubPhase;

typedef struct Hub {
    pthread_t thread;
    int listener, epoll, wake;
    atomic_bool stop;
    HubPlace place;
    bool nonce_is_known;  // to whoever comes rightly
    char *file;           // to remove when everybody has come; NULL: none
    double timeout_seconds, beat_seconds;

    HubPhase phase;
    double phase_until;  // closing, ending: now_seconds()
    WatchClock clock;
    double next_beat;  // now_seconds()
    int world, come;   // ranks of the launch; those that have said hello
    Peer **peer;       // (world); NULL: has not come
    Peer **newcomer;   // connections without a hello
    int newcomers, newcomers_room;
    char refused[512];  // the last one that was refused while the ranks met, for the message; "": none

    CallFrame call;  // the current one, when arrived > 0; its sequence always
    int arrived, first_rank;
    double call_since;  // of the first arrival
    uint8_t *rows;      // (world, row_bytes): what the ranks brought
    size_t row_bytes, rows_room;

    int64_t least_come_to;  // the highest number of collectives on tensors that all ranks have come to, as told
    double least_since;     // since when

    char end_text[CONTROL_TEXT_BYTES];  // ending: why
} Hub;

// Takes over the listener and a copy of place. beat_seconds: how often ranks and hub hear of each other.
bool hub_start(Hub **out, int listener, const HubPlace *place, bool nonce_is_known, const char *file,
               double timeout_seconds, double beat_seconds, Error *err);
// now: at once; else when its work is done (after control_close on all ranks). Waits for the thread and frees.
void hub_stop(Hub *hub, bool now);

// ---- control_watch.c ----
// Is it time to end the run? Called twice a second; fills text.
bool watch_meeting(const Hub *hub, char *text, size_t text_bytes);
bool watch_ranks(const Hub *hub, char *text, size_t text_bytes);
void watch_describe_lost(const Hub *hub, const Peer *peer, char *text, size_t text_bytes);
void watch_describe_mismatch(const Hub *hub, const Peer *peer, const CallFrame *call, char *text, size_t text_bytes);
// Of the hub itself, by a rank that hears nothing from it any more: `me` is that rank as the hub would know it.
void watch_describe_hub(const char *hub, const Peer *me, const char *why, char *text, size_t text_bytes);
void watch_name_peer(const Peer *peer, char *text, size_t text_bytes);
#endif
