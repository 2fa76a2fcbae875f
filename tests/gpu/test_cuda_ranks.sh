#!/bin/bash
# test_cuda_ranks.sh: mpirun and train_gpt on emulated GPUs, with the emulated NCCL: the same numbers as on one GPU, and
# with deterministic=lanes the same bits, in each order of streams that CUDA allows.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
[ -e "$BUILD/libllmc_cudaemu.so" ] || skip_all cuda_ranks "$BUILD/libllmc_cudaemu.so is not built: the CUDA headers were not found (make config)"
[ -e "$BUILD/libnccl_emu.so" ] || skip_all cuda_ranks "$BUILD/libnccl_emu.so is not built: nccl.h or MPI was not found (make config)"
need_mpi cuda_ranks
export OMP_NUM_THREADS=1 TOKAMAK_EMU_DEVICES=4 XDG_CACHE_HOME=$work/cache
# Leaks in MPI are not ours, and it unloads the libraries that would name them.
export ASAN_OPTIONS="${ASAN_OPTIONS:-}:detect_leaks=0"
shards 4000 0 || exit 1

program=()  # prefix of train_gpt
# run NAME RANKS [NAME=VALUE... of the environment] -- [key=value...]: four steps of a tiny model.
run() {
    local name=$1 ranks=$2 launcher=() settings=()
    shift 2
    while [ "$1" != -- ]; do settings+=("$1"); shift; done
    shift
    [ "$ranks" -eq 1 ] || launcher=("${mpi[@]}" -np "$ranks")
    env "${settings[@]}" timeout -k 5 120 "${launcher[@]}" "${program[@]}" "$train_gpt" train out_dir="$work/$name" train="$work/data/train_*.bin" val= \
        device=cudaemu model=llama:d2 channels=32 heads=2 kv_heads=1 head_size=16 ffn=48 max_seq_len=32 seq_len=32 batch_rows=2 \
        batch_tokens=256 steps=4 warmup_steps=2 lr=3e-3 val_every=0 save_every=0 sample_tokens=1 comm_timeout=60 progress_bar=false \
        "$@" >"$work/$name.log" 2>&1 || { grep -v '^$' "$work/$name.log" | tail -n 5 | sed 's/^/    /'; return 1; }
}
numbers() { grep '"loss"' "$work/$1/metrics.jsonl" | grep -o '"step":[0-9]*\|"loss":[-0-9.e+]*\|"grad_norm":[-0-9.e+]*'; }
# Sums in another order, 1e-7 a step and element; four steps stay below 1e-6 (fp32).
close_to() { # REFERENCE NAME RANKS ...
    run "${@:2}" || return 1
    paste <(numbers "$1") <(numbers "$2") | awk '
        {split($1, a, ":"); split($2, b, ":"); ++n; d = (a[2] - b[2]) / (a[2] == 0 ? 1 : a[2]); if (d < 0) d = -d
         if (!(d <= 1e-6) || a[1] != b[1]) {print "    " $1, $2; bad = 1}}
        END {exit bad || n < 12}'
}
same_bits() { # REFERENCE NAME RANKS ...
    run "${@:2}" || return 1
    [ "$(numbers "$1" | wc -l)" = 12 ] && cmp <(numbers "$1") <(numbers "$2")
}

check one_gpu run one 1 --
check one_rank_of_nccl same_bits one one-nccl 1 TOKAMAK_COMM=nccl --
for zero in 0 1 2 3; do check "two_gpus_zero$zero" close_to one "two$zero" 2 -- zero=$zero; done
check two_gpus_zero3_again same_bits two3 two3-lazy 2 TOKAMAK_EMU_STREAMS=lazy -- zero=3 graphs=false
check three_gpus close_to one three 3 -- zero=2
says_nccl() { grep -q '^ranks  *3 (NCCL [0-9.]*, 3 ranks), zero=2' "$work/three.log"; }
check nccl_is_named says_nccl
check one_gpu_lanes run lanes 1 -- deterministic=lanes
check lanes_two_lazy same_bits lanes lanes2 2 -- deterministic=lanes zero=1
check lanes_two_eager same_bits lanes lanes2-eager 2 TOKAMAK_EMU_STREAMS=eager -- deterministic=lanes zero=2
check lanes_four_overtaking same_bits lanes lanes4 4 TOKAMAK_EMU_STREAMS=overtake -- deterministic=lanes zero=3
# Weights gathered for a checkpoint may be replaced, by the next ones or by those of the next step, only after they have
# been copied: the bytes equal those of synchronous checkpoints.
same_checkpoints() { # REFERENCE NAME RANKS ...
    local step file
    run "${@:2}" || return 1
    for step in 1 2 3 4; do
        for file in model-0000{1,2}-of-00002 optimizer-0000{1,2}-of-00002; do
            cmp "$work/$1/step_0000000$step/$file.safetensors" "$work/$2/step_0000000$step/$file.safetensors" || return 1
        done
    done
}
# (Two of four blocks are gathered at a time.)
saves="layers=4 deterministic=lanes save_every=1 keep_last=0"
for zero in 1 3; do
    check "saves_in_pauses_zero$zero" run "pauses$zero" 2 -- $saves zero=$zero async_save=false
    for streams in lazy overtake; do
        check "saves_zero${zero}_$streams" same_checkpoints "pauses$zero" "saves$zero-$streams" 2 TOKAMAK_EMU_STREAMS=$streams -- $saves zero=$zero
    done
done
check one_gpu_muon run muon 1 -- deterministic=lanes optimizer=muon dtype=bf16
check lanes_muon_two same_bits muon muon2 2 -- deterministic=lanes optimizer=muon dtype=bf16 zero=2

# Launchers that give only rank, world size and rendezvous: here mpirun only starts the processes and carries the emulated
# NCCL's messages.
elsewhere() { # NAME KIND VARIABLES
    printf '#!/bin/sh\nexport RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE %s\nexec "$@"\n' "$3" >"$work/$1.sh"
    program=(sh "$work/$1.sh")
    same_bits two1 "$1" 2 -- launch="$2" zero=1
    local status=$?
    program=()
    return $status
}
mkdir -p "$work/meet"
check launch_by_tcp elsewhere tcp tcp "MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000))"
check launch_by_directory elsewhere directory directory "TOKAMAK_RENDEZVOUS=$work/meet"
finish
