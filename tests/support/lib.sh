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

# skip NAME WHY: one test that could not be run.
skip() { printf '[ RUN      ] %s\n%s\n[  SKIPPED ] %s\n' "$1" "$2" "$1"; }
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
