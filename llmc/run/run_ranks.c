// run_ranks.c: agreements among the ranks of a run: their ranks and hosts, equal options, the mesh, errors, the checkpoint
// to resume from. Declared in run_impl.h.
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/base/rng.h"
#include "llmc/run/run_impl.h"

bool run_open_ranks(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    Launch *launch = &run->launch;
    if (!launch_detect(launch, config->launch, config->rendezvous, err)) return false;
    if (launch->kind == LAUNCH_MPI && !comm_mpi_open(&run->mpi, launch, err)) return false;
    if (!launch_check_mpi(launch, err)) return false;
    run->local_world = 1;
    if (launch->world == 1) return true;
    ControlOptions options = {.timeout_seconds = config->comm_timeout};
    if (launch->kind == LAUNCH_MPI) {
        options.share = run->mpi.api->share;
        options.share_context = run->mpi.mpi;
    }
    if (!control_open(&run->control, launch, &options, err)) return false;
    char(*hosts)[LAUNCH_HOST_BYTES] = xcalloc((size_t)launch->world, sizeof *hosts);
    bool ok = control_gather(run->control, "hosts", hosts, launch->host, sizeof *hosts);
    run->local_world = launch->local_rank = 0;
    for (int r = 0; r < launch->world; ++r) {
        if (strncmp(hosts[r], launch->host, sizeof *hosts) != 0) continue;
        ++run->local_world;
        if (r < launch->rank) ++launch->local_rank;
    }
    free(hosts);
    return ok;
}

bool run_same_config(const Run *run, Error *err) {
    if (run->control == NULL) return true;
    char *json = config_to_json(&run->config);
    uint64_t mine = rng_hash(json), *all = xcalloc((size_t)run->launch.world, sizeof *all);
    free(json);
    bool ok = control_gather(run->control, "options", all, &mine, sizeof mine);
    char rank[128];
    for (int r = 1; r < run->launch.world && ok; ++r) {
        if (all[r] == all[0]) continue;
        control_describe_rank(run->control, r, rank, sizeof rank);
        ok = error_set(err, "%s was started with other options than rank 0: give every rank the same command and run "
                            "file", rank);
    }
    free(all);
    return ok;
}

// Ranks of one host share its cores, unless the launcher has bound each to its own.
int run_threads_of_rank(const Run *run) {
    cpu_set_t mine;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (run->local_world == 1 || sched_getaffinity(0, sizeof mine, &mine) != 0 || CPU_COUNT(&mine) < cores) return 0;
    return (int)max_i64(1, cores / run->local_world);
}

static void probe_comm(void *context, ControlStatus *out) {
    Comm *comm = context;
    comm->status(comm, out);
}

void run_watch_comm(Run *run) { control_set_probe(run->control, probe_comm, run->mesh.data.comm); }

bool run_open_mesh(Run *run, Error *err) {
    // There is no option for the other axes yet.
    const MeshShape shape = {.expert = 1, .context = 1, .tensor = 1};
    if (!mesh_init(&run->mesh, &shape, run->launch.rank, run->launch.world, err)) return false;
    if (!mesh_check_data_only(&run->mesh, err)) return false;
    PartitionOptions ranks = {.data = run->mesh.data.axis,
                              .lanes = run->config.deterministic == DETERMINISTIC_LANES};
    if (!partition_check(&ranks, err)) return false;
    return !ranks.lanes || run->config.reduce_dtype == DTYPE_F32 ||
           error_set(err, "deterministic=lanes: expected reduce_dtype=fp32, found bf16: only gradients that are sent "
                          "between ranks would be rounded, so results would depend on the number of ranks");
}

// ---------------------------------------------------------------------------------------------------------------
// Agreements

bool run_agree(Run *run, const char *what, bool ok, Error *err) {
    if (run->control == NULL) return ok;
    double failed = ok ? 0 : run->launch.world - run->launch.rank;
    if (!control_reduce(run->control, what, NULL, 0, &failed, 1)) return false;
    if (failed == 0) return true;
    run->all_know = true;
    if (ok || run->launch.world - run->launch.rank != (int)failed) err->message[0] = '\0';
    return false;
}

bool run_choose_checkpoint(Run *run, const char *resume, char *out, size_t out_bytes, Error *err) {
    const RunConfig *config = &run->config;
    memset(out, 0, out_bytes);
    bool ok = true;
    if (run->launch.rank == 0) {
        char *skipped = NULL, *newest = NULL;
        bool automatic = strcmp(resume, "auto") == 0, never = strcmp(resume, "never") == 0;
        if (automatic || never) newest = checkpoint_newest(config->out_dir, &skipped);
        else if (checkpoint_verify(resume, true, err)) newest = xstrdup(resume);
        else ok = false;
        if (skipped != NULL) fprintf(stderr, "skipped: %s\n", skipped);
        if (never && newest != NULL)
            ok = error_set(err, "%s already has %s and resume=never: choose another out_dir, or set resume=auto to "
                                "resume from it", config->out_dir, newest);
        if (newest != NULL) snprintf(out, out_bytes, "%s", newest);
        free(skipped);
        free(newest);
    }
    return run_agree(run, "choose the checkpoint", ok, err) &&
           control_broadcast(run->control, "checkpoint to resume from", out, out_bytes);
}
