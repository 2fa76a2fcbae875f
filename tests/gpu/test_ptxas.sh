#!/bin/bash
# Registers and spills of every CUDA kernel, on every architecture that the plug-in was compiled for, against
# tests/gpu/ptxas_limits.txt. The build keeps the compiler's report beside each object ($BUILD/cuda/<file>.ptxas).
#     tests/gpu/test_ptxas.sh [BUILD]
set -u
cd "$(dirname "$0")/../.." || exit 1
. tests/support/lib.sh
limits=tests/gpu/ptxas_limits.txt

# over_limit LIMITS < REPORTS: one line for each kernel beyond its limits and each limit without a kernel; fails if
# there is any, or if there are no kernels.
over_limit() {
    c++filt | awk -v limits="$1" '
        BEGIN {
            while ((getline line < limits) > 0)
                if (line !~ /^[[:space:]]*(#|$)/) {
                    split(line, field)
                    registers[++count] = field[1]; spilled[count] = field[2]
                    sub(/^[[:space:]]*[0-9]+[[:space:]]+[0-9]+[[:space:]]+/, "", line)
                    name[count] = line
                }
        }
        /Compiling entry function/ {
            split($0, quoted, "\047")
            kernel = quoted[2]; arch = quoted[4]; spills = 0
            sub(/^void /, "", kernel); gsub(/__nv_bfloat16/, "bf16", kernel)
        }
        /bytes spill stores/ { for (i = 1; i < NF; ++i) if ($i == "bytes" && $(i + 1) == "spill") spills += $(i - 1) }
        /Used [0-9]+ registers/ {
            for (i = 1; i < NF; ++i) if ($i == "Used") used = $(i + 1)
            for (limit = 1; limit <= count && kernel !~ "^(" name[limit] ")"; ++limit);
            ++kernels; ++needed[limit]
            if (limit > count || used > registers[limit] + 0 || spills > spilled[limit] + 0) {
                print kernel " on " arch ": " used " registers, " spills " bytes spilled; allowed: " \
                    registers[limit] + 0 " and " spilled[limit] + 0
                bad = 1
            }
        }
        END {
            for (limit = 1; limit <= count; ++limit)
                if (!needed[limit]) { print "no kernel is called " name[limit] " any more"; bad = 1 }
            if (!kernels) { print "no kernel in the reports"; bad = 1 }
            exit bad
        }'
}

# report REGISTERS SPILLED: a compiler report of a kernel.
report() {
    printf "ptxas info    : Compiling entry function '_Z10add_kernelIfEvPT_' for 'sm_90a'\n"
    printf '    8 bytes stack frame, %d bytes spill stores, %d bytes spill loads\n' "$2" "$2"
    printf 'ptxas info    : Used %d registers, used 1 barriers\n' "$1"
}
finds_faults() {
    printf '64 8 add_kernel<float>\n' >"$work/limits"
    report 64 4 | over_limit "$work/limits" || return 1
    report 65 0 | over_limit "$work/limits" >"$work/found" && return 1
    report 64 8 | over_limit "$work/limits" >>"$work/found" && return 1
    report 64 4 | over_limit "$limits" >>"$work/found" && return 1
    ! over_limit "$work/limits" </dev/null >>"$work/found"
}
check ptxas_faults_are_found finds_faults

reports=()
for source in llmc/cuda/*.cu; do
    kept=$BUILD/cuda/$(basename "$source" .cu).ptxas
    [ -e "$kept" ] && reports+=("$kept")
done
if [ ${#reports[@]} -eq 0 ]; then
    skip ptxas_limits "no CUDA plug-in was compiled in $BUILD (make config says what was found)"
else
    within_limits() { cat "${reports[@]}" | over_limit "$limits"; }
    check ptxas_limits within_limits
fi
finish
