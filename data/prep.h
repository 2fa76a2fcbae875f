// prep.h: the commands of prep. Each parses its own options and returns an exit code: 0, 1 (failed) or 2 (wrong
// usage), with a sentence in err; only main prints it.
#ifndef DATA_PREP_H
#define DATA_PREP_H

#include "llmc/base/common.h"

enum { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2 };

int prep_train_tokenizer(int argc, char **argv, Error *err);
int prep_tokenize(int argc, char **argv, Error *err);
int prep_inspect(int argc, char **argv, Error *err);

#endif
