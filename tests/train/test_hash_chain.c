// test_hash_chain.c: links of a hash chain compared with sums computed here; the same links for every world size, ZeRO
// stage and interruption; every bit changes a link; replicas that drift are named. Ranks are threads of this process, each
// with a backend and its share of the same made-up model; a barrier replaces control.c.
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "llmc/train/hash_chain.h"
#include "llmc/base/hash_element.h"
#include "llmc/train/replicas.h"
#include "tests/support/file_test.h"
#include "tests/support/model_test.h"

#define MOST_RANKS 4
#define MOST_SECONDS 120  // ends the test if a rank hangs

// ---- ranks ----

typedef struct Room {
    pthread_barrier_t barrier;
    int world;
    unsigned char *all[MOST_RANKS];
} Room;
struct Control {
    Room *room;
    int rank;
};
bool control_gather(Control *control, const char *what, void *all, const void *mine, size_t count) {
    (void)what;
    if (control == NULL) {
        memcpy(all, mine, count);
        return true;
    }
    Room *room = control->room;
    room->all[control->rank] = all;
    pthread_barrier_wait(&room->barrier);
    for (int r = 0; r < room->world; ++r) memcpy(room->all[r] + (size_t)control->rank * count, mine, count);
    pthread_barrier_wait(&room->barrier);
    return true;
}
void control_describe_rank(const Control *control, int rank, char *out, size_t out_bytes) {
    (void)control;
    snprintf(out, out_bytes, "rank %d (node%d, pid %d)", rank, rank / 2, 4700 + rank);
}

static const char *const LLAMA[] = {"model=llama:d1", "layers=2",     "channels=24",  "heads=3",
                                    "kv_heads=1",     "head_size=16", "ffn=40",       "vocab=61",
                                    "max_seq_len=16", "qk_norm=true", "init_std=0.3", NULL};

typedef struct {
    OptimizerKind kind;
    DType dtype;
    bool no_master;
} Storage;
static const Storage STORAGES[] = {{OPTIMIZER_ADAMW, DTYPE_F32, false}, {OPTIMIZER_ADAMW, DTYPE_BF16, false},
                                   {OPTIMIZER_ADAMW, DTYPE_BF16, true}, {OPTIMIZER_MUON, DTYPE_F32, false},
                                   {OPTIMIZER_MUON, DTYPE_BF16, false}};
#define STORAGE_COUNT (sizeof STORAGES / sizeof STORAGES[0])

// An error in a run, from a step on.
typedef struct {
    int64_t step;
    enum { NOTHING, BAD_WEIGHT, BAD_MASTER, BAD_M, BAD_V, BAD_TOKEN, BAD_ROW, BAD_SOURCE, BAD_ROW_WEIGHT } what;
    int rank;
} Fault;

typedef struct {
    Storage storage;
    int world, stage;
    int64_t every, compare_every;
    int64_t first, last;     // steps first + 1 .. last are done
    RunProgress start;       // at first
    const char *out_dir;
    Fault fault;
} Story;

typedef struct {
    const Story *story;
    Control control;
    bool ok;
    Error err;
    RunProgress end;
} Rank;

// ---- a made-up run: values are functions of step and position only ----

static float made_up(int64_t step, uint64_t kind, int64_t elem) {
    uint64_t h = hash_element((uint64_t)elem, (uint32_t)(step * 7 + (int64_t)kind));
    return (float)(int32_t)(h >> 32) * 0x1p-31f;
}

static void set_floats(Backend *be, float *device, int64_t step, uint64_t kind, int64_t first_elem, int64_t count) {
    float *values = xmalloc(to_size(count) * sizeof *values);
    for (int64_t i = 0; i < count; ++i) values[i] = made_up(step, kind, first_elem + i);
    be->upload(be, device, values, to_size(count) * sizeof *values);
    free(values);
}
enum { KIND_WEIGHT, KIND_M, KIND_V };

static void flip_bit(Backend *be, void *device) {
    unsigned char byte;
    be->download(be, &byte, device, 1);
    byte ^= 1;
    be->upload(be, device, &byte, 1);
}

