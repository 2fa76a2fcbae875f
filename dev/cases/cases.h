// cases.h: the one registry of operation cases. A case is (operation, variant, dtype, shape): its operands and how they
// are filled, the call through the Backend struct, a naive reference in double, which outputs are gradients of what,
// FLOPs and bytes. Tests run the odd shapes of every kind against the reference and its finite differences
// (tests/support/case_test.h); `bench op` times the shapes of models and checks samples against the same reference.
//
// A new operation is one row in a family's table (norm.c, qk.c, ...). Kinds see a backend only through backend.h: device
// memory is reached by upload, copy and download alone. Nothing here knows of the test framework or of clocks.
#ifndef CASES_CASES_H
#define CASES_CASES_H

#include "llmc/backend/backend.h"
#include "llmc/config/model_config.h"

// ---- shapes ----

// How large the shapes are that a device is timed at. Models give the widths; these give the rest.
typedef struct {
    const char *name;          // "cpu", "gpu", "tiny"
    const char *models;        // the default of --models
    int64_t rows;              // B*T of activations
    int64_t head_rows;         // rows of the logits, which training makes in chunks
    int64_t vocab;             // at most; 0: the model's
    int64_t lengths[2];        // T of attention; 0: none
    int64_t attention_tokens;  // B*T of attention
    int64_t optim_elems;
    size_t rotation_bytes;  // buffers of a cold measurement together, above any cache
    size_t copy_bytes;      // of the copy that gives the memory bandwidth
    int64_t peak_width;     // of the square products that give a GPU's matmul rate
    double case_seconds;    // measuring one case takes about this long
} OpScale;
const OpScale *op_scale_find(const char *name);  // NULL: unknown

typedef struct {
    const char *name;  // "gpt2-124M": the label of its shapes
    ModelConfig config;
} OpModel;
#define OP_MAX_MODELS 16
// "gpt2-124M,qwen2-0.5B" or "all"; returns how many, or -1 with err.
int op_models_parse(OpModel models[OP_MAX_MODELS], const char *names, const OpScale *scale, Error *err);

#define OP_MAX_DIMS 6
typedef struct {
    char label[48];  // whose shape it is: "gpt2-124M fc", "awkward"
    int dims;        // the first ones are the shape that is shown
    int64_t dim[OP_MAX_DIMS];
    unsigned flags;  // the family's own
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

// What of the registry is to be timed. Cases of a list come in the order of the tables.
typedef struct {
    const char *only;  // part of "operation variant label shape"; "": all
    bool fp32, bf16;
    bool on_gpu;  // variants that choose between a GPU's libraries exist there only
    const OpScale *scale;
    const OpModel *models;
    int model_count;
} OpFilter;
OpList op_list_build(const OpFilter *filter);
// A kind's odd shapes, for correctness, in one dtype.
OpList op_list_odd(const OpKind *kind, DType dtype);
void op_list_free(OpList *list);
// Adds a shape of the kind whose turn it is, in every wanted dtype that the kind takes.
typedef struct OpShapes OpShapes;
PRINTF_LIKE(5, 6)
void op_add(OpShapes *shapes, int dims, const int64_t *dim, unsigned flags, const char *label, ...);
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
    FILL_OWN,       // the kind's fill
    FILL_DERIVED    // an output of the kind's forward operation, or what its derive makes
} OpFill;

// What the operation does with an operand; bytes are counted from it. Neither: only the forward operation uses it.
#define OP_READ 1u
#define OP_WRITE 2u

typedef struct {
    Tensor shape;  // data is NULL
    unsigned access;
    OpFill fill;
    double value;
    double traffic_bytes;  // what is read and written of it: its size for each, unless lay_out says otherwise
    size_t offset;         // within a set
    double *pattern;       // element i is pattern[i % pattern_elems], exactly; NULL: only written
    int64_t pattern_elems;
} OpOperand;

#define OP_MAX_OPERANDS 14
struct OpCall {
    Backend *be;
    const OpCase *c;
    int count;
    OpOperand operand[OP_MAX_OPERANDS];
    size_t set_bytes;
    int sets;                      // copies of all operands
    unsigned char *memory;         // of op_call_open, on the device; NULL where the caller places operands
    size_t memory_bytes;
    Tensor (*t)[OP_MAX_OPERANDS];  // [sets]
    float *normals;                // what all patterns are made of; kept from case to case
};

// Within lay_out: operands are numbered from 0 in the order of these calls.
void op_operand(OpCall *call, unsigned access, OpFill fill, double value, DType dtype, int dims, const int64_t *dim);
// Elements [first, first + count) of an operand as it was filled: a pointer to them, or to buffer (count), which has
// them then.
const double *op_row(const OpCall *call, int operand, int64_t first, int64_t count, double *buffer);
static inline double op_value(const OpCall *call, int operand, int64_t at) {
    const OpOperand *o = &call->operand[operand];
    return o->pattern[at < o->pattern_elems ? at : at % o->pattern_elems];
}

// ---- kinds ----

