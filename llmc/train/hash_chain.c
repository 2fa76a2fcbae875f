// hash_chain.c: see hash_chain.h.
#include "llmc/train/hash_chain.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "llmc/base/jsonl_file.h"
#include "llmc/train/state_kinds.h"

enum { SUM_WEIGHTS, SUM_OPTIMIZER, DEVICE_SUMS };

static void append_line(HashChain *chain, const char *line, size_t bytes) {
    if (chain->file < 0 || jsonl_file_append(chain->file, line, bytes) || chain->failed) return;
    chain->failed = true;
    fprintf(stderr, "warning: %s: cannot write %s.jsonl: %s; training continues\n", chain->options.out_dir,
            HASH_FILE_NAME, strerror(errno));
}

// A resumed file keeps its first line.
static bool open_file(HashChain *chain, int64_t resume_step, Error *err) {
    struct stat info;
    char line[HASH_LINK_BYTES];
    if (!jsonl_file_open(&chain->file, chain->options.out_dir, HASH_FILE_NAME, FORMAT_HASHES, resume_step, err))
        return false;
    if (fstat(chain->file, &info) == 0 && info.st_size == 0) append_line(chain, line, hash_header_format(line));
    return true;
}

bool hash_chain_resume(HashChain *chain, const RunProgress *progress, Error *err) {
    chain->chain = progress->chain;
    chain->since = progress->chain_step;
    chain->data = chain->options.launch_rank == 0 ? progress->chain_data : 0;
    chain->agreed = 0;
    if (chain->options.launch_rank != 0 || chain->options.every == 0) return true;
    if (chain->file >= 0) close(chain->file);
    return open_file(chain, progress->step, err);
}

bool hash_chain_open(HashChain *chain, Backend *be, const HashChainOptions *options, const RunProgress *progress,
                     Error *err) {
    CHECK(options->launch_world > 0 && options->launch_rank >= 0 && options->launch_rank < options->launch_world,
          "rank=%d world=%d", options->launch_rank, options->launch_world);
    CHECK(mesh_axis_is_valid(options->data), "data: rank=%d world=%d", options->data.rank, options->data.world);
    *chain = (HashChain){.options = *options, .be = be, .file = -1};
    chain->options.out_dir = xstrdup(options->out_dir);
    if (options->every > 0 || (options->compare_every > 0 && options->launch_world > 1)) {
        chain->all = xcalloc((size_t)options->launch_world, sizeof *chain->all);
        chain->device = be->alloc(be, DEVICE_SUMS * sizeof(uint64_t), err);
        if (chain->device != NULL) chain->host = be->host_alloc(be, DEVICE_SUMS * sizeof(uint64_t), err);
        if (chain->host == NULL) return false;
    }
    return hash_chain_resume(chain, progress, err);
}

void hash_chain_close(HashChain *chain) {
    if (chain->file >= 0 && chain->be != NULL) close(chain->file);
    if (chain->host != NULL) chain->be->host_free(chain->be, chain->host);
    if (chain->device != NULL) chain->be->free(chain->be, chain->device, DEVICE_SUMS * sizeof(uint64_t));
    free(chain->all);
    free((char *)chain->options.out_dir);
    *chain = (HashChain){.file = -1};
}

// ---- data ----

static uint64_t hash_row(int64_t step, const Batch *batch, int64_t row) {
    const int64_t place[4] = {step, batch->source[row], batch->row_index[row], batch->T}, at = row * batch->T;
    const size_t tokens = to_size(batch->T);
    uint64_t hash = XXH3_64bits(place, sizeof place);
    hash = XXH3_64bits_withSeed(batch->tokens + at, tokens * sizeof *batch->tokens, hash);
    hash = XXH3_64bits_withSeed(batch->targets + at, tokens * sizeof *batch->targets, hash);
    hash = XXH3_64bits_withSeed(batch->weights + at, tokens * sizeof *batch->weights, hash);
    if (batch->doc != NULL) hash = XXH3_64bits_withSeed(batch->doc + at, tokens * sizeof *batch->doc, hash);
    if (batch->prefix != NULL) hash = XXH3_64bits_withSeed(batch->prefix + at, tokens * sizeof *batch->prefix, hash);
    return hash;
}

