#!/bin/bash
# Generates the parts of docs/scaling.md that come from the model of llmc/plan/scaling.c:
#     dev/scaling.sh anchors [BUILD]   published figures beside the predicted ones
#     dev/scaling.sh stages [BUILD]    memory and speed of the ZeRO stages
#     dev/scaling.sh svg [BUILD]       the picture
#     dev/scaling.sh cpu [BUILD]       trains on 1, 2 and 4 ranks of one thread on this machine and prints measured and predicted
#                                      figures (takes minutes; ROUNDS=2 of each, ONLY=expression: matching rows)
#     dev/scaling.sh docs [BUILD]      rewrites the blocks of docs/scaling.md that begin with "$ ", and docs/scaling.svg
#     dev/scaling.sh check [BUILD]     fails if they differ from the output of the commands
set -u
cd "$(dirname "$0")/.." || exit 1
command=${1:-}
build=${2:-build}

# The prediction only, without the exact plan of one rank that is printed before it.
predict() {
    local text
    case " $*" in *' gpu='*) ;; *) set -- "$@" gpu=h100 ;; esac
    text=$("$build/train_gpt" plan "$@" steps=1) || return 1
    sed -n '/^predicted on/,$p' <<<"$text"
}

# ---- published figures ----
# A row: name | tokens/s a GPU, as published | ranks | options. Sources and assumptions are in docs/scaling.md.
anchor_rows() {
    local single="dtype=bf16 seq_len=1024 batch_rows=16 batch_tokens=512Ki loss_chunk_rows=16384"
    local foundry="dtype=bf16 seq_len=2048 zero=3 bias=false"
    local titan="model=llama3:8B dtype=bf16 seq_len=8192 batch_rows=2 zero=3 memory_gbytes=2040"
    local long="model=llama3:8B dtype=bf16 fp8=true batch_rows=1 zero=3 memory_gbytes=2040 recompute=block"
    local tensor="model=llama3:70B dtype=bf16 fp8=true seq_len=8192 batch_rows=16 batch_tokens=4Mi zero=3"
    tensor+=" memory_gbytes=2040 recompute=block tensor=8"
    cat <<ROWS
llmq Qwen2.5-0.5B, H100|149000|1|model=qwen2:0.5B $single
llmq Qwen2.5-1.5B, H100|58700|1|model=qwen2:1.5B $single
llmq Qwen2.5-3B, H100|31000|1|model=qwen2:3B $single
llmq Qwen2.5-7B, H100|13900|1|model=qwen2:7B $single
llmq 0.5B fp8, H100|164000|1|model=qwen2:0.5B $single fp8=true
llmq 1.5B fp8, H100|72800|1|model=qwen2:1.5B $single fp8=true
llmq 3B fp8, H100|40500|1|model=qwen2:3B $single fp8=true
llmq 7B fp8, H100|19200|1|model=qwen2:7B $single fp8=true
llm.c 124M, 8 H100|468000|8|model=gpt2:124M dtype=bf16 seq_len=1024 batch_rows=64 batch_tokens=512Ki reduce_dtype=bf16
llm.c 1.6B, 8 H100|47340|8|model=gpt2:1558M dtype=bf16 seq_len=1024 batch_rows=16 batch_tokens=1Mi reduce_dtype=bf16
torchtitan 8B, 8 H100|6667|8|$titan recompute=block batch_tokens=128Ki
torchtitan 8B, 128 H100|6514|128|$titan recompute=block batch_tokens=2Mi
torchtitan 8B fp8, 8 H100|8532|8|$titan recompute=block batch_tokens=128Ki fp8=true
torchtitan 8B fp8, T=32k|3890|8|$long seq_len=32768 batch_tokens=256Ki
torchtitan 8B fp8, T=64k, context=2|2540|8|$long seq_len=65536 batch_tokens=256Ki context=2
torchtitan 8B fp8, T=128k, context=4|1071|8|$long seq_len=131072 batch_tokens=256Ki context=4
torchtitan 8B fp8, T=256k, context=8|548|8|$long seq_len=262144 batch_tokens=256Ki context=8
torchtitan 70B fp8, 256, tensor=8|829|256|$tensor
llm-foundry 1B, 8 H100|45455|8|model=gpt3:1.3B $foundry batch_rows=14 batch_tokens=224Ki
llm-foundry 1B, 64 H100|44402|64|model=gpt3:1.3B $foundry batch_rows=20 batch_tokens=2560Ki
llm-foundry 7B, 8 H100|10643|8|model=gpt3:6.7B $foundry batch_rows=6 batch_tokens=96Ki
llm-foundry 13B, 8 H100|4792|8|model=gpt3:13B $foundry batch_rows=2 batch_tokens=32Ki
llm-foundry 13B, 64 H100|4800|64|model=gpt3:13B $foundry batch_rows=2 batch_tokens=256Ki
llm-foundry 70B, 64 H100|1039|64|model=gpt3:13B layers=80 channels=8192 heads=64 $foundry recompute=block batch_rows=8 batch_tokens=4Mi
llm.c 124M, 8 A100|225000|8|model=gpt2:124M dtype=bf16 seq_len=1024 batch_rows=64 batch_tokens=512Ki reduce_dtype=bf16 gpu=a100
llm-foundry 1B, 8 A100|20513|8|model=gpt3:1.3B $foundry batch_rows=14 batch_tokens=896Ki gpu=a100
llm-foundry 7B, 8 A100|4641|8|model=gpt3:6.7B $foundry batch_rows=6 batch_tokens=192Ki gpu=a100
llm-foundry 13B, 8 A100|2262|8|model=gpt3:13B $foundry batch_rows=2 batch_tokens=96Ki gpu=a100
llm-foundry 7B, 8 A100 40 GB|3679|8|model=gpt3:6.7B $foundry recompute=block batch_rows=12 batch_tokens=768Ki gpu=a100 memory_gbytes=1320
llm-foundry 7B, 128 A100 40 GB|3623|128|model=gpt3:6.7B $foundry recompute=block batch_rows=18 batch_tokens=4608Ki gpu=a100 memory_gbytes=1320
llm-foundry 70B, 64 A100|410|64|model=gpt3:13B layers=80 channels=8192 heads=64 $foundry recompute=block batch_rows=8 batch_tokens=4Mi gpu=a100
ROWS
}

