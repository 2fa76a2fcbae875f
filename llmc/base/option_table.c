// option_table.c: see option_table.h.
#include "llmc/base/option_table.h"

#include <stdlib.h>
#include <string.h>

#include "llmc/base/decimal.h"

#define NAME_MAX_BYTES 64

static void *place(const Option *option, void *base) {
    return option->target != NULL ? option->target : (char *)base + option->offset;
}

// ---- names ----

static int find(const OptionTable *table, const char *name, size_t length) {
    for (int i = 0; i < table->count; ++i)
        if (strlen(table->rows[i].name) == length && memcmp(table->rows[i].name, name, length) == 0) return i;
    return -1;
}

int options_find(const OptionTable *table, const char *name) { return find(table, name, strlen(name)); }

// Levenshtein's distance.
size_t edit_distance(const char *a, const char *b) {
    size_t na = strnlen(a, NAME_MAX_BYTES), nb = strnlen(b, NAME_MAX_BYTES);
    size_t row[NAME_MAX_BYTES + 1];
    for (size_t j = 0; j <= nb; ++j) row[j] = j;
    for (size_t i = 1; i <= na; ++i) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= nb; ++j) {
            size_t best = diagonal + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best) best = row[j] + 1;
            if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
            diagonal = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

const char *options_nearest(const OptionTable *table, const char *name) {
    const char *nearest = table->rows[0].name;
    for (int i = 1; i < table->count; ++i)
        if (edit_distance(name, table->rows[i].name) < edit_distance(name, nearest)) nearest = table->rows[i].name;
    return nearest;
}

static const char *dashes(OptionSpelling spelling) { return spelling == OPTIONS_DASHES ? "--" : ""; }

bool options_unknown(Error *err, const OptionTable *table, const char *name) {
    const char *prefix = dashes(table->spelling);
    const char *bare = strncmp(name, "--", 2) == 0 ? name + 2 : name, *nearest = options_nearest(table, bare);
    return error_set(err, "unknown option '%.*s'; did you mean '%s%s'? (--help lists all)", NAME_MAX_BYTES, name,
                     prefix, nearest);
}

// ---- values ----

// The value of one of the row's words; the error lists them.
static bool find_word(int *value, const Option *option, const char *text, Error *err) {
    int index = 0;
    for (const Word *w = option->words; w->word != NULL; ++w, ++index) {
        if (option->word_count > 0 && index == option->word_count) break;
        if (strcmp(w->word, text) != 0) continue;
        *value = w->value;
        return true;
    }
    char words[256];
    word_list(words, sizeof words, option->words, option->word_count, " ");
    return error_set(err, "expected one of: %s; found '%s'", words, text);
}

static bool store_chars(const Option *option, char *out, const char *text, Error *err) {
    if (strlen(text) >= option->bytes)
        return error_set(err, "expected at most %zu bytes, found %zu", option->bytes - 1, strlen(text));
    memset(out, 0, option->bytes);  // equal values have equal bytes
    memcpy(out, text, strlen(text));
    return true;
}

static bool parse_whole(int64_t *out, const Option *option, const char *text, Error *err) {
    int64_t value;
    if (!parse_count(text, &value) || (double)value < option->min || (double)value > option->max)
        return error_set(err, "expected a whole number from %.16g to %.16g (also like 64k, 1M, 2G, 4Ki), found '%s'",
                         option->min, option->max, text);
    *out = value;
    return true;
}

static bool parse_real(double *out, const Option *option, const char *text, Error *err) {
    double value;
    if (!parse_f64(text, &value) || !(value >= option->min && value <= option->max))
        return error_set(err, "expected a number from %.9g to %.9g, found '%s'", option->min, option->max, text);
    *out = value + 0.0;  // -0 becomes 0
    return true;
}

static bool parse_bool(bool *out, const char *text, Error *err) {
    static const Word WORDS[] = {{0, "false"}, {1, "true"}, {0, "no"}, {1, "yes"}, {0, "off"},
                                 {1, "on"},    {0, "0"},    {1, "1"},  {0, NULL}};
    int value;
    if (!word_find(&value, WORDS, text)) return error_set(err, "expected true or false, found '%s'", text);
    *out = value == 1;
    return true;
}

