// hash_file.h: the file hashes.jsonl: a line with the format's version (absent in the oldest files), then the links of a
// run's hash chain, one JSON object on each line. Defines a link and how it is chained to the one before; formats lines
// and reads files, which are untrusted. Must not know: devices, ranks.
#ifndef LLMC_HASH_FILE_H
#define LLMC_HASH_FILE_H

#include "llmc/base/common.h"

#define HASH_FILE_NAME "hashes"  // .jsonl

typedef struct {
    int64_t step;       // the state is that after this step
    int64_t since;      // data covers steps since + 1 .. step; since: step of the link before, or where the chain began
    uint64_t data, weights, optimizer;
    uint64_t chain;     // hash_link_chain of all these and of the link before
} HashLink;

// before: chain of the link before, 0 for the first link of a run. link->chain is not read.
uint64_t hash_link_chain(uint64_t before, const HashLink *link);
#define HASH_LINK_BYTES 256
// The line, with its newline; returns its length.
size_t hash_link_format(char out[HASH_LINK_BYTES], const HashLink *link);

// The first line, with its newline: {"step":0,"format_version":1}.
size_t hash_header_format(char out[HASH_LINK_BYTES]);

typedef struct {
    char *path;
    HashLink *link;
    int64_t count;
    bool unfinished;  // the last line has no newline (the run was killed, or is still writing); it is ignored
} HashFile;
// path: a run's directory or such a file. Errors: no such file, a newer format, no link, a malformed line, lines out of
// order, a chain that does not follow from the line before.
bool hash_file_read(HashFile *out, const char *path, Error *err);
void hash_file_free(HashFile *file);
#endif
