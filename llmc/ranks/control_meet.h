// control_meet.h: how the ranks of a start find the hub of their rank 0: where it listens, how the ranks learn this
// (share, a file, an address), and the handshake of a connection. Must not know what is exchanged after the start.
#ifndef LLMC_CONTROL_MEET_H
#define LLMC_CONTROL_MEET_H

#include "llmc/ranks/control_wire.h"

enum { PLACE_ADDRESSES = 16, PLACE_ADDRESS_BYTES = 256, PLACE_TEXT_BYTES = 8192 };

// Where a hub listens and which start it belongs to.
typedef struct {
    uint8_t nonce[CONTROL_NONCE_BYTES];  // zeros: not known beforehand (LAUNCH_TCP)
    int world, pid, port;  // world: of the launch
    char host[LAUNCH_HOST_BYTES];
    char started[32];  // local time, for messages
    int addresses;
    char address[PLACE_ADDRESSES][PLACE_ADDRESS_BYTES];
} HubPlace;

// Listens and fills in `place`: at launch->port (any_port false; waits up to 10 s for an earlier run to release it) or at
// any free port. *listener is non-blocking.
bool meet_listen(int *listener, HubPlace *place, const Launch *launch, bool any_port, double timeout_seconds,
                 Error *err);
// A place as text of at most PLACE_TEXT_BYTES, '\0' included; reading fails on anything else.
void meet_write_place(char *text, const HubPlace *place);
bool meet_read_place(HubPlace *place, const char *text, Error *err);
// Path of the file in launch->directory to which rank 0 writes its place; caller frees.
char *meet_file(const Launch *launch);
// Removes the file if it still has this nonce.
void meet_remove_file(const char *path, const uint8_t nonce[CONTROL_NONCE_BYTES]);

typedef struct {
    const Launch *launch;
    const HubPlace *place;   // if already known (rank 0, or through share); NULL: looked up at every attempt
    double timeout_seconds;  // to find the hub; from then on the hub reports missing ranks
} Meeting;
// Connects to the hub and waits until all ranks have connected; *start is then the table of ranks, inside *link. Errors:
// no hub of this start within the time, a refusal by the hub (with its reason), a rank that did not connect.
bool meet_join(Link *link, Frame *start, const Meeting *meeting, Error *err);
#endif
