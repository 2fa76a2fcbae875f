// checkpoint.h, entry of this room: atomic checkpoint directories, which are complete or absent. optimizer_file.h and
// state_file.h are formats of files in them, snapshot.h copies a rank's state, saver.h orders the writers.
// The room must not know: communication between ranks, the training loop, when a run saves. This header also must not
// know: models and tensors; the caller writes the files between begin and commit.
//
// A checkpoint is RUN/step_00001234/ with model.safetensors, config.json, tokenizer.json (together a Hugging Face model),
// optimizer.safetensors, state.json, and MANIFEST.json with every file's size and XXH3-128 hash. It is written as
// RUN/.tmp-step_00001234, each file fsynced, the manifest last, and then renamed. If several ranks write one checkpoint,
// rank 0 begins and commits and the others attach; each rank hashes its own files and writes a part of the manifest. The
// caller orders these calls (saver.h).
#ifndef LLMC_CHECKPOINT_H
#define LLMC_CHECKPOINT_H

#include "llmc/base/dir_list.h"

#define CHECKPOINT_MANIFEST "MANIFEST.json"

typedef struct {
    char *dir;        // the temporary directory to write into
    char *final_dir;  // its name after commit
    int parts;        // parts of the manifest that commit expects; 0: commit hashes all files
} CheckpointWriter;

// Creates run_dir if needed; removes leftovers of an interrupted writer or deletion.
bool checkpoint_begin(CheckpointWriter *writer, const char *run_dir, int64_t step, Error *err);
// The same at any path, for exports and imports. The parent directory must exist.
bool checkpoint_begin_at(CheckpointWriter *writer, const char *final_dir, Error *err);
// For ranks other than 0, after rank 0's begin: opens the same directory. Waits up to wait_seconds until this host sees it.
bool checkpoint_attach(CheckpointWriter *writer, const char *run_dir, int64_t step, double wait_seconds, Error *err);
// For ranks other than 0: releases the writer. Rank 0 commits or removes the directory.
void checkpoint_detach(CheckpointWriter *writer);
bool checkpoint_write_text(CheckpointWriter *writer, const char *name, const char *text, Error *err);
// Hashes these files as read back from the disk and writes part `part` (from 0) of the manifest.
bool checkpoint_write_part(CheckpointWriter *writer, int part, const char *const *names, int count, Error *err);
// Hashes the files that are in no part, checks that all parts and their files exist, writes the manifest, syncs, renames.
// An existing final_dir is replaced, atomically if the file system can exchange two names. The writer is released in any
// case; on failure final_dir is unchanged.
bool checkpoint_commit(CheckpointWriter *writer, Error *err);
void checkpoint_abort(CheckpointWriter *writer);

// Checks sizes and, if `deep`, hashes. The error names the first file that is missing or differs.
bool checkpoint_verify(const char *dir, bool deep, Error *err);
// The newest checkpoint of run_dir that verifies deeply; NULL if there is none (not an error). Damaged or incomplete ones
// are skipped and described in *skipped (NULL: none were skipped). Caller frees both. A checkpoint of a newer format
// (format_version.h) is returned: reading it then fails with a message, and the run does not overwrite it.
char *checkpoint_newest(const char *run_dir, char **skipped);
// Step number of a checkpoint directory name, or -1.
int64_t checkpoint_step(const char *dir);
// Which of a run's checkpoints are kept.
typedef struct {
    int64_t keep_last;   // number of the newest whole ones; 0: all
    int64_t keep_every;  // > 0: also those whose step is a multiple, permanently
    int64_t whole_step;  // just committed: kept, and whole without a check; -1: none
} CheckpointRetention;
// Deletes the others, but never the newest whole one. A damaged one does not count for keep_last; it is kept while it is
// newer than the oldest whole one that keep_last keeps. Deletion is atomic too: rename, then remove.
bool checkpoint_prune(const char *run_dir, const CheckpointRetention *retention, Error *err);
// out = paths of all checkpoints of the run, whole or not, newest first. A missing run_dir has none.
bool checkpoint_list(NameList *out, const char *run_dir, Error *err);
#endif