# Tokens per second of a rank, as a number, from the table's row for `ranks` ranks.
rank_speed() {
    awk -v ranks="$1" '$1 == ranks && NF == 14 {
        unit = substr($13, length($13))
        print ($13 + 0) * (unit == "k" ? 1e3 : unit == "M" ? 1e6 : 1) }'
}

print_anchors() {
    printf '%-36s %10s %10s %7s\n' '' published predicted ratio
    local name published ranks options predicted
    while IFS='|' read -r name published ranks options; do
        # shellcheck disable=SC2086
        predicted=$(predict $options world="$ranks" | rank_speed "$ranks")
        [ -n "$predicted" ] || { echo "no prediction for $name" >&2; return 1; }
        awk -v name="$name" -v p="$published" -v q="$predicted" 'BEGIN { printf "%-36s %10d %10d %7.2f\n", name, p, q, q / p }'
    done < <(anchor_rows)
}

# ---- ZeRO stages ----
print_stages() {
    printf '%-28s %5s %35s %27s\n' '' '' 'GiB a rank' 'MFU %'
    printf '%-28s %5s %8s %8s %8s %8s %6s %6s %6s %6s\n' model zero 8 64 512 4096 8 64 512 4096
    local name options zero
    while IFS='|' read -r name options; do
        for zero in 0 1 2 3; do
            # shellcheck disable=SC2086
            predict $options dtype=bf16 zero=$zero world=4096 |
                awk -v name="$name" -v zero="$zero" 'NF == 14 { gib[$1] = $6 == "yes" ? $5 : "(" $5 ")"; mfu[$1] = $14 }
                    END { printf "%-28s %5d", name, zero
                          for (i = 0; i < 4; ++i) printf " %8s", gib[8 ^ (i + 1)]
                          for (i = 0; i < 4; ++i) printf " %6s", mfu[8 ^ (i + 1)]
                          printf "\n" }'
        done
    done <<'ROWS'
gpt2:1558M, 16 rows of 1024|model=gpt2:1558M seq_len=1024 batch_rows=16 batch_tokens=1Mi
llama3:8B, 1 row of 8192|model=llama3:8B seq_len=8192 batch_rows=1 batch_tokens=4Mi recompute=norm_act
llama3:70B, 1 row of 8192|model=llama3:70B seq_len=8192 batch_rows=1 batch_tokens=8Mi recompute=block
ROWS
}

