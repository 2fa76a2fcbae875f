#!/bin/bash
# What comments and documents name exists: files (loader.c, tests/run.sh), functions and fields (model_forward), constants
# (PLAN_ALONE), types (HeldOut), their members (CommSum.tree) and the targets of links. Names of other projects are listed in tests/source/foreign_names.txt, each of which must
# still be met somewhere. Reports like cmocka (tests/run.sh).
set -u
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failures=0
report() {
    if [ "$1" -eq 0 ]; then echo "[       OK ] $2"; else echo "[  FAILED  ] $2"; failures=$((failures + 1)); fi
}

git ls-files -co --exclude-standard >"$work/all" 2>/dev/null || find . -type f | sed 's|^\./||' >"$work/all"
grep -vE '^(tests/(fuzz/corpus|golden)/|build)|\.(svg|png|bin|safetensors)$' "$work/all" | while read -r file; do
    [ -f "$file" ] && echo "$file"
done >"$work/files"
grep -E '\.(c|h|cu|cpp)$' "$work/files" >"$work/c_files"
grep -E '\.(sh|mk|py|awk|sbatch)$|(^|/)Makefile$|^\.ci/run$' "$work/files" >"$work/hash_files"
grep -E '\.md$' "$work/files" >"$work/md_files"

# c_text WHAT FILE...: of C files the comments ("file:line:// text") or the code (string literals included). A // inside of a
# literal opens no comment.
c_text() {
    awk -v what="$1" '{
        line = $0
        at = 1
        while (match(substr(line, at), /"([^"\\]|\\.)*"|'"'([^'\\\\]|\\\\.)+'"'|\/\//)) {
            start = at + RSTART - 1
            if (substr(line, start, 2) == "//") break
            at = start + RLENGTH
            start = 0
        }
        if (RSTART == 0) start = 0
        if (what == "comments" && start > 0) print FILENAME ":" FNR ":" substr(line, start)
        if (what == "code") print (start > 0 ? substr(line, 1, start - 1) : line)
    }' "${@:2}"
}
mapfile -t c_files <"$work/c_files"
c_text comments "${c_files[@]}" >"$work/prose"
xargs grep -nHoE '(^|[[:space:]])#( .*|$)' <"$work/hash_files" >>"$work/prose"
# Of documents, what stands between backticks and in indented blocks is meant literally.
xargs grep -nHoE '`[^`]+`|^    .*$' <"$work/md_files" >>"$work/prose"
# Code: everything else, string literals included (options and keys are named in comments too).
{
    c_text code "${c_files[@]}"
    xargs sed -E 's/(^|[[:space:]])#( .*|$)/\1/' <"$work/hash_files"
} | grep -oE '[A-Za-z_][A-Za-z0-9_]*' | sort -u >"$work/identifiers"
sed 's|.*/||' "$work/all" | sort -u >"$work/file_names"
sed -E "s/[[:space:]]*#.*//" tests/source/foreign_names.txt | tr -s " " "\n" | sed "/^$/d" | sort -u >"$work/foreign"

