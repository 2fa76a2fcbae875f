// logger.c: metrics.jsonl, the progress line, messages, and the calls of the TensorBoard writer; see logger.h. A write
// error never stops a run; it is reported once.
#include "llmc/log/logger.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "llmc/log/logger_text.h"
#include "llmc/log/logger_tensorboard.h"
#include "llmc/base/jsonl_file.h"

#define LINE_SECONDS 0.1   // between redraws of the live line
#define FLUSH_SECONDS 5.0  // between flushes of the event file

struct Logger {
    char *dir, *metrics_path;
    int metrics;  // file descriptor, O_APPEND
    Text line;    // the record being built
    EventWriter *events;
    bool failed;      // a write error has been reported
    int64_t step;     // last logged step
    bool terminal;    // live line; false: plain lines
    bool line_shown;  // the cursor is at the end of a live line
    double opened, last_line, last_flush;
    char val_source[64];
    double val_loss;  // NaN: none yet
};

// ---- metrics.jsonl ----

static void report_failure(Logger *logger, const char *what) {
    if (logger->failed) return;
    logger->failed = true;
    logger_message(logger, "warning: %s: cannot write %s: %s; training continues", logger->dir, what, strerror(errno));
}

static void metrics_write(Logger *logger) {
    text_put(&logger->line, "}\n");
    if (!jsonl_file_append(logger->metrics, logger->line.data, logger->line.length))
        report_failure(logger, "metrics.jsonl");
}

// Every record starts with its step: jsonl_file.h relies on it.
static void metrics_begin(Logger *logger, int64_t step) {
    logger->line.length = 0;
    text_putf(&logger->line, "{\"step\":%lld", (long long)step);
}

static void put_time(Text *text) {
    time_t now = time(NULL);
    struct tm utc;
    char stamp[32];
    gmtime_r(&now, &utc);
    strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%SZ", &utc);
    text_put_string(text, "time", stamp);
}

static bool metrics_open(Logger *logger, const char *config_json, int64_t resume_step, Error *err) {
    if (!jsonl_file_open(&logger->metrics, logger->dir, "metrics", FORMAT_METRICS, resume_step, err)) return false;
    metrics_begin(logger, resume_step);
    text_putf(&logger->line, ",\"" FORMAT_VERSION_KEY "\":%lld", (long long)format_version(FORMAT_METRICS));
    if (resume_step > 0) text_put(&logger->line, ",\"resumed\":true");
    put_time(&logger->line);
    text_putf(&logger->line, ",\"config\":%s", config_json);
    metrics_write(logger);
    return true;
}

// ---- open and close ----

bool logger_open(Logger **out, const char *dir, const char *config_json, int64_t resume_step, bool progress_bar,
                 Error *err) {
    Logger *logger = xcalloc(1, sizeof *logger);
    logger->dir = xstrdup(dir);
    logger->metrics_path = path_join(dir, "metrics.jsonl");
    logger->metrics = -1;
    logger->step = resume_step;
    logger->val_loss = NAN;
    logger->opened = now_seconds();
    logger->last_line = -1e9;
    const char *term = getenv("TERM");
    logger->terminal = progress_bar && isatty(STDERR_FILENO) && !(term != NULL && strcmp(term, "dumb") == 0);
    bool ok = make_dirs(dir, err) && metrics_open(logger, config_json, resume_step, err);
    if (ok) {
        logger->events = event_writer_open(dir, resume_step > 0 ? resume_step + 1 : 0, err);
        ok = logger->events != NULL;
    }
    if (!ok) {
        logger_close(logger);
        return false;
    }
    *out = logger;
    return true;
}

static void draw(Logger *logger) {
    char *path = path_join(logger->dir, "loss.svg");
    Error err = {""};
    if (!logger_draw_curve(logger->metrics_path, path, &err)) {
        errno = 0;
        if (!logger->failed) logger_message(logger, "warning: %s; training continues", err.message);
        logger->failed = true;
    }
    free(path);
}

static void hide_line(Logger *logger) {
    if (logger->line_shown) fprintf(stderr, "\r\033[K");
    logger->line_shown = false;
}

void logger_close(Logger *logger) {
    if (logger == NULL) return;
    if (logger == NULL) return;
    if (logger->line_shown) fputc('\n', stderr);
    logger->line_shown = false;
    if (logger->events != NULL) {
        if (!event_writer_flush(logger->events)) report_failure(logger, "TensorBoard events");
        draw(logger);
    }
    event_writer_close(logger->events);
    if (logger->metrics >= 0) close(logger->metrics);
    text_free(&logger->line);
    free(logger->metrics_path);
    free(logger->dir);
    free(logger);
}

// ---- human-readable output ----

static int terminal_columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

// On a terminal at most ten lines per second. In a log: one per second during the first minute, then one per sixtieth
// of the time so far, but at least one per minute. The last step is always shown.
static bool line_is_due(const Logger *logger, const StepRecord *record) {
    double now = now_seconds(), every = LINE_SECONDS;
    if (!logger->terminal) every = fmin(fmax((now - logger->opened) / 60, 1), 60);
    return now - logger->last_line >= every || (record->total_steps > 0 && record->step == record->total_steps);
}

static void show_line(Logger *logger, const StepRecord *record) {
    if (!line_is_due(logger, record)) return;
    logger->last_line = now_seconds();
    char text[256];
    progress_format(text, sizeof text, record, logger->val_loss, logger->terminal ? terminal_columns() - 1 : 200);
    if (logger->terminal) fprintf(stderr, "\r%s\033[K", text);
    else fprintf(stderr, "%s\n", text);
    fflush(stderr);
    logger->line_shown = logger->terminal;
}

