// logger.h: what a run leaves for people and tools: metrics.jsonl (the resolved config first, then one object a
// step), TensorBoard event files, the loss-curve picture (SVG), and the live progress line. Called by the loop; never
// decides anything.
#ifndef LLMC_LOGGER_H
#define LLMC_LOGGER_H

#include <stdio.h>

#include "llmc/base/common.h"

typedef struct {
    int64_t step;         // 1 after the first step
    int64_t total_steps;  // 0: unknown
    int64_t tokens;       // seen so far
    double loss;          // training loss, nats a token
    double lr;
    double grad_norm;
    double tokens_per_second;
    double peak_share;  // of the device's peak for this dtype, 0..1; < 0 unknown
    double step_ms, data_wait_ms;
    double seconds_left;  // < 0 unknown
    double seconds;       // of this run so far
    double clock_mhz, power_watts, temperature_celsius, device_memory_mib;  // of the device; 0 unknown
    double comm_ms, comm_exposed_ms;  // tensors travelled; of it the computation waited. Several ranks only
    bool skipped;                     // no update: a spike, or a gradient that is not finite
    const char *phase;
} StepRecord;

typedef struct {
    int64_t step, tokens;
    const char *source;  // held-out source, or "mean"
    double loss;         // nats a token
    double perplexity;
    double bits_per_byte;  // < 0 when the tokenizer is unknown
} EvalRecord;

typedef struct Logger Logger;  // NULL, of a rank that keeps no logs: every function below does nothing
// Opens dir/metrics.jsonl and an event file; when resuming at resume_step > 0, metrics after that step are cut off so
// that the file reads as one uninterrupted run. config_json is the first line of a new file, and a "resumed" object
// otherwise.
bool logger_open(Logger **out, const char *dir, const char *config_json, int64_t resume_step, bool progress_bar,
                 Error *err);
void logger_step(Logger *logger, const StepRecord *record);
void logger_eval(Logger *logger, const EvalRecord *record);
// A line for people that does not garble the progress line; also kept in metrics.jsonl as {"event": ...}.
void logger_message(Logger *logger, const char *format, ...) PRINTF_LIKE(2, 3);
void logger_sample(Logger *logger, int64_t step, const char *text);
// Draws dir/loss.svg. Write errors (disk full) are reported once on stderr and do not stop a run.
void logger_close(Logger *logger);

// The picture alone, from any metrics.jsonl.
bool logger_draw_curve(const char *metrics_path, const char *svg_path, Error *err);
#endif
