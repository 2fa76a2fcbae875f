// config_options.c: the table of all options of a run, their words, and --help. A new option is one row here and one
// field in config.h; rows: option_table.h. Must not know files or sections.
#include "llmc/config/config_options.h"

#include <string.h>

#define RUN(field) .scopes = SCOPE_RUN, OPTION_AT(RunConfig, field)
#define ARCH(field) .scopes = SCOPE_RUN | SCOPE_ARCHITECTURE, OPTION_AT(RunConfig, arch.field)
#define PHASE(field) .scopes = SCOPE_RUN | SCOPE_PHASE, OPTION_AT(PhaseConfig, field)
#define SOURCE(field) .scopes = SCOPE_RUN | SCOPE_SOURCE, OPTION_AT(SourceConfig, field)

#define MOST 1e15  // largest count: far above any run, and exact in a double
#define MOST_STEPS 1e12

static const Word SCHEDULE_WORDS[] = {
    {SCHEDULE_CONSTANT, "constant"}, {SCHEDULE_LINEAR, "linear"}, {SCHEDULE_COSINE, "cosine"}, {SCHEDULE_WSD, "wsd"}, {0, NULL}};
static const Word ON_SAVE_ERROR_WORDS[] = {
    {ON_SAVE_ERROR_CONTINUE, "continue"}, {ON_SAVE_ERROR_STOP, "stop"}, {0, NULL}};
static const Word DETERMINISTIC_WORDS[] = {{DETERMINISTIC_RUN, "run"}, {DETERMINISTIC_LANES, "lanes"}, {0, NULL}};
static const Word ON_SPIKE_WORDS[] = {{ON_SPIKE_SKIP, "skip"}, {ON_SPIKE_REWIND, "rewind"}, {0, NULL}};
// Stored as text: other rooms interpret them.
const Word DEVICE_WORDS[] = {{0, "auto"}, {0, "cpu"}, {0, "cuda"}, {0, "cudaemu"}, {0, NULL}};
const Word CPU_ISA_WORDS[] = {{0, "auto"}, {0, "generic"}, {0, "avx2"}, {0, "avx512"}, {0, "avx512bf16"}, {0, NULL}};
const Word ATTENTION_WORDS[] = {{0, "auto"}, {0, "cudnn"}, {0, "own"}, {0, NULL}};
static const Word LAUNCH_WORDS[] = {{0, "auto"}, {0, "single"}, {0, "mpi"}, {0, "tcp"}, {0, "directory"}, {0, NULL}};

