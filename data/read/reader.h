// reader.h: a list of inputs as a stream of chunks of about a MiB, each cut where documents or records end (or,
// inside one big document, where the caller says that text may be cut). Constant memory. Called by tokenize and
// train-tokenizer.
#ifndef DATA_READER_H
#define DATA_READER_H

#include "data/read/jsonl.h"
#include "llmc/base/common.h"
#include "llmc/base/words.h"

// What a document is.
typedef enum {
    DOCS_AUTO,   // JSONL for names that end in .jsonl or .ndjson (also with .gz or .zst), FILE for all others
    DOCS_FILE,   // a whole input
    DOCS_LINE,   // a line that is not empty
    DOCS_BLANK,  // lines up to one or more empty lines
    DOCS_JSONL,  // a text field of each line
    DOCS_NONE    // the inputs are one stream: no end-of-text tokens at all
} DocMode;
extern const Word DOC_WORDS[];

// A part of an input (see input_open), all of it train or val.
typedef struct {
    const char *path;
    int64_t first, end;
    bool val;
} Segment;

typedef struct {
    const char *path;
    DocMode mode;  // never AUTO
    bool val;
    bool starts;         // FILE, NONE: whether the document starts with this chunk
    int64_t first_byte;  // where the segment starts in the file, for messages
    int64_t first_line;  // JSONL: in the segment, from 1
    uint8_t *text;
    int64_t bytes, capacity;
} Chunk;
void chunk_free(Chunk *chunk);

typedef struct Reader Reader;
// cut gives the largest prefix of a text that may be cut off, or 0, as tokenizer_safe_cut. Keeps all pointers.
Reader *reader_new(const Segment *segments, int count, DocMode mode,
                   int64_t (*cut)(const void *context, const void *text, int64_t bytes), const void *cut_context);
void reader_free(Reader *reader);
// *end when there is no more; chunk->text is reused. Errors: unreadable input, a record over 256 MiB.
bool reader_next(Reader *reader, Chunk *chunk, bool *end, Error *err);
int64_t reader_position(const Reader *reader);  // bytes of the files read so far (compressed as they are)

// The documents of a chunk, one after another, for JSONL the lines that hold them; false after the last. *pos starts
// at 0.
bool chunk_next_document(const uint8_t **text, int64_t *bytes, const Chunk *chunk, int64_t *pos);

int64_t count_lines(const uint8_t *text, int64_t bytes);  // line ends in text

// Cuts off the last `fraction` of all bytes as val, at the next boundary between records (for FILE and NONE: after
// the next line end). out has room for 2 * count. Returns the number of segments, or -1 on error: an input that is
// not a plain file of known size, or one of the parts would be empty.
int segments_split(Segment *out, const Segment *segments, int count, DocMode mode, double fraction, Error *err);
DocMode doc_mode_of(DocMode mode, const char *path);  // resolves AUTO

#endif
