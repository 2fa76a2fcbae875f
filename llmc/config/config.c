// config.c: converts option texts to a RunConfig (defaults, inheritance, derived values, cross checks) and back (run
// file, JSON). config_file.c reads the text; config_options.c has the options.
#include "llmc/config/config.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/format_version.h"
#include "llmc/config/config_file.h"
#include "llmc/config/config_options.h"

#define MAIN_NAME "main"                         // of the only source and phase of a run without such sections
#define MOST_TOKENS ((int64_t)1000000000000000)  // MOST of the option table
#define WARMUP_SHARE 20
#define WARMUP_MOST_STEPS 1000
#define WARMUP_TIMED_STEPS 50

static const char *const LR_OPTIONS[] = {"schedule", "lr", "warmup_steps", "final_lr_frac", "decay_frac"};
enum { LR_OPTION_COUNT = sizeof LR_OPTIONS / sizeof LR_OPTIONS[0] };
static const char *const BIAS_OPTIONS[] = {"norm_bias", "qkv_bias", "proj_bias", "mlp_bias"};
enum { BIAS_OPTION_COUNT = sizeof BIAS_OPTIONS / sizeof BIAS_OPTIONS[0] };

static bool option_in(const Option *option, unsigned scope) { return option->bytes > 0 && (option->scopes & scope); }
static bool option_of_run(const Option *option) {
    return option_in(option, SCOPE_RUN) && !(option->scopes & (SCOPE_SOURCE | SCOPE_PHASE | SCOPE_ARCHITECTURE));
}

// The draft's texts were checked when they were read, and the table's defaults are constants.
static void store(const Option *option, void *base, const char *text) {
    Error err = {""};
    bool ok = option_store(option, base, text, &err);
    CHECK(ok, "%s: %s", option->name, err.message);
}

static const Given *given(const Section *section, const char *name) { return &section->given[option_index(name)]; }
static bool is_given(const Section *section, const char *name) { return given(section, name)->text != NULL; }

// The section's value, else the run's, else NULL.
static const Given *inherited(const Draft *draft, const Section *section, int option) {
    const Given *own = section != NULL ? &section->given[option] : NULL;
    if (own != NULL && own->text != NULL) return own;
    const Given *run = &draft->section[0].given[option];
    return run->text != NULL ? run : NULL;
}

// ---- architecture ----

// Applies the architecture options given at run level; true if all of them are given.
static bool store_architecture(RunConfig *out, const Section *run) {
    bool all = true;
    const Given *bias = given(run, "bias");
    for (int i = 0; bias->text != NULL && i < BIAS_OPTION_COUNT; ++i)
        store(&OPTIONS[option_index(BIAS_OPTIONS[i])], out, bias->text);
    for (int i = 0; i < OPTION_COUNT; ++i) {
        if (!option_in(&OPTIONS[i], SCOPE_ARCHITECTURE)) continue;
        if (run->given[i].text != NULL) store(&OPTIONS[i], out, run->given[i].text);
        else all = false;
    }
    // RMSNorm has no bias: `bias` does not set norm_bias then.
    if (bias->text != NULL && out->arch.norm == NORM_RMS && !is_given(run, "norm_bias")) out->arch.norm_bias = false;
    return all;
}

// model_config_finish, which also accepts a vocabulary that is still unknown.
static bool finish_architecture(ModelConfig *arch, Error *err) {
    bool unknown = arch->V == 0;
    if (unknown) arch->V = 1;
    bool ok = model_config_finish(arch, err);
    if (unknown) arch->V = arch->Vp = 0;
    return ok;
}

