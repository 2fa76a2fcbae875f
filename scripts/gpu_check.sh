#!/bin/bash
# gpu_check.sh: all checks that need a real GPU, in one command with one report: builds, runs the operations' tests and
# compute-sanitizer, trains on real text and compares with the CPU, resumes, measures kernels and training steps and
# compares with PyTorch and llm.c. Needs no network. A report is always written; each stage has a share of the time.
#
#     scripts/gpu_check.sh [options]
#   --device D       cuda (default); cudaemu or cpu: the same stages without a GPU (speeds are meaningless)
#   --quick          tiny shapes, a few steps: only checks that everything runs
#   --budget S       seconds in total (default 570); the report lists what was skipped for lack of time
#   --out FILE       the report (default dev/bench/results/<gpu>-<date>.md; kernel times beside it as .ops.json)
#   --text FILE      training text of the small model (default: the King James Bible, ../shared, or this repository's sources)
#   --llmc DIR       a source tree of llm.c, which is built there and measured for comparison
#   --python PY      a Python whose PyTorch is measured for comparison (default python3; none: skip it)
#   --build DIR      build directory (default build)
#   --skip A,B       stages to skip: build, ops, sanitize, train, steps, ranks, kernels
#   --dry-run        print the stages and exit
# Exit status: 0 nothing failed, 1 something failed, 2 usage. Example:
#     scripts/gpu_check.sh --budget 1800 --llmc ~/llm.c --python ~/venv/bin/python
set -u
cd "$(dirname "$0")/.." || exit 1
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

device=cuda quick=0 budget=570 out='' text='' llmc='' python=python3 BUILD=build skip=, dry=0
usage() { sed -n '2,20s/^# \{0,1\}//p' "$0"; }
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) usage; exit 0 ;;
    --quick) quick=1 ;;
    --dry-run) dry=1 ;;
    --device | --budget | --out | --text | --llmc | --python | --build | --skip)
        if [ $# -lt 2 ]; then echo "gpu_check.sh: $1 needs a value; see --help" >&2; exit 2; fi
        case $1 in
        --device) device=$2 ;; --budget) budget=$2 ;; --out) out=$2 ;; --text) text=$2 ;; --llmc) llmc=$2 ;;
        --python) python=$2 ;; --build) BUILD=$2 ;; --skip) skip=,$2, ;;
        esac
        shift ;;
    *) echo "gpu_check.sh: unknown option '$1'; see --help" >&2; exit 2 ;;
    esac
    shift
done
case $device in cuda | cudaemu | cpu) ;; *) echo "gpu_check.sh: --device $device: expected cuda, cudaemu or cpu" >&2; exit 2 ;; esac
case $budget in '' | *[!0-9]*) echo "gpu_check.sh: --budget $budget: expected seconds" >&2; exit 2 ;; esac
if [ -n "$text" ] && [ ! -r "$text" ]; then echo "gpu_check.sh: --text $text: expected a readable file" >&2; exit 2; fi
if [ -n "$llmc" ] && [ ! -f "$llmc/train_gpt2.cu" ]; then
    echo "gpu_check.sh: --llmc $llmc: expected llm.c's tree, with train_gpt2.cu in it" >&2
    exit 2
fi

# ---- common functions of the stages ----

started=$SECONDS
work=$(mktemp -d) || exit 1
problems=0
total_left() { echo $((budget - (SECONDS - started))); }
stage_end=$budget
left() { # of the running stage
    local now=$((stage_end - (SECONDS - started)))
    echo $((now > 1 ? now : 1))
}
# limited [-m MOST] COMMAND...: stops it (status 124) at the end of the stage's time or after MOST seconds.
limited() {
    local most
    most=$(left)
    if [ "$1" = -m ]; then
        if [ "$2" -lt "$most" ]; then most=$2; fi
        shift 2
    fi
    timeout -k 5 "$most" "$@" </dev/null
}
say() { printf '%s\n' "$*" >>"$section"; }       # to the report
note() { printf '   %s\n' "$*" >&2; }            # to the terminal
missing() { say "- skipped: $*"; note "skipped: $*"; echo "- $stage: $*" >>"$work/left_out"; }
problem() { say "- **FAILED**: $*"; note "FAILED: $*"; problems=$((problems + 1)); echo "- $stage: $*" >>"$work/failed"; }
passed() { say "- ok: $*"; note "ok: $*"; }
quoted() { # FILE [LINES]: the last lines of a log, to the report
    say '```'
    tail -n "${2:-8}" "$1" | cut -c1-200 >>"$section"
    say '```'
}
json() { sed -n "s/.*\"$1\": \"\{0,1\}\([^\",}]*\).*/\1/p" <<<"$2"; }  # one plain value of a JSON line
json_text() { sed -n "s/.*\"$1\": \"\([^\"]*\)\".*/\1/p" <<<"$2"; }
json_list() { sed -n "s/.*\"$1\": \[\([^]]*\)\].*/\1/p" <<<"$2"; }
format() { awk -v v="$2" "BEGIN {n = split(v, p, \"/\"); if (n > 1 && p[2] > 0) v = p[1] / p[2]; printf(\"$1\", v)}"; } # A or A/B
goal() { echo "| $1 | $2 | $3 |" >>"$work/goals"; }
# at_least FOUND WANTED: "yes" or "no"
at_least() { awk -v a="$1" -v b="$2" 'BEGIN {print (a + 0 >= b + 0) ? "yes" : "**no**"}'; }

