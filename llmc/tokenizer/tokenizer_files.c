// tokenizer_files.c: loaders of the vocabularies other than tokenizer.json: GPT-2's encoder.json with vocab.bpe,
// tiktoken's rank files, llama2.c's tokenizer.bin. All input is untrusted.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json.h"
#include "llmc/tokenizer/tokenizer_impl.h"
#include "llmc/tokenizer/unicode.h"

// ---- GPT-2's printable bytes: Latin-1's printable bytes map to themselves, the others to 256, 257, ... ----

static uint32_t byte_level_char(int byte) {
    if (byte <= 32) return (uint32_t)(256 + byte);
    if (byte >= 127 && byte <= 160) return (uint32_t)(256 + 33 + byte - 127);
    return byte == 173 ? 256 + 67 : (uint32_t)byte;
}

static int byte_level_byte(uint32_t code) {
    if (code >= 256 && code < 256 + 33) return (int)code - 256;
    if (code >= 256 + 33 && code < 256 + 67) return (int)code - 256 - 33 + 127;
    if (code == 256 + 67) return 173;
    return code < 256 && byte_level_char((int)code) == code ? (int)code : -1;
}

// The inverse of byte_level_encode. out has room for strlen(text) bytes; returns the number of bytes, or -1 if the text has
// other characters.
static int64_t byte_level_decode(uint8_t *out, const char *text) {
    const uint8_t *bytes = (const uint8_t *)text;
    int64_t length = (int64_t)strlen(text), count = 0;
    for (int64_t pos = 0; pos < length;) {
        uint32_t code;
        pos += utf8_decode(bytes + pos, length - pos, &code);
        int byte = code == UTF8_INVALID ? -1 : byte_level_byte(code);
        if (byte < 0) return -1;
        out[count++] = (uint8_t)byte;
    }
    return count;
}

void byte_level_encode(char *out, const uint8_t *bytes, int64_t count) {
    for (int64_t i = 0; i < count; ++i) out += utf8_encode((uint8_t *)out, byte_level_char(bytes[i]));
    *out = '\0';
}

// ---- encoder.json and vocab.bpe ----

bool tokenizer_add_vocab_entry(Tokenizer *t, const cJSON *entry, Error *err) {
    size_t length = strlen(entry->string);
    int64_t id;
    if (!json_as_i64(entry, &id))
        return error_set(err, "the id of the token \"%.40s\" is not a whole number", entry->string);
    uint8_t *bytes = xmalloc(length + 1);
    int64_t count = byte_level_decode(bytes, entry->string);
    bool ok = count < 0
                  ? tokenizer_add_token(t, id, (const uint8_t *)entry->string, (int64_t)length, TOKEN_SPECIAL, err)
                  : tokenizer_add_token(t, id, bytes, count, TOKEN_NORMAL, err);
    free(bytes);
    return ok;
}

static int32_t find_byte_level(const Tokenizer *t, const char *text) {
    uint8_t bytes[TOKENIZER_MAX_TOKEN_BYTES];
    size_t length = strlen(text);
    if (length == 0 || length > sizeof bytes) return -1;
    int64_t count = byte_level_decode(bytes, text);
    return count < 0 ? -1 : tokenizer_find_token(t, bytes, count);
}

bool tokenizer_add_merge_texts(Tokenizer *t, const char *left, const char *right, Error *err) {
    int32_t a = find_byte_level(t, left), b = find_byte_level(t, right);
    if (a < 0 || b < 0)
        return error_set(err, "merge %d: \"%.60s\" is not a token", t->merge_count, a < 0 ? left : right);
    return tokenizer_add_merge(t, a, b, err);
}

bool tokenizer_add_merge_line(Tokenizer *t, const char *line, Error *err) {
    const char *space = strchr(line, ' ');
    if (space == NULL || strchr(space + 1, ' ') != NULL)
        return error_set(err, "merge %d: expected two tokens with a space between them, found \"%.60s\"",
                         t->merge_count, line);
    char *left = xasprintf("%.*s", (int)min_i64(space - line, INT32_MAX), line);
    bool ok = tokenizer_add_merge_texts(t, left, space + 1, err);
    free(left);
    return ok;
}

