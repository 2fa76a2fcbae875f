// comm.h: the entry of llmc/ranks: collective operations on the tensors of a group of ranks, one Comm per group. Kinds:
// "none" (one rank: no communication), "mpi" (host memory, the plug-in libllmc_mpi.so), "nccl" (the CUDA plug-in). Beside
// it: launch.h (how the process was started), mesh.h (the axes of ranks), control.h (small data, liveness, the end of a
// run). Rank and world are the group's here. Must not know models, parameters or ZeRO: the caller passes a list of
// segments with their owners.
//
// Contracts:
//   * every rank calls the same operations in the same order, with the same segments; they run in that order, concurrently
//     with the computation;
//   * an operation reads what compute operations issued before it wrote to its tensors. Its tensors, `in` included, must be
//     neither read nor written until the compute stream has waited for its event; the list of segments must stay valid
//     until then too;
//   * tensors are in the memory of the backend that the group was opened for; sums are in fp32 unless said otherwise;
//   * results have the same bits on every rank that receives them and in every run with the same world size. With
//     CommSum.tree they are summed in one fixed binary tree over ranks, ((0+1)+(2+3))+...: neighbours in pairs, then
//     neighbouring sums; an odd one waits for the next level. For world = 2^k this equals 2^k lanes on one rank added in
//     the same tree. mpi always uses the tree;
//   * failures: control.h handles a process that dies or hangs (it ends this process). An error of the library is kept
//     and returned by synchronize; later operations do nothing.
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
    bool tree;        // sum in the fixed tree instead of the library's order
    bool accumulate;  // out += instead of =
    DType wire;       // fp32, or bf16: each rank's contribution is rounded to bf16 before it is sent; sums stay fp32
} CommSum;

// Totals since the group was opened. busy: operations were in progress; exposed: the computation waited for them.
// 1 - exposed / busy is the hidden share. On a GPU: measured with events of completed operations.
typedef struct {
    double busy_seconds, exposed_seconds;
    int64_t operations;
    int64_t bytes;  // that this rank sent
} CommStats;

struct Comm {
    const char *kind;       // "none", "mpi", "nccl"
    char description[128];  // human-readable: "Open MPI 4.1.4, 2 ranks", "NCCL 2.28.3, 8 ranks"
    int rank, world;        // of the group; owners of segments and roots are ranks of the group too
    Backend *be;
    void *impl;

    // in (elems) fp32: this rank's contribution. out (total size of this rank's segments) fp32, packed in segment order,
    // {=, +=} the sum over ranks of these segments; `in` is not changed. In place: out.data = in.data and out has in's
    // shape; then the sums (= only) are written at this rank's segments.
    CommEvent (*reduce_scatter)(Comm *comm, const char *what, Tensor out, Tensor in, const CommSegment *segments,
                                int count, CommSum how);
    // x (elems) of any dtype, in place: every segment = its owner's values.
    CommEvent (*all_gather)(Comm *comm, const char *what, Tensor x, const CommSegment *segments, int count);
    // x fp32 or fp64, in place = the sum over ranks (how.accumulate is ignored; wire bf16 only for fp32).
    CommEvent (*all_reduce)(Comm *comm, const char *what, Tensor x, CommSum how);
    // x of any dtype, in place = rank `root`'s values.
    CommEvent (*broadcast)(Comm *comm, const char *what, Tensor x, int root);
    // Completes when every rank has called it.
    CommEvent (*barrier)(Comm *comm, const char *what);

    // Compute operations issued from now on run after the event (CPU: the caller blocks).
    void (*wait)(Comm *comm, CommEvent event);
    // The caller blocks until all operations are done; false: one failed.
    bool (*synchronize)(Comm *comm, Error *err);
    void (*stats)(Comm *comm, CommStats *out);
    // Thread-safe; for control_set_probe.
    void (*status)(Comm *comm, ControlStatus *out);
    void (*close)(Comm *comm);  // after synchronize; frees the group itself
};

// ---- MPI: a plug-in, so that a process without MPI does not load it ----
typedef struct CommMpi CommMpi;
typedef struct CommOptions CommOptions;
typedef struct {
    int abi;  // COMM_MPI_ABI
    // MPI_Init, once in a process; fills rank, world and local_rank of the launch.
    CommMpi *(*init)(Launch *launch, Error *err);
    bool (*share)(void *mpi, void *bytes, size_t count, Error *err);  // ControlOptions.share; context: the CommMpi
    bool (*comm_open)(Comm **out, CommMpi *mpi, Backend *be, const CommOptions *options, Error *err);
    void (*finalize)(CommMpi *mpi);  // MPI_Finalize: after all groups are closed, in a normal exit only
} CommMpiApi;
#define COMM_MPI_ABI 1
typedef const CommMpiApi *CommMpiEntry(void);  // exported as "comm_mpi_entry"
typedef struct {
    const CommMpiApi *api;
    CommMpi *mpi;  // NULL: MPI is not in use
} CommMpiPlugin;
// Opens libllmc_mpi.so beside the program (or in $TOKAMAK_PLUGIN_DIR), then MPI. Errors: the plug-in was not built (no
// mpicc when `make` ran: scripts/setup.sh --mpi, then make), or MPI's error message.
bool comm_mpi_open(CommMpiPlugin *out, Launch *launch, Error *err);
void comm_mpi_close(CommMpiPlugin *plugin);

// ---- groups ----
struct CommOptions {
    MeshAxis axis;  // the mesh axis of the group's ranks; today every group has all ranks of the launch, in its order
    void *scratch;  // device memory, used by the group until close
    size_t scratch_bytes;
    Control *control;          // nccl: broadcasts the group's id from rank 0; NULL for one rank
    const CommMpiPlugin *mpi;  // kind mpi; else NULL
};
// Bytes of device memory that operations use beyond their operands, part of the memory plan: the size of `scratch` in
// CommOptions. elems: elements of the largest `in` of a reduce_scatter or all_reduce (fp64: counted twice); owned_elems:
// the most that one rank owns of any of them. kind: as Comm.kind. World 1: 0 except for wire bf16 on nccl.
size_t comm_scratch_bytes(const char *kind, int world, int64_t elems, int64_t owned_elems, CommSum how);
// The kind that a backend's ranks use: "none" (world 1), "nccl" (GPUs, the emulated one too), "mpi" (CPU).
const char *comm_kind(const Backend *be, int world);
// kind: the result of comm_kind, or "nccl" for one rank, to measure its cost. Errors: several CPU ranks that were not
// started by MPI (use mpirun), NCCL not found (with the names that were tried), errors of the library.
bool comm_open(Comm **out, const char *kind, Backend *be, const CommOptions *options, Error *err);

#ifdef __cplusplus
}
#endif
#endif
