// logger_text.h: formats the logger's text: JSON records and the progress line. Private to this room.
#ifndef LLMC_LOGGER_TEXT_H
#define LLMC_LOGGER_TEXT_H

#include "llmc/log/logger.h"

typedef struct {
    char *data;  // NUL-terminated
    size_t length, capacity;
} Text;

void text_put(Text *text, const char *more);
void text_putf(Text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void text_free(Text *text);

// Appends ,"key":value as JSON; non-finite numbers become null.
void text_put_real(Text *text, const char *key, double value);         // reads back to the same double
void text_put_brief(Text *text, const char *key, double value);        // six significant digits
void text_put_string(Text *text, const char *key, const char *value);  // bytes that are not UTF-8 become U+FFFD

// A copy with U+FFFD in place of bytes that are not UTF-8 and of control characters except \n and \t. Caller frees.
char *text_make_utf8(const char *text);

// 1234567 as "1.23M".
void format_count(char *out, size_t out_bytes, double value);
// The label of an axis tick, with just enough digits to differ from the ticks `step` away: "0", "2.5M", "20k".
void format_tick(char *out, size_t out_bytes, double value, double step);
// "step 120/500  loss 3.412  val 3.5  ..." of at most `columns` characters; less important parts are omitted first.
// val_loss NaN: none.
void progress_format(char *out, size_t out_bytes, const StepRecord *record, double val_loss, int columns);

#endif
