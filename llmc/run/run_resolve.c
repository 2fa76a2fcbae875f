// run_resolve.c: finds the tokenizer and the vocabulary if the config does not set them; checks that model, schedule and
// device fit together. Declared in run.h and run_impl.h.
#include <glob.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/loader/shard.h"
#include "llmc/run/run_impl.h"

// tokenizer.json in the directory of a glob's first shard; NULL: there is none.
static char *tokenizer_beside(const char *pattern) {
    glob_t found;
    char *path = NULL;
    if (glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0) {
        const char *slash = strrchr(found.gl_pathv[0], '/');
        int dir_length = slash == NULL ? 1 : (int)(slash - found.gl_pathv[0]);
        path = xasprintf("%.*s/tokenizer.json", dir_length, slash == NULL ? "." : found.gl_pathv[0]);
    }
    globfree(&found);
    if (path != NULL && file_exists(path)) return path;
    free(path);
    return NULL;
}

bool run_find_tokenizer(Tokenizer **out, const RunConfig *config, Error *err) {
    *out = NULL;
    char *path = NULL;
    if (config->tokenizer[0] != '\0') {
        path = xstrdup(config->tokenizer);
    } else if (config->init_from[0] != '\0') {
        path = path_join(config->init_from, "tokenizer.json");
        if (!file_exists(path)) {
            free(path);
            path = NULL;
        }
    }
    if (path == NULL && config->source_count > 0) path = tokenizer_beside(config->source[0].train);
    if (path == NULL) return true;
    *out = tokenizer_load(path, err);
    free(path);
    return *out != NULL;
}

// The vocabulary stated by the run's first shard; 0: not stated (llm.c's format), or the run has no shards.
static bool shard_vocab(int64_t *out, const RunConfig *config, Error *err) {
    *out = 0;
    const char *pattern = config->source_count > 0 ? config->source[0].train : "";
    if (pattern[0] == '\0') return true;
    glob_t found;
    if (glob(pattern, 0, NULL, &found) != 0)
        return error_set(err, "train=%s: expected token shards, found no file of that name", pattern);
    Shard shard;
    bool ok = shard_open(&shard, found.gl_pathv[0], err);
    if (ok) *out = shard.vocab;
    if (ok) shard_close(&shard);
    globfree(&found);
    return ok;
}

bool run_resolve_model(RunConfig *config, const Tokenizer *tokenizer, Error *err) {
    ModelConfig *arch = &config->arch;
    if (arch->V == 0 && tokenizer != NULL) arch->V = tokenizer_vocab(tokenizer);
    if (arch->V == 0 && !shard_vocab(&arch->V, config, err)) return false;
    if (arch->V == 0) arch->V = config->preset_vocab;
    if (arch->V == 0)
        return error_set(
            err,
            "the vocabulary is unknown: expected vocab=N, tokenizer=PATH, a tokenizer.json beside the training "
            "shards (train=%s) or shards that state it",
            config->source_count > 0 ? config->source[0].train : "");
    arch->Vp = 0;
    if (!model_config_finish(arch, err)) return false;
    if (tokenizer != NULL && tokenizer_vocab(tokenizer) > arch->V)
        return error_set(
            err, "the tokenizer \"%s\" has %d ids but the model's vocabulary is %lld: set vocab=%d or omit vocab",
            tokenizer_name(tokenizer), tokenizer_vocab(tokenizer), (long long)arch->V, tokenizer_vocab(tokenizer));
    return true;
}

bool run_check_lengths(const RunConfig *config, const Schedule *schedule, Error *err) {
    for (int i = 0; i < schedule->phase_count; ++i)
        if (config->arch.position == POSITION_LEARNED && schedule->phase[i].T > config->arch.max_seq_len)
            return error_set(err, "seq_len=%lld is longer than the model's learned positions, max_seq_len=%lld",
                             (long long)schedule->phase[i].T, (long long)config->arch.max_seq_len);
    return true;
}

bool run_check_fp8(const RunConfig *config, const Backend *be, Error *err) {
    if (!config->fp8) return true;
    const ModelConfig *arch = &config->arch;
    if (!be->matmul_fp8)
        return error_set(err, "fp8=true: expected a GPU with 8-bit floats (compute capability 8.9 or later: L4, RTX "
                              "4090, H100), found %s", be->description);
    const struct {
        const char *name;
        int64_t width;
    } widths[] = {{"channels", arch->C}, {"heads * head_size", arch->NH * arch->HS},
                  {"(heads + 2 kv_heads) * head_size", model_config_qkv_width(arch)}, {"ffn", arch->F}};
    for (size_t i = 0; i < sizeof widths / sizeof widths[0]; ++i)
        if (widths[i].width % 16 != 0)
            return error_set(err, "fp8=true: expected %s to be a multiple of 16, found %lld", widths[i].name,
                             (long long)widths[i].width);
    return true;
}