// The next line of a NUL-terminated text, without the newline; NULL at the end.
static char *next_line(char **cursor) {
    char *line = *cursor;
    if (*line == '\0') return NULL;
    char *end = strchr(line, '\n');
    *cursor = end == NULL ? line + strlen(line) : end + 1;
    if (end == NULL) end = *cursor;
    if (end > line && end[-1] == '\r') --end;
    *end = '\0';
    return line;
}

static bool read_text(const char *path, char **text, Error *err) {
    size_t bytes;
    if (!file_read_all(path, TOKENIZER_MAX_FILE_BYTES, text, &bytes, err)) return false;
    if (strlen(*text) == bytes) return true;
    free(*text);
    return error_set(err, "%s: expected text, found a zero byte", path);
}

static bool load_merges(Tokenizer *t, const char *path, Error *err) {
    char *text;
    if (!read_text(path, &text, err)) return false;
    char *cursor = text, *line;
    bool ok = true;
    for (int64_t number = 1; ok && (line = next_line(&cursor)) != NULL; ++number) {
        if (line[0] == '\0' || (number == 1 && strncmp(line, "#version", 8) == 0)) continue;
        ok = tokenizer_add_merge_line(t, line, err) || error_prefix(err, "%s: line %lld", path, (long long)number);
    }
    free(text);
    return ok;
}

// These files do not mark special tokens: they are the tokens of several bytes that no merge produces.
static void make_unmerged_special(Tokenizer *t) {
    bool *merged = xcalloc((size_t)t->vocab, sizeof *merged);
    for (int32_t i = 0; i < t->merge_count; ++i) merged[t->merges[i].result] = true;
    for (int32_t id = 0; id < t->vocab; ++id)
        if (t->tokens[id].kind == TOKEN_NORMAL && t->tokens[id].bytes > 1 && !merged[id])
            tokenizer_make_special(t, id);
    free(merged);
}

bool tokenizer_load_gpt2(Tokenizer **out, const char *vocab_path, const char *merges_path, Error *err) {
    cJSON *vocab = json_parse_file(vocab_path, TOKENIZER_MAX_FILE_BYTES, err);
    if (vocab == NULL) return false;
    Tokenizer *t = tokenizer_new(SPLIT_GPT2);
    bool ok = true;
    for (const cJSON *entry = vocab->child; ok && entry != NULL; entry = entry->next)
        ok = tokenizer_add_vocab_entry(t, entry, err) || error_prefix(err, "%s", vocab_path);
    cJSON_Delete(vocab);
    ok = ok && load_merges(t, merges_path, err);
    if (ok) {
        make_unmerged_special(t);
        ok = tokenizer_seal(t, err) || error_prefix(err, "%s", vocab_path);
    }
    if (ok) *out = t;
    else tokenizer_free(t);
    return ok;
}

// ---- tiktoken's rank files, one token per line: base64(bytes), space, id ----

typedef struct {
    const char *stem;
    SplitPattern pattern;
    struct {
        const char *name;
        int32_t id;
    } specials[6];
} TiktokenKind;
static const TiktokenKind TIKTOKEN_KINDS[] = {
    {"r50k_base", SPLIT_GPT2, {{END_OF_TEXT, 50256}}},
    {"gpt2", SPLIT_GPT2, {{END_OF_TEXT, 50256}}},
    {"p50k_base", SPLIT_GPT2, {{END_OF_TEXT, 50256}}},
    {"cl100k_base",
     SPLIT_CL100K,
     {{END_OF_TEXT, 100257},
      {"<|fim_prefix|>", 100258},
      {"<|fim_middle|>", 100259},
      {"<|fim_suffix|>", 100260},
      {"<|endofprompt|>", 100276}}},
};

// Decodes padded base64; returns the bytes, or -1 if malformed. out has room for 3/4 of length.
static int64_t base64_decode(uint8_t *out, const char *text, size_t length) {
    static const char DIGITS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    if (length == 0 || length % 4 != 0) return -1;
    size_t padding = text[length - 1] == '=' ? 1 + (text[length - 2] == '=') : 0;
    int64_t count = 0;
    uint32_t bits = 0;
    for (size_t i = 0; i < length - padding; ++i) {
        const char *digit = memchr(DIGITS, text[i], 64);
        if (digit == NULL) return -1;
        bits = bits << 6 | (uint32_t)(digit - DIGITS);
        if (i % 4 != 0) out[count++] = (uint8_t)(bits >> (6 - 2 * (i % 4)));
    }
    return count;
}

