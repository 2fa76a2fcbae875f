// run_lock.h: at most one run per directory. Rank 0 holds an exclusive lock on DIR/.lock until its process ends; the
// kernel releases it even after a crash, so there are no stale locks. The file names the holder, for the message of a
// second run. Must not know what a run writes.
#ifndef LLMC_RUN_LOCK_H
#define LLMC_RUN_LOCK_H

#include "llmc/base/common.h"

#define RUN_LOCK_FILE ".lock"

typedef struct {
    int fd;          // -1: not held
    char note[256];  // a warning for the user: the file system does not support locks; "": none
} RunLock;

// Creates dir if needed. Waits at most wait_seconds for a holder: a killed process may not have exited yet when the
// launcher starts the next. Errors: another run holds the lock (names host, process and since when), or dir is not
// writable.
bool run_lock_take(RunLock *lock, const char *dir, double wait_seconds, Error *err);
void run_lock_release(RunLock *lock);
#endif
