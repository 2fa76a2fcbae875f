// checkpoint.h: directories that are complete or not there. A checkpoint is RUN/step_00001234/ holding model.safetensors,
// config.json, tokenizer.json (together a Hugging Face model), optimizer.safetensors, state.json and MANIFEST.json with every
// file's size and XXH3-128 hash. It is written as RUN/.tmp-step_00001234, each file fsynced, the manifest last, then renamed.
// Knows nothing of models: the caller writes its files between begin and commit.
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "llmc/common.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CHECKPOINT_MANIFEST "MANIFEST.json"

typedef struct {
    char *dir;        // the temporary directory to write into
    char *final_dir;  // where it will appear
} CheckpointWriter;

// Creates run_dir if needed; removes what an interrupted writer left behind.
bool checkpoint_begin(CheckpointWriter *writer, const char *run_dir, int64_t step, Error *err);
bool checkpoint_write_text(CheckpointWriter *writer, const char *name, const char *text, Error *err);
// Hashes what lies in the directory, writes the manifest, syncs, renames. Either way the writer is released.
bool checkpoint_commit(CheckpointWriter *writer, Error *err);
void checkpoint_abort(CheckpointWriter *writer);

// Checks sizes always and hashes when `deep`; names the first file that is missing, short or changed.
bool checkpoint_verify(const char *dir, bool deep, Error *err);
// The newest checkpoint of run_dir that verifies deeply; NULL when there is none (not an error). Damaged or incomplete ones
// are passed over and described in `skipped` (caller frees both; *skipped NULL when nothing was skipped).
char *checkpoint_newest(const char *run_dir, char **skipped);
// Step number of a checkpoint directory name, or -1.
int64_t checkpoint_step(const char *dir);
// Deletes the oldest beyond keep_last (0: keep all); never the newest complete one. Deletion is atomic too: rename, then
// remove.
bool checkpoint_prune(const char *run_dir, int64_t keep_last, Error *err);

#ifdef __cplusplus
}
#endif
#endif