// The last piece that has the state that is to be corrupted.
static const Piece *some_piece(const Model *m, bool with_v) {
    const Piece *found = NULL;
    for (int i = 0; i < m->part.pieces; ++i)
        if (!with_v || m->part.piece[i].v_packed >= 0) found = &m->part.piece[i];
    return found;
}

static void set_state(ModelTest *t, int64_t step, const Fault *fault) {
    Model *m = &t->model;
    Backend *be = t->be;
    for (int i = 0; i < m->params.count; ++i) {
        const ParamSpec *spec = &m->params.spec[i];
        float *values = xmalloc(to_size(spec->elems) * sizeof *values);
        for (int64_t k = 0; k < spec->elems; ++k) values[k] = made_up(step, KIND_WEIGHT, spec->offset + k);
        model_set_param(m, spec, values);
        free(values);
    }
    for (int i = 0; i < m->part.pieces; ++i) {
        const Piece *piece = &m->part.piece[i];
        int64_t place = m->params.spec[piece->param].offset + piece->first;
        set_floats(be, t->optimizer.m + piece->packed, step, KIND_M, place, piece->count);
        if (piece->v_packed >= 0)
            set_floats(be, t->optimizer.v + piece->v_packed, step, KIND_V, place, piece->count);
    }
    if (fault->what == NOTHING || step < fault->step || m->part.options.data.rank != fault->rank) return;
    const Piece *piece = some_piece(m, fault->what == BAD_V);
    int64_t at = piece->count - 1;
    size_t bytes = dtype_bytes(m->shape.dtype);
    if (fault->what == BAD_WEIGHT) flip_bit(be, (unsigned char *)model_weight(m, piece) + to_size(at) * bytes);
    if (fault->what == BAD_MASTER) flip_bit(be, model_master(m, piece) + at);
    if (fault->what == BAD_M) flip_bit(be, t->optimizer.m + piece->packed + at);
    if (fault->what == BAD_V) flip_bit(be, t->optimizer.v + piece->v_packed + at);
}

// Each step has ROWS rows, distributed round-robin; ranks without a row get padding.
#define ROWS 6
#define ROW_TOKENS 5
static void add_rows(HashChain *chain, int64_t step, const Story *story, int rank) {
    const Fault *fault = &story->fault;
    int64_t micro_batches = div_up(ROWS, story->world);
    for (int64_t m = 0; m < micro_batches; ++m) {
        int64_t r = m * story->world + rank, row_index = r < ROWS ? 1000 * step + r : -1;
        int32_t tokens[ROW_TOKENS] = {0}, targets[ROW_TOKENS] = {0}, source = (int32_t)(r % 2);
        float weights[ROW_TOKENS] = {0};
        for (int i = 0; i < ROW_TOKENS && r < ROWS; ++i) {
            tokens[i] = (int32_t)(step * 100 + r * 10 + i);
            targets[i] = tokens[i] + 1;
            weights[i] = 1;
        }
        if (step == fault->step && r == 2) {
            if (fault->what == BAD_TOKEN) ++tokens[ROW_TOKENS - 1];
            if (fault->what == BAD_ROW) row_index = 7;
            if (fault->what == BAD_SOURCE) source = 1;
            if (fault->what == BAD_ROW_WEIGHT) weights[0] = 0.5f;
        }
        const Batch batch = {.B = 1, .T = ROW_TOKENS, .tokens = tokens, .targets = targets, .weights = weights,
                             .source = &source, .row_index = &row_index};
        hash_chain_add_batch(chain, step - 1, &batch);
    }
}

static bool run_steps(Rank *rank, HashChain *chain, ModelTest *t) {
    const Story *story = rank->story;
    for (int64_t step = story->first + 1; step <= story->last; ++step) {
        add_rows(chain, step, story, rank->control.rank);
        set_state(t, step, &story->fault);
        if (!hash_chain_link(chain, step, &t->model, &t->optimizer, &rank->err)) return false;
        if (!replicas_compare(chain, step, &t->model, &rank->err)) return false;
    }
    rank->end = story->start;
    rank->end.step = story->last;
    return hash_chain_save(chain, &rank->end, &rank->err);
}

