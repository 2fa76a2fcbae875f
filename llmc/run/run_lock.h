// run_lock.h: one run at a time on a directory. Rank 0 holds an exclusive lock on DIR/.lock for as long as it lives;
// the kernel gives it back however the process ends, so that there are no stale locks. The file says who holds it,
// for people and for the message of the one that is refused.
#ifndef LLMC_RUN_LOCK_H
#define LLMC_RUN_LOCK_H

#include "llmc/base/common.h"

#define RUN_LOCK_FILE ".lock"

typedef struct {
    int fd;          // -1: not held
    char note[256];  // what to tell the user although the run goes on: the file system knows no locks; "": nothing
} RunLock;

// Creates dir if needed. A holder is waited for at most wait_seconds: one that was killed may still be on its way out
// when the launcher starts the next. Errors: somebody else holds it (host, process and since when are named), or dir
// cannot be written.
bool run_lock_take(RunLock *lock, const char *dir, double wait_seconds, Error *err);
void run_lock_release(RunLock *lock);
#endif
