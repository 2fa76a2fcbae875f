// launch.c: see launch.h.
#include "llmc/ranks/launch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DEFAULT_PORT 29500
#define MAX_WORLD (1 << 20)

const char *launch_kind_name(LaunchKind kind) {
    static const char *const NAMES[] = {"single", "mpi", "tcp", "directory"};
    CHECK((int)kind >= 0 && (size_t)kind < sizeof NAMES / sizeof NAMES[0], "kind=%d", (int)kind);
    return NAMES[kind];
}

// NULL if the variable is not set or empty.
static const char *variable(const char *name) {
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0' ? value : NULL;
}

// A variable that must be an integer in low..high if it is set; if not, *out keeps its value.
static bool read_number(int *out, const char *name, int64_t low, int64_t high, const char *meaning, Error *err) {
    const char *text = variable(name);
    int64_t value;
    if (text == NULL) return true;
    if (!parse_i64(text, &value) || value < low || value > high)
        return error_set(err, "%s: expected %s from %lld to %lld, found \"%s\"", name, meaning, (long long)low,
                         (long long)high, text);
    *out = (int)value;
    return true;
}

// The number of processes that an MPI launcher started; 0: no MPI launcher; -1: there is one, but its number is unknown.
static bool read_mpi_size(int *out, Error *err) {
    static const char *const SIZES[] = {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"};
    static const char *const RANKS[] = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
    *out = 0;
    for (size_t i = 0; i < sizeof SIZES / sizeof SIZES[0]; ++i)
        if (variable(SIZES[i]) != NULL) return read_number(out, SIZES[i], 1, MAX_WORLD, "a number of processes", err);
    bool found = false;
    for (size_t i = 0; i < sizeof RANKS / sizeof RANKS[0]; ++i) found = found || variable(RANKS[i]) != NULL;
    if (!found) return true;
    *out = -1;  // srun --mpi=pmix gives the size in its own variable
    return read_number(out, "SLURM_STEP_NUM_TASKS", 1, MAX_WORLD, "a number of tasks", err);
}

// The first variable that is set counts: the variables of the launcher in use come first.
static bool read_local_rank(Launch *out, Error *err) {
    static const char *const OF_MPI[] = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID",
                                         "LOCAL_RANK", NULL};
    static const char *const OF_OTHERS[] = {"LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", NULL};
    for (const char *const *name = out->kind == LAUNCH_MPI ? OF_MPI : OF_OTHERS; *name != NULL; ++name)
        if (variable(*name) != NULL)
            return read_number(&out->local_rank, *name, 0, MAX_WORLD - 1, "a rank on this host", err);
    return true;
}

// RANK and WORLD_SIZE: both or neither.
static bool read_ranks(Launch *out, Error *err) {
    const char *rank = variable("RANK"), *world = variable("WORLD_SIZE");
    if (rank == NULL || world == NULL)
        return error_set(err, "%s: expected to be set, since %s is \"%s\"", rank == NULL ? "RANK" : "WORLD_SIZE",
                         rank == NULL ? "WORLD_SIZE" : "RANK", rank == NULL ? world : rank);
    return read_number(&out->world, "WORLD_SIZE", 1, MAX_WORLD, "a number of processes", err) &&
           read_number(&out->rank, "RANK", 0, out->world - 1, "a rank (WORLD_SIZE - 1 is the last)", err);
}

static bool read_address(Launch *out, Error *err) {
    const char *address = variable("MASTER_ADDR");
    if (address == NULL)
        return error_set(err,
                         "MASTER_ADDR: expected rank 0's host, as RANK and WORLD_SIZE are set; it is not set (or "
                         "give rendezvous=, a directory that all ranks share)");
    if (strlen(address) >= sizeof out->address)
        return error_set(err, "MASTER_ADDR: expected at most %zu characters, found %zu", sizeof out->address - 1,
                         strlen(address));
    snprintf(out->address, sizeof out->address, "%s", address);
    out->port = DEFAULT_PORT;
    if (!read_number(&out->port, "MASTER_PORT", 1, 65535, "a port", err)) return false;
    // Then torchrun itself listens at MASTER_PORT, and its workers need another port.
    const char *agent = variable("TORCHELASTIC_USE_AGENT_STORE");
    if (agent != NULL && strcmp(agent, "True") == 0) out->port += out->port < 65535 ? 1 : -1;
    return true;
}