void hash_chain_add_batch(HashChain *chain, int64_t step, const Batch *batch) {
    if (chain->options.every == 0) return;
    for (int64_t row = 0; row < batch->B; ++row)
        if (batch->row_index[row] >= 0) chain->data += hash_row(step, batch, row);
}

// ---- device state ----

static bool read_sums(const HashChain *chain, Error *err) {
    Backend *be = chain->be;
    const DownloadPiece sums = {chain->host, chain->device, DEVICE_SUMS * sizeof(uint64_t)};
    return be->wait(be, be->download_begin(be, &sums, 1), err);
}

// Stage 0: every rank has the whole piece, so each hashes its share of it.
static void hash_piece(const HashChain *chain, const Model *model, const Optimizer *opt, const Piece *piece) {
    Backend *be = chain->be;
    const int64_t rank = chain->options.data.rank, world = chain->options.data.world;
    bool replicated = model->part.options.stage == 0;
    int64_t first = replicated ? piece->count * rank / world : 0;
    int64_t count = (replicated ? piece->count * (rank + 1) / world : piece->count) - first;
    int64_t place = model->params.spec[piece->param].offset + piece->first + first;
    float *master = model_master(model, piece);
    Tensor value = master != NULL ? tensor_1d(master + first, DTYPE_F32, count)
                                  : tensor_1d((uint16_t *)model_weight(model, piece) + first, DTYPE_BF16, count);
    be->hash_sum(be, &chain->device[SUM_WEIGHTS], value, place, true);
    uint64_t *optimizer = &chain->device[SUM_OPTIMIZER];
    const StateKept kept = state_kept_by(model);
    for (int kind = 0; kind < STATE_KINDS; ++kind) {
        const StateKindRow *row = &STATE_ROWS[kind];
        if (row->is_weight || !row->kept(&kept, &model->params.spec[piece->param])) continue;
        unsigned char *state = row->address(model, opt, piece);
        be->hash_sum(be, optimizer, tensor_1d(state + to_size(first) * dtype_bytes(row->dtype), row->dtype, count),
                     row->hash_place + place, true);
    }
}

static bool combine(const HashChain *chain, const char *what, HashSums *total, const HashSums *mine, Error *err) {
    if (!control_gather(chain->options.control, what, chain->all, mine, sizeof *mine))
        return error_set(err, "%s: the ranks are no longer connected: the run is ending", what);
    *total = (HashSums){0};
    for (int rank = 0; rank < chain->options.launch_world; ++rank) {
        total->data += chain->all[rank].data;
        total->weights += chain->all[rank].weights;
        total->optimizer += chain->all[rank].optimizer;
    }
    return true;
}

static void append(HashChain *chain, const HashLink *link) {
    char line[HASH_LINK_BYTES];
    append_line(chain, line, hash_link_format(line, link));
}

bool hash_chain_link(HashChain *chain, int64_t step, const Model *model, const Optimizer *opt, Error *err) {
    if (!is_due(step, chain->options.every)) return true;
    CHECK(step > chain->since, "step %lld after the link of step %lld", (long long)step, (long long)chain->since);
    chain->be->zero(chain->be, chain->device, DEVICE_SUMS * sizeof(uint64_t));
    for (int i = 0; i < model->part.pieces; ++i) hash_piece(chain, model, opt, &model->part.piece[i]);
    if (!read_sums(chain, err)) return false;
    const HashSums mine = {chain->data, chain->host[SUM_WEIGHTS], chain->host[SUM_OPTIMIZER]};
    HashSums total = {0};
    if (!combine(chain, "hash chain", &total, &mine, err)) return false;
    HashLink link = {.step = step, .since = chain->since, .data = total.data, .weights = total.weights,
                     .optimizer = total.optimizer};
    link.chain = hash_link_chain(chain->chain, &link);
    append(chain, &link);
    chain->chain = link.chain;
    chain->since = step;
    chain->data = 0;
    return true;
}

bool hash_chain_save(HashChain *chain, RunProgress *progress, Error *err) {
    HashSums total = {0};
    // No link covers these steps: a later chain begins after them.
    if (chain->options.every == 0) chain->since = progress->step;
    else if (!combine(chain, "hash chain's data", &total, &(HashSums){.data = chain->data}, err)) return false;
    progress->chain = chain->chain;
    progress->chain_step = chain->since;
    progress->chain_data = total.data;
    return true;
}
