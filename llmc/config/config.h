// config.h: the settings of a run. One option table (config_options.c) drives the run file, key=value overrides,
// --help, the printed resolved config and range checks. A run has a list of sources and a list of phases; without
// [source] or [phase] sections it has one of each, named "main". Must not know tensors, devices or model files.
//
// Run file (INI, read by inih):             Command line:
//     format_version = 1                    (of the run file; optional, before everything else)
//     out_dir = runs/kjv                        train_gpt train run.conf lr=1e-3 source.web.weight=0.5
//     model = gpt2:124M
//     [source web]
//     train = data/web_train_*.bin
//     weight = 0.7
//     [phase cooldown]
//     tokens = 100M
//     weight.web = 0.3
//
// A file gives a key only once; on the command line the last value of a key is used, and an override replaces the
// value of the file. Options of sources and phases before the first section are the defaults of all of them. Lines
// that start with # or ; are comments, as is text after " ;". An indented line continues the value above it. A value
// in double quotes may hold \n \t \" \\ \xHH. Paths are relative to the working directory. The training length is one
// of tokens, steps, train_seconds.
#ifndef LLMC_CONFIG_H
#define LLMC_CONFIG_H

#include <stdio.h>

#include "llmc/base/op_types.h"
#include "llmc/base/words.h"
#include "llmc/config/model_config.h"

#define CONFIG_MAX_SOURCES 32
#define CONFIG_MAX_PHASES 32
#define CONFIG_NAME_BYTES 64
#define CONFIG_PATH_BYTES 1024

typedef enum { SCHEDULE_CONSTANT, SCHEDULE_LINEAR, SCHEDULE_COSINE, SCHEDULE_WSD } ScheduleKind;
typedef enum { ON_SAVE_ERROR_CONTINUE, ON_SAVE_ERROR_STOP } OnSaveError;
typedef enum { DETERMINISTIC_RUN, DETERMINISTIC_LANES } Deterministic;
typedef enum { ON_SPIKE_SKIP, ON_SPIKE_REWIND } OnSpike;
extern const Word DEVICE_WORDS[], CPU_ISA_WORDS[], ATTENTION_WORDS[];  // stored as text: the values are unused

typedef struct {
    char name[CONFIG_NAME_BYTES];
    char train[CONFIG_PATH_BYTES];  // glob of shards
    char val[CONFIG_PATH_BYTES];    // glob of held-out shards; "": none
    double weight;                  // relative share of samples; a phase may override it
    bool doc_mask;                  // attention stays inside documents (split at the tokenizer's end-of-text)
    char format[CONFIG_NAME_BYTES]; // name of the row format (llmc/loader/row_format.h); "": the default. No option
                                    // sets it yet: there is only one format.
} SourceConfig;

// Learning rate over a segment of steps: warm-up, then the kind's curve down to final_lr_frac * lr.
typedef struct {
    ScheduleKind kind;
    double lr;
    int64_t warmup_steps;
    double final_lr_frac;
    double decay_frac;  // WSD: share of the segment that decays (linearly)
} LrConfig;

typedef struct {
    char name[CONFIG_NAME_BYTES];
    int64_t tokens;                     // budget; rounded up to whole steps
    double weight[CONFIG_MAX_SOURCES];  // resolved: the phase's weight.SOURCE, or else the source's own weight
    int64_t seq_len;                    // T
    int64_t batch_tokens;               // global batch of one optimizer step
    int64_t batch_rows;                 // B: rows of one micro-batch on one rank
    bool new_lr_segment;                // a learning-rate curve starts here (at the first phase and at any that sets
    LrConfig lr;                        //   one of its options) and ends where the next starts; false: it continues
    char trainable[CONFIG_PATH_BYTES];  // comma-separated name patterns (fnmatch) of trained tensors; "*": all
} PhaseConfig;

