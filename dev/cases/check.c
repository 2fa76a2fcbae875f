// check.c: outputs against their references, every element or a sample, and the references' gradients against finite
// differences of the forward reference.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "dev/cases/cases.h"

// ---- comparisons ----

double op_error(const double *out, const double *ref, int64_t count) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < count; ++i) {
        difference += (out[i] - ref[i]) * (out[i] - ref[i]);
        norm += ref[i] * ref[i];
    }
    return norm == 0 ? sqrt(difference) : sqrt(difference) / sqrt(norm);
}

void op_compare(OpCheck *check, const char *what, const double *out, const double *ref, int64_t count,
                double tolerance) {
    double error = op_error(out, ref, count), ratio = error == 0 ? 0 : error / tolerance;
    bool ok = error <= tolerance;  // false for NaN
    if (check->worst >= ratio && ok) return;
    if (!ok && !check->ok) return;  // the first failure is the one that is told
    if (!ok) check->ok = false;
    check->worst = ratio;
    check->error = error;
    check->tolerance = tolerance;
    strncpy(check->what, what, sizeof check->what - 1);
}

double op_tolerance(DType dtype) { return dtype == DTYPE_F64 ? 1e-12 : dtype == DTYPE_F32 ? 2e-6 : 1.02 * 0x1p-8; }
double op_sum_tolerance(int64_t n) { return fmax(2e-6, 0x1p-24 * sqrt(0.5 * (double)n)); }

// ---- outputs against references ----

static int64_t row_elems(const OpOperand *o) { return o->shape.dim[o->shape.ndim - 1]; }

#define PARALLEL_ELEMS 50000  // of an output; below, threads would cost more than they save
#define SAMPLED_ROWS 8
#define SAMPLED_STRETCHES 16
// Where sample i of `count` lies: the first and the last element of all are among them; columns go another way than
// rows do.
static int64_t sample_at(const OpCall *call, const OpOutput *out, int64_t stretch, int i, int count) {
    const OpOperand *o = &call->operand[out->operand];
    if (out->sample != NULL) return out->sample(call, i, count);
    int64_t row = row_elems(o), rows = tensor_elems(o->shape) / row, last = max_i64(1, count - 1);
    int64_t column = rows == 1 || i == last ? i : i * 7 % last;
    return (rows - 1) * i / last * row + (row - stretch) * column / last;
}

static void check_output(const OpCall *call, const OpOutput *out, OpCheck *check, bool every_element) {
    const OpOperand *o = &call->operand[out->operand];
    int64_t elems = tensor_elems(o->shape), row = row_elems(o), stretch = row, count = elems / max_i64(1, row);
    if (elems == 0 || !(o->access & OP_WRITE)) return;
    if (!every_element) {
        stretch = out->stretch > 0 ? min_i64(out->stretch, row) : row;
        count = min_i64(elems / stretch, out->stretch > 0 ? SAMPLED_STRETCHES : SAMPLED_ROWS);
    }
    double *found = xmalloc(to_size(count * stretch) * sizeof *found);
    double *ref = xcalloc(to_size(count * stretch), sizeof *ref);
    if (every_element) op_download(call, out->operand, 0, elems, found);
    for (int64_t i = 0; i < count && !every_element; ++i)
        op_download(call, out->operand, sample_at(call, out, stretch, (int)i, (int)count), stretch,
                    found + i * stretch);
#pragma omp parallel for schedule(dynamic) if (elems > PARALLEL_ELEMS)
    for (int64_t i = 0; i < count; ++i) {
        int64_t first = every_element ? i * row : sample_at(call, out, stretch, (int)i, (int)count);
        out->reference(call, first, stretch, ref + i * stretch);
    }
    double tolerance = out->tolerance != NULL ? out->tolerance(call) : op_tolerance(o->shape.dtype);
    op_compare(check, out->name, found, ref, count * stretch, tolerance);
    free(found);
    free(ref);
}