# missing KIND PATTERN KNOWN...: names in the prose that match and are neither known nor foreign.
missing() {
    local pattern=$1
    shift
    sed -E 's/^([^:]*:[0-9]+):/\1\t/' "$work/prose" | awk -F '\t' -v pattern="$pattern" '{
        text = $2
        while (match(text, /[A-Za-z0-9_.\/*<>{}$%-]+/)) {
            word = substr(text, RSTART, RLENGTH)
            text = substr(text, RSTART + RLENGTH)
            if (word ~ /[*<>{}$%]/) continue   # a pattern, a place to fill in
            gsub(/^[.-]+|[.-]+$/, "", word)
            if (word ~ pattern) print word "\t" $1
        }
    }' | sort -u >"$work/named"
    sort -u "$@" "$work/foreign" >"$work/known"
    awk -F '\t' 'NR == FNR {known[$1] = 1; next} !($1 in known) {print $2 ": " $1}' "$work/known" "$work/named"
}
# links FILE...: targets of links in documents that do not exist, taken from the document's folder.
links() {
    local file target
    grep -oHE '\]\([^) ]+' "$@" | while IFS= read -r line; do
        file=${line%%:*} target=${line#*:](}
        case $target in http://* | https://* | '#'*) continue ;; esac
        [ -e "$(dirname "$file")/${target%%#*}" ] || echo "$file: $target"
    done
}
# members: Type.member of one of our types, where no field or function has the member's name.
members() {
    missing "$MEMBER" /dev/null | awk '
        FILENAME == ARGV[1] {type[$1] = 1; next}
        FILENAME == ARGV[2] {identifier[$1] = 1; next}
        {split($NF, part, ".")}
        (part[1] in type) && !(part[2] in identifier)' "$work/types" "$work/identifiers" -
}
# check NAME PATTERN KNOWN...
check() {
    local name=$1 found
    shift
    echo "[ RUN      ] $name"
    found=$(missing "$@")
    [ -z "$found" ] || echo "$found"
    [ "$(wc -l <"$work/named")" -gt 50 ] || { echo "only $(wc -l <"$work/named") names were looked at"; found=few; }
    report "$([ -z "$found" ]; echo $?)" "$name"
}

# Files are named alone (loader.c) or from the root of the tree (llmc/loader/loader.c).
awk -F / '{name = $NF; print name; path = name; for (i = NF - 1; i > 0; --i) {path = $i "/" path; print path}}' "$work/all" |
    sort -u >"$work/paths"
FILE='^[A-Za-z0-9_][A-Za-z0-9_./-]*[.](c|h|cu|cpp|sh|mk|py|md|awk|sbatch)$'
NAME='^[a-z][a-z0-9]+(_[a-z0-9][a-z0-9]+)+$'
CONSTANT='^[A-Z][A-Z0-9]*(_[A-Z0-9]+)+$'
TYPE='^[A-Z][a-z0-9]+([A-Z][a-z0-9]+)+$'
check files_exist "$FILE" "$work/paths"
check functions_and_fields_exist "$NAME" "$work/identifiers"
check constants_exist "$CONSTANT" "$work/identifiers"
check types_exist "$TYPE" "$work/identifiers"
MEMBER='^[A-Z][A-Za-z0-9]*[.][a-z][a-z0-9_]*$'
# Our types: the ends of typedefs, and the names of structs.
grep -hoE '^(\}|typedef [^(]*[ *]) ?[A-Z][A-Za-z0-9]*;|^(struct|class) [A-Z][A-Za-z0-9]* ' "${c_files[@]}" |
    sed -E 's/[ ;]+$//; s/.*[ *}]//' | sort -u >"$work/types"
# findings NAME FEWEST COUNT FOUND: a test that fails if something was FOUND, or if fewer than FEWEST names were looked at.
findings() {
    echo "[ RUN      ] $1"
    [ -z "$4" ] || echo "$4"
    [ "$3" -ge "$2" ] || echo "only $3 names were looked at"
    report "$([ -z "$4" ] && [ "$3" -ge "$2" ]; echo $?)" "$1"
}
found=$(members)
looked=$(awk -F '\t' 'NR == FNR {type[$1] = 1; next} {sub(/[.].*/, "", $1)} $1 in type' "$work/types" "$work/named" | wc -l)
findings members_exist 20 "$looked" "$found"
mapfile -t md_files <"$work/md_files"
found=$(links "${md_files[@]}")
findings links_exist 40 "$(grep -ohE '\]\([^)#]' "${md_files[@]}" | wc -l)" "$found"

# The rules can fail, and the list of foreign names holds nothing that nobody names. (Invented names are put together here,
# or this file would make them known.)
echo '[ RUN      ] invented_names_are_found'
invented="loader_of_${#work}dreams.c frobnicate_al${#work} FROB_MAX${#work} FrobTable${#work}"
# The comment follows a string with // in it, and holds quotes.
printf 'put("a//b"); // see "%s".\n' "$invented Error.frob${#work}" >"$work/x.c"
c_text comments "$work/x.c" | sed 's|^.*:1:|x.c:1: |' >>"$work/prose"
printf '[a](x.c) [b](http://x/y) [c](#d) [e](x.c#f) [g](nothing.md#h)\n' >"$work/x.md"
found=$(missing "$FILE" "$work/paths"; missing "$NAME" "$work/identifiers"; missing "$CONSTANT" "$work/identifiers"
    missing "$TYPE" "$work/identifiers"; members)
bad=0
for name in $invented "Error.frob${#work}"; do
    grep -q "x.c:1: $name\$" <<<"$found" || { echo "$name was not found"; bad=1; }
done
[ "$(c_text code "$work/x.c")" = 'put("a//b"); ' ] || { echo "a comment was taken for code"; bad=1; }
[ "$(links "$work/x.md")" = "$work/x.md: nothing.md#h" ] || { echo "links found: $(links "$work/x.md")"; bad=1; }
report $bad invented_names_are_found
echo '[ RUN      ] foreign_names_are_used'
grep -oE '[A-Za-z0-9_./-]+' "$work/prose" | sed -E 's/^[.-]+|[.-]+$//g' | sort -u >"$work/words"
unused=$(comm -23 "$work/foreign" "$work/words")
[ -z "$unused" ] || echo "$unused"
report "$([ -z "$unused" ]; echo $?)" foreign_names_are_used
exit $((failures > 0))
