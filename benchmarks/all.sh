#!/usr/bin/env bash
# Every benchmark, and one table of what was measured against what is wanted.
#   benchmarks/all.sh [--device cuda]
# Without a GPU the encoders have two layers of the paper's twenty-four, and rounds are few: a stand-in
# that shows that each runs, in 120 s at most. On cuda see gpu.sh too, whose rows need a GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} limit=${LIMIT:-120}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
small=(--layers 2 "$@") real=()
[ -d "${MTMM_REAL_DATA:-../shared/real}" ] && real=(--encoders real)
run() { # NAME FLAGS...
    local began=$SECONDS name=$1
    echo "== $* "
    timeout "$limit" "$python" "benchmarks/$name.py" "${@:2}" 2>&1 | tee -a "$log"
    local code=${PIPESTATUS[0]} took=$((SECONDS - began))
    [ "$code" -eq 124 ] && took="more than $limit"
    local verdict=met
    [ "$code" -eq 0 ] || verdict=MISSED
    echo "RESULT $name.py, seconds: $took; target <= $limit: $verdict" | tee -a "$log"
}
run operations
run real_time_factor "${small[@]}" --batches 1x3.6 2x3.6 --rounds 2 --dtypes float32
run memory_throughput "${small[@]}" --batch_size 2 --modes "frozen, cached" LoRA "full fine-tuning"
run cached_training "${small[@]}" --batches 1 --rounds 1 --batch_size 4
run load_time "${small[@]}" --rounds 3
run busy_neighbour
run batched_pipeline "$@" --rounds 1 --modalities text
run long_file_memory --long_s 120
run runtime_start --rounds 3 --threads 1 --precisions float32 "${real[@]}"
run service_load --seconds 10 --threads 1 "${real[@]}"
run encoder_families hubert bert
run killed_runs --quick
[ -n "${MODEL:-}" ] && run start_up --model "$MODEL" --audio "$AUDIO" --rounds 2
printf '\n%-62s %-12s %-12s %s\n' claim measured wanted ''
sed -nE 's/^RESULT (.*): ([^:(;]*)( \(.*\))?; target (.*): (met|MISSED)$/\1|\2|\4|\5/p' "$log" |
    awk -F'|' '{ printf "%-62s %-12s %-12s %s\n", $1, $2, $3, $4 }'
