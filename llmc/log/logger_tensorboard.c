// logger_tensorboard.c: see logger_tensorboard.h. The formats are small and stable, so they are encoded here without
// protobuf or TensorFlow.
#include "llmc/log/logger_tensorboard.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    unsigned char *data;
    size_t count, capacity;
} Bytes;

struct EventWriter {
    FILE *file;
    int64_t step;
    Bytes summary, event, scratch;  // reused from event to event
};

// ---- bytes ----

static void bytes_put(Bytes *bytes, const void *data, size_t count) {
    if (bytes->count + count > bytes->capacity) {
        bytes->capacity = 2 * (bytes->count + count);
        bytes->data = xrealloc(bytes->data, bytes->capacity);
    }
    if (count > 0) memcpy(bytes->data + bytes->count, data, count);
    bytes->count += count;
}

static void bytes_put_le(Bytes *bytes, uint64_t value, int count) {
    for (int i = 0; i < count; ++i) bytes_put(bytes, &(unsigned char){(unsigned char)(value >> (8 * i))}, 1);
}

// CRC-32C (Castagnoli), bit by bit: fast enough, because events are small and few.
uint32_t crc32c(const void *bytes, size_t count) {
    const unsigned char *p = bytes;
    uint32_t crc = 0xffffffffu;
    for (size_t i = 0; i < count; ++i) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (0x82f63b78u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static uint32_t crc32c_masked(const void *bytes, size_t count) {
    uint32_t crc = crc32c(bytes, count);
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// ---- protocol buffers ----

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5 };

static void put_varint(Bytes *bytes, uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_put_le(bytes, (value & 0x7f) | 0x80, 1);
    bytes_put_le(bytes, value, 1);
}
static void put_key(Bytes *bytes, unsigned field, unsigned wire) { put_varint(bytes, field << 3 | wire); }
static void put_int(Bytes *bytes, unsigned field, int64_t value) {
    put_key(bytes, field, WIRE_VARINT);
    put_varint(bytes, (uint64_t)value);
}
static void put_double(Bytes *bytes, unsigned field, double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(bytes, field, WIRE_64);
    bytes_put_le(bytes, bits, 8);
}
static void put_float(Bytes *bytes, unsigned field, float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    put_key(bytes, field, WIRE_32);
    bytes_put_le(bytes, bits, 4);
}
static void put_bytes(Bytes *bytes, unsigned field, const void *data, size_t count) {
    put_key(bytes, field, WIRE_BYTES);
    put_varint(bytes, count);
    bytes_put(bytes, data, count);
}
static void put_string(Bytes *bytes, unsigned field, const char *text) {
    put_bytes(bytes, field, text, strlen(text));
}

// ---- events ----

// Event: wall_time = 1, step = 2, then one of file_version = 3, summary = 5, session_log = 7.
static void event_start(EventWriter *writer, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    writer->event.count = 0;
    put_double(&writer->event, 1, (double)now.tv_sec + (double)now.tv_nsec * 1e-9);
    put_int(&writer->event, 2, step);
}

static bool event_write(EventWriter *writer) {
    const Bytes *event = &writer->event;
    Bytes *record = &writer->scratch;
    record->count = 0;
    bytes_put_le(record, event->count, 8);
    bytes_put_le(record, crc32c_masked(record->data, 8), 4);
    bytes_put(record, event->data, event->count);
    bytes_put_le(record, crc32c_masked(event->data, event->count), 4);
    return fwrite(record->data, 1, record->count, writer->file) == record->count;
}

EventWriter *event_writer_open(const char *dir, int64_t first_step, Error *err) {
    char host[64] = "localhost";
    gethostname(host, sizeof host - 1);
    // The time comes first in the name because readers sort files by name.
    char *path = xasprintf("%s/events.out.tfevents.%010lld.%s.%ld", dir, (long long)time(NULL), host, (long)getpid());
    FILE *file = fopen(path, "ab");
    if (file == NULL) error_set(err, "%s: cannot create: %s", path, strerror(errno));
    free(path);
    if (file == NULL) return NULL;
    EventWriter *writer = xcalloc(1, sizeof *writer);
    writer->file = file;
    event_start(writer, 0);
    put_string(&writer->event, 3, "brain.Event:2");
    event_write(writer);
    // SessionLog { status = 1: START = 1 } makes readers discard events of this and later steps in earlier files.
    event_start(writer, first_step);
    put_bytes(&writer->event, 7, "\x08\x01", 2);
    event_write(writer);
    return writer;
}

void event_writer_begin(EventWriter *writer, int64_t step) {
    writer->step = step;
    writer->summary.count = 0;
}

// Summary: repeated Value = 1; Value: tag = 1, simple_value = 2.
void event_writer_add_scalar(EventWriter *writer, const char *tag, double value) {
    Bytes *one = &writer->scratch;
    one->count = 0;
    put_string(one, 1, tag);
    put_float(one, 2, (float)value);
    put_bytes(&writer->summary, 1, one->data, one->count);
}

// Value: tag = 1, tensor = 8 (dtype = 1: DT_STRING = 7, tensor_shape = 2: empty, string_val = 8),
// metadata = 9 (plugin_data = 1 (plugin_name = 1)).
void event_writer_add_text(EventWriter *writer, const char *tag, const char *text, size_t bytes) {
    Bytes tensor = {0};
    put_int(&tensor, 1, 7);
    put_bytes(&tensor, 2, NULL, 0);
    put_bytes(&tensor, 8, text, bytes);
    Bytes *one = &writer->scratch;
    one->count = 0;
    put_string(one, 1, tag);
    put_bytes(one, 8, tensor.data, tensor.count);
    put_bytes(one, 9, "\x0a\x06\x0a\x04text", 8);
    put_bytes(&writer->summary, 1, one->data, one->count);
    free(tensor.data);
}

bool event_writer_end(EventWriter *writer) {
    event_start(writer, writer->step);
    put_bytes(&writer->event, 5, writer->summary.data, writer->summary.count);
    return event_write(writer);
}

bool event_writer_flush(EventWriter *writer) { return fflush(writer->file) == 0; }

void event_writer_close(EventWriter *writer) {
    if (writer == NULL) return;
    fclose(writer->file);
    free(writer->summary.data);
    free(writer->event.data);
    free(writer->scratch.data);
    free(writer);
}
