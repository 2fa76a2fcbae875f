// progress.h: the progress line of a long command on stderr: rewritten in place on a terminal, else a new line every
// ten seconds.
#ifndef DATA_PROGRESS_H
#define DATA_PROGRESS_H

#include "llmc/base/common.h"

typedef struct {
    const char *what;                    // "tokenize"
    int64_t total_bytes;                 // of the inputs; -1: unknown
    double started, cpu_started, shown;  // seconds
    bool is_terminal;
} Progress;

void progress_start(Progress *progress, const char *what, int64_t total_bytes);
// Prints bytes done, MB/s, time left and the note, if enough time has passed since the last line.
void progress_update(Progress *progress, int64_t done_bytes, const char *note);
void progress_end(Progress *progress);  // clears the line
double process_cpu_seconds(void);       // of all threads, since the program started

#endif
