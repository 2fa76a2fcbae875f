#!/bin/bash
# same_numbers.sh: checks that two builds compute the same numbers, in ten short runs each, one run per mechanism.
#     dev/same_numbers.sh [--only NAME] [--keep DIR] [--also "key=value ..."] [--ignore KEY] OLD NEW
#
#   --only NAME       only runs whose name contains NAME
#   --keep DIR        keep the runs in DIR/a and DIR/b (DIR must not exist); by default they are removed
#   --also OPTIONS    more options for the runs of NEW, to test that a difference is found, e.g. --also seed=2
#   --ignore KEY      one more key of state.json, config.json and dataset.json that may differ; may be repeated
#
# Compared for each run: every link of hashes.jsonl (hash_every=1); every line of metrics.jsonl with a loss, a gradient norm, a held-out
# loss or a sampled text, and the events of skips and rewinds (of events and of what eval prints the numbers, not the words); every file of every checkpoint, byte by byte; the output of `eval` and
# `sample` for the last checkpoint; and, before the runs, the shards that each build's prep writes.
#
# Not compared:
#   in JSON          the keys time, seconds, tokens_per_second, peak_share, step_ms, data_wait_ms, comm_ms and comm_exposed_ms (they measure
#                    time), format and format_version (a file's version is not a number of the run; also in the header of
#                    optimizer*.safetensors), and those of --ignore
#   metrics.jsonl    the first line (its config is in state.json) and the other events (times, paths and the machine)
#   MANIFEST.json    sizes and hashes of files that are compared; each build verifies its own manifests instead
#   loss.svg, TensorBoard events, .lock
# Runs of both builds use the same paths. Exit status 1: something differs; the first difference of each run is printed. A mechanism
# that a build lacks (no MPI, no emulated GPU) is reported as skipped.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
usage() {
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//p}' "$0"
    echo
    echo "example"
    echo "  dev/same_numbers.sh ../before/build build"
}
fail() { echo "same_numbers.sh: $*" >&2; exit 2; }

only='' keep='' also='' ignored="time seconds tokens_per_second peak_share step_ms data_wait_ms comm_ms comm_exposed_ms format format_version"
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --only | --keep | --also | --ignore) [ $# -ge 2 ] || fail "$1: expected a value" ;;&
    --only) only=$2; shift 2 ;;
    --keep) keep=$2; shift 2 ;;
    --also) also=$2; shift 2 ;;
    --ignore) ignored="$ignored $2"; shift 2 ;;
    -*) fail "unknown option '$1'; --help lists them" ;;
    *) break ;;
    esac
