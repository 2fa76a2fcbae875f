// config_options.c: the table of every option of a run, and what follows from a row alone: parsing with range checks,
// formatting, --help. Adding an option is adding a row (and its field in config.h). Knows nothing of files or
// sections.
#include "llmc/config/config_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FIELD(type, field) offsetof(type, field), sizeof(((type *)0)->field)
#define RUN(field) SCOPE_RUN, FIELD(RunConfig, field)
#define ARCH(field) SCOPE_RUN | SCOPE_ARCHITECTURE, FIELD(RunConfig, arch.field)
#define PHASE(field) SCOPE_RUN | SCOPE_PHASE, FIELD(PhaseConfig, field)
#define SOURCE(field) SCOPE_RUN | SCOPE_SOURCE, FIELD(SourceConfig, field)
#define NO_FIELD 0, 0

#define MOST 1e15  // counts: far beyond any run, and doubles still count by one
#define MOST_STEPS 1e12

const Option OPTIONS[] = {
    {"out_dir", RUN(out_dir), OPTION_TEXT, .fallback = "runs/default", .group = "Run",
     .help = "directory for checkpoints, metrics.jsonl, TensorBoard events and loss.svg"},
    {"resume", RUN(resume), OPTION_TEXT, .fallback = "auto",
     .help = "auto: the newest complete checkpoint of out_dir, if any; never; or a checkpoint directory"},
    {"init_from", RUN(init_from), OPTION_TEXT, .fallback = "",
     .help = "start from this model: a Hugging Face directory or an llm.c .bin file; its architecture is taken over"},
    {"tokenizer", RUN(tokenizer), OPTION_TEXT, .fallback = "",
     .help = "tokenizer.json or the directory that holds it; empty: the one beside the shards, if any"},
    {"seed", RUN(seed), OPTION_INT, 0, MOST, .fallback = "1",
     .help = "of the initial weights and of the sample order"},

    {"device", RUN(device), OPTION_TEXT, .names = "auto cpu cuda cudaemu", .fallback = "auto", .group = "Device",
     .help = "auto takes a GPU where there is one"},
    {"threads", RUN(threads), OPTION_INT, 0, 4096, .fallback = "0", .help = "CPU threads; 0: all cores"},
    {"cpu_isa", RUN(cpu_isa), OPTION_TEXT, .names = "auto generic avx2 avx512 avx512bf16", .fallback = "auto",
     .help = "instruction set of the CPU kernels; auto: the best that the CPU has"},
    {"dtype", RUN(dtype), OPTION_ENUM, .names = "fp32 bf16", .fallback = "fp32",
     .help = "of weights, activations and matrix products; gradients and moments are always fp32"},
    {"master_weights", RUN(master_weights), OPTION_BOOL, .fallback = "true",
     .help = "bf16: fp32 values stand behind the weights; false: 4 bytes less per parameter, updates are rounded "
             "stochastically"},
    {"fp8", RUN(fp8), OPTION_BOOL, .fallback = "false",
     .help = "with dtype=bf16, on a GPU that has 8-bit floats: products of the blocks' linear layers round their "
             "inputs to them, scaled per tensor; faster from about a billion parameters on"},
    {"attention", RUN(attention), OPTION_TEXT, .names = "auto cudnn own", .fallback = "auto",
     .help = "on a GPU: cuDNN's kernels, or our own; auto: cuDNN's where it is installed and takes the case"},
    {"graphs", RUN(graphs), OPTION_BOOL, .fallback = "true",
     .help = "on a GPU: capture a micro-batch once as a CUDA graph and replay it"},
    {"recompute", RUN(recompute), OPTION_ENUM, .names = "none norm_act block", .fallback = "none",
     .help = "what the backward pass computes again, for less memory: norm_act: normalized inputs and activations; "
             "block: whole blocks"},
    {"loss_chunk_rows", RUN(loss_chunk_rows), OPTION_INT, 0, MOST, .fallback = "0",
     .help = "rows of logits in memory at a time; 0: chosen by the engine"},

    {"launch", RUN(launch), OPTION_TEXT, .names = "auto single mpi tcp directory", .fallback = "auto",
     .group = "Ranks",
     .help = "how the ranks were started and meet: mpi (mpirun, srun --mpi=pmix); tcp (RANK, WORLD_SIZE, MASTER_ADDR and "
             "MASTER_PORT, as torchrun sets them); directory (RANK, WORLD_SIZE and rendezvous); auto: what the "
             "environment says"},
    {"rendezvous", RUN(rendezvous), OPTION_TEXT, .fallback = "",
     .help = "directory that all ranks share, for launch=directory; empty: $TOKAMAK_RENDEZVOUS"},
    {"zero", RUN(zero), OPTION_INT, 0, 3, .fallback = "1",
     .help = "ZeRO stage: what each rank keeps its share of only: 0 nothing, 1 optimizer state, 2 and gradients, 3 and "
             "weights"},
    {"deterministic", RUN(deterministic), OPTION_ENUM, .names = "run lanes", .fallback = "run",
     .help = "run: the same bits in every run with the same ranks; lanes: also with 1, 2, 4, 8 or 16 ranks and any zero: "
             "a step's lanes (the micro-batches of all ranks) are added in one fixed binary tree"},
    {"reduce_dtype", RUN(reduce_dtype), OPTION_ENUM, .names = "fp32 bf16", .fallback = "fp32",
     .help = "in which gradients travel between ranks; they are added in fp32"},
    {"comm_timeout", RUN(comm_timeout), OPTION_REAL, 0.5, 1e6, .fallback = "600",
     .help = "seconds that ranks wait for one that says nothing, or does not come to where the others are, before the run "
             "ends; more than the longest step"},
    {"compare_every", RUN(compare_every), OPTION_INT, 0, MOST_STEPS, .fallback = "100",
     .help = "steps between comparisons of the ranks' weights (zero below 3): one that has drifted ends the run; 0: never"},
    {"hash_every", RUN(hash_every), OPTION_INT, 0, MOST_STEPS, .fallback = "0",
     .help = "steps between links of the hash chain (data, weights, optimizer state) in hashes.jsonl, for train_gpt "
             "verify; 0: none"},

    {"model", RUN(model), OPTION_TEXT, .fallback = "gpt2:124M", .group = "Model",
     .help = "preset: gpt2:124M|355M|774M|1558M, gpt2:dN (N layers, 64 N wide), gpt3:125M..13B, llama:dN, "
             "llama3:1B|3B|8B|70B, qwen2:0.5B.., qwen3:0.6B.., stories:260K|15M; the options below override it. Empty "
             "with init_from"},
    {"layers", ARCH(L), OPTION_INT, 1, 1e6, .help = "transformer blocks"},
    {"channels", ARCH(C), OPTION_INT, 1, 1e8, .help = "width of the residual stream"},
    {"heads", ARCH(NH), OPTION_INT, 1, 1e6, .help = "query heads"},
    {"kv_heads", ARCH(NKV), OPTION_INT, 0, 1e6, .help = "key/value heads; 0: as many as heads"},
    {"head_size", ARCH(HS), OPTION_INT, 0, 1e6, .help = "0: channels / heads"},
    {"ffn", ARCH(F), OPTION_INT, 0, 1e8, .help = "feed-forward width; 0: the usual multiple of channels"},
    {"vocab", ARCH(V), OPTION_INT, 0, 2e9, .help = "vocabulary; 0: the tokenizer's, else the preset's"},
    {"max_seq_len", ARCH(max_seq_len), OPTION_INT, 1, 1e9, .help = "longest context"},
    {"norm", ARCH(norm), OPTION_ENUM, .names = "layer rms", .help = "LayerNorm or RMSNorm"},
    {"norm_eps", ARCH(norm_eps), OPTION_FLOAT, 0, 1, .help = "added to the variance"},
    {"position", ARCH(position), OPTION_ENUM, .names = "learned rope none", .help = "kind of position embedding"},
    {"rope_theta", ARCH(rope_theta), OPTION_REAL, 0, 1e12, .help = "base of the rotary frequencies"},
    {"rope_scale", ARCH(rope_scaling.factor), OPTION_REAL, 0, 1e6,
     .help = "Llama 3.1's frequency rescaling: the factor; 0: none"},
    {"rope_scale_low_freq", ARCH(rope_scaling.low_freq_factor), OPTION_REAL, 0, 1e6, .help = "its low_freq_factor"},
    {"rope_scale_high_freq", ARCH(rope_scaling.high_freq_factor), OPTION_REAL, 0, 1e6,
     .help = "its high_freq_factor"},
    {"rope_scale_seq_len", ARCH(rope_scaling.original_max_seq_len), OPTION_INT, 0, 1e9,
     .help = "the context length that it extends"},
    {"activation", ARCH(activation), OPTION_ENUM, .names = "none gelu relu2 swiglu",
     .help = "of the feed-forward part"},
    {"bias", SCOPE_RUN | SCOPE_ARCHITECTURE, NO_FIELD, OPTION_BOOL,
     .help = "sets norm_bias, qkv_bias, proj_bias and mlp_bias, unless they are given"},
    {"norm_bias", ARCH(norm_bias), OPTION_BOOL, .help = "LayerNorm has a bias vector"},
    {"qkv_bias", ARCH(qkv_bias), OPTION_BOOL, .help = "the q, k, v projection has a bias"},
    {"proj_bias", ARCH(proj_bias), OPTION_BOOL, .help = "the attention output projection has a bias"},
    {"mlp_bias", ARCH(mlp_bias), OPTION_BOOL, .help = "the feed-forward projections have biases"},
    {"tied", ARCH(tied), OPTION_BOOL, .help = "the output head is the token embedding"},
    {"qk_norm", ARCH(qk_norm), OPTION_BOOL, .help = "RMSNorm of every query and key head"},
    {"window", ARCH(window), OPTION_INT, 0, 1e9, .help = "sliding attention window in tokens; 0: none"},
    {"logit_softcap", ARCH(logit_softcap), OPTION_FLOAT, 0, 1e6, .help = "logits = cap tanh(logits / cap); 0: none"},
    {"init_std", ARCH(init_std), OPTION_FLOAT, 0, 100, .help = "standard deviation of the initial weights"},

    {"train", SOURCE(train), OPTION_TEXT, .fallback = "", .group = "Data",
     .help = "shards to train on: a file or a pattern such as data/kjv_train_*.bin"},
    {"val", SOURCE(val), OPTION_TEXT, .fallback = "", .help = "held-out shards; empty: no validation"},
    {"doc_mask", SOURCE(doc_mask), OPTION_BOOL, .fallback = "false",
     .help = "attention stays inside documents, which end at the tokenizer's end-of-text token"},
    {"weight", SCOPE_SOURCE, FIELD(SourceConfig, weight), OPTION_REAL, 0, 1e9, .fallback = "1",
     .help = "share of samples relative to the other sources; a phase may override it with weight.SOURCE"},

    {"tokens", PHASE(tokens), OPTION_INT, 1, MOST, .group = "Length and batch",
     .help = "training length in tokens, such as 2G or 300M; rounded up to whole steps"},
    {"steps", SCOPE_RUN | SCOPE_PHASE, NO_FIELD, OPTION_INT, 1, MOST_STEPS,
     .help = "the same in optimizer steps of batch_tokens each"},
    {"train_seconds", RUN(train_seconds), OPTION_REAL, 0, 1e9, .fallback = "0",
     .help = "the same in seconds: the length of the only phase follows from the measured speed; 0: off"},
    {"seq_len", PHASE(seq_len), OPTION_INT, 1, 1e9, .help = "length of a row in tokens (default: max_seq_len)"},
    {"batch_tokens", PHASE(batch_tokens), OPTION_INT, 1, MOST,
     .help = "tokens of one optimizer step, over all micro-batches and ranks (default: batch_rows * seq_len)"},
    {"batch_rows", PHASE(batch_rows), OPTION_INT, 1, 1e6, .fallback = "8",
     .help = "rows of one micro-batch on one rank"},
    {"trainable", PHASE(trainable), OPTION_TEXT, .fallback = "*",
     .help = "names of the tensors that are trained, as comma-separated patterns such as block.*.attn.*"},

    {"schedule", PHASE(lr.kind), OPTION_ENUM, .names = "constant linear cosine wsd", .fallback = "cosine",
     .group = "Learning rate", .help = "curve after the warm-up; wsd: constant, then linear over decay_frac"},
    {"lr", PHASE(lr.lr), OPTION_REAL, 0, 100, .fallback = "6e-4", .help = "peak"},
    {"warmup_steps", PHASE(lr.warmup_steps), OPTION_INT, 0, MOST_STEPS,
     .help = "linear from 0 (default: a twentieth of the steps, at most 1000; 50 with train_seconds)"},
    {"final_lr_frac", PHASE(lr.final_lr_frac), OPTION_REAL, 0, 1, .fallback = "0.1",
     .help = "where the curve ends, times lr"},
    {"decay_frac", PHASE(lr.decay_frac), OPTION_REAL, 0, 1, .fallback = "0.2",
     .help = "wsd: share of the steps that decay"},

    {"optimizer", RUN(optimizer), OPTION_ENUM, .names = "adamw muon", .fallback = "adamw", .group = "Optimizer",
     .help = "muon: for the hidden matrices; AdamW for the rest"},
    {"beta1", RUN(beta1), OPTION_REAL, 0, 0.999999, .fallback = "0.9", .help = "AdamW: decay of the first moment"},
    {"beta2", RUN(beta2), OPTION_REAL, 0, 0.999999999, .fallback = "0.95",
     .help = "AdamW: decay of the second moment"},
    {"eps", RUN(eps), OPTION_REAL, 1e-30, 1, .fallback = "1e-8",
     .help = "AdamW: added to the root of the second moment"},
    {"weight_decay", RUN(weight_decay), OPTION_REAL, 0, 100, .fallback = "0.1",
     .help = "decoupled, times the learning rate; matrices and embeddings only"},
    {"grad_clip", RUN(grad_clip), OPTION_REAL, 0, 1e9, .fallback = "1",
     .help = "largest norm of the gradient; 0: no clipping"},
    {"muon_lr", RUN(muon_lr), OPTION_REAL, 0, 100, .fallback = "0.02", .help = "Muon: peak; same curve as lr"},
    {"muon_momentum", RUN(muon_momentum), OPTION_REAL, 0, 0.999999, .fallback = "0.95", .help = "Muon: momentum"},
    {"muon_steps", RUN(muon_steps), OPTION_INT, 1, 100, .fallback = "5", .help = "Muon: Newton-Schulz iterations"},
    {"muon_nesterov", RUN(muon_nesterov), OPTION_BOOL, .fallback = "true",
     .help = "Muon: look ahead by one momentum step"},
    {"max_bad_steps", RUN(max_bad_steps), OPTION_INT, 1, MOST_STEPS, .fallback = "10",
     .help = "consecutive skipped steps (a non-finite gradient, a spike) before the run stops"},
    {"spike_z", RUN(spike_z), OPTION_REAL, 0, 1e6, .fallback = "0",
     .help = "a step whose loss or gradient norm lies more than this many standard deviations above the mean of the last "
             "spike_window steps is a spike; 0: none is"},
    {"spike_window", RUN(spike_window), OPTION_INT, 8, 1024, .fallback = "128",
     .help = "steps that spike_z compares with"},
    {"on_spike", RUN(on_spike), OPTION_ENUM, .names = "skip rewind", .fallback = "skip",
     .help = "skip: a spike updates nothing; rewind: go back to the last checkpoint and leave out the data since then"},

    {"log_every", RUN(log_every), OPTION_INT, 1, MOST_STEPS, .fallback = "1",
     .group = "Reports and checkpoints, in steps",
     .help = "how often metrics.jsonl and the plain progress lines get an entry"},
    {"val_every", RUN(val_every), OPTION_INT, 0, MOST_STEPS, .fallback = "250",
     .help = "held-out loss; 0: only at the end"},
    {"val_tokens", RUN(val_tokens), OPTION_INT, 0, MOST, .fallback = "1M", .help = "of each source, at most; 0: all"},
    {"sample_every", RUN(sample_every), OPTION_INT, 0, MOST_STEPS, .fallback = "0",
     .help = "generated text; 0: never"},
    {"sample_tokens", RUN(sample_tokens), OPTION_INT, 1, 1e9, .fallback = "64", .help = "length of a sample"},
    {"sample_prompt", RUN(sample_prompt), OPTION_TEXT, .fallback = "", .help = "text that samples continue"},
    {"save_every", RUN(save_every), OPTION_INT, 0, MOST_STEPS, .fallback = "1000",
     .help = "checkpoints; 0: only at the end"},
    {"keep_last", RUN(keep_last), OPTION_INT, 0, 1e6, .fallback = "3", .help = "checkpoints that stay; 0: all"},
    {"keep_every", RUN(keep_every), OPTION_INT, 0, MOST_STEPS, .fallback = "0",
     .help = "checkpoints of every so many steps stay for good; 0: only keep_last counts"},
    {"async_save", RUN(async_save), OPTION_BOOL, .fallback = "true",
     .help = "checkpoints are copied to host memory and written beside training; false: training waits, and the copy's "
             "memory is saved"},
    {"on_save_error", RUN(on_save_error), OPTION_ENUM, .names = "continue stop", .fallback = "continue",
     .help = "what a checkpoint that cannot be written (disk full, ...) does to the run"},
    {"progress_bar", RUN(progress_bar), OPTION_BOOL, .fallback = "true",
     .help = "live line when stderr is a terminal"},
};
const int OPTION_COUNT = (int)(sizeof OPTIONS / sizeof OPTIONS[0]);
_Static_assert(sizeof OPTIONS / sizeof OPTIONS[0] <= OPTION_LIMIT, "raise OPTION_LIMIT");

