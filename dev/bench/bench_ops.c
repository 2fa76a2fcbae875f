// bench_ops.c: `bench op`: single operations at the shapes of real models, through the function pointers that training
// calls, on any backend. The cases come from the registry dev/cases; this file selects, measures and reports.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "dev/bench/bench.h"
#include "dev/bench/op_bench.h"
#include "llmc/base/json.h"
#include "llmc/config/config.h"

typedef struct {
    const char *only, *dtype, *models, *scale, *json, *against, *peer;
    BenchDevice device;
    int64_t repeats, seconds;
    bool list;
} OpOptions;

static const char USAGE[] =
    "bench op: single operations at the shapes of real models\n\n"
    "examples\n"
    "  bench op --only head --dtype bf16                    some cases on the CPU\n"
    "  bench op --device cuda --json ops.json               all cases on a GPU, also as JSON\n"
    "  bench op --device cuda --against ops.json            exit status 1 if anything became slower or wrong\n"
    "  bench op --device cuda --list --json cases.json      the cases, for peer_ops_pytorch.py\n"
    "  bench op --device cuda --peer pytorch.json           PyTorch's times beside ours";

// The device, opened with the attention that the current case needs.
typedef struct {
    BenchDevice choice;
    Backend *be;
    const char *attention;  // of the last attempt to open it
    bool tried;
    char failure[200];  // the error of that attempt, or empty
} OpDevice;

// attention NULL: any; an open device is then reused.
static Backend *device_for(OpDevice *device, const char *attention) {
    if (attention == NULL && device->be != NULL) return device->be;
    const char *wanted = attention != NULL ? attention : "auto";
    if (device->tried && strcmp(wanted, device->attention) == 0 && (device->be != NULL || device->failure[0] != '\0'))
        return device->be;
    if (device->be != NULL) device->be->close(device->be);
    Error err = {""};
    BenchDevice choice = device->choice;
    choice.attention = device->attention = wanted;
    device->tried = true;
    device->be = bench_device_open(&choice, &err);
    snprintf(device->failure, sizeof device->failure, "%.199s", err.message);
    return device->be;
}

// ---- progress on stderr: a live line on a terminal, otherwise a line every 15 s ----

static void show_progress(int done, int count, const OpCase *c, double started, double *shown) {
    double now = now_seconds(), left = done > 0 ? (now - started) / done * (count - done) : 0;
    bool live = isatty(STDERR_FILENO);
    if (done < count && !live && now - *shown < 15) return;
    if (live && done == count) fprintf(stderr, "\r\033[K");
    if (done == count) return;
    *shown = now;
    fprintf(stderr, "%s%d of %d: %s, %s", live ? "\r\033[K" : "", done + 1, count, c->kind->op, c->shape.label);
    if (done > 0)
        fprintf(stderr, ", %.0f:%02.0f left", (double)(int)(left / 60), left - 60 * (double)(int)(left / 60));
    fputs(live ? "" : "\n", stderr);
}

// ---- ----

static void print_list(const OpResult *results, int count) {
    for (int i = 0; i < count; ++i) {
        const OpCase *c = results[i].c;
        char shape[96];
        op_shape_text(shape, sizeof shape, &c->shape);
        printf("%-20s %-10s %-5s %-24s %s\n", c->kind->op, c->kind->variant, dtype_name(c->dtype), c->shape.label,
               shape);
    }
    printf("%d cases\n", count);
}

static int measure_all(OpResult *results, int count, OpDevice *device, const OpScale *scale, const OpOptions *options,
                       const OpPeaks *peaks, const cJSON *peer_rows) {
    OpCall call = {0};
    double started = now_seconds(), shown = started;
    int failures = 0;
    for (int i = 0; i < count; ++i) {
        OpResult *r = &results[i];
        show_progress(i, count, r->c, started, &shown);
        Backend *be = device_for(device, r->c->kind->attention);
        if (be == NULL) snprintf(r->why, sizeof r->why, "%s", device->failure);
        else if (options->seconds > 0 && now_seconds() - started > (double)options->seconds)
            snprintf(r->why, sizeof r->why, "time limit reached (--seconds %lld)", (long long)options->seconds);
        else if (r->c->kind->fp8 && !be->matmul_fp8)
            snprintf(r->why, sizeof r->why, "this device has no 8-bit matmuls");
        else if (!op_measure(r, &call, be, scale, (int)options->repeats, peaks)) {
            ++failures;  // the device failed: the next case opens it again
            be->close(be);
            device->be = NULL;
        }
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
        op_print_result(r, peer_rows);
        fflush(stdout);
        failures += r->ran && (!r->check.ok || !r->repeatable);
    }
    free(call.normals);
    return failures;
}

// Returns the number of cases that failed or became slower; -1: an error, already printed.
static int run_list(OpResult *results, int count, OpDevice *device, const OpScale *scale, const OpOptions *options,
                    const cJSON *peer_rows, const cJSON *old) {
    Error err = {""};
    OpPeaks peaks = {0};
    Backend *be = device_for(device, NULL);
    if (be == NULL) {
        fprintf(stderr, "bench op: %s\n", device->failure);
        return -1;
    }
    char name[32], description[sizeof be->description];
    snprintf(name, sizeof name, "%s", be->name);
    memcpy(description, be->description, sizeof description);
    int failures = 0;
    if (options->list) {
        print_list(results, count);
    } else {
        bool bf16 = strcmp(options->dtype, "fp32") != 0, fp32 = strcmp(options->dtype, "bf16") != 0;
        op_measure_peaks(&peaks, be, scale, fp32, bf16);
        printf("%s\n", description);
        op_print_heading(&peaks, peer_rows != NULL);
        failures = measure_all(results, count, device, scale, options, &peaks, peer_rows);
    }
    cJSON *report = op_report(results, count, &peaks, name, description, scale);
    bool ok = options->json[0] == '\0' || op_report_write(report, options->json, &err);
    int slower = ok && old != NULL ? op_report_against(report, old, &err) : 0;
    cJSON_Delete(report);
    if (!ok || slower < 0) {
        fprintf(stderr, "bench op: %s\n", err.message);
        return -1;
    }
    failures += slower;
    if (failures > 0)
        fprintf(stderr, "bench op: %d case%s failed or became slower\n", failures, failures == 1 ? "" : "s");
    return failures;
}