static void *rank_main(void *context) {
    Rank *rank = context;
    const Story *story = rank->story;
    ModelTest t = {0};
    model_test_config(&t.config, LLAMA);
    t.config.optimizer = story->storage.kind;
    ModelShape shape = {.max_rows = 4, .max_seq_len = 4, .dtype = story->storage.dtype, .training = true,
                        .no_master = story->storage.no_master,
                        .ranks = {.data = {rank->control.rank, story->world}, .stage = story->stage,
                                  .muon = story->storage.kind == OPTIMIZER_MUON}};
    model_test_open(&t, &shape, 1);
    HashChainOptions options = {.control = story->world > 1 ? &rank->control : NULL, .launch_rank = rank->control.rank,
                                .launch_world = story->world,
                                .data = {rank->control.rank, story->world}, .every = story->every, .compare_every = story->compare_every,
                                .out_dir = story->out_dir};
    HashChain chain;
    rank->ok = hash_chain_open(&chain, t.be, &options, &story->start, &rank->err) && run_steps(rank, &chain, &t);
    hash_chain_close(&chain);
    model_test_close(&t);
    return NULL;
}

// Runs the story on its ranks; the results are in ranks (world).
static void run_story(const Story *story, Rank *ranks) {
    Room room = {.world = story->world};
    pthread_t threads[MOST_RANKS];
    assert_int_equal(pthread_barrier_init(&room.barrier, NULL, (unsigned)story->world), 0);
    for (int r = 0; r < story->world; ++r) ranks[r] = (Rank){.story = story, .control = {&room, r}};
    if (story->world == 1) rank_main(&ranks[0]);
    for (int r = 0; r < story->world && story->world > 1; ++r)
        assert_int_equal(pthread_create(&threads[r], NULL, rank_main, &ranks[r]), 0);
    for (int r = 0; r < story->world && story->world > 1; ++r) pthread_join(threads[r], NULL);
    pthread_barrier_destroy(&room.barrier);
}
static RunProgress run_well(const Story *story) {
    Rank ranks[MOST_RANKS];
    run_story(story, ranks);
    for (int r = 0; r < story->world; ++r)
        if (!ranks[r].ok) fail_msg("rank %d: %s", r, ranks[r].err.message);
    for (int r = 1; r < story->world; ++r) {
        assert_true(ranks[r].end.chain == ranks[0].end.chain && ranks[r].end.chain_data == ranks[0].end.chain_data);
        assert_int_equal(ranks[r].end.chain_step, ranks[0].end.chain_step);
    }
    return ranks[0].end;
}

static char *fresh_dir(const FileTest *t, const char *name) {
    char *dir = file_test_path(t, name);
    Error err = {""};
    assert_true(remove_tree(dir, &err) && make_dirs(dir, &err));
    return dir;
}
static HashFile links_of(const char *dir) {
    HashFile file;
    Error err = {""};
    if (!hash_file_read(&file, dir, &err)) fail_msg("%s", err.message);
    assert_false(file.unfinished);
    return file;
}
static void expect_same_links(const char *a, const char *b, const char *label) {
    HashFile x = links_of(a), y = links_of(b);
    assert_int_equal(x.count, y.count);
    for (int64_t i = 0; i < x.count; ++i)
        if (memcmp(&x.link[i], &y.link[i], sizeof x.link[i]) != 0)
            fail_msg("%s: links of step %lld differ", label, (long long)x.link[i].step);
    hash_file_free(&x);
    hash_file_free(&y);
}

// ---- links ----

