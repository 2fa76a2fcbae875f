#!/bin/bash
# Include directions by place: every file of the library lies in a room, and a room includes only what its row of
# tests/source/rooms.txt allows. A file in no room, of an unknown kind or too long, a room without a row, and a folder of tests
# that mirrors no room fail. Reports like cmocka (tests/run.sh).
set -u
cd "$(dirname "$0")/../.." || exit 1
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failures=0

ROOMS=$(sed -E '/^#/d; s/ *\|.*//' tests/source/rooms.txt)

report() {
    if [ "$1" -eq 0 ]; then
        echo "[       OK ] $2"
    else
        echo "[  FAILED  ] $2"
        failures=$((failures + 1))
    fi
}
room_of() {
    case $1 in
    train_gpt.cu) echo train_gpt ;;
    llmc/*/*/*) ;;
    llmc/*/*) local rest=${1#llmc/}; echo "${rest%%/*}" ;;
    data/*) echo data ;;
    esac
}
declare -A may=()
while IFS=: read -r room allowed; do
    [ -z "$room" ] || may[$room]=" $allowed "
done <<<"$ROOMS"

# Folders of tests that mirror no room.
OTHER_TESTS='cli faults fuzz golden gpu source support'
# Files of more than 600 lines, and why they are not split.
MOST_LINES=600
declare -A long=(
    [llmc/tokenizer/unicode_tables.c]='a table, generated'
    [llmc/tokenizer/unicode_nfc_tables.c]='a table, generated'
    [llmc/cuda/comm_nccl.cu]='its operations share one struct, begin, end and wait'
)

# includes FILE...: lines "file:header" of what they include with quotes, "file:<header" of what with angle brackets.
includes() {
    grep -HoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*("[^"]+"|<[^>]+>)' "$@" 2>/dev/null |
        sed -E 's/:[^"<]*"/:/; s/:[^"<]*</:</; s/[">]$//'
}
# wrong FILE HEADER: prints why this include is against the table, or nothing.
wrong() {
    local from to
    case $2 in '<'*) [ ! -e "${2#<}" ] || echo "$1 includes $2>: write quotes"; return ;; esac
    from=$(room_of "$1") to=$(room_of "$2")
    case $2 in emu_device.h) [ "$from" = cuda ] || echo "$1 includes $2: only cuda is emulated"; return ;; esac
    [ -e "$2" ] || { echo "$1 includes $2: spell it from the root of the tree"; return; }
    [ -n "$to" ] || { echo "$1 ($from) includes $2, which is in no room"; return; }
    [ "$from" != "$to" ] || return
    case ${may[$from]:-} in *" $to "* | *" $2 "*) ;; *) echo "$1 ($from) includes $2 ($to)" ;; esac
}
# roomless FILE: prints why a file of the library is not in its place, or nothing.
roomless() {
    local room
    room=$(room_of "$1")
    [ -n "$room" ] && [ -n "${may[$room]:-}" ] || { echo "$1 is in no room"; return; }
    case $1 in *.c | *.h | *.cu | *.cuh | *.cpp | llmc/*.mk | data/*.md) ;; *) echo "$1: a room holds no files of this ending" ;; esac
}
# mirrors_none FILE: prints FILE, of tests/, if its folder is neither a room's nor one of OTHER_TESTS.
mirrors_none() {
    local folder
    case $1 in tests/*/*) folder=${1#tests/} folder=${folder%%/*} ;; *) return ;; esac
    case " $OTHER_TESTS " in *" $folder "*) return ;; esac
    [ -n "${may[$folder]:-}" ] || echo "$1: tests/$folder mirrors no room"
}
# conditionals FILE...: lines of conditional compilation, without the include guards of headers.
conditionals() {
    awk '/^[ \t]*#[ \t]*(if|ifdef|ifndef|elif|else)([^a-z]|$)/ &&
        !(FILENAME ~ /\.h$/ && !(FILENAME in guarded) && $1 == "#ifndef" && $2 ~ /^LLMC_[A-Z0-9_]+_H$/ && (guarded[FILENAME] = 1)) {
            print FILENAME ":" FNR ": " $0}' "$@"
}
# too_long FILE...: files of more lines than allowed that are not in the list, and files that need not be in it.
too_long() {
    local lines file
    while read -r lines file; do
        if [ "$lines" -le $MOST_LINES ]; then
            [ -z "${long[$file]:-}" ] || echo "$file has $lines lines: remove it from the list of long files"
        elif [ -z "${long[$file]:-}" ]; then
            echo "$file has $lines lines, more than $MOST_LINES: split it, or give a reason in the list of long files"
        fi
    done < <(wc -l "$@" | grep -v ' total$')
}
# tracked PATTERN...: existing files of the tree.
tracked() {
    local file
    { git ls-files -co --exclude-standard "$@" 2>/dev/null || find "${@%/\*}" -type f; } | while read -r file; do
        [ ! -f "$file" ] || echo "$file"
    done
}
# all_of RULE FILE...: the rule's findings for each of the files.
all_of() {
    local file
    for file in "${@:2}"; do "$1" "$file"; done
}
# check NAME COMMAND...: a test that fails if the command prints something.
check() {
    local found
    echo "[ RUN      ] $1"
    found=$("${@:2}")
    [ -z "$found" ] || echo "$found"
    report "$([ -z "$found" ]; echo $?)" "$1"
}

