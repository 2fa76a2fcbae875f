# bench_cpu.awk: the JSON lines of bench_cpu.sh as tables of medians and ratios. Reads only lines of the programs that
# bench_cpu.sh runs: no duplicate keys, ": " and ", " as separators.
#   tokens/s   median of all timed steps of all rounds; of a peer with several settings, the best
#   ratio      ours over the peer's, median of the rounds' ratios: a slow period affects both
#   spread     (third quartile - first) / median of our steps; above 10 % the machine was too busy

function text(key) {
    return match($0, "\"" key "\": \"[^\"]*\"") ? substr($0, RSTART + length(key) + 5, RLENGTH - length(key) - 6) : ""
}
function number(key) {
    if (!match($0, "\"" key "\": [-0-9.]+")) return 0
    return substr($0, RSTART + length(key) + 4, RLENGTH - length(key) - 4) + 0
}
# The q-quantile of a list of numbers separated by commas.
function quantile(list, q,   n, v, i, j, t, at, low) {
    n = split(list, v, /, */)
    if (n == 0) return 0
    for (i = 2; i <= n; i++)
        for (j = i; j > 1 && v[j - 1] + 0 > v[j] + 0; j--) { t = v[j]; v[j] = v[j - 1]; v[j - 1] = t }
    at = 1 + (n - 1) * q
    low = int(at)
    return low >= n ? v[n] + 0 : v[low] + (at - low) * (v[low + 1] - v[low])
}
function append(list, value) { return list == "" ? value : list ", " value }
# Ours over peer p in the same rounds; 0: nothing to compare.
function ratio(row, p,   r, ratios) {
    for (r = 1; r <= rounds; r++)
        if ((row, OURS, r) in median && (row, p, r) in median)
            ratios = append(ratios, median[row, OURS, r] / median[row, p, r])
    return quantile(ratios, 0.5)
}

BEGIN { OURS = "tokamak" }
{
    row = text("shape") SUBSEP text("dtype")
    if (!(row in seen_row)) { seen_row[row] = 1; rows[++row_count] = row }
    peer = text("peer")
    if (peer != OURS) {
        version = text("version")
        sub(/[+a].*/, "", version)
        peer = peer == "pytorch" ? "PyTorch " version : peer
        if (!(peer in seen_peer)) { seen_peer[peer] = 1; peers[++peer_count] = peer }
    }
    round = number("round")
    if (round > rounds) rounds = round
    match($0, /"list": \[[^]]*\]/)
    list = substr($0, RSTART + 9, RLENGTH - 10)
    setting = text("setting")
    all[row, peer, setting] = append(all[row, peer, setting], list)
    each[row, peer, setting, round] = number("tok_per_s")
    settings[row, peer] = settings[row, peer] SUBSEP setting
    if (peer != OURS) next
    machine = text("version")
    peak[row] = append(peak[row], number("peak_gflops"))
    peak_share[row] = append(peak_share[row], number("peak_share"))
    matmul_peak_share[row] = append(matmul_peak_share[row], number("matmul_peak_share"))
    memory[row] = append(memory[row], number("resident_bytes") / number("planned_bytes"))
    n = split("matmul attention loss optimizer norm pointwise embedding memory rest", kinds, " ")
    for (k = 1; k <= n; k++) share[row, kinds[k]] = append(share[row, kinds[k]], number(kinds[k]))
}
END {
    if (row_count == 0) { print "no results"; exit 1 }
    for (row_seen in settings) {  # the best setting of each peer
        n = split(settings[row_seen], tried, SUBSEP)
        for (s = 2; s <= n; s++) {
            m = quantile(all[row_seen, tried[s]], 0.5)
            if (m > tokens[row_seen]) { tokens[row_seen] = m; best[row_seen] = tried[s] }
        }
        for (r = 1; r <= rounds; r++)
            if ((row_seen, best[row_seen], r) in each) median[row_seen, r] = each[row_seen, best[row_seen], r]
    }

    printf "\n%s\n\ntokens/s of a training step; in brackets ours over theirs\n\n", machine
    printf "%-14s %-5s %9s %7s", "shape", "dtype", OURS, "spread"
    for (p = 1; p <= peer_count; p++) printf " %22s", peers[p]
    printf "\n"
    for (i = 1; i <= row_count; i++) {
        row = rows[i]
        split(row, part, SUBSEP)
        ours = all[row, OURS, ""]
        spread = (quantile(ours, 0.75) - quantile(ours, 0.25)) / tokens[row, OURS]
        printf "%-14s %-5s %9.1f %6.0f%%", part[1], part[2], tokens[row, OURS], 100 * spread
        for (p = 1; p <= peer_count; p++) {
            if ((row, peers[p]) in tokens)
                printf " %12.1f (%6.2fx)", tokens[row, peers[p]], ratio(row, peers[p])
            else
                printf " %22s", "-"
        }
        printf "\n"
    }
    for (i = 1; i <= row_count; i++) {
        split(rows[i], part, SUBSEP)
        if (part[2] == "bf16" && ((part[1], "fp32", OURS) in tokens))
            bf16 = bf16 sprintf("  %s %.2fx", part[1], tokens[rows[i], OURS] / tokens[part[1], "fp32", OURS])
        for (p = 1; p <= peer_count; p++)
            if (best[rows[i], peers[p]] != "")
                chosen = chosen sprintf("  %s %s, %s: %s\n", part[1], part[2], peers[p], best[rows[i], peers[p]])
    }
    if (bf16 != "") printf "\nour bf16 over our fp32:%s\n", bf16
    if (chosen != "") printf "\nsettings of the peers\n%s", chosen

    printf "\nwhere our time goes, in %% of the step; flops over the peak measured in the same run, also in %%\n\n"
    heading = "%-14s %-5s %7s %9s %5s %6s %5s %5s %6s %8s %8s %8s %7s\n"
    printf heading, "shape", "dtype", "matmul", "attention", "loss", "optim", "norm", "point", "other", "step",
        "matmul", "GFLOP/s", "memory"
    printf heading, "", "", "", "", "", "", "", "wise", "", "of peak", "of peak", "peak", "/ plan"
    for (i = 1; i <= row_count; i++) {
        row = rows[i]
        split(row, part, SUBSEP)
        printf "%-14s %-5s %7.1f %9.1f %5.1f %6.1f %5.1f %5.1f %6.1f %8.0f %8.0f %8.0f %7.3f\n", part[1], part[2],
            100 * quantile(share[row, "matmul"], 0.5), 100 * quantile(share[row, "attention"], 0.5),
            100 * quantile(share[row, "loss"], 0.5), 100 * quantile(share[row, "optimizer"], 0.5),
            100 * quantile(share[row, "norm"], 0.5), 100 * quantile(share[row, "pointwise"], 0.5),
            100 * (quantile(share[row, "embedding"], 0.5) + quantile(share[row, "memory"], 0.5) + \
                   quantile(share[row, "rest"], 0.5)),
            100 * quantile(peak_share[row], 0.5), 100 * quantile(matmul_peak_share[row], 0.5),
            quantile(peak[row], 0.5), quantile(memory[row], 0.5)
    }
}
