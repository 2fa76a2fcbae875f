// commands.h: entry of the command room: the commands of train_gpt besides train (plan, sample, eval, ckpt, verify,
// help). Each takes its arguments, argv[0] is its name, and returns the exit code.
// Must not know kernels or plug-ins: a command opens devices through llmc/run.
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

int command_plan(int argc, char **argv);
int command_sample(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_ckpt(int argc, char **argv);  // verify, inspect, diff, reshard, average, export, import
int command_verify(int argc, char **argv);
// Runs the command named by argv[1]; prints help without one.
int command_main(int argc, char **argv);

#endif