// One output and its reference. A reference computes elements [first, first + count) of the operand into ref: always
// a whole row (the last dimension), or, where stretch > 0, any part of one. It may run in several threads.
typedef struct {
    const char *name;  // NULL ends a list
    int operand;
    void (*reference)(const OpCall *call, int64_t first, int64_t count, double *ref);
    double (*tolerance)(const OpCall *call);  // NULL: op_tolerance of the operand's dtype
    int64_t stretch;  // elements of a row that a sample takes; 0: the row
    int64_t (*sample)(const OpCall *call, int i, int count);  // the first element of sample i; NULL: spread evenly
    int gradient_of;  // GRADIENT_OF(X): this output is (+)= the gradient of sum(upstream * forward output) by X; 0: not
    int upstream;     // UPSTREAM(DOUT), of a forward output: the operand of the backward kind with its gradient
} OpOutput;
#define GRADIENT_OF(operand) ((operand) + 1)
#define UPSTREAM(operand) ((operand) + 1)

// An output that may lie in an input's memory.
typedef struct {
    int output, input;
    bool (*may)(const OpCase *c);  // NULL: always
} OpAlias;

typedef struct OpCheck OpCheck;
struct OpKind {
    const char *op, *variant;
    const char *entry;  // the functions of the Backend struct that it measures, separated by blanks
    bool fp32, bf16;    // dtypes it takes
    bool gpu_only, cpu_only;  // of timings
    const char *attention;    // BackendOptions.attention that a timing needs; NULL: any
    bool fp8;                 // only where the backend multiplies 8-bit floats
    // Adds the shapes that a model has; model NULL: those of no model. NULL: it is not timed.
    void (*shapes)(OpShapes *shapes, const OpScale *scale, const OpModel *model);
    // Small, odd and masked ones, for tests. NULL: another variant has them all.
    void (*odd_shapes)(OpShapes *shapes, DType dtype);
    void (*lay_out)(OpCall *call);
    double (*fill)(const OpCall *call, int operand, int64_t at, double normal);  // of FILL_OWN
    void (*derive)(OpCall *call);  // of operands in set 0 that are derived, but not by the forward kind; may be NULL
    void (*run)(Backend *be, const OpCase *c, const Tensor *t);
    const OpOutput *outputs;
    void (*check)(OpCall *call, OpCheck *check);  // outputs that are no numbers; may be NULL
    // The operation whose gradient this is; operands of both have the same numbers. Its run fills derived operands.
    const OpKind *forward;
    double (*loss)(const OpCall *call);  // what outputs are gradients of, where it is not the sum over forward's outputs
    OpAlias alias[2];                    // output == input: none
    double (*flops)(const OpShape *shape);  // multiply-adds count as two; NULL: bounded by memory alone
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
// CHECKs that there is one.
const OpKind *op_kind_find(const char *op, const char *variant);

// ---- a case on a device ----

// Lays out, allocates and fills as many sets as rotation_bytes ask for, at least two. False: no memory, or the device
// failed; either way op_call_close follows.
bool op_call_open(OpCall *call, Backend *be, const OpCase *c, size_t rotation_bytes, Error *err);
void op_call_close(OpCall *call);
// The parts of op_call_open, for those who place operands themselves: lay out (patterns included; t is the caller's),
// then, with t[0] set, upload and derive.
void op_call_lay_out(OpCall *call, Backend *be, const OpCase *c);
void op_call_fill(OpCall *call);
// Set 0 as op_call_open left it; what is only written becomes NaN.
void op_call_reset(OpCall *call);
void op_call_upload(OpCall *call, int operand);  // the same of one operand
double op_call_bytes(const OpCall *call);  // read plus written, from the definition
// Of what the operation wrote into set 0.
uint64_t op_call_hash(const OpCall *call);
// Elements [first, first + count) of what is on the device now, in set 0.
void op_download(const OpCall *call, int operand, int64_t first, int64_t count, double *out);

// ---- checks ----

struct OpCheck {
    double worst;             // largest error / tolerance seen
    double error, tolerance;  // of it
    char what[48];
    bool ok;
};
// |out - ref| / |ref| over count numbers, at most tolerance; NaN never passes.
void op_compare(OpCheck *check, const char *what, const double *out, const double *ref, int64_t count,
                double tolerance);
double op_error(const double *out, const double *ref, int64_t count);  // |out - ref| / |ref|; |out| of a zero ref
// All outputs in set 0 against the references: every element, or some rows of each.
void op_check_outputs(OpCall *call, OpCheck *check, bool every_element);
// The reference's gradients against central finite differences of the forward reference, in double: a relative error of
// 1e-8. False: this kind has no gradients, or the case is too large.
bool op_check_gradients(OpCall *call, OpCheck *check);

// Of results that round once on store. fp32: a few dozen roundings of 2^-24 each in sums and polynomials. bf16: that one
// rounding, at most 2^-8 of each element, and nothing else that counts. fp64: sums in double.
double op_tolerance(DType dtype);
// Of fp32 sums of n numbers near 1, which is about sqrt(n) large and rounded at each addition: errors add up to about
// 2^-24 sqrt(n/2) of it.
double op_sum_tolerance(int64_t n);

// ---- what several references need ----

// The activation of x (SwiGLU: of gate x and up) and its derivatives; dup and up are SwiGLU's only.
double op_activation(Activation kind, double x, double up, double *dx, double *dup);

#endif
