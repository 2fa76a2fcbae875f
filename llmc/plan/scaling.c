// scaling.c: see scaling.h. Bytes, seconds of the parts, and the simulation of a step; scaling_print.c has the options and
// the table.
#include "llmc/plan/scaling.h"

#include <math.h>
#include <stdlib.h>

#include "llmc/plan/plan.h"
#include "llmc/plan/work.h"
#include "llmc/ranks/comm.h"

void scaling_job_from_config(ScalingJob *out, const RunConfig *config) {
    const PhaseConfig *phase = &config->phase[0];
    *out = (ScalingJob){.arch = config->arch,
                        .dtype = config->dtype,
                        .master_weights = config->master_weights,
                        .fp8 = config->fp8,
                        .recompute = config->recompute,
                        .optimizer = config->optimizer,
                        .muon_steps = config->muon_steps,
                        .zero = (int)config->zero,
                        .lanes = config->deterministic == DETERMINISTIC_LANES,
                        .reduce_dtype = config->reduce_dtype,
                        .T = phase->seq_len,
                        .B = phase->batch_rows,
                        .batch_tokens = phase->batch_tokens,
                        .loss_chunk_rows = config->loss_chunk_rows,
                        .tensor = 1,
                        .context = 1};
}

// The inputs of one prediction.
typedef struct {
    const ScalingJob *job;
    ModelConfig arch;  // a rank's part of the model: tensor parallelism divides heads, feed-forward and vocabulary
    Machine machine;   // one rank's part: ranks that share a processor divide it
    Machine group;     // for a group of every tensor-th rank
    int64_t grad_world;       // data and context axes: ranks over which gradients are summed and state is sharded
    int64_t B, micro_batches;
    double N;                 // tokens of a micro-batch on this rank
    double E;                 // bytes of an element of the run's dtype
    double tensor;            // ranks that share a block's matrices
    StepWork work;            // of the fullest rank; must not be moved
    const Partition *part;    // that rank's
    double flops_per_token;   // by convention, of the whole model
    double attention_factor;  // context parallelism: queries attend to keys of the whole row
} Scene;

// Each chunk is counted separately; the limit keeps counting fast where a micro-batch is larger than any device.
#define MOST_CHUNKS ((int64_t)1 << 16)
static int64_t chunk_rows(const ScalingJob *job, int64_t Vp, int64_t N) {
    const int64_t rows = job->loss_chunk_rows > 0 ? min_i64(job->loss_chunk_rows, N)
                                                  : plan_fitting_chunk_rows(Vp, job->dtype, N);
    return max_i64(rows, N / MOST_CHUNKS);
}

// ---------------------------------------------------------------------------------------------------------------
// Bytes

static double tag_bytes(const Scene *s, const char *tag) { return (double)arena_tag_bytes(&s->work.arena, tag); }

// Tensor parallelism would shard tensors of width C by tokens, and gather them into two tensors around products.
static double activation_bytes(const Scene *s) {
    static const char *const TAGS[] = {"activations", "activation gradients"};
    ModelConfig narrow = s->arch;
    narrow.C = div_up(narrow.C, s->job->tensor);
    double bytes = s->tensor > 1 ? s->E * s->N * 2 * (double)s->arch.C : 0;
    for (size_t i = 0; i < sizeof TAGS / sizeof TAGS[0]; ++i)
        bytes += s->tensor > 1 ? (double)work_tag_bytes(&narrow, &s->work.model.shape, TAGS[i]) : tag_bytes(s, TAGS[i]);
    return bytes;
}