done
[ $# -eq 2 ] || { usage >&2; exit 2; }
for build in "$1" "$2"; do
    for program in train_gpt prep; do [ -x "$build/$program" ] || fail "$build/$program is not there: run make"; done
done
build_a=$(realpath "$1") build_b=$(realpath "$2")
if [ -n "$keep" ]; then
    [ ! -e "$keep" ] || fail "$keep is there already"
    mkdir -p "$keep" || exit 2
    work=$(realpath "$keep")
else
    work=$(mktemp -d) || exit 2
    trap 'rm -rf "$work"' EXIT
fi
trap 'echo; echo "same_numbers.sh: interrupted" >&2; exit 130' INT TERM
mkdir -p "$work/a" "$work/b" "$work/input"
export OMP_WAIT_POLICY=passive TOKAMAK_EMU_DEVICES=4
# Without a cache the emulated GPU does not choose algorithms by measured time.
export XDG_CACHE_HOME='' HOME=''
mpi=(mpirun --oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)

# ---- the runs, each in its own directory, with $build and $more set ----

small="max_seq_len=32 seq_len=32 batch_rows=2 batch_tokens=256 steps=10 warmup_steps=2 lr=3e-3 val_every=4 val_tokens=1k save_every=5 keep_last=0 \
sample_every=5 sample_tokens=12 progress_bar=false hash_every=1 compare_every=2 threads=2 device=cpu"
gpt2="model=gpt2:d2 channels=48 heads=3"
llama="model=llama:d2 channels=64 heads=4 kv_heads=2 head_size=16 ffn=96"
qwen3="model=qwen3:0.6B layers=2 channels=64 heads=4 kv_heads=2 head_size=16 ffn=96 vocab=0"
data='train=../data/train_*.bin val=../data/val_*.bin'

# train OUT [key=value...]: the last value of a key counts.
train() {
    local out=$1
    shift
    set -f # train_gpt expands the patterns
    # shellcheck disable=SC2086
    "${launcher[@]}" "$build/train_gpt" train out_dir="$out" $small $data "$@" $more >>log 2>&1
    local status=$?
    set +f
    return $status
}
launcher=()
ranks() { # COUNT OUT [key=value...]
    launcher=(timeout -k 5 120 "${mpi[@]}" -np "$1")
    train "${@:2}"
    local status=$?
    launcher=()
    return $status
}

run_gpt2_fp32_adamw() { train out $gpt2; }
run_llama_bf16_adamw() { train out $llama dtype=bf16; }
run_qwen3_bf16_muon() { train out $qwen3 dtype=bf16 optimizer=muon; }
run_no_master_weights() { train adamw $llama dtype=bf16 master_weights=false && train muon $llama dtype=bf16 master_weights=false optimizer=muon; }
run_sources_phases() {
    cat >phases.conf <<END
model = gpt2:d2
channels = 48
heads = 3
max_seq_len = 64
batch_rows = 2
lr = 2e-3
schedule = wsd
val_every = 5
val_tokens = 1k
save_every = 4
keep_last = 0
sample_tokens = 12
hash_every = 1
threads = 2
device = cpu
progress_bar = false
[source text]
train = ../data/train_*.bin
val = ../data/val_*.bin
[source sums]
train = ../sums/train_*.bin
val = ../sums/val_*.bin
weight = 0.25
doc_mask = true
[phase main]
steps = 8
seq_len = 32
batch_tokens = 256
[phase late]
steps = 6
seq_len = 64
batch_tokens = 512
weight.sums = 3
trainable = block.*,norm_f.*
END
    # shellcheck disable=SC2086
    "$build/train_gpt" train phases.conf out_dir=out $more >>log 2>&1
}
run_recompute() {
    train block $llama recompute=block && train norm_act $llama dtype=bf16 recompute=norm_act loss_chunk_rows=16 && train gelu $gpt2 recompute=block
}
run_spikes_rewind() {
    data='train=../noise/train_*.bin val=../noise/val_*.bin' train out $llama batch_rows=4 steps=100 warmup_steps=4 val_every=0 save_every=25 \
        sample_every=0 seed=4 spike_z=8 spike_window=32 on_spike=rewind && grep -q '^back to step' log
}
# Killed at a file operation of the checkpoint of step 10, resumed from step 5; then a run initialized from the weights.
run_kill_resume_init() {
    { (export LD_PRELOAD=$work/input/fault_io.so FAULT_PATH=step_00000010 FAULT_AT=3 FAULT_KIND=kill
     train out $llama dtype=bf16 optimizer=muon steps=15 async_save=false); } 2>/dev/null
    [ -d out/step_00000005 ] && [ ! -d out/step_00000010 ] || return 1
    train out $llama dtype=bf16 optimizer=muon steps=15 async_save=false && train from model= init_from=out/step_00000015 dtype=fp32 logit_softcap=15
}
run_ranks() {
    local zero
    for zero in 0 1 2 3; do ranks 2 lanes$zero $llama steps=6 save_every=3 threads=1 deterministic=lanes zero=$zero || return 1; done
    ranks 4 muon $llama steps=4 save_every=2 threads=1 dtype=bf16 optimizer=muon deterministic=lanes zero=3 &&
        ranks 3 three $llama steps=4 save_every=2 threads=1 zero=2 reduce_dtype=bf16
}
run_emulated_gpu() {
    local emulated="device=cudaemu channels=32 ffn=48 heads=2 kv_heads=1 head_size=16 batch_tokens=128 steps=4 save_every=2 val_every=4 val_tokens=128 sample_every=0 sample_tokens=2"
    train adamw $llama $emulated dtype=bf16 && train muon $qwen3 $emulated dtype=bf16 optimizer=muon && train fp32 $gpt2 $emulated heads=2 kv_heads=0 graphs=false || return 1
    [ ! -e "$build_a/libnccl_emu.so" ] || [ ! -e "$build_b/libnccl_emu.so" ] || [ -n "$no_mpi" ] ||
        OMP_NUM_THREADS=1 ranks 2 two $llama $emulated dtype=bf16 deterministic=lanes zero=2
}

no_mpi=
command -v mpirun >/dev/null || no_mpi='mpirun is not installed'
missing() { # NAME: prints why the run is not possible, or nothing
    local plugin
    case $1 in ranks) plugin=libllmc_mpi.so ;; emulated_gpu) plugin=libllmc_cudaemu.so ;; *) return ;; esac
    if [ "$1" = ranks ] && [ -n "$no_mpi" ]; then echo "$no_mpi"; return; fi
    for build in "$build_a" "$build_b"; do [ -e "$build/$plugin" ] || { echo "$build/$plugin is not built"; return; }; done
}