static bool read_report(cJSON **out, const char *path, Error *err) {
    *out = NULL;
    if (path[0] == '\0') return true;
    *out = json_parse_file(path, (size_t)64 << 20, err);
    if (*out == NULL) return false;
    if (cJSON_IsArray(json_find(*out, "rows"))) return true;
    return error_set(err, "%s: expected a report of bench op --json, found no \"rows\"", path);
}

int bench_ops_main(int argc, char **argv) {
    OpOptions o = {.only = "",
                   .dtype = "",
                   .models = "",
                   .scale = "",
                   .json = "",
                   .against = "",
                   .peer = "",
                   .device = {.device = "cpu", .isa = "auto"},
                   .repeats = 11};
    static const Word DTYPE_CHOICES[] = {{0, "fp32"}, {0, "bf16"}, {0, "all"}, {0, NULL}};
    const Option rows[] = {
        {"device", OPTION_TO(o.device.device), .help = "cpu, cuda or cudaemu"},
        {"only", OPTION_TO(o.only), .help = "cases whose \"operation variant label shape\" contains this"},
        {"dtype", OPTION_TO(o.dtype), .words = DTYPE_CHOICES, .help = "default: fp32 on a CPU, bf16 elsewhere"},
        {"models", OPTION_TO(o.models), .help = "all, or names such as gpt2-124M,qwen2-0.5B (default: the scale's)"},
        {"scale", OPTION_TO(o.scale), .help = "rows and lengths: cpu, gpu or tiny (default: the device's)"},
        {"repeats", OPTION_TO(o.repeats), OPTION_WHOLE, 1, 1e6, .help = "timed samples per case"},
        {"seconds", OPTION_TO(o.seconds), OPTION_WHOLE, 0, 1e15,
         .help = "time limit: later cases are skipped; 0: none"},
        {"json", OPTION_TO(o.json), .help = "also write the results to this file"},
        {"against", OPTION_TO(o.against), .help = "compare with an earlier --json file; exit status 1 on a regression"},
        {"peer", OPTION_TO(o.peer), .help = "JSON of peer_ops_pytorch.py, shown beside our times"},
        {"list", OPTION_TO(o.list), OPTION_FLAG, .help = "only list the cases"},
        {"threads", OPTION_TO(o.device.threads), OPTION_WHOLE, 0, 4096, .help = "CPU: threads; 0: all cores"},
        {"isa", OPTION_TO(o.device.isa), .words = CPU_ISA_WORDS, .help = "CPU: instruction set of the kernels"}};
    const OptionTable table = BENCH_OPTIONS(rows, USAGE);
    int status = options_read(&table, argc, argv);
    if (status >= 0) return status;
    bool on_cpu = strcmp(o.device.device, "cpu") == 0, emulated = strcmp(o.device.device, "cudaemu") == 0;
    if (o.dtype[0] == '\0') o.dtype = on_cpu ? "fp32" : "bf16";
    if (o.scale[0] == '\0') o.scale = on_cpu ? "cpu" : emulated ? "tiny" : "gpu";
    const OpScale *scale = op_scale_find(o.scale);
    bool bf16 = strcmp(o.dtype, "bf16") == 0 || strcmp(o.dtype, "all") == 0;
    bool fp32 = strcmp(o.dtype, "fp32") == 0 || strcmp(o.dtype, "all") == 0;
    if (scale == NULL) {
        fprintf(stderr, "bench op: --scale: expected one of: cpu gpu tiny; found '%s'\n", o.scale);
        return 2;
    }
    Error err = {""};
    OpModel models[OP_MAX_MODELS];
    int model_count = op_models_parse(models, o.models[0] != '\0' ? o.models : scale->models, scale, &err);
    cJSON *peer = NULL, *old = NULL;
    if (model_count < 0 || !read_report(&peer, o.peer, &err) || !read_report(&old, o.against, &err)) {
        fprintf(stderr, "bench op: %s\n", err.message);
        cJSON_Delete(peer);
        return model_count < 0 ? 2 : 1;
    }
    OpFilter filter = {.only = o.only,
                       .fp32 = fp32,
                       .bf16 = bf16,
                       .on_gpu = !on_cpu,
                       .scale = scale,
                       .models = models,
                       .model_count = model_count};
    OpList list = op_list_build(&filter);
    OpResult *results = xcalloc((size_t)list.count + 1, sizeof *results);
    for (int i = 0; i < list.count; ++i) results[i].c = &list.cases[i];
    OpDevice device = {.choice = o.device};
    int failures = -1;
    if (list.count == 0) fprintf(stderr, "bench op: no case contains \"%s\"; see --list\n", o.only);
    else failures = run_list(results, list.count, &device, scale, &o, json_find(peer, "rows"), old);
    if (device.be != NULL) device.be->close(device.be);
    cJSON_Delete(peer);
    cJSON_Delete(old);
    free(results);
    op_list_free(&list);
    return failures == 0 ? 0 : 1;
}
