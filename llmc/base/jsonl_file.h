// jsonl_file.h: files of a run with one JSON object a line, each beginning with its step: metrics.jsonl, hashes.jsonl.
// A run that goes on from a checkpoint cuts off what came after it, so that the file reads as one uninterrupted run.
// Called by the logger and the hash chain; knows nothing of what the objects say.
#ifndef LLMC_JSONL_FILE_H
#define LLMC_JSONL_FILE_H

#include "llmc/base/format_version.h"

// Opens dir/name.jsonl for appending: *fd is the caller's to close. resume_step > 0: lines of later steps, and a last
// line that was not written to its end, are cut off; 0: a file that is there stays, as dir/name-1.jsonl, name-2, ...
// Errors: one that is resumed is of a newer format ("format_version" stands behind the step of a line that has it).
bool jsonl_file_open(int *fd, const char *dir, const char *name, FormatKind kind, int64_t resume_step, Error *err);
// Appends a line, its newline included, in one write, so that a reader never sees half of one; a line that the disk
// has no room for leaves no rest. False: errno says why.
bool jsonl_file_append(int fd, const char *line, size_t bytes);
#endif