# ---- the comparison ----

# JSON on standard input without the ignored keys; drops a line of hashes.jsonl with no other keys.
plain_json() {
    local expression='' key
    for key in $ignored; do expression="$expression;s/,?[[:space:]]*\"$key\":[[:space:]]*(\"[^\"]*\"|[-+0-9.eE]+|true|false|null)//g"; done
    sed -E "${expression#;};s/\{,/{/;/^\{(\"step\":0)?\}\$/d" | sed -E 's/^(\{?)[[:space:]]*,/\1/;/^[[:space:]]*$/d'
}
metrics() {
    grep -aE '"(loss|val_loss|sample)":|"event":"(step [0-9]+ skipped|back to step)' "$1" | plain_json | sed -E '/"event":/s/[^0-9.]+/ /g'
}
header_bytes() { od -An -tu8 -N8 "$1" | tr -d ' '; }
header() { # of a .safetensors file: one tensor per line, without the ignored keys and the padding
    head -c $(($(header_bytes "$1") + 8)) "$1" | tail -c +9 | plain_json | sed 's/"__metadata__":{},\{0,1\}//;s/ *$//;s/},/},\n/g'
}
# The tensor of FILE that contains byte AT (from 0) of its data.
tensor_at() {
    header "$1" | awk -v at="$2" -F'"' '{n = split($0, part, /data_offsets":\[|,|\]/); for (i = n; i > 1; --i)
        if (part[i - 1] ~ /^[0-9]+$/ && part[i] ~ /^[0-9]+$/) {if (at >= part[i - 1] && at < part[i]) {sub(/^{/, ""); split($0, name, "\""); print name[2]}; break}}'
}
difference=
# first_line WHAT A B: the first difference of two texts.
first_line() {
    cmp -s "$2" "$3" && return 0
    # The first line that differs, from shortly before the difference.
    difference="$1: $(awk 'NR == FNR {a[FNR] = $0; n = FNR; next} !done && (FNR > n || a[FNR] != $0) {done = show(FNR, a[FNR], $0)} END {if (!done) show(FNR + 1, a[FNR + 1], "nothing")}
        function show(line, x, y,  i) {for (i = 1; i <= length(x) && substr(x, i, 1) == substr(y, i, 1); ++i) {}
            i = i > 60 ? i - 60 : 1
            printf "line %d\n      A: %s\n      B: %s", line, substr(x, i, 100), substr(y, i, 100); return 1}' "$2" "$3")"
    return 1
}
same_text() { # FILTER PATH: the same file in both, through FILTER
    "$1" "$work/a/$2" >"$work/left"
    "$1" "$work/b/$2" >"$work/right"
    first_line "$2" "$work/left" "$work/right"
}
json_file() { plain_json <"$1"; }
same_tensors() { # PATH
    local a=$work/a/$1 b=$work/b/$1 at
    cmp -s "$a" "$b" && return 0
    same_text header "$1" || return 1
    at=$(cmp <(tail -c +$(($(header_bytes "$a") + 9)) "$a") <(tail -c +$(($(header_bytes "$b") + 9)) "$b") 2>&1)
    [ -n "$at" ] || return 0
    at=$(sed -E 's/.* (byte|char) ([0-9]+).*/\2/;t;s/.*/1/' <<<"$at")
    difference="$1: tensor '$(tensor_at "$a" $((at - 1)))', byte $at of the data"
    return 1
}
same_file() { # PATH
    case $1 in
    *.safetensors) same_tensors "$1" ;;
    *MANIFEST.json) ;;
    *.json) same_text json_file "$1" ;;
    *) cmp -s "$work/a/$1" "$work/b/$1" || { difference="$1: $(cmp "$work/a/$1" "$work/b/$1" 2>&1 | sed 's/.*differ: //')"; false; } ;;
    esac
}
list() { (cd "$work/$1" && find "$2" -type f -path '*/step_*' | sort); }