static bool add_tiktoken_line(Tokenizer *t, char *line, Error *err) {
    char *space = strchr(line, ' ');
    uint8_t bytes[TOKENIZER_MAX_TOKEN_BYTES];
    int64_t id, count = -1;
    if (space != NULL && (size_t)(space - line) / 4 * 3 <= sizeof bytes)
        count = base64_decode(bytes, line, (size_t)(space - line));
    if (count < 0 || !parse_i64(space + 1, &id))
        return error_set(err, "expected base64, a space and an id, found \"%.60s\"", line);
    return tokenizer_add_token(t, id, bytes, count, TOKEN_NORMAL, err);
}

// tiktoken stores no merges: any two neighbours that form a token merge, the lowest id first. If ids are in merge
// order, this equals one merge per token: of the two parts that the merges of lower ids leave of its bytes. A token
// that they do not reduce to two parts matches as a whole piece only.
static bool recover_merges(Tokenizer *t, Error *err) {
    int32_t symbols[TOKENIZER_MAX_TOKEN_BYTES];
    for (int32_t id = 0; id < t->vocab; ++id) {
        const Token *token = &t->tokens[id];
        if (token->kind != TOKEN_NORMAL || token->bytes == 1) continue;
        for (int32_t i = 0; i < token->bytes; ++i) {
            symbols[i] = t->byte_ids[t->bytes[token->offset + i]];
            if (symbols[i] < 0) return error_set(err, "no token for the byte 0x%02X", t->bytes[token->offset + i]);
        }
        if (tokenizer_merge_symbols(t, symbols, token->bytes) != 2) t->whole_pieces = true;
        else if (!tokenizer_add_merge(t, symbols[0], symbols[1], err)) return false;
    }
    return true;
}

bool tokenizer_load_tiktoken(Tokenizer **out, const char *path, Error *err) {
    const char *slash = strrchr(path, '/'), *stem = slash == NULL ? path : slash + 1;
    const TiktokenKind *kind = NULL;
    for (size_t i = 0; i < sizeof TIKTOKEN_KINDS / sizeof TIKTOKEN_KINDS[0] && kind == NULL; ++i) {
        size_t length = strlen(TIKTOKEN_KINDS[i].stem);
        if (strncmp(stem, TIKTOKEN_KINDS[i].stem, length) == 0 && stem[length] == '.') kind = &TIKTOKEN_KINDS[i];
    }
    if (kind == NULL)
        return error_set(err,
                         "%s: the file name must select the split pattern, which the file does not hold: expected r50k_base, "
                         "p50k_base, gpt2 or cl100k_base.tiktoken",
                         path);
    char *text;
    if (!read_text(path, &text, err)) return false;
    Tokenizer *t = tokenizer_new(kind->pattern);
    char *cursor = text, *line;
    bool ok = true;
    for (int64_t number = 1; ok && (line = next_line(&cursor)) != NULL; ++number)
        ok = line[0] == '\0' || add_tiktoken_line(t, line, err) ||
             error_prefix(err, "%s: line %lld", path, (long long)number);
    free(text);
    for (int i = 0; ok && kind->specials[i].name != NULL; ++i) {
        const char *name = kind->specials[i].name;
        ok = tokenizer_add_token(t, kind->specials[i].id, (const uint8_t *)name, (int64_t)strlen(name), TOKEN_SPECIAL,
                                 err) ||
             error_prefix(err, "%s", path);
    }
    ok = ok && ((recover_merges(t, err) && tokenizer_seal(t, err)) || error_prefix(err, "%s", path));
    if (ok) *out = t;
    else tokenizer_free(t);
    return ok;
}

// ---- llama2.c's tokenizer.bin: int32 longest token; for each id float32 score, int32 length, bytes ----

enum { LLAMA2C_MAX_TOKEN_BYTES = 256, LLAMA2C_FIRST_BYTE = 3, LLAMA2C_BOS = 1 };

static int compare_floats_down(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x < y) - (x > y);
}