files=$(tracked 'llmc/*' 'data/*' train_gpt.cu)
sources=$(grep -E '\.(c|h|cu|cuh|cpp)$' <<<"$files")

check every_file_has_a_room all_of roomless $files
check tests_mirror_the_rooms all_of mirrors_none $(tracked 'tests/*')
check files_are_short too_long $(tracked 'llmc/*' 'data/*' 'dev/*' | grep -E '\.(c|h|cu|cuh|cpp|sh|py|awk|mk)$') "${!long[@]}"

echo '[ RUN      ] rooms_include_only_what_they_may'
bad=0 count=0
while IFS=: read -r file header; do
    count=$((count + 1))
    found=$(wrong "$file" "$header")
    [ -z "$found" ] || { echo "$found"; bad=1; }
done < <(includes $sources)
[ $count -gt 300 ] || { echo "only $count includes were found"; bad=1; }
report $bad rooms_include_only_what_they_may

# The table itself has no circles: rooms that do nothing but include what is already standing can be stacked.
echo '[ RUN      ] rooms_have_no_circles'
standing=' ' bad=0 left=$(grep -oE '^[a-z_]+:' <<<"$ROOMS" | tr -d :)
while [ -n "$left" ]; do
    next=
    for room in $left; do
        ready=1
        for other in ${may[$room]}; do
            case $other in none) continue ;; */*) other=$(room_of "$other") ;; esac
            case $standing in *" $other "*) ;; *) ready= ;; esac
        done
        if [ -n "$ready" ]; then standing+="$room "; else next+="$room "; fi
    done
    [ "$next" != "$left" ] || { echo "a circle among: $left"; bad=1; break; }
    left=$next
done
report $bad rooms_have_no_circles

# The rules can fail: what each of them forbids is planted.
echo '[ RUN      ] rules_find_what_is_planted'
bad=0
for planted in 'llmc/model/model.c llmc/run/run.h' 'llmc/cpu/kernels.h llmc/model/model.h' 'llmc/loader/loader.c llmc/backend/backend.h' \
    'llmc/base/rng.c llmc/config/config.h' 'llmc/cuda/norm.cu llmc/cpu/kernels.h' 'data/tokenize.c llmc/model/model.h' \
    'llmc/model/model.c llmc/loader/loader.h' 'llmc/model/model.c tests/support/op_test.h' 'llmc/model/model.c model.h'; do
    [ -n "$(wrong ${planted% *} "${planted#* }")" ] || { echo "not found: $planted"; bad=1; }
done
printf '%s\n' '#ifndef LLMC_PLANTED_H' '#include <llmc/run/run.h>' '#include <stdio.h>' '#ifdef PLANTED' >"$work/planted.h"
cp "$work/planted.h" "$work/planted.c"
yes '' | head -n $((MOST_LINES + 1)) >"$work/long.c"
# finds COUNT RULE ARGUMENT...: the rule prints that many lines.
finds() {
    local count
    count=$("${@:2}" | grep -c .)
    [ "$count" -eq "$1" ] || { echo "expected $1 findings, found $count: ${*:2}"; bad=1; }
}
finds 1 wrong llmc/model/model.c "$(includes "$work/planted.h" | sed -n '1s/^[^:]*://p')"
finds 0 wrong llmc/model/model.c "$(includes "$work/planted.h" | sed -n '2s/^[^:]*://p')"
finds 1 roomless llmc/model/table.inc
finds 1 roomless llmc/elsewhere/model.c
finds 0 roomless llmc/model/model.c
finds 1 mirrors_none tests/elsewhere/test_it.c
finds 0 mirrors_none tests/model/test_it.c
finds 1 conditionals "$work/planted.h"
finds 2 conditionals "$work/planted.c"
finds 1 too_long "$work/long.c"
finds 1 too_long llmc/tokenizer/unicode_tables.c "$work/long.c"
report $bad rules_find_what_is_planted

echo '[ RUN      ] picture_is_of_this_table'
bad=0
dev/rooms_svg.sh | cmp -s - docs/rooms.svg || { echo 'docs/rooms.svg differs: dev/rooms_svg.sh > docs/rooms.svg'; bad=1; }
report $bad picture_is_of_this_table

check model_has_no_ifdef conditionals llmc/model/*.[ch]
exit $((failures > 0))
