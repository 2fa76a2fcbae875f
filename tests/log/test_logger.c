// test_logger.c: metrics.jsonl (records, truncation at a resume, incomplete last records, full disk), TensorBoard files
// (read by a parser in this file, with checksums), the loss curve, the progress line on a terminal and in a log.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cjson/cJSON.h>
#include <fcntl.h>
#include <glob.h>
#include <math.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "llmc/log/logger.h"
#include "llmc/log/logger_tensorboard.h"
#include "llmc/log/logger_text.h"

static const char CONFIG[] = "{\"model\":\"gpt2:d6\",\"out_dir\":\"runs/<a&b>\"}";

typedef struct {
    char dir[64];
    int saved_stderr;  // while a test captures the logger's output
} Scene;

static int open_scene(void **state) {
    Scene *scene = xcalloc(1, sizeof *scene);
    snprintf(scene->dir, sizeof scene->dir, "/tmp/test_logger_XXXXXX");
    scene->saved_stderr = dup(STDERR_FILENO);
    *state = scene;
    return mkdtemp(scene->dir) == NULL ? -1 : 0;
}
static int close_scene(void **state) {
    Scene *scene = *state;
    dup2(scene->saved_stderr, STDERR_FILENO);
    close(scene->saved_stderr);
    bool ok = remove_tree(scene->dir, NULL);
    free(scene);
    return ok ? 0 : -1;
}

// Redirects stderr to dir/stderr.
static void capture_stderr(const Scene *scene) {
    char *path = path_join(scene->dir, "stderr");
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_true(fd >= 0);
    dup2(fd, STDERR_FILENO);
    close(fd);
    free(path);
}

static char *read_file(const Scene *scene, const char *name, size_t *bytes) {
    char *path = path_join(scene->dir, name), *text = NULL;
    Error err = {""};
    if (!file_read_all(path, 1 << 26, &text, bytes, &err)) fail_msg("%s", err.message);
    free(path);
    return text;
}

static int count_of(const char *text, const char *part) {
    int count = 0;
    for (const char *p = text; (p = strstr(p, part)) != NULL; p += strlen(part)) ++count;
    return count;
}

static void append_file(const Scene *scene, const char *name, const char *text) {
    char *path = path_join(scene->dir, name);
    FILE *file = fopen(path, "a");
    assert_non_null(file);
    fputs(text, file);
    fclose(file);
    free(path);
}

static Logger *open_logger(const Scene *scene, int64_t resume_step) {
    Logger *logger;
    Error err = {""};
    if (!logger_open(&logger, scene->dir, CONFIG, resume_step, true, &err)) fail_msg("%s", err.message);
    return logger;
}

static StepRecord make_step(int64_t step) {
    return (StepRecord){.step = step,
                        .total_steps = 100,
                        .tokens = 1000 * step,
                        .loss = 10 / (double)(step + 1) + 1e-15,
                        .lr = 6e-4,
                        .grad_norm = 1.0 / 3,
                        .tokens_per_second = 12345,
                        .peak_share = 0.61,
                        .step_ms = 81,
                        .data_wait_ms = 0.1,
                        .seconds_left = 72,
                        .seconds = 3,
                        .phase = "main"};
}
static EvalRecord make_eval(int64_t step, const char *source) {
    return (EvalRecord){.step = step,
                        .tokens = 1000 * step,
                        .source = source,
                        .loss = 3.25,
                        .perplexity = exp(3.25),
                        .bits_per_byte = 1.21};
}

static double number(const cJSON *record, const char *key) {
    const cJSON *item = cJSON_GetObjectItem(record, key);
    if (!cJSON_IsNumber(item)) fail_msg("'%s' is no number", key);
    return item->valuedouble;
}

