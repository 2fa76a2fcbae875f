// scaling_print.c: the options and the printed table of `train_gpt plan world=N`; see scaling.h.
#include <math.h>

#include "llmc/base/option_table.h"
#include "llmc/plan/scaling.h"

#define GIB 1073741824.0

#define FIELD(name) OPTION_AT(ScalingOptions, name)

static const Option ROWS[] = {
    {"world", FIELD(world), OPTION_WHOLE, 1, SCALING_MAX_WORLD,
     .help = "ranks; also predicts the step for 1, 2, 4, ... of them"},
    {"gpu", FIELD(gpu), OPTION_CHARS,
     .help = "h100, h200, a100, b200, or cpu (default: h100; cpu where the device is one)"},
    {"gpus_per_node", FIELD(gpus_per_node), OPTION_WHOLE, 1, 1024, .help = "ranks of a node (default: 8)"},
    {"network_gbits", FIELD(network_gbits), OPTION_REAL, 0.001, 1e5,
     .help = "Gb/s between nodes for each rank, as measured"},
    {"network_latency_us", FIELD(network_latency_us), OPTION_REAL, 0.001, 1e6, .help = "latency of a hop between nodes"},
    {"node_gbytes", FIELD(node_gbytes), OPTION_REAL, 0.001, 1e5, .help = "GB/s between ranks of a node, as measured"},
    {"node_latency_us", FIELD(node_latency_us), OPTION_REAL, 0.001, 1e6, .help = "latency of a hop inside a node"},
    {"memory_gib", FIELD(memory_gib), OPTION_REAL, 0.1, 1e6, .help = "memory of a device"},
    {"memory_gbytes", FIELD(memory_gbytes), OPTION_REAL, 0.1, 1e6, .help = "GB/s of that memory, as measured"},
    {"mfu", FIELD(mfu), OPTION_REAL, 0.001, 1,
     .help = "MFU of the passes, measured on one rank: replaces the model of the computation"},
    {"tensor", FIELD(tensor), OPTION_WHOLE, 1, 64,
     .help = "prediction only, not in training: ranks that share every block's matrices"},
    {"context", FIELD(context), OPTION_WHOLE, 1, 4096,
     .help = "prediction only, not in training: ranks that share every row"},
};

bool scaling_take_options(ScalingOptions *out, int *argc, char **argv, Error *err) {
    Machine machine;
    ScalingOptions taken = *out;
    const OptionTable table = {OPTION_ROWS(ROWS), .spelling = OPTIONS_KEYS, .base = &taken};
    if (!options_take(argc, argv, &table, err)) return false;
    if (taken.gpu[0] != '\0' && !machine_find(&machine, taken.gpu, err)) return false;
    *out = taken;
    return true;
}

void scaling_options_help(FILE *out) {
    fprintf(out, "Prediction for other machines (plan only)\n");
    for (size_t i = 0; i < sizeof ROWS / sizeof ROWS[0]; ++i) option_print(out, &ROWS[i], OPTIONS_KEYS, NULL);
    fprintf(out, "\n");
}

bool scaling_machine(Machine *out, const ScalingOptions *options, const RunConfig *config, Error *err) {
    if (!machine_find(out, options->gpu[0] != '\0' ? options->gpu : "h100", err)) return false;
    if (options->gpus_per_node > 0) out->per_node = options->gpus_per_node;
    if (options->network_gbits > 0) out->network_bytes_per_second = options->network_gbits * 1e9 / 8;
    if (options->network_latency_us > 0) out->network_latency_seconds = options->network_latency_us * 1e-6;
    if (options->node_gbytes > 0) out->node_bytes_per_second = options->node_gbytes * 1e9;
    if (options->node_latency_us > 0) out->node_latency_seconds = options->node_latency_us * 1e-6;
    if (options->memory_gib > 0) out->memory_bytes = options->memory_gib * GIB;
    if (options->memory_gbytes > 0) out->memory_bytes_per_second = options->memory_gbytes * 1e9;
    if (options->mfu > 0) out->mfu = options->mfu;
    if (config->fp8 && out->peak_fp8 <= 0) return error_set(err, "fp8=true: gpu=%s has no 8-bit products", out->name);
    return true;
}

// ---------------------------------------------------------------------------------------------------------------
// The table

// Three digits and a unit: "57.4k", or "989 T" with a space as separator.
static void format_count(char *out, size_t bytes, double value, const char *separator) {
    static const char *const UNITS[] = {"", "k", "M", "G", "T", "P"};
    int unit = 0;
    while (unit < 5 && value >= 999.5) {
        value /= 1e3;
        ++unit;
    }
    snprintf(out, bytes, "%.*f%s%s",
             unit == 0 || value >= 99.95 ? 0
             : value >= 9.995            ? 1
                                         : 2,
             value, separator, UNITS[unit]);
}