# ---- the picture: share of the peak from 1 to 4096 ranks ----
svg_rows() {
    local small="model=gpt2:1558M seq_len=1024 batch_rows=16 batch_tokens=1Mi zero=1"
    local middle="model=llama3:8B seq_len=8192 batch_rows=1 batch_tokens=4Mi zero=3 recompute=norm_act"
    local large="model=llama3:70B seq_len=8192 batch_rows=1 batch_tokens=8Mi"
    cat <<ROWS
1.5B, zero=1|#1f77b4||$small
1.5B at 100 Gb/s|#1f77b4|5 4|$small network_gbits=90
8B, zero=3|#2ca02c||$middle
8B at 100 Gb/s|#2ca02c|5 4|$middle network_gbits=90
70B, zero=3|#d62728||$large zero=3 recompute=block
70B at 100 Gb/s|#d62728|5 4|$large zero=3 recompute=block network_gbits=90
70B, tensor=8|#9467bd|2 3|$large zero=1 recompute=norm_act tensor=8
ROWS
}
# Points as name|color|dash|ranks|MFU|fits.
svg_points() {
    local name color dash options
    while IFS='|' read -r name color dash options; do
        # shellcheck disable=SC2086
        predict $options dtype=bf16 world=4096 | awk -v row="$name|$color|$dash" 'NF == 14 { print row "|" $1 "|" $14 "|" $6 }'
    done < <(svg_rows)
}
print_svg() {
    svg_points | awk -F'|' '
        function x(ranks) { return 60 + 500 * log(ranks) / log(4096) }
        function y(mfu) { return 330 - 290 * mfu / 60 }
        BEGIN {
            print "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"760\" height=\"390\" font-family=\"sans-serif\" font-size=\"12\">"
            print "<rect width=\"760\" height=\"390\" fill=\"white\"/>"
            for (m = 0; m <= 60; m += 10)
                printf "<path d=\"M60 %.1fH560\" stroke=\"#ddd\"/><text x=\"52\" y=\"%.1f\" text-anchor=\"end\">%d %%</text>\n", y(m), y(m) + 4, m
            for (r = 1; r <= 4096; r *= 4)
                printf "<path d=\"M%.1f 40V330\" stroke=\"#ddd\"/><text x=\"%.1f\" y=\"348\" text-anchor=\"middle\">%d</text>\n", x(r), x(r), r
            print "<text x=\"310\" y=\"372\" text-anchor=\"middle\">H100 ranks, 8 a node</text>"
            print "<text x=\"60\" y=\"24\">Predicted share of the dense bf16 peak (MFU); hollow: does not fit 80 GB</text>"
        }
        function finish() {
            if (line == "") return
            printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\"%s/>\n", line, color, dash == "" ? "" : " stroke-dasharray=\"" dash "\""
            ++series
            printf "<path d=\"M575 %dh28\" stroke=\"%s\" stroke-width=\"1.8\"%s/>", 44 + 22 * series, color, dash == "" ? "" : " stroke-dasharray=\"" dash "\""
            printf "<text x=\"610\" y=\"%d\">%s</text>\n%s", 48 + 22 * series, name, dots
        }
        $1 != name { finish(); line = dots = ""; name = $1; color = $2; dash = $3 }
        {
            line = line sprintf("%s%.1f %.1f", line == "" ? "M" : "L", x($4), y($5))
            dots = dots sprintf("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"2.6\" fill=\"%s\" stroke=\"%s\"/>\n", x($4), y($5), $6 == "yes" ? color : "white", color)
        }
        END { finish(); print "</svg>" }'
}

