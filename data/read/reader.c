// reader.c: see reader.h.
#include "data/read/reader.h"

#include <stdlib.h>
#include <string.h>

#include "data/read/input.h"

enum { CHUNK_BYTES = 1 << 20, MAX_RECORD_BYTES = 1 << 28, SPLIT_SEARCH_BYTES = 1 << 16 };

struct Reader {
    const Segment *segments;
    int count, next;
    DocMode wanted;
    int64_t (*cut)(const void *context, const void *text, int64_t bytes);
    const void *cut_context;
    Input *input;  // of segments[next - 1], or NULL
    bool starts;   // no chunk of that segment was returned yet
    int64_t line;
    TextBuffer carry;    // bytes read after the last cut
    int64_t done_bytes;  // of closed inputs
};

static bool ends_with(const char *text, size_t length, const char *end) {
    size_t end_length = strlen(end);
    return length >= end_length && memcmp(text + length - end_length, end, end_length) == 0;
}

const Word DOC_WORDS[] = {{DOCS_AUTO, "auto"},
                          {DOCS_FILE, "file"},
                          {DOCS_LINE, "line"},
                          {DOCS_BLANK, "blank"},
                          {DOCS_JSONL, "jsonl"},
                          {DOCS_NONE, "none"},
                          {0, NULL}};

DocMode doc_mode_of(DocMode mode, const char *path) {
    if (mode != DOCS_AUTO) return mode;
    size_t length = strlen(path);
    if (ends_with(path, length, ".gz")) length -= 3;
    else if (ends_with(path, length, ".zst")) length -= 4;
    return ends_with(path, length, ".jsonl") || ends_with(path, length, ".ndjson") ? DOCS_JSONL : DOCS_FILE;
}

void chunk_free(Chunk *chunk) {
    free(chunk->text);
    *chunk = (Chunk){0};
}

Reader *reader_new(const Segment *segments, int count, DocMode mode,
                   int64_t (*cut)(const void *context, const void *text, int64_t bytes), const void *cut_context) {
    Reader *reader = xcalloc(1, sizeof *reader);
    *reader = (Reader){.segments = segments, .count = count, .wanted = mode, .cut = cut, .cut_context = cut_context};
    return reader;
}

void reader_free(Reader *reader) {
    if (reader == NULL) return;
    input_close(reader->input);
    text_buffer_free(&reader->carry);
    free(reader);
}

int64_t reader_position(const Reader *reader) {
    if (reader->input == NULL) return reader->done_bytes;
    return reader->done_bytes + input_position(reader->input) - reader->segments[reader->next - 1].first;
}

// Whether text[pos - 1] ends an empty line.
static bool ends_empty_line(const uint8_t *text, int64_t pos) {
    if (pos < 2 || text[pos - 1] != '\n') return false;
    return text[pos - 2] == '\n' || (pos >= 3 && text[pos - 2] == '\r' && text[pos - 3] == '\n');
}

// The last offset in text[0, bytes) where a record ends, or 0.
static int64_t find_cut(const Reader *reader, DocMode mode, const uint8_t *text, int64_t bytes) {
    if (mode == DOCS_FILE || mode == DOCS_NONE) return reader->cut(reader->cut_context, text, bytes);
    if (mode == DOCS_BLANK) {
        while (bytes > 0 && !ends_empty_line(text, bytes)) --bytes;
        return bytes;
    }
    const uint8_t *newline = memrchr(text, '\n', to_size(bytes));
    return newline == NULL ? 0 : newline - text + 1;
}

// Reads until the chunk holds at least one whole record, and 1 MiB if the segment has that much. *at_end: the segment
// ended.
static bool read_records(Reader *reader, Chunk *chunk, bool *at_end, Error *err) {
    chunk->bytes = 0;
    for (int64_t target = CHUNK_BYTES;; target *= 2) {
        target = max_i64(target, reader->carry.count + 1);
        if (chunk->capacity < target) {
            chunk->text = xrealloc(chunk->text, to_size(target));
            chunk->capacity = target;
        }
        if (reader->carry.count > 0) memcpy(chunk->text, reader->carry.bytes, to_size(reader->carry.count));
        chunk->bytes += reader->carry.count;
        reader->carry.count = 0;
        int64_t wanted = target - chunk->bytes;
        int64_t got = input_read(chunk->text + chunk->bytes, reader->input, wanted, err);
        if (got < 0) return false;
        chunk->bytes += got;
        *at_end = got < wanted;
        if (*at_end) return true;
        int64_t cut = find_cut(reader, chunk->mode, chunk->text, chunk->bytes);
        if (cut > 0) {
            text_buffer_append(&reader->carry, chunk->text + cut, chunk->bytes - cut);
            chunk->bytes = cut;
            return true;
        }
        if (target >= MAX_RECORD_BYTES)
            return error_set(err, "%s: expected documents of at most %d MiB that end at %s, found a longer one",
                             chunk->path, MAX_RECORD_BYTES >> 20,
                             chunk->mode == DOCS_BLANK ? "empty lines" : "line ends");
    }
}

int64_t count_lines(const uint8_t *text, int64_t bytes) {
    int64_t count = 0;
    for (const uint8_t *at = text, *end = text + bytes;
         at < end && (at = memchr(at, '\n', (size_t)(end - at))) != NULL; ++at)
        ++count;
    return count;
}

