// call.c: one case on a device: allocates and fills its operands, in as many copies as a cold measurement needs, and
// gives references access to their values.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "dev/cases/cases.h"
#include "dev/cases/values.h"
#include "llmc/backend/arena.h"
#include "llmc/backend/tensor_host.h"

// Operands repeat a pattern of random numbers: filling a gigabyte is fast, and a reference has any element without a
// download. The length has few divisors, so that rows of a matrix differ.
#define PATTERN_ELEMS ((int64_t)64 * 16381)
#define MAX_SETS 128

// ---- layout ----

static size_t aligned(size_t bytes) {
    return (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES;
}

void op_operand(OpCall *call, unsigned access, OpFill fill, double value, DType dtype, int dims, const int64_t *dim) {
    CHECK(call->count < OP_MAX_OPERANDS && dims <= TENSOR_MAX_DIMS, "operand %d of %d dimensions", call->count, dims);
    OpOperand *o = &call->operand[call->count++];
    *o = (OpOperand){.shape = {NULL, dtype, dims, {1, 1, 1, 1}}, .access = access, .fill = fill, .value = value};
    for (int i = 0; i < dims; ++i) o->shape.dim[i] = dim[i];
    double passes = (access & OP_READ ? 1 : 0) + (access & OP_WRITE ? 1 : 0);
    o->traffic_bytes = passes * (double)tensor_bytes(o->shape);
}

double op_call_bytes(const OpCall *call) {
    double bytes = 0;
    for (int i = 0; i < call->count; ++i) bytes += call->operand[i].traffic_bytes;
    return bytes;
}

// ---- filling ----

static double pattern_value(const OpCall *call, const OpOperand *o, int64_t i) {
    int64_t start = (int64_t)(o - call->operand) * 104729;  // each operand uses another part of the same numbers
    double normal = (double)call->normals[(i + start) % PATTERN_ELEMS];
    switch (o->fill) {
    case FILL_NORMAL: return o->value * normal;
    case FILL_ABSOLUTE: return o->value * fabs(normal);
    case FILL_BELOW: return floor(fmin(0.5 * erfc(normal * M_SQRT1_2), 0.999999) * o->value);
    case FILL_RAMP: return (double)(i % (int64_t)o->value);
    case FILL_STEPS: return (double)(i / (int64_t)o->value);
    case FILL_CONSTANT: return o->value;
    case FILL_OWN: return call->c->kind->fill(call, (int)(o - call->operand), i, normal);
    case FILL_DERIVED: break;
    }
    CHECK(false, "fill=%d", (int)o->fill);
    return 0;
}
static double rounded(double value, DType dtype) {
    if (dtype == DTYPE_BF16) return (double)bf16_to_f32(bf16_from_f32((float)value));
    return dtype == DTYPE_F32 ? (double)(float)value : value;
}

static void make_pattern(OpCall *call, OpOperand *o) {
    int64_t elems = tensor_elems(o->shape), period = PATTERN_ELEMS;
    if (o->fill == FILL_RAMP || o->fill == FILL_STEPS || o->fill == FILL_OWN) period = max_i64(elems, 1);
    o->pattern_elems = min_i64(elems, period);
    o->pattern = xmalloc(to_size(o->pattern_elems + 1) * sizeof *o->pattern);
#pragma omp parallel for schedule(static) if (o->pattern_elems > 65536)
    for (int64_t i = 0; i < o->pattern_elems; ++i) o->pattern[i] = rounded(pattern_value(call, o, i), o->shape.dtype);
}
// The results of the forward operation or of derive on the device.
static void load_pattern(OpCall *call, int operand) {
    OpOperand *o = &call->operand[operand];
    bool numbers = o->shape.dtype == DTYPE_F32 || o->shape.dtype == DTYPE_BF16;
    if (o->fill != FILL_DERIVED || !(o->access & OP_READ) || !numbers) return;
    o->pattern_elems = tensor_elems(o->shape);
    o->pattern = xmalloc(to_size(o->pattern_elems + 1) * sizeof *o->pattern);
    op_download(call, operand, 0, o->pattern_elems, o->pattern);
}

// Repeats the first `have` bytes until there are `bytes`.
static void repeat_bytes(Backend *be, unsigned char *to, size_t have, size_t bytes) {
    while (have < bytes) {
        size_t step = have < bytes - have ? have : bytes - have;
        be->copy(be, to + have, to, step);
        have += step;
    }
}

void op_call_upload(OpCall *call, int operand) {
    const OpOperand *o = &call->operand[operand];
    unsigned char *to = call->t[0][operand].data;
    size_t bytes = tensor_bytes(o->shape), first = bytes;
    if (bytes == 0) return;
    if (o->pattern != NULL) first = to_size(o->pattern_elems) * dtype_bytes(o->shape.dtype);
    else if (first > (size_t)1 << 20) first = (size_t)1 << 20;
    void *host = xmalloc(first);
    if (o->pattern == NULL) memset(host, 0xff, first);  // NaN in every floating-point format
    for (int64_t i = 0; i < o->pattern_elems; ++i) tensor_host_store(host, o->shape.dtype, i, o->pattern[i]);
    call->be->upload(call->be, to, host, first);
    free(host);
    repeat_bytes(call->be, to, first, bytes);
}

void op_call_reset(OpCall *call) {
    for (int i = 0; i < call->count; ++i)
        if (call->operand[i].access & OP_WRITE) op_call_upload(call, i);
}

void op_call_lay_out(OpCall *call, Backend *be, const OpCase *c) {
    *call = (OpCall){.be = be, .c = c, .normals = call->normals};
    if (call->normals == NULL) {
        call->normals = xmalloc(PATTERN_ELEMS * sizeof *call->normals);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < PATTERN_ELEMS; ++i) call->normals[i] = rng_normal(5, RNG_STREAM_TEST, (uint64_t)i);
    }
    c->kind->lay_out(call);
    for (int i = 0; i < call->count; ++i) {
        OpOperand *o = &call->operand[i];
        o->offset = call->set_bytes;
        if (o->access != 0) call->set_bytes += aligned(tensor_bytes(o->shape));
        if (o->access != OP_WRITE && o->fill != FILL_DERIVED) make_pattern(call, o);
    }
}

