// config_file.c: reads a run file (with inih) and overrides into a Draft; see config_file.h. inih truncates lines that
// are too long for its buffers and accepts some errors silently, so every line is checked before inih gets it. Must not
// know the meaning of options, only their names and types.
#include "llmc/config/config_file.h"

#include <ctype.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "llmc/base/format_version.h"

#define FILE_MAX_BYTES ((size_t)1 << 20)
#define NAME_MAX_BYTES 32   // of a source or phase: "weight.NAME" must fit inih's buffer for keys (50 bytes)
#define LINE_MAX_BYTES 160  // longest line that draft_print_value writes; inih's buffer holds 200

// ---- the draft ----

static Section *draft_add(Draft *draft, unsigned scope, const char *name) {
    draft->section = xrealloc(draft->section, to_size(draft->count + 1) * sizeof *draft->section);
    Section *section = &draft->section[draft->count++];
    memset(section, 0, sizeof *section);
    section->scope = scope;
    snprintf(section->name, sizeof section->name, "%s", name);
    return section;
}

Section *draft_find(const Draft *draft, unsigned scope, const char *name) {
    for (int i = 0; i < draft->count; ++i)
        if (draft->section[i].scope == scope && strcmp(draft->section[i].name, name) == 0) return &draft->section[i];
    return NULL;
}

int draft_count(const Draft *draft, unsigned scope) {
    int count = 0;
    for (int i = 0; i < draft->count; ++i) count += draft->section[i].scope == scope;
    return count;
}

static void given_set(Given *given, const char *text, const char *where, bool is_override) {
    free(given->text);
    free(given->where);
    *given = (Given){xstrdup(text), xstrdup(where), is_override};
}

static void given_free(Given *given) {
    free(given->text);
    free(given->where);
}

void draft_free(Draft *draft) {
    for (int i = 0; i < draft->count; ++i) {
        Section *section = &draft->section[i];
        for (int k = 0; k < OPTION_LIMIT; ++k) given_free(&section->given[k]);
        for (int k = 0; k < section->weight_count; ++k) given_free(&section->weight[k].given);
    }
    free(draft->section);
    *draft = (Draft){0};
}

static const char *scope_name(unsigned scope) {
    return scope == SCOPE_SOURCE ? "source" : scope == SCOPE_PHASE ? "phase" : "run";
}

// ---- values ----

// Unquotes "text with \n \t \" \\ \xHH" in place; text that does not start with a quote is not changed.
static bool unquote(char *text, Error *err) {
    if (text[0] != '"') return true;
    char *to = text;
    const char *from = text + 1;
    while (*from != '"') {
        if (*from == '\0')
            return error_set(err, "expected a closing quote (write \\x3b for a ; inside quotes), found none");
        if (*from != '\\') {
            *to++ = *from++;
            continue;
        }
        static const char PLAIN[] = "\"\\nt", MEANT[] = "\"\\\n\t";
        const char *plain = from[1] != '\0' ? strchr(PLAIN, from[1]) : NULL;
        if (plain != NULL) {
            *to++ = MEANT[plain - PLAIN];
            from += 2;
        } else if (from[1] == 'x' && isxdigit((unsigned char)from[2]) && isxdigit((unsigned char)from[3])) {
            char hex[3] = {from[2], from[3], '\0'};
            *to = (char)strtol(hex, NULL, 16);
            if (*to++ == '\0') return error_set(err, "expected text without a NUL byte, found \\x00");
            from += 4;
        } else {
            return error_set(err, "expected \\n, \\t, \\\", \\\\ or \\xHH after a backslash in quotes, found '%.2s'",
                             from);
        }
    }
    if (from[1] != '\0') return error_set(err, "expected nothing after the closing quote, found '%s'", from + 1);
    *to = '\0';
    return true;
}