// Parses every line; asserts the number of lines.
static cJSON **read_metrics(const Scene *scene, int expected) {
    char *text = read_file(scene, "metrics.jsonl", NULL);
    cJSON **records = xcalloc((size_t)expected + 1, sizeof *records);
    int count = 0;
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        if (count == expected) fail_msg("more than %d lines: %s", expected, line);
        records[count] = cJSON_Parse(line);
        if (records[count] == NULL) fail_msg("line %d is not JSON: %s", count + 1, line);
        ++count;
    }
    assert_int_equal(count, expected);
    free(text);
    return records;
}
static void free_metrics(cJSON **records) {
    for (int i = 0; records[i] != NULL; ++i) cJSON_Delete(records[i]);
    free(records);
}

static void test_records(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    Logger *logger = open_logger(scene, 0);
    StepRecord step = make_step(1);
    logger_step(logger, &step);
    EvalRecord eval = make_eval(1, "web");
    logger_eval(logger, &eval);
    logger_message(logger, "a \"quoted\" \\ message %d", 7);
    step = make_step(2);
    step.loss = NAN;
    step.grad_norm = INFINITY;
    step.peak_share = -1;
    step.skipped = true;
    logger_step(logger, &step);
    logger_sample(logger, 2, "In the \xff\xc3\xa4\x01\n\tend\xe2\x82");
    logger_close(logger);

    cJSON **r = read_metrics(scene, 6);
    assert_string_equal(cJSON_GetObjectItem(cJSON_GetObjectItem(r[0], "config"), "model")->valuestring, "gpt2:d6");
    assert_true(number(r[1], "step") == 1 && number(r[1], "tokens") == 1000);
    assert_true(number(r[1], "loss") == make_step(1).loss);  // exactly equal
    assert_true(number(r[1], "grad_norm") == 1.0 / 3);
    assert_true(number(r[2], "val_loss") == 3.25 && number(r[2], "bits_per_byte") == 1.21);
    assert_string_equal(cJSON_GetObjectItem(r[2], "source")->valuestring, "web");
    assert_string_equal(cJSON_GetObjectItem(r[3], "event")->valuestring, "a \"quoted\" \\ message 7");
    assert_true(number(r[3], "step") == 1);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(r[4], "loss")) &&
                cJSON_IsNull(cJSON_GetObjectItem(r[4], "grad_norm")));
    assert_null(cJSON_GetObjectItem(r[4], "peak_share"));
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(r[4], "skipped")));
    assert_string_equal(cJSON_GetObjectItem(r[5], "sample")->valuestring,
                        "In the \xef\xbf\xbd\xc3\xa4\xef\xbf\xbd\n\tend\xef\xbf\xbd\xef\xbf\xbd");
    free_metrics(r);
}

static void test_flushed_at_every_record(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    Logger *logger = open_logger(scene, 0);
    for (int64_t s = 1; s <= 3; ++s) {
        StepRecord step = make_step(s);
        logger_step(logger, &step);
        free_metrics(read_metrics(scene, 1 + (int)s));
    }
    logger_close(logger);
}

static void test_resume_cuts_off(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    Logger *logger = open_logger(scene, 0);
    for (int64_t s = 1; s <= 9; ++s) {
        StepRecord step = make_step(s);
        logger_step(logger, &step);
        if (s == 5) logger_message(logger, "saved");
    }
    logger_close(logger);
    append_file(scene, "metrics.jsonl", "{\"step\":10,\"tok");  // killed in the middle of a record
    logger = open_logger(scene, 5);
    StepRecord step = make_step(6);
    logger_step(logger, &step);
    logger_close(logger);
    cJSON **r = read_metrics(scene, 1 + 5 + 1 + 1 + 1);
    assert_string_equal(cJSON_GetObjectItem(r[6], "event")->valuestring, "saved");
    assert_true(cJSON_IsTrue(cJSON_GetObjectItem(r[7], "resumed")) && number(r[7], "step") == 5);
    assert_non_null(cJSON_GetObjectItem(r[7], "config"));
    assert_true(number(r[0], "format_version") == 1 && number(r[7], "format_version") == 1);
    assert_true(number(r[8], "step") == 6);
    free_metrics(r);

    // An incomplete record alone is removed too; a missing file is created.
    append_file(scene, "metrics.jsonl", "{\"st");
    logger = open_logger(scene, 6);
    logger_close(logger);
    free_metrics(read_metrics(scene, 10));
    char *path = path_join(scene->dir, "metrics.jsonl");
    assert_int_equal(unlink(path), 0);
    logger = open_logger(scene, 6);
    logger_close(logger);
    free_metrics(read_metrics(scene, 1));

    // A new run in the same directory keeps the old file under another name.
    append_file(scene, "metrics.jsonl", "old\n");
    logger = open_logger(scene, 0);
    logger_close(logger);
    free_metrics(read_metrics(scene, 1));
    char *old = read_file(scene, "metrics-1.jsonl", NULL);
    assert_non_null(strstr(old, "\nold\n"));
    free(old);
    free(path);
}