static ScalingBytes count_bytes(const Scene *s) {
    const ScalingJob *job = s->job;
    const Partition *p = s->part;
    ScalingBytes b = {.weights = tag_bytes(s, "parameters"),
                      .gathered = tag_bytes(s, "gathered parameters"),
                      .masters = tag_bytes(s, "master weights"),
                      .gradients = tag_bytes(s, "gradients") + tag_bytes(s, "sums of lanes"),
                      .moments = tag_bytes(s, "optimizer moments"),
                      .activations = activation_bytes(s),
                      .logits = tag_bytes(s, "logits"),
                      .cache = tag_bytes(s, "KV cache")};
    CommSum how = {.tree = job->lanes, .accumulate = p->options.stage >= 2 && !job->lanes, .wire = job->reduce_dtype};
    if (s->grad_world > 1)
        b.scratch = (double)comm_scratch_bytes(s->machine.direct ? "mpi" : "nccl", (int)s->grad_world,
                                               p->largest_bucket_elems, p->largest_owned_elems, how);
    b.total =
        b.weights + b.gathered + b.masters + b.gradients + b.moments + b.scratch + b.activations + b.logits + b.cache;
    return b;
}

// ---------------------------------------------------------------------------------------------------------------
// Seconds of the parts

static bool is_attention(CountedOp op) { return op == COUNT_ATTENTION_FORWARD || op == COUNT_ATTENTION_BACKWARD; }
static bool is_norm(CountedOp op) { return op == COUNT_NORM_FORWARD || op == COUNT_NORM_BACKWARD; }

// Reading a product's inputs overlaps with its multiplications; all other times are added. Tensor parallelism would shard
// the tokens that a rank normalizes.
static double work_seconds(const Scene *s, const Counts *counts) {
    const Machine *m = &s->machine;
    const double peak = machine_peak(m, s->job->dtype);
    double flops = 0, attention_flops = 0, fp8_flops = 0, bytes = 0, kernels = 0;
    for (CountedOp op = 0; op < COUNT_OPS; ++op) {
        const OpCount *c = &counts->op[op];
        if (is_attention(op)) attention_flops += (c->flops + c->again_flops) * s->attention_factor;
        else flops += c->flops;
        fp8_flops += c->fp8_flops;
        bytes += is_norm(op) ? c->bytes / s->tensor : c->bytes;
        kernels += c->kernels;
    }
    double seconds = flops / (m->matmul_share * peak) + attention_flops / (m->attention_share * peak) +
                     bytes / m->memory_bytes_per_second + kernels * m->kernel_seconds;
    if (fp8_flops > 0) seconds += fp8_flops / (m->matmul_share * m->peak_fp8);
    return seconds;
}

// The counted update, and the partial sums of lanes: two reads and one write for each micro-batch except one.
static double update_seconds(const Scene *s) {
    double lanes = s->part->options.lanes ? 12 * (double)s->part->packed_elems * (double)(s->micro_batches - 1) : 0;
    return work_seconds(s, &s->work.update) + lanes / s->machine.memory_bytes_per_second;
}

// ---------------------------------------------------------------------------------------------------------------
// Simulation of the step

// Collectives inside the forward or backward pass of a block, or of the layers outside the blocks.
typedef struct {
    double seconds, sent;
} Exchanges;

static void trade_add(Exchanges *to, const Machine *m, CollectiveKind kind, double count, double bytes,
                      double ranks) {
    to->seconds += count * machine_collective_seconds(m, kind, bytes, (int64_t)ranks);
    to->sent += count * machine_collective_sent(kind, bytes, (int64_t)ranks);
}

// See docs/scaling.md. tensor: gathers before qkv_w and fc_w, reduce-scatters after attn_proj_w and mlp_proj_w; in the
// backward pass the reverse, and gathers of the inputs again for the weights' gradients. context: keys and values are
// gathered, in the backward pass again, and their gradients reduced.
static Exchanges block_trade(const Scene *s, bool backward) {
    Exchanges e = {0, 0};
    double rows = s->E * s->N * (double)s->arch.C, context = (double)s->job->context;
    double kv = s->E * s->N * context * 2 * (double)(s->arch.NKV * s->arch.HS);
    trade_add(&e, &s->machine, COLLECTIVE_ALL_GATHER, backward ? 4 : 2, rows, s->tensor);
    trade_add(&e, &s->machine, COLLECTIVE_REDUCE_SCATTER, 2, rows, s->tensor);
    trade_add(&e, &s->group, COLLECTIVE_ALL_GATHER, 1, kv, context);
    if (backward) trade_add(&e, &s->group, COLLECTIVE_REDUCE_SCATTER, 1, kv, context);
    return e;
}
// For the embedding's output or its gradient, the head's input or its gradient.
static Exchanges outside_trade(const Scene *s) {
    Exchanges e = {0, 0};
    trade_add(&e, &s->machine, COLLECTIVE_ALL_GATHER, 1, s->E * s->N * (double)s->arch.C, s->tensor);
    return e;
}

