// hash_file.h: hashes.jsonl, a line with the format's version, then the links of a run's hash chain, one object a
// line (files of before the version begin with a link): what a link is, how it follows from
// the one before, and reading such a file, which may come from anywhere. Written by hash_chain.c, read by train_gpt
// verify; knows nothing of devices or ranks.
#ifndef LLMC_HASH_FILE_H
#define LLMC_HASH_FILE_H

#include "llmc/base/common.h"

#define HASH_FILE_NAME "hashes"  // .jsonl

typedef struct {
    int64_t step;       // after which it was taken
    int64_t since;      // data is the sum over the steps since + 1 .. step: the link before, or where the chain began
    uint64_t data, weights, optimizer;
    uint64_t chain;     // hash_link_chain of all these and of the link before
} HashLink;

// Of chain, the link's own is not looked at. before: 0 for the first link of a run.
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
    bool unfinished;  // the last line has no end (the run was killed while it wrote, or writes now): left out
} HashFile;
// path: a run's directory or such a file. Errors: no such file, a newer format, no link in it, a line that is none or is out of order,
// one whose chain does not follow from the line before.
bool hash_file_read(HashFile *out, const char *path, Error *err);
void hash_file_free(HashFile *file);
#endif
