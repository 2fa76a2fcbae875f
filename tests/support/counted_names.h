// counted_names.h: the names of the counted operations.
#ifndef TESTS_COUNTED_NAMES_H
#define TESTS_COUNTED_NAMES_H

#include "llmc/backend/counting.h"

#define COUNTED_OP_NAME(op, name) name,
static const char *const COUNTED_OP_NAMES[COUNT_OPS] = {COUNTED_OPS(COUNTED_OP_NAME)};
#undef COUNTED_OP_NAME
#endif