static bool resolve_architecture(RunConfig *out, const Draft *draft, ConfigImport import, Error *err) {
    const Section *run = &draft->section[0];
    const Given *model = given(run, "model");
    const char *base = "model";
    if (model->text != NULL) base = model->where;
    if (out->init_from[0] != '\0') {
        base = given(run, "init_from")->where;
        if (model->text != NULL && model->text[0] != '\0')
            return error_set(err,
                             "%s: expected no 'model' together with init_from, which sets the architecture, found '%s'",
                             model->where, model->text);
        memset(out->model, 0, sizeof out->model);
        // A resolved config gives every option, so its run can be resumed after the imported model was deleted.
        RunConfig *scratch = xcalloc(1, sizeof *scratch);
        bool all = store_architecture(scratch, run);
        free(scratch);
        if (!all && import == NULL) return error_set(err, "%s: this command cannot import a model", base);
        if (!all && !import(&out->arch, out->init_from, err)) return error_prefix(err, "%s", base);
    } else {
        if (!model_config_preset(&out->arch, out->model, err)) return error_prefix(err, "%s", base);
        out->preset_vocab = out->arch.V;
        out->arch.V = 0;
    }
    store_architecture(out, run);
    if (!finish_architecture(&out->arch, err)) return error_prefix(err, "%s", base);
    return true;
}

// ---- sources ----

static bool resolve_sources(RunConfig *out, const Draft *draft, Error *err) {
    int named = draft_count(draft, SCOPE_SOURCE);
    const Given *train = given(&draft->section[0], "train");
    if (named > 0 && train->text != NULL)
        return error_set(
            err, "%s: expected 'train' inside [source NAME], because the run has such sections, found it outside",
            train->where);
    for (int k = named > 0 ? 1 : 0; k < (named > 0 ? draft->count : 1); ++k) {
        const Section *section = &draft->section[k];
        if (named > 0 && section->scope != SCOPE_SOURCE) continue;
        SourceConfig *source = &out->source[out->source_count++];
        snprintf(source->name, sizeof source->name, "%s", named > 0 ? section->name : MAIN_NAME);
        for (int i = 0; i < OPTION_COUNT; ++i) {
            if (!option_in(&OPTIONS[i], SCOPE_SOURCE)) continue;
            const Given *value = inherited(draft, section, i);
            store(&OPTIONS[i], source, value != NULL ? value->text : OPTIONS[i].fallback);
        }
    }
    return true;
}

static int source_index(const RunConfig *config, const char *name) {
    for (int i = 0; i < config->source_count; ++i)
        if (strcmp(config->source[i].name, name) == 0) return i;
    return -1;
}

static bool resolve_weights(PhaseConfig *phase, const RunConfig *config, const Section *section, Error *err) {
    double sum = 0;
    for (int i = 0; i < config->source_count; ++i) phase->weight[i] = config->source[i].weight;
    for (int k = 0; section != NULL && k < section->weight_count; ++k) {
        const GivenWeight *weight = &section->weight[k];
        int source = source_index(config, weight->source);
        if (source < 0) {
            const char *nearest = config->source[0].name;
            for (int i = 1; i < config->source_count; ++i)
                if (edit_distance(weight->source, config->source[i].name) < edit_distance(weight->source, nearest))
                    nearest = config->source[i].name;
            return error_set(err, "%s: expected weight.SOURCE with a source of this run such as '%s', found '%s'",
                             weight->given.where, nearest, weight->source);
        }
        bool ok = parse_f64(weight->given.text, &phase->weight[source]);
        CHECK(ok, "weight '%s'", weight->given.text);
    }
    for (int i = 0; i < config->source_count; ++i) sum += phase->weight[i];
    if (!(sum > 0))
        return error_set(err, "phase '%s': expected a source with a weight above 0, found only zeros", phase->name);
    return true;
}

// ---- phases ----

typedef struct {
    const Given *tokens, *steps, *seconds;  // at most one is not NULL
} Budget;

// One of the section's tokens, steps, train_seconds; an override of any of them replaces the one of the file.
static bool section_budget(Budget *out, const Section *section, Error *err) {
    const Given *all[3] = {given(section, "tokens"), given(section, "steps"), given(section, "train_seconds")};
    const Given *chosen[3] = {NULL, NULL, NULL}, *first = NULL;
    bool any_override = false;
    for (int i = 0; i < 3; ++i) {
        if (i == 2 && all[i]->text != NULL && strtod(all[i]->text, NULL) == 0) continue;  // 0: as if not given
        if (all[i]->text != NULL && (!any_override || all[i]->is_override)) {
            if (all[i]->is_override && !any_override) chosen[0] = chosen[1] = first = NULL;
            any_override |= all[i]->is_override;
            if (first != NULL)
                return error_set(err, "%s: expected one of tokens, steps and train_seconds, found another at %s",
                                 all[i]->where, first->where);
            chosen[i] = first = all[i];
        }
    }
    *out = (Budget){chosen[0], chosen[1], chosen[2]};
    return true;
}

