// state_kinds.c: see state_kinds.h.
#include "llmc/train/state_kinds.h"

StateKept state_kept_by(const Model *model) {
    return (StateKept){.muon = model->part.options.muon,
                       .masters = model->shape.training && model->shape.dtype == DTYPE_BF16 && !model->shape.no_master};
}

static bool if_masters(const StateKept *kept, const ParamSpec *spec) {
    (void)spec;
    return kept->masters;
}
static bool always(const StateKept *kept, const ParamSpec *spec) {
    (void)kept, (void)spec;
    return true;
}
static bool if_adamw(const StateKept *kept, const ParamSpec *spec) { return !(kept->muon && spec->hidden_matrix); }

static void *master_of(const Model *model, const Optimizer *optimizer, const Piece *piece) {
    (void)optimizer;
    return model_master(model, piece);
}
static void *m_of(const Model *model, const Optimizer *optimizer, const Piece *piece) {
    (void)model;
    return optimizer->m + piece->packed;
}
static void *v_of(const Model *model, const Optimizer *optimizer, const Piece *piece) {
    (void)model;
    CHECK(piece->v_packed >= 0, "param %d has no second moments", piece->param);
    return optimizer->v + piece->v_packed;
}

const StateKindRow STATE_ROWS[STATE_KINDS] = {
    [STATE_MASTER] = {"master", DTYPE_F32, .is_weight = true, .kept = if_masters, .address = master_of},
    [STATE_M] = {"m", DTYPE_F32, .hash_place = 0, .kept = always, .address = m_of},
    [STATE_V] = {"v", DTYPE_F32, .hash_place = (int64_t)1 << 62, .kept = if_adamw, .address = v_of},
};
