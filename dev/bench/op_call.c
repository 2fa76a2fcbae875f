// op_call.c: one case of the registry on a device: its operands in as many copies as a cold measurement needs, how
// they are filled, and what the kinds' references see of them.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "dev/bench/registry.h"
#include "llmc/backend/arena.h"
#include "llmc/base/rng.h"
#include "llmc/backend/tensor_host.h"

// Operands repeat a pattern of random numbers: a gigabyte is then filled in no time, and a reference knows any
// element without asking the device. The length has few divisors, so that rows of a matrix differ.
#define PATTERN_ELEMS ((int64_t)64 * 16381)
#define MAX_SETS 128

// ---- layout ----

void op_operand(OpCall *call, unsigned access, OpFill fill, double value, DType dtype, int dims, const int64_t *dim) {
    CHECK(call->count < OP_MAX_OPERANDS && dims <= TENSOR_MAX_DIMS, "operand %d of %d dimensions", call->count, dims);
    OpOperand *o = &call->operand[call->count++];
    *o = (OpOperand){.shape = {NULL, dtype, dims, {1, 1, 1, 1}}, .access = access, .fill = fill, .value = value};
    for (int i = 0; i < dims; ++i) o->shape.dim[i] = dim[i];
    double passes = (access & OP_READ ? 1 : 0) + (access & OP_WRITE ? 1 : 0);
    o->traffic_bytes = passes * (double)tensor_bytes(o->shape);
    o->offset = call->set_bytes;
    size_t bytes = tensor_bytes(o->shape);
    call->set_bytes += (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES;
}

double op_call_bytes(const OpCall *call) {
    double bytes = 0;
    for (int i = 0; i < call->count; ++i) bytes += call->operand[i].traffic_bytes;
    return bytes;
}

// ---- filling ----

static float pattern_value(const OpCall *call, const OpOperand *o, int64_t i) {
    int64_t start = (int64_t)(o - call->operand) * 104729;  // another part of the same numbers for each operand
    float normal = call->normals[(i + start) % PATTERN_ELEMS];
    switch (o->fill) {
    case FILL_NORMAL: return (float)(o->value * (double)normal);
    case FILL_ABSOLUTE: return (float)(o->value * fabs((double)normal));
    case FILL_BELOW: return (float)floor(fmin(0.5 * erfc((double)normal * M_SQRT1_2), 0.999999) * o->value);
    case FILL_RAMP: return (float)(i % (int64_t)o->value);
    case FILL_STEPS: return (float)(i / (int64_t)o->value);
    case FILL_CONSTANT: return (float)o->value;
    case FILL_DERIVED: break;
    }
    CHECK(false, "fill=%d", (int)o->fill);
    return 0;
}

static void make_pattern(OpCall *call, OpOperand *o) {
    int64_t elems = tensor_elems(o->shape), period = PATTERN_ELEMS;
    if (o->fill == FILL_RAMP || o->fill == FILL_STEPS) period = max_i64(elems, 1);
    o->pattern_elems = min_i64(elems, period);
    o->pattern = xmalloc(to_size(o->pattern_elems) * sizeof *o->pattern);
    bool rounds = o->shape.dtype == DTYPE_BF16;
#pragma omp parallel for schedule(static) if (o->pattern_elems > 65536)
    for (int64_t i = 0; i < o->pattern_elems; ++i) {
        float value = pattern_value(call, o, i);
        o->pattern[i] = rounds ? bf16_to_f32(bf16_from_f32(value)) : value;
    }
}

// Repeats the first `have` bytes until there are `bytes`.
static void repeat_bytes(Backend *be, unsigned char *to, size_t have, size_t bytes) {
    while (have < bytes) {
        size_t step = have < bytes - have ? have : bytes - have;
        be->copy(be, to + have, to, step);
        have += step;
    }
}

static void upload_operand(OpCall *call, const OpOperand *o) {
    unsigned char *to = call->memory + o->offset;
    size_t bytes = tensor_bytes(o->shape);
    if (o->pattern == NULL) {  // 0xff everywhere: NaN as a float
        unsigned char ones[4096];
        memset(ones, 0xff, sizeof ones);
        size_t first = bytes < sizeof ones ? bytes : sizeof ones;
        call->be->upload(call->be, to, ones, first);
        repeat_bytes(call->be, to, first, bytes);
        return;
    }
    size_t first = to_size(o->pattern_elems) * dtype_bytes(o->shape.dtype);
    void *host = xmalloc(first);
#pragma omp parallel for schedule(static) if (o->pattern_elems > 65536)
    for (int64_t i = 0; i < o->pattern_elems; ++i) tensor_host_store(host, o->shape.dtype, i, (double)o->pattern[i]);
    call->be->upload(call->be, to, host, first);
    free(host);
    repeat_bytes(call->be, to, first, bytes);
}

void op_call_reset(OpCall *call) {
    for (int i = 0; i < call->count; ++i)
        if (call->operand[i].access & OP_WRITE) upload_operand(call, &call->operand[i]);
}

bool op_call_open(OpCall *call, Backend *be, const OpCase *c, size_t rotation_bytes, Error *err) {
    float *normals = call->normals;
    *call = (OpCall){.be = be, .c = c, .normals = normals};
    c->kind->lay_out(call);
    CHECK(call->set_bytes > 0, "%s has no operands", c->kind->op);
    call->sets = (int)min_i64(MAX_SETS, max_i64(2, (int64_t)(rotation_bytes / call->set_bytes)));
    call->memory = be->alloc(be, call->set_bytes * (size_t)call->sets, err);
    if (call->memory == NULL) return false;
    call->t = xcalloc((size_t)call->sets, sizeof *call->t);
    for (int s = 0; s < call->sets; ++s)
        for (int i = 0; i < call->count; ++i) {
            call->t[s][i] = call->operand[i].shape;
            call->t[s][i].data = call->memory + (size_t)s * call->set_bytes + call->operand[i].offset;
        }
    if (normals == NULL) {
        call->normals = xmalloc(PATTERN_ELEMS * sizeof *call->normals);
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < PATTERN_ELEMS; ++i) call->normals[i] = rng_normal(5, RNG_STREAM_TEST, (uint64_t)i);
    }
    for (int i = 0; i < call->count; ++i) {
        OpOperand *o = &call->operand[i];
        bool has_values = o->access & OP_READ && o->fill != FILL_DERIVED;
        if (has_values) make_pattern(call, o);
        upload_operand(call, o);
    }
    if (c->kind->derive != NULL) c->kind->derive(call);
    for (int s = 1; s < call->sets; ++s)
        be->copy(be, call->memory + (size_t)s * call->set_bytes, call->memory, call->set_bytes);
    return be->synchronize(be, err);
}

