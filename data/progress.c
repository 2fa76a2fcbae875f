// progress.c: see progress.h.
#include "data/progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

#define TERMINAL_SECONDS 0.2
#define LOG_SECONDS 10.0

void progress_start(Progress *progress, const char *what, int64_t total_bytes) {
    double now = now_seconds();
    *progress = (Progress){what, total_bytes, now, process_cpu_seconds(), now, isatty(STDERR_FILENO) == 1};
}

void progress_update(Progress *progress, int64_t done_bytes, const char *note) {
    double now = now_seconds(), seconds = now - progress->started, done = (double)done_bytes;
    if (now - progress->shown < (progress->is_terminal ? TERMINAL_SECONDS : LOG_SECONDS)) return;
    progress->shown = now;
    char total[80] = "";
    if (progress->total_bytes > 0 && done > 0) {
        double all = (double)progress->total_bytes, left = seconds * (all - done) / done;
        snprintf(total, sizeof total, " of %.1f MB (%.0f %%), %d:%02d left", all / 1e6, 100 * done / all,
                 (int)(left / 60), (int)left % 60);
    }
    fprintf(stderr, "%s%s: %.1f MB%s, %.1f MB/s%s%s", progress->is_terminal ? "\r\033[K" : "", progress->what,
            done / 1e6, total, done / 1e6 / seconds, note, progress->is_terminal ? "" : "\n");
    fflush(stderr);
}

void progress_end(Progress *progress) {
    if (progress->is_terminal) fputs("\r\033[K", stderr);
}

double process_cpu_seconds(void) {
    struct timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return (double)used.tv_sec + (double)used.tv_nsec * 1e-9;
}
