# gpu_report.sh: the tables, goals and the report of gpu_check.sh, which sources it. Reads the stages' files in $work:
#     throughput    shape, dtype, program, tokens/s, MFU, bytes, losses; separated by tabs
#     section.*     one section per stage; stages, failed, left_out, goals: lines of the tables and lists at the top
# shellcheck shell=bash
# shellcheck disable=SC2154  # the variables are gpu_check.sh's

throughput_table() {
    say ''
    say '| shape | dtype | tokens/s | MFU | device memory | PyTorch | llm.c |'
    say '|---|---|---|---|---|---|---|'
    awk -F'\t' '{key = $1 SUBSEP $2; if (!(key in seen)) {seen[key] = 1; order[++n] = key}
            speed[key, $3] = $4; if ($3 == "tokamak") {mfu[key] = $5; memory[key] = $6}}
        function beside(key, who) {
            if (!((key, who) in speed)) return "-"
            return sprintf("%.0f (%.2fx)", speed[key, who], speed[key, "tokamak"] / speed[key, who])
        }
        END {for (i = 1; i <= n; ++i) {split(order[i], part, SUBSEP); if (!((order[i], "tokamak") in speed)) continue
            printf "| %s | %s | %.0f | %.1f %% | %.1f GiB | %s | %s |\n", part[1], part[2], speed[order[i], "tokamak"],
                100 * mfu[order[i]], memory[order[i]] / 2^30, beside(order[i], "PyTorch"), beside(order[i], "llm.c")}}' \
        "$work/throughput" >>"$section"
    say ''
}

found() { # SHAPE DTYPE FIELD: of Tokamak; field 4 is tokens/s, 5 MFU
    awk -F'\t' -v s="$1" -v d="$2" -v f="$3" '$1 == s && $2 == d && $3 == "tokamak" {v = $f} END {print v}' "$work/throughput"
}
mfu_goal() { # SHAPE WHAT SHARE
    local value
    value=$(found "$1" bf16 5)
    [ -z "$value" ] || goal "$2" "$(format '%.1f %%' "$value/0.01")" "$(at_least "$value" "$3")"
}
throughput_goals() {
    local value base row shape dtype peer
    [ "$device" = cuda ] || return
    mfu_goal gpt2-124M '124M, bf16: 55 % of dense peak' 0.55
    mfu_goal gpt2-1.5B '1.5B, bf16: 62 % of dense peak' 0.62
    for shape in $FP8_SHAPES; do
        value=$(found "$shape" fp8 4) base=$(found "$shape" bf16 4)
        if [ -z "$value" ] || [ -z "$base" ]; then continue; fi
        goal "$shape: fp8 at 1.25x bf16" "$(format '%.2fx' "$value/$base")" "$(at_least "$(format %.4f "$value/$base")" 1.25)"
    done
    # llmq's published figures were measured on an H100.
    case $gpu in *H100*) for row in qwen2-0.5B:bf16:149000 qwen2-0.5B:fp8:164000 qwen2-1.5B:bf16:58700 qwen2-1.5B:fp8:72800 \
        qwen2-3B:bf16:31000 qwen2-3B:fp8:40500; do
        IFS=: read -r shape dtype base <<<"$row"
        value=$(found "$shape" "$dtype" 4)
        [ -z "$value" ] || goal "$shape, $dtype: above llmq's published $base tokens/s" "$value" "$(at_least "$value" "$base")"
    done ;; esac
    for peer in PyTorch llm.c; do
        while IFS=$'\t' read -r shape dtype _ base _; do
            value=$(found "$shape" "$dtype" 4)
            [ -z "$value" ] || goal "$shape, $dtype: faster than $peer ($base tokens/s)" "$value" "$(at_least "$value" "$base")"
        done < <(awk -F'\t' -v w=$peer '$3 == w' "$work/throughput")
    done
}