static bool needs_quotes(const char *text) {
    size_t length = strlen(text);
    if (length == 0) return false;
    if (text[0] == '"' || isspace((unsigned char)text[0]) || isspace((unsigned char)text[length - 1])) return true;
    for (const char *p = text; *p != '\0'; ++p)
        if (*p == ';' || *p == '\\' || (unsigned char)*p < ' ') return true;
    return false;
}

void draft_print_value(FILE *out, const char *key, const char *text) {
    int at = fprintf(out, "%s =%s", key, text[0] != '\0' ? " " : "");
    if (!needs_quotes(text) && (size_t)at + strlen(text) <= LINE_MAX_BYTES) {
        fprintf(out, "%s\n", text);
        return;
    }
    at += fprintf(out, "\"");
    bool line_start = false;
    for (const char *p = text; *p != '\0'; ++p) {
        bool line_end = at >= LINE_MAX_BYTES - 8;
        // inih trims lines, and the first character of a line can make it a comment, a section or "key =": it is
        // written as \xHH.
        bool plain =
            !line_start && (isgraph((unsigned char)*p) || (unsigned char)*p >= 0x80 || (*p == ' ' && !line_end));
        if (*p == '"' || *p == '\\') at += fprintf(out, "\\%c", *p);
        else if (*p == '\n') at += fprintf(out, "\\n");
        else if (!plain || strchr(";#[", *p) != NULL) at += fprintf(out, "\\x%02x", (unsigned)(unsigned char)*p);
        else at += fprintf(out, "%c", *p);
        line_start = line_end && p[1] != '\0';
        if (line_start) at = fprintf(out, "\n    ");
    }
    fprintf(out, "\"\n");
}

// ---- keys ----

static const char *describe_scopes(unsigned scopes) {
    if (scopes & SCOPE_PHASE) return "before the first section or in [phase NAME]";
    if (scopes & SCOPE_RUN)
        return scopes & SCOPE_SOURCE ? "before the first section or in [source NAME]" : "before the first section";
    return "in [source NAME]";
}

// The Given of a key of this section; NULL and err when there is none. *option: the row that checks its value.
static Given *section_slot(Section *section, const char *key, const Option **option, Error *err) {
    if (section->scope == SCOPE_PHASE && strncmp(key, "weight.", 7) == 0) {
        const char *source = key + 7;
        *option = &OPTIONS[option_index("weight")];
        for (int i = 0; i < section->weight_count; ++i)
            if (strcmp(section->weight[i].source, source) == 0) return &section->weight[i].given;
        if (section->weight_count == CONFIG_MAX_SOURCES || strlen(source) > NAME_MAX_BYTES) {
            error_set(err, "expected weight.SOURCE of at most %d sources, found '%s'", CONFIG_MAX_SOURCES, key);
            return NULL;
        }
        GivenWeight *weight = &section->weight[section->weight_count++];
        snprintf(weight->source, sizeof weight->source, "%s", source);
        return &weight->given;
    }
    int index = option_find(key);
    if (index < 0) {
        options_unknown(err, &RUN_OPTIONS, key);
        return NULL;
    }
    *option = &OPTIONS[index];
    if ((OPTIONS[index].scopes & section->scope) == 0) {
        error_set(err, "option '%s' belongs %s, found %s%s", key, describe_scopes(OPTIONS[index].scopes),
                  section->scope == SCOPE_RUN ? "outside" : "in a ",
                  section->scope == SCOPE_RUN ? "" : scope_name(section->scope));
        return NULL;
    }
    return &section->given[index];
}

// Unquotes, checks and keeps one value. Messages start with `where`.
static bool section_set(Section *section, const char *key, const char *value, const char *where, bool is_override,
                        Error *err) {
    const Option *option;
    Given *given = section_slot(section, key, &option, err);
    if (given == NULL) return error_prefix(err, "%s", where);
    if (given->text != NULL && !is_override)
        return error_set(err, "%s: option '%s' is given twice (first at %s)", where, key, given->where);
    char *text = xstrdup(value);
    // The buffer fits the field of any row; this only checks the value. It is stored when all texts are known.
    union {
        char bytes[CONFIG_PATH_BYTES];
        double aligned;
    } scratch;
    Option check = *option;
    check.offset = 0;
    bool ok = unquote(text, err) && option_store(&check, &scratch, text, err);
    if (ok) given_set(given, text, where, is_override);
    else error_prefix(err, "%s: option '%s'", where, key);
    free(text);
    return ok;
}