bool option_store(const Option *option, void *base, const char *text, Error *err) {
    static const size_t BYTES[] = {
        sizeof(char *), 0, sizeof(int64_t), sizeof(double), sizeof(float), sizeof(bool), sizeof(bool), sizeof(int)};
    CHECK(option->kind == OPTION_CHARS || option->bytes == 0 || option->bytes == BYTES[option->kind],
          "option '%s' has %zu bytes", option->name, option->bytes);
    void *to = place(option, base);
    int word = 0;
    double real = 0;
    bool has_words = option->words != NULL;
    if (has_words && !find_word(&word, option, text, err)) return false;
    switch (option->kind) {
    case OPTION_TEXT:
        if ((double)strlen(text) < option->min) return error_set(err, "expected a non-empty text, found ''");
        memcpy(to, &text, sizeof text);
        return true;
    case OPTION_CHARS: return store_chars(option, to, text, err);
    case OPTION_WHOLE: return parse_whole(to, option, text, err);
    case OPTION_REAL: return parse_real(to, option, text, err);
    case OPTION_FLOAT:
        if (!parse_real(&real, option, text, err)) return false;
        *(float *)to = (float)real;
        return true;
    case OPTION_BOOL:
    case OPTION_FLAG: return parse_bool(to, text, err);
    case OPTION_WORD:
        CHECK(has_words, "option '%s' has no words", option->name);
        memcpy(to, &word, sizeof word);
        return true;
    }
    CHECK(false, "option '%s' has kind %d", option->name, (int)option->kind);
    return false;
}

char *option_format(const Option *option, const void *base) {
    const void *from = option->target != NULL ? option->target : (const char *)base + option->offset;
    char number[DECIMAL_BYTES];
    int word;
    switch (option->kind) {
    case OPTION_TEXT: return xstrdup(*(const char *const *)from != NULL ? *(const char *const *)from : "");
    case OPTION_CHARS: return xstrdup(from);
    case OPTION_WHOLE: return xasprintf("%lld", (long long)*(const int64_t *)from);
    case OPTION_REAL: return xstrdup(decimal_shortest(number, *(const double *)from));
    case OPTION_FLOAT: return xstrdup(decimal_shortest_f32(number, *(const float *)from));
    case OPTION_BOOL:
    case OPTION_FLAG: return xstrdup(*(const bool *)from ? "true" : "false");
    case OPTION_WORD: memcpy(&word, from, sizeof word); return xstrdup(word_of(option->words, word));
    }
    CHECK(false, "option '%s' has kind %d", option->name, (int)option->kind);
    return NULL;
}

// ---- help ----

// Prints text from column `column` on, broken at spaces.
static void print_wrapped(FILE *out, const char *text, int column) {
    enum { WIDTH = 110 };
    int at = column;
    for (const char *p = text; *p != '\0';) {
        int word = (int)strcspn(p, " ");
        if (at > column && at + 1 + word > WIDTH) {
            fprintf(out, "\n%*s", column, "");
            at = column;
        }
        at += fprintf(out, "%s%.*s", at > column ? " " : "", word, p);
        p += word + (p[word] == ' ');
    }
    fputc('\n', out);
}

static char *describe_range(const Option *option) {
    char words[256];
    switch (option->kind) {
    case OPTION_TEXT:
    case OPTION_CHARS:
    case OPTION_WORD:
        if (option->words == NULL) return xstrdup("");
        word_list(words, sizeof words, option->words, option->word_count, " ");
        return xasprintf(" [%s]", words);
    case OPTION_BOOL: return xstrdup(" [true, false]");
    case OPTION_FLAG: return xstrdup("");
    default: break;
    }
    const char *kind = option->kind == OPTION_WHOLE ? "whole, " : "";
    bool open = option->max >= 1e6;
    return open ? xasprintf(" [%sfrom %.9g]", kind, option->min)
                : xasprintf(" [%s%.9g to %.9g]", kind, option->min, option->max);
}

static char *describe_default(const Option *option, const void *base) {
    if (option->fallback != NULL)
        return option->fallback[0] == '\0' ? xstrdup(" (default: empty)")
                                           : xasprintf(" (default: %s)", option->fallback);
    if (option->target == NULL || option->kind == OPTION_FLAG) return xstrdup("");
    char *value = option_format(option, base);
    char *text = value[0] == '\0' ? xstrdup("") : xasprintf(" (default: %s)", value);
    free(value);
    return text;
}

void option_print(FILE *out, const Option *option, OptionSpelling spelling, const void *base) {
    static const char *const VALUES[] = {" TEXT", " TEXT", " N", " X", " X", " BOOL", "", " WORD"};
    enum { COLUMN = 24 };
    bool with_dashes = spelling == OPTIONS_DASHES;
    int used = fprintf(out, "  %s%s%s", dashes(spelling), option->name, with_dashes ? VALUES[option->kind] : "");
    fprintf(out, "%*s", used < COLUMN ? COLUMN - used : 2, "");
    char *range = describe_range(option), *fallback = describe_default(option, base);
    char *text = xasprintf("%s%s%s", option->help, range, fallback);
    print_wrapped(out, text, COLUMN);
    free(text);
    free(fallback);
    free(range);
}

