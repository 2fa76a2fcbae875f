// plan.h, entry of this room: counts every byte of a run before anything is allocated, with the layout calls that training
// makes. work.h counts operations, scaling.h predicts time and memory on other machines.
// Must not know: the training loop, commands, a kernel of a backend.
#ifndef LLMC_PLAN_H
#define LLMC_PLAN_H

#include <stdio.h>

#include "llmc/config/schedule.h"
#include "llmc/train/optimizer.h"

typedef struct {
    Arena arena;             // a measuring arena: total and per-tag bytes of device memory
    size_t workspace_bytes;  // workspaces of operations (packing buffers)
    size_t loader_bytes;     // host: two prefetched steps and one held-out batch
    size_t transfer_bytes;   // host: buffers for the transfer of batches to the device
    size_t staging_bytes;    // host: buffers through which a checkpoint is written
    size_t snapshot_bytes;   // host: the snapshot from which checkpoints are written
    size_t program_bytes;    // code, libraries and stacks of the process, an estimate
    size_t total_bytes;
    size_t device_bytes;  // part of the total on the device: all of it; on a GPU the arena and the workspaces
} MemoryPlan;

// Rows of logits in memory at a time: the option, or as many as fit into PLAN_LOGITS_BYTES.
#define PLAN_LOGITS_BYTES ((int64_t)256 << 20)
int64_t plan_loss_chunk_rows(const RunConfig *config, int64_t rows);
int64_t plan_fitting_chunk_rows(int64_t Vp, DType dtype, int64_t rows);
// The rank of the data axis whose memory is counted, and the kind of communication (Comm.kind).
typedef struct {
    MeshAxis data;
    const char *comm;
} PlanRank;
static const PlanRank PLAN_ALONE = {{0, 1}, "none"};
// The rank with the most memory, of data_world ranks.
PlanRank plan_fullest_rank(const RunConfig *config, int data_world, const char *comm);

// The model's shape for the run's largest micro-batch.
ModelShape plan_model_shape(const RunConfig *config, const Schedule *schedule, PlanRank rank);

// The models of a run, which share one arena. The first is the student, which is trained and has the optimizer. Teachers
// run forward only (shape.training false).
typedef enum { PLAN_STUDENT, PLAN_TEACHER } PlanRole;
typedef struct {
    PlanRole role;
    ModelConfig config;
    ModelShape shape;
} PlanModel;
#define PLAN_MAX_MODELS 4
typedef struct {
    PlanModel model[PLAN_MAX_MODELS];
    int count;
} PlanModels;
// The list of a run: today only the student.
PlanModels plan_models(const RunConfig *config, const Schedule *schedule, PlanRank rank);

// Allocates all device memory of a run: for the plan on a measuring arena (be NULL), for training on a real one.
// models [list->count] =; comm_scratch =, for CommOptions.
void plan_layout(Model *models, Optimizer *optimizer, Tensor *comm_scratch, const PlanModels *list,
                 const RunConfig *config, PlanRank rank, Backend *be, Arena *arena);
// The largest operands of a model's operations in any phase: of a trained model those of both passes and the update, of a
// teacher those of the forward pass. model: as plan_layout makes it.
WorkspaceShape plan_workspace_bounds(const RunConfig *config, const Schedule *schedule, const Model *model);
// be only reports its workspace; NULL: a GPU that this machine does not have. schedule: built for rank.data.world. Allocates
// nothing.
void plan_compute(MemoryPlan *plan, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be);
void plan_print(FILE *out, const MemoryPlan *plan, const RunConfig *config, size_t available_bytes);
// out = options with which the run fits into available_bytes of the device, each with the bytes that it then takes:
// "recompute=norm_act (812.0 MiB), or batch_rows=4 (701.5 MiB)"; if none fits, a sentence that says so.
void plan_suggest(char *out, size_t out_bytes, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be, size_t available_bytes);
#endif