bool reader_next(Reader *reader, Chunk *chunk, bool *end, Error *err) {
    for (;;) {
        if (reader->input == NULL) {
            *end = reader->next == reader->count;
            if (*end) return true;
            const Segment *opened = &reader->segments[reader->next];
            reader->input = input_open(opened->path, opened->first, opened->end, err);
            if (reader->input == NULL) return false;
            ++reader->next;
            reader->starts = true;
            reader->line = 1;
        }
        const Segment *segment = &reader->segments[reader->next - 1];
        chunk->path = segment->path;
        chunk->mode = doc_mode_of(reader->wanted, segment->path);
        chunk->val = segment->val;
        chunk->starts = reader->starts;
        chunk->first_byte = segment->first;
        chunk->first_line = reader->line;
        bool at_end;
        if (!read_records(reader, chunk, &at_end, err)) return false;
        if (at_end) {
            reader->done_bytes = reader_position(reader);
            input_close(reader->input);
            reader->input = NULL;
        }
        if (chunk->bytes == 0) continue;
        reader->starts = false;
        if (chunk->mode == DOCS_JSONL) reader->line += count_lines(chunk->text, chunk->bytes);
        return true;
    }
}

static bool is_empty_line(const Chunk *chunk, int64_t pos) {
    if (pos < chunk->bytes && chunk->text[pos] == '\r') ++pos;
    return pos == chunk->bytes || chunk->text[pos] == '\n';
}

bool chunk_next_document(const uint8_t **text, int64_t *bytes, const Chunk *chunk, int64_t *pos) {
    if (chunk->mode == DOCS_FILE || chunk->mode == DOCS_NONE) {
        *text = chunk->text;
        *bytes = chunk->bytes;
        return (*pos)++ == 0;
    }
    int64_t start = *pos, end;
    while (start < chunk->bytes && (chunk->text[start] == '\n' || chunk->text[start] == '\r')) ++start;
    if (start == chunk->bytes) return false;
    for (end = start;; ++end) {
        const uint8_t *newline = memchr(chunk->text + end, '\n', to_size(chunk->bytes - end));
        end = newline == NULL ? chunk->bytes : newline - chunk->text;
        if (end == chunk->bytes || chunk->mode != DOCS_BLANK || is_empty_line(chunk, end + 1)) break;
    }
    *pos = end;
    while (end > start && chunk->text[end - 1] == '\r') --end;
    *text = chunk->text + start;
    *bytes = end - start;
    return true;
}

// ---- splitting off the held-out part ----

// The first offset >= `offset` where a record may end; the end of the file when there is none.
static bool find_boundary(int64_t *boundary, const Segment *segment, DocMode mode, int64_t offset, Error *err) {
    enum { BEFORE = 3 };  // bytes before `offset` needed to detect an empty line
    int64_t first = max_i64(offset - BEFORE, 0), pos = offset - first;
    bool anywhere = mode == DOCS_FILE || mode == DOCS_NONE;
    Input *input = input_open(segment->path, first, segment->end, err);
    if (input == NULL) return false;
    TextBuffer seen = {0};
    uint8_t *block = xmalloc(SPLIT_SEARCH_BYTES);
    bool found = offset == 0;
    int64_t got = 0;
    while (!found && (got = input_read(block, input, SPLIT_SEARCH_BYTES, err)) > 0) {
        text_buffer_append(&seen, block, got);
        for (; !found && pos <= seen.count; ++pos)
            found = pos > 0 && (mode == DOCS_BLANK ? ends_empty_line(seen.bytes, pos) : seen.bytes[pos - 1] == '\n');
        if (!found && anywhere) {  // no line end in this block: cut between two characters
            for (pos = offset - first; pos < seen.count && (seen.bytes[pos] & 0xC0) == 0x80; ++pos) {
            }
            found = true;
            ++pos;
        }
        if (seen.count > MAX_RECORD_BYTES) break;
    }
    *boundary = offset == 0 ? 0 : found ? first + pos - 1 : segment->end;
    free(block);
    text_buffer_free(&seen);
    input_close(input);
    return got >= 0;
}

int segments_split(Segment *out, const Segment *segments, int count, DocMode mode, double fraction, Error *err) {
    int64_t total = 0, start = 0;
    for (int i = 0; i < count; ++i) {
        int64_t bytes = input_plain_bytes(segments[i].path);
        if (bytes < 0) {
            error_set(
                err, "%s: --val-fraction needs regular uncompressed files; use --val-docs-every for other inputs",
                segments[i].path);
            return -1;
        }
        total += bytes;
    }
    int64_t train = total - (int64_t)((double)total * fraction), train_bytes = 0;
    int made = 0;
    for (int i = 0; i < count; ++i) {
        int64_t bytes = input_plain_bytes(segments[i].path), boundary = 0;
        Segment whole = {segments[i].path, 0, bytes, false};
        if (start + bytes <= train) boundary = bytes;
        else if (start < train &&
                 !find_boundary(&boundary, &whole, doc_mode_of(mode, whole.path), train - start, err))
            return -1;
        if (boundary > 0) out[made++] = (Segment){whole.path, 0, boundary, false};
        if (boundary < bytes) out[made++] = (Segment){whole.path, boundary, bytes, true};
        train_bytes += boundary;
        start += bytes;
    }
    if (train_bytes == 0 || train_bytes == total) {
        error_set(err, "--val-fraction %g of %lld bytes leaves no text for %s", fraction, (long long)total,
                  train_bytes == 0 ? "training" : "validation");
        return -1;
    }
    return made;
}