static void options_print_help(FILE *out, const OptionTable *table) {
    size_t length = strlen(table->about);
    bool ended = length > 0 && table->about[length - 1] == '\n';
    fprintf(out, "%s%s\noptions%s\n", table->about, ended ? "" : "\n",
            table->spelling == OPTIONS_KEYS ? " (key=value)" : "");
    for (int i = 0; i < table->count; ++i) option_print(out, &table->rows[i], table->spelling, table->base);
}

// ---- command lines ----

static bool store_named(const OptionTable *table, int row, const char *value, Error *err) {
    const Option *option = &table->rows[row];
    if (option_store(option, table->base, value, err)) return true;
    return error_prefix(err, "%s%s", dashes(table->spelling), option->name);
}

bool options_take(int *argc, char **argv, const OptionTable *table, Error *err) {
    int kept = 0;
    for (int i = 0; i < *argc; ++i) {
        const char *equals = strchr(argv[i], '=');
        int row = equals != NULL ? find(table, argv[i], (size_t)(equals - argv[i])) : -1;
        if (row < 0) argv[kept++] = argv[i];
        else if (!store_named(table, row, equals + 1, err)) return false;
    }
    *argc = kept;
    return true;
}

static bool unknown_word(const OptionTable *table, const char *word, size_t length, Error *err) {
    char *name = xasprintf("%.*s", (int)min_i64((int64_t)length, NAME_MAX_BYTES), word);
    options_unknown(err, table, name);
    free(name);
    return false;
}

static bool parse_keys(int *rest_count, int argc, char **argv, const OptionTable *table, Error *err) {
    int rest = 0;
    for (int i = 0; i < argc; ++i) {
        const char *equals = strchr(argv[i], '=');
        size_t length = equals != NULL ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        int row = equals != NULL ? find(table, argv[i], length) : -1;
        if (row >= 0) {
            if (!store_named(table, row, equals + 1, err)) return false;
        } else if (equals != NULL || argv[i][0] == '-') {
            return unknown_word(table, argv[i], length, err);
        } else if (rest_count == NULL) {
            return error_set(err, "unexpected '%s': expected key=value (--help lists the keys)", argv[i]);
        } else {
            argv[rest++] = argv[i];
        }
    }
    if (rest_count != NULL) *rest_count = rest;
    return true;
}

// The option at argv[*at], with its value in the same word or the next one.
static bool parse_dashed(int *at, int argc, char **argv, const OptionTable *table, Error *err) {
    const char *word = argv[*at];
    size_t length = strcspn(word, "=");
    int row = length > 2 && strncmp(word, "--", 2) == 0 ? find(table, word + 2, length - 2) : -1;
    if (row < 0) return unknown_word(table, word, length, err);
    const Option *option = &table->rows[row];
    const char *value = word[length] == '=' ? word + length + 1 : NULL;
    if (option->kind == OPTION_FLAG) {
        if (value != NULL) return error_set(err, "--%s takes no value, found '%s'", option->name, value);
        return store_named(table, row, "true", err);
    }
    if (value == NULL && *at + 1 == argc) return error_set(err, "--%s: expected a value after it", option->name);
    if (value == NULL) value = argv[++*at];
    return store_named(table, row, value, err);
}

static bool parse_dashes(int *rest_count, int argc, char **argv, const OptionTable *table, Error *err) {
    int rest = 0;
    bool only_rest = false;
    for (int i = 0; i < argc; ++i) {
        if (!only_rest && strcmp(argv[i], "--") == 0) {
            only_rest = true;
        } else if (!only_rest && argv[i][0] == '-' && argv[i][1] != '\0') {  // "-" is standard input
            if (!parse_dashed(&i, argc, argv, table, err)) return false;
        } else if (rest_count == NULL) {
            return error_set(err, "unexpected '%s': expected --name and its value (--help lists the names)", argv[i]);
        } else {
            argv[rest++] = argv[i];
        }
    }
    if (rest_count != NULL) *rest_count = rest;
    return true;
}

OptionsResult options_parse(int *rest_count, int argc, char **argv, const OptionTable *table, Error *err) {
    bool by_dashes = table->spelling == OPTIONS_DASHES;
    for (int i = 0; i < argc && !(by_dashes && strcmp(argv[i], "--") == 0); ++i)
        if (is_help_word(argv[i])) {
            options_print_help(stdout, table);
            return OPTIONS_HELP;
        }
    bool ok = (by_dashes ? parse_dashes : parse_keys)(rest_count, argc, argv, table, err);
    return ok ? OPTIONS_OK : OPTIONS_ERROR;
}

int options_read(const OptionTable *table, int argc, char **argv) {
    Error err = {""};
    switch (options_parse(NULL, argc - 1, argv + 1, table, &err)) {
    case OPTIONS_OK: break;
    case OPTIONS_HELP: return 0;
    case OPTIONS_ERROR: fprintf(stderr, "%s %s: %s\n", table->program, argv[0], err.message); return 2;
    }
    return OPTIONS_CONTINUE;
}
