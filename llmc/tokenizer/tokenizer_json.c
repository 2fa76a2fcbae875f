// tokenizer_json.c: reads and writes Hugging Face's tokenizer.json. Only byte-level BPE is supported; anything else
// in a file (another model, a normalizer, a prefix space, dropout) is an error that names it, never ignored. All
// input is untrusted.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/json.h"
#include "llmc/tokenizer/tokenizer_impl.h"

// ---- split patterns by their text ----

static const struct {
    SplitPattern pattern;
    const char *regex;
} REGEXES[] = {
    {SPLIT_GPT2, "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {SPLIT_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"},
    {SPLIT_GPT2, "'(?:[sdmt]|ll|ve|re)| ?\\p{L}++| ?\\p{N}++| ?[^\\s\\p{L}\\p{N}]++|\\s++$|\\s+(?!\\S)|\\s"},
    {SPLIT_LLAMA3,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {SPLIT_QWEN2,
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {SPLIT_CL100K,  // the first regex of a pattern is written: Oniguruma reads {1,3}+ and $ differently
     "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|"
     "\\s+\\z|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
    {SPLIT_CL100K,
     "'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}++|\\p{N}{1,3}+| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*+|"
     "\\s++$|\\s*[\\r\\n]|\\s+(?!\\S)|\\s"},
};
enum { REGEX_COUNT = sizeof REGEXES / sizeof REGEXES[0] };

// ---- reading ----

static const char *text_of(const cJSON *item) { return cJSON_IsString(item) ? item->valuestring : ""; }
static bool is_absent(const cJSON *item) { return item == NULL || cJSON_IsNull(item); }
static bool is_off(const cJSON *item) { return is_absent(item) || cJSON_IsFalse(item); }

// ByteLevel; *splits: whether it also splits by GPT-2's pattern.
static bool read_byte_level(const cJSON *item, bool *splits, Error *err) {
    if (strcmp(text_of(json_find(item, "type")), "ByteLevel") != 0)
        return error_set(err, "pre_tokenizer \"%.40s\" is not supported; expected ByteLevel, or Split then ByteLevel",
                         text_of(json_find(item, "type")));
    if (!is_off(json_find(item, "add_prefix_space")))
        return error_set(err, "pre_tokenizer.add_prefix_space is not supported: it would change the text");
    *splits = !cJSON_IsFalse(json_find(item, "use_regex"));
    return true;
}

static bool read_split(const cJSON *item, SplitPattern *pattern, Error *err) {
    const char *regex = text_of(json_find(json_find(item, "pattern"), "Regex"));
    const char *behavior = text_of(json_find(item, "behavior"));
    bool invert = cJSON_IsTrue(json_find(item, "invert"));
    if (strcmp(text_of(json_find(item, "type")), "Split") != 0)
        return error_set(err, "pre_tokenizer \"%.40s\" is not supported; expected Split",
                         text_of(json_find(item, "type")));
    // The patterns match every byte, so "Isolated" and an inverted "Removed" do the same.
    if (!(strcmp(behavior, "Isolated") == 0 && !invert) && !(strcmp(behavior, "Removed") == 0 && invert))
        return error_set(err, "pre_tokenizer Split with behavior \"%.40s\" is not supported; expected Isolated",
                         behavior);
    for (int i = 0; i < REGEX_COUNT; ++i) {
        *pattern = REGEXES[i].pattern;
        if (strcmp(regex, REGEXES[i].regex) == 0) return true;
    }
    return error_set(
        err, "the split pattern \"%.200s\" is not supported; expected that of GPT-2, Llama 3, Qwen 2 or cl100k",
        regex);
}

static bool read_pre_tokenizer(const cJSON *item, SplitPattern *pattern, Error *err) {
    bool splits;
    *pattern = SPLIT_GPT2;
    const cJSON *parts = json_find(item, "pretokenizers");
    if (!cJSON_IsArray(parts)) {
        if (!read_byte_level(item, &splits, err)) return false;
        return splits ? true : error_set(err, "pre_tokenizer ByteLevel without use_regex needs a Split before it");
    }
    if (cJSON_GetArraySize(parts) != 2)
        return error_set(err, "pre_tokenizer has %d parts; expected Split then ByteLevel", cJSON_GetArraySize(parts));
    if (!read_split(parts->child, pattern, err) || !read_byte_level(parts->child->next, &splits, err)) return false;
    return splits ? error_set(err, "pre_tokenizer splits twice; expected \"use_regex\": false") : true;
}

static bool check_model(const cJSON *model, Error *err) {
    const cJSON *type = json_find(model, "type"), *dropout = json_find(model, "dropout");
    if (!is_absent(type) && strcmp(text_of(type), "BPE") != 0)
        return error_set(err, "model type \"%.40s\" is not supported; expected BPE", text_of(type));
    if (!is_absent(dropout) && !(cJSON_IsNumber(dropout) && dropout->valuedouble == 0))
        return error_set(err, "model.dropout is not supported");
    static const char *const EMPTY[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (int i = 0; i < 2; ++i)
        if (!is_absent(json_find(model, EMPTY[i])) && text_of(json_find(model, EMPTY[i]))[0] != '\0')
            return error_set(err, "model.%s is not supported", EMPTY[i]);
    if (!is_off(json_find(model, "byte_fallback")))
        return error_set(
            err, "model.byte_fallback (a SentencePiece vocabulary) is not supported; expected byte-level BPE");
    if (!cJSON_IsObject(json_find(model, "vocab")))
        return error_set(err, "model.vocab: expected an object of tokens and ids");
    if (!cJSON_IsArray(json_find(model, "merges"))) return error_set(err, "model.merges: expected a list");
    return true;
}

// Hugging Face finds added tokens in the text before the split. Here this is done for special tokens on request only,
// so added tokens that ordinary text may contain are not supported.
static bool add_special(Tokenizer *t, const cJSON *item, Error *err) {
    const char *content = text_of(json_find(item, "content"));
    int64_t id;
    if (content[0] == '\0' || !json_as_i64(json_find(item, "id"), &id))
        return error_set(err, "added_tokens: expected \"content\" and \"id\", found \"%.40s\"", content);
    if (!cJSON_IsTrue(json_find(item, "special")) && strpbrk(content, " \t\r\n") != NULL)
        return error_set(err, "added_tokens: \"%.40s\" is not special and has white space; this is not supported",
                         content);
    return tokenizer_add_token(t, id, (const uint8_t *)content, (int64_t)strlen(content), TOKEN_SPECIAL, err);
}

// The vocabulary usually repeats the added tokens.
static bool is_known_special(const Tokenizer *t, const cJSON *entry) {
    int64_t id;
    if (!json_as_i64(entry, &id) || id < 0 || id >= t->vocab) return false;
    const Token *token = &t->tokens[id];
    return token->kind == TOKEN_SPECIAL && (size_t)token->bytes == strlen(entry->string) &&
           memcmp(t->bytes + token->offset, entry->string, (size_t)token->bytes) == 0;
}

static bool read_tokens(Tokenizer *t, const cJSON *vocab, const cJSON *added, Error *err) {
    if (!is_absent(added) && !cJSON_IsArray(added)) return error_set(err, "added_tokens: expected a list");
    for (const cJSON *item = is_absent(added) ? NULL : added->child; item != NULL; item = item->next)
        if (!add_special(t, item, err)) return false;
    for (const cJSON *entry = vocab->child; entry != NULL; entry = entry->next) {
        if (is_known_special(t, entry)) continue;
        if (!tokenizer_add_vocab_entry(t, entry, err)) return error_prefix(err, "model.vocab");
    }
    return true;
}

static bool read_merges(Tokenizer *t, const cJSON *merges, Error *err) {
    for (const cJSON *item = merges->child; item != NULL; item = item->next) {
        const cJSON *left = cJSON_IsArray(item) ? item->child : NULL;
        const cJSON *right = left != NULL ? left->next : NULL;
        bool is_pair = cJSON_IsString(left) && cJSON_IsString(right) && right->next == NULL;
        if (!is_pair && !cJSON_IsString(item))
            return error_set(err, "model.merges: merge %d is neither \"left right\" nor a pair of texts",
                             t->merge_count);
        bool ok = is_pair ? tokenizer_add_merge_texts(t, left->valuestring, right->valuestring, err)
                          : tokenizer_add_merge_line(t, item->valuestring, err);
        if (!ok) return error_prefix(err, "model.merges");
    }
    return true;
}

static bool read_normalizer(Tokenizer *t, const cJSON *item, Error *err) {
    const char *type = text_of(json_find(item, "type"));
    t->normalize_nfc = strcmp(type, "NFC") == 0;
    if (is_absent(item) || t->normalize_nfc) return true;
    return error_set(err, "normalizer \"%.40s\" is not supported: it would change the text; expected none, or NFC",
                     type);
}

static bool read_root(Tokenizer *t, const cJSON *root, Error *err) {
    const cJSON *model = json_find(root, "model");
    if (!cJSON_IsObject(model)) return error_set(err, "expected a tokenizer.json with a \"model\"");
    if (!check_model(model, err) || !read_pre_tokenizer(json_find(root, "pre_tokenizer"), &t->pattern, err))
        return false;
    if (!read_normalizer(t, json_find(root, "normalizer"), err)) return false;
    t->whole_pieces = cJSON_IsTrue(json_find(model, "ignore_merges"));
    return read_tokens(t, json_find(model, "vocab"), json_find(root, "added_tokens"), err) &&
           read_merges(t, json_find(model, "merges"), err) && tokenizer_seal(t, err);
}

bool tokenizer_load_json(Tokenizer **out, const char *path, Error *err) {
    char *json;
    size_t bytes;
    if (!file_read_all(path, TOKENIZER_MAX_FILE_BYTES, &json, &bytes, err)) return false;
    cJSON *root = json_parse(json, bytes, path, err);
    Tokenizer *t = tokenizer_new(SPLIT_GPT2);
    t->original = json;
    t->original_bytes = bytes;
    bool ok = root != NULL && (read_root(t, root, err) || error_prefix(err, "%s", path));
    cJSON_Delete(root);
    if (ok) *out = t;
    else tokenizer_free(t);
    return ok;
}

// ---- writing ----

static void write_string(FILE *file, const char *text) {
    fputc('"', file);
    for (const char *p = text; *p != '\0'; ++p) {
        unsigned char byte = (unsigned char)*p;
        if (byte == '"' || byte == '\\') fprintf(file, "\\%c", byte);
        else if (byte < 0x20) fprintf(file, "\\u%04x", byte);
        else fputc(byte, file);
    }
    fputc('"', file);
}

// The name of a token in the file: unchanged if special, else byte-level. name has room for TOKEN_NAME_BYTES.
enum { TOKEN_NAME_BYTES = 2 * TOKENIZER_MAX_TOKEN_BYTES + 1 };
static const char *token_name(char *name, const Tokenizer *t, int32_t id) {
    const Token *token = &t->tokens[id];
    if (token->kind == TOKEN_SPECIAL)
        snprintf(name, TOKEN_NAME_BYTES, "%.*s", token->bytes, t->bytes + token->offset);
    else byte_level_encode(name, t->bytes + token->offset, token->bytes);
    return name;
}

static void write_byte_level(FILE *file, bool splits) {
    fprintf(file, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": %s}",
            splits ? "true" : "false");
}

static void write_pre_tokenizer(FILE *file, SplitPattern pattern) {
    if (pattern == SPLIT_GPT2 || pattern == SPLIT_NONE) {
        write_byte_level(file, true);
        return;
    }
    int i = 0;
    while (REGEXES[i].pattern != pattern) ++i;
    fprintf(file, "{\"type\": \"Sequence\", \"pretokenizers\": [{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
    write_string(file, REGEXES[i].regex);
    fprintf(file, "}, \"behavior\": \"Isolated\", \"invert\": false}, ");
    write_byte_level(file, false);
    fprintf(file, "]}");
}

static void write_added_tokens(FILE *file, const Tokenizer *t) {
    char name[TOKEN_NAME_BYTES];
    const char *separator = "";
    for (int32_t id = 0; id < t->vocab; ++id) {
        if (t->tokens[id].kind != TOKEN_SPECIAL) continue;
        fprintf(file, "%s\n    {\"id\": %d, \"content\": ", separator, id);
        write_string(file, token_name(name, t, id));
        fprintf(file,
                ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, "
                "\"special\": true}");
        separator = ",";
    }
}

static void write_model(FILE *file, const Tokenizer *t) {
    char name[TOKEN_NAME_BYTES];
    const char *separator = "";
    fprintf(file,
            "{\n    \"type\": \"BPE\",\n    \"dropout\": null,\n    \"unk_token\": null,\n"
            "    \"continuing_subword_prefix\": null,\n    \"end_of_word_suffix\": null,\n    \"fuse_unk\": false,\n"
            "    \"byte_fallback\": false,\n    \"ignore_merges\": %s,\n    \"vocab\": {",
            t->whole_pieces ? "true" : "false");
    for (int32_t id = 0; id < t->vocab; ++id) {
        if (t->tokens[id].kind == TOKEN_UNUSED) continue;
        fprintf(file, "%s\n      ", separator);
        write_string(file, token_name(name, t, id));
        fprintf(file, ": %d", id);
        separator = ",";
    }
    fprintf(file, "\n    },\n    \"merges\": [");
    for (int32_t i = 0; i < t->merge_count; ++i) {
        fprintf(file, "%s\n      [", i == 0 ? "" : ",");
        write_string(file, token_name(name, t, t->merges[i].left));
        fprintf(file, ", ");
        write_string(file, token_name(name, t, t->merges[i].right));
        fprintf(file, "]");
    }
    fprintf(file, "\n    ]\n  }");
}

static void write_tokenizer(FILE *file, const Tokenizer *t) {
    fprintf(file, "{\n  \"version\": \"1.0\",\n  \"truncation\": null,\n  \"padding\": null,\n  \"added_tokens\": [");
    write_added_tokens(file, t);
    fprintf(file, "\n  ],\n  \"normalizer\": %s,\n  \"pre_tokenizer\": ",
            t->normalize_nfc ? "{\"type\": \"NFC\"}" : "null");
    write_pre_tokenizer(file, t->pattern);
    fprintf(file, ",\n  \"post_processor\": null,\n  \"decoder\": ");
    write_byte_level(file, true);
    fprintf(file, ",\n  \"model\": ");
    write_model(file, t);
    fprintf(file, "\n}\n");
}

static void write_config(FILE *file, const Tokenizer *t) {
    static const char *const ROLES[] = {"bos_token", "eos_token"};
    char name[TOKEN_NAME_BYTES];
    fprintf(file, "{\n");
    for (int i = 0; i < 2 && t->eot >= 0; ++i) {
        fprintf(file, "  \"%s\": ", ROLES[i]);
        write_string(file, token_name(name, t, t->eot));
        fprintf(file, ",\n");
    }
    fprintf(file,
            "  \"clean_up_tokenization_spaces\": false,\n  \"tokenizer_class\": \"PreTrainedTokenizerFast\"\n}\n");
}

// Writes what write() prints to dir/name.
static bool save_file(const char *dir, const char *name, void (*write)(FILE *, const Tokenizer *), const Tokenizer *t,
                      Error *err) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *memory = open_memstream(&text, &bytes);
    CHECK(memory != NULL, "out of memory");
    write(memory, t);
    CHECK(fclose(memory) == 0, "out of memory");
    char *path = path_join(dir, name);
    bool ok = file_write_atomic(path, text, bytes, err);
    free(path);
    free(text);
    return ok;
}

static void write_original(FILE *file, const Tokenizer *t) { fwrite(t->original, 1, t->original_bytes, file); }

bool tokenizer_save(const Tokenizer *t, const char *dir, Error *err) {
    if (t->llama2c) return save_file(dir, "tokenizer.bin", write_original, t, err);
    return save_file(dir, "tokenizer.json", t->original != NULL ? write_original : write_tokenizer, t, err) &&
           save_file(dir, "tokenizer_config.json", write_config, t, err);
}
