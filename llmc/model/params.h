// params.h: the parameter table: one row per tensor of the model. Initialisation, optimizer, checkpoint, import,
// export and the memory plan all walk it; nothing refers to a tensor by number. The weights, gradients and moments
// are flat arrays with the offsets given here.
#ifndef LLMC_PARAMS_H
#define LLMC_PARAMS_H

#include "llmc/config/model_config.h"
#include "llmc/backend/tensor.h"

typedef enum {
    PARAM_WTE,          // token embedding (Vp, C)
    PARAM_WPE,          // learned positions (max_seq_len, C)
    PARAM_NORM1_W, PARAM_NORM1_B,    // before attention (C)
    PARAM_QKV_W, PARAM_QKV_B,        // (QKV, C) rows [q | k | v]; (QKV)
    PARAM_Q_NORM_W, PARAM_K_NORM_W,  // (HS)
    PARAM_ATTN_PROJ_W, PARAM_ATTN_PROJ_B,  // (C, NH*HS); (C)
    PARAM_NORM2_W, PARAM_NORM2_B,    // before the feed-forward (C)
    PARAM_FC_W, PARAM_FC_B,          // (F, C), for SwiGLU (2F, C) rows [gate | up]
    PARAM_MLP_PROJ_W, PARAM_MLP_PROJ_B,    // (C, F); (C)
    PARAM_NORM_F_W, PARAM_NORM_F_B,  // final norm (C)
    PARAM_HEAD,         // (Vp, C), absent when tied
    PARAM_ROLE_COUNT
} ParamRole;

typedef enum { INIT_NORMAL, INIT_ONES, INIT_ZEROS } ParamInit;

#define PARAM_MAX_PARTS 3
typedef struct {
    char name[64];        // "wte", "block.3.attn.qkv.weight", ...
    ParamRole role;
    int layer;            // -1 outside blocks
    int ndim;             // 1 or 2
    int64_t dim[2];
    ParamInit init;
    float init_std;       // of INIT_NORMAL
    int64_t real_rows;    // rows that are initialised, trained and exported: V of Vp; else dim[0]
    bool decay;           // weight decay applies (matrices and embeddings)
    bool hidden_matrix;   // Muon takes it; embeddings, head, vectors stay with AdamW
    int part_count;       // row blocks that are separate matrices elsewhere: q,k,v or gate,up; 1 otherwise
    int64_t part_rows[PARAM_MAX_PARTS];
    int64_t elems;
    int64_t offset;       // in elements, in the flat arrays; a multiple of PARAM_ALIGN_ELEMS
} ParamSpec;

#define PARAM_ALIGN_ELEMS 128

typedef struct {
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
// Writes initial fp32 values into out[elems]: f(seed, name, index), independent of device and of other tensors.
void params_init_values(const ParamSpec *spec, uint64_t seed, float *out);
#endif
