#!/bin/bash
# train.sh: what the recipes beside it run in their allocation: one train_gpt a task, started again when it fails (restart.sh),
# requeued when Slurm wants the nodes back. Its arguments are train_gpt's. What can be set in the environment of sbatch:
#     LAUNCHER=mpi    (default) the ranks meet through Slurm's PMIx: srun --mpi=pmix; Open MPI 4 or newer
#     LAUNCHER=tcp    without MPI, for GPUs: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them
#     TRAIN_GPT       the program; default build/train_gpt
#     MAX_RESTARTS    failures in a row that are tried again in the same allocation; default 3
# Exit status 75 of train_gpt means "checkpoint written, requeue me": any rank was sent SIGUSR1 or SIGTERM.
set -u
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "train.sh: this is not inside a Slurm job. Use it through a recipe: sbatch scripts/slurm/single_node.sbatch run.conf" >&2
    exit 2
fi
program=${TRAIN_GPT:-build/train_gpt}
# Ranks that are left when the first has ended (a stopped one, say) are killed after a minute. Not at once: ranks that
# checkpoint and leave with 75 do not leave in the same instant. Sizes are not inherited from sbatch by every version.
step=(srun --kill-on-bad-exit=0 --wait=60 --ntasks="${SLURM_NTASKS:-1}" ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
case ${LAUNCHER:-mpi} in
mpi) step+=(--mpi=pmix "$program" train "$@") ;;
tcp)
    # Every job its own port, so that two jobs that share a node do not meet each other.
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    # shellcheck disable=SC2016
    step+=(--mpi=none bash -c 'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID; exec "$@"'
        rank "$program" train launch=tcp "$@")
    ;;
*)
    echo "train.sh: LAUNCHER is '$LAUNCHER': expected mpi or tcp" >&2
    exit 2
    ;;
esac

# USR1 comes before the time limit (--signal=B:USR1@120) to this shell alone: all ranks get it from here. TERM comes when
# Slurm ends or preempts the job, to the ranks as well.
. scripts/restart.sh
trap restart_tell USR1
trap 'restart_told=1' TERM

# The id by which exactly this task is requeued: the plain id of an array's task may mean the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
echo "train.sh: job $job on ${SLURM_JOB_NODELIST:-?}, ${SLURM_NTASKS:-1} ranks, requeued ${SLURM_RESTART_COUNT:-0} times, $(date '+%F %T')"
restart_run "${step[@]}"
status=$?
[ $status -eq 75 ] || exit $status

echo "train.sh: exit status 75: job $job goes back to the queue"
# Slurm then ends this script; where it is already ending the job (preemption), the request is refused and not needed.
trap '' TERM
scontrol requeue "$job" && sleep 120
exit 75
