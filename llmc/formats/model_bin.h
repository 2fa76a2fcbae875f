// model_bin.h: reads llm.c's model file (GPT-2 only); model_file.h has the writer. Private to this room.
#ifndef LLMC_MODEL_BIN_H
#define LLMC_MODEL_BIN_H

#include "llmc/formats/model_file.h"

bool model_bin_read_config(ModelConfig *out, const char *path, Error *err);
// Reads one parameter at a time, in any order.
typedef struct ModelBin ModelBin;
bool model_bin_open(ModelBin **out, const char *path, const ModelConfig *config, const ParamTable *params,
                    Error *err);
bool model_bin_read(ModelBin *bin, const ParamSpec *spec, float *values, Error *err);
void model_bin_close(ModelBin *bin);
#endif
