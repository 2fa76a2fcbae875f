// fake_cudnn.cpp: a libcudnn.so.9 that computes graphs node by node, in double, on the emulated GPU's stream: their
// meaning according to NVIDIA's documentation. It accepts every graph; engines, speed and rounding inside a fused
// kernel are not modelled. tests/gpu/test_cudnn_attention.sh builds it beside tests/gpu/cudnn/attention.cu.
#include <cudnn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <vector>

#include "emu_runtime.h"

#define EXPECT(condition)                                                                \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            fprintf(stderr, "fake cuDNN, line %d: expected %s\n", __LINE__, #condition); \
            abort();                                                                     \
        }                                                                                \
    } while (0)

// A descriptor holds the attributes set in it.
struct Fake {
    cudnnBackendDescriptorType_t type;
    std::map<int, std::vector<char>> attributes;
    template <class T>
    std::vector<T> all(int name) const {
        auto found = attributes.find(name);
        if (found == attributes.end()) return {};
        const T *first = (const T *)found->second.data();
        return std::vector<T>(first, first + found->second.size() / sizeof(T));
    }
    template <class T>
    T one(int name) const {
        std::vector<T> values = all<T>(name);
        EXPECT(values.size() == 1);
        return values[0];
    }
    Fake *desc(int name) const {  // NULL: not set
        std::vector<Fake *> values = all<Fake *>(name);
        return values.empty() ? nullptr : values[0];
    }
};

// ---- values: one array for each tensor of a graph, in the order of its dimensions ----

