// logger_svg.c: draws the loss curve from a metrics.jsonl as plain SVG without scripts or embedded fonts. Training loss
// is drawn raw (pale) and smoothed, each held-out source with markers.
#include <cjson/cJSON.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/log/logger_text.h"

enum { WIDTH = 960, HEIGHT = 540, LEFT = 70, RIGHT = 28, TOP = 64, BOTTOM = 58, MAX_SERIES = 33 };
#define RAW_BUCKETS 800      // with more points than this, the raw curve shows the minimum and maximum of each bucket
#define SMOOTH_SHARE 40      // the smoothed curve averages over a fortieth of the run
#define WARM_SHARE 0.02      // the first part of the run does not affect the upper end of the loss axis,
#define WARM_MIN_POINTS 200  //   in a run of at least this many steps

static const char *const COLORS[] = {"#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2"};
enum { COLOR_COUNT = sizeof COLORS / sizeof COLORS[0] };
#define TRAIN_COLOR "#1f77b4"

typedef struct {
    double x, y;
} Point;

typedef struct {
    char name[64];
    Point *point;
    int64_t count, capacity;
} Series;

typedef struct {
    Series train, smooth;
    Series val[MAX_SERIES];
    int val_count;
    int64_t last_step;
    double last_tokens, last_bits_per_byte;
    char model[64], name[128];
} Curves;

typedef struct {
    double low, high;  // of the data
    double step;       // between ticks
    double pixel_low, pixel_high;
} Axis;

// ---- reading ----

static void series_add(Series *series, double x, double y) {
    if (!isfinite(x) || !isfinite(y)) return;
    if (series->count == series->capacity) {
        series->capacity = series->capacity > 0 ? 2 * series->capacity : 256;
        series->point = xrealloc(series->point, to_size(series->capacity) * sizeof *series->point);
    }
    series->point[series->count++] = (Point){x, y};
}

static Series *val_series(Curves *curves, const char *name) {
    for (int i = 0; i < curves->val_count; ++i)
        if (strcmp(curves->val[i].name, name) == 0) return &curves->val[i];
    if (curves->val_count == MAX_SERIES) return NULL;
    Series *series = &curves->val[curves->val_count++];
    snprintf(series->name, sizeof series->name, "%s", name);
    return series;
}

static double number_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static const char *string_of(const cJSON *object, const char *key) {
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsString(item) ? item->valuestring : NULL;
}

static void read_record(Curves *curves, const cJSON *record) {
    const cJSON *config = cJSON_GetObjectItemCaseSensitive(record, "config");
    const char *model = string_of(config, "model"), *source = string_of(record, "source");
    const char *out_dir = string_of(config, "out_dir");
    double tokens = number_of(record, "tokens"), step = number_of(record, "step");
    if (model != NULL) snprintf(curves->model, sizeof curves->model, "%s", model);
    if (out_dir != NULL) snprintf(curves->name, sizeof curves->name, "%s", out_dir);
    if (source != NULL) {
        Series *series = val_series(curves, source);
        if (series != NULL) series_add(series, tokens, number_of(record, "val_loss"));
        if (isfinite(number_of(record, "bits_per_byte")))
            curves->last_bits_per_byte = number_of(record, "bits_per_byte");
    } else if (cJSON_HasObjectItem(record, "loss")) {
        series_add(&curves->train, tokens, number_of(record, "loss"));
        if (step >= 0 && step < 1e15) curves->last_step = (int64_t)step;
        if (tokens >= 0) curves->last_tokens = tokens;
    }
}

static bool read_metrics(Curves *curves, const char *path, Error *err) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return error_set(err, "%s: cannot open: %s", path, strerror(errno));
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, file) > 0) {
        cJSON *record = cJSON_Parse(line);
        if (record != NULL) read_record(curves, record);
        cJSON_Delete(record);
    }
    free(line);
    bool ok = !ferror(file);
    fclose(file);
    return ok ? true : error_set(err, "%s: cannot read", path);
}