static bool name_is_valid(const char *name) {
    size_t length = strlen(name);
    return length > 0 && length <= NAME_MAX_BYTES &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == length;
}

static Section *draft_add_checked(Draft *draft, unsigned scope, const char *name, Error *err) {
    int limit = scope == SCOPE_SOURCE ? CONFIG_MAX_SOURCES : CONFIG_MAX_PHASES;
    if (!name_is_valid(name))
        error_set(err, "expected a %s name of 1 to %d letters, digits, '-' or '_', found '%.64s'", scope_name(scope),
                  NAME_MAX_BYTES, name);
    else if (draft_find(draft, scope, name) != NULL)
        error_set(err, "[%s %s] is given twice", scope_name(scope), name);
    else if (draft_count(draft, scope) == limit)
        error_set(err, "expected at most %d %ss, found one more: '%s'", limit, scope_name(scope), name);
    else return draft_add(draft, scope, name);
    return NULL;
}

// ---- the file ----

typedef struct {
    Draft *draft;
    const char *path, *at, *end;  // [at, end): the rest of the file
    int line;                     // number of the last line that inih got
    bool indented;                // that line starts with white space
    int section;                  // index of the current section
    bool any_key;                 // a key was read: format_version is an error from here on
    int key_line;                 // line of the key whose value is being collected
    char key[64];
    char *value;  // collected so far; NULL: none
    Error *err;
    bool failed;
} Reader;

static bool reader_fail(Reader *reader, int line) {
    reader->failed = true;
    return error_prefix(reader->err, "%s:%d", reader->path, line);
}

// "format_version" belongs to the file and is not an option of the run. It must come first, so that the error for a
// newer file names its version, not a key that this program does not know.
static bool reader_version(const Reader *reader, const char *where) {
    if (reader->section != 0 || reader->any_key)
        return error_set(reader->err, "%s: expected " FORMAT_VERSION_KEY " before everything else in the file", where);
    return format_version_parse(FORMAT_RUN_FILE, reader->value, where, reader->err);
}

// Stores the collected key and value, which are complete now.
static bool reader_flush(Reader *reader) {
    if (reader->value == NULL) return true;
    char *where = xasprintf("%s:%d", reader->path, reader->key_line);
    bool ok = strcmp(reader->key, FORMAT_VERSION_KEY) == 0
                  ? reader_version(reader, where)
                  : section_set(&reader->draft->section[reader->section], reader->key, reader->value, where, false,
                                reader->err);
    reader->any_key = true;
    if (!ok) reader->failed = true;
    free(where);
    free(reader->value);
    reader->value = NULL;
    return ok;
}

// "[phase NAME]" or "[source NAME]", optionally followed by a comment. `text` is the trimmed line.
static bool reader_section(Reader *reader, const char *text) {
    char kind[16], name[128];
    int used = 0;
    if (sscanf(text, "[ %15[a-z] %127[^] \t] ] %n", kind, name, &used) != 2 || used == 0 ||
        (text[used] != '\0' && text[used] != ';' && text[used] != '#') ||
        (strcmp(kind, "source") != 0 && strcmp(kind, "phase") != 0))
        return error_set(reader->err, "expected [source NAME] or [phase NAME], found '%.100s'", text);
    unsigned scope = strcmp(kind, "source") == 0 ? SCOPE_SOURCE : SCOPE_PHASE;
    if (draft_add_checked(reader->draft, scope, name, reader->err) == NULL) return false;
    reader->section = reader->draft->count - 1;
    return true;
}

