#!/bin/bash
# test_prep.sh: the data tool: its output, which does not depend on threads, chunks and compression, and its errors for
# bad input. Run from the repository root with the build directory as $1.
. tests/support/lib.sh
prep=$(realpath "$prep") dir=$work
# refuses CODE TEXT ARGUMENTS...: prep exits with CODE and a message that contains TEXT.
refuses() {
    local code=$1 text=$2
    shift 2
    "$prep" "$@" >"$dir/out" 2>"$dir/err" </dev/null
    local got=$?
    [ $got -eq "$code" ] && grep -qF -- "$text" "$dir/err" && return 0
    echo "prep $*: exit $got, expected $code and '$text'; said: $(head -c 300 "$dir/err")"
    return 1
}
quiet() { "$prep" "$@" >"$dir/out" 2>"$dir/err" || { cat "$dir/err"; return 1; }; }
# Token ids of a shard, one per line: 2 bytes each after the header.
ids() { tail -c +1025 "$1" | od -An -v -tu2 -w2 | tr -d ' '; }
field() { tr -d ' \t\n' <"$1/dataset.json" | grep -o "\"$2\":{[^}]*}" | grep -o "\"$3\":[0-9]*" | cut -d: -f2; }
bytes() { quiet tokenize --tokenizer bytes "$@"; }

awk 'BEGIN { srand(1); for (i = 0; i < 60000; i++) { n = int(rand() * 9) + 1; line = "";
    for (k = 0; k < n; k++)
        line = line substr("the lord said unto him and they went forth to see", rand() * 30 + 1, rand() * 9 + 1) " ";
    print line (rand() < 0.1 ? "\n" : "") } }' >"$dir/big.txt"
printf 'one\n\ntwo\r\n  three\n\n\n\nfour' >"$dir/small.txt"
{
    printf '{"id": 1, "text": "a\\u00e9\\ud83d\\ude00\\u0000b"}\n\n{"text":"", "x":[{"text":[1,2.5e-3,null]}]}\n'
    printf '{"x":{}, "text":"\\"c\\""}'
} >"$dir/small.jsonl"