// Weights and moments of step `step` summed element by element.
static void test_sums(void **state) {
    FileTest *t = *state;
    for (size_t s = 0; s < STORAGE_COUNT; ++s) {
        const Storage *storage = &STORAGES[s];
        char *dir = fresh_dir(t, "run");
        run_well(&(Story){.storage = *storage, .world = 1, .every = 2, .last = 5, .out_dir = dir});
        RunConfig config;
        model_test_config(&config, LLAMA);
        ParamTable params;
        params_build(&params, &config.arch);
        uint64_t weights = 0, optimizer = 0, chain = 0;
        for (int i = 0; i < params.count; ++i) {
            const ParamSpec *spec = &params.spec[i];
            for (int64_t e = spec->offset; e < spec->offset + spec->elems; ++e) {
                float value = made_up(4, KIND_WEIGHT, e), m = made_up(4, KIND_M, e), v = made_up(4, KIND_V, e);
                uint32_t bits, m_bits, v_bits;
                memcpy(&bits, &value, sizeof bits);
                memcpy(&m_bits, &m, sizeof m_bits);
                memcpy(&v_bits, &v, sizeof v_bits);
                weights += hash_element((uint64_t)e, storage->no_master ? bf16_from_f32(value) : bits);
                optimizer += hash_element((uint64_t)e, m_bits);
                if (storage->kind == OPTIMIZER_MUON && spec->hidden_matrix) continue;
                optimizer += hash_element((uint64_t)e + ((uint64_t)1 << 62), v_bits);
            }
        }
        params_free(&params);
        HashFile file = links_of(dir);
        assert_int_equal(file.count, 2);
        for (int i = 0; i < 2; ++i) {
            const HashLink *link = &file.link[i];
            assert_true(link->step == 2 * (i + 1) && link->since == 2 * i && link->data != 0);
            chain = hash_link_chain(chain, link);
            assert_true(link->chain == chain);
        }
        assert_true(file.link[1].weights == weights && file.link[1].optimizer == optimizer);
        hash_file_free(&file);
        free(dir);
    }
}

static void test_any_ranks(void **state) {
    FileTest *t = *state;
    for (size_t s = 0; s < STORAGE_COUNT; ++s) {
        Story story = {.storage = STORAGES[s], .world = 1, .every = 2, .last = 4, .out_dir = fresh_dir(t, "one")};
        run_well(&story);
        char *one = (char *)story.out_dir;
        for (story.world = 2; story.world <= MOST_RANKS; ++story.world)
            for (story.stage = 0; story.stage <= 3; ++story.stage) {
                story.out_dir = fresh_dir(t, "many");
                story.compare_every = 1;
                run_well(&story);
                char *label = xasprintf("storage %zu, %d ranks, zero=%d", s, story.world, story.stage);
                expect_same_links(one, story.out_dir, label);
                free(label);
                free((char *)story.out_dir);
            }
        free(one);
    }
}

// A change of one bit changes exactly the hash that covers it, on whatever rank it is.
static void test_every_bit(void **state) {
    FileTest *t = *state;
    const Storage masters = {OPTIMIZER_ADAMW, DTYPE_BF16, false};
    char *good = fresh_dir(t, "good");
    run_well(&(Story){.storage = masters, .world = 1, .every = 1, .last = 3, .out_dir = good});
    HashFile expected = links_of(good);
    for (int what = BAD_MASTER; what <= BAD_ROW_WEIGHT; ++what)
        for (int world = 1; world <= 3; world += 2) {
            char *dir = fresh_dir(t, "bad");
            run_well(&(Story){.storage = masters, .world = world, .stage = 1, .every = 1, .last = 3, .out_dir = dir,
                              .fault = {.step = 2, .what = what, .rank = world - 1}});
            HashFile found = links_of(dir);
            for (int i = 0; i < 3; ++i) {
                const HashLink *a = &expected.link[i], *b = &found.link[i];
                bool from = i >= 1, at = i == 1;
                assert_int_equal(a->weights != b->weights, from && what == BAD_MASTER);
                assert_int_equal(a->optimizer != b->optimizer, from && (what == BAD_M || what == BAD_V));
                assert_int_equal(a->data != b->data, at && what >= BAD_TOKEN);
                assert_int_equal(a->chain != b->chain, from);
            }
            hash_file_free(&found);
            free(dir);
        }
    hash_file_free(&expected);
    free(good);
}