static bool phase_budget(Budget *out, const Draft *draft, const Section *section, Error *err) {
    Budget run;
    if (!section_budget(&run, &draft->section[0], err)) return false;
    *out = run;
    if (section == NULL) return true;
    if (!section_budget(out, section, err)) return false;
    const Given *own = out->tokens != NULL ? out->tokens : out->steps;
    if (own != NULL && run.seconds != NULL)
        return error_set(err, "%s: expected one of tokens, steps and train_seconds, found another at %s", own->where,
                         run.seconds->where);
    if (own == NULL) *out = run;
    return true;
}

// Options of PhaseConfig except those of the learning rate: the phase's value, the run's, the default, or 0 if it is
// derived later.
static void store_phase(PhaseConfig *phase, const Draft *draft, const Section *section) {
    for (int i = 0; i < OPTION_COUNT; ++i) {
        const Option *option = &OPTIONS[i];
        if (!option_in(option, SCOPE_PHASE)) continue;
        const Given *value = inherited(draft, section, i);
        const char *text = value != NULL ? value->text : option->fallback;
        if (text != NULL) store(option, phase, text);
    }
}

static bool names_lr(const Section *section) {
    for (int i = 0; section != NULL && i < LR_OPTION_COUNT; ++i)
        if (is_given(section, LR_OPTIONS[i])) return true;
    return false;
}

// Fields of a phase that are derived from other options: lengths, budget.
static bool resolve_lengths(PhaseConfig *phase, const RunConfig *config, const Budget *budget, Error *err) {
    if (phase->seq_len == 0) phase->seq_len = config->arch.max_seq_len;
    // Learned positions limit the length; rotary ones do not.
    if (config->arch.position == POSITION_LEARNED && phase->seq_len > config->arch.max_seq_len)
        return error_set(err, "phase '%s': expected seq_len of at most max_seq_len=%lld, found %lld", phase->name,
                         (long long)config->arch.max_seq_len, (long long)phase->seq_len);
    if (phase->batch_tokens == 0) phase->batch_tokens = phase->batch_rows * phase->seq_len;
    phase->tokens = 0;
    if (budget->tokens != NULL) store(&OPTIONS[option_index("tokens")], phase, budget->tokens->text);
    if (budget->steps != NULL) {
        int64_t steps;
        bool ok = parse_count(budget->steps->text, &steps);
        CHECK(ok, "steps '%s'", budget->steps->text);
        if (steps > MOST_TOKENS / phase->batch_tokens)
            return error_set(err, "%s: expected at most %lld tokens, found %lld steps of %lld tokens",
                             budget->steps->where, (long long)MOST_TOKENS, (long long)steps,
                             (long long)phase->batch_tokens);
        phase->tokens = steps * phase->batch_tokens;
    }
    return true;
}

static bool resolve_phases(RunConfig *out, const Draft *draft, Error *err) {
    int named = draft_count(draft, SCOPE_PHASE);
    for (int k = 0; k < draft->count; ++k) {
        const Section *section = &draft->section[k];
        if (section->scope != (named > 0 ? SCOPE_PHASE : SCOPE_RUN)) continue;
        if (named == 0) section = NULL;
        PhaseConfig *phase = &out->phase[out->phase_count++];
        snprintf(phase->name, sizeof phase->name, "%s", section != NULL ? section->name : MAIN_NAME);
        store_phase(phase, draft, section);
        phase->new_lr_segment = out->phase_count == 1 || names_lr(section);
        if (!phase->new_lr_segment) phase->lr = phase[-1].lr;
        Budget budget;
        if (!phase_budget(&budget, draft, section, err)) return false;
        if (budget.seconds != NULL && named > 1)
            return error_set(err, "%s: expected a run of one phase, found %d", budget.seconds->where, named);
        out->train_seconds = budget.seconds != NULL ? strtod(budget.seconds->text, NULL) : 0;
        if (!resolve_lengths(phase, out, &budget, err) || !resolve_weights(phase, out, section, err)) return false;
    }
    return true;
}

