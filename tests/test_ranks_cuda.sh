#!/bin/bash
# test_ranks_cuda.sh: ranks on emulated GPUs, whose NCCL runs over MPI: the plug-in's own host code, in the stream orders in which
# a missing wait shows. One emulated GPU alone is the reference.
set -u
cd "$(dirname "$0")/.." || exit 1
. tests/lib.sh

skip() { echo "[ RUN      ] ranks_cuda"; echo "$1"; echo "[  SKIPPED ] ranks_cuda"; exit 0; }
command -v mpirun >/dev/null || skip "mpirun is not installed (scripts/setup.sh --mpi)"
[ -e "$BUILD/libllmc_mpi.so" ] && [ -e "$BUILD/libnccl_emu.so" ] && [ -e "$BUILD/libllmc_cudaemu.so" ] ||
    skip "libllmc_mpi.so, libllmc_cudaemu.so or libnccl_emu.so was not built (MPI and the CUDA headers are needed)"
mpi=(mpirun --oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)

awk 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
    for (i = 0; i < 3000; ++i) printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "}' >"$work/text.txt"
"$prep" tokenize --tokenizer bytes --out "$work/data" --val-fraction 0.1 "$work/text.txt" >/dev/null 2>&1 || exit 1

# run NAME RANKS [NAME=value... --] [key=value...]; program: what comes before train_gpt's own words
program=()
run() {
    local name=$1 ranks=$2 launcher=() environment=()
    shift 2
    case " $* " in *" -- "*)
        while [ "$1" != -- ]; do environment+=("$1"); shift; done
        shift
        ;;
    esac
    [ "$ranks" -eq 1 ] || launcher=("${mpi[@]}" -np "$ranks")
    env "${environment[@]}" timeout -k 5 200 "${launcher[@]}" "${program[@]}" "$train_gpt" train out_dir="$work/$name" \
        train="$work/data/train_*.bin" val="$work/data/val_*.bin" device=cudaemu model=llama:d3 channels=32 heads=2 kv_heads=1 \
        head_size=16 ffn=48 max_seq_len=16 seq_len=16 batch_rows=2 batch_tokens=128 steps=3 warmup_steps=2 lr=3e-3 val_every=0 \
        val_tokens=64 save_every=0 sample_tokens=4 comm_timeout=100 progress_bar=false "$@" >"$work/$name.log" 2>&1 ||
        { tail -n 5 "$work/$name.log"; return 1; }
}
numbers() { grep '"loss"' "$work/$1/metrics.jsonl" | grep -o '"step":[0-9]*\|"loss":[-0-9.e+]*\|"grad_norm":[-0-9.e+]*'; }
same_bits() { # NAME REFERENCE RANKS ...
    run "$1" "${@:3}" || return 1
    cmp <(numbers "$2") <(numbers "$1")
}
# Sums in another order: see test_ranks.sh.
close_to() { # NAME REFERENCE RANKS ...
    run "$1" "${@:3}" || return 1
    paste <(numbers "$2") <(numbers "$1") | awk '
        {split($1, a, ":"); split($2, b, ":"); ++n; d = (a[2] - b[2]) / (a[2] == 0 ? 1 : a[2]); if (d < 0) d = -d
         if (!(d <= 1e-6) || a[1] != b[1]) {print "    " $1, $2; bad = 1}}
        END {exit bad || n < 9}'
}

check one run one 1
check two_zero0 close_to zero0 one 2 zero=0
check two_zero1_overtaking close_to zero1 one 2 TOKAMAK_EMU_STREAMS=overtake -- zero=1
check two_zero2_lazy close_to zero2 one 2 TOKAMAK_EMU_STREAMS=lazy -- zero=2
check two_zero3_overtaking close_to zero3 one 2 TOKAMAK_EMU_STREAMS=overtake -- zero=3
check zero3_repeats_lazily same_bits zero3-lazy zero3 2 TOKAMAK_EMU_STREAMS=lazy -- zero=3
# Launchers that only say who is who and where to meet: mpirun here does no more than start the processes (and carry the emulated
# NCCL).
elsewhere() { # NAME REFERENCE KIND VARIABLES
    printf '#!/bin/sh\nexport RANK=$OMPI_COMM_WORLD_RANK WORLD_SIZE=$OMPI_COMM_WORLD_SIZE %s\nexec "$@"\n' "$4" >"$work/$1.sh"
    program=(sh "$work/$1.sh")
    same_bits "$1" "$2" 2 launch="$3" zero=0
    local status=$?
    program=()
    return $status
}
check launch_by_tcp elsewhere tcp zero0 tcp "MASTER_ADDR=127.0.0.1 MASTER_PORT=$((20000 + $$ % 20000))"
mkdir -p "$work/meet"
check launch_by_directory elsewhere directory zero0 directory "TOKAMAK_RENDEZVOUS=$work/meet"
check one_lanes run lanes 1 deterministic=lanes
check lanes_two_zero1 same_bits lanes2 lanes 2 zero=1 deterministic=lanes
check lanes_four_zero3_overtaking same_bits lanes4 lanes 4 TOKAMAK_EMU_STREAMS=overtake -- zero=3 deterministic=lanes
check one_muon_bf16 run muon 1 deterministic=lanes optimizer=muon dtype=bf16
check lanes_muon_two same_bits muon2 muon 2 TOKAMAK_EMU_STREAMS=lazy -- deterministic=lanes optimizer=muon dtype=bf16 zero=2
check without_graphs same_bits plain zero3 2 zero=3 graphs=false
check nccl_of_one_rank same_bits nccl1 one 1 TOKAMAK_COMM=nccl --
finish
