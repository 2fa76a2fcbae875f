// cases.h: the registry of operation cases. A case is (operation, variant, dtype, shape): its operands and their
// contents, the call through the Backend struct, a naive reference in double, the gradients among its outputs, FLOPs
// and bytes. Tests compare the odd shapes of every kind with the reference, and the reference with finite differences
// (tests/support/case_test.h). `bench op` times the shapes of models and compares samples with the same reference.
//
// A new operation is one row in a family's table (norm.c, qk.c, ...). Kinds use a backend only through backend.h and
// reach device memory only by upload, copy and download. Must not know the test framework or clocks.
#ifndef CASES_CASES_H
#define CASES_CASES_H

#include "llmc/backend/backend.h"
#include "llmc/config/model_config.h"

// ---- shapes ----

// The sizes at which a device is timed, except the widths, which come from the models.
typedef struct {
    const char *name;          // "cpu", "gpu", "tiny"
    const char *models;        // the default of --models
    int64_t rows;              // B*T of activations
    int64_t head_rows;         // rows of a logits chunk
    int64_t vocab;             // upper limit; 0: the model's
    int64_t lengths[2];        // T of attention; 0: none
    int64_t attention_tokens;  // B*T of attention
    int64_t optim_elems;
    size_t rotation_bytes;  // total size of the copies in a cold measurement: larger than any cache
    size_t copy_bytes;      // of the copy that measures the memory bandwidth
    int64_t peak_width;     // of the square matmuls that measure a GPU's peak
    double case_seconds;    // approximate time to measure one case
} OpScale;
const OpScale *op_scale_find(const char *name);  // NULL: unknown

typedef struct {
    const char *name;  // "gpt2-124M": the label of its shapes
    ModelConfig config;
} OpModel;
#define OP_MAX_MODELS 16
// Parses "gpt2-124M,qwen2-0.5B" or "all"; returns the number of models, or -1 with err.
int op_models_parse(OpModel models[OP_MAX_MODELS], const char *names, const OpScale *scale, Error *err);

#define OP_MAX_DIMS 6
typedef struct {
    char label[48];  // origin of the shape: "gpt2-124M fc", "awkward"
    int dims;        // number of dims that are shown; families may use more
    int64_t dim[OP_MAX_DIMS];
    unsigned flags;  // defined by the family
} OpShape;
// "1024x3072x768"
void op_shape_text(char *out, size_t out_bytes, const OpShape *shape);

typedef struct OpKind OpKind;
typedef struct {
    const OpKind *kind;
    DType dtype;
    OpShape shape;
} OpCase;

typedef struct {
    OpCase *cases;
    int count, capacity;
} OpList;

// Selects the cases to time. Cases of a list are in the order of the tables.
typedef struct {
    const char *only;  // substring of "operation variant label shape"; "": all
    bool fp32, bf16;
    bool on_gpu;  // includes the variants that choose between a GPU's libraries
    const OpScale *scale;
    const OpModel *models;
    int model_count;
} OpFilter;
OpList op_list_build(const OpFilter *filter);
// The odd shapes of a kind, for correctness tests, in one dtype.
OpList op_list_odd(const OpKind *kind, DType dtype);
void op_list_free(OpList *list);
// Adds a shape of the current kind, in every requested dtype that the kind supports; the kind's own flags are added.
typedef struct OpShapes OpShapes;
PRINTF_LIKE(5, 6)
void op_add(OpShapes *shapes, int dims, const int64_t *dim, unsigned flags, const char *label, ...);
const OpKind *op_adding_to(const OpShapes *shapes);
bool op_adding_bf16(const OpShapes *shapes);  // within odd_shapes: the current dtype is bf16
#define OP_DIMS(...) \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]) { __VA_ARGS__ }

// ---- operands ----

