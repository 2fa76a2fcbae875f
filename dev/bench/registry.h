// registry.h: the one list of what `bench op` measures: (operation, variant, dtype, shape). Each ops_<family>.c
// exports a table of OpKind rows; a kind makes its shapes, lays out its operands, calls the function pointer that
// training calls, and checks what came out against a naive reference in double. A new variant is one more row in one
// of these files. Kinds see a backend only through backend.h: device memory is reached by upload, copy and download
// alone.
#ifndef BENCH_REGISTRY_H
#define BENCH_REGISTRY_H

#include "llmc/backend/backend.h"
#include "llmc/config/model_config.h"

// ---- what is to be measured ----

// How large the shapes are that a device is asked for. Models give the widths; these give the rest.
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
    unsigned flags;  // the kind's own
} OpShape;

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

// What of the registry is wanted. Cases of a list come in the order of the tables.
typedef struct {
    const char *only;  // part of "operation variant label shape"; "": all
    bool fp32, bf16;
    bool on_gpu;  // variants that choose between a GPU's libraries exist there only
    const OpScale *scale;
    const OpModel *models;
    int model_count;
} OpFilter;
OpList op_list_build(const OpFilter *filter);
void op_list_free(OpList *list);
// Adds a shape of the kind whose turn it is, in every wanted dtype that the kind takes.
typedef struct OpShapes OpShapes;
PRINTF_LIKE(5, 6)
void op_add(OpShapes *shapes, int dims, const int64_t *dim, unsigned flags, const char *label, ...);
#define OP_DIMS(...) \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (int64_t[]) { __VA_ARGS__ }
// "1024x3072x768"
void op_shape_text(char *out, size_t out_bytes, const OpShape *shape);

// ---- operands ----

typedef enum {
    FILL_NORMAL,    // value * N(0,1)
    FILL_ABSOLUTE,  // value * |N(0,1)|
    FILL_BELOW,     // whole numbers from 0 to value - 1
    FILL_RAMP,      // 0, 1, ..., value - 1, 0, 1, ...
    FILL_STEPS,     // `value` zeros, then as many ones, ...
    FILL_CONSTANT,  // value
    FILL_DERIVED    // the kind's derive makes it from the others
} OpFill;

// What the operation does with an operand; bytes are counted from it.
#define OP_READ 1u
#define OP_WRITE 2u

typedef struct {
    Tensor shape;  // data is NULL
    unsigned access;
    OpFill fill;
    double value;
    double traffic_bytes;  // what is read and written of it: its size for each, unless lay_out says otherwise
    size_t offset;         // within a set
    float *pattern;        // element i is pattern[i % pattern_elems], exactly; NULL: derived, or only written
    int64_t pattern_elems;
} OpOperand;

#define OP_MAX_OPERANDS 12
typedef struct {
    Backend *be;
    const OpCase *c;
    int count;
    OpOperand operand[OP_MAX_OPERANDS];
    size_t set_bytes;
    int sets;                      // copies of all operands, one behind the other
    unsigned char *memory;         // on the device
    Tensor (*t)[OP_MAX_OPERANDS];  // [sets]
    float *normals;                // what all patterns are made of
} OpCall;

// Within lay_out: operands are numbered from 0 in the order of these calls.
void op_operand(OpCall *call, unsigned access, OpFill fill, double value, DType dtype, int dims, const int64_t *dim);
// Within check and derive. Elements [first, first + count * stride) of an operand as it was filled, every stride-th.
void op_values(const OpCall *call, int operand, int64_t first, int64_t stride, int64_t count, double *out);
double op_value(const OpCall *call, int operand, int64_t at);
// The same of what is on the device now, in set 0.
void op_download(const OpCall *call, int operand, int64_t first, int64_t count, double *out);

// ---- checks ----

#define OP_SAMPLES 64
typedef struct {
    double worst;             // largest error / tolerance seen
    double error, tolerance;  // of it
    char what[48];
    bool ok;
} OpCheck;
// |out - ref| / |ref| over count numbers, at most tolerance; NaN never passes.
void op_compare(OpCheck *check, const char *what, const double *out, const double *ref, int64_t count,
                double tolerance);
// At most OP_SAMPLES indices below n: the first, the last and some between, ascending; returns how many.
int op_sample(int64_t at[OP_SAMPLES], int64_t n, int wanted);
// Of results that round once on store.
double op_tolerance(DType dtype);

// ---- kinds ----

struct OpKind {
    const char *op, *variant;
    bool fp32, bf16;  // dtypes it takes
    bool gpu_only, cpu_only;
    const char *attention;  // BackendOptions.attention that it needs; NULL: any
    bool fp8;               // only where the backend multiplies 8-bit floats
    // Adds the shapes that a model has; model NULL: those of no model.
    void (*shapes)(OpShapes *shapes, const OpScale *scale, const OpModel *model);
    void (*lay_out)(OpCall *call);
    void (*derive)(OpCall *call);  // fills derived operands of set 0; may be NULL
    void (*run)(Backend *be, const OpCase *c, const Tensor *t);
    void (*check)(OpCall *call, OpCheck *check);
    double (*flops)(const OpShape *shape);  // multiply-adds count as two; NULL: bounded by memory alone
};

typedef struct {
    const OpKind *kinds;
    int count;
} OpFamily;
extern const OpFamily OPS_MATMUL, OPS_ATTENTION, OPS_NORM, OPS_QK, OPS_POINTWISE, OPS_EMBEDDING, OPS_LOSS, OPS_OPTIM;
#define OP_FAMILY(array) \
    { array, (int)(sizeof array / sizeof array[0]) }

// ---- a case on a device ----

// Lays out, allocates and fills as many sets as rotation_bytes ask for (at least two where `cold`). False: no memory.
bool op_call_open(OpCall *call, Backend *be, const OpCase *c, size_t rotation_bytes, Error *err);
void op_call_close(OpCall *call);
// Set 0 as op_call_open left it; what is only written becomes NaN.
void op_call_reset(OpCall *call);
double op_call_bytes(const OpCall *call);  // read plus written, from the definition
// Of what the operation wrote into set 0.
uint64_t op_call_hash(const OpCall *call);

#endif
