#!/bin/bash
# tests/fuzz/run.sh [BUILD [NAME]]: runs every fuzz target for FUZZ_SECONDS (default 5), starting from tests/fuzz/corpus/TARGET. New
# inputs are kept in BUILD/corpus/TARGET, inputs that crash in BUILD/crashes.
# Ends like tests/run.sh; a target counts as one test.
set -u
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build-fuzz}
only=${2:-}
passed=0 failed=0
mkdir -p "$build/crashes" "$build/logs" || exit 1

for target in "$build"/fuzz_*; do
    [ -x "$target" ] || continue
    name=$(basename "$target" | sed s/^fuzz_//)
    case $name in *"$only"*) ;; *) continue ;; esac
    seeds=tests/fuzz/corpus/$name
    log=$build/logs/$name.log
    mkdir -p "$build/corpus/$name"
    printf '  fuzz %-23s ' "$name"
    if [ ! -d "$seeds" ]; then
        echo "FAILED: no seeds in $seeds"
        failed=$((failed + 1))
        continue
    fi
    if "$target" -max_total_time="${FUZZ_SECONDS:-5}" -timeout=30 -rss_limit_mb=2048 -max_len=20000 -dict=tests/fuzz/words.dict -print_final_stats=1 \
        -use_value_profile=1 -artifact_prefix="$build/crashes/$name-" "$build/corpus/$name" "$seeds" >"$log" 2>&1; then
        passed=$((passed + 1))
        awk '/number_of_executed_units/{runs = $2} /cov: /{sub(/.*cov: /, ""); cover = $1}
            END{printf "passed: %d inputs, %d edges\n", runs, cover}' "$log"
    else
        failed=$((failed + 1))
        echo "FAILED: the input is in $build/crashes; the last lines of $log:"
        grep -v '^#[0-9]*[[:space:]]' "$log" | tail -n 40 | cut -c1-200 | sed 's/^/      /'
    fi
done
if [ -n "${COUNTS:-}" ]; then
    echo "$passed $failed 0" >>"$COUNTS"
else
    echo "$passed passed, $failed failed, 0 skipped"
fi
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
