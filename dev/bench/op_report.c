// op_report.c: the results of `bench op`: a table, JSON, and the comparison with an earlier JSON report.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/bench/op_bench.h"
#include "llmc/base/json.h"

// Smaller differences are not reported, however small the noise.
#define LEAST_REGRESSION 0.02

static double rate(double amount, const OpTiming *timing) { return timing->median > 0 ? amount / timing->median : 0; }

// ---- table ----

void op_print_heading(const OpPeaks *peaks, bool with_peer) {
    printf("peaks measured now: copy %.1f GB/s", peaks->copy * 1e-9);
    if (peaks->fp32 > 0) printf(", fp32 %.2f TFLOP/s", peaks->fp32 * 1e-12);
    if (peaks->bf16 > 0) printf(", bf16 %.2f TFLOP/s", peaks->bf16 * 1e-12);
    if (peaks->fp8 > 0) printf(", fp8 %.2f TFLOP/s", peaks->fp8 * 1e-12);
    printf(" (%s)\n", peaks->source);
    if (peaks->dense_bf16 > 0)
        printf("dense bf16 peak: %.1f TFLOP/s (%s)\n", peaks->dense_bf16 * 1e-12, peaks->dense_source);
    printf(
        "cold: operands come from memory; warm: from cache, if they fit. roof: the share of the limit set by memory "
        "(mem) or arithmetic\n(math), whichever is lower. check: error over tolerance, the worse of before and after; * "
        "not bit-identical on repetition\n\n");
    printf("%-46s %-5s %-18s %9s %9s %9s %9s %8s %8s %6s %-4s %6s%s\n", "operation", "dtype", "shape", "p10 us",
           "median us", "p90 us", "warm us", "GB/s", "TFLOP/s", "roof %", "by", "check",
           with_peer ? "   peer us  ratio" : "");
}

static const cJSON *find_row(const cJSON *rows, const cJSON *row) {
    static const char *const KEYS[] = {"op", "variant", "dtype", "label", "shape"};
    const cJSON *other;
    cJSON_ArrayForEach(other, rows) {
        bool same = true;
        for (size_t k = 0; k < sizeof KEYS / sizeof KEYS[0] && same; ++k) {
            const cJSON *a = json_find(row, KEYS[k]), *b = json_find(other, KEYS[k]);
            same = cJSON_IsString(a) && cJSON_IsString(b) && strcmp(a->valuestring, b->valuestring) == 0;
        }
        if (same) return other;
    }
    return NULL;
}
static double timing_field(const cJSON *row, const char *timing, const char *field) {
    const cJSON *object = json_find(row, timing);
    double value;
    return object != NULL && json_as_f64(json_find(object, field), &value) ? value : 0;
}

static void add_key(cJSON *row, const OpCase *c) {
    char shape[96];
    op_shape_text(shape, sizeof shape, &c->shape);
    cJSON_AddStringToObject(row, "op", c->kind->op);
    cJSON_AddStringToObject(row, "variant", c->kind->variant);
    cJSON_AddStringToObject(row, "dtype", dtype_name(c->dtype));
    cJSON_AddStringToObject(row, "label", c->shape.label);
    cJSON_AddStringToObject(row, "shape", shape);
    cJSON *dims = cJSON_AddArrayToObject(row, "dims");
    for (int i = 0; i < c->shape.dims; ++i) cJSON_AddItemToArray(dims, cJSON_CreateNumber((double)c->shape.dim[i]));
    cJSON_AddNumberToObject(row, "flags", c->shape.flags);
}