static void print_assumptions(FILE *out, const ScalingJob *job, const Machine *m) {
    char peak[16], memory[16], node[16], network[16];
    format_count(peak, sizeof peak, machine_peak(m, job->dtype), " ");
    format_count(memory, sizeof memory, m->memory_bytes_per_second, " ");
    format_count(node, sizeof node, m->node_bytes_per_second, " ");
    format_count(network, sizeof network, 8 * m->network_bytes_per_second, " ");
    fprintf(out, "predicted on %s: %sFLOP/s dense %s", m->name, peak, word_of(DTYPE_WORDS, (int)job->dtype));
    if (m->mfu > 0) fprintf(out, ", %.1f %% of it measured on one rank", 100 * m->mfu);
    else fprintf(out, ", products reach %.0f %%, attention %.0f %%", 100 * m->matmul_share, 100 * m->attention_share);
    fprintf(out, "; memory %sB/s;\n", memory);
    if (m->slots > 0) fprintf(out, "  %lld ranks at full speed on one machine, ", (long long)m->slots);
    else fprintf(out, "  %lld ranks a node, ", (long long)m->per_node);
    fprintf(out, "%sB/s and %.1f us a hop inside it", node, m->node_latency_seconds * 1e6);
    if (m->slots == 0)
        fprintf(out, ", %sb/s a rank and %.1f us between nodes", network, m->network_latency_seconds * 1e6);
    fprintf(out, "\n");
}

static void print_row(FILE *out, const ScalingPrediction *p) {
    char batch[16], total[16], each[16];
    format_count(batch, sizeof batch, (double)p->batch_tokens, "");
    format_count(total, sizeof total, p->tokens_per_second, "");
    format_count(each, sizeof each, p->tokens_per_second / (double)p->world, "");
    fprintf(out, "%6lld %7s %3lld x%-4lld %7.1f %-3s %9.3f %9.3f %8.3f %7.3f %6.3f %6s %6s %5.1f\n",
            (long long)p->world, batch, (long long)p->B, (long long)p->micro_batches, p->bytes.total / GIB,
            p->fits ? "yes" : "no", p->step_seconds, p->compute_seconds, p->exposed_seconds, p->update_seconds,
            p->agree_seconds, total, each, 100 * p->mfu);
}

static void print_bytes(FILE *out, const ScalingPrediction *p) {
    const struct {
        const char *name;
        double bytes;
    } parts[] = {{"weights", p->bytes.weights},
                 {"gathered weights", p->bytes.gathered},
                 {"master weights", p->bytes.masters},
                 {"gradients", p->bytes.gradients},
                 {"optimizer moments", p->bytes.moments},
                 {"activations", p->bytes.activations},
                 {"logits", p->bytes.logits},
                 {"key/value cache", p->bytes.cache},
                 {"receive buffers", p->bytes.scratch}};
    fprintf(out, "of %lld ranks the fullest, GiB:", (long long)p->world);
    const char *separator = " ";
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; ++i) {
        if (parts[i].bytes <= 0) continue;
        fprintf(out, "%s%s %.2f", separator, parts[i].name, parts[i].bytes / GIB);
        separator = ", ";
    }
    const bool small = p->comm_bytes < GIB;
    fprintf(out, "\na rank sends %.*f %s a step; collectives are in progress %.3f s, %.0f %% of it hidden; ",
            small ? 1 : 2, small ? 1024 * p->comm_bytes / GIB : p->comm_bytes / GIB, small ? "MiB" : "GiB",
            p->comm_seconds, p->comm_seconds > 0 ? 100 * fmax(0, 1 - p->exposed_seconds / p->comm_seconds) : 100);
    fprintf(out, "rank 0's hub is busy %.1f ms\n", 1e3 * p->hub_seconds);
}

bool scaling_print(FILE *out, const RunConfig *config, const ScalingOptions *options, Error *err) {
    ScalingJob job;
    Machine machine;
    ScalingPrediction p = {0};
    scaling_job_from_config(&job, config);
    if (options->tensor > 0) job.tensor = options->tensor;
    if (options->context > 0) job.context = options->context;
    if (!scaling_machine(&machine, options, config, err)) return false;
    print_assumptions(out, &job, &machine);
    fprintf(out, "%6s %7s %9s %7s %-3s %9s %9s %8s %7s %6s %6s %6s %5s\n", "ranks", "batch", "rows", "GiB/r", "fit",
            "step s", "compute", "exposed", "update", "agree", "tok/s", "a rank", "MFU %");
    for (int64_t world = min_i64(job.tensor * job.context, options->world);;
         world = min_i64(2 * world, options->world)) {
        if (!scaling_predict(&p, &job, &machine, world, err)) return false;
        print_row(out, &p);
        if (world == options->world) break;
    }
    print_bytes(out, &p);
    return true;
}