typedef struct OpCall OpCall;
typedef enum {
    FILL_NORMAL,    // value * N(0,1)
    FILL_ABSOLUTE,  // value * |N(0,1)|
    FILL_BELOW,     // whole numbers from 0 to value - 1
    FILL_RAMP,      // 0, 1, ..., value - 1, 0, 1, ...
    FILL_STEPS,     // `value` zeros, then as many ones, ...
    FILL_CONSTANT,  // value
    FILL_OWN,       // by the kind's fill function
    FILL_DERIVED    // an output of the kind's forward operation, or computed by its derive
} OpFill;

// The operation's access to an operand; gives the bytes. 0: only the forward operation uses it.
#define OP_READ 1u
#define OP_WRITE 2u

typedef struct {
    Tensor shape;  // data is NULL
    unsigned access;
    OpFill fill;
    double value;
    double traffic_bytes;  // bytes read plus written: its size for each, unless lay_out sets it
    size_t offset;         // within a set
    double *pattern;       // element i is exactly pattern[i % pattern_elems]; NULL: only written
    int64_t pattern_elems;
} OpOperand;

#define OP_MAX_OPERANDS 14
struct OpCall {
    Backend *be;
    const OpCase *c;
    int count;
    OpOperand operand[OP_MAX_OPERANDS];
    size_t set_bytes;
    int sets;               // copies of all operands
    unsigned char *memory;  // device memory of op_call_open; NULL: the caller allocates operands
    size_t memory_bytes;
    Tensor (*t)[OP_MAX_OPERANDS];  // [sets]
    float *normals;                // source of all patterns; kept between cases
};

// Within lay_out: operands are numbered from 0 in the order of these calls.
void op_operand(OpCall *call, unsigned access, OpFill fill, double value, DType dtype, int dims, const int64_t *dim);
// Elements [first, first + count) of an operand as filled; returns a pointer to them, possibly into buffer (count).
const double *op_row(const OpCall *call, int operand, int64_t first, int64_t count, double *buffer);
static inline double op_value(const OpCall *call, int operand, int64_t at) {
    const OpOperand *o = &call->operand[operand];
    return o->pattern[at < o->pattern_elems ? at : at % o->pattern_elems];
}

// ---- kinds ----

// One output and its reference. A reference computes elements [first, first + count) of the operand into ref: always
// a whole row (the last dimension), or any part of one if stretch > 0. It may be called by several threads.
typedef struct {
    const char *name;  // NULL ends a list
    int operand;
    void (*reference)(const OpCall *call, int64_t first, int64_t count, double *ref);
    double (*tolerance)(const OpCall *call);                  // NULL: op_tolerance of the operand's dtype
    int64_t stretch;                                          // elements of a row in a sample; 0: the whole row
    int64_t (*sample)(const OpCall *call, int i, int count);  // the first element of sample i; NULL: spread evenly
    int gradient_of;  // GRADIENT_OF(X): this output (+)= d sum(upstream * forward output) / d X; 0: no gradient
    int upstream;     // UPSTREAM(DOUT), for a forward output: the backward kind's operand with its gradient
} OpOutput;
#define GRADIENT_OF(operand) ((operand) + 1)
#define UPSTREAM(operand) ((operand) + 1)

// An output that may alias an input.
typedef struct {
    int output, input;
    bool (*may)(const OpCase *c);  // whether this case allows it; NULL: always
} OpAlias;

typedef struct OpCheck OpCheck;
struct OpKind {
    const char *op, *variant;
    const char *entry;        // names of the Backend functions that it tests, separated by blanks
    bool fp32, bf16;          // supported dtypes
    unsigned flags;           // added to those of every shape
    bool gpu_only, cpu_only;  // for timing
    const char *attention;    // BackendOptions.attention required for timing; NULL: any
    bool fp8;                 // needs a backend with 8-bit matmuls
    // Adds the shapes of a model; model NULL: those that belong to no model. shapes NULL: the kind is not timed.
    void (*shapes)(OpShapes *shapes, const OpScale *scale, const OpModel *model);
    // Small, odd and masked shapes, for tests. NULL: another variant has them.
    void (*odd_shapes)(OpShapes *shapes);
    void (*lay_out)(OpCall *call);
    double (*fill)(const OpCall *call, int operand, int64_t at, double normal);  // for FILL_OWN
    void (*derive)(OpCall *call);  // fills derived operands of set 0 that `forward` does not write; may be NULL
    void (*run)(Backend *be, const OpCase *c, const Tensor *t);
    const OpOutput *outputs;
    void (*check)(OpCall *call, OpCheck *check);  // checks outputs that references cannot describe; may be NULL
    // The operation whose gradient this is; both number operands equally. Its run fills derived operands.
    const OpKind *forward;
    double (*loss)(
        const OpCall *call);  // the function whose gradients the outputs are; NULL: sum(upstream * forward output)
    OpAlias alias[2];         // output == input: none
    double (*flops)(const OpShape *shape);  // a multiply-add counts as two; NULL: bounded by memory only
};

