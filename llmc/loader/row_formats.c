// row_formats.c: the table of row formats, and nothing else: a test program that defines its own table is linked with
// that one instead.
#include "llmc/loader/row_format.h"

const RowFormat *const ROW_FORMATS[] = {
    &ROW_FORMAT_PLAIN,
    NULL,
};
