// fuzz_file.h: a temporary directory for a fuzz target's input, under the name that the parser expects.
#ifndef TESTS_FUZZ_FILE_H
#define TESTS_FUZZ_FILE_H

#include <stddef.h>
#include <stdint.h>

// The directory of this process, removed at exit.
const char *fuzz_dir(void);
// Writes the bytes as fuzz_dir()/name and returns that path, valid until the next call with another name.
const char *fuzz_file(const char *name, const uint8_t *data, size_t bytes);

#endif
