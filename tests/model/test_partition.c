// test_partition.c: every element has one owner, for every model, world size and stage; Muon's matrices stay whole and
// balanced; with lanes the segments are the same for every world size.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "llmc/model/partition.h"

static const char *KINDS[] = {"gpt2:124M", "llama:d4", "stories:260K"};
#define KIND_COUNT (sizeof KINDS / sizeof KINDS[0])

static void build_params(ParamTable *params, const char *name) {
    ModelConfig config;
    assert_true(model_config_preset(&config, name, NULL));
    if (config.V == 0) config.V = 1000;
    assert_true(model_config_finish(&config, NULL));
    params_build(params, &config);
}

// Marks the elements of every rank's pieces; each parameter element is marked once (stage 0: by every rank).
static void check_pieces(const ParamTable *params, PartitionOptions options) {
    uint8_t *seen = calloc((size_t)params->total_elems, 1);
    assert_non_null(seen);
    int64_t wrong = 0;
    for (int r = 0; r < options.data.world; ++r) {
        options.data.rank = r;
        Partition p;
        partition_build(&p, params, &options);
        int64_t packed_end = 0, owned = 0, segments = 0;
        for (int i = 0; i < p.pieces; ++i) {
            const Piece *piece = &p.piece[i];
            const ParamSpec *spec = &params->spec[piece->param];
            assert_true(piece->count > 0 && piece->first >= 0 && piece->first + piece->count <= spec->elems);
            assert_true(piece->packed >= packed_end);
            packed_end = piece->packed + piece->count;
            assert_int_equal(piece->v_packed < 0, options.muon && spec->hidden_matrix);
            if (piece->v_packed >= 0) assert_true(piece->v_packed + piece->count <= p.v_elems);
            assert_int_equal(piece->part >= 0, options.muon && spec->hidden_matrix);
            if (piece->part >= 0) assert_int_equal(piece->count, spec->part_rows[piece->part] * spec->dim[1]);
            for (int64_t e = 0; e < piece->count; ++e) ++seen[spec->offset + piece->first + e];
        }
        assert_true(packed_end <= p.packed_elems);
        for (int b = 0; b < p.buckets; ++b) {
            int64_t end = 0;
            for (int i = 0; i < p.bucket[b].segments; ++i) {
                const CommSegment *s = &p.bucket[b].segment[i];
                assert_int_equal(s->first, end);
                assert_true(s->count > 0 && s->owner >= 0 && s->owner < options.data.world);
                end += s->count;
                if (s->owner == r) owned += s->count;
            }
            assert_int_equal(end, p.bucket[b].elems);
            segments += p.bucket[b].segments;
        }
        assert_int_equal(segments, p.segments);
        if (options.stage == 0) assert_int_equal(p.packed_elems, params->total_elems);
        else assert_int_equal(p.packed_elems, owned);
        partition_free(&p);
    }
    for (int i = 0; i < params->count; ++i)
        for (int64_t e = 0; e < params->spec[i].elems; ++e)
            wrong += seen[params->spec[i].offset + e] != (options.stage == 0 ? options.data.world : 1);
    assert_int_equal(wrong, 0);
    free(seen);
}

static void test_every_element_has_an_owner(void **state) {
    (void)state;
    for (size_t k = 0; k < KIND_COUNT; ++k) {
        ParamTable params;
        build_params(&params, KINDS[k]);
        bool small = params.total_elems < 1 << 24;
        for (int world = 1; world <= (small ? 7 : 3); ++world)
            for (int muon = 0; muon < 2; ++muon) {
                check_pieces(&params, (PartitionOptions){.data.world = world, .stage = 1, .muon = muon});
                if (small) check_pieces(&params, (PartitionOptions){.data.world = world, .stage = 0, .muon = muon});
                if (small && (world & (world - 1)) == 0)
                    check_pieces(&params, (PartitionOptions){.data.world = world, .stage = 3, .lanes = true, .muon = muon});
            }
        params_free(&params);
    }
}

