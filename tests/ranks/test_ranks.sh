#!/bin/bash
# test_ranks.sh: train_gpt under mpirun: several ranks train to the same numbers as one in every ZeRO stage; with
# deterministic=lanes to the same bits. Fault injection is in test_faults.sh.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

need_mpi ranks
shards 12000 || exit 1

# run NAME RANKS [key=value...]: six steps of eight micro-batches, of a Llama-style model.
run() {
    rm -rf "${work:?}/$1"
    tiny_ranks "$1" "$2" model=llama:d3 batch_rows=4 batch_tokens=1024 steps=6 val_every=3 val_tokens=2048 save_every=0 "${@:3}" ||
        { tail -n 5 "$work/$1.log"; return 1; }
}
# Losses, held-out losses and gradient norms with all digits.
numbers() { grep 'loss"' "$work/$1/metrics.jsonl" | grep -o '"step":[0-9]*\|"\(val_\)*loss":[-0-9.e+]*\|"grad_norm":[-0-9.e+]*'; }

same_bits() { # NAME RANKS REFERENCE [key=value...]
    run "$1" "$2" "${@:4}" || return 1
    cmp <(numbers "$3") <(numbers "$1") || { paste <(numbers "$3") <(numbers "$1") | awk '$1 != $2' | head -n 3; return 1; }
}
# The weights too, converted to one rank's form.
same_weights() { # NAME REFERENCE
    "$train_gpt" ckpt diff "$work/$1/step_00000006" "$work/$2/step_00000006" >"$work/diff" || { tail -n 4 "$work/diff"; return 1; }
}
# fp32: sums in another order differ by 1e-7 per step and element; after six steps, each starting from the last one's
# weights, by less than 1e-6. bf16 rounds weights and activations to 8 bits: 2^-9 of a loss near 4 is 8e-3.
close_to() { # NAME RANKS REFERENCE TOLERANCE [key=value...]
    run "$1" "$2" "${@:5}" || return 1
    paste <(numbers "$3") <(numbers "$1") | awk -v most="$4" '
        {split($1, a, ":"); split($2, b, ":"); ++n; d = (a[2] - b[2]) / (a[2] == 0 ? 1 : a[2]); if (d < 0) d = -d
         if (!(d <= most) || a[1] != b[1]) {print "    " $1, $2; bad = 1}}
        END {exit bad || n < 24}'
}

check one run one 1
for zero in 0 1 2 3; do
    check "two_ranks_zero$zero" close_to "two$zero" 2 one 1e-6 zero=$zero
done
check three_ranks_zero1 close_to three1 3 one 1e-6 zero=1
check three_ranks_zero3 close_to three3 3 one 1e-6 zero=3 recompute=block
check five_ranks_zero2 close_to five 5 one 1e-6 zero=2
check a_run_repeats same_bits again 2 two3 zero=3
check reduce_in_bf16 close_to half 2 one 1e-3 zero=2 reduce_dtype=bf16

check one_lanes run lanes 1 deterministic=lanes
check lanes_are_close close_to lanes-one 1 one 1e-6 deterministic=lanes
for zero in 0 1 2 3; do
    check "lanes_two_ranks_zero$zero" same_bits "lanes2$zero" 2 lanes zero=$zero deterministic=lanes
done
check lanes_four_ranks_zero0 same_bits lanes40 4 lanes zero=0 deterministic=lanes
check lanes_four_ranks_zero3 same_bits lanes43 4 lanes zero=3 deterministic=lanes
check lanes_weights_zero3 same_weights lanes43 lanes
check lanes_weights_zero1 same_weights lanes21 lanes
# Padding: seven micro-batches on two and four ranks.
check one_lanes_odd run odd 1 deterministic=lanes batch_tokens=896
check lanes_odd_two same_bits odd2 2 odd deterministic=lanes batch_tokens=896 zero=2
check lanes_odd_four same_bits odd4 4 odd deterministic=lanes batch_tokens=896 zero=1

check one_muon run muon 1 optimizer=muon dtype=bf16 deterministic=lanes
check lanes_muon_two same_bits muon2 2 muon optimizer=muon dtype=bf16 deterministic=lanes zero=1
check lanes_muon_four same_bits muon4 4 muon optimizer=muon dtype=bf16 deterministic=lanes zero=3
check one_muon_fp32 run muon-fp32 1 optimizer=muon
check two_muon close_to muon32 2 muon-fp32 1e-5 optimizer=muon zero=2
check one_stochastic run stochastic 1 dtype=bf16 master_weights=false deterministic=lanes
check lanes_stochastic same_bits stochastic2 2 stochastic dtype=bf16 master_weights=false deterministic=lanes zero=2
gpt2="model=gpt2:d1 vocab=257 tied=true kv_heads=0 qk_norm=false"
# shellcheck disable=SC2086
check one_tied run tied 1 deterministic=lanes $gpt2
# shellcheck disable=SC2086
check lanes_tied same_bits tied4 4 tied deterministic=lanes zero=3 $gpt2

# Ranks that differ: different options are found at the start; different weights (one rank reads them from a directory of the
# same name elsewhere) are found when the replicas are compared, before that rank's gradients have much effect.
small="train=$work/data/train_*.bin device=cpu threads=1 steps=8 seq_len=32 batch_rows=1 batch_tokens=192 val_every=0 save_every=0 comm_timeout=60 progress_bar=false"
drift() {
    local where
    for where in here there; do mkdir -p "$work/$where"; done
    "$train_gpt" train out_dir="$work/here/run" model=llama:d1 channels=32 heads=2 $small seed=1 steps=1 >/dev/null 2>&1 || return 1
    "$train_gpt" train out_dir="$work/there/run" model=llama:d1 channels=32 heads=2 $small seed=2 steps=1 >/dev/null 2>&1 || return 1
    mv "$work/here/run/step_00000001" "$work/here/model" && mv "$work/there/run/step_00000001" "$work/there/model" || return 1
    local program=("$(realpath "$train_gpt")" train out_dir="$work/drift" init_from=model $small compare_every=2 zero=$1)
    expect 1 "rank 2 .* has drifted" timeout 60 "${mpi[@]}" -np 2 --wdir "$work/here" "${program[@]}" : -np 1 --wdir "$work/there" "${program[@]}"
}
check a_rank_that_drifts_is_named drift 0
# shellcheck disable=SC2086
check other_options_are_found expect 1 "rank 1 .* other options than rank 0" timeout 60 "${mpi[@]}" -np 1 "$train_gpt" train out_dir="$work/no" model=llama:d1 $small : \
    -np 1 "$train_gpt" train out_dir="$work/no" model=llama:d1 $small lr=1e-3

check lanes_want_a_power_of_two expect 1 "expected 1, 2, 4, 8 or 16 ranks, found 3" "${mpi[@]}" -np 3 "$train_gpt" train out_dir="$work/no" \
    train="$work/data/train_*.bin" model=llama:d1 device=cpu steps=1 deterministic=lanes seq_len=32 batch_rows=1 batch_tokens=96
check lanes_add_in_fp32 expect 1 "expected reduce_dtype=fp32" "$train_gpt" train out_dir="$work/no" \
    train="$work/data/train_*.bin" model=llama:d1 device=cpu steps=1 deterministic=lanes reduce_dtype=bf16 seq_len=32 batch_rows=1 batch_tokens=32
finish