// Mean over a centred window. Near the start, where the loss falls steeply, the window is limited by the number of
// points before it.
static void smooth(Series *out, const Series *in) {
    double *sum = xmalloc(to_size(in->count + 1) * sizeof *sum);
    sum[0] = 0;
    for (int64_t i = 0; i < in->count; ++i) sum[i + 1] = sum[i] + in->point[i].y;
    for (int64_t i = 0; i < in->count; ++i) {
        int64_t half = min_i64(i / 2, in->count / SMOOTH_SHARE / 2);
        int64_t first = i - half, end = min_i64(i + half + 1, in->count);
        series_add(out, in->point[i].x, (sum[end] - sum[first]) / (double)(end - first));
    }
    free(sum);
}

// ---- axes ----

// The step 1, 2 or 5 times a power of ten that gives about `wanted` ticks.
static double nice_step(double span, int wanted) {
    double raw = span / wanted, power = pow(10, floor(log10(raw))), digit = raw / power;
    return power * (digit <= 1 ? 1 : digit <= 2 ? 2 : digit <= 5 ? 5 : 10);
}

static double axis_pixel(const Axis *axis, double value) {
    return axis->pixel_low + (value - axis->low) / (axis->high - axis->low) * (axis->pixel_high - axis->pixel_low);
}

static void widen(Axis *axis, const Series *series, double from_x) {
    for (int64_t i = 0; i < series->count; ++i) {
        if (series->point[i].x < from_x) continue;
        axis->low = fmin(axis->low, series->point[i].y);
        axis->high = fmax(axis->high, series->point[i].y);
    }
}

static void make_axes(Axis *x, Axis *y, const Curves *curves) {
    const Series *train = &curves->train;
    *x = (Axis){0, 1, 0, LEFT, WIDTH - RIGHT};
    *y = (Axis){INFINITY, -INFINITY, 0, HEIGHT - BOTTOM, TOP};
    if (train->count > 0) x->high = fmax(train->point[train->count - 1].x, 1);
    for (int i = 0; i < curves->val_count; ++i)
        if (curves->val[i].count > 0) x->high = fmax(x->high, curves->val[i].point[curves->val[i].count - 1].x);
    double warm = train->count >= WARM_MIN_POINTS ? WARM_SHARE * x->high : 0;
    widen(y, &curves->smooth, warm);
    for (int i = 0; i < curves->val_count; ++i) widen(y, &curves->val[i], warm);
    if (!(y->low <= y->high)) *y = (Axis){0, 1, 0, HEIGHT - BOTTOM, TOP};
    double margin = fmax(0.06 * (y->high - y->low), 1e-3 * fmax(fabs(y->high), 1e-3));
    y->low -= margin;
    y->high += margin;
    x->step = nice_step(x->high - x->low, 8);
    y->step = nice_step(y->high - y->low, 9);
}

static void draw_axes(FILE *out, const Axis *x, const Axis *y) {
    fprintf(out, "<g stroke=\"#e4e4e4\" stroke-width=\"1\">\n");
    for (double v = ceil(y->low / y->step) * y->step; v <= y->high; v += y->step)
        fprintf(out, "<path d=\"M%d %.1fH%d\"/>\n", LEFT, axis_pixel(y, v), WIDTH - RIGHT);
    for (double v = 0; v <= x->high * (1 + 1e-9); v += x->step)
        fprintf(out, "<path d=\"M%.1f %dV%d\"/>\n", axis_pixel(x, v), TOP, HEIGHT - BOTTOM);
    fprintf(out, "</g>\n<g fill=\"#444\" font-size=\"13\">\n");
    int decimals = y->step < 1 ? (int)fmin(ceil(-log10(y->step) - 1e-9), 6) : 0;
    for (double v = ceil(y->low / y->step) * y->step; v <= y->high; v += y->step)
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%.*f</text>\n", LEFT - 8, axis_pixel(y, v) + 4.5,
                decimals, fabs(v) < 1e-9 ? 0.0 : v);
    for (double v = 0; v <= x->high * (1 + 1e-9); v += x->step) {
        char label[24];
        format_tick(label, sizeof label, v, x->step);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", axis_pixel(x, v),
                HEIGHT - BOTTOM + 20, label);
    }
    fprintf(out, "</g>\n<path d=\"M%d %dV%dH%d\" fill=\"none\" stroke=\"#444\"/>\n", LEFT, TOP, HEIGHT - BOTTOM,
            WIDTH - RIGHT);
    fprintf(out, "<g fill=\"#222\" font-size=\"14\" text-anchor=\"middle\">\n");
    fprintf(out, "<text x=\"%d\" y=\"%d\">training tokens</text>\n", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 14);
    fprintf(out, "<text transform=\"translate(20 %d) rotate(-90)\">loss (nats per token)</text>\n</g>\n",
            (TOP + HEIGHT - BOTTOM) / 2);
}

