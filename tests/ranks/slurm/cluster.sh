# cluster.sh: a Slurm cluster on this machine for tests: munged, slurmctld and slurmd on 127.0.0.1 as the current user, without
# systemd and independent of any installed cluster. Everything is in one directory: key, socket, state, logs.
# Sourced by tests/ranks/test_slurm.sh. Must not know training.
#     cluster_start DIR NODES CPUS   exports SLURM_CONF; on failure sets CLUSTER_WHY and returns 1
#     cluster_stop                   ends every process that was started, jobs' included; safe to call at any time
CLUSTER_WHY= CLUSTER_DIR= CLUSTER_PIDS=()

# The first unused port from $1 on.
cluster_free_port() {
    local port=$1
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
    echo "$port"
}
# cluster_wait SECONDS COMMAND...: repeats the command until it succeeds.
cluster_wait() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

cluster_config() {
    local nodes=$1 cpus=$2 user base i
    user=$(id -un)
    base=$(cluster_free_port $((20000 + $$ % 10000)))
    cat <<EOF
ClusterName=tokamak
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$base
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$CLUSTER_DIR/munge.socket
CredType=cred/munge
StateSaveLocation=$CLUSTER_DIR/state
SlurmctldPidFile=$CLUSTER_DIR/slurmctld.pid
SlurmdPidFile=$CLUSTER_DIR/slurmd-%n.pid
SlurmdSpoolDir=$CLUSTER_DIR/spool-%n
TmpFS=$CLUSTER_DIR/tmp-%n
SlurmctldLogFile=$CLUSTER_DIR/slurmctld.log
SlurmdLogFile=$CLUSTER_DIR/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
KillWait=5
InactiveLimit=0
EOF
    for i in $(seq "$nodes"); do
        base=$(cluster_free_port $((base + 1)))
        echo "NodeName=node$i NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$base CPUs=$cpus State=UNKNOWN"
    done
    # Jobs of `high` preempt jobs of `low`, which then have five seconds.
    echo "PartitionName=test Nodes=node[1-$nodes] Default=YES MaxTime=INFINITE State=UP"
    echo "PartitionName=low Nodes=node[1-$nodes] MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5"
    echo "PartitionName=high Nodes=node[1-$nodes] MaxTime=INFINITE State=UP PriorityTier=9 PreemptMode=OFF"
}

cluster_start() {
    local nodes=$2 cpus=$3 program i
    CLUSTER_DIR=$1
    for program in munged slurmctld slurmd sbatch srun scontrol squeue; do
        command -v $program >/dev/null || { CLUSTER_WHY="$program is not installed (scripts/setup.sh --slurm)"; return 1; }
    done
    mkdir -p "$CLUSTER_DIR/state" && chmod 755 "$CLUSTER_DIR" || return 1
    for i in $(seq "$nodes"); do mkdir -p "$CLUSTER_DIR/spool-node$i" "$CLUSTER_DIR/tmp-node$i"; done
    (umask 077 && head -c 128 /dev/urandom >"$CLUSTER_DIR/munge.key")
    cluster_config "$nodes" "$cpus" >"$CLUSTER_DIR/slurm.conf"
    export SLURM_CONF=$CLUSTER_DIR/slurm.conf
    # Forced: munged refuses a socket in a directory that only this user can read.
    munged --foreground --force --key-file="$CLUSTER_DIR/munge.key" --socket="$CLUSTER_DIR/munge.socket" \
        --pid-file="$CLUSTER_DIR/munged.pid" --seed-file="$CLUSTER_DIR/munge.seed" --log-file="$CLUSTER_DIR/munged.log" \
        >"$CLUSTER_DIR/munged.out" 2>&1 &
    CLUSTER_PIDS+=($!)
    if ! cluster_wait 10 munge --no-input --socket="$CLUSTER_DIR/munge.socket"; then
        CLUSTER_WHY="munged did not start: $(tail -qn 1 "$CLUSTER_DIR"/munged.out "$CLUSTER_DIR"/munged.log 2>/dev/null | tail -n 1)"
        return 1
    fi
    slurmctld -D -c -f "$SLURM_CONF" >"$CLUSTER_DIR/slurmctld.out" 2>&1 &
    CLUSTER_PIDS+=($!)
    if ! cluster_wait 15 scontrol ping; then
        CLUSTER_WHY="slurmctld did not start: $(tail -n 1 "$CLUSTER_DIR/slurmctld.out")"
        return 1
    fi
    for i in $(seq "$nodes"); do
        slurmd -D -c -N "node$i" -f "$SLURM_CONF" >"$CLUSTER_DIR/slurmd-node$i.out" 2>&1 &
        CLUSTER_PIDS+=($!)
    done
    if ! cluster_wait 20 cluster_is_idle "$nodes"; then
        CLUSTER_WHY="the nodes did not come up: $(tail -qn 1 "$CLUSTER_DIR"/slurmd-node*.out | tail -n 1)"
        return 1
    fi
}
cluster_is_idle() { [ "$(scontrol show nodes | grep -c State=IDLE)" -eq "$1" ]; }

cluster_stop() {
    [ ${#CLUSTER_PIDS[@]} -gt 0 ] || return 0
    if [ -n "$(squeue -h 2>/dev/null)" ]; then
        scancel --signal=KILL --full --user="$(id -un)" >/dev/null 2>&1
        scancel --user="$(id -un)" >/dev/null 2>&1
        cluster_wait 10 bash -c '[ -z "$(squeue -h)" ]'
    fi
    # Step managers are daemons of their own.
    local pid
    kill "${CLUSTER_PIDS[@]}" 2>/dev/null
    for pid in $(pgrep -f "slurmstepd:" 2>/dev/null); do
        grep -qzF "SLURM_CONF=$SLURM_CONF" "/proc/$pid/environ" 2>/dev/null && kill -9 "$pid"
    done
    sleep 0.3
    kill -9 "${CLUSTER_PIDS[@]}" 2>/dev/null
    wait "${CLUSTER_PIDS[@]}" 2>/dev/null
    CLUSTER_PIDS=()
}