// Rejects lines that inih would misread silently.
static bool reader_check_line(Reader *reader, const char *line, size_t length, int room_bytes) {
    if (memchr(line, '\0', length) != NULL) return error_set(reader->err, "expected text, found a NUL byte");
    if (length + 2 > (size_t)room_bytes)
        return error_set(reader->err,
                         "expected a line of at most %d bytes, found %zu; an indented line continues the one above",
                         room_bytes - 2, length);
    size_t indent = strspn(line, " \t");
    if (indent == 0 || indent == length || strchr(";#[", line[indent]) != NULL || reader->value == NULL) return true;
    size_t word = strspn(line + indent, "abcdefghijklmnopqrstuvwxyz0123456789_");
    size_t after = indent + word + strspn(line + indent + word, " \t");
    char key[64];
    snprintf(key, sizeof key, "%.*s", (int)min_i64((int64_t)word, 63), line + indent);
    if (line[after] == '=' && option_find(key) >= 0)
        return error_set(reader->err,
                         "an indented line continues the value of '%s' above; expected '%s' without indentation",
                         reader->key, key);
    return true;
}

// inih's fgets: copies the next line into `out` of `room_bytes`; NULL at the end, and after an error.
static char *reader_next_line(char *out, int room_bytes, void *context) {
    Reader *reader = context;
    if (reader->failed || reader->at == reader->end) return NULL;
    ++reader->line;
    const char *newline = memchr(reader->at, '\n', (size_t)(reader->end - reader->at));
    const char *stop = newline != NULL ? newline : reader->end;
    char *line = xasprintf("%.*s", (int)(stop - reader->at), reader->at);
    bool ok = reader_check_line(reader, reader->at, (size_t)(stop - reader->at), room_bytes);
    reader->indented = line[0] == ' ' || line[0] == '\t';
    if (ok) {
        const char *text = line + strspn(line, " \t\r");
        size_t length = strlen(text);
        while (length > 0 && isspace((unsigned char)text[length - 1])) --length;
        snprintf(out, (size_t)room_bytes, "%s", line);
        if (text[0] == '[') {
            line[(size_t)(text - line) + length] = '\0';
            ok = reader_flush(reader) && reader_section(reader, text);
            snprintf(out, (size_t)room_bytes, "[s]");  // fits inih's buffer; reader->section has the real section
        }
    }
    free(line);
    reader->at = newline != NULL ? newline + 1 : reader->end;
    if (!ok && !reader->failed) reader_fail(reader, reader->line);
    return ok ? out : NULL;
}

// inih's handler: a new key, or a continuation of the current value.
static int reader_key(void *context, const char *section, const char *key, const char *value) {
    (void)section;  // inih truncates it to 49 bytes; reader->section has the real section
    Reader *reader = context;
    if (reader->failed) return 1;
    if (reader->indented && reader->value != NULL) {
        size_t length = 0;  // inih removes comments and the space before them only from the first line of a value
        while (value[length] != '\0' &&
               !(length > 0 && value[length] == ';' && isspace((unsigned char)value[length - 1])))
            ++length;
        while (length > 0 && isspace((unsigned char)value[length - 1])) --length;
        char *longer = xasprintf("%s%.*s", reader->value, (int)length, value);
        free(reader->value);
        reader->value = longer;
        return 1;
    }
    if (!reader_flush(reader)) return 1;
    if (strlen(key) >= sizeof reader->key) {
        error_set(reader->err, "unknown option '%.64s'", key);
        reader_fail(reader, reader->line);
        return 1;
    }
    snprintf(reader->key, sizeof reader->key, "%s", key);
    reader->value = xstrdup(value);
    reader->key_line = reader->line;
    return 1;
}