// ---- curves ----

static void draw_line(FILE *out, const Series *series, const Axis *x, const Axis *y, const char *style) {
    if (series->count == 0) return;
    // One point per pixel is enough.
    int64_t stride = series->count > 4 * WIDTH ? series->count / (2 * WIDTH) : 1;
    fprintf(out, "<path %s d=\"M", style);
    for (int64_t i = 0; i < series->count; i += stride) {
        if (i + stride >= series->count) i = series->count - 1;
        fprintf(out, "%.1f %.1f\n", axis_pixel(x, series->point[i].x), axis_pixel(y, series->point[i].y));
    }
    fprintf(out, "\"/>\n");
}

// Of many points, only the lowest and highest of each bucket are drawn: spikes stay visible.
static void draw_raw(FILE *out, const Series *series, const Axis *x, const Axis *y) {
    Series spans = {0};
    for (int64_t b = 0; b < RAW_BUCKETS && series->count > 2 * RAW_BUCKETS; ++b) {
        int64_t first = series->count * b / RAW_BUCKETS, end = series->count * (b + 1) / RAW_BUCKETS;
        double low = INFINITY, high = -INFINITY;
        for (int64_t i = first; i < end; ++i) {
            low = fmin(low, series->point[i].y);
            high = fmax(high, series->point[i].y);
        }
        series_add(&spans, series->point[first].x, low);
        series_add(&spans, series->point[first].x, high);
    }
    const char *style = "fill=\"none\" stroke=\"" TRAIN_COLOR "\" stroke-opacity=\"0.35\" stroke-width=\"1\"";
    draw_line(out, spans.count > 0 ? &spans : series, x, y, style);
    free(spans.point);
}

static void draw_val(FILE *out, const Series *series, const Axis *x, const Axis *y, const char *color) {
    char style[96];
    snprintf(style, sizeof style, "fill=\"none\" stroke=\"%s\" stroke-width=\"2\" stroke-linejoin=\"round\"", color);
    draw_line(out, series, x, y, style);
    if (series->count > 60) return;
    for (int64_t i = 0; i < series->count; ++i)
        fprintf(out, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>\n", axis_pixel(x, series->point[i].x),
                axis_pixel(y, series->point[i].y), color);
}

static const char *val_color(const Curves *curves, int index) {
    bool is_mean = curves->val_count > 1 && strcmp(curves->val[index].name, "mean") == 0;
    return is_mean ? "#222222" : COLORS[index % COLOR_COUNT];
}

static void put_escaped(FILE *out, const char *text) {
    for (; *text != '\0'; ++text) {
        if (*text == '<') fputs("&lt;", out);
        else if (*text == '>') fputs("&gt;", out);
        else if (*text == '&') fputs("&amp;", out);
        else if (*text == '"') fputs("&quot;", out);
        else fputc(*text, out);
    }
}

static void draw_legend_entry(FILE *out, int row, const char *color, const char *what, const char *name,
                              double last) {
    int x = WIDTH - RIGHT - 216, y = TOP + 26 + 21 * row;
    fprintf(out, "<path d=\"M%d %dh22\" stroke=\"%s\" stroke-width=\"3\"/>", x, y - 4, color);
    fprintf(out, "<text x=\"%d\" y=\"%d\">%s", x + 30, y, what);
    put_escaped(out, name);
    fprintf(out, "</text><text x=\"%d\" y=\"%d\" text-anchor=\"end\">%.4f</text>\n", x + 202, y, last);
}

