// run_step.c: the work around a step of the training loop: the ranks' agreement before it, the phase, the guard's bounds,
// its results when they arrive, and the rewind after a spike.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/tree_sum.h"
#include "llmc/run/run_impl.h"
#include "llmc/run/run_load.h"
#include "llmc/run/run_save.h"
#include "llmc/train/guard.h"
#include "llmc/train/replicas.h"

// A rank's contribution to the agreement before a step: sums (the weights of its micro-batches last), then maxima.
enum { VOTE_SECONDS, VOTE_WEIGHTS };
enum { VOTE_SIGNAL, VOTE_NO_DATA, VOTE_SAVER, VOTE_MAXIMA = VOTE_SAVER + SAVER_VOTES };

bool run_open_steps(Run *run, Error *err) {
    const size_t micro_batches = to_size(run->model.shape.micro_batches);
    for (int i = 0; i < RUN_PENDING_STEPS; ++i) {
        size_t bytes = sizeof(StepResult) + micro_batches * sizeof(double);
        run->pending[i].host = run->be->host_alloc(run->be, bytes, err);
        if (run->pending[i].host == NULL) return false;
    }
    run->vote = xcalloc(micro_batches + VOTE_WEIGHTS, sizeof *run->vote);
    return true;
}

void run_close_steps(Run *run) {
    for (int i = 0; i < RUN_PENDING_STEPS; ++i)
        if (run->pending[i].host != NULL) run->be->host_free(run->be, run->pending[i].host);
    free(run->vote);
}

// Runs bounded by time: the horizon is extrapolated from the speed so far, so that the learning-rate schedule follows the
// clock. seconds: rank 0's, equal on all ranks.
static bool time_is_left(Run *run, double seconds) {
    double budget = run->config.train_seconds;
    int64_t step = run->progress.step;
    if (step == 0) return true;
    double step_seconds = seconds / (double)step;
    if (seconds + step_seconds > budget) return false;
    schedule_set_horizon(&run->schedule, max_i64((int64_t)(budget / step_seconds), step + 1));
    return true;
}

static bool enter_phase(Run *run, Error *err) {
    const PhaseSpan *phase = schedule_phase(&run->schedule, run->progress.step);
    if (phase->index == run->phase) return true;
    const PhaseConfig *wanted = &run->config.phase[phase->index];
    if (run->config.phase_count > 1)
        logger_message(run->logger, "phase    %s from step %lld: %lld steps of %lld rows x %lld tokens", wanted->name,
                       (long long)run->progress.step, (long long)phase->steps, (long long)phase->rows_per_step,
                       (long long)phase->T);
    run->phase = phase->index;
    return optimizer_set_trainable(&run->optimizer, &run->model.params, wanted->trainable, err);
}

bool run_has_steps(Run *run) {
    if (run->started == 0) run->started = now_seconds();
    run->progress.seconds = run->resumed_seconds + now_seconds() - run->started;
    return run->progress.step < run->schedule.total_steps;
}

bool run_begin_step(Run *run, int stop_signal, Error *err) {
    int64_t micro_batches = schedule_phase(&run->schedule, run->progress.step)->micro_batches;
    double *sum = run->vote, most[VOTE_MAXIMA] = {stop_signal, run->batch == NULL};
    sum[VOTE_SECONDS] = run->launch.rank == 0 ? run->progress.seconds : 0;
    run_save_vote(run, most + VOTE_SAVER);
    for (int64_t i = 0; i < micro_batches; ++i)
        sum[VOTE_WEIGHTS + i] = run->batch != NULL ? run->batch->micro_batch_weight[i] : 0;
    control_set_step(run->control, run->progress.step + 1);
    if (!control_reduce(run->control, "step", sum, VOTE_WEIGHTS + (int)micro_batches, most, VOTE_MAXIMA))
        return error_set(err, "the connection to the other ranks is closed");
    run->stop_signal = (int)most[VOTE_SIGNAL];
    if (!run_save_poll(run, most + VOTE_SAVER, err)) return false;
    run->all_know = most[VOTE_NO_DATA] > 0;
    if (run->all_know)
        return run->batch == NULL ? false : error_set(err, "another rank cannot read its data and prints the reason");
    if (run->stop_signal != 0) return false;
    if (run->config.train_seconds > 0 && !time_is_left(run, sum[VOTE_SECONDS])) return false;
    run->weight_sum = tree_sum_f64(sum + VOTE_WEIGHTS, micro_batches);
    return enter_phase(run, err);
}