typedef std::vector<double> Values;
struct Shape {
    int64_t dim[4], stride[4];
    int64_t elems() const { return dim[0] * dim[1] * dim[2] * dim[3]; }
    int64_t at(int64_t b, int64_t h, int64_t i, int64_t j) const {
        return ((b * dim[1] + h) * dim[2] + i) * dim[3] + j;
    }
};
static Shape shape_of(const Fake *tensor) {
    Shape s;
    std::vector<int64_t> dim = tensor->all<int64_t>(CUDNN_ATTR_TENSOR_DIMENSIONS);
    std::vector<int64_t> stride = tensor->all<int64_t>(CUDNN_ATTR_TENSOR_STRIDES);
    EXPECT(dim.size() == 4 && stride.size() == 4);
    memcpy(s.dim, dim.data(), sizeof s.dim);
    memcpy(s.stride, stride.data(), sizeof s.stride);
    return s;
}
static float bf16_value(uint16_t bits) {
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}
static uint16_t bf16_bits(double x) {
    float value = (float)x;
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if (isnan(value)) return 0x7fff;
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

struct Run {
    std::map<int64_t, void *> memory;  // by unique id
    std::map<int64_t, float> scalars;  // tensors by value, read when the call was made
    std::map<const Fake *, Values> values;
    std::vector<Fake *> operations;
    int64_t longest;             // length of the sequence dimension, 0 if nothing is ragged
    int64_t ragged_lengths_uid;  // their lengths

    bool is_virtual(const Fake *tensor) const { return !tensor->all<bool>(CUDNN_ATTR_TENSOR_IS_VIRTUAL).empty(); }
    void *memory_of(const Fake *tensor) const {
        auto found = memory.find(tensor->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID));
        EXPECT(found != memory.end() && found->second != nullptr);
        return found->second;
    }
    // Calls visit(index among the values, index among the tensor's elements in memory) for the tensor's elements
    // that exist.
    template <class Visit>
    void each(const Fake *tensor, Visit visit) const {
        Shape s = shape_of(tensor);
        const Fake *ragged = tensor->desc(CUDNN_ATTR_TENSOR_RAGGED_OFFSET_DESC);
        const int64_t *offsets = ragged ? (const int64_t *)memory_of(ragged) : nullptr;
        const int32_t *lengths = ragged ? (const int32_t *)memory.at(ragged_lengths_uid) : nullptr;
        for (int64_t b = 0; b < s.dim[0]; ++b)
            for (int64_t h = 0; h < s.dim[1]; ++h)
                for (int64_t i = 0; i < s.dim[2]; ++i)
                    for (int64_t j = 0; j < s.dim[3]; ++j) {
                        int64_t token = s.dim[2] == longest ? i : j;
                        if (ragged && token >= lengths[b]) continue;
                        int64_t base = ragged ? offsets[b] : b * s.stride[0];
                        visit(s.at(b, h, i, j), base + h * s.stride[1] + i * s.stride[2] + j * s.stride[3]);
                    }
    }
    const Values &load(const Fake *tensor) {
        Values &out = values[tensor];
        if (!out.empty()) return out;
        EXPECT(!is_virtual(tensor));  // otherwise no node has computed it
        out.assign((size_t)shape_of(tensor).elems(), 0.0);
        if (!tensor->all<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE).empty()) {
            out[0] = scalars.at(tensor->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID));
            return out;
        }
        const void *from = memory_of(tensor);
        cudnnDataType_t dtype = tensor->one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
        each(tensor, [&](int64_t index, int64_t element) {
            double x = 0;
            if (dtype == CUDNN_DATA_FLOAT) x = ((const float *)from)[element];
            else if (dtype == CUDNN_DATA_BFLOAT16) x = bf16_value(((const uint16_t *)from)[element]);
            else if (dtype == CUDNN_DATA_INT32) x = ((const int32_t *)from)[element];
            else EXPECT(!"a readable type");
            out[(size_t)index] = x;
        });
        return out;
    }
    void store(const Fake *tensor, Values result) {
        cudnnDataType_t dtype = tensor->one<cudnnDataType_t>(CUDNN_ATTR_TENSOR_DATA_TYPE);
        if (dtype == CUDNN_DATA_BFLOAT16)
            for (double &x : result) x = bf16_value(bf16_bits(x));
        if (!is_virtual(tensor)) {
            void *to = memory_of(tensor);
            each(tensor, [&](int64_t index, int64_t element) {
                double x = result[(size_t)index];
                if (dtype == CUDNN_DATA_FLOAT) ((float *)to)[element] = (float)x;
                else if (dtype == CUDNN_DATA_BFLOAT16) ((uint16_t *)to)[element] = bf16_bits(x);
                else EXPECT(!"a writable type");
            });
        }
        values[tensor] = std::move(result);
    }

    void pointwise(const Fake *op);
    void reduce(const Fake *op);
    void matmul(const Fake *op);
    void reshape(const Fake *op);
    void compute();
};

// ---- nodes ----

