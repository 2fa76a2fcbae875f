// control.c: see control.h. One rank so far; several follow.
#include "llmc/control.h"

#include <stdio.h>
#include <string.h>

bool control_open(Control **out, const Launch *launch, const ControlOptions *options, Error *err) {
    (void)options;
    *out = NULL;
    return launch->world == 1 || error_set(err, "expected one rank, found %d", launch->world);
}
void control_close(Control *control) { (void)control; }
bool control_reduce(Control *control, const char *what, double *sum, int sums, double *max, int maxes) {
    (void)control, (void)what, (void)sum, (void)sums, (void)max, (void)maxes;
    return true;
}
bool control_broadcast(Control *control, const char *what, void *bytes, size_t count) {
    (void)control, (void)what, (void)bytes, (void)count;
    return true;
}
bool control_gather(Control *control, const char *what, void *all, const void *mine, size_t count) {
    (void)control, (void)what;
    memcpy(all, mine, count);
    return true;
}
void control_set_step(Control *control, int64_t step) { (void)control, (void)step; }
void control_set_probe(Control *control, void (*probe)(void *context, ControlStatus *out), void *context) {
    (void)control, (void)probe, (void)context;
}
void control_abort(Control *control, const char *why) { (void)control, (void)why; }
void control_describe_rank(const Control *control, int rank, char *out, size_t out_bytes) {
    (void)control;
    snprintf(out, out_bytes, "rank %d", rank);
}