# compare NAME: sets steps, and chain, losses, files, text to yes or NO.
compare() {
    local name=$1 file dir first=
    chain=yes losses=yes files=yes text=yes
    steps=$(cat "$work/a/$name"/*/hashes.jsonl 2>/dev/null | grep -c '"chain"')
    verdict() { [ -n "$first" ] || first=$difference; printf -v "$1" NO; } # VARIABLE
    (cd "$work/a" && ls -d "$name"/*/) >"$work/left"
    (cd "$work/b" && ls -d "$name"/*/) >"$work/right"
    first_line directories "$work/left" "$work/right" || verdict files
    for dir in $(cat "$work/left"); do
        dir=${dir%/}
        same_text json_file "$dir/hashes.jsonl" || verdict chain
        same_text metrics "$dir/metrics.jsonl" || verdict losses
        same_text cat "$dir.printed" || verdict text
        [ -s "$work/a/$dir/hashes.jsonl" ] && grep -q '"grad_norm"' "$work/a/$dir/metrics.jsonl" || { difference="$dir: no chain, or no losses"; verdict chain; }
    done
    list a "$name" >"$work/left"
    list b "$name" >"$work/right"
    [ -s "$work/left" ] || { difference="no checkpoint"; verdict files; }
    if ! first_line "files" "$work/left" "$work/right"; then verdict files
    else
        list a "$name" >"$work/files"
        while read -r file; do same_file "$file" || verdict files; done <"$work/files"
    fi
    difference=$first
    [ -z "$first" ]
}

# ---- main ----

prepare() {
    words() { # COUNT NOISE
        awk -v count="$1" -v noise="$2" 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
            for (i = 0; i < count; ++i) {printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "
                if (i == noise) for (k = 0; k < 48; ++k) printf "%c", 33 + int(rand() * 90)}}'
    }
    words 12000 -1 >"$work/input/text.txt"
    words 12000 6200 >"$work/input/noise.txt"
    awk 'BEGIN {for (i = 0; i < 3000; ++i) printf "%d plus %d is %d\n", i % 37, i % 11, i % 37 + i % 11}' >"$work/input/sums.txt"
    ${CC:-cc} -D_GNU_SOURCE -shared -fPIC -o "$work/input/fault_io.so" "$here/tests/faults/fault_io.c" -ldl || exit 2
    for side in a b; do
        local build_name=build_$side
        build=${!build_name}
        (cd "$work/$side" && "$build/prep" tokenize --tokenizer bytes --out data --val-fraction 0.1 ../input/text.txt &&
            "$build/prep" tokenize --tokenizer bytes --out noise --val-fraction 0.02 ../input/noise.txt &&
            "$build/prep" train-tokenizer --vocab 300 --out bpe ../input/text.txt &&
            "$build/prep" tokenize --tokenizer bpe --out bpe_data ../input/text.txt &&
            "$build/prep" tokenize --tokenizer bytes --out sums --docs line --val-fraction 0.1 ../input/sums.txt) >"$work/$side/prep.log" 2>&1 ||
            { tail -n 3 "$work/$side/prep.log" >&2; fail "$build/prep failed"; }
    done
    local file bad=0
    (cd "$work/a" && find . -type f ! -name '*.log' | sort) >"$work/files"
    while read -r file; do same_file "$file" || { echo "DIFFERENT: $difference"; bad=1; }; done <"$work/files"
    return $bad
}

# one SIDE NAME: the run, and the output of eval and sample for its last checkpoints.
one() {
    local build_name=build_$1 out
    build=${!build_name} more=
    [ "$1" = a ] || more=$also
    mkdir "$work/$1/$2" && cd "$work/$1/$2" || return 1
    "run_$2" || { echo; echo "    $build: the run failed:"; tail -n 4 log | sed 's/^/      /'; return 1; }
    for out in */; do
        out=${out%/}
        last=$(ls -d "$out"/step_* | tail -n 1)
        "$build/train_gpt" ckpt verify "$last" >>log 2>&1 || { echo; echo "    $build: $last does not verify"; return 1; }
        { "$build/train_gpt" sample ckpt="$last" prompt="the king" tokens=16 seed=3 device=cpu threads=2
          "$build/train_gpt" eval ckpt="$last" data='../data/val_*.bin' seq_len=32 batch_rows=2 tokens=1k device=cpu threads=2 |
              sed -E 's/[^0-9.]+/ /g'; } 2>&1 |
            sed -E 's/[0-9.]+[kM]? (tok|tokens)\/s.*//;s/,? (in )?[0-9.]+ s\b.*//' >"$out.printed"
    done
}

echo "comparing $build_a (A) with $build_b (B)${also:+, B with $also}"
bad=0 equal=0 skipped=0
printf '  %-20s' 'shards of prep'
if prepare; then echo 'equal'; else bad=1; fi
table="run                   steps  chain  losses  checkpoint bytes  eval and sample"
for name in gpt2_fp32_adamw llama_bf16_adamw qwen3_bf16_muon no_master_weights sources_phases recompute spikes_rewind kill_resume_init ranks emulated_gpu; do
    case $name in *"$only"*) ;; *) continue ;; esac
    printf '  %-20s' "$name"
    why=$(missing $name)
    if [ -n "$why" ]; then
        echo "skipped: $why"
        skipped=$((skipped + 1)) table="$table"$'\n'"$(printf '%-20s  skipped: %s' $name "$why")"
        continue
    fi
    from=$(date +%s.%N)
    # In subshells, so that the settings of a run do not affect others.
    if ! (one a $name) || ! (one b $name); then
        bad=$((bad + 1)) table="$table"$'\n'"$(printf '%-20s  a run failed' $name)"
        continue
    fi
    seconds=$(awk -v a="$from" -v b="$(date +%s.%N)" 'BEGIN {printf "%.1f", b - a}')
    if compare $name; then
        equal=$((equal + 1))
        echo "equal, $steps steps, $seconds s"
    else
        bad=$((bad + 1))
        printf 'DIFFERENT, %s s\n    %s\n' "$seconds" "$difference"
    fi
    table="$table"$'\n'"$(printf '%-20s %6d  %-5s  %-6s  %-16s  %s' $name "$steps" $chain $losses $files $text)"
done
echo
echo "$table"
echo
echo "$equal equal, $bad different, $skipped skipped"
[ "$bad" -eq 0 ] && [ "$equal" -gt 0 ]
