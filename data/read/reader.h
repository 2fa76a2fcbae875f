// reader.h: reads a list of inputs as a stream of chunks of about 1 MiB. Each chunk ends at the end of a document or
// record, or, inside a large document, where the caller's function allows a cut. Constant memory. Must not know
// tokenizers.
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
    DOCS_NONE    // the inputs are one stream without end-of-text tokens
} DocMode;
extern const Word DOC_WORDS[];

// A byte range of an input (see input_open), either all training or all held out.
typedef struct {
    const char *path;
    int64_t first, end;
    bool val;
} Segment;

typedef struct {
    const char *path;
    DocMode mode;  // never DOCS_AUTO
    bool val;
    bool starts;         // DOCS_FILE, DOCS_NONE: the document starts at the start of this chunk
    int64_t first_byte;  // offset of the segment in the file, for messages
    int64_t first_line;  // DOCS_JSONL: number of the first line in the segment, from 1
    uint8_t *text;
    int64_t bytes, capacity;
} Chunk;
void chunk_free(Chunk *chunk);

typedef struct Reader Reader;
// cut returns the length of the largest prefix after which a text may be cut, or 0, as tokenizer_safe_cut does. Keeps
// all pointers.
Reader *reader_new(const Segment *segments, int count, DocMode mode,
                   int64_t (*cut)(const void *context, const void *text, int64_t bytes), const void *cut_context);
void reader_free(Reader *reader);
// Reads the next chunk, or sets *end when there is none; chunk->text is reused. Errors: unreadable input, a record over
// 256 MiB.
bool reader_next(Reader *reader, Chunk *chunk, bool *end, Error *err);
int64_t reader_position(const Reader *reader);  // bytes of the files read so far (before decompression)

// The next document of a chunk, or for DOCS_JSONL the line that holds it; false after the last. *pos starts at 0.
bool chunk_next_document(const uint8_t **text, int64_t *bytes, const Chunk *chunk, int64_t *pos);

int64_t count_lines(const uint8_t *text, int64_t bytes);  // number of line ends in text

// Makes the last `fraction` of all bytes val, cut at the next boundary between records (for DOCS_FILE and DOCS_NONE:
// after the next line end). out has room for 2 * count. Returns the number of segments, or -1 on error: an input is not
// a regular uncompressed file, or one of the parts would be empty.
int segments_split(Segment *out, const Segment *segments, int count, DocMode mode, double fraction, Error *err);
DocMode doc_mode_of(DocMode mode, const char *path);  // resolves DOCS_AUTO

#endif