typedef struct {
    const OpKind *kinds;
    int count;
} OpFamily;
extern const OpFamily OPS_NORM, OPS_QK, OPS_POINTWISE, OPS_EMBEDDING, OPS_LOSS, OPS_OPTIM, OPS_ATTENTION, OPS_REDUCE,
    OPS_MATMUL;
extern const OpFamily *const OP_FAMILIES[];  // NULL ends it
#define OP_FAMILY(array) \
    { array, (int)(sizeof array / sizeof array[0]) }
// Aborts if there is none.
const OpKind *op_kind_find(const char *op, const char *variant);

// ---- a case on a device ----

// Lays out, allocates and fills enough sets for rotation_bytes, at least two. False: out of memory, or the device
// failed. Call op_call_close in every case.
bool op_call_open(OpCall *call, Backend *be, const OpCase *c, size_t rotation_bytes, Error *err);
void op_call_close(OpCall *call);
// The parts of op_call_open, for callers that allocate operands themselves: op_call_lay_out also makes the patterns;
// the caller sets t and t[0]; op_call_fill uploads and derives.
void op_call_lay_out(OpCall *call, Backend *be, const OpCase *c);
void op_call_fill(OpCall *call);
// Restores set 0 to its state after op_call_open; operands that are only written become NaN.
void op_call_reset(OpCall *call);
void op_call_upload(OpCall *call, int operand);  // the same for one operand
double op_call_bytes(const OpCall *call);        // read plus written, by the definition
// Hash of all written operands of set 0.
uint64_t op_call_hash(const OpCall *call);
// Downloads elements [first, first + count) of an operand of set 0.
void op_download(const OpCall *call, int operand, int64_t first, int64_t count, double *out);

// ---- checks ----

struct OpCheck {
    double worst;             // largest error / tolerance seen
    double error, tolerance;  // of that comparison
    char what[48];
    bool ok;
};
// Passes if |out - ref| / |ref| over count numbers is at most tolerance; NaN never passes.
void op_compare(OpCheck *check, const char *what, const double *out, const double *ref, int64_t count,
                double tolerance);
double op_error(const double *out, const double *ref, int64_t count);  // |out - ref| / |ref|; |out| if ref is zero
// Compares all outputs in set 0 with the references: every element, or some rows of each.
void op_check_outputs(OpCall *call, OpCheck *check, bool every_element);
// Compares the reference's gradients with central finite differences of the forward reference, in double: relative
// error at most 1e-8. False: this kind has no gradients, or the case is too large.
bool op_check_gradients(OpCall *call, OpCheck *check);

// For results that round once on store. fp32: a few dozen roundings of 2^-24 in sums and polynomials. bf16: the
// rounding on store, at most 2^-8 of each element, dominates. fp64: sums in double.
double op_tolerance(DType dtype);
// For fp32 sums of n random numbers near 1: the sum is about sqrt(n) and rounded at each addition; the relative error
// is about 2^-24 sqrt(n/2).
double op_sum_tolerance(int64_t n);

// ---- shared by several references ----

// The activation of x (SwiGLU: of gate x and up) and its derivatives; up and dup are used by SwiGLU only.
double op_activation(Activation kind, double x, double up, double *dx, double *dup);

#endif
