#!/bin/bash
# test_bench.sh: the benchmark program at shapes that take no time: every operation of the registry is right and says so,
# a report can be read back, a regression and a wrong machine are noticed; steps train on every device that is built.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
bench=$BUILD/bench
op="$bench op --scale tiny --threads 2 --repeats 5"

every_case() {  # DTYPE: all cases ran, none was wrong
    $op --dtype "$1" --models gpt2-124M,qwen2-0.5B --json "$work/$1.json" >"$work/$1.txt" 2>&1 || { tail -n 5 "$work/$1.txt"; return 1; }
    local rows right
    rows=$(grep -c '^{"op"' "$work/$1.json")
    right=$(grep -c '"correct":true.*"repeatable":true' "$work/$1.json")
    echo "    $rows cases, $right right and repeatable"
    [ "$rows" -gt 90 ] && [ "$rows" -eq "$right" ]
}
check every_operation_fp32 every_case fp32
check every_operation_bf16 every_case bf16

check list expect 0 '[0-9]+ cases' $op --list --json "$work/list.json"
check list_names_dims grep -q '"dims":\[4,640,640\]' "$work/list.json"
check only_filters expect 0 'add residual, gpt2-124M' $op --only "add residual gpt2"
check nothing_to_do expect 1 'no case contains "nonsense"' $op --only nonsense
check unknown_option expect 2 "unknown option .--onyl.; did you mean .--only" $op --onyl add
check unknown_model expect 2 'expected "all" or names out of gpt2-124M' $op --models gpt5
check unknown_scale expect 2 'expected one of: cpu gpu tiny' $op --scale huge
check help expect 0 'examples' $bench op --help

# Against an earlier report whose times are a thousandth or a thousandfold, or of another machine.
small="$op --only add --json $work/now.json"
check report expect 0 'add residual' $small
scaled() { sed -E "s/\"(p10|median|p90)\":([0-9.e-]+)/\"\1\":\2e$1/g; s/e(-?[0-9]+)e(-?[0-9]+)/e\1 \2/g" "$work/now.json" |
    awk '{while (match($0, /e-?[0-9]+ -?[0-9]+/)) {t = substr($0, RSTART + 1, RLENGTH - 1); split(t, e, " ")
        $0 = substr($0, 1, RSTART) (e[1] + e[2]) substr($0, RSTART + RLENGTH)} print}'; }
scaled -3 >"$work/fast.json"
scaled 3 >"$work/slow.json"
sed 's/"device": "[^"]*"/"device": "an abacus"/' "$work/now.json" >"$work/other.json"
check regression_found expect 1 'SLOWER' $op --only add --against "$work/fast.json"
check improvement_is_no_failure expect 0 'faster' $op --only add --against "$work/slow.json"
check other_machine expect 1 'only reports of one machine' $op --only add --against "$work/other.json"
check no_report expect 1 'rows|cannot|No such' $op --only add --against "$work/absent.json"
check peer_column expect 0 'peer us' $op --only add --peer "$work/now.json"

check step expect 0 '"tok_per_s".*"losses": \[4\.8' $bench step --shape tiny-gpt2 --steps 2 --threads 2
check step_recompute expect 0 '"recompute": "block"' $bench step --shape tiny-llama --dtype bf16 --steps 2 --recompute block --threads 2
check fp8_needs_a_gpu expect 1 "has no 8-bit floats" $bench step --shape tiny-llama --dtype fp8 --threads 2
check step_unknown expect 2 'expected --shape out of' $bench step --shape gpt9
check no_device expect 1 'device=' $bench op --device tpu --only add

if [ -e "$BUILD/libllmc_cudaemu.so" ]; then
    emulated="$bench op --device cudaemu --repeats 5"
    check emulated_add expect 0 'add residual' $emulated --dtype all --only "add residual"
    check emulated_norm expect 0 'norm forward' $emulated --only "norm forward layer gpt2"
    check emulated_step expect 0 '"device": "cudaemu"' $bench step --device cudaemu --shape tiny-llama --dtype bf16 --steps 2
else
    skip bench_emulated "$BUILD/libllmc_cudaemu.so is not built"
fi
finish
