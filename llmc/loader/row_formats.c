// row_formats.c: the table of row formats. It is a file of its own so that a test program can link another table.
#include "llmc/loader/row_format.h"

const RowFormat *const ROW_FORMATS[] = {
    &ROW_FORMAT_PLAIN,
    NULL,
};