// Stopped between two links, resumed with another number of ranks, rewound: the file and the chain equal those of a run
// that never stopped.
static void test_interruptions(void **state) {
    FileTest *t = *state;
    Story whole = {.storage = STORAGES[0], .world = 1, .every = 4, .last = 12, .out_dir = fresh_dir(t, "whole")};
    RunProgress end = run_well(&whole);
    for (int64_t stop = 4; stop <= 7; ++stop) {
        Story part = whole;
        part.out_dir = fresh_dir(t, "parts");
        part.world = 3;
        part.stage = 2;
        part.last = stop;
        RunProgress saved = run_well(&part);
        assert_int_equal(saved.chain_step, 4);
        // The run continued and was killed: lines that it wrote after the checkpoint are dropped.
        Story lost = part;
        lost.first = stop;
        lost.start = saved;
        lost.last = 11;
        lost.fault = (Fault){.step = stop + 1, .what = BAD_M};
        run_well(&lost);
        part.world = stop % 2 == 0 ? 2 : 1;
        part.stage = 3;
        part.first = stop;
        part.start = saved;
        part.last = 12;
        RunProgress again = run_well(&part);
        assert_true(again.chain == end.chain && again.chain_data == 0 && again.chain_step == 12);
        expect_same_links(whole.out_dir, part.out_dir, "gone on with");
        free((char *)part.out_dir);
    }
    free((char *)whole.out_dir);
}
// Within one process, like a run that rewinds because of a spike.
static void test_going_back(void **state) {
    FileTest *t = *state;
    Story story = {.storage = STORAGES[0], .world = 1, .every = 2, .last = 3, .out_dir = fresh_dir(t, "run")};
    char *whole = fresh_dir(t, "whole");
    Story never = story;
    never.out_dir = whole;
    never.last = 6;
    run_well(&never);

    Rank rank = {.story = &story};
    ModelTest m = {0};
    model_test_config(&m.config, LLAMA);
    m.config.optimizer = OPTIMIZER_ADAMW;
    ModelShape shape = {.max_rows = 4, .max_seq_len = 4, .dtype = DTYPE_F32, .training = true};
    model_test_open(&m, &shape, 1);
    HashChain chain;
    HashChainOptions options = {.launch_world = 1, .data = MESH_ALONE, .every = 2, .out_dir = story.out_dir};
    assert_true(hash_chain_open(&chain, m.be, &options, &story.start, &rank.err) && run_steps(&rank, &chain, &m));
    RunProgress saved = rank.end;
    story.first = 3;
    story.last = 9;
    story.fault = (Fault){.step = 4, .what = BAD_TOKEN};
    assert_true(run_steps(&rank, &chain, &m));
    story.start = saved;
    story.last = 6;
    story.fault.what = NOTHING;
    assert_true(hash_chain_resume(&chain, &saved, &rank.err) && run_steps(&rank, &chain, &m));
    hash_chain_close(&chain);
    model_test_close(&m);
    expect_same_links(whole, story.out_dir, "gone back");
    free((char *)story.out_dir);
    free(whole);
}

// Without links nothing is written; when links begin later, `since` of the first one is the step at which they began.
static void test_begun_later(void **state) {
    FileTest *t = *state;
    Story story = {.storage = STORAGES[0], .world = 2, .stage = 1, .last = 5, .out_dir = fresh_dir(t, "run")};
    RunProgress saved = run_well(&story);
    assert_true(saved.chain == 0 && saved.chain_step == 5 && saved.chain_data == 0);
    assert_int_equal(file_test_count_entries(story.out_dir), 0);
    story.every = 4;
    story.first = 5;
    story.start = saved;
    story.last = 12;
    run_well(&story);
    HashFile file = links_of(story.out_dir);
    assert_true(file.count == 2 && file.link[0].step == 8 && file.link[0].since == 5 && file.link[1].since == 8);
    hash_file_free(&file);
    free((char *)story.out_dir);
}

// On a full disk lines are lost, but the run and the chain continue.
static void test_full_disk(void **state) {
    FileTest *t = *state;
    Story story = {.storage = STORAGES[0], .world = 1, .every = 1, .last = 4, .out_dir = fresh_dir(t, "run")};
    RunProgress end = run_well(&story);
    free((char *)story.out_dir);
    story.out_dir = fresh_dir(t, "full");
    Rank rank;
    file_test_limit_file_size(250);
    run_story(&story, &rank);
    file_test_limit_file_size(0);
    assert_true(rank.ok && rank.end.chain == end.chain);
    HashFile file = links_of(story.out_dir);
    assert_int_equal(file.count, 1);
    hash_file_free(&file);
    free((char *)story.out_dir);
    story.out_dir = "/nowhere/at/all";
    run_story(&story, &rank);
    assert_false(rank.ok);
    assert_non_null(strstr(rank.err.message, "/nowhere/at/all/hashes.jsonl"));
}

