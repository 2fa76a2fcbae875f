// command_plan.c: train_gpt plan: the memory of a run before it starts, and with world=N its speed on N ranks.
#include <string.h>

#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/plan/scaling.h"
#include "llmc/run/run.h"

int command_plan(int argc, char **argv) {
    RunConfig config;
    Error err = {""};
    ScalingOptions scaling = {0};
    if (!scaling_take_options(&scaling, &argc, argv, &err)) {
        fprintf(stderr, "train_gpt plan: %s\n", err.message);
        return 2;
    }
    int status = command_read_config(&config, "plan", argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    Tokenizer *tokenizer = NULL;
    Schedule schedule;
    const int world = (int)max_i64(scaling.world, 1);
    const bool lanes = config.deterministic == DETERMINISTIC_LANES;
    bool ok = run_find_tokenizer(&tokenizer, &config, &err) && run_resolve_model(&config, tokenizer, &err) &&
              schedule_build(&schedule, &config, world, &err) &&
              partition_check(&(PartitionOptions){.data.world = world, .lanes = lanes}, &err);
    tokenizer_free(tokenizer);
    if (!ok) return command_fail(&err);
    char note[DEVICE_NOTE_BYTES];
    // A plan for a GPU works on a machine without one.
    const bool for_gpu = scaling.gpu[0] != '\0' && strcmp(scaling.gpu, "cpu") != 0;
    if (for_gpu && strcmp(config.device, "auto") == 0) snprintf(config.device, sizeof config.device, "cuda");
    Backend *be = device_open_for(&config, 0, 0, note, sizeof note, &err);
    bool elsewhere = be == NULL && strcmp(config.device, "cuda") == 0;
    if (be == NULL && !elsewhere) return command_fail(&err);
    const char *comm = be != NULL ? comm_kind(be, world) : "nccl";
    PlanRank rank = world > 1 ? plan_fullest_rank(&config, world, comm) : PLAN_ALONE;
    MemoryPlan plan;
    plan_compute(&plan, &config, &schedule, rank, be);
    size_t available = elsewhere ? 0 : be->memory_free(be);
    if (note[0] != '\0') printf("%s\n", note);
    if (elsewhere) printf("planned for a GPU of another machine: %s\n", err.message);
    else printf("%s\n", be->description);
    if (world > 1) printf("rank %d of %d, zero=%d: the one that needs most\n", rank.data.rank, world, (int)config.zero);
    plan_print(stdout, &plan, &config, available);
    bool fits = available == 0 || plan.device_bytes <= available;
    if (!fits) {
        char options[600];
        plan_suggest(options, sizeof options, &config, &schedule, rank, be, available);
        printf("what would fit: %s\n", options);
    }
    const bool on_cpu = be != NULL && be->shares_host_memory;
    if (be != NULL) be->close(be);
    if (scaling.world == 0) return fits ? 0 : 1;
    if (scaling.gpu[0] == '\0') snprintf(scaling.gpu, sizeof scaling.gpu, "%s", on_cpu ? "cpu" : "h100");
    printf("\n");
    return scaling_print(stdout, &config, &scaling, &err) ? 0 : command_fail(&err);
}