// The default warm-up is a share of the segment's steps, so it is set when all lengths are known.
static void resolve_warmup(RunConfig *out, const Draft *draft) {
    int warmup = option_index("warmup_steps");
    for (int first = 0, end; first < out->phase_count; first = end) {
        int64_t steps = 0;
        for (end = first; end == first || (end < out->phase_count && !out->phase[end].new_lr_segment); ++end)
            steps += div_up(out->phase[end].tokens, out->phase[end].batch_tokens);
        const Section *section = draft_find(draft, SCOPE_PHASE, out->phase[first].name);
        if (inherited(draft, section, warmup) != NULL) continue;
        int64_t automatic = min_i64(div_up(steps, WARMUP_SHARE), WARMUP_MOST_STEPS);
        if (out->train_seconds > 0) automatic = WARMUP_TIMED_STEPS;
        if (first > 0) automatic = 0;  // only the first curve has a warm-up by default
        for (int i = first; i < end; ++i) out->phase[i].lr.warmup_steps = automatic;
    }
}

// ---- load and check ----

static bool resolve(RunConfig *out, const Draft *draft, ConfigImport import, Error *err) {
    memset(out, 0, sizeof *out);  // including padding: equal configs have equal bytes
    for (int i = 0; i < OPTION_COUNT; ++i) {
        if (!option_of_run(&OPTIONS[i])) continue;
        const char *text = draft->section[0].given[i].text;
        store(&OPTIONS[i], out, text != NULL ? text : OPTIONS[i].fallback);
    }
    if (!resolve_architecture(out, draft, import, err) || !resolve_sources(out, draft, err) ||
        !resolve_phases(out, draft, err))
        return false;
    resolve_warmup(out, draft);
    return true;
}

bool config_load(RunConfig *out, const char *path, int override_count, char *const *overrides, ConfigImport import,
                 Error *err) {
    Draft draft;
    bool ok = draft_read(&draft, path, override_count, overrides, err) && resolve(out, &draft, import, err);
    draft_free(&draft);
    return ok;
}

bool config_check_training(const RunConfig *config, Error *err) {
    for (int i = 0; i < config->source_count; ++i)
        if (config->source[i].train[0] == '\0')
            return error_set(err, "source '%s': expected train=FILES with shards to train on, found none",
                             config->source[i].name);
    for (int i = 0; i < config->phase_count; ++i)
        if (config->phase[i].tokens == 0 && config->train_seconds == 0)
            return error_set(err, "phase '%s': expected a length (tokens, steps or train_seconds), found none",
                             config->phase[i].name);
    if (config->dtype == DTYPE_F32 && !config->master_weights)
        return error_set(err, "master_weights=false: expected dtype=bf16, found fp32, which has no separate master "
                              "weights");
    if (config->fp8 && config->dtype != DTYPE_BF16)
        return error_set(err, "fp8=true: expected dtype=bf16, found fp32");
    return true;
}

// ---- print ----

static bool source_is_implicit(const RunConfig *config) {
    return config->source_count == 1 && strcmp(config->source[0].name, MAIN_NAME) == 0 &&
           config->source[0].weight == 1;
}
static bool phase_is_implicit(const RunConfig *config) {
    bool same_weights = true;
    for (int i = 0; i < config->source_count; ++i)
        same_weights = same_weights && config->phase[0].weight[i] == config->source[i].weight;
    return config->phase_count == 1 && strcmp(config->phase[0].name, MAIN_NAME) == 0 && same_weights;
}

// The struct with the option's value if the option is printed in this scope, else NULL. Learning-rate options of a
// phase are printed where a curve starts; lengths that were not given are not printed.
static const void *printed_base(const Option *option, const RunConfig *config, const SourceConfig *source,
                                const PhaseConfig *phase) {
    if (option->bytes == 0) return NULL;
    if (option->scopes & SCOPE_SOURCE) return config != NULL && !(option->scopes & SCOPE_RUN) ? NULL : source;
    if (!(option->scopes & SCOPE_PHASE)) return config;
    if (phase == NULL || (strcmp(option->name, "tokens") == 0 && phase->tokens == 0)) return NULL;
    bool is_lr =
        option->offset >= offsetof(PhaseConfig, lr) && option->offset < offsetof(PhaseConfig, lr) + sizeof phase->lr;
    return is_lr && !phase->new_lr_segment ? NULL : phase;
}

