#!/bin/bash
# test_spikes.sh: runs over text with a stretch of noise. Its rows cause spikes: the steps are skipped, or the run rewinds to a
# checkpoint and skips their data. Stopped and resumed anywhere, a run ends with the same bits.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

# 60 kB of text with some structure; 48 random characters after word 6200, which are 2 or 3 rows of 1800.
awk 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
    for (i = 0; i < 12000; ++i) {
        printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "
        if (i == 6200) for (k = 0; k < 48; ++k) printf "%c", 33 + int(rand() * 90)
    }}' >"$work/text.txt"
check tokenize shards - 0.02

# run DIR [key=value...]: with this seed the noise is in the data of steps 78 and 182.
run() {
    tiny_run "$1" batch_rows=4 batch_tokens=256 steps=200 val_every=0 save_every=25 seed=4 spike_z=8 spike_window=32 "${@:2}"
}
same_end() {
    local file
    for file in model.safetensors optimizer.safetensors; do
        cmp "$1/step_00000200/$file" "$2/step_00000200/$file" || return 1
    done
}
# state DIR STEP KEY: the value on its line of state.json.
state() { sed -n "s/^\t\"$3\":\t\(.*[^,]\),*$/\1/p" "$1/step_$(printf %08d "$2")/state.json"; }
# LOG LINE...: checks that these are all lines of the guard in the log.
said() {
    local log=$1
    shift
    grep -aE "^(step [0-9]+ skipped|back to step|train_gpt: stopped)" "$log" | sed 's/: .*//' >"$work/said"
    printf '%s\n' "$@" | diff - "$work/said"
}

skipped() {
    run "$work/skip" >"$work/skip.log" 2>&1 || { tail -n 5 "$work/skip.log"; return 1; }
    said "$work/skip.log" "step 78 skipped" "step 182 skipped" && [ "$(state "$work/skip" 200 spikes)" = 2 ] &&
        [ "$(state "$work/skip" 200 bad_steps)" = 2 ] && [ "$(state "$work/skip" 200 skips)" = "[]" ]
}
check spikes_are_skipped skipped

# NAME STEP LINE...: resumes a copy of the run from STEP.
go_on() {
    local name=$1 step=$2 dir=$work/resumed
    shift 2
    rm -rf "$dir"
    cp -r "$work/$name" "$dir"
    for other in "$dir"/step_*; do
        [ "$other" = "$dir/step_$(printf %08d "$step")" ] || rm -r "$other"
    done
    run "$dir" on_spike="$name" >"$work/resumed.log" 2>&1 || { tail -n 5 "$work/resumed.log"; return 1; }
    said "$work/resumed.log" "$@" && same_end "$work/$name" "$dir"
}
check resumed_before_a_spike go_on skip 75 "step 78 skipped" "step 182 skipped"
check resumed_after_a_spike go_on skip 100 "step 182 skipped"

# The second stretch of noise is three steps earlier after three steps of data are skipped.
rewound() {
    run "$work/rewind" on_spike=rewind >"$work/rewind.log" 2>&1 || { tail -n 5 "$work/rewind.log"; return 1; }
    said "$work/rewind.log" "step 78 skipped" "back to step 75 because of step 78" \
        "step 179 skipped" "back to step 175 because of step 179" || return 1
    grep -q "the data of steps 176 to 179 (steps 179 to 182 of" "$work/rewind/metrics.jsonl" || return 1
    [ "$(state "$work/rewind" 200 spikes)" = 2 ] && [ "$(state "$work/rewind" 200 bad_steps)" = 0 ] &&
        [ "$(state "$work/rewind" 75 skips)" = "[]" ] && [ "$(state "$work/rewind" 175 skips)" = "[[75, 3]]" ] &&
        [ "$(state "$work/rewind" 200 skips)" = "[[75, 3], [175, 4]]" ]
}
check back_to_the_checkpoint rewound
# A run killed between the rewind and the next checkpoint rewinds again for the same reason.
check resumed_before_going_back go_on rewind 75 "step 78 skipped" "back to step 75 because of step 78" \
    "step 179 skipped" "back to step 175 because of step 179"
check resumed_between go_on rewind 100 "step 179 skipped" "back to step 175 because of step 179"

check nothing_to_go_back_to expect 0 "step 78 skipped" run "$work/early" on_spike=rewind save_every=100 steps=80
not_back() { grep -q 'step 78 skipped' "$work/early/metrics.jsonl" && ! grep -q 'back to step' "$work/early/metrics.jsonl"; }
check nothing_to_go_back_to_is_a_skip not_back
check too_often_to_one_checkpoint expect 1 "stopped at step [0-9]+: .*checkpoint of step [0-9]+ 3 times.*larger spike_z" \
    run "$work/often" on_spike=rewind spike_z=0.0001 max_bad_steps=1000 save_every=50 spike_window=16
check too_many_skipped expect 1 "3 steps in a row were skipped .max_bad_steps=3.*is above the bound.*larger spike_z" \
    run "$work/many" spike_z=0.0001 max_bad_steps=3 steps=100

# All ranks decide alike, rewind to the same checkpoint and skip the same data; with lanes, with the bits of one rank.
# NAME RANKS LIKE [key=value...]
ranks() {
    local name=$1 count=$2 like=$3 one=$train_gpt
    shift 3
    train_gpt=launched
    run "$work/$name" steps=100 on_spike=rewind deterministic=lanes threads=1 comm_timeout=60 "$@" >"$work/$name.log" 2>&1
    local status=$?
    train_gpt=$one
    [ $status -eq 0 ] || { tail -n 5 "$work/$name.log"; return 1; }
    said "$work/$name.log" "step 78 skipped" "back to step 75 because of step 78" || return 1
    [ "$like" = "$name" ] || "$train_gpt" ckpt diff "$work/$like/step_00000100" "$work/$name/step_00000100" >"$work/diff" ||
        { tail -n 4 "$work/diff"; return 1; }
}
launched() {
    [ "$count" -gt 1 ] || { "$one" "$@"; return; }
    env "$(sanitize_for "$count")" timeout -k 5 120 "${mpi[@]}" -np "$count" "$one" "$@"
}
several_ranks() {
    check one_rank_in_lanes ranks lanes 1 lanes
    check two_ranks_go_back ranks two 2 lanes zero=3
    check four_ranks_of_two_lanes_go_back ranks four 4 lanes zero=2
}
why=$(mpi_missing)
if [ -n "$why" ]; then skip several_ranks "$why"; else several_ranks; fi

finish
