#!/bin/bash
# Include directions by place: every file of the library lies in a room, and a room includes only what its row of
# tests/source/rooms.txt allows. A file in no room, or a room without a row, fails. Reports like cmocka (tests/run.sh).
set -u
cd "$(dirname "$0")/../.." || exit 1
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

# includes FILE...: lines "file:header" of what they include with quotes.
includes() { grep -HoE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"[^"]+"' "$@" 2>/dev/null | sed -E 's/:[^"]*"/:/; s/"$//'; }
# wrong FILE HEADER: prints why this include is against the table, or nothing.
wrong() {
    local from to
    from=$(room_of "$1") to=$(room_of "$2")
    case $2 in emu_device.h) [ "$from" = cuda ] || echo "$1 includes $2: only cuda is emulated"; return ;; esac
    [ -e "$2" ] || { echo "$1 includes $2: spell it from the root of the tree"; return; }
    [ -n "$to" ] || { echo "$1 ($from) includes $2, which is in no room"; return; }
    [ "$from" != "$to" ] || return
    case ${may[$from]:-} in *" $to "* | *" $2 "*) ;; *) echo "$1 ($from) includes $2 ($to)" ;; esac
}

files=$(git ls-files -co --exclude-standard 'llmc/*' 'data/*' train_gpt.cu 2>/dev/null) ||
    files=$(find llmc data train_gpt.cu -type f)
sources=$(grep -E '\.(c|h|cu|cuh|cpp)$' <<<"$files")

echo '[ RUN      ] every_file_has_a_room'
bad=0
while read -r file; do
    [ -e "$file" ] || continue
    room=$(room_of "$file")
    [ -n "$room" ] && [ -n "${may[$room]:-}" ] || { echo "$file is in no room"; bad=1; }
done <<<"$sources"
report $bad every_file_has_a_room

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
report $bad rules_find_what_is_planted

echo '[ RUN      ] picture_is_of_this_table'
bad=0
dev/rooms_svg.sh | cmp -s - docs/rooms.svg || { echo 'docs/rooms.svg differs: dev/rooms_svg.sh > docs/rooms.svg'; bad=1; }
report $bad picture_is_of_this_table

echo '[ RUN      ] model_has_no_ifdef'
bad=0
grep -nE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef|elif|else)' llmc/model/*.c && bad=1
report $bad model_has_no_ifdef
exit $((failures > 0))
