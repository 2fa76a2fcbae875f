// logger.h: the output of a run for users and tools: metrics.jsonl (first the resolved config, then one object per
// step), TensorBoard event files, the loss curve (SVG), and the live progress line. Nothing in a run depends on it.
// Must not know models, data or devices: the caller passes every value.
#ifndef LLMC_LOGGER_H
#define LLMC_LOGGER_H

#include <stdio.h>

#include "llmc/base/common.h"

typedef struct {
    int64_t step;         // 1 after the first step
    int64_t total_steps;  // 0: unknown
    int64_t tokens;       // trained on so far
    double loss;          // training loss, nats per token
    double lr;
    double grad_norm;
    double tokens_per_second;
    double peak_share;  // share of the device's peak for this dtype, 0..1; < 0: unknown
    double step_ms, data_wait_ms;
    double seconds_left;  // < 0: unknown
    double seconds;       // of this run so far
    double clock_mhz, power_watts, temperature_celsius, device_memory_mib;  // of the device; 0: unknown
    double comm_ms, comm_exposed_ms;  // communication, and its part not hidden by computation; several ranks only
    bool skipped;                     // no update: a spike, or a non-finite gradient
    const char *phase;
} StepRecord;

typedef struct {
    int64_t step, tokens;
    const char *source;  // held-out source, or "mean"
    double loss;         // nats per token
    double perplexity;
    double bits_per_byte;  // < 0: the tokenizer is unknown
} EvalRecord;

typedef struct Logger Logger;  // NULL (a rank without logs): every function below does nothing
// Opens dir/metrics.jsonl and an event file. When resuming at resume_step > 0, records after that step are removed, so
// that the file reads as one uninterrupted run. config_json goes into the first record of a new file, and into a record
// with "resumed": true otherwise.
bool logger_open(Logger **out, const char *dir, const char *config_json, int64_t resume_step, bool progress_bar,
                 Error *err);
void logger_step(Logger *logger, const StepRecord *record);
void logger_eval(Logger *logger, const EvalRecord *record);
// Prints a message on stderr without damaging the progress line, and writes it to metrics.jsonl as {"event": ...}.
void logger_message(Logger *logger, const char *format, ...) PRINTF_LIKE(2, 3);
void logger_sample(Logger *logger, int64_t step, const char *text);
// Draws dir/loss.svg. Write errors (disk full) are reported once on stderr and do not stop a run.
void logger_close(Logger *logger);

// Draws only the loss curve, from any metrics.jsonl.
bool logger_draw_curve(const char *metrics_path, const char *svg_path, Error *err);
#endif
