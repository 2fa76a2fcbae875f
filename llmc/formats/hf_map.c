// hf_map.c: maps the parameter table to the tensors of Hugging Face's GPT-2 and Llama families; see hf.h. The parts of
// the names are columns of the table (PARAM_ROWS). Import and export use the same map, so they agree.
#include <stdio.h>
#include <stdlib.h>

#include "llmc/formats/hf.h"

// Llama stores some row blocks (q, k, v; gate, up) as separate tensors; GPT-2 stores them fused, in the same order.
static void format_name(HfTensor *out, const ParamSpec *spec, int part, bool gpt2) {
    const ParamRow *row = &PARAM_ROWS[spec->role];
    int names = 0;
    while (names < PARAM_MAX_PARTS && row->llama[names] != NULL) ++names;
    const char *stem = gpt2 ? row->gpt2 : row->llama[max_i64(names - spec->part_count, 0) + part];
    char block[48] = "";
    if (spec->layer >= 0)
        snprintf(block, sizeof block, gpt2 ? "transformer.h.%d." : "model.layers.%d.", spec->layer);
    snprintf(out->name, sizeof out->name, "%s%s.%s", block, stem, row->bias ? "bias" : "weight");
}

// Adds the Hugging Face tensors of one parameter. theirs: the parameter as that architecture has it; ours: the model's,
// or NULL if the model lacks it (zeros).
static void add_tensors(HfMap *map, const ParamSpec *ours, const ParamSpec *theirs, bool gpt2) {
    int parts = gpt2 ? 1 : theirs->part_count;
    int64_t row = 0;
    for (int part = 0; part < parts; ++part) {
        HfTensor *out = &map->tensor[map->count++];
        *out = (HfTensor){.spec = ours, .first_row = row, .ndim = theirs->ndim};
        out->rows = parts == 1 ? theirs->real_rows : theirs->part_rows[part];
        out->transposed = gpt2 && theirs->ndim == 2 && theirs->layer >= 0;  // Conv1D: (in, out)
        out->dim[0] = out->transposed ? theirs->dim[1] : out->rows;
        out->dim[1] = out->transposed ? out->rows : theirs->dim[1];
        format_name(out, theirs, part, gpt2);
        row += out->rows;
    }
}

void hf_map_build_as(HfMap *map, const ParamTable *params, HfLayout layout) {
    ModelConfig config = params->config;
    config.norm_bias |= layout.norm_bias;
    config.qkv_bias |= layout.qkv_bias;
    config.proj_bias |= layout.proj_bias;
    config.mlp_bias |= layout.mlp_bias;
    ParamTable theirs;
    params_build(&theirs, &config);
    map->tensor = xcalloc((size_t)theirs.count * PARAM_MAX_PARTS, sizeof *map->tensor);
    map->count = 0;
    for (int i = 0; i < theirs.count; ++i) {
        const ParamSpec *spec = &theirs.spec[i];
        add_tensors(map, params_find(params, spec->role, spec->layer), spec, layout.gpt2_names);
    }
    params_free(&theirs);
}

void hf_map_build(HfMap *map, const ParamTable *params, const ModelConfig *config) {
    hf_map_build_as(map, params, hf_layout(config));
}

void hf_map_free(HfMap *map) {
    free(map->tensor);
    *map = (HfMap){0};
}