static bool draft_read_text(Draft *draft, const char *path, const char *text, size_t bytes, Error *err) {
    Reader reader = {.draft = draft, .path = path, .at = text, .end = text + bytes, .err = err};
    int bad_line = ini_parse_stream(reader_next_line, &reader, reader_key, &reader);
    if (!reader.failed) reader_flush(&reader);
    free(reader.value);
    if (bad_line == 0 || reader.failed) return !reader.failed;
    const char *line = text;
    for (int i = 1; i < bad_line; ++i) line = strchr(line, '\n') + 1;
    return error_set(err, "%s:%d: expected 'key = value', found '%.*s'", path, bad_line,
                     (int)min_i64(100, (int64_t)strcspn(line, "\r\n")), line);
}

// ---- overrides ----

// "key=value", "source.NAME.key=value", "phase.NAME.key=value". Without a run file, new names create sections.
static bool draft_override(Draft *draft, const char *word, bool may_add, Error *err) {
    char *where = xasprintf("override '%.200s'", word);
    char *key = xstrdup(word);
    char *name = NULL, *equals = strchr(key, '=');
    Section *section = &draft->section[0];
    unsigned scope = strncmp(key, "source.", 7) == 0  ? SCOPE_SOURCE
                     : strncmp(key, "phase.", 6) == 0 ? SCOPE_PHASE
                                                      : SCOPE_RUN;
    char *dot = NULL;
    bool ok = equals != NULL;
    if (!ok) error_set(err, "%s: expected key=value", where);
    if (ok) *equals = '\0';
    if (ok && scope != SCOPE_RUN) {
        name = strchr(key, '.') + 1;
        dot = strchr(name, '.');
        ok = dot != NULL;
        if (!ok) error_set(err, "%s: expected %s.NAME.key=value", where, scope_name(scope));
    }
    if (ok && scope != SCOPE_RUN) {
        *dot = '\0';
        section = draft_find(draft, scope, name);
        if (section == NULL && may_add) section = draft_add_checked(draft, scope, name, err);
        else if (section == NULL) error_set(err, "the run file has no [%s %.64s]", scope_name(scope), name);
        ok = section != NULL;
        if (!ok) error_prefix(err, "%s", where);
    }
    if (ok) ok = section_set(section, dot != NULL ? dot + 1 : key, equals + 1, where, true, err);
    free(key);
    free(where);
    return ok;
}

// Rejects an override for all phases (or sources) if each of them sets the option itself: it would have no effect.
static bool check_overrides_count(const Draft *draft, Error *err) {
    for (int i = 0; i < OPTION_COUNT; ++i) {
        const Given *given = &draft->section[0].given[i];
        unsigned scope = OPTIONS[i].scopes & (SCOPE_SOURCE | SCOPE_PHASE);
        if (given->text == NULL || !given->is_override || scope == 0) continue;
        int sections = 0, own = 0;
        const char *last = "";
        for (int k = 1; k < draft->count; ++k) {
            const Section *section = &draft->section[k];
            if (section->scope != scope) continue;
            ++sections;
            own += section->given[i].text != NULL;
            last = section->name;
        }
        if (sections > 0 && own == sections)
            return error_set(
                err,
                "%s: has no effect, because every [%s] of the run file sets '%s' itself; write %s.%s.%s=...",
                given->where, scope_name(scope), OPTIONS[i].name, scope_name(scope), last, OPTIONS[i].name);
    }
    return true;
}

bool draft_read(Draft *draft, const char *path, int override_count, char *const *overrides, Error *err) {
    *draft = (Draft){0};
    draft_add(draft, SCOPE_RUN, "");
    if (path != NULL) {
        char *text;
        size_t bytes;
        if (!file_read_all(path, FILE_MAX_BYTES, &text, &bytes, err)) return error_prefix(err, "run file");
        bool ok = draft_read_text(draft, path, text, bytes, err);
        free(text);
        if (!ok) return false;
    }
    for (int i = 0; i < override_count; ++i)
        if (!draft_override(draft, overrides[i], path == NULL, err)) return false;
    return check_overrides_count(draft, err);
}
