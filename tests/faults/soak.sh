#!/bin/bash
# soak.sh: kills one run again and again; no step may be lost or changed.
#     tests/faults/soak.sh [KILLS [BUILD]]       default: 50 build
#         SEED=n repeats the choices; WORLDS="1 2 4" and OPTIONS="optimizer=muon" choose ranks and add options
# A loop starts the run with 1, 2 or 4 ranks and a random zero stage, kills (-9) one rank or all of them at a random moment
# (while they start, train, save or evaluate), checks that the newest checkpoint is complete and not older than before, and
# restarts the run. After the last kill the run continues to its end; every loss it logged must equal that of an undisturbed
# run to the last bit.
set -u
cd "$(dirname "$0")/../.." || exit 1
kills=${1:-50}
set -- "${2:-build}"
. tests/support/lib.sh
steps=$((40 * kills + 100)) save_every=10
. tests/faults/ranks.sh
why=$(mpi_missing)
[ -z "$why" ] || { echo "soak.sh: $why" >&2; exit 1; }
trap 'ranks_end; rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
ranks_data || exit 1
seed=${SEED:-$(($(date +%s) % 32768))}
RANDOM=$seed
began=$SECONDS

fail() {
    echo "soak.sh: SEED=$seed, kill $kill: $1; the run's output ends:" >&2
    log_end soak >&2
    exit 1
}
logged() { tail -n 1 "$work/soak/metrics.jsonl" 2>/dev/null | grep -o '^{"step":[0-9]*' | grep -o '[0-9]*$' || echo 0; }

read -ra worlds <<<"${WORLDS:-1 2 4}"
kept=0 lost_steps=0 early=0
for ((kill = 1; kill <= kills; ++kill)); do
    world=${worlds[RANDOM % ${#worlds[@]}]}
    from=$(logged)
    # shellcheck disable=SC2086
    start soak "$world" keep_last=3 zero=$((RANDOM % 4)) ${OPTIONS:-}
    if [ $((RANDOM % 4)) -eq 0 ]; then
        sleep "0.$((RANDOM % 10))"
    else
        # Up to 60 steps later; then a few milliseconds, so that kills hit different places of a step.
        target=$((kept + 1 + RANDOM % 60))
        [ $target -lt $steps ] || target=$((steps - 1))
        wait_step soak $target >/dev/null || fail "step $target was not reached"
        sleep "0.0$((RANDOM % 10))"
    fi
    if [ $((RANDOM % 3)) -eq 0 ]; then
        ranks_end
    else
        # While the run starts, there may be no rank yet.
        victim=$(rank_pid soak $((RANDOM % world))) && kill -9 "$victim" || { early=$((early + 1)) && ranks_end; }
    fi
    run_end soak
    newest=$(newest_checkpoint soak)
    if [ -n "$newest" ]; then
        "$train_gpt" ckpt verify "$newest" >"$work/verify.log" 2>&1 || fail "$(cat "$work/verify.log")"
        now=$((10#${newest##*step_}))
        [ "$now" -ge "$kept" ] || fail "the newest checkpoint is of step $now, expected $kept or later"
        kept=$now
    elif [ "$kept" -gt 0 ]; then
        fail "no checkpoint is left"
    fi
    lost_steps=$((lost_steps + $(logged) - kept))
done
# shellcheck disable=SC2086
run soak "${worlds[-1]}" keep_last=3 ${OPTIONS:-}
[ "$status" -eq 0 ] || fail "the last run ended with status $status"
# shellcheck disable=SC2086
run straight 1 ${OPTIONS:-}
same_losses soak straight || fail "the losses differ from those of an undisturbed run"
echo "soak: $kills kills ($early while starting), $steps steps, $lost_steps steps computed again, $((SECONDS - began)) s; every loss as in an undisturbed run (SEED=$seed)"
