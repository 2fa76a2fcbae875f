// decimal.c: see decimal.h. A decimal of at most 15 digits survives a round trip through a double, one of at most 6
// through a float: printed with that many digits, the shortest form is followed by zeros.
#include "llmc/base/decimal.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static int fewest_digits(double value, bool is_float) {
    char text[40];
    int digits = is_float ? 6 : 15;
    for (const int most = is_float ? 9 : 17;; ++digits) {
        snprintf(text, sizeof text, "%.*e", digits - 1, fabs(value));  // "d.ddde+xx"
        if (digits == most ||
            (is_float ? strtof(text, NULL) == (float)fabs(value) : strtod(text, NULL) == fabs(value)))
            break;
    }
    while (digits > 1 && text[digits] == '0') --digits;
    return digits;
}
int decimal_digits(double value) { return fewest_digits(value, false); }
int decimal_digits_f32(float value) { return fewest_digits((double)value, true); }

static const char *shortest(char *out, double value, bool is_float) {
    if (value == floor(value) && fabs(value) < 1e15) snprintf(out, DECIMAL_BYTES, "%.0f", value);
    else snprintf(out, DECIMAL_BYTES, "%.*g", fewest_digits(value, is_float), value);
    return out;
}
const char *decimal_shortest(char out[DECIMAL_BYTES], double value) { return shortest(out, value, false); }
const char *decimal_shortest_f32(char out[DECIMAL_BYTES], float value) { return shortest(out, (double)value, true); }