// ---- replicas ----

static void test_judge(void **state) {
    (void)state;
    static const struct {
        int world;
        uint64_t hashes[5];
        const char *odd;
    } CASES[] = {{1, {7}, "0"},
                 {2, {7, 7}, "00"},
                 {2, {7, 8}, "11"},
                 {3, {7, 8, 7}, "010"},
                 {3, {8, 7, 7}, "100"},
                 {3, {1, 2, 3}, "111"},
                 {4, {5, 5, 6, 6}, "1111"},
                 {4, {5, 5, 6, 5}, "0010"},
                 {4, {5, 6, 7, 5}, "1111"},
                 {5, {9, 1, 9, 2, 9}, "01010"},
                 {5, {1, 9, 9, 9, 2}, "10001"}};
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; ++i) {
        bool odd[5];
        int count = replicas_judge(odd, CASES[i].hashes, CASES[i].world), expected = 0;
        for (int r = 0; r < CASES[i].world; ++r) {
            assert_int_equal(odd[r], CASES[i].odd[r] == '1');
            expected += CASES[i].odd[r] == '1';
        }
        assert_int_equal(count, expected);
    }
}

// The message is the same on every rank.
static void expect_drift(const Story *story, const char *const *mentions) {
    Rank ranks[MOST_RANKS];
    run_story(story, ranks);
    for (int r = 0; r < story->world; ++r) {
        assert_false(ranks[r].ok);
        assert_string_equal(ranks[r].err.message, ranks[0].err.message);
    }
    for (int i = 0; mentions[i] != NULL; ++i)
        if (strstr(ranks[0].err.message, mentions[i]) == NULL)
            fail_msg("expected \"%s\" in: %s", mentions[i], ranks[0].err.message);
}
#define SAYS(...) (const char *const[]){__VA_ARGS__, NULL}

static void test_replicas(void **state) {
    FileTest *t = *state;
    for (int stage = 0; stage <= 2; ++stage)
        for (size_t s = 0; s < STORAGE_COUNT; ++s) {
            Story story = {.storage = STORAGES[s], .world = 4, .stage = stage, .compare_every = 2, .last = 6,
                           .out_dir = t->dir, .fault = {.step = 3, .what = BAD_WEIGHT, .rank = 2}};
            expect_drift(&story, SAYS("step 4: rank 2 (node1, pid 4702) has drifted: its weights are not those of "
                                      "the other 3 ranks; they were the same at step 2"));
        }
    Story story = {.storage = STORAGES[1], .world = 2, .compare_every = 3, .last = 6, .out_dir = t->dir,
                   .fault = {.step = 1, .what = BAD_WEIGHT, .rank = 0}};
    expect_drift(&story, SAYS("step 3: the ranks have drifted apart: the weights of rank 0 (node0, pid 4700) and "
                              "rank 1 (node0, pid 4701) differ", "no majority", "this was the first comparison"));
    // No comparison: at other steps, never, or where there are no replicas.
    story.last = 2;
    run_well(&story);
    story.last = 6;
    story.compare_every = 0;
    run_well(&story);
    story.compare_every = 1;
    story.stage = 3;
    run_well(&story);
    story.stage = 0;
    story.world = 1;
    run_well(&story);
}

int main(void) {
    alarm(MOST_SECONDS);
    const struct CMUnitTest tests[] = {FILE_TEST(test_sums),         FILE_TEST(test_any_ranks),
                                       FILE_TEST(test_every_bit),    FILE_TEST(test_interruptions),
                                       FILE_TEST(test_going_back),   FILE_TEST(test_begun_later),
                                       FILE_TEST(test_full_disk),    FILE_TEST(test_judge),
                                       FILE_TEST(test_replicas)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
