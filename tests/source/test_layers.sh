#!/bin/bash
# Include directions: train_gpt -> llmc -> backend.h -> {llmc/cpu, llmc/cuda}. Text, data and configuration know nothing of
# devices, tensors or models; the backends know nothing of models. Reports like cmocka (tests/run.sh).
set -u
cd "$(dirname "$0")/../.." || exit 1
failures=0

# What each file includes with quotes, read once.
declare -A includes=()
while IFS=: read -r file line; do
    header=${line#*\"}
    includes[$file]+="${header%%\"*} "
done < <(grep -HE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' train_gpt.cu llmc/*.* llmc/*/*.* data/*.* 2>/dev/null)

# Everything that a file includes, directly or not; one path a line.
closure() {
    local -A seen=()
    local queue=("$1") header
    while [ ${#queue[@]} -gt 0 ]; do
        for header in ${includes[${queue[0]}]:-}; do
            [ -z "${seen[$header]:-}" ] || continue
            seen[$header]=1
            echo "$header"
            queue+=("$header")
        done
        queue=("${queue[@]:1}")
    done
}

# check NAME EXPRESSION FILE...: no header that matches the extended regular expression is reached from any of the files.
check() {
    local name=$1 forbidden=$2 file found bad=0
    shift 2
    echo "[ RUN      ] $name"
    for file in "$@"; do
        [ -e "$file" ] || continue
        found=$(closure "$file" | grep -E "$forbidden" | tr '\n' ' ')
        if [ -n "$found" ]; then
            echo "$file reaches $found"
            bad=1
        fi
    done
    report $bad "$name"
}
report() {
    if [ "$1" -eq 0 ]; then
        echo "[       OK ] $2"
    else
        echo "[  FAILED  ] $2"
        failures=$((failures + 1))
    fi
}

shopt -s nullglob
devices='^llmc/(backend|tensor|arena|model|params|optimizer|plan|run|eval|sample)\.h$|^llmc/(cpu|cuda)/'

# A closure that finds nothing would let everything pass.
echo '[ RUN      ] layers_closure_works'
reached=$(closure llmc/model/model.c)
bad=0
for header in llmc/model/model.h llmc/backend/backend.h llmc/backend/tensor.h llmc/base/op_types.h llmc/base/common.h; do
    grep -qx "$header" <<<"$reached" || { echo "llmc/model/model.c does not seem to reach $header"; bad=1; }
done
report $bad layers_closure_works

check text_and_data_know_no_devices "$devices" \
    llmc/{tokenizer,unicode,shard,mixture,loader,heldout,batch,schedule}*.[ch] data/*.[ch]
check config_and_reports_know_no_devices "$devices" llmc/{config,model_config,logger,checkpoint,json,file_writer}*.[ch]
check foundations_stand_alone '^llmc/' llmc/{types,common}.h
check loader_knows_no_processes '^llmc/comm\.h$' llmc/{shard,mixture,loader,heldout,batch,schedule}*.[ch]
# Of the library, a backend sees its seam and what that is made of, groups of ranks included, nothing else.
echo '[ RUN      ] backends_see_only_the_seam'
bad=0
for file in llmc/cpu/*.[ch] llmc/cuda/*; do
    found=$(closure "$file" | grep -vE '^(emu_device\.h$|llmc/((backend|op_check|tensor|types|common|arena|rng|rng_philox|hash_element|comm|comm_host|control|launch)\.h$|(cpu|cuda)/))' | tr '\n' ' ')
    [ -z "$found" ] || { echo "$file reaches $found"; bad=1; }
done
report $bad backends_see_only_the_seam
check cpu_and_cuda_do_not_mix '^llmc/cuda/' llmc/cpu/*.[ch]
check cuda_and_cpu_do_not_mix '^llmc/cpu/' llmc/cuda/*
check library_reaches_backends_through_the_seam '^llmc/(cpu|cuda)/' llmc/*.[ch] train_gpt.cu data/*.[ch]
check library_knows_no_programs '^(train_gpt|data/|tests/|dev/)' llmc/*.[ch] llmc/*/*.[ch]

echo '[ RUN      ] model_has_no_ifdef'
bad=0
grep -nE '^[[:space:]]*#[[:space:]]*(if|ifdef|ifndef|elif|else)' llmc/model/model.c && bad=1
report $bad model_has_no_ifdef
exit $((failures > 0))