# run_stage NAME SECONDS TITLE: runs stage_NAME, which writes its own section of the report.
run_stage() {
    stage=$1
    local seconds=$2 title=$3 from=$SECONDS before=$problems status
    section=$work/section.$stage
    echo "## $title" >"$section"
    say ''
    : >>"$work/stages"
    case $skip in *",$stage,"*) missing 'requested (--skip)'; echo "| $stage | skipped | 0 |" >>"$work/stages"; return ;; esac
    if [ "$(total_left)" -lt 3 ]; then
        missing "no time left of --budget $budget"
        echo "| $stage | skipped | 0 |" >>"$work/stages"
        return
    fi
    stage_end=$((SECONDS - started + seconds))
    if [ "$stage_end" -gt "$budget" ]; then stage_end=$budget; fi
    echo "== $stage: $title (up to $(left) s)" >&2
    "stage_$stage"
    status=ok
    if [ "$problems" -gt $before ]; then status='**failed**'; fi
    echo "| $stage | $status | $((SECONDS - from)) |" >>"$work/stages"
    say ''
}

. scripts/gpu_report.sh

# ---- the stages ----

stage_build() {
    local targets="all tests" jobs
    jobs=$(nproc)
    scripts/find_cuda.sh >"$work/found" 2>&1
    quoted "$work/found" 10
    if [ "$device" = cudaemu ]; then targets="$targets emu"; fi
    local from=$SECONDS
    # shellcheck disable=SC2086
    if ! limited make --no-print-directory -j"$jobs" BUILD="$BUILD" $targets >"$work/build.log" 2>&1; then
        problem "make $targets (its last lines are below)"
        quoted "$work/build.log" 15
        return
    fi
    if [ "$device" != cpu ] && [ ! -e "$BUILD/libllmc_$device.so" ]; then
        problem "$BUILD/libllmc_$device.so was not built: nvcc or cuBLASLt is missing (above)"
        return
    fi
    passed "make $targets with $jobs jobs in $((SECONDS - from)) s"
}

ready() { # [FILE]: checks that the build has the files that a stage needs
    local file
    for file in "$BUILD/train_gpt" "$BUILD/prep" "$BUILD/bench" ${1:+"$1"}; do
        [ -e "$file" ] || { problem "$file is not there: the build failed or was skipped"; return 1; }
    done
    if [ "$device" != cpu ] && [ ! -e "$BUILD/libllmc_$device.so" ]; then
        problem "$BUILD/libllmc_$device.so is not there"
        return 1
    fi
}

OP_TESTS='test_ops_pointwise test_ops_norm test_ops_rope test_ops_embedding test_ops_loss test_ops_optim test_ops_reduce
    test_attention test_gemm'