// ---- names ----

int option_find(const char *name) {
    for (int i = 0; i < OPTION_COUNT; ++i)
        if (strcmp(OPTIONS[i].name, name) == 0) return i;
    return -1;
}

int option_index(const char *name) {
    int index = option_find(name);
    CHECK(index >= 0, "no option '%s'", name);
    return index;
}

// Levenshtein's distance, over the first EDIT_MAX bytes of each.
size_t edit_distance(const char *a, const char *b) {
    enum { EDIT_MAX = 64 };
    size_t na = strnlen(a, EDIT_MAX), nb = strnlen(b, EDIT_MAX);
    size_t row[EDIT_MAX + 1];
    for (size_t j = 0; j <= nb; ++j) row[j] = j;
    for (size_t i = 1; i <= na; ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; ++j) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

const char *option_nearest(const char *name) {
    const char *nearest = OPTIONS[0].name;
    for (int i = 1; i < OPTION_COUNT; ++i)
        if (edit_distance(name, OPTIONS[i].name) < edit_distance(name, nearest)) nearest = OPTIONS[i].name;
    return nearest;
}

// Index of `word` among space-separated names, or -1.
static int name_index(const char *names, const char *word) {
    size_t length = strlen(word);
    int index = 0;
    for (const char *p = names; *p != '\0'; ++index) {
        size_t span = strcspn(p, " ");
        if (span == length && strncmp(p, word, length) == 0) return index;
        p += span + (p[span] == ' ');
    }
    return -1;
}

static void name_at(const char *names, int index, char *out, size_t out_bytes) {
    const char *p = names;
    while (index-- > 0) p += strcspn(p, " ") + 1;
    size_t span = strcspn(p, " ");
    CHECK(span < out_bytes, "name of %zu bytes", span);
    memcpy(out, p, span);
    out[span] = '\0';
}

// ---- values ----

static bool store_text(const Option *option, char *field, const char *text, Error *err) {
    if (option->names != NULL && name_index(option->names, text) < 0)
        return error_set(err, "expected one of: %s; found '%s'", option->names, text);
    if (strlen(text) >= option->bytes)
        return error_set(err, "expected at most %zu bytes, found %zu", option->bytes - 1, strlen(text));
    memset(field, 0, option->bytes);  // equal values are equal bytes
    memcpy(field, text, strlen(text));
    return true;
}

static bool store_int(const Option *option, int64_t *field, const char *text, Error *err) {
    int64_t value;
    if (!parse_count(text, &value) || (double)value < option->min || (double)value > option->max)
        return error_set(err, "expected a whole number from %.16g to %.16g (also like 64k, 1M, 2G, 4Ki), found '%s'",
                         option->min, option->max, text);
    *field = value;
    return true;
}

static bool store_real(const Option *option, double *field, const char *text, Error *err) {
    double value;
    if (!parse_f64(text, &value) || !(value >= option->min && value <= option->max))
        return error_set(err, "expected a number from %.9g to %.9g, found '%s'", option->min, option->max, text);
    *field = value + 0.0;  // -0 becomes 0
    return true;
}

static bool store_bool(bool *field, const char *text, Error *err) {
    int index = name_index("false true no yes off on 0 1", text);
    if (index < 0) return error_set(err, "expected true or false, found '%s'", text);
    *field = index % 2 == 1;
    return true;
}

static bool store_enum(const Option *option, void *field, const char *text, Error *err) {
    int index = name_index(option->names, text);
    if (index < 0) return error_set(err, "expected one of: %s; found '%s'", option->names, text);
    CHECK(option->bytes == sizeof index, "enum '%s' has %zu bytes", option->name, option->bytes);
    memcpy(field, &index, sizeof index);
    return true;
}

bool option_store(const Option *option, void *base, const char *text, Error *err) {
    void *field = (char *)base + option->offset;
    double real = 0;
    switch (option->type) {
    case OPTION_TEXT: return store_text(option, field, text, err);
    case OPTION_INT: return store_int(option, field, text, err);
    case OPTION_REAL: return store_real(option, field, text, err);
    case OPTION_FLOAT:
        if (!store_real(option, &real, text, err)) return false;
        *(float *)field = (float)real;
        return true;
    case OPTION_BOOL: return store_bool(field, text, err);
    case OPTION_ENUM: return store_enum(option, field, text, err);
    }
    CHECK(false, "option '%s' has type %d", option->name, (int)option->type);
    return false;
}

// The shortest decimal that reads back as the same number.
static char *format_real(double value, bool is_float) {
    char text[40];
    if (value == floor(value) && fabs(value) < 1e15) return xasprintf("%.0f", value);
    for (int digits = 1; digits <= 17; ++digits) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        double back = strtod(text, NULL);
        if (is_float ? (float)back == (float)value : back == value) break;
    }
    return xstrdup(text);
}

