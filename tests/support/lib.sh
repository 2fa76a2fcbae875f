# lib.sh: functions of the shell tests. `check NAME COMMAND...` runs one test and prints the lines of cmocka, which tests/run.sh
# counts. $BUILD is the build directory, $work a temporary directory.
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
# expect STATUS TEXT COMMAND...: checks the exit status, and that the output matches TEXT (an extended regular expression).
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

# skip NAME WHY: reports a test as skipped. skip_all: the same, and exits.
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
# words COUNT: prints that many words of text with some structure.
words() {
    awk -v count="$1" 'BEGIN {srand(7); split("the of and to in that he shall unto for his lord king day son house people land came said", w, " ")
        for (i = 0; i < count; ++i) printf "%s%s", w[1 + int(rand() * rand() * 20)], i % 11 == 10 ? ".\n" : " "}'
}
# Several ranks on this machine: "${mpi[@]}" -np N COMMAND; mpi_missing prints why it is not possible, or nothing.
mpi=(mpirun --oversubscribe --bind-to none)
[ "$(id -u)" -ne 0 ] || mpi+=(--allow-run-as-root)
mpi_missing() {
    if ! command -v mpirun >/dev/null; then echo "mpirun is not installed (scripts/setup.sh --mpi)"
    elif [ ! -e "$BUILD/libllmc_mpi.so" ]; then echo "$BUILD/libllmc_mpi.so was not built: mpicc was not found (scripts/setup.sh --mpi, then make)"
    fi
}
# For env: gcc 12's leak checker sometimes crashes ("Tracer caught signal 11") when several MPI processes end at once, so
# leaks are checked with one rank only.
sanitize_for() { echo "ASAN_OPTIONS=${ASAN_OPTIONS:-}$([ "$1" -le 1 ] || echo :detect_leaks=0)"; }

# ---- a run ----
# shards [WORDS [SHARE]]: writes WORDS words of text as byte tokens to $work/data, with SHARE of them held out; WORDS -: the text
# in $work/text.txt. Sets $train and $val (files), and $tiny: options of a run of a Llama-style model that takes seconds. An option
# may be repeated after them; the last value counts.
shards() {
    [ "${1:-12000}" = - ] || words "${1:-12000}" >"$work/text.txt"
    "$prep" tokenize --tokenizer bytes --out "$work/data" --val-fraction "${2:-0.1}" "$work/text.txt" >"$work/prep.log" 2>&1 ||
        { tail -n 5 "$work/prep.log"; return 1; }
    train=$work/data/train_000000.bin val=$work/data/val_000000.bin
    [ -e "$val" ] || val=
    tiny=(train="$train" val="$val" model=llama:d2 channels=64 heads=4 kv_heads=2 head_size=16 ffn=96 max_seq_len=32 seq_len=32
        warmup_steps=4 lr=3e-3 keep_last=0 sample_tokens=8 progress_bar=false)
}
# tiny_run DIR [key=value...]: runs it.
tiny_run() { "$train_gpt" train out_dir="$1" "${tiny[@]}" "${@:2}"; }
# on_ranks RANKS COMMAND...: runs COMMAND on RANKS ranks of this machine, for at most two minutes.
on_ranks() {
    local launcher=()
    [ "$1" -eq 1 ] || launcher=("${mpi[@]}" -np "$1")
    env "$(sanitize_for "$1")" timeout -k 5 120 "${launcher[@]}" "${@:2}"
}
# tiny_ranks NAME RANKS [key=value...]: the run $work/NAME on RANKS ranks of one thread, with its output in $work/NAME.log.
# $program: a command that starts train_gpt.
program=()
tiny_ranks() {
    on_ranks "$2" "${program[@]}" "$train_gpt" train out_dir="$work/$1" device=cpu threads=1 "${tiny[@]}" warmup_steps=2 \
        comm_timeout=60 "${@:3}" >"$work/$1.log" 2>&1
}
# fault_library NAME [COMPILER]: compiles that file of tests/faults; $preload: the library, after a sanitizer's runtime, which must be first.
fault_library() {
    sanitizer=$(ldd "$train_gpt" | awk '/libasan/ {print $3}')
    "${2:-cc}" -D_GNU_SOURCE -shared -fPIC -o "$work/$1.so" "tests/faults/$1.c" -ldl || return 1
    preload="${sanitizer:+$sanitizer:}$work/$1.so"
}
