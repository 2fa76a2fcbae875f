// model_bin.h: llm.c's model file (GPT-2 only), the reading half; hf.h has the writer. Called by model_file.c alone.
#ifndef LLMC_MODEL_BIN_H
#define LLMC_MODEL_BIN_H

#include "llmc/formats/model_file.h"

bool model_bin_read_config(ModelConfig *out, const char *path, Error *err);
// For reading parameter by parameter, in any order.
typedef struct ModelBin ModelBin;
bool model_bin_open(ModelBin **out, const char *path, const ModelConfig *config, const ParamTable *params,
                    Error *err);
bool model_bin_read(ModelBin *bin, const ParamSpec *spec, float *values, Error *err);
void model_bin_close(ModelBin *bin);
#endif