static double apply(cudnnPointwiseMode_t mode, double x, double b) {
    switch (mode) {
    case CUDNN_POINTWISE_ADD: return x + b;
    case CUDNN_POINTWISE_SUB: return x - b;
    case CUDNN_POINTWISE_MUL: return x * b;
    case CUDNN_POINTWISE_DIV: return x / b;
    case CUDNN_POINTWISE_EXP: return exp(x);
    case CUDNN_POINTWISE_LOG: return log(x);
    case CUDNN_POINTWISE_IDENTITY: return x;
    case CUDNN_POINTWISE_CMP_GE: return x >= b;
    case CUDNN_POINTWISE_CMP_GT: return x > b;
    case CUDNN_POINTWISE_CMP_LT: return x < b;
    case CUDNN_POINTWISE_LOGICAL_AND: return x != 0 && b != 0;
    default: EXPECT(!"a known pointwise mode"); return 0;
    }
}
void Run::pointwise(const Fake *op) {
    const Fake *how = op->desc(CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR);
    const Fake *x = op->desc(CUDNN_ATTR_OPERATION_POINTWISE_XDESC);
    const Fake *b = op->desc(CUDNN_ATTR_OPERATION_POINTWISE_BDESC);
    const Fake *t = op->desc(CUDNN_ATTR_OPERATION_POINTWISE_TDESC);
    const Fake *y = op->desc(CUDNN_ATTR_OPERATION_POINTWISE_YDESC);
    cudnnPointwiseMode_t mode = how->one<cudnnPointwiseMode_t>(CUDNN_ATTR_POINTWISE_MODE);
    Shape out = shape_of(y);
    Values result((size_t)out.elems());
    // A dimension of one is broadcast.
    auto read = [](const Values &v, const Shape &s, const int64_t *at) {
        int64_t index[4];
        for (int d = 0; d < 4; ++d) index[d] = s.dim[d] == 1 ? 0 : at[d];
        return v[(size_t)s.at(index[0], index[1], index[2], index[3])];
    };
    const Values &xs = load(x), none = Values(1, 0.0), &bs = b ? load(b) : none, &ts = t ? load(t) : none;
    Shape one = {{1, 1, 1, 1}, {1, 1, 1, 1}}, xshape = shape_of(x), bshape = b ? shape_of(b) : one;
    Shape tshape = t ? shape_of(t) : one;
    int64_t at[4], axis = mode == CUDNN_POINTWISE_GEN_INDEX ? how->one<int64_t>(CUDNN_ATTR_POINTWISE_AXIS) : 0;
    for (at[0] = 0; at[0] < out.dim[0]; ++at[0])
        for (at[1] = 0; at[1] < out.dim[1]; ++at[1])
            for (at[2] = 0; at[2] < out.dim[2]; ++at[2])
                for (at[3] = 0; at[3] < out.dim[3]; ++at[3]) {
                    double value;
                    if (mode == CUDNN_POINTWISE_GEN_INDEX) value = (double)at[axis];
                    else if (mode == CUDNN_POINTWISE_BINARY_SELECT)
                        value = read(ts, tshape, at) != 0 ? read(xs, xshape, at) : read(bs, bshape, at);
                    else value = apply(mode, read(xs, xshape, at), read(bs, bshape, at));
                    result[(size_t)out.at(at[0], at[1], at[2], at[3])] = value;
                }
    store(y, std::move(result));
}

// Neighbouring heads are reduced to fewer, other dimensions to one.
void Run::reduce(const Fake *op) {
    const Fake *how = op->desc(CUDNN_ATTR_OPERATION_REDUCTION_DESC);
    const Fake *x = op->desc(CUDNN_ATTR_OPERATION_REDUCTION_XDESC);
    const Fake *y = op->desc(CUDNN_ATTR_OPERATION_REDUCTION_YDESC);
    cudnnReduceTensorOp_t mode = how->one<cudnnReduceTensorOp_t>(CUDNN_ATTR_REDUCTION_OPERATOR);
    EXPECT(mode == CUDNN_REDUCE_TENSOR_ADD || mode == CUDNN_REDUCE_TENSOR_MAX);
    Shape in = shape_of(x), out = shape_of(y);
    const Values &xs = load(x);
    Values result((size_t)out.elems(), mode == CUDNN_REDUCE_TENSOR_MAX ? -INFINITY : 0.0);
    int64_t part[4], at[4];
    for (int d = 0; d < 4; ++d) {
        EXPECT(in.dim[d] % out.dim[d] == 0 && (d == 1 || out.dim[d] == in.dim[d] || out.dim[d] == 1));
        part[d] = in.dim[d] / out.dim[d];
    }
    for (at[0] = 0; at[0] < in.dim[0]; ++at[0])
        for (at[1] = 0; at[1] < in.dim[1]; ++at[1])
            for (at[2] = 0; at[2] < in.dim[2]; ++at[2])
                for (at[3] = 0; at[3] < in.dim[3]; ++at[3]) {
                    double value = xs[(size_t)in.at(at[0], at[1], at[2], at[3])];
                    int64_t whole = out.at(at[0] / part[0], at[1] / part[1], at[2] / part[2], at[3] / part[3]);
                    double &to = result[(size_t)whole];
                    to = mode == CUDNN_REDUCE_TENSOR_MAX ? fmax(to, value) : to + value;
                }
    store(y, std::move(result));
}

