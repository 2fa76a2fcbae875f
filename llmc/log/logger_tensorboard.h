// logger_tensorboard.h: TensorBoard event files: TFRecord framing (length, masked CRC-32C, data, masked CRC-32C)
// around Event protocol buffers (tensorflow/core/util/event.proto), encoded here. Must not know training.
#ifndef LLMC_LOGGER_TENSORBOARD_H
#define LLMC_LOGGER_TENSORBOARD_H

#include "llmc/base/common.h"

typedef struct EventWriter EventWriter;

// Creates dir/events.out.tfevents.TIME.HOST.PID. Readers discard events of earlier files at first_step and later, so
// that a resumed run shows one curve. NULL and err when the file cannot be created.
EventWriter *event_writer_open(const char *dir, int64_t first_step, Error *err);
// One event: begin, any number of values, end.
void event_writer_begin(EventWriter *writer, int64_t step);
void event_writer_add_scalar(EventWriter *writer, const char *tag, double value);
void event_writer_add_text(EventWriter *writer, const char *tag, const char *text, size_t bytes);  // valid UTF-8
// end and flush return false when a write failed (see errno). Events are in the file after flush, or earlier.
bool event_writer_end(EventWriter *writer);
bool event_writer_flush(EventWriter *writer);
void event_writer_close(EventWriter *writer);

uint32_t crc32c(const void *bytes, size_t count);
#endif
