// command_options.c: see command_options.h.
#include "llmc/command/command_options.h"

#include <stdio.h>
#include <string.h>

#include "llmc/command/commands.h"

static void print_help(const CommandOption *options, const char *usage) {
    printf("%s\n\noptions (key=value)\n", usage);
    for (const CommandOption *o = options; o->key != NULL; ++o) {
        char shown[64] = "";
        if (o->kind == COMMAND_TEXT && *(const char **)o->out != NULL)
            snprintf(shown, sizeof shown, "%.60s", *(const char **)o->out);
        if (o->kind == COMMAND_COUNT) snprintf(shown, sizeof shown, "%lld", (long long)*(int64_t *)o->out);
        if (o->kind == COMMAND_REAL) snprintf(shown, sizeof shown, "%g", *(double *)o->out);
        printf("  %-14s %s%s%s%s\n", o->key, o->help, shown[0] ? " [" : "", shown, shown[0] ? "]" : "");
    }
}

static bool store(const CommandOption *o, const char *value, Error *err) {
    double number;
    if (o->kind == COMMAND_TEXT) {
        *(const char **)o->out = value;
        return true;
    }
    if (o->kind == COMMAND_COUNT) {
        int64_t count;
        if (!parse_count(value, &count))
            return error_set(err, "%s: expected a whole number, found \"%s\"", o->key, value);
        number = (double)count;
        if (number < o->least || number > o->most)
            return error_set(err, "%s: expected %.0f to %.0f, found %s", o->key, o->least, o->most, value);
        *(int64_t *)o->out = count;
        return true;
    }
    if (!parse_f64(value, &number)) return error_set(err, "%s: expected a number, found \"%s\"", o->key, value);
    if (number < o->least || number > o->most)
        return error_set(err, "%s: expected %g to %g, found %s", o->key, o->least, o->most, value);
    *(double *)o->out = number;
    return true;
}

static bool parse_one(const CommandOption *options, const char *word, Error *err) {
    const char *equals = strchr(word, '=');
    size_t length = equals == NULL ? 0 : (size_t)(equals - word);
    for (const CommandOption *o = options; o->key != NULL && equals != NULL; ++o)
        if (strlen(o->key) == length && strncmp(o->key, word, length) == 0) return store(o, equals + 1, err);
    return error_set(err, "unknown option \"%s\": expected key=value with one of the keys that --help lists", word);
}

int command_parse_options(const CommandOption *options, const char *usage, int argc, char **argv) {
    for (int i = 1; i < argc; ++i)
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            print_help(options, usage);
            return 0;
        }
    for (int i = 1; i < argc; ++i) {
        Error err = {""};
        if (parse_one(options, argv[i], &err)) continue;
        fprintf(stderr, "train_gpt %s: %s\n", argv[0], err.message);
        return 2;
    }
    return COMMAND_GOES_ON;
}
