#!/bin/bash
# restart.sh: runs a training command and restarts it when it fails: a rank that dies or hangs ends the run for all ranks, and
# the next start resumes from the last complete checkpoint. scripts/slurm/train.sh sources it.
#     scripts/restart.sh mpirun -np 4 build/train_gpt train run.conf [key=value ...]
# Its exit status is the command's: 0 done, 2 a wrong option, 75 stopped by a signal (the checkpoint is written), or another
# status after MAX_RESTARTS (default 3) failures in a row. A failure more than RESTART_SECONDS (600) after a start counts as
# the first in a row. SIGTERM and SIGUSR1 make the ranks save and exit.
restart_pid='' restart_told=''
# Sends USR1 to the launcher: mpirun and srun forward it to all ranks (TERM would make them kill the ranks).
restart_tell() {
    restart_told=1
    [ -z "$restart_pid" ] || kill -USR1 "$restart_pid" 2>/dev/null
}
restart_run() {
    local restarts=0 began status
    while :; do
        began=$SECONDS
        (trap '' TERM && exec "$@") &
        restart_pid=$!
        # A signal ends wait early.
        while :; do
            wait "$restart_pid"
            status=$?
            kill -0 "$restart_pid" 2>/dev/null || break
        done
        restart_pid=
        case $status in 0 | 2 | 75) return $status ;; esac
        [ -z "$restart_told" ] || return $status
        [ $((SECONDS - began)) -lt "${RESTART_SECONDS:-600}" ] || restarts=0
        restarts=$((restarts + 1))
        if [ $restarts -gt "${MAX_RESTARTS:-3}" ]; then
            echo "restart.sh: exit status $status, failure $restarts in a row: giving up" >&2
            return $status
        fi
        echo "restart.sh: exit status $status: starting again from the last checkpoint ($restarts of ${MAX_RESTARTS:-3})" >&2
    done
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then
    case ${1:-} in '' | -h | --help)
        sed -n '2,/^restart_pid/{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0 ;;
    esac
    trap restart_tell USR1 TERM
    restart_run "$@"
fi
