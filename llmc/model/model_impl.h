// model_impl.h: declarations that model_memory.c, block.c, model.c and the tables share. Private to this room.
#ifndef LLMC_MODEL_IMPL_H
#define LLMC_MODEL_IMPL_H

#include "llmc/model/model.h"

// ---- activations of a block (model_table.c) ----

typedef enum { ACT_DTYPE, ACT_F32 } ActType;  // the model's dtype; statistics are fp32
typedef struct {
    const char *name;
    size_t field;   // its Tensor, as an offset into BlockActs
    ModelDim cols;  // (N, cols); DIM_NONE: (N)
    ActType type;
    bool (*when)(const ModelConfig *config, int layer);  // NULL: in every block
    // From this level of `recompute` on, and always without training, all blocks share one tensor, and the backward pass
    // recomputes it. Below this level each block has its own.
    Recompute shared_from;
} ActRow;
extern const ActRow ACT_ROWS[];
extern const int ACT_ROW_COUNT;

// ---- the products of a linear layer, norms and one block (block.c) ----

// Fused into a linear layer's product; {0}: nothing. At most one of add and act.
typedef struct {
    Tensor add;      // out += add, the residual
    Activation act;  // out = act(out), its argument in `pre`
    Tensor pre;
} Epilogue;
// out (N,out) = x (N,in) w^T + bias, then the epilogue.
void linear_forward(Model *m, const Linear *layer, Tensor out, Tensor x, Epilogue epilogue);
// dx (N,in) = dout (N,out) w [times act_grad'(pre)].
void linear_backward_input(Model *m, const Linear *layer, Tensor dx, Tensor dout, Activation act_grad, Tensor pre);
// dw (out,in) {=, += if accumulate} dout^T x; db likewise the column sums of dout.
void linear_backward_weight(Model *m, const Linear *layer, Tensor dout, Tensor x, bool accumulate);

// a->out (N,C) = norm(x); a->mean, a->rstd (N) = its statistics.
void norm_forward(Model *m, const Norm *norm, const NormActs *a, Tensor x);
// dx (N,C) {=, += if accumulate_dx}; the gradients of weight and bias {=, += if accumulate}.
void norm_backward(Model *m, const Norm *norm, Tensor dx, Tensor dout, Tensor x, const NormActs *a, bool accumulate_dx,
                   bool accumulate);
// Views of the first N rows, for a batch smaller than the largest.
NormActs norm_acts_for(const NormActs *a, int64_t N);

// h_{l+1} = block(h_l). start >= 0: incremental decoding from that position, with this block's KV cache.
void block_forward(Model *m, int64_t l, int64_t start);
// RECOMPUTE_NORM_ACT: recomputes the activations that were not kept.
void block_recompute(Model *m, int64_t l);
// dh: on entry the gradient of h_{l+1}, on return that of h_l.
void block_backward(Model *m, int64_t l, bool accumulate);

// ---- inputs ----

// Bytes from the start of an input set to the end of `last`, one of its tensors.
size_t input_span(const InputSet *in, Tensor last);
#endif