// More ranks than the smallest buckets of a small model have segments of PARAM_ALIGN_ELEMS.
static void test_many_ranks(void **state) {
    (void)state;
    ParamTable params;
    build_params(&params, "stories:260K");
    check_pieces(&params, (PartitionOptions){.data.world = 300, .stage = 2});
    check_pieces(&params, (PartitionOptions){.data.world = 300, .stage = 2, .muon = true});
    params_free(&params);
}

static void test_equal_shares(void **state) {
    (void)state;
    ParamTable params;
    build_params(&params, "gpt2:124M");
    int64_t most = 0, least = INT64_MAX;
    for (int r = 0; r < 8; ++r) {
        Partition p;
        partition_build(&p, &params, &(PartitionOptions){.data = {r, 8}, .stage = 1});
        most = most > p.packed_elems ? most : p.packed_elems;
        least = least < p.packed_elems ? least : p.packed_elems;
        partition_free(&p);
    }
    // The last rank also has the remainder: less than 8 * 128 elements of each bucket.
    assert_true(most - least <= 14 * 8 * PARAM_ALIGN_ELEMS);
    PartitionOptions options = {.data.world = 8, .stage = 1};
    assert_int_equal(partition_fullest_rank(&params, &options), 7);
    params_free(&params);
}

// Newton-Schulz work of each rank, by the partition's cost formula.
static void test_muon_balance(void **state) {
    (void)state;
    ParamTable params;
    build_params(&params, "gpt2:124M");
    double load[4] = {0}, most = 0, sum = 0;
    for (int r = 0; r < 4; ++r) {
        Partition p;
        partition_build(&p, &params, &(PartitionOptions){.data = {r, 4}, .stage = 1, .muon = true});
        for (int i = 0; i < p.pieces; ++i) {
            if (p.piece[i].part < 0) continue;
            const ParamSpec *spec = &params.spec[p.piece[i].param];
            double rows = (double)spec->part_rows[p.piece[i].part], cols = (double)spec->dim[1];
            double side = rows < cols ? rows : cols, length = rows < cols ? cols : rows;
            load[r] += side * side * (2 * length + side);
        }
        most = most > load[r] ? most : load[r];
        sum += load[r];
        partition_free(&p);
    }
    assert_true(most <= 1.1 * sum / 4);
    params_free(&params);
}

static void test_lanes_cut_alike(void **state) {
    (void)state;
    ParamTable params;
    build_params(&params, "llama:d4");
    for (int muon = 0; muon < 2; ++muon) {
        Partition one;
        partition_build(&one, &params, &(PartitionOptions){.data.world = 1, .stage = 1, .lanes = true, .muon = muon});
        for (int world = 2; world <= PARTITION_GRAINS; world *= 2) {
            Partition p;
            partition_build(&p, &params, &(PartitionOptions){.data = {1, world}, .stage = 2, .lanes = true,
                                                             .muon = muon});
            assert_int_equal(p.segments, one.segments);
            for (int b = 0; b < p.buckets; ++b)
                for (int i = 0; i < p.bucket[b].segments; ++i) {
                    assert_int_equal(p.bucket[b].segment[i].first, one.bucket[b].segment[i].first);
                    assert_int_equal(p.bucket[b].segment[i].count, one.bucket[b].segment[i].count);
                }
            partition_free(&p);
        }
        partition_free(&one);
    }
    params_free(&params);
}

static void test_check(void **state) {
    (void)state;
    Error err = {""};
    assert_true(partition_check(&(PartitionOptions){.data.world = 3}, &err));
    assert_true(partition_check(&(PartitionOptions){.data.world = 16, .lanes = true}, &err));
    assert_false(partition_check(&(PartitionOptions){.data.world = 3, .lanes = true}, &err));
    assert_non_null(strstr(err.message, "found 3"));
    assert_false(partition_check(&(PartitionOptions){.data.world = 32, .lanes = true}, &err));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_element_has_an_owner), cmocka_unit_test(test_many_ranks),
        cmocka_unit_test(test_equal_shares),               cmocka_unit_test(test_muon_balance),
        cmocka_unit_test(test_lanes_cut_alike),            cmocka_unit_test(test_check),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
