// params.h: two tables of parameters. A ParamRow is one tensor of the architecture, defined once in model_table.c: shape,
// initial values, when it exists, where the passes read it, its names in other formats. A ParamSpec is that row for one
// layer of one model, with its offset in the flat arrays. Initialisation, binding, optimizer, partition, checkpoint,
// import, export, counts and the memory plan walk these tables. Must not know: operations of the passes, files, ranks.
#ifndef LLMC_PARAMS_H
#define LLMC_PARAMS_H

#include "llmc/config/model_config.h"
#include "llmc/backend/tensor.h"

// In the order of the flat arrays, which is also that of llm.c's model files.
typedef enum {
    PARAM_WTE,          // token embedding
    PARAM_WPE,          // learned positions
    PARAM_NORM1_W, PARAM_NORM1_B,    // before attention
    PARAM_QKV_W, PARAM_QKV_B,        // rows [q | k | v]
    PARAM_Q_NORM_W, PARAM_K_NORM_W,
    PARAM_ATTN_PROJ_W, PARAM_ATTN_PROJ_B,
    PARAM_NORM2_W, PARAM_NORM2_B,    // before the feed-forward
    PARAM_FC_W, PARAM_FC_B,          // gated: rows [gate | up]
    PARAM_MLP_PROJ_W, PARAM_MLP_PROJ_B,
    PARAM_NORM_F_W, PARAM_NORM_F_B,  // final norm
    PARAM_HEAD,         // absent when tied
    PARAM_ROLE_COUNT
} ParamRole;

// The dimension letters of model.h. A dimension consists of parts, which other programs may store as separate tensors.
typedef enum {
    DIM_NONE,
    DIM_V,      // vocabulary: Vp rows in memory, V of them initialised, trained and exported
    DIM_P,      // learned positions
    DIM_C,
    DIM_QKV,    // parts q, k, v
    DIM_Q,      // NH HS
    DIM_HS,
    DIM_FC,     // F; gated: parts gate, up of F each
    DIM_F,
    DIM_NH,
    DIM_HEADS,  // NH + NKV
} ModelDim;
#define PARAM_MAX_PARTS 3
int64_t model_dim(const ModelConfig *config, ModelDim dim);

typedef enum {
    INIT_NORMAL,    // N(0, init_std)
    INIT_RESIDUAL,  // N(0, init_std / sqrt(2 L)): 2 L projections add to the residual stream, whose initial variance so
                    // does not depend on depth (GPT-2)
    INIT_ONES,
    INIT_ZEROS
} ParamInit;

// Before the blocks, in each block, after them.
typedef enum { PLACE_FRONT, PLACE_BLOCK, PLACE_BACK } ParamPlace;

typedef struct {
    const char *name;  // "wte"; in blocks the part after "block.3.": "attn.qkv.weight"
    ParamPlace place;
    ModelDim rows, cols;  // cols DIM_NONE: a vector
    ParamInit init;
    bool decay;           // weight decay applies
    bool (*when)(const ModelConfig *config, int layer);  // NULL: in every model and layer
    // Offsets into Block (PLACE_BLOCK) or ModelTensors: of its Tensor, of its gradient's Tensor, and, if its products may
    // take 8-bit inputs, of that flag (0: none).
    size_t value, grad, fp8;
    bool bias;            // the bias of the row before it, with the same names
    // Names in Hugging Face's families, without ".weight" or ".bias"; in blocks the part after "transformer.h.3." and
    // "model.layers.3.". Llama stores the parts of `rows` separately, one name each; with fewer parts than names the last
    // names are used.
    const char *gpt2;
    const char *llama[PARAM_MAX_PARTS];
} ParamRow;
extern const ParamRow PARAM_ROWS[PARAM_ROLE_COUNT];

typedef struct {
    char name[64];        // "wte", "block.3.attn.qkv.weight", ...
    ParamRole role;
    int layer;            // -1 outside blocks
    int ndim;             // 1 or 2
    int64_t dim[2];
    ParamInit init;
    float init_std;       // of INIT_NORMAL and INIT_RESIDUAL
    int64_t real_rows;    // rows that are initialised, trained and exported: V of Vp; else dim[0]
    bool decay;           // weight decay applies (matrices and embeddings)
    bool hidden_matrix;   // Muon updates it; AdamW updates embeddings, head and vectors
    int part_count;       // row blocks that other programs store as separate matrices: q,k,v or gate,up; 1 otherwise
    int64_t part_rows[PARAM_MAX_PARTS];
    int64_t elems;
    int64_t offset;       // in elements, in the flat arrays; a multiple of PARAM_ALIGN_ELEMS
} ParamSpec;

#define PARAM_ALIGN_ELEMS 128

typedef struct {
    ModelConfig config;
    ParamSpec *spec;
    int count;
    int64_t total_elems;  // length of the flat arrays, alignment gaps included
} ParamTable;

void params_build(ParamTable *table, const ModelConfig *config);
void params_free(ParamTable *table);
// NULL when the model has no such tensor. layer -1 for tensors outside blocks.
const ParamSpec *params_find(const ParamTable *table, ParamRole role, int layer);
// A view of this parameter inside a flat array of `dtype` at `base` (NULL while measuring).
Tensor params_view(const ParamSpec *spec, void *base, DType dtype);
// out (elems) fp32 = initial values: f(seed, name, index), independent of the device and of other tensors.
void params_init_values(const ParamSpec *spec, uint64_t seed, float *out);

// The number of parameters as usually reported: V, not Vp, rows; a tied head once.
int64_t params_count(const ModelConfig *config);
// One human-readable line: "GPT-2-like, 12 layers, 768 wide, 12 heads, vocabulary 50257: 124.4M parameters".
void params_describe(const ModelConfig *config, char *out, size_t out_bytes);
#endif