void op_call_fill(OpCall *call) {
    const OpKind *kind = call->c->kind;
    bool derived = false;
    for (int i = 0; i < call->count; ++i) {
        op_call_upload(call, i);
        const OpOperand *o = &call->operand[i];
        derived = derived || (o->fill == FILL_DERIVED && o->access & OP_READ && tensor_elems(o->shape) > 0);
    }
    if (derived && kind->forward != NULL) kind->forward->run(call->be, call->c, call->t[0]);
    if (kind->derive != NULL) kind->derive(call);
    for (int i = 0; i < call->count; ++i) load_pattern(call, i);
}

bool op_call_open(OpCall *call, Backend *be, const OpCase *c, size_t rotation_bytes, Error *err) {
    op_call_lay_out(call, be, c);
    CHECK(call->set_bytes > 0, "%s has no operands", c->kind->op);
    call->sets = (int)min_i64(MAX_SETS, max_i64(2, (int64_t)(rotation_bytes / call->set_bytes)));
    // After the sets: one copy of the operands that only the forward operation uses.
    size_t all = call->set_bytes * (size_t)call->sets;
    for (int i = 0; i < call->count; ++i) {
        OpOperand *o = &call->operand[i];
        if (o->access != 0) continue;
        o->offset = all;
        all += aligned(tensor_bytes(o->shape));
    }
    call->memory_bytes = all;
    call->memory = be->alloc(be, all, err);
    if (call->memory == NULL) return false;
    call->t = xcalloc((size_t)call->sets, sizeof *call->t);
    for (int s = 0; s < call->sets; ++s)
        for (int i = 0; i < call->count; ++i) {
            const OpOperand *o = &call->operand[i];
            call->t[s][i] = o->shape;
            call->t[s][i].data = call->memory + (o->access != 0 ? (size_t)s * call->set_bytes : 0) + o->offset;
        }
    op_call_fill(call);
    for (int s = 1; s < call->sets; ++s)
        be->copy(be, call->memory + (size_t)s * call->set_bytes, call->memory, call->set_bytes);
    return be->synchronize(be, err);
}

void op_call_close(OpCall *call) {
    if (call->memory != NULL) call->be->free(call->be, call->memory, call->memory_bytes);
    for (int i = 0; i < call->count; ++i) free(call->operand[i].pattern);
    free(call->t);
    *call = (OpCall){.normals = call->normals};
}

// ---- values for references and checks ----

const double *op_row(const OpCall *call, int operand, int64_t first, int64_t count, double *buffer) {
    const OpOperand *o = &call->operand[operand];
    CHECK(o->pattern != NULL, "%s: operand %d has no pattern", call->c->kind->op, operand);
    int64_t at = o->pattern_elems > 0 ? first % o->pattern_elems : 0;
    if (at + count <= o->pattern_elems) return o->pattern + at;
    for (int64_t i = 0; i < count; ++i) {
        buffer[i] = o->pattern[at];
        if (++at == o->pattern_elems) at = 0;
    }
    return buffer;
}

void op_download(const OpCall *call, int operand, int64_t first, int64_t count, double *out) {
    Tensor t = call->t[0][operand];
    size_t bytes = dtype_bytes(t.dtype);
    CHECK(first >= 0 && first + count <= tensor_elems(t), "operand %d: first=%lld count=%lld", operand,
          (long long)first, (long long)count);
    if (count == 0) return;
    void *host = xmalloc(to_size(count) * bytes);
    call->be->download(call->be, host, (const unsigned char *)t.data + to_size(first) * bytes,
                       to_size(count) * bytes);
    for (int64_t i = 0; i < count; ++i) out[i] = tensor_host_load(host, t.dtype, i);
    free(host);
}

// Limit for the beginning, middle and end of each output: a gigabyte over PCIe would take longer than the case.
#define HASH_PART_BYTES ((size_t)8 << 20)
uint64_t op_call_hash(const OpCall *call) {
    uint64_t hash = 0;
    unsigned char *host = xmalloc(HASH_PART_BYTES);
    for (int i = 0; i < call->count; ++i) {
        size_t bytes = tensor_bytes(call->t[0][i]), part = bytes < HASH_PART_BYTES ? bytes : HASH_PART_BYTES;
        if (!(call->operand[i].access & OP_WRITE) || bytes == 0) continue;
        const unsigned char *from = call->t[0][i].data;
        size_t starts[3] = {0, (bytes - part) / 2, bytes - part};
        for (int p = 0; p < (part == bytes ? 1 : 3); ++p) {
            call->be->download(call->be, host, from + starts[p], part);
            hash = XXH64(host, part, hash);
        }
    }
    free(host);
    return hash;
}
