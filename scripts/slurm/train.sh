#!/bin/bash
# train.sh: run by the recipes beside it in their allocation: one train_gpt per task, restarted when it fails (restart.sh),
# requeued when Slurm needs the nodes. Its arguments are train_gpt's. Variables in the environment of sbatch:
#     LAUNCHER=mpi    (default) the ranks connect through Slurm's PMIx: srun --mpi=pmix; Open MPI 4 or newer
#     LAUNCHER=tcp    without MPI, for GPUs: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT as torchrun sets them
#     TRAIN_GPT       the program; default build/train_gpt
#     MAX_RESTARTS    restarts after failures in a row in the same allocation; default 3
# Exit status 75 of train_gpt means "checkpoint written, requeue me": some rank received SIGUSR1 or SIGTERM.
set -u
if [ -z "${SLURM_JOB_ID:-}" ]; then
    echo "train.sh: expected to run in a Slurm job. Use a recipe: sbatch scripts/slurm/single_node.sbatch run.conf" >&2
    exit 2
fi
program=${TRAIN_GPT:-build/train_gpt}
# A minute after the first rank ends, the remaining ones (a stopped one, for example) are killed. Not at once: ranks that
# save and exit with 75 do not exit at the same time. Not every version of srun inherits the sizes from sbatch.
step=(srun --kill-on-bad-exit=0 --wait=60 --ntasks="${SLURM_NTASKS:-1}" ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"})
case ${LAUNCHER:-mpi} in
mpi) step+=(--mpi=pmix "$program" train "$@") ;;
tcp)
    # A different port per job, so that the ranks of two jobs on one node do not connect to each other.
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

# Before the time limit (--signal=B:USR1@120) Slurm sends USR1 to this shell only, which forwards it to all ranks. When Slurm
# ends or preempts the job, it sends TERM to the ranks as well.
. scripts/restart.sh
trap restart_tell USR1
trap 'restart_told=1' TERM

# The id that requeues this task only: the plain id of an array's task may mean the whole array.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
echo "train.sh: job $job on ${SLURM_JOB_NODELIST:-?}, ${SLURM_NTASKS:-1} ranks, requeued ${SLURM_RESTART_COUNT:-0} times, $(date '+%F %T')"
restart_run "${step[@]}"
status=$?
[ $status -eq 75 ] || exit $status

echo "train.sh: exit status 75: requeueing job $job"
# Slurm then ends this script. If it is already ending the job (preemption), the request is refused and not needed.
trap '' TERM
scontrol requeue "$job" && sleep 120
exit 75
