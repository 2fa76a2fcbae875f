// commands.h: what train_gpt can do besides training: plan, sample, eval, ckpt, verify, help. Each takes its words,
// argv[0] being its name, and returns the exit code.
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

int command_plan(int argc, char **argv);
int command_sample(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_ckpt(int argc, char **argv);  // verify, inspect, diff, reshard, average, export, import
int command_verify(int argc, char **argv);
// Any of them; argv[1] is its name.
int command_main(int argc, char **argv);

#endif