char *option_format(const Option *option, const void *base) {
    const void *field = (const char *)base + option->offset;
    char word[32];
    int index;
    switch (option->type) {
    case OPTION_TEXT: return xstrdup(field);
    case OPTION_INT: return xasprintf("%lld", (long long)*(const int64_t *)field);
    case OPTION_REAL: return format_real(*(const double *)field, false);
    case OPTION_FLOAT: return format_real((double)*(const float *)field, true);
    case OPTION_BOOL: return xstrdup(*(const bool *)field ? "true" : "false");
    case OPTION_ENUM:
        memcpy(&index, field, sizeof index);
        name_at(option->names, index, word, sizeof word);
        return xstrdup(word);
    }
    CHECK(false, "option '%s' has type %d", option->name, (int)option->type);
    return NULL;
}

// ---- --help ----

// Prints text from column `column` on, broken at spaces.
static void print_wrapped(FILE *out, const char *text, int column) {
    enum { WIDTH = 110 };
    int at = column;
    for (const char *p = text; *p != '\0';) {
        int word = (int)strcspn(p, " ");
        if (at > column && at + 1 + word > WIDTH) {
            fprintf(out, "\n%*s", column, "");
            at = column;
        }
        at += fprintf(out, "%s%.*s", at > column ? " " : "", word, p);
        p += word + (p[word] == ' ');
    }
    fputc('\n', out);
}

