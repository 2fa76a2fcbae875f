// logger_text.c: see logger_text.h.
#include "llmc/log/logger_text.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/decimal.h"

// ---- growing text ----

static void text_reserve(Text *text, size_t more) {
    if (text->length + more + 1 <= text->capacity) return;
    text->capacity = 2 * (text->length + more + 1);
    text->data = xrealloc(text->data, text->capacity);
}

void text_put(Text *text, const char *more) {
    size_t length = strlen(more);
    text_reserve(text, length);
    memcpy(text->data + text->length, more, length + 1);
    text->length += length;
}

void text_putf(Text *text, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    int length = vsnprintf(NULL, 0, format, args);
    CHECK(length >= 0, "bad format '%s'", format);
    text_reserve(text, (size_t)length);
    vsnprintf(text->data + text->length, (size_t)length + 1, format, again);
    text->length += (size_t)length;
    va_end(again);
    va_end(args);
}

void text_free(Text *text) {
    free(text->data);
    *text = (Text){0};
}

// ---- JSON ----

void text_put_real(Text *text, const char *key, double value) {
    if (!isfinite(value)) {
        text_putf(text, ",\"%s\":null", key);
        return;
    }
    char digits[DECIMAL_BYTES];
    text_putf(text, ",\"%s\":%s", key, decimal_shortest(digits, value));
}

void text_put_brief(Text *text, const char *key, double value) {
    if (isfinite(value)) text_putf(text, ",\"%s\":%.6g", key, value);
    else text_putf(text, ",\"%s\":null", key);
}

// Bytes of the UTF-8 sequence at text, 0 if there is none (overlong forms and surrogates included).
static size_t utf8_length(const unsigned char *text) {
    if (text[0] < 0x80) return 1;
    size_t length = text[0] >= 0xf0 ? 4 : text[0] >= 0xe0 ? 3 : 2;
    if (text[0] < 0xc2 || text[0] > 0xf4) return 0;
    for (size_t i = 1; i < length; ++i)
        if ((text[i] & 0xc0) != 0x80) return 0;
    if (text[0] == 0xe0 && text[1] < 0xa0) return 0;
    if (text[0] == 0xed && text[1] > 0x9f) return 0;
    if (text[0] == 0xf0 && text[1] < 0x90) return 0;
    if (text[0] == 0xf4 && text[1] > 0x8f) return 0;
    return length;
}

char *text_make_utf8(const char *text) {
    Text out = {0};
    text_put(&out, "");
    for (const unsigned char *p = (const unsigned char *)text; *p != '\0';) {
        size_t length = utf8_length(p);
        bool control = (*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f;
        if (length == 0 || control) text_put(&out, "\xef\xbf\xbd");
        else text_putf(&out, "%.*s", (int)length, (const char *)p);
        p += length == 0 ? 1 : length;
    }
    return out.data;
}

void text_put_string(Text *text, const char *key, const char *value) {
    char *valid = text_make_utf8(value);
    text_putf(text, ",\"%s\":\"", key);
    for (const char *p = valid; *p != '\0'; ++p) {
        if (*p == '"' || *p == '\\') text_putf(text, "\\%c", *p);
        else if (*p == '\n') text_put(text, "\\n");
        else if (*p == '\t') text_put(text, "\\t");
        else text_putf(text, "%c", *p);
    }
    text_put(text, "\"");
    free(valid);
}

// ---- the progress line ----

static const char *const SUFFIX[] = {"", "k", "M", "G", "T", "P"};
enum { SUFFIX_COUNT = sizeof SUFFIX / sizeof SUFFIX[0] };

void format_tick(char *out, size_t out_bytes, double value, double step) {
    int thousands = 0;
    double unit = 1;
    while (thousands + 1 < SUFFIX_COUNT && fabs(value) >= 1000 * unit * (1 - 1e-9)) {
        unit *= 1000;
        ++thousands;
    }
    int decimals = 0;
    for (double rest = step / unit; decimals < 6 && fabs(rest - round(rest)) > 1e-6; rest *= 10) ++decimals;
    snprintf(out, out_bytes, "%.*f%s", decimals, value / unit, SUFFIX[thousands]);
}

void format_count(char *out, size_t out_bytes, double value) {
    int thousands = 0;
    while (fabs(value) >= 999.5 && thousands + 1 < SUFFIX_COUNT) {
        value /= 1000;
        ++thousands;
    }
    int decimals = thousands == 0 || fabs(value) >= 99.95 ? 0 : fabs(value) >= 9.995 ? 1 : 2;
    snprintf(out, out_bytes, "%.*f%s", decimals, value, SUFFIX[thousands]);
}

static void format_left(char *out, size_t out_bytes, double seconds) {
    long long s = (long long)(seconds + 0.5);
    if (s >= 86400) snprintf(out, out_bytes, "%lldd %02lldh left", s / 86400, s / 3600 % 24);
    else if (s >= 3600) snprintf(out, out_bytes, "%lld:%02lld:%02lld left", s / 3600, s / 60 % 60, s % 60);
    else snprintf(out, out_bytes, "%lld:%02lld left", s / 60, s % 60);
}

enum { PART_STEP, PART_LOSS, PART_VAL, PART_LR, PART_NORM, PART_SPEED, PART_PEAK, PART_LEFT, PART_COUNT };

static void format_parts(char part[PART_COUNT][48], const StepRecord *record, double val_loss) {
    const size_t bytes = sizeof part[0];
    char speed[16];
    if (record->total_steps > 0)
        snprintf(part[PART_STEP], bytes, "step %lld/%lld", (long long)record->step, (long long)record->total_steps);
    else snprintf(part[PART_STEP], bytes, "step %lld", (long long)record->step);
    snprintf(part[PART_LOSS], bytes, "loss %.4f%s", record->loss, record->skipped ? " (skipped)" : "");
    if (!isnan(val_loss)) snprintf(part[PART_VAL], bytes, "val %.4f", val_loss);
    snprintf(part[PART_LR], bytes, "lr %.1e", record->lr);
    snprintf(part[PART_NORM], bytes, "norm %.3g", record->grad_norm);
    format_count(speed, sizeof speed, record->tokens_per_second);
    snprintf(part[PART_SPEED], bytes, "%s tok/s", speed);
    if (record->peak_share >= 0) snprintf(part[PART_PEAK], bytes, "%.0f%% of peak", 100 * record->peak_share);
    if (record->seconds_left >= 0) format_left(part[PART_LEFT], bytes, record->seconds_left);
}

void progress_format(char *out, size_t out_bytes, const StepRecord *record, double val_loss, int columns) {
    static const int DROP_FIRST[] = {PART_LR, PART_NORM, PART_PEAK, PART_VAL, PART_SPEED, PART_LEFT, PART_LOSS};
    char part[PART_COUNT][48] = {{0}};
    format_parts(part, record, val_loss);
    for (size_t dropped = 0;; ++dropped) {
        size_t used = 0;
        out[0] = '\0';
        for (int i = 0; i < PART_COUNT; ++i) {
            if (part[i][0] == '\0' || used + 1 >= out_bytes) continue;
            int length = snprintf(out + used, out_bytes - used, "%s%s", used > 0 ? "  " : "", part[i]);
            used += (size_t)length;
        }
        if (used <= (size_t)(columns > 0 ? columns : 0) || dropped == sizeof DROP_FIRST / sizeof DROP_FIRST[0])
            return;
        part[DROP_FIRST[dropped]][0] = '\0';
    }
}
