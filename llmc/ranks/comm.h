// comm.h: what the ranks of a run do together with tensors. One struct per group of ranks; implementations: none (one
// rank: everything is a no-op), mpi (host memory, the plug-in libllmc_mpi.so), nccl (the CUDA plug-in). Knows nothing
// of models, parameters or ZeRO; partition.h says which elements belong to whom. Rank and world are the group's here.
//
// Contracts:
//   * every rank calls the same operations in the same order, with the same segments; they run in that order beside
//     the computation;
//   * an operation sees what compute operations issued before it leave in its tensors, and its tensors must not be
//     touched until the compute stream has waited for its event (or, for reads of `in`, likewise); the list of
//     segments stays until then too;
//   * tensors are in the memory of the backend that the group was opened for; fp32 sums unless said otherwise;
//   * results have the same bits on every rank that receives them and in every run with the same world; with
//     CommSum.tree they are sums in one fixed binary tree over ranks, ((0+1)+(2+3))+... (neighbours in pairs, then
//     neighbouring sums; an odd one waits for the next level), which for world = 2^k is what 2^k lanes on one rank
//     give when they are added in the same tree. mpi always sums so;
//   * failures: a process that dies or hangs is control.h's business (it ends this process); an error of the library
//     is kept and returned by synchronize, and later operations do nothing.
#ifndef LLMC_COMM_H
#define LLMC_COMM_H

#include "llmc/backend/backend.h"
#include "llmc/base/mesh_axis.h"
#include "llmc/base/segment.h"
#include "llmc/ranks/control.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct Comm Comm;
// An operation that was issued; 0: nothing to wait for.
typedef int64_t CommEvent;


typedef struct {
    bool tree;        // sum in the fixed tree, whatever the library would do
    bool accumulate;  // out += instead of =
    DType wire;       // fp32, or bf16: each rank's contribution is rounded to bf16 before it travels; sums stay fp32
} CommSum;

// Since the group was opened. busy: operations were in progress; exposed: the computation waited for them.
// 1 - exposed / busy is the share that was hidden. On a GPU: measured by events of operations that have passed.
typedef struct {
    double busy_seconds, exposed_seconds;
    int64_t operations;
    int64_t bytes;  // that this rank sent
} CommStats;

struct Comm {
    const char *kind;       // "none", "mpi", "nccl"
    char description[128];  // for people: "Open MPI 4.1.4, 2 ranks", "NCCL 2.28.3, 8 ranks"
    int rank, world;        // of the group; owners of segments and roots count so too
    Backend *be;
    void *impl;

    // in fp32 (elems): each rank's contribution. out (total of own segments) fp32, packed in segment order, {=, +=}
    // the sum over ranks of this rank's own segments; `in` is left as it was. out.data may instead be in.data: then
    // the sums (= only) are written in place at the own segments, and out's shape is in's.
    CommEvent (*reduce_scatter)(Comm *comm, const char *what, Tensor out, Tensor in, const CommSegment *segments,
                                int count, CommSum how);
    // x (elems, any dtype), in place: every segment as its owner has it.
    CommEvent (*all_gather)(Comm *comm, const char *what, Tensor x, const CommSegment *segments, int count);
    // x fp32 or fp64, in place: the sum over ranks (accumulate is not used; wire bf16 only for fp32).
    CommEvent (*all_reduce)(Comm *comm, const char *what, Tensor x, CommSum how);
    // x any dtype: as rank `root` has it.
    CommEvent (*broadcast)(Comm *comm, const char *what, Tensor x, int root);
    // Passes when every rank has come here.
    CommEvent (*barrier)(Comm *comm, const char *what);

    // Compute operations issued from now on come after the event (CPU: the caller waits).
    void (*wait)(Comm *comm, CommEvent event);
    // The caller waits for everything; false: an operation failed.
    bool (*synchronize)(Comm *comm, Error *err);
    void (*stats)(Comm *comm, CommStats *out);
    // Thread-safe; for control_set_probe.
    void (*status)(Comm *comm, ControlStatus *out);
    void (*close)(Comm *comm);  // after synchronize; frees the group itself
};

// ---- MPI: a plug-in, so that a process that needs none starts without it ----
typedef struct CommMpi CommMpi;
typedef struct CommOptions CommOptions;
typedef struct {
    int abi;  // COMM_MPI_ABI
    // MPI_Init, once in a process; fills rank, world and local_rank of the launch.
    CommMpi *(*init)(Launch *launch, Error *err);
    bool (*share)(void *mpi, void *bytes, size_t count, Error *err);  // ControlOptions.share; context: the CommMpi
    bool (*comm_open)(Comm **out, CommMpi *mpi, Backend *be, const CommOptions *options, Error *err);
    void (*finalize)(CommMpi *mpi);  // MPI_Finalize: after all groups are closed, in orderly exits only
} CommMpiApi;
#define COMM_MPI_ABI 1
typedef const CommMpiApi *CommMpiEntry(void);  // exported as "comm_mpi_entry"
typedef struct {
    void *library;
    const CommMpiApi *api;
    CommMpi *mpi;  // NULL: MPI is not in use
} CommMpiPlugin;
// Opens libllmc_mpi.so beside the program ($TOKAMAK_PLUGIN_DIR: elsewhere), then MPI. Errors: the plug-in was not
// built (no mpicc when `make` ran: scripts/setup.sh --mpi, then make), or MPI's own words.
bool comm_mpi_open(CommMpiPlugin *out, Launch *launch, Error *err);
void comm_mpi_close(CommMpiPlugin *plugin);

// ---- groups ----
struct CommOptions {
    MeshAxis axis;  // along which the group's ranks lie; today every group has all ranks of the launch, in its order
    void *scratch;  // device memory, the group's until close
    size_t scratch_bytes;
    Control *control;          // nccl: hands the group's id from rank 0 to all; NULL for one rank
    const CommMpiPlugin *mpi;  // mpi; else NULL
};
// Device memory that operations use beyond their operands, planned with the run: the size that comm_open wants as
// `scratch`. elems: of the largest `in` of a reduce_scatter or all_reduce, of fp64 counted twice; owned_elems: the
// most that one rank owns of any of them. kind as in Comm.kind; world 1: 0 for every kind but for wire bf16 on nccl.
size_t comm_scratch_bytes(const char *kind, int world, int64_t elems, int64_t owned_elems, CommSum how);
// The kind that a backend's ranks use: "none" (world 1), "nccl" (GPUs, the emulated one too), "mpi" (CPU).
const char *comm_kind(const Backend *be, int world);
// kind: as comm_kind says, or "nccl" for one rank too, to measure what it costs. Errors: several CPU ranks that were
// not started by MPI (use mpirun), NCCL that is not found (the names that were tried), the library's own.
bool comm_open(Comm **out, const char *kind, Backend *be, const CommOptions *options, Error *err);

#ifdef __cplusplus
}
#endif
#endif
