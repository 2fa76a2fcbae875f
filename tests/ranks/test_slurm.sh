#!/bin/bash
# test_slurm.sh: the recipes of scripts/slurm on a private Slurm cluster of two nodes, started and stopped here. First the
# recipes with a stand-in for the program; then training on two ranks that is requeued, preempted, signalled and killed
# half-way, and must end with the losses of an undisturbed run, to the last bit.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
. tests/faults/ranks.sh
. tests/ranks/slurm/cluster.sh
at_end() {
    cluster_stop
    ranks_end
    rm -rf "$work"
}
trap at_end EXIT
trap 'exit 1' INT TERM

# Without a cluster: the recipes print their help.
for recipe in single_node multi_node seeds_array; do
    check "help_$recipe" expect 0 "sbatch .*scripts/slurm/$recipe.sbatch run.conf" env -u SLURM_JOB_ID -u SLURM_ARRAY_TASK_ID \
        scripts/slurm/$recipe.sbatch --help
done
check train_needs_a_job expect 2 "expected to run in a Slurm job" env -u SLURM_JOB_ID scripts/slurm/train.sh run.conf

# Four CPUs per node, however many this machine has; the memory is this machine's.
if ! cluster_start "$work/slurm" 2 4; then
    skip slurm "no Slurm cluster on this machine: $CLUSTER_WHY"
    finish
    exit
fi

# ---- helpers ----
# submit NAME RECIPE [SBATCH OPTIONS...] -- [ARGUMENTS...]: sets $job; the output is in $work/NAME.log. No GPUs here.
submit() {
    local name=$1 recipe=$2 words=()
    shift 2
    while [ "$1" != -- ]; do words+=("$1") && shift; done
    shift
    job=$(TOKAMAK_TEST=$MARK.$name sbatch --parsable --gpus-per-node=0 --cpus-per-task=1 --mem=0 --output="$work/$name.log" "${words[@]}" \
        "scripts/slurm/$recipe.sbatch" "$@" 2>"$work/sbatch.log") && job=${job%%;*} && return 0
    sed 's/^/    /' "$work/sbatch.log"
    return 1
}
state() { scontrol show job "$1" 2>/dev/null | sed -n 's/.*JobState=\([A-Z]*\).*/\1/p' | head -n 1; }
exit_code() { scontrol show job "$1" 2>/dev/null | sed -n 's/.* ExitCode=\([0-9]*\):.*/\1/p' | head -n 1; }
# Slurm delays a requeued job by two minutes; this starts it at once.
hurry() {
    case $(state "$1") in PENDING) scontrol update jobid="$1" StartTime=now 2>/dev/null ;; esac
}
# job_end JOB NAME: waits for its end; sets $status.
job_end() {
    local end=$((SECONDS + RUN_SECONDS))
    while :; do
        case $(state "$1") in
        PENDING) hurry "$1" ;;
        COMPLETED | FAILED | CANCELLED | TIMEOUT | NODE_FAIL) break ;;
        esac
        if [ $SECONDS -ge $end ]; then
            echo "    job $1 ($2) is still $(state "$1") after $RUN_SECONDS s; its output ends:"
            log_end "$2"
            return 1
        fi
        sleep 0.2
    done
    status=$(exit_code "$1")
}

# ---- the recipes, with a stand-in that prints its arguments and returns a list of exit statuses, one per start ----
cat >"$work/stand_in" <<'EOF'
#!/bin/bash
rank=${RANK:-${PMIX_RANK:-?}}
echo "rank $rank of ${WORLD_SIZE:-$SLURM_NTASKS}, local ${LOCAL_RANK:-$SLURM_LOCALID}, master ${MASTER_ADDR:-none}:${MASTER_PORT:-none}, node $SLURMD_NODENAME: $*"
[ -n "${STATUSES:-}" ] || exit 0
starts=$(cat "$STATUSES.$rank" 2>/dev/null || echo 0)
echo $((starts + 1)) >"$STATUSES.$rank"
exit "$(sed -n "$((starts + 1))p" "$STATUSES")"
EOF
chmod +x "$work/stand_in"
stand_in() { # NAME RECIPE "STATUSES" [SBATCH OPTIONS...] -- [ARGUMENTS...]
    local name=$1 recipe=$2
    echo "$3" | tr ' ' '\n' >"$work/$name.statuses"
    shift 3
    export TRAIN_GPT=$work/stand_in STATUSES=$work/$name.statuses
    submit "$name" "$recipe" "$@"
    local submitted=$?
    unset TRAIN_GPT STATUSES
    return $submitted
}

# All jobs are submitted first, so that they run concurrently.
stand_in ends single_node "0 0" --ntasks-per-node=2 -- run.conf lr=1e-3 && ends=$job
stand_in tries single_node "1 1 0" --ntasks-per-node=2 -- run.conf && tries=$job
stand_in gives_up single_node "1 1 1 1 1" --ntasks-per-node=1 -- run.conf && gives_up=$job
stand_in usage single_node "2 0" --ntasks-per-node=1 -- run.conf && usage=$job
stand_in requeues single_node "75 0" --ntasks-per-node=2 -- run.conf && requeues=$job
stand_in seeds seeds_array "0 0" --array=3,7 --gpus-per-task=0 --output="$work/seeds-%a.log" -- run.conf out_dir=runs/x && seeds=$job
LAUNCHER=tcp stand_in tcp multi_node "0" --ntasks-per-node=2 --oversubscribe -- run.conf && tcp=$job