void Run::matmul(const Fake *op) {
    const Fake *a = op->desc(CUDNN_ATTR_OPERATION_MATMUL_ADESC), *b = op->desc(CUDNN_ATTR_OPERATION_MATMUL_BDESC);
    const Fake *c = op->desc(CUDNN_ATTR_OPERATION_MATMUL_CDESC);
    const Fake *limits[3] = {op->desc(CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC),
                             op->desc(CUDNN_ATTR_OPERATION_MATMUL_GEMM_N_OVERRIDE_DESC),
                             op->desc(CUDNN_ATTR_OPERATION_MATMUL_GEMM_K_OVERRIDE_DESC)};
    Shape as = shape_of(a), bs = shape_of(b), cs = shape_of(c);
    EXPECT(as.dim[2] == cs.dim[2] && bs.dim[3] == cs.dim[3] && as.dim[3] == bs.dim[2]);
    EXPECT(cs.dim[1] % as.dim[1] == 0 && cs.dim[1] % bs.dim[1] == 0);
    const Values &av = load(a), &bv = load(b);
    Values result((size_t)cs.elems(), 0.0);
    for (int64_t batch = 0; batch < cs.dim[0]; ++batch) {
        int64_t sizes[3] = {cs.dim[2], cs.dim[3], as.dim[3]};
        for (int i = 0; i < 3; ++i)
            if (limits[i]) sizes[i] = (int64_t)load(limits[i])[(size_t)batch];
        for (int64_t h = 0; h < cs.dim[1]; ++h) {
            int64_t ah = h / (cs.dim[1] / as.dim[1]), bh = h / (cs.dim[1] / bs.dim[1]);
            for (int64_t m = 0; m < sizes[0]; ++m)
                for (int64_t k = 0; k < sizes[2]; ++k) {
                    double left = av[(size_t)as.at(batch, ah, m, k)];
                    for (int64_t n = 0; n < sizes[1]; ++n)
                        result[(size_t)cs.at(batch, h, m, n)] += left * bv[(size_t)bs.at(batch, bh, k, n)];
                }
        }
    }
    store(c, std::move(result));
}

// Only the graphs' case: the last two dimensions are swapped, and the strides agree.
void Run::reshape(const Fake *op) {
    const Fake *x = op->desc(CUDNN_ATTR_OPERATION_RESHAPE_XDESC), *y = op->desc(CUDNN_ATTR_OPERATION_RESHAPE_YDESC);
    Shape in = shape_of(x), out = shape_of(y);
    EXPECT(in.dim[0] == out.dim[0] && in.dim[1] == out.dim[1] && in.dim[2] == out.dim[3] && in.dim[3] == out.dim[2]);
    EXPECT(in.stride[2] == out.stride[3] && in.stride[3] == out.stride[2]);
    const Values &xs = load(x);
    Values result((size_t)out.elems());
    for (int64_t b = 0; b < in.dim[0]; ++b)
        for (int64_t h = 0; h < in.dim[1]; ++h)
            for (int64_t i = 0; i < in.dim[2]; ++i)
                for (int64_t j = 0; j < in.dim[3]; ++j)
                    result[(size_t)out.at(b, h, j, i)] = xs[(size_t)in.at(b, h, i, j)];
    store(y, std::move(result));
}

void Run::compute() {
    for (const Fake *op : operations) {
        if (op->type == CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR) pointwise(op);
        else if (op->type == CUDNN_BACKEND_OPERATION_REDUCTION_DESCRIPTOR) reduce(op);
        else if (op->type == CUDNN_BACKEND_OPERATION_MATMUL_DESCRIPTOR) matmul(op);
        else if (op->type == CUDNN_BACKEND_OPERATION_RESHAPE_DESCRIPTOR) reshape(op);
        else EXPECT(!"a known operation");
    }
}

// ---- the library's functions ----