static void test_open_errors(void **state) {
    const Scene *scene = *state;
    append_file(scene, "file", "x");
    char *path = path_join(scene->dir, "file/run");
    Logger *logger = NULL;
    Error err = {""};
    assert_false(logger_open(&logger, path, CONFIG, 0, false, &err));
    assert_non_null(strstr(err.message, "/file"));
    free(path);
    assert_false(logger_draw_curve("/nonexistent/metrics.jsonl", "/tmp/x.svg", &err));
    assert_non_null(strstr(err.message, "/nonexistent/metrics.jsonl"));
}

// A limit on file sizes simulates a full disk: write fails with EFBIG, or writes fewer bytes.
static void test_full_disk(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    signal(SIGXFSZ, SIG_IGN);
    Logger *logger = open_logger(scene, 0);
    struct rlimit saved;
    getrlimit(RLIMIT_FSIZE, &saved);
    struct rlimit tight = saved;
    tight.rlim_cur = 2000;
    setrlimit(RLIMIT_FSIZE, &tight);
    for (int64_t s = 1; s <= 100; ++s) {
        StepRecord step = make_step(s);
        logger_step(logger, &step);
    }
    setrlimit(RLIMIT_FSIZE, &saved);
    StepRecord step = make_step(101);
    logger_step(logger, &step);
    logger_close(logger);
    size_t bytes;
    char *text = read_file(scene, "metrics.jsonl", &bytes);
    assert_non_null(strstr(text, "{\"step\":101,"));  // continues once there is space, on a new line
    for (char *line = strtok(text, "\n"); line != NULL; line = strtok(NULL, "\n")) {
        cJSON *record = cJSON_Parse(line);
        if (record == NULL) fail_msg("torn record: %s", line);
        cJSON_Delete(record);
    }
    free(text);
    text = read_file(scene, "stderr", NULL);
    assert_int_equal(count_of(text, "warning: "), 1);
    free(text);
}

// ---- TensorBoard ----

static uint64_t le(const unsigned char *p, int count) {
    uint64_t value = 0;
    for (int i = 0; i < count; ++i) value |= (uint64_t)p[i] << (8 * i);
    return value;
}

static uint32_t unmask(uint64_t masked) {
    uint32_t rotated = (uint32_t)masked - 0xa282ead8u;
    return (rotated >> 17) | (rotated << 15);
}

typedef struct {
    unsigned field, wire;
    uint64_t value;             // varint, or fixed bits
    const unsigned char *data;  // of length-delimited fields
    size_t bytes;
} Field;

static uint64_t next_varint(const unsigned char **p, const unsigned char *end) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        assert_true(*p < end && shift < 64);
        unsigned char byte = *(*p)++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
}