typedef struct {
    // run
    char out_dir[CONFIG_PATH_BYTES];
    char resume[CONFIG_PATH_BYTES];     // "auto": newest complete checkpoint of out_dir if any, "never", or a path
    char init_from[CONFIG_PATH_BYTES];  // Hugging Face directory or llm.c .bin with the initial weights; "": random
    char tokenizer[CONFIG_PATH_BYTES];  // tokenizer.json or directory; "": the one in the shards' directory, if any
    int64_t seed;
    // device
    char device[16];   // auto, cpu, cuda, cudaemu
    int64_t threads;   // 0: all
    char cpu_isa[16];  // auto, generic, avx2, avx512, avx512bf16
    DType dtype;          // fp32, bf16
    bool master_weights;  // bf16: keep fp32 master weights; false: updates round stochastically
    bool fp8;             // bf16 on a GPU with 8-bit floats: the blocks' linear layers compute their products in them
    char attention[16];  // GPU: auto, cudnn, own
    bool graphs;         // GPU: replay captured steps
    Recompute recompute;
    int64_t loss_chunk_rows;  // rows of logits in memory at a time; 0: chosen by the engine
    // ranks
    char launch[16];                     // auto, single, mpi, tcp, directory
    char rendezvous[CONFIG_PATH_BYTES];  // directory where ranks meet
    int64_t zero;                        // ZeRO stage 0..3
    Deterministic deterministic;
    DType reduce_dtype;     // fp32, bf16: dtype of gradients sent between ranks
    double comm_timeout;    // seconds to wait for a rank before the run ends with an error
    int64_t compare_every;  // steps between comparisons of the replicas' weights; 0: never
    int64_t hash_every;     // steps between links of the hash chain; 0: none
    // model
    char model[64];  // preset; "": the model of init_from; the architecture options override it
    ModelConfig arch;
    int64_t preset_vocab;  // for arch.V == 0 where there is no tokenizer
    // training
    double train_seconds;  // > 0: instead of tokens, the only phase lasts this long; its steps follow from the speed
    OptimizerKind optimizer;
    double beta1, beta2, eps, weight_decay, grad_clip;
    double muon_lr, muon_momentum;  // hidden matrices; muon_lr follows the same schedule shape as lr
    int64_t muon_steps;             // Newton-Schulz iterations
    bool muon_nesterov;
    int64_t max_bad_steps;  // consecutive skipped steps before the run stops
    double spike_z;         // > 0: a step whose loss or gradient norm is more than this many standard deviations
    int64_t spike_window;   //      above the mean of the last spike_window steps is a spike
    OnSpike on_spike;
    // cadence, in steps
    int64_t log_every, val_every, val_tokens, sample_every, sample_tokens;
    char sample_prompt[256];
    int64_t save_every, keep_last, keep_every;
    bool async_save;  // a thread writes a copy while training continues
    OnSaveError on_save_error;
    bool progress_bar;  // live line when stderr is a terminal
    // data
    int source_count;
    SourceConfig source[CONFIG_MAX_SOURCES];
    int phase_count;
    PhaseConfig phase[CONFIG_MAX_PHASES];
} RunConfig;

// Reads the architecture of the model at path (init_from). The caller passes model_file_read_config of model_file.h, so
// that this room does not depend on model files.
typedef bool (*ConfigImport)(ModelConfig *out, const char *path, Error *err);

// Defaults, then the file (may be NULL), then overrides "key=value", "source.NAME.key=value", "phase.NAME.key=value"
// in order, then resolution: model preset or imported model and its overrides, phase inheritance, checks. Errors name
// file:line or the override, the key, what was expected and what was found; an unknown key suggests the nearest known
// one. The vocabulary may still be 0 afterwards; the caller then sets it from the tokenizer or the shards and calls
// model_config_finish. import NULL: init_from is an error. Equal settings give equal bytes (memcmp).
bool config_load(RunConfig *out, const char *path, int override_count, char *const *overrides, ConfigImport import,
                 Error *err);
// Checks what training needs but planning and sampling do not: training shards and a length.
bool config_check_training(const RunConfig *config, Error *err);
// The resolved config as a run file that config_load reads back to the same RunConfig. Every value is written, also
// inherited ones and defaults.
void config_print(FILE *out, const RunConfig *config);
// As one JSON object (cJSON text, caller frees), for metrics.jsonl and state.json.
char *config_to_json(const RunConfig *config);
// Prints every option by group: name, type, default, range, meaning. filter: part of a name or group; NULL: all.
void config_help(FILE *out, const char *filter);
#endif