const Option OPTIONS[] = {
    {"out_dir", RUN(out_dir), OPTION_CHARS, .fallback = "runs/default", .group = "Run",
     .help = "directory for checkpoints, metrics.jsonl, TensorBoard events and loss.svg"},
    {"resume", RUN(resume), OPTION_CHARS, .fallback = "auto",
     .help = "auto: the newest complete checkpoint of out_dir, if any; never; or a checkpoint directory"},
    {"init_from", RUN(init_from), OPTION_CHARS, .fallback = "",
     .help = "start from this model: a Hugging Face directory or an llm.c .bin file; sets weights and architecture"},
    {"tokenizer", RUN(tokenizer), OPTION_CHARS, .fallback = "",
     .help = "tokenizer.json or its directory; empty: the one in the directory of the shards, if any"},
    {"seed", RUN(seed), OPTION_WHOLE, 0, MOST, .fallback = "1",
     .help = "seed of the initial weights and of the order of samples"},

    {"device", RUN(device), OPTION_CHARS, .words = DEVICE_WORDS, .fallback = "auto", .group = "Device",
     .help = "where to compute; auto: a GPU if there is one, else the CPU; cudaemu: the emulated GPU, for tests"},
    {"threads", RUN(threads), OPTION_WHOLE, 0, 4096, .fallback = "0", .help = "CPU threads; 0: all cores"},
    {"cpu_isa", RUN(cpu_isa), OPTION_CHARS, .words = CPU_ISA_WORDS, .fallback = "auto",
     .help = "instruction set of the CPU kernels; auto: the best that the CPU supports"},
    {"dtype", RUN(dtype), OPTION_WORD, .words = DTYPE_WORDS, .word_count = WEIGHT_DTYPES, .fallback = "fp32",
     .help = "data type of weights, activations and matrix products; gradients and moments are always fp32"},
    {"master_weights", RUN(master_weights), OPTION_BOOL, .fallback = "true",
     .help = "with dtype=bf16: keep fp32 master weights; false: saves 4 bytes per parameter, and updates are rounded "
             "stochastically"},
    {"fp8", RUN(fp8), OPTION_BOOL, .fallback = "false",
     .help = "with dtype=bf16, on a GPU with 8-bit floats: the blocks' linear layers round the inputs of their "
             "products to 8 bits, scaled per tensor; faster from about a billion parameters on"},
    {"attention", RUN(attention), OPTION_CHARS, .words = ATTENTION_WORDS, .fallback = "auto",
     .help = "attention kernels on a GPU: cuDNN's, or the engine's own; auto: cuDNN's if it is installed and supports "
             "the case"},
    {"graphs", RUN(graphs), OPTION_BOOL, .fallback = "true",
     .help = "on a GPU: capture the work of a micro-batch once as a CUDA graph and replay it"},
    {"recompute", RUN(recompute), OPTION_WORD, .words = RECOMPUTE_WORDS, .fallback = "none",
     .help = "what the backward pass recomputes to save memory: norm_act: normalized inputs and activations; block: "
             "whole blocks"},
    {"loss_chunk_rows", RUN(loss_chunk_rows), OPTION_WHOLE, 0, MOST, .fallback = "0",
     .help = "rows of logits in memory at a time; 0: chosen by the engine"},

    {"launch", RUN(launch), OPTION_CHARS, .words = LAUNCH_WORDS, .fallback = "auto", .group = "Ranks",
     .help =
         "how the ranks were started and connect: mpi (mpirun, srun --mpi=pmix); tcp (RANK, WORLD_SIZE, MASTER_ADDR "
         "and MASTER_PORT, as set by torchrun); directory (RANK, WORLD_SIZE and rendezvous); auto: detected from the "
         "environment"},
    {"rendezvous", RUN(rendezvous), OPTION_CHARS, .fallback = "",
     .help = "for launch=directory: a directory that all ranks can access; empty: $TOKAMAK_RENDEZVOUS"},
    {"zero", RUN(zero), OPTION_WHOLE, 0, 3, .fallback = "1",
     .help =
         "ZeRO stage: what is sharded over the ranks: 0 nothing; 1 optimizer state; 2 also gradients; 3 also "
         "weights"},
    {"deterministic", RUN(deterministic), OPTION_WORD, .words = DETERMINISTIC_WORDS, .fallback = "run",
     .help =
         "run: the same bits in every run with the same number of ranks; lanes: also the same with 1, 2, 4, 8 or 16 "
         "ranks and any zero: the gradients of a step's lanes (the micro-batches of all ranks) are added in one fixed "
         "binary tree"},
    {"reduce_dtype", RUN(reduce_dtype), OPTION_WORD, .words = DTYPE_WORDS, .word_count = WEIGHT_DTYPES,
     .fallback = "fp32", .help = "data type in which ranks send gradients; they are added in fp32"},
    {"comm_timeout", RUN(comm_timeout), OPTION_REAL, 0.5, 1e6, .fallback = "600",
     .help = "seconds to wait for a rank that does not answer or does not reach the same point, before the run ends; "
             "set it above the longest step"},
    {"compare_every", RUN(compare_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "100",
     .help = "steps between comparisons of the ranks' weights (zero below 3); the run ends if they differ; 0: never"},
    {"hash_every", RUN(hash_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "0",
     .help = "steps between links of the hash chain (data, weights, optimizer state) in hashes.jsonl, used by "
             "train_gpt verify; 0: none"},

    {"model", RUN(model), OPTION_CHARS, .fallback = "gpt2:124M", .group = "Model",
     .help =
         "preset: gpt2:124M|355M|774M|1558M, gpt2:dN (N layers, width 64 N), gpt3:125M..13B, llama:dN, "
         "llama3:1B|3B|8B|70B, qwen2:0.5B.., qwen3:0.6B.., stories:260K|15M; the options below override it. Not "
         "used with init_from"},
    {"layers", ARCH(L), OPTION_WHOLE, 1, 1e6, .help = "number of transformer blocks"},
    {"channels", ARCH(C), OPTION_WHOLE, 1, 1e8, .help = "width of the residual stream"},
    {"heads", ARCH(NH), OPTION_WHOLE, 1, 1e6, .help = "number of query heads"},
    {"kv_heads", ARCH(NKV), OPTION_WHOLE, 0, 1e6, .help = "number of key/value heads; 0: same as heads"},
    {"head_size", ARCH(HS), OPTION_WHOLE, 0, 1e6, .help = "width of one head; 0: channels / heads"},
    {"ffn", ARCH(F), OPTION_WHOLE, 0, 1e8, .help = "feed-forward width; 0: the usual multiple of channels"},
    {"vocab", ARCH(V), OPTION_WHOLE, 0, 2e9, .help = "vocabulary size; 0: the tokenizer's, else the preset's"},
    {"max_seq_len", ARCH(max_seq_len), OPTION_WHOLE, 1, 1e9, .help = "longest context in tokens"},
    {"norm", ARCH(norm), OPTION_WORD, .words = NORM_WORDS, .help = "LayerNorm or RMSNorm"},
    {"norm_eps", ARCH(norm_eps), OPTION_FLOAT, 0, 1,
     .help = "added to the variance (LayerNorm) or mean square (RMSNorm)"},
    {"position", ARCH(position), OPTION_WORD, .words = POSITION_WORDS, .help = "kind of position embedding"},
    {"rope_theta", ARCH(rope_theta), OPTION_REAL, 0, 1e12, .help = "base of the rotary frequencies"},
    {"rope_scale", ARCH(rope_scaling.factor), OPTION_REAL, 0, 1e6,
     .help = "factor of Llama 3.1's rescaling of the rotary frequencies; 0: no rescaling"},
    {"rope_scale_low_freq", ARCH(rope_scaling.low_freq_factor), OPTION_REAL, 0, 1e6,
     .help = "low_freq_factor of the rescaling"},
    {"rope_scale_high_freq", ARCH(rope_scaling.high_freq_factor), OPTION_REAL, 0, 1e6,
     .help = "high_freq_factor of the rescaling"},
    {"rope_scale_seq_len", ARCH(rope_scaling.original_max_seq_len), OPTION_WHOLE, 0, 1e9,
     .help = "context length before the rescaling"},
    {"activation", ARCH(activation), OPTION_WORD, .words = ACTIVATION_WORDS,
     .help = "activation function of the feed-forward layer"},
    {"bias", .scopes = SCOPE_RUN | SCOPE_ARCHITECTURE, .kind = OPTION_BOOL,
     .help = "default of norm_bias, qkv_bias, proj_bias and mlp_bias"},
    {"norm_bias", ARCH(norm_bias), OPTION_BOOL, .help = "LayerNorm has a bias vector"},
    {"qkv_bias", ARCH(qkv_bias), OPTION_BOOL, .help = "the q, k, v projection has a bias"},
    {"proj_bias", ARCH(proj_bias), OPTION_BOOL, .help = "the attention output projection has a bias"},
    {"mlp_bias", ARCH(mlp_bias), OPTION_BOOL, .help = "the feed-forward projections have biases"},
    {"tied", ARCH(tied), OPTION_BOOL, .help = "the output head shares the matrix of the token embedding"},
    {"qk_norm", ARCH(qk_norm), OPTION_BOOL, .help = "apply RMSNorm to every query and key head"},
    {"window", ARCH(window), OPTION_WHOLE, 0, 1e9, .help = "sliding attention window in tokens; 0: none"},
    {"logit_softcap", ARCH(logit_softcap), OPTION_FLOAT, 0, 1e6,
     .help = "soft cap of the logits: logits = cap tanh(logits / cap); 0: none"},
    {"init_std", ARCH(init_std), OPTION_FLOAT, 0, 100, .help = "standard deviation of the initial weights"},

    {"train", SOURCE(train), OPTION_CHARS, .fallback = "", .group = "Data",
     .help = "shards to train on: a file or a pattern such as data/kjv_train_*.bin"},
    {"val", SOURCE(val), OPTION_CHARS, .fallback = "", .help = "held-out shards; empty: no validation"},
    {"doc_mask", SOURCE(doc_mask), OPTION_BOOL, .fallback = "false",
     .help = "attention does not cross documents, which start at the tokenizer's end-of-text token"},
    {"weight", .scopes = SCOPE_SOURCE, OPTION_AT(SourceConfig, weight), OPTION_REAL, 0, 1e9, .fallback = "1",
     .help = "share of the samples, relative to the other sources; a phase may override it with weight.SOURCE"},

    {"tokens", PHASE(tokens), OPTION_WHOLE, 1, MOST, .group = "Length and batch",
     .help = "training length in tokens, such as 2G or 300M; rounded up to whole steps"},
    {"steps", .scopes = SCOPE_RUN | SCOPE_PHASE, .kind = OPTION_WHOLE, 1, MOST_STEPS,
     .help = "training length in optimizer steps of batch_tokens each"},
    {"train_seconds", RUN(train_seconds), OPTION_REAL, 0, 1e9, .fallback = "0",
     .help = "training length in seconds, for a run of one phase: the steps follow from the measured speed; 0: off"},
    {"seq_len", PHASE(seq_len), OPTION_WHOLE, 1, 1e9, .help = "length of a row in tokens (default: max_seq_len)"},
    {"batch_tokens", PHASE(batch_tokens), OPTION_WHOLE, 1, MOST,
     .help = "tokens of one optimizer step, over all micro-batches and ranks (default: batch_rows * seq_len)"},
    {"batch_rows", PHASE(batch_rows), OPTION_WHOLE, 1, 1e6, .fallback = "8",
     .help = "rows of one micro-batch on one rank"},
    {"trainable", PHASE(trainable), OPTION_CHARS, .fallback = "*",
     .help = "tensors to train: comma-separated name patterns such as block.*.attn.*"},

    {"schedule", PHASE(lr.kind), OPTION_WORD, .words = SCHEDULE_WORDS, .fallback = "cosine", .group = "Learning rate",
     .help = "learning-rate curve after the warm-up; wsd: constant, then linear decay over decay_frac of the steps"},
    {"lr", PHASE(lr.lr), OPTION_REAL, 0, 100, .fallback = "6e-4", .help = "peak learning rate"},
    {"warmup_steps", PHASE(lr.warmup_steps), OPTION_WHOLE, 0, MOST_STEPS,
     .help = "steps of linear warm-up from 0 (default: a twentieth of the steps, at most 1000; 50 with "
             "train_seconds; 0 for later curves)"},
    {"final_lr_frac", PHASE(lr.final_lr_frac), OPTION_REAL, 0, 1, .fallback = "0.1",
     .help = "final learning rate, as a fraction of lr"},
    {"decay_frac", PHASE(lr.decay_frac), OPTION_REAL, 0, 1, .fallback = "0.2",
     .help = "wsd: fraction of the steps that decay"},

    {"optimizer", RUN(optimizer), OPTION_WORD, .words = OPTIMIZER_WORDS, .fallback = "adamw", .group = "Optimizer",
     .help = "adamw: AdamW for all parameters; muon: Muon for the hidden matrices, AdamW for the rest"},
    {"beta1", RUN(beta1), OPTION_REAL, 0, 0.999999, .fallback = "0.9", .help = "AdamW: decay of the first moment"},
    {"beta2", RUN(beta2), OPTION_REAL, 0, 0.999999999, .fallback = "0.95",
     .help = "AdamW: decay of the second moment"},
    {"eps", RUN(eps), OPTION_REAL, 1e-30, 1, .fallback = "1e-8",
     .help = "AdamW: added to the square root of the second moment"},
    {"weight_decay", RUN(weight_decay), OPTION_REAL, 0, 100, .fallback = "0.1",
     .help = "decoupled weight decay, multiplied by the learning rate; matrices and embeddings only"},
    {"grad_clip", RUN(grad_clip), OPTION_REAL, 0, 1e9, .fallback = "1",
     .help = "gradients with a larger global norm are scaled down to this norm; 0: no clipping"},
    {"muon_lr", RUN(muon_lr), OPTION_REAL, 0, 100, .fallback = "0.02",
     .help = "Muon: peak learning rate; same curve as lr"},
    {"muon_momentum", RUN(muon_momentum), OPTION_REAL, 0, 0.999999, .fallback = "0.95", .help = "Muon: momentum"},
    {"muon_steps", RUN(muon_steps), OPTION_WHOLE, 1, 100, .fallback = "5", .help = "Muon: Newton-Schulz iterations"},
    {"muon_nesterov", RUN(muon_nesterov), OPTION_BOOL, .fallback = "true",
     .help = "Muon: Nesterov momentum"},
    {"max_bad_steps", RUN(max_bad_steps), OPTION_WHOLE, 1, MOST_STEPS, .fallback = "10",
     .help = "the run stops after this many consecutive skipped steps (a non-finite gradient, a spike)"},
    {"spike_z", RUN(spike_z), OPTION_REAL, 0, 1e6, .fallback = "0",
     .help =
         "a step whose loss or gradient norm is more than this many standard deviations above the mean of the last "
         "spike_window steps is a spike; 0: no detection"},
    {"spike_window", RUN(spike_window), OPTION_WHOLE, 8, 1024, .fallback = "128",
     .help = "number of recent steps that spike_z uses"},
    {"on_spike", RUN(on_spike), OPTION_WORD, .words = ON_SPIKE_WORDS, .fallback = "skip",
     .help =
         "skip: no update in a step with a spike; rewind: return to the last checkpoint and skip the data since then"},

    {"log_every", RUN(log_every), OPTION_WHOLE, 1, MOST_STEPS, .fallback = "1",
     .group = "Reports and checkpoints, in steps",
     .help = "steps between entries of metrics.jsonl and plain progress lines"},
    {"val_every", RUN(val_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "250",
     .help = "steps between evaluations of the held-out loss; 0: only at the end"},
    {"val_tokens", RUN(val_tokens), OPTION_WHOLE, 0, MOST, .fallback = "1M",
     .help = "most held-out tokens of each source per evaluation; 0: all"},
    {"sample_every", RUN(sample_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "0",
     .help = "steps between samples of generated text; 0: never"},
    {"sample_tokens", RUN(sample_tokens), OPTION_WHOLE, 1, 1e9, .fallback = "64",
     .help = "length of a sample in tokens"},
    {"sample_prompt", RUN(sample_prompt), OPTION_CHARS, .fallback = "", .help = "prompt of the samples"},
    {"save_every", RUN(save_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "1000",
     .help = "steps between checkpoints; 0: only at the end"},
    {"keep_last", RUN(keep_last), OPTION_WHOLE, 0, 1e6, .fallback = "3",
     .help = "number of newest checkpoints to keep, older ones are deleted; 0: keep all"},
    {"keep_every", RUN(keep_every), OPTION_WHOLE, 0, MOST_STEPS, .fallback = "0",
     .help = "checkpoints at multiples of this many steps are never deleted; 0: only keep_last applies"},
    {"async_save", RUN(async_save), OPTION_BOOL, .fallback = "true",
     .help =
         "checkpoints are copied to host memory and written while training continues; false: training waits, and no "
         "memory is needed for the copy"},
    {"on_save_error", RUN(on_save_error), OPTION_WORD, .words = ON_SAVE_ERROR_WORDS, .fallback = "continue",
     .help = "what the run does when a checkpoint cannot be written (disk full, ...)"},
    {"progress_bar", RUN(progress_bar), OPTION_BOOL, .fallback = "true",
     .help = "show a live progress line if stderr is a terminal"},
};
const int OPTION_COUNT = (int)(sizeof OPTIONS / sizeof OPTIONS[0]);
_Static_assert(sizeof OPTIONS / sizeof OPTIONS[0] <= OPTION_LIMIT, "raise OPTION_LIMIT");

const OptionTable RUN_OPTIONS = {
    .rows = OPTIONS, .count = sizeof OPTIONS / sizeof OPTIONS[0], .spelling = OPTIONS_KEYS};

int option_find(const char *name) { return options_find(&RUN_OPTIONS, name); }

int option_index(const char *name) {
    int index = option_find(name);
    CHECK(index >= 0, "no option '%s'", name);
    return index;
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
        option_print(out, option, OPTIONS_KEYS, NULL);
    }
    if (!any)
        fprintf(out, "no option's name or group contains '%s'; the nearest name is '%s'\n", filter,
                options_nearest(&RUN_OPTIONS, filter));
}