void logger_message(Logger *logger, const char *format, ...) {
    if (logger == NULL) return;
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    hide_line(logger);
    fprintf(stderr, "%s\n", message);
    if (logger->metrics < 0) return;
    metrics_begin(logger, logger->step);
    text_put_string(&logger->line, "event", message);
    metrics_write(logger);
}

// ---- records ----

void logger_step(Logger *logger, const StepRecord *record) {
    if (logger == NULL) return;
    logger->step = record->step;
    metrics_begin(logger, record->step);
    text_putf(&logger->line, ",\"tokens\":%lld", (long long)record->tokens);
    text_put_real(&logger->line, "loss", record->loss);
    text_put_real(&logger->line, "lr", record->lr);
    text_put_real(&logger->line, "grad_norm", record->grad_norm);
    text_put_brief(&logger->line, "tokens_per_second", record->tokens_per_second);
    if (record->peak_share >= 0) text_put_brief(&logger->line, "peak_share", record->peak_share);
    text_put_brief(&logger->line, "step_ms", record->step_ms);
    text_put_brief(&logger->line, "data_wait_ms", record->data_wait_ms);
    const struct {
        const char *key;
        double value;
    } device[] = {{"clock_mhz", record->clock_mhz},
                  {"power_watts", record->power_watts},
                  {"temperature_celsius", record->temperature_celsius},
                  {"device_memory_mib", record->device_memory_mib},
                  {"comm_ms", record->comm_ms},
                  {"comm_exposed_ms", record->comm_exposed_ms}};
    for (size_t i = 0; i < sizeof device / sizeof device[0]; ++i)
        if (device[i].value > 0) text_put_brief(&logger->line, device[i].key, device[i].value);
    text_put_brief(&logger->line, "seconds", record->seconds);
    if (record->phase != NULL) text_put_string(&logger->line, "phase", record->phase);
    if (record->skipped) text_put(&logger->line, ",\"skipped\":true");
    metrics_write(logger);

    EventWriter *events = logger->events;
    event_writer_begin(events, record->step);
    event_writer_add_scalar(events, "train/loss", record->loss);
    event_writer_add_scalar(events, "train/lr", record->lr);
    event_writer_add_scalar(events, "train/grad_norm", record->grad_norm);
    event_writer_add_scalar(events, "train/tokens", (double)record->tokens);
    event_writer_add_scalar(events, "train/tokens_per_second", record->tokens_per_second);
    if (record->peak_share >= 0) event_writer_add_scalar(events, "train/peak_share", record->peak_share);
    event_writer_add_scalar(events, "train/step_ms", record->step_ms);
    event_writer_add_scalar(events, "train/data_wait_ms", record->data_wait_ms);
    for (size_t i = 0; i < sizeof device / sizeof device[0]; ++i)
        if (device[i].value > 0) {
            char tag[64];
            snprintf(tag, sizeof tag, "device/%s", device[i].key);
            event_writer_add_scalar(events, tag, device[i].value);
        }
    bool ok = event_writer_end(events);
    if (now_seconds() - logger->last_flush >= FLUSH_SECONDS) {
        logger->last_flush = now_seconds();
        ok = event_writer_flush(events) && ok;
    }
    if (!ok) report_failure(logger, "TensorBoard events");
    show_line(logger, record);
}

static void put_eval_scalar(Logger *logger, const EvalRecord *record, const char *what, double value) {
    char tag[128];
    snprintf(tag, sizeof tag, "val/%s/%s", record->source, what);
    event_writer_add_scalar(logger->events, tag, value);
}

void logger_eval(Logger *logger, const EvalRecord *record) {
    if (logger == NULL) return;
    logger->step = record->step;
    // The mean, if there is one, is logged after the sources, so the progress line shows it.
    logger->val_loss = record->loss;
    metrics_begin(logger, record->step);
    text_putf(&logger->line, ",\"tokens\":%lld", (long long)record->tokens);
    text_put_string(&logger->line, "source", record->source);
    text_put_real(&logger->line, "val_loss", record->loss);
    text_put_brief(&logger->line, "perplexity", record->perplexity);
    if (record->bits_per_byte >= 0) text_put_real(&logger->line, "bits_per_byte", record->bits_per_byte);
    metrics_write(logger);

    event_writer_begin(logger->events, record->step);
    put_eval_scalar(logger, record, "loss", record->loss);
    put_eval_scalar(logger, record, "perplexity", record->perplexity);
    if (record->bits_per_byte >= 0) put_eval_scalar(logger, record, "bits_per_byte", record->bits_per_byte);
    if (!event_writer_end(logger->events)) report_failure(logger, "TensorBoard events");

    hide_line(logger);
    fprintf(stderr, "val      step %lld, %s: loss %.4f, perplexity %.4g", (long long)record->step, record->source,
            record->loss, record->perplexity);
    if (record->bits_per_byte >= 0) fprintf(stderr, ", %.4f bits per byte", record->bits_per_byte);
    fputc('\n', stderr);
}

void logger_sample(Logger *logger, int64_t step, const char *text) {
    if (logger == NULL) return;
    char *valid = text_make_utf8(text);
    metrics_begin(logger, step);
    text_put_string(&logger->line, "sample", valid);
    metrics_write(logger);
    event_writer_begin(logger->events, step);
    event_writer_add_text(logger->events, "sample", valid, strlen(valid));
    if (!event_writer_end(logger->events)) report_failure(logger, "TensorBoard events");
    hide_line(logger);
    fprintf(stderr, "sample   step %lld:\n", (long long)step);
    for (const char *p = valid; *p != '\0';) {
        size_t length = strcspn(p, "\n");
        fprintf(stderr, "         %.*s\n", (int)length, p);
        p += length + (p[length] == '\n');
    }
    free(valid);
}