struct cudnnContext {
    cudaStream_t stream;
};
size_t cudnnGetVersion(void) { return 91900; }
const char *cudnnGetErrorString(cudnnStatus_t) { return "a status of the fake cuDNN"; }
void cudnnGetLastErrorString(char *message, size_t bytes) {
    if (bytes > 0) message[0] = '\0';
}
cudnnStatus_t cudnnCreate(cudnnHandle_t *handle) {
    *handle = new cudnnContext();
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
    delete handle;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
    handle->stream = stream;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type, cudnnBackendDescriptor_t *out) {
    *out = new Fake{type, {}};
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t desc) {
    delete (Fake *)desc;
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t) { return CUDNN_STATUS_SUCCESS; }
cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t desc, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t type, int64_t count, const void *values) {
    size_t bytes = type == CUDNN_TYPE_BOOLEAN ? 1 : type == CUDNN_TYPE_INT64 || type == CUDNN_TYPE_HANDLE ||
                   type == CUDNN_TYPE_VOID_PTR || type == CUDNN_TYPE_BACKEND_DESCRIPTOR ? 8 : 4;
    const char *first = (const char *)values;
    ((Fake *)desc)->attributes[name].assign(first, first + (size_t)count * bytes);
    return CUDNN_STATUS_SUCCESS;
}
// One engine for everything.
cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t desc, cudnnBackendAttributeName_t name,
                                       cudnnBackendAttributeType_t, int64_t, int64_t *count, void *values) {
    Fake *from = (Fake *)desc;
    *count = 1;
    if (name == CUDNN_ATTR_ENGINEHEUR_RESULTS)
        (*(Fake **)values)->attributes[-1] = from->attributes.at(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH);
    else if (name == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE) *count = 0;
    else if (name == CUDNN_ATTR_ENGINE_GLOBAL_INDEX) *(int64_t *)values = 0;
    else if (name == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) *(int64_t *)values = 1000;
    else EXPECT(name == CUDNN_ATTR_ENGINECFG_ENGINE);
    return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnBackendExecute(cudnnHandle_t handle, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack) {
    const Fake *config = ((Fake *)plan)->desc(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG), *graph = config->desc(-1);
    std::vector<int64_t> uids = ((Fake *)pack)->all<int64_t>(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    std::vector<void *> pointers = ((Fake *)pack)->all<void *>(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS);
    EXPECT(uids.size() == pointers.size());
    char *workspace = (char *)((Fake *)pack)->one<void *>(CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    Run run;
    run.operations = graph->all<Fake *>(CUDNN_ATTR_OPERATIONGRAPH_OPS);
    run.longest = run.ragged_lengths_uid = 0;
    for (size_t i = 0; i < uids.size(); ++i) run.memory[uids[i]] = pointers[i];
    const int inputs[] = {CUDNN_ATTR_OPERATION_POINTWISE_BDESC, CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC};
    for (const Fake *op : run.operations)
        for (int input : inputs) {
            const Fake *tensor = op->desc(input);
            if (tensor == nullptr) continue;
            int64_t uid = tensor->one<int64_t>(CUDNN_ATTR_TENSOR_UNIQUE_ID);
            if (input == CUDNN_ATTR_OPERATION_MATMUL_GEMM_M_OVERRIDE_DESC) {
                run.ragged_lengths_uid = uid;
                run.longest = std::max(run.longest, shape_of(op->desc(CUDNN_ATTR_OPERATION_MATMUL_CDESC)).dim[2]);
            } else if (!tensor->all<bool>(CUDNN_ATTR_TENSOR_IS_BY_VALUE).empty()) {
                run.scalars[uid] = *(const float *)run.memory.at(uid);
            }
        }
    cudaError_t status = emu_enqueue(handle->stream, "fake cuDNN", [run, workspace]() {
        Run copy = run;
        memset(workspace, 0xff, 1000);  // the engine owns it
        copy.compute();
        return cudaSuccess;
    });
    return status == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}
