// plan.h: every byte of a run before anything is allocated, from the same layout calls that training makes.
#ifndef LLMC_PLAN_H
#define LLMC_PLAN_H

#include <stdio.h>

#include "llmc/config/schedule.h"
#include "llmc/train/optimizer.h"

typedef struct {
    Arena arena;             // a measuring arena: total and per-tag bytes of device memory
    size_t workspace_bytes;  // what operations keep beyond their operands (packing buffers)
    size_t loader_bytes;     // host: two prefetched steps and one held-out batch
    size_t transfer_bytes;   // host: batches on their way to the device
    size_t staging_bytes;    // host: what passes through on the way to a checkpoint
    size_t snapshot_bytes;   // host: the copy that checkpoints are written from
    size_t program_bytes;    // code, libraries and stacks of the process, an estimate
    size_t total_bytes;
    size_t device_bytes;  // of them on the device: all, or on a GPU the arena and the workspaces
} MemoryPlan;

// Rows of logits that are alive at a time: the option, or as many as keep them within PLAN_LOGITS_BYTES.
#define PLAN_LOGITS_BYTES ((int64_t)256 << 20)
int64_t plan_loss_chunk_rows(const RunConfig *config, int64_t rows);
int64_t plan_fitting_chunk_rows(int64_t Vp, DType dtype, int64_t rows);
// Which of the data axis's ranks the memory is for, and how these communicate (Comm.kind).
typedef struct {
    MeshAxis data;
    const char *comm;
} PlanRank;
static const PlanRank PLAN_ALONE = {{0, 1}, "none"};
// The rank that needs the most of `data_world`.
PlanRank plan_fullest_rank(const RunConfig *config, int data_world, const char *comm);

// Shapes of the run's largest micro-batch.
ModelShape plan_model_shape(const RunConfig *config, const Schedule *schedule, PlanRank rank);

// The models of a run, which share one arena. The first is the student: it is trained and has the optimizer. Teachers
// only compute (shape.training false).
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
// Those of a run: today the student alone.
PlanModels plan_models(const RunConfig *config, const Schedule *schedule, PlanRank rank);

// The one layout: on a measuring arena (be NULL) it is the plan, on a real one it is the run. models [list->count] =;
// comm_scratch =, for CommOptions.
void plan_layout(Model *models, Optimizer *optimizer, Tensor *comm_scratch, const PlanModels *list,
                 const RunConfig *config, PlanRank rank, Backend *be, Arena *arena);
// be is only asked for its workspace; NULL: a GPU that is not here. schedule: built for rank.data.world. Nothing is allocated.
void plan_compute(MemoryPlan *plan, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be);
void plan_print(FILE *out, const MemoryPlan *plan, const RunConfig *config, size_t available_bytes);
// The options that would make the run fit into available_bytes of the device, each with what it then takes:
// "recompute=norm_act (812.0 MiB), or batch_rows=4 (701.5 MiB)". When none of them is enough: says so.
void plan_suggest(char *out, size_t out_bytes, const RunConfig *config, const Schedule *schedule, PlanRank rank,
                  const Backend *be, size_t available_bytes);
#endif
