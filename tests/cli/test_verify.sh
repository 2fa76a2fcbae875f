#!/bin/bash
# test_verify.sh: runs with hash_every=N and the output of train_gpt verify: equal links for any number of ranks, ZeRO stage and
# interruption; the step and the cause of a difference. test_command_verify.c tests files and messages in detail.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh

shards 12000 || exit 1

# run NAME RANKS [key=value...]: eight steps of eight micro-batches; resumes where NAME stopped.
run() {
    tiny_ranks "$1" "$2" val= batch_rows=2 batch_tokens=512 steps=8 val_every=0 save_every=5 deterministic=lanes compare_every=2 \
        hash_every=1 "${@:3}" || { tail -n 5 "$work/$1.log"; return 1; }
}
verify() { expect "$1" "$2" "$train_gpt" verify "$work/$3" "$work/$4"; }
# STATUS TEXT NAME REFERENCE RANKS [key=value...]
run_and_verify() {
    run "$3" "$5" "${@:6}" && verify "$1" "$2" "$3" "$4"
}
# Another number of ranks resumes a checkpoint of step 5, between the links of steps 3 and 6: the file equals that of the
# uninterrupted run.
resumed() {
    rm -rf "${work:?}/parts"
    cp -r "$work/thirds" "$work/parts" && rm -r "$work/parts/step_00000008" && run parts "$1" "${@:2}" hash_every=3 || return 1
    grep -q 'resumed' "$work/parts.log" && cmp "$work/thirds/hashes.jsonl" "$work/parts/hashes.jsonl"
}

check one run one 1
check a_repetition run_and_verify 0 '^equal' again one 1
check other_links run_and_verify 0 '^2 of 2 common links agree' thirds one 1 hash_every=3
check resumed_by_one resumed 1
check other_data run_and_verify 1 'different from step 1 on: data, weights and optimizer state' data one 1 seed=5
check other_rate run_and_verify 1 'different from step 1 on: weights' rate one 1 lr=4e-3
check other_rate_same_data verify 1 'the data is equal' rate one
check one_bf16 run bf16 1 dtype=bf16
check one_muon run muon 1 optimizer=muon
no_chain() { run none 1 hash_every=0 && verify 1 'none/hashes.jsonl: there is no such file' none one; }
check no_chain no_chain

why=$(mpi_missing)
if [ -n "$why" ]; then
    skip ranks "$why"
    finish
    exit
fi
for zero in 0 1 2 3; do check "two_ranks_zero$zero" run_and_verify 0 '^equal' "two$zero" one 2 zero=$zero; done
check four_ranks run_and_verify 0 '^equal' four one 4 zero=3
check two_ranks_bf16 run_and_verify 0 '^equal' two-bf16 bf16 2 dtype=bf16 zero=1
check two_ranks_muon run_and_verify 0 '^equal' two-muon muon 2 optimizer=muon zero=2
check resumed_by_two resumed 2 zero=3
# deterministic=lanes needs a power of two; the data, padding included, is equal for any number of ranks.
check three_ranks run_and_verify 1 'the data is equal' three one 3 zero=1 deterministic=run
finish
