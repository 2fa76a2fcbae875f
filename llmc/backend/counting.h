// counting.h: a backend that counts instead of computing. Every operation adds its floating-point operations, the
// bytes that it moves and its kernel launches; its memory is addresses without bytes behind them, so that the passes
// of a model of any size take milliseconds. With an inner backend, every operation is counted and then executed
// there. Only backends that compute check shapes.
// Must not know: models, machines, seconds.
#ifndef LLMC_COUNTING_H
#define LLMC_COUNTING_H

#include "llmc/backend/backend.h"

// One row for each entry of Backend that is counted. upload_after counts as UPLOAD, download_begin as DOWNLOAD.
#define COUNTED_OPS(ROW)                          \
    ROW(MATMUL, "matmul")                         \
    ROW(BIAS_BACKWARD, "bias_backward")           \
    ROW(EMBEDDING_FORWARD, "embedding_forward")   \
    ROW(EMBEDDING_BACKWARD, "embedding_backward") \
    ROW(NORM_FORWARD, "norm_forward")             \
    ROW(NORM_BACKWARD, "norm_backward")           \
    ROW(QK_FORWARD, "qk_forward")                 \
    ROW(QK_BACKWARD, "qk_backward")               \
    ROW(ATTENTION_FORWARD, "attention_forward")   \
    ROW(ATTENTION_BACKWARD, "attention_backward") \
    ROW(ATTENTION_DECODE, "attention_decode")     \
    ROW(ACTIVATION_FORWARD, "activation_forward") \
    ROW(ACTIVATION_BACKWARD, "activation_backward") \
    ROW(CROSS_ENTROPY, "cross_entropy")           \
    ROW(SOFTCAP, "softcap")                       \
    ROW(WEIGHTED_SUM, "weighted_sum")             \
    ROW(ADD, "add")                               \
    ROW(CAST, "cast")                             \
    ROW(SUM_SQUARES, "sum_squares")               \
    ROW(GRAD_CLIP, "grad_clip")                   \
    ROW(HASH_SUM, "hash_sum")                     \
    ROW(ADAMW, "adamw")                           \
    ROW(MUON_MOMENTUM, "muon_momentum")           \
    ROW(FROBENIUS_NORMALIZE, "frobenius_normalize") \
    ROW(MUON_APPLY, "muon_apply")                 \
    ROW(ZERO, "zero")                             \
    ROW(COPY, "copy")                             \
    ROW(UPLOAD, "upload")                         \
    ROW(DOWNLOAD, "download")

#define COUNTED_OP_ENUM(op, name) COUNT_##op,
typedef enum { COUNTED_OPS(COUNTED_OP_ENUM) COUNT_OPS } CountedOp;
#undef COUNTED_OP_ENUM

// Sums over the calls of an operation. A multiply-add is two FLOPs; attention counts the visible keys of a query
// (counting_mean_keys) and ignores documents. All fields are doubles: exact whole numbers up to 2^53.
typedef struct {
    double calls;
    double kernels;      // that a GPU would probably launch
    double flops;        // of matrix products, attention's included; nothing else
    double fp8_flops;    // of products in 8-bit floats, not included in flops
    double again_flops;  // recomputed scores of attention's backward pass; not included in flops
    // Between memory and processor: everything written and read, except the two inputs of a product, whose reads
    // overlap its multiplications. An 8-bit product first reads, scales and writes its inputs.
    double bytes;
    double product_input_bytes;
    double host_bytes;  // between host and device
} OpCount;

typedef struct {
    OpCount op[COUNT_OPS];
} Counts;

typedef struct {
    Backend backend;  // pass this to the model; its close does nothing
    Backend *inner;   // NULL: nothing is computed
    Counts *into;     // operations add to these: `counts`, or another set chosen by the owner
    Counts counts;
    // The largest operands so far. attention_library stays false: it is not a property of operands. `widest` covers
    // normalizations, attention, activations and products with a bias or an activation.
    WorkspaceShape largest;
    uintptr_t next_address;
    Ticket ticket;
} Counting;

// inner: an open backend that computes what is counted, or NULL. Nothing to free.
void counting_init(Counting *counting, Backend *inner);

OpCount counts_total(const Counts *counts);
// to += times * from.
void counts_add(Counts *to, const Counts *from, double times);
// Mean number of visible keys per query in a causal row of T tokens: T/2, or with a window (0: none) below T,
// w - w^2/2T.
double counting_mean_keys(int64_t T, int64_t window);
#endif