void op_print_result(const OpResult *r, const cJSON *peer_rows) {
    char name[128], shape[96], warm[16] = "-", flops[16] = "-";
    snprintf(name, sizeof name, "%s%s%s, %s", r->c->kind->op, strcmp(r->c->kind->variant, "plain") == 0 ? "" : " ",
             strcmp(r->c->kind->variant, "plain") == 0 ? "" : r->c->kind->variant, r->c->shape.label);
    op_shape_text(shape, sizeof shape, &r->c->shape);
    printf("%-46s %-5s %-18s ", name, dtype_name(r->c->dtype), shape);
    if (!r->ran) {
        printf("skipped: %s\n", r->why);
        return;
    }
    if (r->warm.samples > 0) snprintf(warm, sizeof warm, "%.2f", r->warm.median * 1e6);
    if (r->flops > 0) snprintf(flops, sizeof flops, "%.3f", rate(r->flops, &r->cold) * 1e-12);
    printf("%9.2f %9.2f %9.2f %9s %8.1f %8s %6.1f %-4s %5.2f%s", r->cold.p10 * 1e6, r->cold.median * 1e6,
           r->cold.p90 * 1e6, warm, rate(r->bytes, &r->cold) * 1e-9, flops, 100 * r->roofline / r->cold.median,
           r->by_memory ? "mem" : "math", r->check.worst, r->repeatable ? " " : "*");
    if (peer_rows != NULL) {
        cJSON *key = cJSON_CreateObject();
        add_key(key, r->c);
        const cJSON *peer = find_row(peer_rows, key);
        double theirs = peer != NULL ? timing_field(peer, "cold", "median") : 0;
        if (theirs > 0) printf(" %9.2f %5.2fx", theirs * 1e6, theirs / r->cold.median);
        cJSON_Delete(key);
    }
    if (!r->check.ok)
        printf("\n    WRONG: %s is off by %.3g, at most %.3g allowed", r->check.what, r->check.error,
               r->check.tolerance);
    if (r->choice[0] != '\0') printf("\n    %s", r->choice);
    printf("\n");
}

// ---- JSON ----

static void add_timing(cJSON *row, const char *name, const OpTiming *timing) {
    if (timing->samples == 0) return;
    cJSON *object = cJSON_AddObjectToObject(row, name);
    cJSON_AddNumberToObject(object, "p10", timing->p10);
    cJSON_AddNumberToObject(object, "median", timing->median);
    cJSON_AddNumberToObject(object, "p90", timing->p90);
    cJSON_AddNumberToObject(object, "samples", timing->samples);
    cJSON_AddNumberToObject(object, "calls", timing->calls);
}

static cJSON *result_row(const OpResult *r) {
    cJSON *row = cJSON_CreateObject();
    add_key(row, r->c);
    if (r->why[0] != '\0') cJSON_AddStringToObject(row, "skipped", r->why);
    if (!r->ran) return row;
    cJSON_AddNumberToObject(row, "bytes", r->bytes);
    cJSON_AddNumberToObject(row, "flops", r->flops);
    add_timing(row, "cold", &r->cold);
    add_timing(row, "warm", &r->warm);
    cJSON_AddNumberToObject(row, "gb_per_s", rate(r->bytes, &r->cold) * 1e-9);
    cJSON_AddNumberToObject(row, "tflop_per_s", rate(r->flops, &r->cold) * 1e-12);
    cJSON_AddNumberToObject(row, "roofline_share", r->roofline / r->cold.median);
    cJSON_AddStringToObject(row, "bound", r->by_memory ? "memory" : "arithmetic");
    cJSON_AddBoolToObject(row, "correct", r->check.ok);
    cJSON_AddNumberToObject(row, "error", isfinite(r->check.error) ? r->check.error : -1);
    cJSON_AddNumberToObject(row, "tolerance", r->check.tolerance);
    cJSON_AddBoolToObject(row, "repeatable", r->repeatable);
    if (r->choice[0] != '\0') cJSON_AddStringToObject(row, "choice", r->choice);
    return row;
}

cJSON *op_report(const OpResult *results, int count, const OpPeaks *peaks, const char *backend, const char *device,
                 const OpScale *scale) {
    cJSON *report = cJSON_CreateObject();
    cJSON_AddStringToObject(report, "bench", "op");
    cJSON_AddStringToObject(report, "program", "tokamak");
    cJSON_AddStringToObject(report, "backend", backend);
    cJSON_AddStringToObject(report, "device", device);
    cJSON_AddStringToObject(report, "scale", scale->name);
    cJSON_AddNumberToObject(report, "rotation_bytes", (double)scale->rotation_bytes);
    cJSON *peak = cJSON_AddObjectToObject(report, "peaks");
    cJSON_AddNumberToObject(peak, "copy_bytes_per_s", peaks->copy);
    cJSON_AddNumberToObject(peak, "fp32", peaks->fp32);
    cJSON_AddNumberToObject(peak, "bf16", peaks->bf16);
    cJSON_AddNumberToObject(peak, "fp8", peaks->fp8);
    cJSON_AddStringToObject(peak, "source", peaks->source);
    cJSON_AddNumberToObject(peak, "dense_bf16", peaks->dense_bf16);
    cJSON_AddStringToObject(peak, "dense_source", peaks->dense_source);
    cJSON *rows = cJSON_AddArrayToObject(report, "rows");
    for (int i = 0; i < count; ++i) cJSON_AddItemToArray(rows, result_row(&results[i]));
    return report;
}

