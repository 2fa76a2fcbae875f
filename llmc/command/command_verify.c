// command_verify.c: train_gpt verify: compares the hash chains of two runs. Reads two small files. Must not know
// models or devices.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "llmc/command/command.h"
#include "llmc/command/commands.h"
#include "llmc/train/hash_file.h"

static const char USAGE[] =
    "train_gpt verify A B\n"
    "\n"
    "Finds the step at which two runs first differ, and what differs: data, weights or optimizer state. A and B are\n"
    "directories of runs that trained with hash_every=N, or hashes.jsonl files. If their links are at different steps,\n"
    "the common steps are compared.\n"
    "Exit status 0: equal, 1: different or not comparable.\n"
    "\n"
    "example\n"
    "  train_gpt verify runs/one_rank runs/four_ranks\n";

// A position in one file, moved along the common steps. Sums of data hashes since the last common step are
// comparable only if both cover the same steps.
typedef struct {
    const HashFile *file;
    int64_t at;          // the next link
    uint64_t data;       // sum over links since the last common step
    int64_t data_since;  // first step of it - 1
    bool data_whole;     // no step is missing between its links
} Walk;

static const HashLink *next_link(const Walk *walk) {
    return walk->at < walk->file->count ? &walk->file->link[walk->at] : NULL;
}
static void walk_reset(Walk *walk) {
    walk->data = 0;
    walk->data_since = -1;
    walk->data_whole = true;
}
static void walk_advance(Walk *walk) {
    const HashLink *link = next_link(walk);
    if (walk->data_since < 0) walk->data_since = link->since;
    else if (link->since != link[-1].step) walk->data_whole = false;
    walk->data += link->data;
    ++walk->at;
}
// Advances both past the next common step; false: there is none.
static bool next_common(Walk *a, Walk *b) {
    walk_reset(a);
    walk_reset(b);
    const HashLink *x, *y;
    while ((x = next_link(a)) != NULL && (y = next_link(b)) != NULL) {
        if (x->step <= y->step) walk_advance(a);
        if (y->step <= x->step) walk_advance(b);
        if (x->step == y->step) return true;
    }
    return false;
}

typedef struct {
    int64_t common, equal;         // steps
    int64_t last_equal;            // the last common step before the first difference; 0: none
    int64_t first_step;            // common step of the first difference; 0: none
    bool data, weights, optimizer;  // what differs there
    bool data_known;               // whether data could be compared there
    int64_t data_unknown;          // common steps whose data hashes cover different steps
} Comparison;

static void compare(Comparison *out, const HashFile *a, const HashFile *b) {
    *out = (Comparison){0};
    Walk x = {.file = a}, y = {.file = b};
    while (next_common(&x, &y)) {
        const HashLink *link = &a->link[x.at - 1], *other = &b->link[y.at - 1];
        bool comparable = x.data_whole && y.data_whole && x.data_since == y.data_since;
        bool data = comparable && x.data != y.data, weights = link->weights != other->weights;
        bool optimizer = link->optimizer != other->optimizer, equal = !data && !weights && !optimizer;
        ++out->common;
        out->equal += equal;
        out->data_unknown += !comparable;
        if (out->first_step != 0) continue;
        if (equal) {
            out->last_equal = link->step;
            continue;
        }
        out->first_step = link->step;
        out->data = data;
        out->data_known = comparable;
        out->weights = weights;
        out->optimizer = optimizer;
    }
}

static void print_difference(const Comparison *c) {
    const char *words[3];
    int count = 0;
    if (c->data) words[count++] = "data";
    if (c->weights) words[count++] = "weights";
    if (c->optimizer) words[count++] = "optimizer state";
    printf("different from step %" PRId64 " on: %s%s%s%s%s\n", c->first_step, words[0],
           count == 3 ? ", " : count == 2 ? " and " : "", count > 1 ? words[1] : "", count == 3 ? " and " : "",
           count == 3 ? words[2] : "");
    if (c->last_equal > 0) printf("equal at step %" PRId64 ", the link before it\n", c->last_equal);
    else printf("no earlier link agrees\n");
    // With equal data, the arithmetic or the loaded state differs.
    if (c->data_known && !c->data) printf("the data is equal\n");
}

static void print_file(const HashFile *file) {
    printf("%s: %" PRId64 " links, steps %" PRId64 " to %" PRId64 "%s\n", file->path, file->count, file->link[0].step,
           file->link[file->count - 1].step,
           file->unfinished ? "; its last line is unfinished and was ignored" : "");
}

static int report(const HashFile *a, const HashFile *b) {
    Comparison c;
    compare(&c, a, b);
    print_file(a);
    print_file(b);
    if (c.common == 0) {
        fprintf(stderr, "train_gpt verify: the files have no common step\n");
        return 1;
    }
    printf("%" PRId64 " of %" PRId64 " common links agree\n", c.equal, c.common);
    if (c.data_unknown > 0)
        printf("the data is not comparable at %" PRId64 " of them: the links cover different steps\n",
               c.data_unknown);
    if (c.first_step == 0) {
        printf("equal\n");
        return 0;
    }
    print_difference(&c);
    return 1;
}

int command_verify(int argc, char **argv) {
    for (int i = 1; i < argc; ++i)
        if (is_help_word(argv[i])) {
            fputs(USAGE, stdout);
            return 0;
        }
    if (argc != 3 || argv[1][0] == '-' || argv[2][0] == '-') {
        fputs(USAGE, stderr);
        return 2;
    }
    Error err = {""};
    HashFile a = {0}, b = {0};
    bool ok = hash_file_read(&a, argv[1], &err) && hash_file_read(&b, argv[2], &err);
    int status = ok ? report(&a, &b) : command_fail(&err);
    hash_file_free(&a);
    hash_file_free(&b);
    return status;
}
