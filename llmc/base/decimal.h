// decimal.h: the shortest decimals that read back as the same number, for human-readable files.
#ifndef LLMC_DECIMAL_H
#define LLMC_DECIMAL_H

#define DECIMAL_BYTES 32

// The fewest significant digits with which a finite, normal number reads back bit for bit; at most 17 and 9.
int decimal_digits(double value);
int decimal_digits_f32(float value);  // reads back as a float
// Such a decimal of a finite number: whole numbers below 1e15 as "100000", all others as %g writes them. Returns out.
const char *decimal_shortest(char out[DECIMAL_BYTES], double value);
const char *decimal_shortest_f32(char out[DECIMAL_BYTES], float value);

#endif