stage_ops() {
    ready "$BUILD/tests/test_ops_norm" || return
    local program log programs="$OP_TESTS test_model" ok bad status
    if [ "$quick" = 1 ]; then programs=test_ops_norm; fi
    for program in $programs; do
        [ -x "$BUILD/tests/$program" ] || { problem "$program was not built"; continue; }
        log=$work/$program.log
        TOKAMAK_TEST_DEVICE=$device limited "$BUILD/tests/$program" >"$log" 2>&1
        status=$?
        read -r ok bad < <(awk '/^\[=+\].*test\(s\) run/{exit} /\[       OK \] /{ok++} /\[  FAILED  \] /{bad++}
            END{print ok + 0, bad + 0}' "$log")
        if [ "$status" -eq 124 ]; then missing "$program: out of time after $ok cases"
        elif [ "$status" -ne 0 ] || [ "$bad" -gt 0 ]; then
            problem "$program: $ok passed, $bad failed, status $status"
            quoted "$log" 12
        else passed "$program: $ok cases"; fi
    done
}

stage_sanitize() {
    local tool program log status found
    if [ "$device" != cuda ]; then missing "compute-sanitizer needs a real GPU ($device has its own checks)"; return; fi
    ready "$BUILD/tests/test_ops_norm" || return
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer 2>/dev/null | tail -n 1)
    if [ -z "$tool" ]; then missing 'compute-sanitizer is not installed'; return; fi
    log=$work/sanitizer.log
    TOKAMAK_TEST_DEVICE=$device limited -m 60 "$tool" --tool memcheck "$BUILD/tests/test_ops_reduce" >"$log" 2>&1
    if ! grep -q 'ERROR SUMMARY' "$log"; then
        missing 'compute-sanitizer does not work on this machine:'
        quoted "$log" 6
        return
    fi
    for check in memcheck racecheck; do
        for program in $OP_TESTS; do
            log=$work/$check.$program.log
            TOKAMAK_TEST_DEVICE=$device limited "$tool" --tool $check --error-exitcode 86 "$BUILD/tests/$program" >"$log" 2>&1
            status=$?
            found=$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/^=* *//')
            if [ "$status" -eq 0 ]; then passed "$check, $program: $found"
            elif [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then missing "$check, $program: out of time"
            else problem "$check, $program: status $status, $found"; quoted "$log" 12; fi
            if [ "$(left)" -le 2 ]; then missing "$check after $program: out of time"; break; fi
        done
    done
}

# find_text FILE: writes --text, the King James Bible, the texts of ../shared or the repository's sources to FILE.
find_text() {
    if [ -n "$text" ]; then cp "$text" "$1"; text_name=$text
    elif command -v bible >/dev/null && bible -f 'Gen1:1-Rev22:21' >"$1" 2>/dev/null && [ -s "$1" ]; then
        text_name='the King James Bible'
    elif cat ../shared/data/text/*.txt >"$1" 2>/dev/null && [ -s "$1" ]; then text_name='the texts of ../shared'
    else
        git ls-files '*.c' '*.h' '*.cu' '*.md' '*.sh' '*.py' | xargs cat >"$1"
        text_name="this repository's sources"
    fi
}
curve() { sed -n 's/.*"step":\([0-9]*\),.*"loss":\([-0-9.e+]*\),.*/\1 \2/p' "$1/metrics.jsonl"; }
same_bits() { # RUN RUN: equal weights, moments and losses
    local a b file
    a=$(find "$1" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
    b=$(find "$2" -maxdepth 1 -name 'step_*' | sort | tail -n 1)
    for file in model.safetensors optimizer.safetensors; do cmp -s "$a/$file" "$b/$file" || return 1; done
    [ -n "$(curve "$1")" ] && cmp -s <(curve "$1") <(curve "$2")
}

stage_train() {
    ready || return
    local data=$work/shards steps=100 half=50 dtype name model batch
    model="model=llama:d4 channels=256 heads=4 kv_heads=2 head_size=64 qk_norm=true tied=true"
    batch="seq_len=256 batch_rows=8 batch_tokens=4096"
    if [ "$quick" = 1 ]; then
        steps=8 half=4
        model="model=llama:d2 channels=32 heads=2 kv_heads=1 head_size=16 ffn=64 tied=true"
        batch="seq_len=32 batch_rows=2 batch_tokens=128"
    fi
    find_text "$work/text.txt"
    if ! limited -m 60 "$BUILD/prep" tokenize --tokenizer bytes --out "$data" --val-fraction 0.05 "$work/text.txt" \
        >"$work/prep.log" 2>&1; then
        problem "tokenizing $text_name"
        quoted "$work/prep.log"
        return
    fi
    say "A small model (${model#model=}) on $text_name, bytes as tokens, $steps steps."
    say ''
    trained() { # NAME DEVICE [options]: one run, resumed if its directory exists
        local dir=$work/$1 where=$2
        shift 2
        # shellcheck disable=SC2086
        limited "$BUILD/train_gpt" train out_dir="$dir" device="$where" train="$data/train_*.bin" $model $batch max_seq_len=256 \
            steps=$steps save_every=$half keep_last=0 val_every=0 val_tokens=4k sample_tokens=1 warmup_steps=$half lr=1e-3 \
            log_every=1 progress_bar=false "$@" >"$dir.log" 2>&1
    }
    for dtype in fp32 bf16; do
        for name in "gpu-$dtype $device" "cpu-$dtype cpu"; do
            # shellcheck disable=SC2086
            trained $name dtype=$dtype || { problem "training on ${name#* } in $dtype"; quoted "$work/${name% *}.log"; continue 2; }
        done
        compare_curves $dtype
    done
    variant() { # NAME WHAT OPTIONS...
        local variant=$1 what=$2
        shift 2
        if ! trained "$variant" "$device" dtype=bf16 "$@"; then problem "$what: the run failed"; quoted "$work/$variant.log"
        elif same_bits "$work/$variant" "$work/gpu-bf16"; then passed "$what: the same losses, weights and moments to the bit"
        else problem "$what: not the same bits"; fi
    }
    [ -d "$work/gpu-bf16" ] || return
    if [ "$device" != cpu ]; then variant no-graphs 'without captured graphs' graphs=false; fi
    variant norm-act 'recompute=norm_act' recompute=norm_act
    variant block 'recompute=block' recompute=block
    # Resume half-way, as after a crash: the later checkpoint is removed.
    if trained resumed "$device" dtype=bf16; then
        rm -rf "$(find "$work/resumed" -maxdepth 1 -name 'step_*' | sort | tail -n 1)"
        variant resumed "resumed at step $half of $steps"
    fi
}

# Sums in another order round differently, and training amplifies this step by step. Tolerances: fp32 0.001 in the first
# twenty steps, 0.05 in all; bf16, which rounds by 2^-8 at other places, 0.05 and 0.1.
compare_curves() {
    local first=0.001 all=0.05 line
    if [ "$1" = bf16 ]; then first=0.05 all=0.1; fi
    line=$(paste -d' ' <(curve "$work/gpu-$1") <(curve "$work/cpu-$1") | awk -v first=$first -v all=$all '
        NF != 4 || $1 != $3 {bad = 1}
        {d = $2 > $4 ? $2 - $4 : $4 - $2; if (!(d <= most)) most = d; if ($1 <= 20 && !(d <= early)) early = d; ++n; g = $2; c = $4}
        END {
            printf "%d steps, largest difference of the loss %.2g (%g allowed), ", n, most, all
            printf "of the first 20 %.2g (%g allowed); it ends at %.4f here, %.4f on the CPU", early, first, g, c
            exit !(n > 0 && !bad && most <= all && early <= first)}')
    # shellcheck disable=SC2181
    if [ $? -eq 0 ]; then passed "$1, as on the CPU: $line"; else problem "$1 differs from the CPU: $line"; fi
    goal "$1 loss curve as on the CPU" "${line%%;*}" "$(tail -n 1 "$section" | grep -q '^- ok' && echo yes || echo '**no**')"
}

# ---- training throughput ----

has_torch() { # sets torch_why
    if [ "$python" = none ]; then torch_why='not requested (--python none)'; return 1; fi
    torch_why=$(limited -m 60 "$python" -c "
import torch
assert '$device' != 'cuda' or torch.cuda.is_available(), 'it finds no GPU'
print(torch.__version__)" 2>&1 | tail -n 1)
    case $torch_why in [0-9]*) return 0 ;; *) torch_why="no usable PyTorch in $python ($torch_why)"; return 1 ;; esac
}

record() { # SHAPE DTYPE PROGRAM LINE: adds the JSON line of one program; returns 1 if LINE is empty
    case $4 in '{'*) ;; *) return 1 ;; esac
    printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$(json tok_per_s "$4")" "$(json peak_share "$4")" \
        "$(json device_bytes "$4")" "$(json_list losses "$4")" >>"$work/throughput"
    printf '%s\n' "$4" >>"$work/steps.jsonl"
    note "$1 $2 $3: $(json tok_per_s "$4") tokens/s"
}
run_ours() { # SHAPE DTYPE [options]
    local shape=$1 dtype=$2 line steps=6
    shift 2
    if [ "$quick" = 1 ]; then steps=3; fi
    line=$(limited "$BUILD/bench" step --device "$device" --shape "$shape" --dtype "$dtype" --steps $steps "$@" 2>"$work/step.err")
    record "$shape" "$dtype" tokamak "$line" && return
    if [ "$(left)" -le 1 ]; then missing "$shape $dtype: out of time"
    else problem "$shape $dtype: $(tail -n 1 "$work/step.err")"; fi
}
run_torch() { # SHAPE DTYPE
    local shape=$1 how=--compile-blocks line arch where=cpu steps=6
    arch=$("$BUILD/bench" step --shape "$shape" --describe)
    if [ "$device" = cuda ]; then where=cuda; fi
    if [ "$(json layers "$arch")" -le 12 ]; then how=--compile; fi  # compiling deeper models takes minutes
    if [ "$quick" = 1 ]; then how='' steps=3; fi
    # shellcheck disable=SC2086
    line=$(limited "$python" dev/bench/peer_pytorch.py --device $where --arch "$arch" --dtype "$2" --steps $steps $how \
        2>"$work/torch.err" | tail -n 1)
    if ! record "$shape" "$2" PyTorch "$line"; then
        missing "PyTorch, $shape: $(if [ "$(left)" -le 1 ]; then echo 'out of time'; else tail -n 1 "$work/torch.err"; fi)"
        return
    fi
    same_losses "$shape" "$2" PyTorch
}
# With the same weights and tokens, the losses of the first four steps must agree to 0.02: bf16 is rounded at other
# places, and PyTorch's softmax includes the padding rows of the vocabulary.
same_losses() { # SHAPE DTYPE PEER
    awk -F'\t' -v shape="$1" -v dtype="$2" -v peer="$3" '$1 == shape && $2 == dtype {loss[$3] = $7}
        END {
            n = split(loss["tokamak"], a, /, */)
            m = split(loss[peer], b, /, */)
            for (i = 1; i <= 4 && i <= n && i <= m; ++i) {
                d = a[i] > b[i] ? a[i] - b[i] : b[i] - a[i]
                if (!(d <= most)) most = d
            }
            printf "%s: the losses of the first steps are those of %s, to %.2g (0.02 allowed)", shape, peer, most
            exit !(n >= 4 && m >= 4 && most <= 0.02)
        }' "$work/throughput" >"$work/same"
    # shellcheck disable=SC2181
    if [ $? -eq 0 ]; then passed "$(cat "$work/same")"; else problem "$(cat "$work/same")"; fi
}

llmc_ready() { # builds llm.c's trainer in its tree, once
    [ -n "$llmc" ] || { missing "llm.c: no source tree given (--llmc DIR)"; return 1; }
    [ "$device" = cuda ] || [ -x "$llmc/train_gpt2cu" ] || { missing 'llm.c is not built, and needs a real GPU'; return 1; }
    local cudnn=USE_CUDNN=0
    if [ -d "$HOME/cudnn-frontend/include" ] || [ -d "$llmc/cudnn-frontend/include" ]; then cudnn=USE_CUDNN=1; fi
    if [ ! -x "$llmc/train_gpt2cu" ] &&
        ! limited -m 150 make -C "$llmc" train_gpt2cu NO_MULTI_GPU=1 $cudnn >"$work/llmc.log" 2>&1; then
        missing 'llm.c: its build failed:'
        quoted "$work/llmc.log" 5
        return 1
    fi
    say "- llm.c: $llmc, $(git -C "$llmc" rev-parse --short HEAD 2>/dev/null || echo 'unknown commit'), $cudnn if it was built now"
}
# Every step trains on all of tokens.bin (-a 1), starting from Tokamak's weights, so the losses must agree. No
# recomputation (-r 0), as in Tokamak's measurement. The first two steps are not counted.
run_llmc() { # SHAPE
    local line arch log=$work/llmc.$1.log start=$work/llmc
    arch=$("$BUILD/bench" step --shape "$1" --describe)
    mkdir -p "$start"
    if ! limited "$BUILD/bench" step --shape "$1" --start "$start" >"$log" 2>&1; then
        missing "llm.c, $1: $(tail -n 1 "$log")"
        return
    fi
    line=$(cd "$llmc" && limited ./train_gpt2cu -i "$start/tokens.bin" -j "$start/tokens.bin" -e "$start/model.bin" -a 1 \
        -b "$(json batch_rows "$arch")" -t "$(json seq_len "$arch")" -d "$(json batch_tokens "$arch")" -x 8 -v 1000 -m 1 \
        -s 0 -h 0 -l "$(json lr "$arch")" -c 0.1 -r 0 2>&1 | tee "$log" |
        llmc_line "$1" "$(json batch_tokens "$arch")")
    rm -f "$start/model.bin"
    if record "$1" bf16 llm.c "$line"; then same_losses "$1" bf16 llm.c
    else missing "llm.c, $1: $(tail -n 1 "$log" | cut -c1-150)"; fi
}
# Converts llm.c's step lines to a JSON line: "step 3/8 | loss 10.95 (+nanz)| ... | 120.00 ms | ... | 540000 tok/s".
# Uses the milliseconds: its tokens/s are smoothed over the steps.
llmc_line() { # SHAPE TOKENS
    awk -v shape="$1" -v tokens="$2" '
        /^step .*\| loss / {
            match($0, /loss [0-9.]+/)
            losses = losses (losses == "" ? "" : ", ") substr($0, RSTART + 5, RLENGTH - 5)
            if (++n > 2 && match($0, /[0-9.]+ ms/)) v[++k] = substr($0, RSTART, RLENGTH - 3) + 0
        }
        END {
            if (k == 0) exit
            for (i = 2; i <= k; ++i) for (j = i; j > 1 && v[j - 1] > v[j]; --j) {t = v[j]; v[j] = v[j - 1]; v[j - 1] = t}
            printf "{\"peer\": \"llm.c\", \"shape\": \"%s\", \"tok_per_s\": %.1f, \"losses\": [%s]}\n", shape,
                tokens / v[int((k + 1) / 2)] * 1000, losses
        }'
}

# Whether `bench step` has the dtype fp8.
knows_fp8() { [ "$device" = cuda ] && "$BUILD/bench" step --help | grep -q -- '--dtype.*fp8'; }

# The shapes of the goals first, then the rest while there is time.
FIRST_SHAPES='gpt2-124M gpt2-350M gpt2-774M gpt2-1.5B qwen2-0.5B qwen2-1.5B qwen2-3B'
LONG_SHAPES='qwen2-0.5B-t4096 qwen2-1.5B-t4096 qwen2-3B-t4096'
FP8_SHAPES='gpt2-1.5B qwen2-1.5B qwen2-3B'
stage_steps() {
    ready || return
    local ours=$FIRST_SHAPES torch='gpt2-124M qwen2-1.5B' llm='gpt2-124M gpt2-1.5B' shape
    local more_torch='gpt2-1.5B qwen2-0.5B qwen2-3B gpt2-350M gpt2-774M' more_llm='gpt2-350M gpt2-774M' long=$LONG_SHAPES
    : >"$work/throughput"
    if [ "$device" != cuda ] || [ "$quick" = 1 ]; then
        ours='tiny-gpt2 tiny-llama' torch=$ours llm=tiny-gpt2 more_torch='' more_llm='' long=''
    fi
    has_torch || { torch='' more_torch='' && missing "PyTorch: $torch_why"; }
    for shape in $ours; do run_ours "$shape" bf16; done
    for shape in $torch; do run_torch "$shape" bf16; done
    if llmc_ready; then for shape in $llm; do run_llmc "$shape"; done; else more_llm=''; fi
    if knows_fp8; then for shape in $FP8_SHAPES; do run_ours "$shape" fp8; done
    elif [ "$device" = cuda ]; then missing 'fp8: bench step of this build does not have it'; fi
    enough() { # SECONDS WHAT
        if [ "$(left)" -gt "$1" ]; then return 0; fi
        missing "$2: out of time"
        return 1
    }
    for shape in $long; do enough 20 "$shape" && run_ours "$shape" bf16; done
    for shape in $more_llm; do enough 30 "llm.c, $shape" && run_llmc "$shape"; done
    for shape in $more_torch; do enough 45 "PyTorch, $shape" && run_torch "$shape" bf16; done
    throughput_table
    throughput_goals
    local line
    line=$(head -n 1 "$work/steps.jsonl" 2>/dev/null)
    say ''
    say "Model FLOPs utilisation (MFU) is $(json_text mfu_formula "$line")."
    say "Peak: $(format '%.1f' "$(json peak_gflops "$line")/1000") TFLOP/s, $(json_text peak_source "$line")."
}

# ---- one rank over NCCL ----

# Bandwidth of the operations in a group of one rank compared with a copy, and the fixed cost of an operation.
group_of_one() {
    local log=$work/group.log line
    if ! TOKAMAK_TEST_DEVICE=$device limited -m 60 "$BUILD/tests/comm_nccl_ranks" bandwidth >"$log" 2>&1; then
        problem "NCCL, one rank: $(tail -n 1 "$log")"
        return
    fi
    say '| operation, one rank | MiB | us | GB/s | of a copy |'
    say '|---|---|---|---|---|'
    while read -r line; do
        say "| $(json_text op "$line") | $(json mib "$line") | $(json us "$line") | $(json gb_per_s "$line") | $(json share_of_copy "$line") |"
    done < <(grep '^{' "$log")
    say ''
}
# The median over steps, except the first two, of one number in the metrics of several runs.
step_median() { # KEY NAME...
    local key=$1 name
    shift
    for name; do sed -n "s/.*\"loss\".*\"$key\":\([0-9.e+-]*\).*/\1/p" "$work/$name/metrics.jsonl" | tail -n +3; done | sort -g |
        awk '{x[NR] = $1} END {print NR ? (NR % 2 ? x[(NR + 1) / 2] : (x[NR / 2] + x[NR / 2 + 1]) / 2) : 0}'
}
stage_ranks() {
    if [ "$device" = cpu ]; then missing 'NCCL needs GPUs'; return; fi
    ready "$BUILD/tests/comm_nccl_ranks" || return
    if ! TOKAMAK_TEST_DEVICE=$device limited -m 60 "$BUILD/tests/comm_nccl_ranks" open >"$work/nccl.log" 2>&1; then
        if grep -q 'NCCL.*cannot be opened\|has no NCCL' "$work/nccl.log"; then missing "NCCL: $(tail -n 1 "$work/nccl.log")"
        else problem "NCCL, one rank: $(tail -n 1 "$work/nccl.log")"; fi
        return
    fi
    group_of_one
    local data=$work/rank-shards rounds='1 2 3' name kind none nccl last=0
    local options="model=gpt2:124M vocab=50257 dtype=bf16 seq_len=1024 batch_rows=16 batch_tokens=65536 steps=16"
    if [ "$quick" = 1 ]; then
        rounds=1 options="model=llama:d2 channels=32 heads=2 kv_heads=1 head_size=16 ffn=64 seq_len=32 batch_rows=2 batch_tokens=128 steps=5"
    fi
    # Random tokens: the work does not depend on them.
    head -c 400000 /dev/urandom | base64 >"$work/rank-text.txt"
    if ! limited -m 60 "$BUILD/prep" tokenize --tokenizer bytes --out "$data" "$work/rank-text.txt" >"$work/prep.log" 2>&1; then
        problem 'tokenizing random text'
        quoted "$work/prep.log"
        return
    fi
    for round in $rounds; do
        # Alternating, so that a device that warms up slows both.
        for kind in none nccl; do
            name=rank-$kind-$round
            # shellcheck disable=SC2086
            if ! TOKAMAK_COMM=$kind limited "$BUILD/train_gpt" train out_dir="$work/$name" device="$device" launch=single \
                train="$data/train_*.bin" val= $options val_every=0 save_every=0 sample_tokens=1 log_every=1 progress_bar=false \
                >"$work/$name.log" 2>&1; then
                if [ "$(left)" -le 1 ]; then missing "one NCCL rank compared with none, from repetition $round on: out of time"; break 2; fi
                problem "training with TOKAMAK_COMM=$kind"
                quoted "$work/$name.log"
                return
            fi
        done
        last=$round
    done
    if [ "$last" = 0 ]; then return; fi
    local names=() comm
    for round in $(seq 1 "$last"); do names+=("rank-nccl-$round"); done
    none=$(step_median step_ms "${names[@]/nccl/none}") nccl=$(step_median step_ms "${names[@]}") comm=$(step_median comm_ms "${names[@]}")
    if ! awk -v ms="$comm" 'BEGIN {exit !(ms > 0)}'; then problem 'TOKAMAK_COMM=nccl: no collectives in the metrics'; return; fi
    passed "a step of ${options%% *}: $(format %.2f "$none") ms without ranks, $(format %.2f "$nccl") ms as one NCCL rank (medians of $last rounds)"
    say "- collectives of a step: $(format %.3f "$comm") ms, of which exposed: $(format %.3f "$(step_median comm_exposed_ms "${names[@]}")") ms"
    if [ "$device" = cuda ]; then
        goal 'one NCCL rank costs under 1 % against none' "$(awk -v a="$nccl" -v b="$none" 'BEGIN {printf "%+.2f %%", 100 * (a / b - 1)}')" \
            "$(at_least "$none" "$(awk -v a="$nccl" 'BEGIN {print a / 1.01}')")"
    fi
}

# ---- kernels ----

stage_kernels() {
    ready || return
    local options=(--device "$device") ops=${out%.md}.ops.json log=$work/ops.log status peer=()
    if [ "$quick" = 1 ]; then options+=(--scale tiny --only "norm forward" --repeats 5)
    elif [ "$(left)" -gt 300 ]; then options+=(--models all)
    else options+=(--models "gpt2-124M,qwen2-1.5B"); fi
    if [ "$(left)" -gt 60 ] && has_torch; then
        limited -m 40 "$BUILD/bench" op "${options[@]}" --list --json "$work/cases.json" >/dev/null 2>&1
        if limited -m $(($(left) / 3)) "$python" dev/bench/peer_ops_pytorch.py --device "${device/cudaemu/cpu}" \
            --cases "$work/cases.json" --json "$work/peer.json" --seconds $(($(left) / 4)) >"$work/peer.log" 2>&1; then
            peer=(--peer "$work/peer.json")
        else missing "PyTorch's kernels: $(tail -n 1 "$work/peer.log")"; fi
    fi
    local seconds=$(($(left) - 10))
    if [ $seconds -lt 2 ]; then seconds=2; fi
    limited "$BUILD/bench" op "${options[@]}" "${peer[@]}" --seconds $seconds --json "$ops" >"$log" 2>"$work/ops.err"
    status=$?
    cp "$log" "${out%.md}.ops.txt" 2>/dev/null
    if [ ! -s "$ops" ]; then
        problem "bench op: status $status: $(tail -n 1 "$work/ops.err")"
        quoted "$log" 40
        return
    fi
    local cases wrong skipped
    cases=$(grep -c '"cold":' "$ops")
    wrong=$(grep '"cold":' "$ops" | grep -vc '"correct":true.*"repeatable":true')
    skipped=$(sed -n 's/.*"skipped":"\([^"]*\)".*/\1/p' "$ops" | sort | uniq -c | sort -rn | sed 's/^ *//')
    if [ "$wrong" -gt 0 ]; then problem "$wrong of $cases kernels have wrong results, or results that differ between runs"
    else passed "$cases kernels measured, correct before and after, the same bits each time; times in $(basename "$ops")"; fi
    while read -r cases wrong; do
        [ -z "$cases" ] || missing "$cases kernels: $wrong"
    done <<<"$skipped"
    kernel_goals "$ops"
    say ''
    say '```'
    cat "$log" >>"$section"
    say '```'
}
find_gpu
slug=$(printf '%s' "$gpu" | sed 's/^no GPU: the //' | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
out=${out:-dev/bench/results/$slug-$(date +%F).md}
case $out in *.md) ;; *) out=$out.md ;; esac
case $out in /*) ;; *) out=$PWD/$out ;; esac
STAGES=(
    "build 150 The build"
    "ops 90 Tests of the operations and the model"
    "train 90 Training on real text, compared with the CPU"
    "steps 240 Training throughput"
    "ranks 75 One rank over NCCL"
    "kernels 120 Kernels"
    "sanitize 90 compute-sanitizer"
)
if [ "$dry" = 1 ]; then
    echo "device $device ($gpu), $budget seconds, report $out"
    for entry in "${STAGES[@]}"; do
        read -r name seconds title <<<"$entry"
        case $skip in *",$name,"*) echo "  $name: skipped (--skip)" ;; *) echo "  $name: $title, up to $seconds s" ;; esac
    done
    if has_torch; then echo "  PyTorch $torch_why"; else echo "  PyTorch is skipped: $torch_why"; fi
    echo "  llm.c: ${llmc:-skipped (no --llmc)}"
    rm -rf "$work"
    exit 0
fi
trap 'ended_early=interruption; write_report' INT TERM
trap 'ended_early="an error of this script"; write_report' EXIT
for entry in "${STAGES[@]}"; do
    read -r name seconds title <<<"$entry"
    # A larger budget than the default is divided in proportion.
    run_stage "$name" $((budget > 570 ? seconds * budget / 570 : seconds)) "$title"
done
write_report
if [ "$problems" -gt 0 ]; then echo "gpu_check.sh: $problems failed; see the report" >&2; exit 1; fi
