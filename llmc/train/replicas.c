// replicas.c: see replicas.h.
#include "llmc/train/replicas.h"

#include <stdio.h>
#include <stdlib.h>

int replicas_judge(bool *odd, const uint64_t *hashes, int launch_world) {
    // The candidate of a majority vote (Boyer & Moore 1981), then its votes.
    uint64_t candidate = 0;
    int lead = 0, votes = 0, count = 0;
    for (int rank = 0; rank < launch_world; ++rank) {
        if (lead == 0) candidate = hashes[rank];
        lead += hashes[rank] == candidate ? 1 : -1;
    }
    for (int rank = 0; rank < launch_world; ++rank) votes += hashes[rank] == candidate;
    for (int rank = 0; rank < launch_world; ++rank) {
        odd[rank] = 2 * votes <= launch_world || hashes[rank] != candidate;
        count += odd[rank];
    }
    return count;
}

#define RANKS_NAMED 8
// "rank 2 (node3, pid 4711) and rank 5 (node4, pid 12)"
static void name_ranks(const HashChain *chain, const bool *odd, int count, char *out, size_t bytes) {
    int named = 0;
    size_t used = 0;
    out[0] = '\0';
    for (int rank = 0; rank < chain->options.launch_world && named < RANKS_NAMED; ++rank) {
        if (!odd[rank]) continue;
        char name[128];
        control_describe_rank(chain->options.control, rank, name, sizeof name);
        const char *between = named == 0 ? "" : named == count - 1 ? " and " : ", ";
        used += (size_t)snprintf(out + used, bytes - used, "%s%s", between, name);
        CHECK(used < bytes, "%d ranks take %zu bytes", count, used);
        ++named;
    }
    if (named < count) snprintf(out + used, bytes - used, " and %d more", count - named);
}

static bool report_drift(const HashChain *chain, int64_t step, const bool *odd, int count, Error *err) {
    char names[RANKS_NAMED * 136], since[64] = "this was the first comparison";
    name_ranks(chain, odd, count, names, sizeof names);
    if (chain->agreed > 0) snprintf(since, sizeof since, "they were the same at step %lld", (long long)chain->agreed);
    const char *advice = "Resume from an earlier checkpoint, and check that machine's memory and program version";
    if (count == chain->options.launch_world)
        return error_set(err, "step %lld: the ranks have drifted apart: the weights of %s differ, and no majority "
                              "agrees; %s. %s", (long long)step, names, since, advice);
    return error_set(err, "step %lld: %s %s drifted: %s weights are not those of the other %d ranks; %s. %s",
                     (long long)step, names, count == 1 ? "has" : "have", count == 1 ? "its" : "their",
                     chain->options.launch_world - count, since, advice);
}

bool replicas_compare(HashChain *chain, int64_t step, const Model *model, Error *err) {
    int world = chain->options.launch_world;
    if (!is_due(step, chain->options.compare_every) || world == 1 || model->part.options.stage == 3) return true;
    Backend *be = chain->be;
    const size_t elem_bytes = dtype_bytes(model->shape.dtype);
    be->zero(be, chain->device, sizeof *chain->device);
    for (int i = 0; i < model->params.count; ++i) {
        const ParamSpec *spec = &model->params.spec[i];
        void *values = (unsigned char *)model->weights + to_size(spec->offset) * elem_bytes;
        be->hash_sum(be, chain->device, tensor_1d(values, model->shape.dtype, spec->elems), spec->offset, true);
    }
    const DownloadPiece sum = {chain->host, chain->device, sizeof *chain->host};
    if (!be->wait(be, be->download_begin(be, &sum, 1), err)) return false;
    uint64_t *hashes = xcalloc((size_t)world, sizeof *hashes);
    bool *odd = xcalloc((size_t)world, sizeof *odd);
    bool ok = control_gather(chain->options.control, "replicas' weights", hashes, chain->host, sizeof *hashes) ||
              error_set(err, "comparing replicas: the ranks are no longer connected: the run is ending");
    int count = ok ? replicas_judge(odd, hashes, world) : 0;
    if (count > 0) ok = report_drift(chain, step, odd, count, err);
    free(hashes);
    free(odd);
    if (ok) chain->agreed = step;
    return ok;
}