typedef struct {
    double now;        // of the computation
    double comm_idle;  // time at which the collectives issued so far are complete
    double comm_busy, sent, interference;
} Clock;

// Issues a collective now, after the ones issued before; returns the time at which it is complete.
static double clock_issue(Clock *t, const Scene *s, CollectiveKind kind, double bytes) {
    double seconds = machine_collective_seconds(&s->group, kind, bytes, s->grad_world);
    t->comm_idle = fmax(t->comm_idle, t->now) + seconds;
    t->comm_busy += seconds;
    t->sent += machine_collective_sent(kind, bytes, s->grad_world);
    return t->comm_idle;
}
// Collectives of the ranks that share a block or a row: the computation waits for them at once.
static void clock_trade(Clock *t, const Exchanges *trade) {
    t->now += trade->seconds;
    t->comm_busy += trade->seconds;
    t->sent += trade->sent;
}
static void clock_wait(Clock *t, double event) { t->now = fmax(t->now, event); }
// A computation; overlapped collectives slow it down by the factor 1 - interference.
static void clock_compute(Clock *t, double seconds) {
    double beside = fmax(t->comm_idle - t->now, 0), left = 1 - t->interference;
    t->now += beside * left <= seconds ? seconds + beside * t->interference : seconds / left;
}

// Seconds of each bucket's part of a micro-batch's passes.
typedef struct {
    double *forward, *backward;  // [buckets]
    double sum;
} PassSeconds;

static PassSeconds pass_seconds(const Scene *s) {
    const Machine *m = &s->machine;
    const int buckets = s->part->buckets;
    PassSeconds p = {.forward = xcalloc(2 * (size_t)buckets, sizeof *p.forward)};
    p.backward = p.forward + buckets;
    for (int b = 0; b < buckets; ++b) {
        p.forward[b] = work_seconds(s, &s->work.forward[b]);
        p.backward[b] = work_seconds(s, &s->work.backward[b]);
        p.sum += p.forward[b] + p.backward[b];
    }
    if (m->mfu <= 0) return p;
    // Scale all parts to the measured total.
    double measured = s->N * s->flops_per_token / (m->mfu * machine_peak(m, s->job->dtype));
    for (int i = 0; i < 2 * buckets; ++i) p.forward[i] *= measured / p.sum;
    p.sum = measured;
    return p;
}

// The simulation of a step: forward and backward pass of every micro-batch with the collectives of zero.c.
typedef struct {
    const Scene *scene;
    PassSeconds seconds;
    CollectiveKind reduce;
    Exchanges forward_block, backward_block, outside;
    double *gathered, *reduced;  // [buckets] times at which the last gather and reduction of each are complete
    Clock clock;
} Play;

static void play_gather(Play *p, int bucket) {
    const Scene *s = p->scene;
    p->gathered[bucket] =
        clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, s->E * (double)s->part->bucket[bucket].elems);
}
static void play_reduce(Play *p, int bucket) {
    const Scene *s = p->scene;
    double wire = s->job->reduce_dtype == DTYPE_BF16 ? 2 : 4, elems = (double)s->part->bucket[bucket].elems;
    p->reduced[bucket] = clock_issue(&p->clock, s, p->reduce, wire * elems);
    // An exchange leaves sums with their owners; stage 0 then gathers them (with lanes once, after the last micro-batch).
    if (s->part->options.stage == 0 && p->reduce == COLLECTIVE_EXCHANGE && !s->part->options.lanes)
        p->reduced[bucket] = clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, 4 * elems);
}

