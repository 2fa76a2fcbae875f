// command_verify.h: train_gpt verify A B.
#ifndef LLMC_COMMAND_VERIFY_H
#define LLMC_COMMAND_VERIFY_H

int command_verify(int argc, char **argv);

#endif
