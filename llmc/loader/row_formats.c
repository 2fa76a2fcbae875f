// row_formats.c: the table of row formats: a new one is a file format_*.c and its line here. The table is a file of its own
// so that a test program can link another one.
#include "llmc/loader/row_format.h"

// The first one is the default.
#define FORMATS(ROW) \
    ROW(ROW_FORMAT_PLAIN)

#define DECLARED(format) extern const RowFormat format;
FORMATS(DECLARED)
#define LISTED(format) &format,
const RowFormat *const ROW_FORMATS[] = {FORMATS(LISTED) NULL};