void op_check_outputs(OpCall *call, OpCheck *check, bool every_element) {
    const OpKind *kind = call->c->kind;
    for (const OpOutput *out = kind->outputs; out != NULL && out->name != NULL; ++out)
        check_output(call, out, check, every_element);
    if (kind->check != NULL) kind->check(call, check);
}

// ---- gradients ----

// A difference quotient with this step in double, of values near 1, is off by about 1e-10 either way: by truncation
// and by rounding.
#define STEP 1e-5
#define GRADIENT_TOLERANCE 1e-8
#define MOST_PAIRS 1000000  // of an input's and an output's elements

static void whole_reference(const OpCall *call, const OpOutput *out, double *ref) {
    const OpOperand *o = &call->operand[out->operand];
    int64_t elems = tensor_elems(o->shape), row = row_elems(o);
    for (int64_t first = 0; first < elems; first += row) out->reference(call, first, row, ref + first);
}

static double default_loss(const OpCall *call) {
    double loss = 0;
    for (const OpOutput *out = call->c->kind->forward->outputs; out->name != NULL; ++out) {
        if (out->upstream == 0) continue;
        int64_t elems = tensor_elems(call->operand[out->operand].shape);
        double *ref = xcalloc(to_size(elems), sizeof *ref);
        const double *upstream = op_row(call, out->upstream - 1, 0, elems, NULL);
        whole_reference(call, out, ref);
        for (int64_t i = 0; i < elems; ++i) loss += upstream[i] * ref[i];
        free(ref);
    }
    return loss;
}

// What the operation finds derived, in double: an fp32 statistic would be off by more than the tolerance.
static void derive_in_double(OpCall *call) {
    for (const OpOutput *out = call->c->kind->forward->outputs; out->name != NULL; ++out) {
        const OpOperand *o = &call->operand[out->operand];
        if (o->fill == FILL_DERIVED && o->access & OP_READ && tensor_elems(o->shape) > 0)
            whole_reference(call, out, o->pattern);
    }
}

static bool check_gradient(OpCall *call, const OpOutput *out, OpCheck *check) {
    const OpKind *kind = call->c->kind;
    OpOperand *in = &call->operand[out->gradient_of - 1];
    const OpOperand *o = &call->operand[out->operand];
    int64_t elems = tensor_elems(in->shape), pairs = 0;
    for (const OpOutput *forward = kind->forward->outputs; forward->name != NULL; ++forward)
        pairs += elems * tensor_elems(call->operand[forward->operand].shape);
    if (elems == 0 || tensor_elems(o->shape) == 0 || pairs > MOST_PAIRS) return false;
    double *grad = xcalloc(to_size(elems), sizeof *grad), *numeric = xcalloc(to_size(elems), sizeof *numeric);
    double (*loss)(const OpCall *) = kind->loss != NULL ? kind->loss : default_loss;
    whole_reference(call, out, grad);
    // A gradient that is added to something; one that takes its input's place is not.
    for (int64_t i = 0; i < elems && o->access & OP_READ && o != in; ++i) grad[i] -= o->pattern[i];
    for (int64_t i = 0; i < elems; ++i) {
        double kept = in->pattern[i];
        in->pattern[i] = kept + STEP;
        double above = loss(call);
        in->pattern[i] = kept - STEP;
        numeric[i] = (above - loss(call)) / (2 * STEP);
        in->pattern[i] = kept;
    }
    char what[48];
    snprintf(what, sizeof what, "the reference's %.28s", out->name);
    op_compare(check, what, grad, numeric, elems, GRADIENT_TOLERANCE);
    free(grad);
    free(numeric);
    return true;
}

bool op_check_gradients(OpCall *call, OpCheck *check) {
    const OpKind *kind = call->c->kind;
    bool any = false;
    if (kind->forward == NULL || kind->outputs == NULL) return false;
    derive_in_double(call);
    for (const OpOutput *out = kind->outputs; out->name != NULL; ++out)
        if (out->gradient_of != 0) any |= check_gradient(call, out, check);
    return any;
}
