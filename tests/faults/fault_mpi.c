// fault_mpi.c: preloaded (LD_PRELOAD) into one rank by tests/ranks/test_faults.sh: kills or stops it at a chosen message, so
// that "in the middle of a reduction" is reproducible. Wraps MPI calls of the plug-in.
//   FAULT_AT     the number of the message (MPI_Isend, from 1) at which it happens
//   FAULT_KIND   kill (SIGKILL) or stop (SIGSTOP: a hang)
#include <mpi.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int messages = 0;

int MPI_Isend(const void *bytes, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request) {
    const char *at = getenv("FAULT_AT"), *kind = getenv("FAULT_KIND");
    if (at != NULL && kind != NULL && ++messages == atoi(at))
        kill(getpid(), strcmp(kind, "stop") == 0 ? SIGSTOP : SIGKILL);
    return PMPI_Isend(bytes, count, type, to, tag, comm, request);
}
