#!/bin/bash
# test_golden_resume.sh: runs of earlier versions of the program (tests/golden/checkpoint_vN, written by make_checkpoint.sh) resume
# to the last bit: losses, gradient norms, the hash chain of every step, the final weights. Files of a later version are refused with
# an error and are not changed. The newest golden run has the format versions that this program writes.
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
train_gpt=$(realpath "$train_gpt")
prep=$(realpath "$prep")

# The kernels of cpu_isa=generic use only baseline x86-64 instructions, no contraction and no reordered sums: gcc and clang, -O1
# and -O3, sanitizers, and C libraries with and without FMA gave the same bits. On other architectures generic code contracts a*b+c:
# there four steps must be within 1e-5 (fp32) and 1e-2 (bf16: 8 bits of a loss near 4) of the stored values.
exact=$([ "$(uname -m)" = x86_64 ] && echo yes)
[ -n "$exact" ] || echo "note: this machine is no x86-64: numbers are compared within 1e-5 (fp32) and 1e-2 (bf16), not to the bit"

numbers() { grep -aE '"(loss|val_loss)":' "$1" | grep -oE '"step":[0-9]+|"(loss|val_loss|grad_norm)":[-0-9.e+]+'; }
links() { grep '"chain"' "$1"; } # a file of before the format's version has no line for it
close_to() { # TOLERANCE
    paste <(numbers run/metrics.jsonl) expected_metrics | awk -v most="$1" '
        {split($1, a, ":"); split($2, b, ":"); d = (a[2] - b[2]) / (b[2] == 0 ? 1 : b[2]); if (d < 0) d = -d
         if (a[1] != b[1] || !(d <= most)) {print "    " $1, $2; bad = 1}}
        END {exit bad || NR < 20}'
}
same_end() {
    if [ -z "$exact" ]; then
        close_to "$(grep -q '^dtype = bf16' run.conf && echo 1e-2 || echo 1e-5)"
        return
    fi
    cmp <(numbers run/metrics.jsonl) expected_metrics && cmp <(links run/hashes.jsonl) <(links expected_hashes.jsonl) || return 1
    [ ! -e run/step_00000008/model.safetensors ] || # of several ranks: the hash chain says it
        grep -q "\"$(cat expected_weights)\"" run/step_00000008/MANIFEST.json || { echo "    the final weights are others"; return 1; }
}
copy_of() { rm -rf "${work:?}/copy" && cp -r "tests/golden/$1" "$work/copy" && cd "$work/copy"; } # VERSION/NAME
# VERSION/NAME [COMMAND before train_gpt]: from step 4 to step 8.
resume() (
    copy_of "$1" || exit 1
    env "$(sanitize_for 2)" "${@:2}" "$train_gpt" train run.conf >log 2>&1 || { tail -n 4 log; exit 1; }
    grep -q 'resumed.*step_00000004' log || { echo "    it was not resumed"; exit 1; }
    [ "$(links run/hashes.jsonl | wc -l)" = 8 ] && same_end
)
for version in tests/golden/checkpoint_v*; do
    version=$(basename "$version")
    for run in "tests/golden/$version"/*/; do
        run=$(basename "$run")
        check "${version}_$run" resume "$version/$run"
        check "${version}_${run}_verifies" expect 0 'complete' "$train_gpt" ckpt verify "tests/golden/$version/$run/run/step_00000004"
    done
    if [ -n "$(mpi_missing)" ]; then skip "${version}_two_ranks" "$(mpi_missing)"
    else check "${version}_two_ranks" resume "$version/qwen3_bf16_muon" timeout -k 5 120 "${mpi[@]}" -np 2
    fi
done
for run in gpt2_fp32_adamw qwen3_bf16_muon; do
    check "versions_hold_the_same_$run" expect 0 'all the same to the bit' "$train_gpt" ckpt diff tests/golden/checkpoint_v{1,2}/$run/run/step_00000004
done

# ---- the versions of this program ----
newest=$(basename "$(printf '%s\n' tests/golden/checkpoint_v* | sort -V | tail -n 1)")
# versions STEP: the format versions of the files in the current directory: data, a run, its checkpoint after STEP.
versions() {
    local file
    for file in run/metrics.jsonl run/hashes.jsonl run/step_"$1"/{MANIFEST.json,state.json,optimizer.safetensors} data/dataset.json; do
        echo "$(basename "$file"): $(grep -aoE '"format_version":[[:space:]]*"?[0-9]+' "$file" | head -n 1 | tr -dc 0-9)"
    done
}
# reads ARGUMENT...: the version up to which this program reads the file whose later version ends this training.
reads() { "$train_gpt" train "$@" 2>&1 | sed -n 's/.*reads versions up to \([0-9]*\).*/\1/p' | head -n 1; }
# A new version needs a new golden folder (tests/golden/make_checkpoint.sh) with files of that version.
versions_are_in_the_newest_golden() (
    versions_of=tests/golden/$newest/gpt2_fp32_adamw
    (cd "$versions_of" && versions 00000004) >"$work/golden_versions"
    # Of run files and shards, the version that this program reads is compared: it also writes older ones.
    for file in tests/golden/"$newest"/*/data/train_*.bin; do od -An -tu4 -j4 -N4 "$file"; done | sort -n | tail -n 1 |
        sed 's/^ */shard: /' >>"$work/golden_versions"
    run_file=$(sed -n 's/^format_version = //p' "$versions_of/run.conf")
    echo "run file: ${run_file:-1}" >>"$work/golden_versions"
    mkdir "$work/fresh" && cp "$versions_of/run.conf" "$work/fresh" && cd "$work/fresh" && words 600 >text.txt || exit 1
    "$prep" tokenize --tokenizer bytes --out data --val-fraction 0.1 text.txt >log 2>&1 &&
        "$train_gpt" train run.conf steps=4 >log 2>&1 || { tail -n 4 log; exit 1; }
    versions 00000004 >"$work/fresh_versions"
    printf '\x63' | dd of=data/train_000000.bin bs=1 seek=4 conv=notrunc 2>/dev/null
    echo "shard: $(reads run.conf out_dir=newer)" >>"$work/fresh_versions"
    echo 'format_version = 999' | cat - run.conf >newer.conf
    echo "run file: $(reads newer.conf)" >>"$work/fresh_versions"
    [ "$(grep -cE ': [0-9]+$' "$work/fresh_versions")" = 8 ] || { cat "$work/fresh_versions"; exit 1; }
    diff "$work/golden_versions" "$work/fresh_versions" || { echo "    $newest has other versions than this program writes: add a golden folder"; exit 1; }
)
check versions_are_in_the_newest_golden versions_are_in_the_newest_golden