# ---- measured on this machine's CPU ----
# Tokens/s, total and exposed communication of a short run: medians of its steps except the first.
measure() { # RANKS key=value...
    local ranks=$1 launcher=()
    shift
    rm -rf "${work:?}/out"
    if [ "$ranks" -gt 1 ]; then
        launcher=(mpirun --bind-to none --oversubscribe -np "$ranks")
        [ "$(id -u)" -ne 0 ] || launcher+=(--allow-run-as-root)
    fi
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=active timeout 300 "${launcher[@]}" "$build/train_gpt" train out_dir="$work/out" \
        device=cpu threads=1 train="$work/data/train_*.bin" val= steps=8 val_every=0 save_every=0 compare_every=0 \
        sample_tokens=1 progress_bar=false "$@" </dev/null >"$work/log" 2>&1 || { tail -n 3 "$work/log" >&2; return 1; }
    local key
    for key in tokens_per_second comm_ms comm_exposed_ms; do
        grep -o "\"$key\":[0-9.e+-]*" "$work/out/metrics.jsonl" | cut -d: -f2 | tail -n +2 | sort -g |
            awk '{ x[NR] = $1 } END { print NR ? x[int((NR + 1) / 2)] : 0 }'
    done | paste -sd' '
}
print_cpu() {
    work=$(mktemp -d) || return 1
    trap 'rm -rf "$work"' EXIT
    # Random tokens; without a tokenizer in the data's directory the vocabulary is set by the option.
    head -c 200000 /dev/urandom | base64 >"$work/text.txt"
    "$build/prep" tokenize --tokenizer bytes --out "$work/data" "$work/text.txt" >/dev/null 2>&1 || return 1
    rm -f "$work/data/tokenizer.json"
    printf '%-42s %5s %21s %6s %24s\n' '' '' 'tokens/s' '' 'communication, measured'
    printf '%-42s %5s %10s %10s %6s %12s %11s\n' '' ranks measured predicted ratio 'ms a step' '% hidden'
    local ranks options name got predicted round
    while IFS='|' read -r ranks name options; do
        # Other work on the machine can only slow a run: the fastest round counts.
        got=$(for round in $(seq "${ROUNDS:-2}"); do
            # shellcheck disable=SC2086
            measure "$ranks" $options || exit 1
        done | sort -g | tail -n 1)
        [ -n "$got" ] || return 1
        # shellcheck disable=SC2086
        predicted=$(predict $options gpu=cpu device=cpu world="$ranks" | awk -v ranks="$ranks" '$1 == ranks && NF == 14 {
            unit = substr($12, length($12)); print ($12 + 0) * (unit == "k" ? 1e3 : 1) }')
        echo "$got" | awk -v name="$name" -v ranks="$ranks" -v p="$predicted" '{ hidden = ($2 > 0) ? 100 * (1 - $3 / $2) : 0
            printf "%-42s %5d %10.0f %10.0f %6.2f %12.1f %11s\n", name, ranks, $1, p, p / $1, $2, ($2 > 0 ? sprintf("%.0f", hidden) : "") }'
    done < <(cpu_rows | grep -E "${ONLY:-.}")
}
cpu_rows() {
    local d6="model=gpt2:d6 vocab=8192 seq_len=64 batch_rows=2 batch_tokens=512" zero ranks
    for ranks in 1 2 4; do echo "$ranks|6 layers of 384, fp32, zero=1|$d6 zero=1"; done
    for zero in 0 2 3; do echo "2|6 layers of 384, fp32, zero=$zero|$d6 zero=$zero"; done
    for ranks in 1 2; do echo "$ranks|6 layers of 384, fp32, zero=1, lanes|$d6 zero=1 deterministic=lanes"; done
    for ranks in 1 2; do echo "$ranks|6 layers of 384, bf16, zero=1|$d6 zero=1 dtype=bf16"; done
    for ranks in 1 2 4; do
        echo "$ranks|124M, fp32, zero=1|model=gpt2:124M seq_len=64 batch_rows=4 batch_tokens=1Ki zero=1 steps=4"
    done
}

# ---- the document ----
# A block is "```text", "$ COMMAND" and its output. COMMAND: "train_gpt plan ..." or a command of this script.
run_shown() {
    local words
    read -r -a words <<<"$1"
    case $1 in
    'train_gpt plan '*) predict "${words[@]:2}" ;;
    'dev/scaling.sh anchors') print_anchors ;;
    'dev/scaling.sh stages') print_stages ;;
    *) echo "docs/scaling.md: unknown command: $1" >&2; return 1 ;;
    esac
}
print_docs() {
    local line skipping=
    while IFS= read -r line; do
        [ "$line" != '```' ] || skipping=
        [ -n "$skipping" ] || printf '%s\n' "$line"
        case $line in '$ '*) run_shown "${line#\$ }" || return 1; skipping=1 ;; esac
    done <docs/scaling.md
}

case $command in
anchors) print_anchors ;;
stages) print_stages ;;
svg) print_svg ;;
cpu) print_cpu ;;
docs | check)
    work=$(mktemp -d) || exit 1
    trap 'rm -rf "$work"' EXIT
    print_docs >"$work/scaling.md" && print_svg >"$work/scaling.svg" || exit 1
    if [ "$command" = docs ]; then
        cp "$work/scaling.md" "$work/scaling.svg" docs/
    else
        diff -u docs/scaling.md "$work/scaling.md" && diff -u docs/scaling.svg "$work/scaling.svg" ||
            { echo "docs/scaling.md or docs/scaling.svg differs from the model's output: run dev/scaling.sh docs"; exit 1; }
    fi ;;
*) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
