// control_meet.h: how the ranks of a start find rank 0's hub and nobody else's: where it listens, how that is handed
// over (share, a file, an address), the first words of a connection. Used by control.c; knows nothing of what is said
// once everybody has come.
#ifndef LLMC_CONTROL_MEET_H
#define LLMC_CONTROL_MEET_H

#include "llmc/ranks/control_wire.h"

enum { PLACE_ADDRESSES = 16, PLACE_ADDRESS_BYTES = 256, PLACE_TEXT_BYTES = 8192 };

// Where a hub listens and which start it belongs to.
typedef struct {
    uint8_t nonce[CONTROL_NONCE_BYTES];  // zeros: not known beforehand (LAUNCH_TCP)
    int world, pid, port;  // world: of the launch
    char host[LAUNCH_HOST_BYTES];
    char started[32];  // local time, for people
    int addresses;
    char address[PLACE_ADDRESSES][PLACE_ADDRESS_BYTES];
} HubPlace;

// Listens and fills out all of `place`: at launch->port (LAUNCH_TCP without share; waits up to 10 s for a former run
// to let go of it) or at any free one. *listener is non-blocking.
bool meet_listen(int *listener, HubPlace *place, const Launch *launch, bool any_port, double timeout_seconds,
                 Error *err);
// As text of PLACE_TEXT_BYTES at most, with its '\0'; reading fails on anything else.
void meet_write_place(char *text, const HubPlace *place);
bool meet_read_place(HubPlace *place, const char *text, Error *err);
// The file of launch->directory in which rank 0 says where it is; caller frees.
char *meet_file(const Launch *launch);
// Removes the file if it is still the one with this nonce.
void meet_remove_file(const char *path, const uint8_t nonce[CONTROL_NONCE_BYTES]);

typedef struct {
    const Launch *launch;
    const HubPlace *place;   // known already (rank 0, or handed over by share); else NULL: looked for again and again
    double timeout_seconds;  // to find the hub; from then on the hub says who is missing
} Meeting;
// Connects to the hub and waits until everybody has come; *start is then the table of ranks, inside *link. Errors: no
// hub of this start within the time, refused by it (and why), somebody did not come.
bool meet_join(Link *link, Frame *start, const Meeting *meeting, Error *err);
#endif