static bool next_field(Field *out, const unsigned char **p, const unsigned char *end) {
    if (*p == end) return false;
    uint64_t key = next_varint(p, end);
    *out = (Field){.field = (unsigned)(key >> 3), .wire = key & 7};
    if (out->wire == 0) {
        out->value = next_varint(p, end);
    } else {
        out->bytes = out->wire == 1 ? 8 : out->wire == 5 ? 4 : next_varint(p, end);
        assert_true(out->wire == 1 || out->wire == 5 || out->wire == 2);
        assert_true(out->bytes <= (size_t)(end - *p));
        out->data = *p;
        if (out->wire != 2) out->value = le(*p, (int)out->bytes);
        *p += out->bytes;
    }
    return true;
}

// One line of text for each value: "STEP TAG VALUE", "STEP version", "STEP session ...".
static void describe_event(FILE *out, const unsigned char *p, const unsigned char *end) {
    Field field, part, item;
    int64_t step = -1;
    while (next_field(&field, &p, end)) {
        if (field.field == 1) {
            double seconds;
            memcpy(&seconds, &field.value, sizeof seconds);
            assert_true(seconds > 1.6e9 && seconds < 1e11);
        }
        if (field.field == 2) step = (int64_t)field.value;
        if (field.field == 3) fprintf(out, "%lld version %.*s\n", (long long)step, (int)field.bytes, field.data);
        if (field.field == 7) fprintf(out, "%lld session %02x%02x\n", (long long)step, field.data[0], field.data[1]);
        const unsigned char *value = field.data;
        while (field.field == 5 && next_field(&part, &value, field.data + field.bytes)) {
            assert_int_equal(part.field, 1);
            const unsigned char *inner = part.data;
            fprintf(out, "%lld", (long long)step);
            while (next_field(&item, &inner, part.data + part.bytes)) {
                float scalar;
                uint32_t bits = (uint32_t)item.value;
                memcpy(&scalar, &bits, sizeof scalar);
                if (item.field == 1) fprintf(out, " %.*s", (int)item.bytes, item.data);
                if (item.field == 2) fprintf(out, " %g", (double)scalar);
                if (item.field == 8) fprintf(out, " tensor of %zu bytes", item.bytes);
                if (item.field == 9) fprintf(out, " plugin");
            }
            fprintf(out, "\n");
        }
    }
}

static char *describe_events(const Scene *scene) {
    char *pattern = path_join(scene->dir, "events.out.tfevents.*"), *text = NULL;
    glob_t found;
    assert_int_equal(glob(pattern, 0, NULL, &found), 0);
    assert_int_equal(found.gl_pathc, 1);
    size_t bytes, text_bytes;
    char *file = read_file(scene, strrchr(found.gl_pathv[0], '/') + 1, &bytes);
    FILE *out = open_memstream(&text, &text_bytes);
    const unsigned char *p = (const unsigned char *)file, *end = p + bytes;
    while (p < end) {
        assert_true(end - p >= 16);
        uint64_t length = le(p, 8);
        assert_int_equal(unmask(le(p + 8, 4)), crc32c(p, 8));
        assert_true(length <= (uint64_t)(end - p) - 16);
        assert_int_equal(unmask(le(p + 12 + length, 4)), crc32c(p + 12, length));
        describe_event(out, p + 12, p + 12 + length);
        p += 16 + length;
    }
    fclose(out);
    free(file);
    globfree(&found);
    free(pattern);
    return text;
}

static void test_tensorboard(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    // RFC 3720, appendix B.4, and the usual check value.
    assert_int_equal(crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c((const char[32]){0}, 32), 0x8a9136aau);
    Logger *logger = open_logger(scene, 300);
    StepRecord step = make_step(301);
    logger_step(logger, &step);
    EvalRecord eval = make_eval(301, "books");
    logger_eval(logger, &eval);
    logger_sample(logger, 301, "And it came to pass");
    logger_close(logger);
    char *text = describe_events(scene);
    assert_non_null(strstr(text, "0 version brain.Event:2\n301 session 0801\n"));
    assert_non_null(strstr(text, "301 train/loss 0.0331126\n"));
    assert_non_null(strstr(text, "301 train/lr 0.0006\n"));
    assert_non_null(strstr(text, "301 train/grad_norm 0.333333\n"));
    assert_non_null(strstr(text, "301 train/tokens_per_second 12345\n"));
    assert_non_null(strstr(text, "301 val/books/loss 3.25\n"));
    assert_non_null(strstr(text, "301 val/books/bits_per_byte 1.21\n"));
    assert_non_null(strstr(text, "301 sample tensor of 25 bytes plugin\n"));
    free(text);
}