kernel_goals() {
    [ "$device" = cuda ] || return
    local line
    # Large kernels only: below 20 us, launch and tail dominate.
    line=$(awk '/"bound":"memory"/ && match($0, /"roofline_share":[0-9.e-]+/) {
            share = substr($0, RSTART + 17, RLENGTH - 17)
            match($0, /"median":[0-9.e-]+/)
            if (substr($0, RSTART + 9, RLENGTH - 9) + 0 < 20e-6) next
            ++n
            if (share + 0 >= 0.9) ++fast
        }
        END {printf("%d of %d | %s", fast, n, (n > 0 && fast == n) ? "yes" : "**no**")}' "$1")
    goal 'memory-bound kernels at 90 % of the measured copy bandwidth (of those above 20 us)' "${line% | *}" "${line#* | }"
}

gpu_query() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2>/dev/null | head -n 1; }
find_gpu() {
    if [ "$device" = cpu ]; then gpu='no GPU: the CPU itself'
    elif [ "$device" = cudaemu ]; then gpu='no GPU: the emulator'
    elif ! command -v nvidia-smi >/dev/null; then
        gpu='unknown GPU'
        echo '- facts: nvidia-smi is not installed: name, driver and power of the GPU are not known' >>"$work/left_out"
    else
        gpu=$(gpu_query name)
        [ -z "$gpu" ] || return
        gpu='unknown GPU'
        echo "- facts: nvidia-smi does not answer: $(nvidia-smi 2>&1 | head -n 1)" >>"$work/left_out"
    fi
}

write_report() {
    trap - EXIT INT TERM
    mkdir -p "$(dirname "$out")"
    {
        echo "# Tokamak on ${gpu}, $(date +%F)"
        echo
        if [ "$device" != cuda ]; then
            echo "**Not measured on a GPU:** run with --device $device to show that every stage works. All speeds are meaningless."
            echo
        fi
        echo '| | |'
        echo '|---|---|'
        echo "| device | $gpu |"
        if [ "$device" = cuda ] && command -v nvidia-smi >/dev/null; then
            echo "| driver | $(gpu_query driver_version) |"
            echo "| memory, power limit, maximum clock | $(gpu_query memory.total,power.limit,clocks.max.sm) |"
        fi
        echo "| CUDA toolkit | $(scripts/find_cuda.sh 2>/dev/null | sed -n 's/^ *nvcc *//p' | sed 's/.*(\(.*\)).*/\1/') |"
        echo "| host | $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1), $(nproc) threads |"
        echo "| commit | $(git rev-parse --short HEAD 2>/dev/null)$(git diff --quiet HEAD 2>/dev/null || echo ', with local changes') |"
        echo "| date | $(date -u '+%F %H:%M') UTC, $((SECONDS - started)) s of $budget |"
        echo "| command | scripts/gpu_check.sh --device $device$([ "$quick" = 1 ] && echo ' --quick') --budget $budget |"
        echo
        echo '| stage | result | seconds |'
        echo '|---|---|---|'
        cat "$work/stages" 2>/dev/null
        echo
        if [ -n "${ended_early:-}" ]; then echo "**Ended early** by $ended_early: the results until then follow."; echo; fi
        if [ -s "$work/failed" ]; then echo '**Failed**'; echo; cat "$work/failed"; else echo 'Nothing failed.'; fi
        echo
        if [ -s "$work/left_out" ]; then echo '**Skipped**'; echo; cat "$work/left_out"; echo; fi
        if [ -s "$work/goals" ]; then
            printf '## Goals\n\n| goal | found | reached |\n|---|---|---|\n'
            cat "$work/goals"
            echo
        fi
        for name in build ops sanitize train steps ranks kernels; do
            if [ -e "$work/section.$name" ]; then cat "$work/section.$name"; echo; fi
        done
    } >"$out"
    echo "report: $out" >&2
    if [ -s "$work/steps.jsonl" ]; then cp "$work/steps.jsonl" "${out%.md}.steps.jsonl"; fi
    rm -rf "$work"
    [ -z "${ended_early:-}" ] || exit 1
}
