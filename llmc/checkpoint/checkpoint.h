// checkpoint.h: directories that are complete or not there. A checkpoint is RUN/step_00001234/ holding
// model.safetensors, config.json, tokenizer.json (together a Hugging Face model), optimizer.safetensors, state.json
// and MANIFEST.json with every file's size and XXH3-128 hash. It is written as RUN/.tmp-step_00001234, each file
// fsynced, the manifest last, then renamed. Knows nothing of models: the caller writes its files between begin and
// commit. Where several ranks write one checkpoint, rank 0 begins and commits, the others attach, and each hashes its
// own files and leaves a part of the manifest; who waits for whom is the caller's business (saver.h).
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "llmc/base/dir_list.h"

#define CHECKPOINT_MANIFEST "MANIFEST.json"

typedef struct {
    char *dir;        // the temporary directory to write into
    char *final_dir;  // where it will appear
    int parts;        // of the manifest that commit expects; 0: it hashes everything itself
} CheckpointWriter;

// Creates run_dir if needed; removes what an interrupted writer or a deletion left behind.
bool checkpoint_begin(CheckpointWriter *writer, const char *run_dir, int64_t step, Error *err);
// The same at any path: what an export or import writes. The parent directory must exist.
bool checkpoint_begin_at(CheckpointWriter *writer, const char *final_dir, Error *err);
// For the other ranks, after rank 0's begin: the same directory. Waits up to wait_seconds until this host sees it.
bool checkpoint_attach(CheckpointWriter *writer, const char *run_dir, int64_t step, double wait_seconds, Error *err);
// For the other ranks: forgets the directory, which is rank 0's to commit or remove.
void checkpoint_detach(CheckpointWriter *writer);
bool checkpoint_write_text(CheckpointWriter *writer, const char *name, const char *text, Error *err);
// Hashes these files, as they lie on the disk, and writes part `part` (from 0) of the manifest.
bool checkpoint_write_part(CheckpointWriter *writer, int part, const char *const *names, int count, Error *err);
// Hashes what lies in the directory and is in no part, checks that the parts are there and their files too, writes
// the manifest, syncs, renames; what already lay at final_dir is replaced in one step where the file system can
// exchange two names. Either way the writer is released, and on failure final_dir is as it was.
bool checkpoint_commit(CheckpointWriter *writer, Error *err);
void checkpoint_abort(CheckpointWriter *writer);

// Checks sizes always and hashes when `deep`; names the first file that is missing, short or changed.
bool checkpoint_verify(const char *dir, bool deep, Error *err);
// The newest checkpoint of run_dir that verifies deeply; NULL when there is none (not an error). Damaged or
// incomplete ones are passed over and described in `skipped` (caller frees both; *skipped NULL when nothing was
// skipped). One of a newer format (format_version.h) is neither: it is returned, and run_load says what it is, instead
// of training over it.
char *checkpoint_newest(const char *run_dir, char **skipped);
// Step number of a checkpoint directory name, or -1.
int64_t checkpoint_step(const char *dir);
// What stays of a run's checkpoints.
typedef struct {
    int64_t keep_last;   // so many of the newest whole ones; 0: all
    int64_t keep_every;  // > 0: also every one whose step is a multiple, for good
    int64_t whole_step;  // this one was just committed: whole without looking, and it stays; -1: none
} CheckpointRetention;
// Deletes the others; the newest whole one always stays. A damaged one counts as nothing: it stays while it is newer
// than the oldest of the newest whole ones that are kept. Deletion is atomic too: rename, then remove.
bool checkpoint_prune(const char *run_dir, const CheckpointRetention *retention, Error *err);
// Every checkpoint of the run, whole or not, newest first (name: paths). A directory that is not there has none.
bool checkpoint_list(NameList *out, const char *run_dir, Error *err);
#endif
