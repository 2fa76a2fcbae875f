// jsonl_file.h: files of a run with one JSON object per line, each beginning with its step: metrics.jsonl,
// hashes.jsonl. A run resumed from a checkpoint truncates them to its step, so that the file reads as one
// uninterrupted run. Must not know the contents of the objects.
#ifndef LLMC_JSONL_FILE_H
#define LLMC_JSONL_FILE_H

#include "llmc/base/format_version.h"

// Opens dir/name.jsonl for appending; the caller closes *fd. resume_step > 0: lines of later steps and an incomplete
// last line are removed; 0: an existing file is kept as dir/name-1.jsonl, name-2, ... Errors: a resumed file has a
// newer format ("format_version" follows the step in a line that has it).
bool jsonl_file_open(int *fd, const char *dir, const char *name, FormatKind kind, int64_t resume_step, Error *err);
// Appends a line, newline included, in one write, so that a reader never gets a partial line; a line that does not
// fit on the disk is removed entirely. False: errno is set.
bool jsonl_file_append(int fd, const char *line, size_t bytes);
#endif
