#!/bin/bash
# Draws the rooms of llmc/ from tests/source/rooms.txt: a room is above every room that it includes; a dashed line
# means that only one header is included.
#     dev/rooms_svg.sh > docs/rooms.svg
set -u
cd "$(dirname "$0")/.." || exit 1
case ${1:-} in --help | -h) sed -n '2,4s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
grep -v '^#' tests/source/rooms.txt | awk -F ' *[|] *' '
function text(x, y, size, fill, words) {
    printf "<text x=\"%d\" y=\"%d\" font-size=\"%d\" fill=\"%s\" text-anchor=\"middle\">%s</text>\n", x, y, size, fill, words
}
# Breaks the text into two lines of about equal length.
function two_lines(x, y, words,   at) {
    at = int(length(words) / 2)
    while (at < length(words) && substr(words, at, 1) != " ") ++at
    text(x, y, 12, "#444", substr(words, 1, at))
    if (at < length(words)) text(x, y + 15, 12, "#444", substr(words, at + 1))
}
{
    split($1, head, ": *")
    name[++rooms] = head[1]; holds[head[1]] = $2
    n = split(head[2], list, " ")
    for (i = 1; i <= n; ++i) {
        other = list[i]
        if (other == "none") continue
        one_header = other ~ /\//
        if (one_header) { split(other, path, "/"); other = path[2]; dashed[head[1], other] = 1 }
        includes[head[1], other] = 1
        if (floor_of[other] + 1 > floor_of[head[1]]) floor_of[head[1]] = floor_of[other] + 1
    }
    side[head[1]] = head[1] ~ /^(cpu|cuda|mpi)$/ ? "right" : head[1] == "data" ? "left" : ""
}
END {
    W = 212; H = 64; GAP = 22; RISE = 96
    for (r = 1; r <= rooms; ++r) {
        f = floor_of[name[r]]
        if (side[name[r]] != "") continue
        place[name[r]] = count[f]++
        if (f > top) top = f
    }
    for (f = 0; f <= top; ++f) if (count[f] > widest) widest = count[f]
    main = widest * (W + GAP); left = W + 50; width = left + main + W + 70; height = (top + 1) * RISE + 30
    printf "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" font-family=\"sans-serif\">\n", width, height
    printf "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n", width, height
    for (r = 1; r <= rooms; ++r) {
        a = name[r]; f = floor_of[a]
        if (side[a] == "") x[a] = left + (main - count[f] * (W + GAP)) / 2 + place[a] * (W + GAP) + (W + GAP) / 2
        else if (side[a] == "left") { x[a] = 20 + W / 2; f = 3 }
        else { x[a] = width - 20 - W / 2; f = 2 + rights++ }
        y[a] = height - 15 - (f + 1) * RISE + (RISE - H) / 2
    }
    # A line to each included room that is not reached through another room.
    for (r = 1; r <= rooms; ++r) for (s = 1; s <= rooms; ++s) {
        a = name[r]; b = name[s]
        if (!((a, b) in includes)) continue
        direct = 1
        for (t = 1; t <= rooms; ++t) if (((a, name[t]) in includes) && ((name[t], b) in includes)) direct = 0
        if (direct) printf "<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"#b8c4d0\" stroke-width=\"1.5\"%s/>\n", x[a], y[a] + H / 2, x[b], y[b] + H / 2, (a, b) in dashed ? " stroke-dasharray=\"5 4\"" : ""
    }
    for (r = 1; r <= rooms; ++r) {
        a = name[r]
        fill = side[a] == "right" ? "#fdf0e2" : side[a] == "left" ? "#eaf5ea" : "#e9f0f9"
        printf "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" rx=\"7\" fill=\"%s\" stroke=\"#7a8ca0\"/>\n", x[a] - W / 2, y[a], W, H, fill
        text(x[a], y[a] + 20, 16, "#123", a == "train_gpt" ? "train_gpt.cu" : a == "data" ? "data/ (prep)" : a)
        two_lines(x[a], y[a] + 38, holds[a])
    }
    print "</svg>"
}'