// Any two neighbours that form a token merge, the best score first, the leftmost of equal scores. So every split of
// every token is a pair with the rank of its score.
static void add_scored_pairs(Tokenizer *t, const float *scores) {
    float *sorted = xmalloc((size_t)t->vocab * sizeof *sorted);
    memcpy(sorted, scores, (size_t)t->vocab * sizeof *sorted);
    qsort(sorted, (size_t)t->vocab, sizeof *sorted, compare_floats_down);
    for (int32_t id = LLAMA2C_FIRST_BYTE + 256; id < t->vocab; ++id) {
        int32_t below = 0, above = t->vocab;  // rank: the number of better scores
        while (below < above) {
            int32_t middle = below + (above - below) / 2;
            if (sorted[middle] > scores[id]) below = middle + 1;
            else above = middle;
        }
        const uint8_t *bytes = t->bytes + t->tokens[id].offset;
        for (int32_t cut = 1; cut < t->tokens[id].bytes; ++cut) {
            int32_t left = tokenizer_find_token(t, bytes, cut);
            int32_t right = tokenizer_find_token(t, bytes + cut, t->tokens[id].bytes - cut);
            if (left >= 0 && right >= 0) tokenizer_add_pair(t, left, right, below, id);
        }
    }
    free(sorted);
}

static bool add_llama2c_token(Tokenizer *t, int32_t id, const uint8_t *bytes, int32_t count, Error *err) {
    static const char *const CONTROL[] = {"<unk>", "<s>", "</s>"};
    if (id < LLAMA2C_FIRST_BYTE)
        return tokenizer_add_token(t, id, (const uint8_t *)CONTROL[id], (int64_t)strlen(CONTROL[id]), TOKEN_SPECIAL,
                                   err);
    int byte = id - LLAMA2C_FIRST_BYTE;
    if (byte < 256) {
        t->byte_ids[byte] = id;
        return tokenizer_add_token(t, id, (uint8_t[]){(uint8_t)byte}, 1, TOKEN_BYTE, err);
    }
    for (int32_t i = 1; i < count; ++i)
        if (bytes[i] == ' ' && bytes[i - 1] != ' ')
            return error_set(err, "token %d has a space inside; such vocabularies are not supported", id);
    int32_t kept = count == 1 ? t->byte_ids[bytes[0]] : 0;
    bool ok = tokenizer_add_token(t, id, bytes, count, TOKEN_NORMAL, err);
    if (count == 1) t->byte_ids[bytes[0]] = kept;  // a byte keeps its own id; characters are looked up first
    return ok;
}

bool tokenizer_load_llama2c(Tokenizer **out, const char *path, Error *err) {
    char *file;
    size_t file_bytes, pos = 4;
    if (!file_read_all(path, TOKENIZER_MAX_FILE_BYTES, &file, &file_bytes, err)) return false;
    Tokenizer *t = tokenizer_new(SPLIT_SPACES);
    t->llama2c = true;
    t->original = file;
    t->original_bytes = file_bytes;
    t->eot = LLAMA2C_BOS;  // llama2.c begins each document with <s> and stops sampling at it
    float *scores = xmalloc((file_bytes / 8 + 1) * sizeof *scores);
    bool ok = file_bytes > 4;
    if (!ok) error_set(err, "%s: expected a llama2.c tokenizer, found %zu bytes", path, file_bytes);
    for (int32_t id = 0; ok && pos < file_bytes; ++id) {
        int32_t length = -1;
        scores[id] = NAN;
        if (file_bytes - pos >= 8) {
            memcpy(&scores[id], file + pos, 4);
            memcpy(&length, file + pos + 4, 4);
            pos += 8;
        }
        if (length < 1 || length > LLAMA2C_MAX_TOKEN_BYTES || (size_t)length > file_bytes - pos ||
            !isfinite(scores[id]))
            ok = error_set(err,
                           "%s: token %d is cut off or malformed; expected a score, a length of 1 to %d and bytes",
                           path, id, LLAMA2C_MAX_TOKEN_BYTES);
        else ok = add_llama2c_token(t, id, (const uint8_t *)file + pos, length, err) || error_prefix(err, "%s", path);
        pos += ok ? (size_t)length : 0;
    }
    if (ok) add_scored_pairs(t, scores);
    free(scores);
    ok = ok && (tokenizer_seal(t, err) || error_prefix(err, "%s", path));
    if (ok) *out = t;
    else tokenizer_free(t);
    return ok;
}
