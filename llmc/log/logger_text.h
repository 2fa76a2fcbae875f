// logger_text.h: the texts that the logger makes: JSON records and the progress line. Private to logger*.c.
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

// ,"key":value as JSON; numbers that are not finite become null.
void text_put_real(Text *text, const char *key, double value);         // reads back to the same double
void text_put_brief(Text *text, const char *key, double value);        // six digits
void text_put_string(Text *text, const char *key, const char *value);  // bytes that are not UTF-8 become U+FFFD

// A copy in which bytes that are not UTF-8, and control characters other than \n and \t, are U+FFFD. Caller frees.
char *text_make_utf8(const char *text);

// 1234567 as "1.23M".
void format_count(char *out, size_t out_bytes, double value);
// A tick of an axis: as few digits as tell it from its neighbours `step` away: "0", "2.5M", "20k".
void format_tick(char *out, size_t out_bytes, double value, double step);
// "step 120/500  loss 3.412  val 3.5  ..." within `columns`; the less important parts go first. val_loss NaN: none.
void progress_format(char *out, size_t out_bytes, const StepRecord *record, double val_loss, int columns);

#endif