# ---- files of a later version ----
known='reads versions up to [0-9]: use the version of the program that wrote it, or a later one'
# rehash FILE: puts its new hash, which the error of verify names, into the manifest beside it.
rehash() {
    local hashes
    hashes=$("$train_gpt" ckpt verify "$(dirname "$1")" 2>&1 | sed -n 's/.*expected XXH3-128 \([0-9a-f]*\), found \([0-9a-f]*\).*/s,\1,\2,/p')
    [ -n "$hashes" ] && sed -i "$hashes" "$(dirname "$1")/MANIFEST.json"
}
# TEXT FILE FROM TO: with that one change to the golden run of this version, training ends with TEXT and keeps the file and the checkpoint.
refused() (
    copy_of "$newest/gpt2_fp32_adamw" || exit 1
    sed -i "s/$3/$4/" "$2" && ! cmp -s "$2" "$OLDPWD/tests/golden/$newest/gpt2_fp32_adamw/$2" || { echo "    nothing was changed"; exit 1; }
    case $2 in */state.json | */optimizer*.safetensors) rehash "$2" || exit 1 ;; esac
    cp "$2" changed && cp -r run before
    expect "${status:-1}" "$1" "$train_gpt" train run.conf || exit 1
    cmp "$2" changed && diff -r before/step_00000004 run/step_00000004 && [ "$(ls -d run/step_*)" = run/step_00000004 ]
)
check newer_manifest refused "step_00000004/MANIFEST.json: this checkpoint's manifest has format version 9, this program $known" \
    run/step_00000004/MANIFEST.json 'format_version":\t1' 'format_version":\t9'
check newer_state refused "step_00000004/state.json: this checkpoint's state has format version 9, this program $known" \
    run/step_00000004/state.json 'format_version":\t1' 'format_version":\t9'
check newer_optimizer refused \
    "step_00000004/optimizer.safetensors: this checkpoint's optimizer state has format version 9, this program $known" \
    run/step_00000004/optimizer.safetensors 'format_version":"1"' 'format_version":"9"'
check newer_metrics refused "metrics.jsonl: this metrics file has format version 9, this program $known" \
    run/metrics.jsonl 'format_version":1' 'format_version":9'
check newer_hash_chain refused "hashes.jsonl: this hash chain has format version 9, this program $known" \
    run/hashes.jsonl 'format_version":1' 'format_version":9'
status=2 check newer_run_file refused "run.conf:1: this run file has format version 9, this program $known" run.conf '^model = ' 'format_version = 9\nmodel = '
newer_shard() (
    copy_of "$newest/qwen3_bf16_muon" || exit 1
    printf '\x09' | dd of=data/train_000000.bin bs=1 seek=4 conv=notrunc 2>/dev/null
    expect 1 "train_000000.bin: this token shard has format version 9, this program $known" "$train_gpt" train run.conf
)
check newer_shard newer_shard
newer_dataset() (
    copy_of "$newest/gpt2_fp32_adamw" || exit 1
    expect 0 'byte' "$prep" inspect data || exit 1
    sed -i 's/format_version":\t1/format_version":\t9/' data/dataset.json
    expect 1 "dataset.json: this dataset description has format version 9, this program $known" "$prep" inspect data
)
check newer_dataset newer_dataset
finish