static void draw_legend(FILE *out, const Curves *curves) {
    enum { MAX_ROWS = 12 };
    int rows = 0;
    if (curves->smooth.count > 0) ++rows;
    int vals = curves->val_count < MAX_ROWS ? curves->val_count : MAX_ROWS;
    if (rows + vals == 0) return;
    fprintf(out,
            "<rect x=\"%d\" y=\"%d\" width=\"226\" height=\"%d\" rx=\"4\" fill=\"#fff\" fill-opacity=\"0.85\" "
            "stroke=\"#ccc\"/>\n<g fill=\"#222\" font-size=\"13\">\n",
            WIDTH - RIGHT - 230, TOP + 6, 14 + 21 * (rows + vals));
    rows = 0;
    if (curves->smooth.count > 0)
        draw_legend_entry(out, rows++, TRAIN_COLOR, "training", "", curves->smooth.point[curves->smooth.count - 1].y);
    for (int i = 0; i < vals; ++i) {
        const Series *val = &curves->val[i];
        bool plain = curves->val_count == 1;
        if (val->count > 0)
            draw_legend_entry(out, rows++, val_color(curves, i),
                              plain ? "held out" : "held out: ", plain ? "" : val->name,
                              val->point[val->count - 1].y);
    }
    fprintf(out, "</g>\n");
}

static void draw_title(FILE *out, const Curves *curves) {
    char tokens[24];
    format_count(tokens, sizeof tokens, curves->last_tokens);
    fprintf(out, "<text x=\"%d\" y=\"28\" font-size=\"19\" font-weight=\"600\" fill=\"#111\">", LEFT);
    put_escaped(out, curves->name[0] != '\0' ? curves->name : "loss");
    fprintf(out, "</text>\n<text x=\"%d\" y=\"49\" font-size=\"13\" fill=\"#555\">", LEFT);
    put_escaped(out, curves->model);
    fprintf(out, "%sstep %lld, %s tokens", curves->model[0] != '\0' ? ", " : "", (long long)curves->last_step,
            tokens);
    if (curves->last_bits_per_byte > 0) fprintf(out, ", %.3f bits per byte held out", curves->last_bits_per_byte);
    fprintf(out, "</text>\n");
}

static void draw_picture(FILE *out, const Curves *curves) {
    Axis x, y;
    make_axes(&x, &y, curves);
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
            "font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
            WIDTH, HEIGHT, WIDTH, HEIGHT, WIDTH, HEIGHT);
    draw_title(out, curves);
    draw_axes(out, &x, &y);
    fprintf(out,
            "<clipPath id=\"plot\"><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\"/></clipPath>\n"
            "<g clip-path=\"url(#plot)\">\n",
            LEFT, TOP, WIDTH - RIGHT - LEFT + 4, HEIGHT - BOTTOM - TOP);
    draw_raw(out, &curves->train, &x, &y);
    draw_line(out, &curves->smooth, &x, &y,
              "fill=\"none\" stroke=\"" TRAIN_COLOR "\" stroke-width=\"2\" stroke-linejoin=\"round\"");
    for (int i = 0; i < curves->val_count; ++i) draw_val(out, &curves->val[i], &x, &y, val_color(curves, i));
    fprintf(out, "</g>\n");
    draw_legend(out, curves);
    fprintf(out, "</svg>\n");
}

bool logger_draw_curve(const char *metrics_path, const char *svg_path, Error *err) {
    Curves *curves = xcalloc(1, sizeof *curves);
    bool ok = read_metrics(curves, metrics_path, err);
    if (ok) {
        smooth(&curves->smooth, &curves->train);
        char *svg = NULL;
        size_t bytes;
        FILE *out = open_memstream(&svg, &bytes);
        CHECK(out != NULL, "out of host memory drawing %s", svg_path);
        draw_picture(out, curves);
        fclose(out);
        ok = file_write_atomic(svg_path, svg, bytes, err);
        free(svg);
    }
    free(curves->train.point);
    free(curves->smooth.point);
    for (int i = 0; i < curves->val_count; ++i) free(curves->val[i].point);
    free(curves);
    return ok;
}