train_makes_a_vocabulary() {
    quiet train-tokenizer --vocab 700 --out "$dir/tok" "$dir/big.txt" &&
        grep -q 'endoftext' "$dir/tok/tokenizer.json" &&
        quiet train-tokenizer --vocab 700 --threads 1 --out "$dir/tok1" "$dir/big.txt" &&
        cmp "$dir/tok/tokenizer.json" "$dir/tok1/tokenizer.json"
}
threads_do_not_matter() {
    quiet tokenize --tokenizer "$dir/tok" --out "$dir/t1" --threads 1 "$dir/big.txt" &&
        quiet tokenize --tokenizer "$dir/tok" --out "$dir/t3" --threads 3 --shard-tokens 100k "$dir/big.txt" ||
        return 1
    cmp <(ids "$dir/t1/train_000000.bin") <(for f in "$dir"/t3/train_*.bin; do ids "$f"; done) &&
        [ "$(ls "$dir"/t3/train_*.bin | wc -l)" -gt 1 ] && [ ! -e "$dir/t1.tmp" ] &&
        [ "$(field "$dir/t1" train text_bytes)" = "$(stat -c %s "$dir/big.txt")" ]
}
compression_and_stdin_do_not_matter() {
    gzip -c "$dir/big.txt" >"$dir/big.gz"
    { head -c 100000 "$dir/big.txt" | gzip; tail -c +100001 "$dir/big.txt" | gzip; } >"$dir/two.gz"
    for input in "$dir/big.gz" "$dir/two.gz" -; do
        rm -rf "$dir/c"
        quiet tokenize --tokenizer "$dir/tok" --out "$dir/c" "$input" <"$dir/big.txt" || return 1
        cmp "$dir/c/train_000000.bin" "$dir/t1/train_000000.bin" || return 1
    done
    command -v zstd >/dev/null || return 0
    rm -rf "$dir/c"
    zstd -q -c "$dir/big.txt" >"$dir/big.zst" &&
        quiet tokenize --tokenizer "$dir/tok" --out "$dir/c" "$dir/big.zst" &&
        cmp "$dir/c/train_000000.bin" "$dir/t1/train_000000.bin"
}
# expect NAME TEXT OPTIONS...: byte ids, with 256 written as |.
documents() {
    local want=$1
    shift
    rm -rf "$dir/d"
    bytes --out "$dir/d" "$@" || return 1
    local got
    got=$(ids "$dir/d/train_000000.bin" | awk '{ if ($1 == 256) printf "|"; else printf "%s.", $1 }')
    [ "$got" = "$want" ] || { echo "found $got, expected $want"; return 1; }
}
text_ids() { printf "$1" | od -An -v -tu1 -w1 | awk '{ printf "%d.", $1 }'; }
document_kinds() {
    documents "|$(text_ids 'one\n\ntwo\r\n  three\n\n\n\nfour')" "$dir/small.txt" &&
        documents "$(text_ids 'one\n\ntwo\r\n  three\n\n\n\nfour')" --docs none "$dir/small.txt" &&
        documents "|$(text_ids one)|$(text_ids two)|$(text_ids '  three')|$(text_ids four)" \
            --docs line "$dir/small.txt" &&
        documents "|$(text_ids one)|$(text_ids 'two\r\n  three')|$(text_ids four)" --docs blank "$dir/small.txt" &&
        documents "|$(text_ids 'a\xc3\xa9\xf0\x9f\x98\x80\x00b')||$(text_ids '"c"')" "$dir/small.jsonl"
}
held_out_parts() {
    bytes --out "$dir/v" --val-fraction 0.1 "$dir/big.txt" || return 1
    local train val all
    train=$(field "$dir/v" train text_bytes) val=$(field "$dir/v" val text_bytes) all=$(stat -c %s "$dir/big.txt")
    [ $((train + val)) -eq "$all" ] && [ $((val * 10)) -gt $((all - 1000)) ] &&
        [ $((val * 10)) -lt $((all + 1000)) ] &&
        cmp <(for s in train val; do ids "$dir/v/${s}_000000.bin" | tail -n +2; done) \
            <(od -An -v -tu1 -w1 "$dir/big.txt" | tr -d ' ') || return 1
    [ "$(ids "$dir/v/train_000000.bin" | tail -1)" = 10 ] || return 1 # the cut is at the end of a line
    bytes --out "$dir/n" --docs line --val-docs-every 3 "$dir/small.txt" || return 1
    [ "$(field "$dir/n" train documents)" = 3 ] && [ "$(field "$dir/n" val documents)" = 1 ] &&
        [ "$(ids "$dir/n/val_000000.bin" | tr '\n' '.')" = "256.$(text_ids '  three')" ]
}
inspect_speaks() {
    "$prep" inspect "$dir/v" "$dir/v/val_000000.bin" "$dir/tok" bytes >"$dir/out" || return 1
    grep -q 'shard version 1' "$dir/out" && grep -q 'tokenizer bpe-' "$dir/out" &&
        grep -q '1 documents (end of text = 256)' "$dir/out"
}
big_vocabularies() {
    bytes --version 2 --out "$dir/w" "$dir/small.txt" &&
        "$prep" inspect "$dir/w/train_000000.bin" | grep -q 'vocabulary 257'
}
wrong_usage() {
    local t=(tokenize --tokenizer bytes --out "$dir/x")
    refuses 2 "unknown command 'tokenise'" tokenise &&
        refuses 2 "unknown option '--vocabulary'" train-tokenizer --vocabulary 5 &&
        refuses 2 'expected --tokenizer' tokenize && refuses 2 'expected --out' tokenize --tokenizer bytes &&
        refuses 2 'at least one FILE' tokenize --tokenizer bytes --out "$dir/x" &&
        refuses 2 "--shard-tokens: expected a whole number from 1" tokenize --shard-tokens 0 &&
        refuses 2 "found '5x'" tokenize --shard-tokens 5x && refuses 2 "found '1.5'" tokenize --val-fraction=1.5 &&
        refuses 2 'one of: auto file' tokenize --docs lines && refuses 2 'takes no value' tokenize --overwrite=1 &&
        refuses 2 'expected a value' tokenize --out &&
        refuses 2 '258' train-tokenizer --vocab 258 --reserved 5 --out x y &&
        refuses 2 'not both' "${t[@]}" --val-fraction 0.1 --val-docs-every 5 "$dir/small.txt" &&
        "$prep" tokenize --help | grep -q '^  prep tokenize'
}
bad_input() {
    local t=(tokenize --tokenizer bytes --out "$dir/x")
    head -c 5000 "$dir/big.gz" >"$dir/cut.gz"
    printf '{"text": "a"}\n{"text": 5}\n' >"$dir/bad1.jsonl"
    printf '{"text": "a"}\n\n{"text": "b"\n' >"$dir/bad2.jsonl"
    printf '{"text": "\\ud800"}\n' >"$dir/bad3.jsonl"
    printf '{"txt": "a"}\n' >"$dir/bad4.jsonl"
    refuses 1 nothere "${t[@]}" "$dir/nothere.txt" && refuses 1 'found a directory' "${t[@]}" "$dir" &&
        refuses 1 'compressed data is truncated' "${t[@]}" "$dir/cut.gz" &&
        refuses 1 'line 2: the value of "text" is not a string' "${t[@]}" "$dir/bad1.jsonl" &&
        refuses 1 'line 3: malformed JSON' "${t[@]}" "$dir/bad2.jsonl" &&
        refuses 1 'surrogate' "${t[@]}" "$dir/bad3.jsonl" &&
        refuses 1 'expected the key "text", not found' "${t[@]}" "$dir/bad4.jsonl" &&
        refuses 1 'no text' "${t[@]}" /dev/null &&
        refuses 1 'regular uncompressed files' "${t[@]}" --val-fraction 0.1 "$dir/big.gz" &&
        refuses 1 'at least as many documents, found 1' "${t[@]}" --val-docs-every 3 "$dir/small.txt" &&
        refuses 1 'no such tokenizer' tokenize --tokenizer nope --out "$dir/x" "$dir/small.txt" &&
        refuses 1 'already holds a dataset' tokenize --tokenizer bytes --out "$dir/v" "$dir/small.txt" &&
        refuses 1 'new or empty' tokenize --tokenizer bytes --out "$dir/tok" --overwrite "$dir/small.txt" &&
        refuses 1 'new or empty' tokenize --tokenizer bytes --out "$dir/small.txt/x" "$dir/small.txt" || return 1
    [ ! -e "$dir/x" ] && [ ! -e "$dir/x.tmp" ]
}
overwriting() {
    bytes --out "$dir/v" --overwrite "$dir/small.txt" && [ "$(field "$dir/v" train documents)" = 1 ] &&
        [ ! -e "$dir/v/val_000000.bin" ] && [ ! -e "$dir/v.old" ]
}
# A write that fails, as on a full disk, leaves no files behind.
failed_writes() {
    (ulimit -f 50
    trap '' XFSZ
    "$prep" tokenize --tokenizer bytes --out "$dir/x" "$dir/big.txt" >"$dir/out" 2>"$dir/err")
    [ $? -eq 1 ] && grep -q 'cannot write' "$dir/err" && [ ! -e "$dir/x" ] && [ ! -e "$dir/x.tmp" ]
}
interrupts() {
    (yes 'all work and no play' | "$prep" tokenize --tokenizer "$dir/tok" --out "$dir/x" - >"$dir/out" 2>"$dir/err") &
    for _ in $(seq 100); do [ -e "$dir/x.tmp/train_000000.bin.tmp" ] && break; sleep 0.1; done
    local pid
    for pid in /proc/[0-9]*; do
        [ "$(readlink "$pid/exe")" = "$prep" ] && grep -qF "$dir/x" "$pid/cmdline" && kill -TERM "${pid#/proc/}"
    done
    wait
    grep -q interrupted "$dir/err" && [ ! -e "$dir/x" ] && [ ! -e "$dir/x.tmp" ]
}

check train_makes_a_vocabulary train_makes_a_vocabulary
check threads_do_not_matter threads_do_not_matter
check compression_and_stdin_do_not_matter compression_and_stdin_do_not_matter
check document_kinds document_kinds
check held_out_parts held_out_parts
check inspect_speaks inspect_speaks
check big_vocabularies big_vocabularies
check wrong_usage wrong_usage
check bad_input bad_input
check overwriting overwriting
check failed_writes failed_writes
check interrupts interrupts
finish
