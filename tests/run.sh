#!/bin/bash
# Runs every test program BUILD/tests/test_* and every script tests/*/test_*.sh, from the repository root:
#     tests/run.sh [BUILD [NAME]]      NAME: only tests whose file name contains it
# Both print cmocka's lines ("[ RUN      ] name", then "[       OK ] name", "[  FAILED  ] name" or "[  SKIPPED ] name", with
# the reason of a skip in between); scripts get BUILD as $1. Without such lines a program counts as one test, by its exit status.
# Ends with "N passed, N failed, N skipped", or, if COUNTS names a file, with these three numbers added to it.
set -u
cd "$(dirname "$0")/.." || exit 1
# Waiting threads sleep instead of spinning: otherwise tests that share the cores with other work would spend their time
# waiting for threads that are not scheduled.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
# Leaks of MPI's threads are not ours.
export LSAN_OPTIONS="suppressions=$PWD/tests/ranks/mpi/lsan.supp:print_suppressions=0${LSAN_OPTIONS:+:$LSAN_OPTIONS}"
build=${1:-build}
only=${2:-}
logs=$build/test-logs
mkdir -p "$logs" || exit 1
passed=0 failed=0 skipped=0
[ -d ../shared ] || echo 'note: ../shared is absent: tests on real data are skipped'

shopt -s nullglob
started=$SECONDS
for test in "$build"/tests/test_* tests/*/test_*.sh; do
    name=$(basename "$test")
    case $name in *.d | *.o) continue ;; esac
    case $name in *"$only"*) ;; *) continue ;; esac
    # Skips programs of earlier builds whose source does not exist any more.
    case $name in *.sh) ;; *) sources=(tests/*/"$name".c); [ ${#sources[@]} -eq 1 ] || continue ;; esac
    log=$logs/$name.log
    printf '  %-28s ' "$name"
    from=$(date +%s.%N)
    case $name in
    *.sh) timeout -k 10 900 bash "$test" "$build" </dev/null >"$log" 2>&1 ;;
    *) timeout -k 10 900 "$test" </dev/null >"$log" 2>&1 ;;
    esac
    status=$?
    seconds=$(echo "$(date +%s.%N) $from" | awk '{printf "%.1f", $1 - $2}')
    # cmocka lists failures and skips again at the end, after "[==========] N test(s) run."
    read -r ok bad skip < <(awk '/^\[=+\].*test\(s\) run/{exit} /\[       OK \] /{ok++} /\[  FAILED  \] /{bad++}
        /\[  SKIPPED \] /{skip++} END{print ok + 0, bad + 0, skip + 0}' "$log")
    why=
    if [ $status -ge 124 ]; then
        why="stopped with status $status ($([ $status -eq 124 ] && echo 'took over 900 s' || kill -l $status 2>/dev/null))"
    elif [ $status -ne 0 ] && [ "$bad" -eq 0 ]; then
        why="exit status $status"
    elif [ $((ok + bad + skip)) -eq 0 ]; then
        ok=1
    fi
    [ -z "$why" ] || bad=$((bad + 1))
    printf '%4d passed%s%s %6s s\n' "$ok" "$([ "$bad" -gt 0 ] && echo ", $bad FAILED")" \
        "$([ "$skip" -gt 0 ] && echo ", $skip skipped")" "$seconds"
    awk '/^\[=+\].*test\(s\) run/{exit} /\[ RUN      \] /{sub(/.*\[ RUN      \] /, ""); name = $0; reason = ""; next} /\[  SKIPPED \] / && name != "" {
        print "      skipped " name ":" (reason == "" ? " (no reason given)" : reason); name = ""; next} {reason = reason " " $0}' "$log"
    if [ "$bad" -gt 0 ]; then
        [ -z "$why" ] || echo "      $why"
        echo "      ---- last lines of $log"
        tail -n 40 "$log" | cut -c1-300 | sed 's/^/      /'
    fi
    passed=$((passed + ok)) failed=$((failed + bad)) skipped=$((skipped + skip))
done
echo "  in $((SECONDS - started)) s"

if [ $((passed + failed + skipped)) -eq 0 ]; then
    echo "no test name contains '$only' in $build/tests and tests"
    failed=1
fi
if [ -n "${COUNTS:-}" ]; then
    echo "$passed $failed $skipped" >>"$COUNTS"
else
    echo "$passed passed, $failed failed, $skipped skipped"
fi
[ "$failed" -eq 0 ]