bool op_report_write(const cJSON *report, const char *path, Error *err) {
    // One row per line: valid JSON that can be read and compared with diff.
    const cJSON *item;
    size_t used = 0, room = 1 << 16;
    char *text = xmalloc(room);
    const char *separator = "{";
    cJSON_ArrayForEach(item, report) {
        bool rows = strcmp(item->string, "rows") == 0;
        const cJSON *row = rows ? item->child : item;
        for (bool first = true; row != NULL || first; first = false) {
            char *value = row == NULL ? xstrdup("") : cJSON_PrintUnformatted(row);
            CHECK(value != NULL, "no memory to print '%s'", item->string);
            while (used + strlen(value) + 256 > room) text = xrealloc(text, room *= 2);
            if (first)
                used += (size_t)sprintf(text + used, "%s\"%s\": %s", separator, item->string, rows ? "[\n" : "");
            used += (size_t)sprintf(text + used, "%s%s", rows && !first ? ",\n" : "", value);
            free(value);
            row = rows && row != NULL ? row->next : NULL;
            if (row == NULL) break;
        }
        if (rows) used += (size_t)sprintf(text + used, "]");
        separator = ",\n";
    }
    used += (size_t)sprintf(text + used, "}\n");
    bool ok = file_write_atomic(path, text, used, err);
    free(text);
    return ok;
}

// ---- comparison with an earlier report ----

static bool same_text(const cJSON *a, const cJSON *b, const char *key, Error *err) {
    const cJSON *x = json_find(a, key), *y = json_find(b, key);
    if (!cJSON_IsString(x) || !cJSON_IsString(y) || strcmp(x->valuestring, y->valuestring) != 0)
        return error_set(err,
                         "--against: only reports of one machine can be compared: %s is \"%s\" now and was \"%s\"",
                         key, cJSON_IsString(x) ? x->valuestring : "", cJSON_IsString(y) ? y->valuestring : "");
    return true;
}
static const char *text_of(const cJSON *row, const char *key) {
    const cJSON *item = json_find(row, key);
    return cJSON_IsString(item) ? item->valuestring : "";
}
static double spread(const cJSON *row) {
    return (timing_field(row, "cold", "p90") - timing_field(row, "cold", "p10")) /
           timing_field(row, "cold", "median");
}

int op_report_against(const cJSON *report, const cJSON *old, Error *err) {
    if (!same_text(report, old, "device", err) || !same_text(report, old, "scale", err)) return -1;
    const cJSON *now_rows = json_find(report, "rows"), *old_rows = json_find(old, "rows"), *row;
    int slower = 0, faster = 0, equal = 0, absent = 0;
    printf("\ncompared with the earlier report (noise: p90 - p10 of both, at least %.0f %%)\n", 100 * LEAST_REGRESSION);
    cJSON_ArrayForEach(row, now_rows) {
        const cJSON *before = find_row(old_rows, row);
        double now = timing_field(row, "cold", "median"), then = before ? timing_field(before, "cold", "median") : 0;
        if (then <= 0 || now <= 0) {
            // A case of the old report that was not measured now counts; a new case is not comparable.
            if (then > 0) {
                printf("  MISSING %s %s, %s, %s: %s\n", text_of(row, "op"), text_of(row, "variant"),
                       text_of(row, "label"), text_of(row, "dtype"), text_of(row, "skipped"));
                ++slower;
            }
            ++absent;
            continue;
        }
        double change = now / then - 1, noise = fmax(LEAST_REGRESSION, spread(row) + spread(before));
        if (fabs(change) <= noise) {
            ++equal;
            continue;
        }
        if (change > 0) ++slower;
        else ++faster;
        printf("  %s %s %s, %s, %s: %.2f us then, %.2f us now (%+.1f %%, noise %.1f %%)\n",
               change > 0 ? "SLOWER " : "faster ", text_of(row, "op"), text_of(row, "variant"), text_of(row, "label"),
               text_of(row, "dtype"), then * 1e6, now * 1e6, 100 * change, 100 * noise);
    }
    printf("  %d slower or missing, %d faster, %d within the noise, %d not comparable\n", slower, faster, equal, absent);
    return slower;
}
