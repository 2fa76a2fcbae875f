// train_gpt.cu: the program. train_step and train_loop show all of training, top to bottom; the other commands are in
// llmc/command/, one file each. Host code only, in the common subset of C11 and CUDA C++: without nvcc it is built with
// `cc -x c`.
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/run/run.h"

// ---------------------------------------------------------------------------------------------------------------
// Ctrl-C: finish the step, save, exit 0. SIGTERM and SIGUSR1, which clusters send before they revoke a node: the same,
// and exit RUN_EXIT_REQUEUE. A signal to any rank stops all ranks. A second signal kills the process at once.

static volatile sig_atomic_t stop_signal = 0;

static void on_signal(int number) {
    stop_signal = number;
    signal(number, SIG_DFL);
}

// ---------------------------------------------------------------------------------------------------------------
// Training

// One optimizer step on run->batch. Returns false if the run must end with an error.
static bool train_step(Run *run, Error *err) {
    double started = now_seconds();
    Model *model = &run->model;
    const StepBatch *batch = run->batch;
    double loss_scale = run->weight_sum > 0 ? 1.0 / run->weight_sum : 0;

    // Gradients: += over this rank's micro-batches; zero reduces them over the ranks during the backward pass.
    model_begin_step(model);
    zero_begin_step(&run->zero, batch->micro_batches);
    for (int64_t i = 0; i < batch->micro_batches; ++i) {
        zero_begin_micro_batch(&run->zero, i);
        model_forward(model, &batch->batch[i], loss_scale, true);
        model_backward(model);
        hash_chain_add_batch(&run->chain, batch->step, &batch->batch[i]);
    }
    zero_finish_gradients(&run->zero);

    // Update: frozen parameters have no gradient; the device decides from norm and loss whether to skip the update.
    optimizer_freeze(&run->optimizer, model);
    zero_sum_squares(&run->zero, run->optimizer.sums);
    OptimizerStep step = run_optimizer_step(run, loss_scale);
    run_save_before_update(run);
    optimizer_update(&run->optimizer, model, &run->config, &step);
    zero_send_weights(&run->zero);

    // The device may still be computing: this step's results are logged while the next step runs.
    run_step_issued(run, started, &step);
    if (!run_check_step(run, err)) return false;
    return run_report_steps(run, RUN_PENDING_STEPS - 1, err);
}

// Per step: loader_next, forward, backward, reduce, update, log; when due: evaluate, sample, save. Returns false if the
// run ended with an error.
static bool train_loop(Run *run, Error *err) {
    const RunConfig *config = &run->config;
    int64_t saved_at = run->progress.step;
    if (run->progress.step == 0 && !run_evaluate(run, err)) return false;
    while (run_has_steps(run)) {
        run->batch = loader_next(run->loader, err);
        if (!run_begin_step(run, (int)stop_signal, err)) break;
        if (!train_step(run, err)) return false;
        int64_t step = run->progress.step;
        // The operations below need the step's results: wait for them.
        bool pause = is_due(step, config->val_every) || is_due(step, config->sample_every) ||
                     is_due(step, config->save_every) || step == run->schedule.total_steps;
        if (pause && !run_report_steps(run, 0, err)) return false;
        if (run->rewind_because > 0) {
            if (!run_rewind(run, err)) return false;
            saved_at = run->progress.step;
            continue;
        }
        if (is_due(step, config->val_every) && !run_evaluate(run, err)) return false;
        if (is_due(step, config->sample_every)) run_sample(run);
        if (is_due(step, config->save_every)) {
            if (!run_save(run, err)) return false;
            saved_at = step;
        }
    }
    // Save the completed steps, whatever ended the loop.
    Error unsaved = {""};
    Error *why = err->message[0] == '\0' ? err : &unsaved;
    if (!run_report_steps(run, 0, why)) return false;
    if (run->stop_signal != 0) {
        logger_message(run->logger, "%s: stopping after step %lld", strsignal(run->stop_signal),
                       (long long)run->progress.step);
    } else if (why == err) {
        if (!is_due(run->progress.step, config->val_every) && !run_evaluate(run, err)) return false;
        run_sample(run);
    }
    if (saved_at != run->progress.step && !run_save(run, why)) return false;
    if (!run_save_finish(run, why)) return false;
    run_report_ranks(run);
    return why == err;
}

static int command_train(int argc, char **argv) {
    RunConfig config;
    int status = command_read_config(&config, "train", argc, argv);
    if (status != OPTIONS_CONTINUE) return status;
    Error err = {""};
    Run run;
    bool ok = run_open(&run, &config, &err);
    if (ok) {
        signal(SIGINT, on_signal);
        signal(SIGTERM, on_signal);
        signal(SIGUSR1, on_signal);
        ok = train_loop(&run, &err);
    }
    bool requeue = ok && (run.stop_signal == SIGTERM || run.stop_signal == SIGUSR1);
    if (ok) run_print_summary(&run);
    // If ranks fail together, err is empty on all but one; run_abort then reports it to the other ranks.
    if (err.message[0] != '\0') command_fail(&err);
    if (!ok) run_abort(&run, &err);
    run_close(&run);
    return requeue ? RUN_EXIT_REQUEUE : ok ? 0 : 1;
}

// ---------------------------------------------------------------------------------------------------------------

int main(int argc, char **argv) {
    if (argc >= 2 && strcmp(argv[1], "train") == 0) return command_train(argc - 1, argv + 1);
    return command_main(argc, argv);
}
