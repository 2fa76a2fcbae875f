// control_wire.h: frames over TCP for the control connections: their contents, and a Link that sends and receives them
// without blocking. A rank has one link to the hub, the hub one link per rank. Must not know liveness or the meaning of
// the data.
#ifndef LLMC_CONTROL_WIRE_H
#define LLMC_CONTROL_WIRE_H

#include "llmc/ranks/control.h"

#define CONTROL_MAGIC "tokamak control"
#define CONTROL_VERSION 1
#define CONTROL_NONCE_BYTES 16
#define CONTROL_WHAT_BYTES 48
#define CONTROL_TEXT_BYTES 1024  // of a message about the end of the run
// The longest data of one collective.
#define CONTROL_DATA_BYTES ((size_t)1 << 30)

// The first four bytes of each frame: a magic number too, so that other data is not taken for a frame.
typedef enum {
    FRAME_HELLO = 0x4b4f5401,  // rank -> hub: HelloFrame, the first frame of a connection
    FRAME_STATUS,              // rank -> hub: StatusFrame, twice a second
    FRAME_CALL,                // rank -> hub: CallFrame, then the rank's data
    FRAME_WELCOME,             // hub -> rank: WelcomeFrame, accepts a hello
    FRAME_REFUSE,              // hub -> rank: uint32_t: 1: try again later, 0: final; then text
    FRAME_START,               // hub -> rank: all ranks have connected; the table of ranks
    FRAME_BEAT,                // hub -> rank: empty, twice a second
    FRAME_RESULT,              // hub -> rank: int64_t sequence, then the data
    FRAME_ABORT,               // both: text: why the run ends
    FRAME_END
} FrameType;

// These two are the same in every version of the protocol.
typedef struct {
    char magic[16];
    uint32_t version;
    int32_t rank, world, pid;  // rank and world of the launch
    uint8_t nonce[CONTROL_NONCE_BYTES];  // zeros: not known to the rank
    char host[LAUNCH_HOST_BYTES];
} HelloFrame;
typedef struct {
    char magic[16];
    uint32_t version;
    uint8_t nonce[CONTROL_NONCE_BYTES];
} WelcomeFrame;

typedef struct {
    int64_t step;
    ControlStatus tensors;
} StatusFrame;

typedef enum { CALL_REDUCE, CALL_BROADCAST, CALL_GATHER, CALL_CLOSE } CallKind;
// Equal on all ranks except for step.
typedef struct {
    int64_t sequence;  // from 1
    int64_t step;
    int32_t kind;
    int32_t sums, maxes;  // reduce: doubles
    int32_t zero;         // keeps the struct free of padding
    uint64_t count;       // broadcast, gather: bytes of one rank
    char what[CONTROL_WHAT_BYTES];
} CallFrame;

typedef struct {
    const void *bytes;
    size_t count;
} Part;

// One connection. One thread reads; the owner must serialize sending; reading and sending may run concurrently.
typedef struct {
    int fd;       // -1: closed
    bool broken;  // sending failed: the peer is gone; link_receive will return < 0
    uint8_t *in, *out;
    size_t in_first, in_end, in_room;     // received and not yet consumed: [in_first, in_end)
    size_t out_first, out_end, out_room;  // not yet sent: [out_first, out_end)
    size_t max_frame;                     // a longer frame is not of this protocol
} Link;

typedef struct {
    FrameType type;
    const uint8_t *bytes;  // inside the link, valid until the next link_receive; unaligned
    size_t count;
} Frame;

void link_init(Link *link, int fd, size_t max_frame);  // fd: a connected socket, non-blocking
void link_free(Link *link);
// Sends the parts as one frame: as much as the socket takes now; the rest is buffered for link_flush.
void link_send(Link *link, FrameType type, const Part *parts, int count);
void link_flush(Link *link);
static inline bool link_has_output(const Link *link) { return link->out_first < link->out_end && !link->broken; }
// Reads what has arrived. > 0: something; 0: nothing now; < 0: the connection is over.
int link_receive(Link *link);
// Takes the next complete frame: 1; 0: none yet; -1: the bytes are not of this protocol.
int link_next(Link *link, Frame *out);
// Waits at most `seconds` for a frame (and flushes meanwhile): 1; 0: none arrived; -1: the connection is over or not of
// this protocol.
int link_await(Link *link, Frame *out, double seconds);

// poll() of one descriptor: its revents; 0: timeout. Signals do not end it early.
int wait_for_socket(int fd, short events, double seconds);

// A clock that counts only the time in which its thread could run: the thread wakes up at least every `most` seconds
// and advances the clock by at most that, so time in a suspended machine or a stopped process is not counted.
typedef struct {
    double now;
    double real, most;
} WatchClock;
void watch_clock_start(WatchClock *clock, double most);
void watch_clock_advance(WatchClock *clock);
#endif
