// launch.h: how this process was started: alone, by mpirun or srun (MPI), or by a launcher that only sets RANK,
// WORLD_SIZE and a meeting place (torchrun, a shell loop, srun without MPI). Reads the environment; opens no connections:
// control.h connects the ranks afterwards. Must not know what the ranks compute.
#ifndef LLMC_LAUNCH_H
#define LLMC_LAUNCH_H

#include "llmc/base/common.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
    LAUNCH_SINGLE,      // one process
    LAUNCH_MPI,         // rank and world come from MPI_Init: OMPI_COMM_WORLD_*, PMIX_RANK, PMI_RANK are set
    LAUNCH_TCP,         // RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (default 29500)
    LAUNCH_DIRECTORY    // RANK, WORLD_SIZE and a directory that all ranks share
} LaunchKind;

#define LAUNCH_HOST_BYTES 64
typedef struct {
    LaunchKind kind;
    int rank, world;    // of all processes of the launch. MPI: 0 and 0 until MPI_Init
    int started;        // MPI: number of processes according to the launcher; 0: unknown
    int local_rank;     // on this host (LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_RANK, SLURM_LOCALID); 0 if not set
    char host[LAUNCH_HOST_BYTES];
    char address[256];  // TCP: MASTER_ADDR
    int port;           // TCP: MASTER_PORT
    char directory[1024];
} Launch;

// wanted: "auto", or "single", "mpi", "tcp", "directory". rendezvous: the shared directory; "": $TOKAMAK_RENDEZVOUS.
// auto: mpi if the variables of an MPI launcher are set and it started more than one process; tcp or directory if RANK
// and WORLD_SIZE are set (directory if one is given, else tcp); else single. Errors name the variable, what was
// expected and what was found: RANK outside 0..WORLD_SIZE-1, RANK without WORLD_SIZE, tcp without MASTER_ADDR, several
// Slurm tasks in a step without a way to connect them (with what to add to the command).
bool launch_detect(Launch *out, const char *wanted, const char *rendezvous, Error *err);
// After MPI_Init: error if the launcher started several processes and MPI reports a world of 1.
bool launch_check_mpi(const Launch *launch, Error *err);
const char *launch_kind_name(LaunchKind kind);

#ifdef __cplusplus
}
#endif
#endif
