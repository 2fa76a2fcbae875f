// file_writer.h: a large file written piece by piece that appears under its name only when it is whole: bytes go to
// PATH.tmp, which is synced and renamed at the end. Called by the writers of safetensors and llm.c model files.
#ifndef LLMC_FILE_WRITER_H
#define LLMC_FILE_WRITER_H

#include "llmc/base/common.h"

typedef struct {
    int fd;
    char *path, *temporary;
} FileWriter;

// Every function that fails has already removed PATH.tmp and released the writer; what lay at PATH is untouched.
bool file_writer_open(FileWriter *writer, const char *path, Error *err);
bool file_writer_append(FileWriter *writer, const void *bytes, size_t count, Error *err);
bool file_writer_commit(FileWriter *writer, Error *err);
void file_writer_abort(FileWriter *writer);
#endif
