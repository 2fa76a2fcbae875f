// op_types.h: enums that rooms share: element types, variants of operations, optimizers. Separate from tensor.h and
// backend.h because model_config.h must not include those.
#ifndef LLMC_OP_TYPES_H
#define LLMC_OP_TYPES_H

#include <stdbool.h>

typedef enum { DTYPE_F32, DTYPE_BF16, DTYPE_I32, DTYPE_U8, DTYPE_F64, DTYPE_COUNT } DType;

typedef enum {
    ACT_NONE,
    ACT_GELU,    // tanh form: 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))  (GPT-2's "gelu_new")
    ACT_RELU2,   // max(x, 0)^2  (So et al., Primer)
    ACT_SWIGLU   // silu(gate) * up; the pre-activation row is [gate(F) | up(F)]
} Activation;
// A gated feed-forward multiplies two halves: its pre-activation row is [gate(F) | up(F)], its output (F).
static inline bool activation_is_gated(Activation kind) { return kind == ACT_SWIGLU; }

typedef enum { NORM_LAYER, NORM_RMS } NormKind;

// Which 8-bit formats a product uses: E4M3 has three bits of mantissa, E5M2 a wider range for gradients.
typedef enum {
    FP8_NONE,
    FP8_FORWARD,   // both inputs E4M3
    FP8_BACKWARD   // input a, a gradient, E5M2; b E4M3
} Fp8Role;

typedef enum { OPTIMIZER_ADAMW, OPTIMIZER_MUON } OptimizerKind;

// Why an optimizer step was skipped.
typedef enum {
    SKIP_NOT,
    SKIP_NOT_FINITE,  // the norm or the loss is not finite
    SKIP_NORM,        // norm > ClipArgs.skip_norm
    SKIP_LOSS         // loss > ClipArgs.skip_loss
} SkipReason;
#endif
