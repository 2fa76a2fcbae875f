// file_writer.h: writes a large file piece by piece; it appears under its name only when complete: bytes go to
// PATH.tmp, which is synced and renamed at the end. Must not know the file's format.
#ifndef LLMC_FILE_WRITER_H
#define LLMC_FILE_WRITER_H

#include "llmc/base/common.h"

typedef struct {
    int fd;
    char *path, *temporary;
} FileWriter;

// Every function that fails has already removed PATH.tmp and released the writer; a file at PATH is unchanged.
bool file_writer_open(FileWriter *writer, const char *path, Error *err);
bool file_writer_append(FileWriter *writer, const void *bytes, size_t count, Error *err);
bool file_writer_commit(FileWriter *writer, Error *err);
void file_writer_abort(FileWriter *writer);
#endif