// ---- the loss curve ----

static char *draw(const Scene *scene) {
    char *metrics = path_join(scene->dir, "metrics.jsonl"), *svg = path_join(scene->dir, "loss.svg");
    Error err = {""};
    if (!logger_draw_curve(metrics, svg, &err)) fail_msg("%s", err.message);
    free(metrics);
    free(svg);
    return read_file(scene, "loss.svg", NULL);
}

// A simple check of well-formedness: tags balance, and no number is NaN or infinite.
static void check_svg(const char *svg) {
    assert_int_equal(count_of(svg, "<svg "), 1);
    assert_int_equal(count_of(svg, "</svg>"), 1);
    assert_int_equal(count_of(svg, "<g "), count_of(svg, "</g>"));
    assert_int_equal(count_of(svg, "<text "), count_of(svg, "</text>"));
    assert_int_equal(count_of(svg, "nan") + count_of(svg, "inf"), 0);
}

static void test_picture(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    append_file(scene, "metrics.jsonl", "");
    char *svg = draw(scene);  // nothing logged yet
    check_svg(svg);
    free(svg);
    Logger *logger = open_logger(scene, 0);
    svg = draw(scene);
    check_svg(svg);
    assert_non_null(strstr(svg, "runs/&lt;a&amp;b&gt;"));
    free(svg);
    StepRecord step = make_step(1);
    logger_step(logger, &step);
    svg = draw(scene);  // one point
    check_svg(svg);
    free(svg);
    for (int64_t s = 2; s <= 3000; ++s) {
        step = make_step(s);
        if (s == 77) step.loss = NAN;
        logger_step(logger, &step);
        EvalRecord eval = make_eval(s, "web"), mean = make_eval(s, "mean");
        if (s % 500 == 0) logger_eval(logger, &eval);
        if (s % 500 == 0) logger_eval(logger, &mean);
    }
    logger_close(logger);
    svg = read_file(scene, "loss.svg", NULL);
    check_svg(svg);
    assert_int_equal(count_of(svg, "<circle"), 12);
    assert_non_null(strstr(svg, "held out: web"));
    assert_non_null(strstr(svg, "step 3000, 3.00M tokens, 1.210 bits per byte"));
    assert_true(strlen(svg) < 200000);  // for any length of the run
    free(svg);
}

// ---- the progress line ----

static void test_formats(void **state) {
    (void)state;
    static const struct {
        double value;
        const char *text;
    } COUNTS[] = {{0, "0"},         {7, "7"},         {999, "999"},      {999.6, "1.00k"},  {1234, "1.23k"},
                  {12345, "12.3k"}, {123456, "123k"}, {999600, "1.00M"}, {4.92e6, "4.92M"}, {3e12, "3.00T"}};
    char out[256];
    for (size_t i = 0; i < sizeof COUNTS / sizeof COUNTS[0]; ++i) {
        format_count(out, sizeof out, COUNTS[i].value);
        assert_string_equal(out, COUNTS[i].text);
    }
    format_tick(out, sizeof out, 0, 5e5);
    assert_string_equal(out, "0");
    format_tick(out, sizeof out, 2.5e6, 5e5);
    assert_string_equal(out, "2.5M");
    format_tick(out, sizeof out, 5e5, 5e5);
    assert_string_equal(out, "500k");
    format_tick(out, sizeof out, 3e9, 1e9);
    assert_string_equal(out, "3G");
    format_tick(out, sizeof out, 0.2, 0.1);
    assert_string_equal(out, "0.2");

    StepRecord step = make_step(42);
    progress_format(out, sizeof out, &step, NAN, 200);
    assert_string_equal(out, "step 42/100  loss 0.2326  lr 6.0e-04  norm 0.333  12.3k tok/s  61% of peak  1:12 left");
    progress_format(out, sizeof out, &step, 3.25, 200);
    assert_non_null(strstr(out, "  val 3.2500  "));
    for (int columns = 120; columns >= 12; --columns) {
        progress_format(out, sizeof out, &step, 3.25, columns);
        assert_true((int)strlen(out) <= columns);
        assert_true(columns < 40 || strstr(out, "left") != NULL);
    }
    step.seconds_left = 3 * 86400 + 7200;
    step.total_steps = 0;
    progress_format(out, sizeof out, &step, NAN, 200);
    assert_non_null(strstr(out, "step 42  "));
    assert_non_null(strstr(out, "3d 02h left"));
    step.seconds_left = 3700;
    progress_format(out, sizeof out, &step, NAN, 200);
    assert_non_null(strstr(out, "1:01:40 left"));
}