// Prints all options of one part of the file; config, source, phase: NULL if the part has none of their options.
static void print_part(FILE *out, const RunConfig *config, const SourceConfig *source, const PhaseConfig *phase) {
    const char *group = NULL, *printed = NULL;
    for (int i = 0; i < OPTION_COUNT; ++i) {
        const Option *option = &OPTIONS[i];
        if (option->group != NULL) group = option->group;
        const void *base = printed_base(option, config, source, phase);
        if (base == NULL) continue;
        if (config != NULL && group != printed) fprintf(out, "%s# %s\n", printed != NULL ? "\n" : "", group);
        printed = group;
        char *text = option_format(option, base);
        draft_print_value(out, option->name, text);
        free(text);
    }
}

void config_print(FILE *out, const RunConfig *config) {
    bool one_source = source_is_implicit(config), one_phase = phase_is_implicit(config);
    fprintf(out, FORMAT_VERSION_KEY " = %lld\n\n", (long long)format_version(FORMAT_RUN_FILE));
    print_part(out, config, one_source ? &config->source[0] : NULL, one_phase ? &config->phase[0] : NULL);
    for (int i = 0; !one_source && i < config->source_count; ++i) {
        fprintf(out, "\n[source %s]\n", config->source[i].name);
        print_part(out, NULL, &config->source[i], NULL);
    }
    for (int i = 0; !one_phase && i < config->phase_count; ++i) {
        const PhaseConfig *phase = &config->phase[i];
        fprintf(out, "\n[phase %s]\n", phase->name);
        print_part(out, NULL, NULL, phase);
        for (int k = 0; k < config->source_count; ++k)
            if (phase->weight[k] != config->source[k].weight)
                fprintf(out, "weight.%s = %.17g\n", config->source[k].name, phase->weight[k]);
    }
}

// ---- JSON ----

static void json_add(cJSON *object, const Option *option, const void *base) {
    char *text = option_format(option, base);
    if (option->kind == OPTION_BOOL) cJSON_AddBoolToObject(object, option->name, strcmp(text, "true") == 0);
    else if (option->kind == OPTION_CHARS || option->kind == OPTION_WORD)
        cJSON_AddStringToObject(object, option->name, text);
    else cJSON_AddRawToObject(object, option->name, text);
    free(text);
}

static void json_part(cJSON *object, const RunConfig *config, const SourceConfig *source, const PhaseConfig *phase) {
    for (int i = 0; i < OPTION_COUNT; ++i) {
        const void *base = printed_base(&OPTIONS[i], config, source, phase);
        if (base != NULL) json_add(object, &OPTIONS[i], base);
    }
}

char *config_to_json(const RunConfig *config) {
    cJSON *root = cJSON_CreateObject();
    json_part(root, config, NULL, NULL);
    cJSON *sources = cJSON_AddArrayToObject(root, "source");
    for (int i = 0; i < config->source_count; ++i) {
        cJSON *source = cJSON_CreateObject();
        cJSON_AddStringToObject(source, "name", config->source[i].name);
        json_part(source, NULL, &config->source[i], NULL);
        cJSON_AddItemToArray(sources, source);
    }
    cJSON *phases = cJSON_AddArrayToObject(root, "phase");
    for (int i = 0; i < config->phase_count; ++i) {
        cJSON *phase = cJSON_CreateObject();
        cJSON_AddStringToObject(phase, "name", config->phase[i].name);
        json_part(phase, NULL, NULL, &config->phase[i]);
        cJSON *weights = cJSON_AddObjectToObject(phase, "weight");
        for (int k = 0; k < config->source_count; ++k)
            cJSON_AddNumberToObject(weights, config->source[k].name, config->phase[i].weight[k]);
        cJSON_AddItemToArray(phases, phase);
    }
    char *text = cJSON_PrintUnformatted(root);
    CHECK(text != NULL, "out of host memory printing the config");
    cJSON_Delete(root);
    return text;
}