void op_call_close(OpCall *call) {
    if (call->memory != NULL) call->be->free(call->be, call->memory, call->set_bytes * (size_t)call->sets);
    for (int i = 0; i < call->count; ++i) free(call->operand[i].pattern);
    free(call->t);
    *call = (OpCall){.normals = call->normals};
}

// ---- what references read ----

void op_values(const OpCall *call, int operand, int64_t first, int64_t stride, int64_t count, double *out) {
    const OpOperand *o = &call->operand[operand];
    CHECK(o->pattern != NULL, "%s: operand %d has no pattern", call->c->kind->op, operand);
    int64_t at = first % o->pattern_elems, step = stride % o->pattern_elems;
    for (int64_t i = 0; i < count; ++i) {
        out[i] = (double)o->pattern[at];
        at += step;
        if (at >= o->pattern_elems) at -= o->pattern_elems;
    }
}
double op_value(const OpCall *call, int operand, int64_t at) {
    double value;
    op_values(call, operand, at, 1, 1, &value);
    return value;
}

void op_download(const OpCall *call, int operand, int64_t first, int64_t count, double *out) {
    Tensor t = call->t[0][operand];
    size_t bytes = dtype_bytes(t.dtype);
    CHECK(first >= 0 && first + count <= tensor_elems(t), "operand %d: first=%lld count=%lld", operand,
          (long long)first, (long long)count);
    void *host = xmalloc(to_size(count) * bytes + 1);
    call->be->download(call->be, host, (const unsigned char *)t.data + to_size(first) * bytes,
                       to_size(count) * bytes);
    for (int64_t i = 0; i < count; ++i) out[i] = tensor_host_load(host, t.dtype, i);
    free(host);
}

// At most this much of each output's beginning, middle and end: a gigabyte over PCIe would take longer than the case.
#define HASH_PART_BYTES ((size_t)8 << 20)
uint64_t op_call_hash(const OpCall *call) {
    uint64_t hash = 0;
    unsigned char *host = xmalloc(HASH_PART_BYTES);
    for (int i = 0; i < call->count; ++i) {
        if (!(call->operand[i].access & OP_WRITE)) continue;
        const unsigned char *from = call->t[0][i].data;
        size_t bytes = tensor_bytes(call->t[0][i]), part = bytes < HASH_PART_BYTES ? bytes : HASH_PART_BYTES;
        size_t starts[3] = {0, (bytes - part) / 2, bytes - part};
        for (int p = 0; p < (part == bytes ? 1 : 3); ++p) {
            call->be->download(call->be, host, from + starts[p], part);
            hash = XXH64(host, part, hash);
        }
    }
    free(host);
    return hash;
}

// ---- checks ----

void op_compare(OpCheck *check, const char *what, const double *out, const double *ref, int64_t count,
                double tolerance) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
        difference += (out[i] - ref[i]) * (out[i] - ref[i]);
        norm += ref[i] * ref[i];
    }
    double error = norm == 0 ? sqrt(difference) : sqrt(difference / norm), ratio = error / tolerance;
    bool ok = error <= tolerance;  // false for NaN
    if (!ok) check->ok = false;
    if (check->worst >= ratio && ok) return;
    check->worst = ratio;
    check->error = error;
    check->tolerance = tolerance;
    strncpy(check->what, what, sizeof check->what - 1);
}

int op_sample(int64_t at[OP_SAMPLES], int64_t n, int wanted) {
    int count = (int)min_i64(min_i64(n, wanted), OP_SAMPLES);
    for (int i = 0; i < count; ++i) at[i] = count == 1 ? 0 : (n - 1) * i / (count - 1);
    return count;
}

double op_tolerance(DType dtype) { return dtype == DTYPE_F32 ? 2e-6 : 1.02 * 0x1p-8; }
