# lib.sh: what the shell tests share. `check NAME COMMAND...` runs one test and reports it in cmocka's lines, which tests/run.sh
# counts. $BUILD is the build directory, $work a directory that disappears at the end.
BUILD=${1:-build}
train_gpt=$BUILD/train_gpt
prep=$BUILD/prep
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0 tests=0

check() {
    local name=$1
    shift
    tests=$((tests + 1))
    echo "[ RUN      ] $name"
    if "$@"; then
        echo "[       OK ] $name"
    else
        echo "[  FAILED  ] $name"
        failures=$((failures + 1))
    fi
}
finish() {
    echo "[==========] $tests test(s) run."
    [ "$failures" -eq 0 ]
}
# expect STATUS TEXT COMMAND...: the exit status, and all words of TEXT (an extended regular expression) in what it prints.
expect() {
    local status=$1 text=$2 out got
    shift 2
    out=$("$@" 2>&1 </dev/null)
    got=$?
    if [ "$got" -ne "$status" ]; then
        echo "    expected exit status $status, found $got: $*"
        echo "$out" | tail -n 5 | sed 's/^/    /'
        return 1
    fi
    if ! echo "$out" | grep -qE -- "$text"; then
        echo "    expected \"$text\" in the output of: $*"
        echo "$out" | tail -n 5 | sed 's/^/    /'
        return 1
    fi
}

# skip NAME WHY: one test that could not be run. skip_all: the same, and the end of the script.
skip() { printf '[ RUN      ] %s\n%s\n[  SKIPPED ] %s\n' "$1" "$2" "$1"; }
skip_all() {
    skip "$@"
    exit 0
}
need_mpi() { # NAME
    local why
    why=$(mpi_missing)
    [ -z "$why" ] || skip_all "$1" "$why"
}
# words COUNT: that many words of text with some structure.
words() {
    awk -v count="$1" 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
        for (i = 0; i < count; ++i) printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "}'
}
# Several ranks on this machine: "${mpi[@]}" -np N COMMAND; mpi_missing says why not, or nothing.
mpi=(mpirun --oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)
mpi_missing() {
    if ! command -v mpirun >/dev/null; then echo "mpirun is not installed (scripts/setup.sh --mpi)"
    elif [ ! -e "$BUILD/libllmc_mpi.so" ]; then echo "$BUILD/libllmc_mpi.so was not built: mpicc was not found (scripts/setup.sh --mpi, then make)"
    fi
}
# For env: gcc 12's leak checker itself crashes now and then ("Tracer caught signal 11") where more than two MPI processes end at
# once: leaks are looked for with one and two ranks.
sanitize_for() { echo "ASAN_OPTIONS=${ASAN_OPTIONS:-}$([ "$1" -le 2 ] || echo :detect_leaks=0)"; }

# ---- a run ----
# shards [WORDS [SHARE]]: so many words of text as byte tokens in $work/data, a share of them held out; WORDS -: what
# $work/text.txt holds. $train, $val: their files. $tiny: options of a run over them that takes seconds, of a Llama-style model; of
# an option given again behind them the last one counts.
shards() {
    [ "${1:-12000}" = - ] || words "${1:-12000}" >"$work/text.txt"
    "$prep" tokenize --tokenizer bytes --out "$work/data" --val-fraction "${2:-0.1}" "$work/text.txt" >"$work/prep.log" 2>&1 ||
        { tail -n 5 "$work/prep.log"; return 1; }
    train=$work/data/train_000000.bin val=$work/data/val_000000.bin
    [ -e "$val" ] || val=
    tiny=(train="$train" val="$val" model=llama:d2 channels=64 heads=4 kv_heads=2 head_size=16 ffn=96 max_seq_len=32 seq_len=32
        warmup_steps=4 lr=3e-3 keep_last=0 sample_tokens=8 progress_bar=false)
}
# tiny_run DIR [key=value...]: such a run.
tiny_run() { "$train_gpt" train out_dir="$1" "${tiny[@]}" "${@:2}"; }
# on_ranks RANKS COMMAND...: on so many ranks of this machine, for two minutes at most.
on_ranks() {
    local launcher=()
    [ "$1" -eq 1 ] || launcher=("${mpi[@]}" -np "$1")
    env "$(sanitize_for "$1")" timeout -k 5 120 "${launcher[@]}" "${@:2}"
}
# tiny_ranks NAME RANKS [key=value...]: the run $work/NAME on so many ranks of one thread, what it prints in $work/NAME.log.
# $program: what stands before train_gpt.
program=()
tiny_ranks() {
    on_ranks "$2" "${program[@]}" "$train_gpt" train out_dir="$work/$1" device=cpu threads=1 "${tiny[@]}" warmup_steps=2 \
        comm_timeout=60 "${@:3}" >"$work/$1.log" 2>&1
}
# fault_library NAME [COMPILER]: compiles that file of tests/faults; $preload is it, behind a sanitizer's runtime, which must come first.
fault_library() {
    sanitizer=$(ldd "$train_gpt" | awk '/libasan/ {print $3}')
    "${2:-cc}" -D_GNU_SOURCE -shared -fPIC -o "$work/$1.so" "tests/faults/$1.c" -ldl || return 1
    preload="${sanitizer:+$sanitizer:}$work/$1.so"
}
