// command_ckpt.h: train_gpt ckpt verify|inspect|diff|reshard|average|export|import.
#ifndef LLMC_COMMAND_CKPT_H
#define LLMC_COMMAND_CKPT_H

int command_ckpt(int argc, char **argv);

#endif
