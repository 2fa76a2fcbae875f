// commands.h: what train_gpt can do besides training: plan, sample, eval, ckpt, verify, help. Only this file and main print
// and choose exit codes: 0 fine, 1 a failure, 2 a mistake on the command line or in the run file.
#ifndef LLMC_COMMANDS_H
#define LLMC_COMMANDS_H

#include "llmc/config/config.h"

#define COMMAND_GOES_ON (-1)

// Reads "COMMAND [run.conf] [key=value ...]" (argv[0] is the command). Returns COMMAND_GOES_ON, or the exit code
// after printing help, the resolved config (--print-config) or an error.
int command_read_config(RunConfig *config, const char *command, int argc, char **argv);
// Prints the error, returns 1.
int command_fail(const Error *err);
// Every command but train; argv[1] is its name.
int command_main(int argc, char **argv);
#endif
