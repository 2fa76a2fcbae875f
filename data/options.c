// options.c: see options.h.
#include "data/options.h"

#include <stdio.h>
#include <string.h>

static int choice_index(const char *choices, const char *value) {
    size_t length = strlen(value);
    for (int index = 0; *choices != '\0'; ++index) {
        size_t bytes = strcspn(choices, "|");
        if (bytes == length && memcmp(choices, value, length) == 0) return index;
        choices += bytes + (choices[bytes] == '|');
    }
    return -1;
}

static bool set_value(const Option *option, const char *value, Error *err) {
    int64_t count;
    double real;
    switch (option->kind) {
    case OPTION_TEXT:
        if (value[0] == '\0') return error_set(err, "--%s: expected a text, found an empty one", option->name);
        *(const char **)option->target = value;
        return true;
    case OPTION_COUNT:
        if (!parse_count(value, &count) || (double)count < option->min || (double)count > option->max)
            return error_set(
                err, "--%s: expected a whole number from %.0f to %.0f (100k, 2M, ... are allowed), found '%s'",
                option->name, option->min, option->max, value);
        *(int64_t *)option->target = count;
        return true;
    case OPTION_REAL:
        if (!parse_f64(value, &real) || !(real >= option->min && real <= option->max))
            return error_set(err, "--%s: expected a number from %g to %g, found '%s'", option->name, option->min,
                             option->max, value);
        *(double *)option->target = real;
        return true;
    case OPTION_CHOICE: {
        int index = choice_index(option->choices, value);
        if (index < 0)
            return error_set(err, "--%s: expected one of %s, found '%s'", option->name, option->choices, value);
        *(int *)option->target = index;
        return true;
    }
    case OPTION_FLAG: break;
    }
    return error_set(err, "--%s takes no value, found '%s'", option->name, value);
}

static void print_default(const Option *option) {
    switch (option->kind) {
    case OPTION_TEXT: {
        const char *text = *(const char **)option->target;
        if (text != NULL) printf(" [%s]", text);
        return;
    }
    case OPTION_COUNT: printf(" [%lld]", (long long)*(int64_t *)option->target); return;
    case OPTION_REAL: printf(" [%g]", *(double *)option->target); return;
    case OPTION_CHOICE: {
        const char *choice = option->choices;
        for (int index = *(int *)option->target; index > 0; --index) choice += strcspn(choice, "|") + 1;
        printf(" [%.*s]", (int)strcspn(choice, "|"), choice);
        return;
    }
    case OPTION_FLAG: return;
    }
}

static void print_help(const Option *options, int option_count, const CommandHelp *help) {
    static const char *const VALUES[] = {"TEXT", "N", "X", "NAME", ""};
    printf("usage: %s\n\n%s\n\noptions [default]:\n", help->usage, help->summary);
    for (int i = 0; i < option_count; ++i) {
        int used = printf("  --%s %s", options[i].name, VALUES[options[i].kind]);
        printf("%*s%s", used < 24 ? 24 - used : 2, "", options[i].help);
        if (options[i].kind == OPTION_CHOICE) printf(": %s", options[i].choices);
        print_default(&options[i]);
        printf("\n");
    }
    printf("\nexample:\n%s", help->example);
}

OptionsResult options_parse(int *rest_count, int argc, char **argv, const Option *options, int option_count,
                            const CommandHelp *help, Error *err) {
    *rest_count = 0;
    bool only_rest = false;
    for (int i = 0; i < argc; ++i) {
        char *argument = argv[i];
        if (only_rest || argument[0] != '-' || argument[1] == '\0') {  // "-" is standard input
            argv[(*rest_count)++] = argument;
            continue;
        }
        only_rest = strcmp(argument, "--") == 0;
        if (only_rest) continue;
        if (strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0) {
            print_help(options, option_count, help);
            return OPTIONS_HELP;
        }
        const Option *option = NULL;
        size_t length = strcspn(argument, "=");
        for (int k = 0; k < option_count && option == NULL; ++k)
            if (strncmp(argument, "--", 2) == 0 && strlen(options[k].name) == length - 2 &&
                memcmp(argument + 2, options[k].name, length - 2) == 0)
                option = &options[k];
        const char *value = argument[length] == '=' ? argument + length + 1 : NULL;
        if (option == NULL) {
            error_set(err, "unknown option '%.*s' (see --help)", (int)length, argument);
            return OPTIONS_ERROR;
        }
        if (option->kind == OPTION_FLAG && value == NULL) {
            *(bool *)option->target = true;
            continue;
        }
        if (value == NULL && i + 1 == argc) {
            error_set(err, "--%s: expected a value after it", option->name);
            return OPTIONS_ERROR;
        }
        if (value == NULL) value = argv[++i];
        if (!set_value(option, value, err)) return OPTIONS_ERROR;
    }
    return OPTIONS_OK;
}