recipe_ends() { job_end "$ends" ends && ended ends 0 && said ends "rank 1 of 2, .*: train run.conf lr=1e-3"; }
recipe_tries() { job_end "$tries" tries && ended tries 0 && said tries "starting again from the last checkpoint \(2 of 3\)"; }
recipe_gives_up() { job_end "$gives_up" gives_up && ended gives_up 1 && said gives_up "failure 4 in a row: giving up"; }
recipe_usage() { job_end "$usage" usage && ended usage 2 && ! grep -q "starting again" "$work/usage.log"; }
recipe_requeues() { job_end "$requeues" requeues && ended requeues 0 && said requeues "requeued 1 times"; }
recipe_seeds() {
    local n
    for n in 3 7; do
        job_end "${seeds}_$n" "seeds-$n" && ended "seeds-$n" 0 && said "seeds-$n" "train run.conf out_dir=runs/x out_dir=runs/x/seed_$n seed=$n" || return 1
    done
}
recipe_tcp() {
    local r
    job_end "$tcp" tcp && ended tcp 0 || return 1
    for r in 0 1 2 3; do said tcp "rank $r of 4, local $((r % 2)), master node1:[0-9]+, node node$((r / 2 + 1)): train launch=tcp run.conf" || return 1; done
}
check recipe_passes_arguments recipe_ends
check recipe_tries_again recipe_tries
check recipe_gives_up recipe_gives_up
check recipe_does_not_repeat_wrong_options recipe_usage
check recipe_requeues_on_75 recipe_requeues
check recipe_array_of_seeds recipe_seeds
check recipe_without_mpi recipe_tcp

# ---- training ----
why=$(mpi_missing)
ldd "$train_gpt" | grep -q libasan && why='the ordinary build tests it'
if [ -n "$why" ]; then
    skip slurm_training "$why"
    finish
    exit
fi
ranks_data || exit 1
export TRAIN_GPT=$train_gpt
train() { submit "$1" single_node --ntasks-per-node=2 "${@:2}" -- out_dir="$work/$1" "${options[@]}" ${extra:-}; }
half=$((steps / 2))
# A run that saves at every step takes long enough to be disturbed half-way on a busy machine too.
slow="save_every=1 async_save=false keep_last=3"

undisturbed() { train straight && job_end "$job" straight && ended straight 0 && same_losses straight straight; }
check training undisturbed

job_step() { # NAME STEP
    cluster_wait "$WAIT_SECONDS" has_step "$1" "$2" && return 0
    echo "    $1 did not reach step $2 in $WAIT_SECONDS s; its output ends:"
    log_end "$1"
    return 1
}
# The run ends with status 0 and the losses of the undisturbed run, and its output has TEXT: it was really disturbed.
finished() { # NAME TEXT
    job_end "$job" "$1" && ended "$1" 0 && said "$1" "$2" && same_losses "$1" straight
}
requeued() { extra=$slow train requeued && job_step requeued $half && scontrol requeue "$job" && finished requeued "requeued 1 times"; }
check requeue_half_way requeued

# What --signal=B:USR1@120 does two minutes before the time limit.
time_limit() {
    extra=$slow train limit && job_step limit $half && scancel --batch --signal=USR1 "$job" && finished limit "requeued 1 times" &&
        said limit "exit status 75: requeueing job $job"
}
check signal_before_the_time_limit time_limit

one_rank_signalled() {
    extra=$slow train usr1 && job_step usr1 $half && kill -USR1 "$(rank_pid usr1 1)" && finished usr1 "requeued 1 times" &&
        said usr1 "exit status 75: requeueing job $job"
}
check signal_to_one_rank one_rank_signalled

one_rank_killed() {
    extra=$slow train killed && job_step killed $half && kill -9 "$(rank_pid killed 1)" && finished killed "starting again from the last checkpoint" &&
        said killed "rank 1 \(.*pid"
}
check one_rank_is_killed one_rank_killed

# A job of a partition with higher priority requests the whole node: Slurm sends TERM and revokes the node five seconds later.
# The scheduler takes a few seconds before that; saving at every step makes the run last longer.
preempted() {
    extra=$slow train preempted --partition=low --nodelist=node1 && job_step preempted 2 || return 1
    local first=$job
    sbatch --parsable --partition=high --nodelist=node1 --exclusive --output=/dev/null --wrap=true >/dev/null || return 1
    job=$first finished preempted "requeued 1 times"
}
check preempted_by_another_job preempted

# Two nodes with a rank each, then, after a requeue, both ranks on one.
two_nodes() {
    submit nodes multi_node --ntasks-per-node=1 --oversubscribe -- out_dir="$work/nodes" "${options[@]}" && finished nodes "on node\[1-2\], 2 ranks"
}
check ranks_on_two_nodes two_nodes
finish