// A block's weights are gathered while the block before computes. The last two blocks of a pass are still in the buffers
// when the next pass begins.
static void play_forward(Play *p, bool first) {
    const Scene *s = p->scene;
    const int last = s->part->buckets - 1;
    const bool gathers = s->part->options.stage == 3;
    if (gathers && first) play_gather(p, 0);
    if (gathers && first) play_gather(p, 1);
    clock_wait(&p->clock, p->gathered[0]);
    clock_compute(&p->clock, p->seconds.forward[0]);
    clock_trade(&p->clock, &p->outside);
    for (int b = 1; b < last; ++b) {
        if (gathers && (first || (b + 1 > 2 && b + 1 < last))) play_gather(p, b + 1);
        clock_wait(&p->clock, p->gathered[b]);
        clock_compute(&p->clock, p->seconds.forward[b]);
        clock_trade(&p->clock, &p->forward_block);
    }
    clock_wait(&p->clock, p->gathered[last]);
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.forward[last]);
}

static void play_backward(Play *p, bool final) {
    const Scene *s = p->scene;
    const int last = s->part->buckets - 1, stage = s->part->options.stage;
    const bool lanes = s->part->options.lanes;
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.backward[last]);
    if (final || lanes) play_reduce(p, last);
    for (int b = last - 1; b >= 1; --b) {
        if (stage == 3 && b > 1 && b - 1 < last - 2) play_gather(p, b - 1);
        clock_wait(&p->clock, p->gathered[b]);
        // Two buffers of gradients alternate.
        if (stage >= 2 && b + 2 < last) clock_wait(&p->clock, p->reduced[b + 2]);
        clock_compute(&p->clock, p->seconds.backward[b]);
        clock_trade(&p->clock, &p->backward_block);
        if (final || lanes || stage >= 2) play_reduce(p, b);
    }
    clock_trade(&p->clock, &p->outside);
    clock_compute(&p->clock, p->seconds.backward[0]);
    if (final || lanes) play_reduce(p, 0);
}

static void play_step(Play *p) {
    const Scene *s = p->scene;
    const int stage = s->part->options.stage;
    const bool lanes = s->part->options.lanes;
    // Weights changed by the previous update.
    for (int b = 0; s->grad_world > 1 && (stage == 1 || stage == 2) && b < s->part->buckets; ++b) play_gather(p, b);
    for (int64_t k = 0; k < s->micro_batches; ++k) {
        play_forward(p, k == 0);
        play_backward(p, k == s->micro_batches - 1);
        if (lanes) clock_wait(&p->clock, p->clock.comm_idle);  // a lane's sums are complete before they are added up
    }
    for (int b = 0; lanes && stage == 0 && b < s->part->buckets; ++b)
        clock_issue(&p->clock, s, COLLECTIVE_ALL_GATHER, 4 * (double)s->part->bucket[b].elems);
    clock_wait(&p->clock, p->clock.comm_idle);
}

// Sums over ranks in the fixed tree, then gathered: of losses, one for each micro-batch, and of squares, one for each
// segment.
static double agreement_seconds(const Scene *s, const Machine *machine, int64_t world) {
    double losses = 8 * (double)s->micro_batches, squares = 8 * (double)s->part->segments, seconds = 0;
    if (s->part->options.stage == 0) squares = 0;
    for (int i = 0; i < 2; ++i) {
        double bytes = i == 0 ? losses : squares;
        if (bytes == 0) continue;
        seconds += machine_collective_seconds(machine, COLLECTIVE_EXCHANGE, bytes, world);
        seconds += machine_collective_seconds(machine, COLLECTIVE_ALL_GATHER, bytes, world);
    }
    return seconds;
}

// ---------------------------------------------------------------------------------------------------------------