static bool set_directory(Launch *out, const char *directory, Error *err) {
    if (directory[0] == '\0')
        return error_set(err,
                         "launch=directory: expected rendezvous= or $TOKAMAK_RENDEZVOUS, a directory that all "
                         "ranks share; neither is set");
    if (strlen(directory) >= sizeof out->directory)
        return error_set(err, "rendezvous: expected at most %zu characters, found %zu", sizeof out->directory - 1,
                         strlen(directory));
    snprintf(out->directory, sizeof out->directory, "%s", directory);
    return true;
}

// launch=auto.
static bool choose_kind(Launch *out, const char *directory, Error *err) {
    bool named = variable("RANK") != NULL || variable("WORLD_SIZE") != NULL;
    // torchrun's workers inherit the variables of an MPI launcher that started torchrun itself.
    bool torchrun = named && variable("TORCHELASTIC_RUN_ID") != NULL;
    int mpi_size, tasks = 1;
    if (!read_mpi_size(&mpi_size, err)) return false;
    if (!torchrun && (mpi_size > 1 || mpi_size < 0)) {
        out->kind = LAUNCH_MPI;
        out->started = mpi_size > 0 ? mpi_size : 0;
    } else if (named) {
        if (!read_ranks(out, err)) return false;
        out->kind = out->world == 1 ? LAUNCH_SINGLE : directory[0] != '\0' ? LAUNCH_DIRECTORY : LAUNCH_TCP;
    } else {
        // Only srun sets this variable, not sbatch. One task with MPI variables was started by mpirun inside the step.
        if (mpi_size == 0 && !read_number(&tasks, "SLURM_STEP_NUM_TASKS", 1, MAX_WORLD, "a number of tasks", err))
            return false;
        if (tasks > 1)
            return error_set(err,
                             "SLURM_STEP_NUM_TASKS: srun started %d tasks but nothing connects them; add --mpi=pmix to "
                             "srun, or run srun bash -c 'RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS train_gpt ...' "
                             "with rendezvous= a shared directory, or set launch=single if each task is a separate run",
                             tasks);
        out->kind = LAUNCH_SINGLE;
    }
    return true;
}

static bool set_kind(Launch *out, const char *wanted, const char *directory, Error *err) {
    if (strcmp(wanted, "auto") == 0) return choose_kind(out, directory, err);
    if (strcmp(wanted, "single") == 0) return true;
    if (strcmp(wanted, "mpi") == 0) {
        int size;
        if (!read_mpi_size(&size, err)) return false;
        if (size == 0)
            return error_set(err,
                             "launch=mpi: expected to be started by mpirun or srun --mpi=pmix, found none of "
                             "OMPI_COMM_WORLD_RANK, PMIX_RANK and PMI_RANK set");
        out->kind = LAUNCH_MPI;
        out->started = size > 0 ? size : 0;
        return true;
    }
    bool tcp = strcmp(wanted, "tcp") == 0;
    if (!tcp && strcmp(wanted, "directory") != 0)
        return error_set(err, "launch: expected auto, single, mpi, tcp or directory, found \"%s\"", wanted);
    if (variable("RANK") == NULL && variable("WORLD_SIZE") == NULL)
        return error_set(err, "launch=%s: expected RANK and WORLD_SIZE to be set, found neither", wanted);
    out->kind = tcp ? LAUNCH_TCP : LAUNCH_DIRECTORY;
    return read_ranks(out, err);
}

bool launch_detect(Launch *out, const char *wanted, const char *rendezvous, Error *err) {
    *out = (Launch){.kind = LAUNCH_SINGLE, .world = 1};
    const char *directory = rendezvous[0] != '\0' ? rendezvous : variable("TOKAMAK_RENDEZVOUS");
    if (directory == NULL) directory = "";
    // A truncated name may lack its '\0'. The name is used in messages and to find local ranks: "?" if there is none.
    if (gethostname(out->host, sizeof out->host - 1) != 0) snprintf(out->host, sizeof out->host, "?");
    out->host[sizeof out->host - 1] = '\0';
    if (!set_kind(out, wanted, directory, err)) return false;
    if (out->kind == LAUNCH_MPI) out->rank = out->world = 0;
    if (out->kind == LAUNCH_TCP && !read_address(out, err)) return false;
    if (out->kind == LAUNCH_DIRECTORY && !set_directory(out, directory, err)) return false;
    return out->kind == LAUNCH_SINGLE || read_local_rank(out, err);
}

bool launch_check_mpi(const Launch *launch, Error *err) {
    if (launch->kind != LAUNCH_MPI || launch->world != 1 || launch->started <= 1) return true;
    return error_set(
        err,
        "MPI_Init: expected the %d processes that the launcher started, found 1: this MPI and the launcher do not match "
        "(use srun --mpi=pmix, or the mpirun of this MPI)",
        launch->started);
}