// Passes a step's results to the guard. A spike may request a rewind: run->rewind_because.
static bool guard_step(Run *run, const PendingStep *pending, double loss, Error *err) {
    const GradStats *stats = &pending->host->stats;
    const GuardResult result = {.step = pending->step,
                                .skip = (SkipReason)stats->skip,
                                .loss = loss,
                                .norm = (double)stats->norm,
                                .skip_loss = pending->skip_loss,
                                .skip_norm = pending->skip_norm};
    char line[300];
    GuardAction action = guard_count(&run->progress, line, sizeof line, &run->config, &result, run->has_checkpoint, err);
    if (line[0] != '\0') logger_message(run->logger, "%s", line);
    if (action == GUARD_REWIND) run->rewind_because = pending->step;
    Error unsaved = {""};
    if (action == GUARD_STOP) run_save_finish(run, &unsaved);  // all ranks stop here: complete the checkpoint in progress
    return action != GUARD_STOP;
}

static StepRecord step_record(const Run *run, const PendingStep *pending, double step_ms) {
    int64_t step = pending->step;
    const PhaseSpan *phase = schedule_phase(&run->schedule, step - 1);
    double tokens = (double)(phase->rows_per_step * phase->T);
    double rate = tokens / (step_ms * 1e-3);
    double flops = run->flops_per_token[phase->index] * rate / run->launch.world;  // per rank
    // Unknown before a run bounded by time has measured its first step.
    int64_t total_steps = run->schedule.total_steps < SCHEDULE_OPEN_STEPS ? run->schedule.total_steps : 0;
    double spent = run->progress.seconds;
    double left = run->config.train_seconds > 0
                      ? run->config.train_seconds - spent
                      : (double)(run->schedule.total_steps - step) * (spent - run->resumed_seconds) /
                            (double)(step - run->resumed_step);
    return (StepRecord){.step = step,
                        .total_steps = total_steps,
                        .tokens = schedule_tokens_before(&run->schedule, step),
                        .loss = tree_sum_f64(pending->host->loss_sums, pending->micro_batches) * pending->loss_scale,
                        .lr = pending->lr,
                        .grad_norm = (double)pending->host->stats.norm,
                        .tokens_per_second = rate,
                        .peak_share = run->peak_flops > 0 ? flops / run->peak_flops : -1,
                        .step_ms = step_ms,
                        .data_wait_ms = pending->data_wait_ms,
                        .seconds_left = left > 0 ? left : 0,
                        .seconds = spent,
                        .skipped = pending->host->stats.skip != 0,
                        .phase = run->config.phase[phase->index].name};
}

OptimizerStep run_optimizer_step(const Run *run, double loss_scale) {
    int64_t step = run->progress.step;
    OptimizerStep out = {.t = step + 1,
                         .lr = schedule_lr(&run->schedule, step),
                         .lr_factor = schedule_lr_factor(&run->schedule, step),
                         .clip = {.max_norm = (float)run->config.grad_clip, .loss_scale = loss_scale},
                         .loss_sums = tensor_rows(run->model.loss_sums, 0, run->batch->micro_batches)};
    guard_bounds(&out.clip.skip_norm, &out.clip.skip_loss, &run->progress.guard, &run->schedule, out.t);
    return out;
}

bool run_rewind(Run *run, Error *err) {
    int64_t because = run->rewind_because;
    RunProgress before = run->progress;
    if (!run->be->synchronize(run->be, err) || !run_save_finish(run, err)) return false;
    run->reported = run->issued;  // results of later steps are discarded
    run->rewind_because = 0;
    char newest[CONFIG_PATH_BYTES + 64], line[300];
    if (!run_choose_checkpoint(run, "auto", newest, sizeof newest, err)) return false;
    bool ok = newest[0] != '\0' ||
              error_set(err, "%s no longer has a complete checkpoint to rewind to", run->config.out_dir);
    ok = ok && run_load(run, newest, err) &&
         guard_rewind(&run->progress, line, sizeof line, &before, because, err);
    ok = ok && hash_chain_resume(&run->chain, &run->progress, err);
    if (!run_agree(run, "rewind", ok, err)) return false;
    zero_send_weights(&run->zero);
    loader_set_skips(run->loader, run->progress.skip, run->progress.skip_count);
    loader_seek(run->loader, run->progress.step);
    run->phase = -1;
    logger_message(run->logger, "%s", line);
    return true;
}

bool run_check_step(Run *run, Error *err) {
    int64_t step = run->progress.step, every = run->config.compare_every;
    if (!hash_chain_link(&run->chain, step, &run->model, &run->optimizer, err)) return false;
    if (run->mesh.data.axis.world == 1 || run->config.zero == 3 || !is_due(step, every)) return true;
    for (int b = 0; b < run->model.part.buckets; ++b) zero_gather_weights(&run->zero, b);
    bool same = replicas_compare(&run->chain, step, &run->model, err);
    return run_agree(run, "compare the replicas", same, err);
}