static void test_lines_in_a_log(void **state) {
    const Scene *scene = *state;
    capture_stderr(scene);
    Logger *logger = open_logger(scene, 0);
    for (int64_t s = 1; s <= 100; ++s) {
        StepRecord step = make_step(s);
        logger_step(logger, &step);
    }
    logger_message(logger, "done");
    logger_close(logger);
    char *text = read_file(scene, "stderr", NULL);
    assert_null(strchr(text, '\r'));
    assert_null(strchr(text, '\033'));
    // The first, the last, and one per second between them: the loop takes far less than five seconds.
    int lines = count_of(text, "\n");
    assert_true(lines >= 3 && lines <= 8);
    assert_non_null(strstr(text, "step 1/100  "));
    assert_non_null(strstr(text, "step 100/100  "));
    assert_non_null(strstr(text, "\ndone\n"));
    free(text);
}

static void test_line_on_a_terminal(void **state) {
    const Scene *scene = *state;
    int master, slave;
    struct winsize size = {.ws_row = 24, .ws_col = 60};
    if (openpty(&master, &slave, NULL, NULL, &size) != 0) {
        print_message("no pseudo-terminals here\n");
        skip();
    }
    setenv("TERM", "xterm", 1);
    dup2(slave, STDERR_FILENO);
    Logger *logger = open_logger(scene, 0);
    StepRecord step = make_step(1);
    logger_step(logger, &step);
    logger_message(logger, "a message");
    step = make_step(100);
    logger_step(logger, &step);
    logger_close(logger);
    char text[4096];
    ssize_t bytes = read(master, text, sizeof text - 1);
    assert_true(bytes > 0);
    text[bytes] = '\0';
    dup2(scene->saved_stderr, STDERR_FILENO);
    close(master);
    close(slave);
    assert_ptr_equal(strstr(text, "\rstep 1/100  "), text);
    assert_non_null(strstr(text, "\033[K\r\033[Ka message\r\n\rstep 100/100  "));  // the terminal converts \n to \r\n
    const char *last = strstr(text, "step 100/100");
    assert_true(strcspn(last, "\033") < 60);  // never wraps
    assert_non_null(strstr(last, "\033[K\r\n"));
}

int main(void) {
    const struct CMUnitTest TESTS[] = {
#define CASE(function) cmocka_unit_test_setup_teardown(function, open_scene, close_scene)
        CASE(test_records),         CASE(test_flushed_at_every_record),
        CASE(test_resume_cuts_off), CASE(test_open_errors),
        CASE(test_full_disk),       CASE(test_tensorboard),
        CASE(test_picture),         CASE(test_formats),
        CASE(test_lines_in_a_log),  CASE(test_line_on_a_terminal),
    };
    return cmocka_run_group_tests(TESTS, NULL, NULL);
}