// The batch stays as configured. With more ranks than micro-batches, micro-batches get fewer rows; with more ranks than
// rows, the batch grows to one row for each rank.
static void divide_batch(Scene *s, ScalingPrediction *out, int64_t replicas) {
    const ScalingJob *job = s->job;
    int64_t rows = max_i64(job->batch_tokens / job->T, replicas);
    s->B = min_i64(job->B, rows / replicas);
    s->micro_batches = div_up(rows, replicas * s->B);
    s->N = (double)(s->B * job->T) / (double)job->context;
    out->B = s->B;
    out->micro_batches = s->micro_batches;
    out->batch_tokens = rows * job->T;
}

// If a node has more ranks than processors, the ranks share these; they always share its memory.
static Machine machine_of_rank(const Machine *machine, int64_t world) {
    Machine m = *machine;
    if (m.slots == 0) return m;
    double ranks = (double)min_i64(world, m.per_node), part = fmin(1, (double)m.slots / ranks);
    m.peak_fp32 *= part;
    m.peak_bf16 *= part;
    m.memory_bytes_per_second *= part;
    m.node_bytes_per_second *= part;
    m.memory_bytes /= ranks;
    return m;
}

// A rank's part of the model; with fewer key/value heads than ranks, several ranks have the same one.
static ModelConfig part_of_model(const ModelConfig *arch, int64_t tensor) {
    ModelConfig part = *arch;
    part.NH /= tensor;
    part.NKV = max_i64(1, arch->NKV / tensor);
    part.F /= tensor;
    part.V = div_up(arch->V, tensor);
    part.Vp = round_up(part.V, MODEL_VOCAB_MULTIPLE);
    return part;
}

static bool check_parallel(const ScalingJob *job, const Machine *machine, int64_t world, Error *err) {
    if (job->tensor > machine->per_node || job->arch.NH % job->tensor != 0 || job->arch.F % job->tensor != 0)
        return error_set(
            err,
            "tensor: expected a divisor of the %lld heads and of ffn=%lld, at most the %lld ranks of a node, "
            "found %lld",
            (long long)job->arch.NH, (long long)job->arch.F, (long long)machine->per_node, (long long)job->tensor);
    if (machine->per_node % job->tensor != 0 || job->T % job->context != 0 ||
        world % (job->tensor * job->context) != 0)
        return error_set(err,
                         "world: expected a multiple of tensor=%lld times context=%lld, where tensor divides the %lld "
                         "ranks of a node and context divides seq_len=%lld, found %lld",
                         (long long)job->tensor, (long long)job->context, (long long)machine->per_node,
                         (long long)job->T, (long long)world);
    return true;
}

static void play(Play *p, const Scene *s) {
    *p = (Play){.scene = s, .seconds = pass_seconds(s), .clock.interference = s->machine.interference};
    const bool exchange = s->job->lanes || s->job->reduce_dtype == DTYPE_BF16;
    p->reduce = exchange                      ? COLLECTIVE_EXCHANGE
                : s->part->options.stage == 0 ? COLLECTIVE_ALL_REDUCE
                                              : COLLECTIVE_REDUCE_SCATTER;
    p->forward_block = block_trade(s, false);
    p->backward_block = block_trade(s, true);
    p->outside = outside_trade(s);
    p->gathered = xcalloc((size_t)s->part->buckets, sizeof *p->gathered);
    p->reduced = xcalloc((size_t)s->part->buckets, sizeof *p->reduced);
    play_step(p);
    free(p->gathered);
    free(p->reduced);
    free(p->seconds.forward);
}

// The work of the fullest rank.
static WorkShape work_shape(const Scene *s, const PartitionOptions *options) {
    const ScalingJob *job = s->job;
    const int64_t T = job->T / job->context, N = s->B * T;
    WorkShape shape = {.arch = s->arch, .B = s->B, .T = T, .optimizer = job->optimizer, .muon_steps = job->muon_steps};
    shape.shape = (ModelShape){.max_rows = N,
                               .max_seq_len = job->T,
                               .loss_chunk_rows = chunk_rows(job, s->arch.Vp, N),
                               .dtype = job->dtype,
                               .training = true,
                               .fp8 = job->fp8,
                               .no_master = job->dtype == DTYPE_BF16 && !job->master_weights,
                               .recompute = job->recompute,
                               .cache_tokens = job->T,
                               .ranks = *options,
                               .micro_batches = s->micro_batches};
    return shape;
}