void run_abort(Run *run, const Error *err) {
    if (run->control != NULL && !run->all_know) control_abort(run->control, err->message);
}

static void note_finished(const Run *run, PendingStep *pending) {
    pending->finished = now_seconds();
    run->mesh.data.comm->stats(run->mesh.data.comm, &pending->comm);
}

void run_step_issued(Run *run, double started, const OptimizerStep *step) {
    Backend *be = run->be;
    PendingStep *pending = &run->pending[run->issued % RUN_PENDING_STEPS];
    *pending = (PendingStep){.step = ++run->progress.step,
                             .micro_batches = run->batch->micro_batches,
                             .started = started,
                             .loss_scale = step->clip.loss_scale,
                             .lr = step->lr,
                             .skip_norm = step->clip.skip_norm,
                             .skip_loss = step->clip.skip_loss,
                             .data_wait_ms = run->batch->wait_ms,
                             .host = pending->host};
    const DownloadPiece results[] = {
        {pending->host->loss_sums, run->model.loss_sums.data, to_size(pending->micro_batches) * sizeof(double)},
        {&pending->host->stats, run->optimizer.stats, sizeof(GradStats)}};
    pending->read = be->download_begin(be, results, 2);
    be->after(be, pending->read);  // a few bytes, which the next step writes to
    ++run->issued;
    // A CPU has computed it by now; its result is read as late as on other devices.
    if (be->has_passed(be, pending->read)) note_finished(run, pending);
    run_save_copied(run);
}

// Adds the step and the checkpoint to resume from to the device's error.
static bool explain_failure(const Run *run, int64_t step, Error *err) {
    char *skipped, *newest = checkpoint_newest(run->config.out_dir, &skipped);
    free(skipped);
    error_prefix(err, "step %lld", (long long)step);
    size_t used = strlen(err->message);
    if (newest != NULL)
        snprintf(err->message + used, sizeof err->message - used,
                 "; the last complete checkpoint is %s: the same command resumes from it", newest);
    else
        snprintf(err->message + used, sizeof err->message - used, "; %s has no complete checkpoint",
                 run->config.out_dir);
    free(newest);
    return false;
}

// Known once a step has run attention; another shape, or the backward pass, may use another kernel.
static void report_attention(Run *run) {
    const char *now = run->be->attention_choice;
    if (strcmp(run->attention[0], now) == 0 || strcmp(run->attention[1], now) == 0) return;
    memcpy(run->attention[1], run->attention[0], sizeof run->attention[1]);
    snprintf(run->attention[0], sizeof run->attention[0], "%s", now);
    logger_message(run->logger, "attention: %s", now);
}

bool run_report_steps(Run *run, int64_t may_be_pending, Error *err) {
    Backend *be = run->be;
    while (run->reported < run->issued) {
        PendingStep *pending = &run->pending[run->reported % RUN_PENDING_STEPS];
        // All ranks must act on a result in the same step, so they read it in the same step.
        bool at_once = run->launch.world == 1 && be->has_passed(be, pending->read);
        if (run->issued - run->reported <= may_be_pending && !at_once) return true;
        if (!be->wait(be, pending->read, err)) return explain_failure(run, pending->step, err);
        ++run->reported;
        report_attention(run);
        if (pending->finished == 0) note_finished(run, pending);
        double began = fmax(pending->started, run->reported_at);
        run->reported_at = pending->finished;
        run->progress.seconds = run->resumed_seconds + pending->finished - run->started;
        StepRecord record = step_record(run, pending, (pending->finished - began) * 1e3);
        record.comm_ms = (pending->comm.busy_seconds - run->comm_reported.busy_seconds) * 1e3;
        record.comm_exposed_ms = (pending->comm.exposed_seconds - run->comm_reported.exposed_seconds) * 1e3;
        run->comm_reported = pending->comm;
        if (pending->step % run->config.log_every == 0 || record.skipped) {
            DeviceTelemetry device;
            be->telemetry(be, &device);
            record.clock_mhz = device.clock_mhz;
            record.power_watts = device.power_watts;
            record.temperature_celsius = device.temperature_celsius;
            record.device_memory_mib = (double)device.memory_used_bytes / 1048576.0;
            logger_step(run->logger, &record);
        }
        if (!guard_step(run, pending, record.loss, err)) return false;
        if (run->rewind_because > 0) return true;
    }
    return true;
}
