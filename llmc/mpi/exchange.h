// exchange.h: how the ranks of a group exchange elements over MPI: every rank sends each other rank its elements in pieces
// and receives likewise. reduce_scatter adds the received pieces; the other operations receive in place. All calls come
// from one thread (of comm_mpi.c). Must not know queues, events or threads.
#ifndef LLMC_MPI_EXCHANGE_H
#define LLMC_MPI_EXCHANGE_H

#include <mpi.h>

#include "llmc/ranks/comm_host.h"

// Requests are in links, one for each other rank: COMM_WINDOW receives, then COMM_WINDOW sends.
typedef struct {
    int peer;
    CommCursor send, receive;
    int64_t sent, received;  // pieces whose request was posted
} Link;

typedef struct {
    MPI_Comm comm;
    int rank, world;            // of the group
    int links;                  // world - 1
    Link *link;
    MPI_Request *request;       // (links, 2, COMM_WINDOW)
    MPI_Status *status;         // of the completed ones
    int *completed;
    unsigned char *slot;        // (links, COMM_WINDOW, slot_bytes): pieces received and not added yet
    int64_t slot_bytes;         // equal on all ranks
    CommSegment *even;          // (world)
    CommTerm *term;             // (world)
    int64_t bytes_sent;
} Exchange;

// Checks the result of an MPI call: false and the library's error message unless code is MPI_SUCCESS.
bool mpi_ok(int code, const char *call, Error *err);

// Collective. scratch (bytes) is used by the exchange until close; its size may differ between ranks.
bool exchange_open(Exchange *out, MPI_Comm comm, void *scratch, size_t bytes, Error *err);
void exchange_close(Exchange *x);  // does not free the communicator

// The operations of comm.h; they block until done. After a failure only exchange_close may be called.
bool exchange_reduce_scatter(Exchange *x, Tensor out, Tensor in, const CommSegment *segments, int count, CommSum how,
                             Error *err);
bool exchange_all_gather(Exchange *x, Tensor t, const CommSegment *segments, int count, Error *err);
bool exchange_all_reduce(Exchange *x, Tensor t, CommSum how, Error *err);
bool exchange_broadcast(Exchange *x, Tensor t, int root, Error *err);
bool exchange_barrier(Exchange *x, Error *err);

#endif