static double attention_flops(const StepWork *work) {
    double flops = 0;
    for (int b = 0; b < work->model.part.buckets; ++b) flops += work->forward[b].op[COUNT_ATTENTION_FORWARD].flops;
    return flops;
}

static void count_work(Scene *s, const PartitionOptions *options) {
    WorkShape shape = work_shape(s, options);
    step_work_count(&s->work, &shape);
    s->part = &s->work.model.part;
    s->attention_factor = 1;
    s->flops_per_token = work_flops_per_token(&s->job->arch, s->job->T);
    if (s->job->context == 1) return;
    // The ranks that share rows divide their attention equally.
    StepWork *whole = xcalloc(1, sizeof *whole);
    shape.T = s->job->T;
    shape.shape.max_rows = s->B * shape.T;
    step_work_count(whole, &shape);
    s->attention_factor = attention_flops(whole) / attention_flops(&s->work) / (double)s->job->context;
    step_work_free(whole);
    free(whole);
}

static bool choose_partition(Scene *s, PartitionOptions *options, Error *err) {
    *options = (PartitionOptions){.data.world = (int)s->grad_world,
                                  .stage = s->grad_world > 1 ? s->job->zero : 0,
                                  .lanes = s->job->lanes,
                                  .muon = s->job->optimizer == OPTIMIZER_MUON};
    if (!partition_check(options, err)) return false;
    ParamTable params;
    params_build(&params, &s->arch);
    options->data.rank = partition_fullest_rank(&params, options);
    params_free(&params);
    return true;
}

bool scaling_predict(ScalingPrediction *out, const ScalingJob *job, const Machine *machine, int64_t world,
                     Error *err) {
    CHECK(world >= 1 && world <= SCALING_MAX_WORLD, "world=%lld", (long long)world);
    *out = (ScalingPrediction){.world = world, .nodes = div_up(world, machine->per_node)};
    if (!check_parallel(job, machine, world, err)) return false;
    Scene s = {.job = job,
               .arch = part_of_model(&job->arch, job->tensor),
               .machine = machine_of_rank(machine, world),
               .grad_world = world / job->tensor,
               .E = job->dtype == DTYPE_BF16 ? 2 : 4,
               .tensor = (double)job->tensor};
    s.group = s.machine;
    s.group.per_node /= job->tensor;
    PartitionOptions options;
    if (!choose_partition(&s, &options, err)) return false;
    divide_batch(&s, out, world / (job->tensor * job->context));
    count_work(&s, &options);
    Play p;
    play(&p, &s);

    out->bytes = count_bytes(&s);
    out->fits = out->bytes.total + s.machine.reserve_bytes <= s.machine.memory_bytes;
    out->compute_seconds = (double)s.micro_batches * p.seconds.sum;
    out->exposed_seconds = fmax(0, p.clock.now - out->compute_seconds);  // could round below 0: the sums differ in order
    out->comm_seconds = p.clock.comm_busy;
    out->comm_bytes = p.clock.sent;
    out->update_seconds = update_seconds(&s);
    out->agree_seconds = agreement_seconds(&s, machine, world);
    out->hub_seconds = machine_hub_seconds(machine, world);
    // On a GPU the hub overlaps with the previous step's computation.
    if (machine->direct) out->agree_seconds += out->hub_seconds;
    else out->agree_seconds += fmax(0, out->hub_seconds - p.clock.now);
    out->step_seconds = p.clock.now + out->update_seconds + out->agree_seconds;
    out->tokens_per_second = (double)out->batch_tokens / out->step_seconds;
    double processors = (double)(machine->slots > 0 ? min_i64(world, machine->slots * out->nodes) : world);
    out->mfu = out->tokens_per_second * s.flops_per_token / (processors * machine_peak(machine, job->dtype));
    step_work_free(&s.work);
    return true;
}