static char *describe_range(const Option *option) {
    switch (option->type) {
    case OPTION_TEXT:
    case OPTION_ENUM: return option->names != NULL ? xasprintf(" [%s]", option->names) : xstrdup("");
    case OPTION_BOOL: return xstrdup(" [true, false]");
    default: break;
    }
    const char *kind = option->type == OPTION_INT ? "whole, " : "";
    bool open = option->max >= 1e6;
    return open ? xasprintf(" [%sfrom %.9g]", kind, option->min)
                : xasprintf(" [%s%.9g to %.9g]", kind, option->min, option->max);
}

static bool option_matches(const Option *option, const char *group, const char *filter) {
    return filter == NULL || strcasestr(option->name, filter) != NULL || strcasestr(group, filter) != NULL;
}

void config_help(FILE *out, const char *filter) {
    const char *group = "", *printed = "";
    bool any = false;
    for (int i = 0; i < OPTION_COUNT; ++i) {
        const Option *option = &OPTIONS[i];
        if (option->group != NULL) group = option->group;
        if (!option_matches(option, group, filter)) continue;
        any = true;
        if (group != printed) {
            bool first_is_model = strcmp(option->name, "model") == 0;
            const char *note = option->scopes & SCOPE_PHASE    ? " (run or [phase])"
                               : option->scopes & SCOPE_SOURCE ? " (run or [source])"
                               : first_is_model                ? " (defaults: the preset's)"
                                                               : "";
            fprintf(out, "%s%s%s\n", *printed != '\0' ? "\n" : "", group, note);
            printed = group;
        }
        char *fallback = option->fallback == NULL      ? xstrdup("")
                         : option->fallback[0] == '\0' ? xstrdup(" (default: empty)")
                                                       : xasprintf(" (default: %s)", option->fallback);
        char *range = describe_range(option);
        char *text = xasprintf("%s%s%s", option->help, range, fallback);
        fprintf(out, "  %-22s", option->name);
        print_wrapped(out, text, 24);
        free(text);
        free(range);
        free(fallback);
    }
    if (!any)
        fprintf(out, "no option's name or group contains '%s'; the nearest name is '%s'\n", filter,
                option_nearest(filter));
}
