#!/usr/bin/env bash
# What a GPU is measured by, in under ten minutes: a line for each figure as it comes.
#   benchmarks/gpu.sh [REAL]
# REAL has ravdess4/ (manifest.csv, audio/) and encoders/whisper-base-6s; without it the runs on
# recordings are left out. Weights are random elsewhere. PARTS chooses some of the parts below.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python} device=${DEVICE:-cuda} real=${1:-}
read -ra extra <<<"${EXTRA:-}" # such as --quick
read -ra parts <<<"${PARTS:-operations forward memory pipeline encode cached tuned launched}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bench() { timeout "${LIMIT:-180}" "$python" "benchmarks/$1.py" --device "$device" "${extra[@]}" "${@:2}" || echo "FAILED $*"; }
train() { # NAME LAUNCHER... -- FLAGS...
    local name=$1 began=$SECONDS launcher=()
    shift
    while [ "$1" != -- ]; do launcher+=("$1") && shift; done
    timeout "${LIMIT:-180}" "${launcher[@]}" train_accelerate.py --out "$work/$name" --tracker none --workers 8 \
        --manifest "$work/manifest.csv" --audio_dir "$real/ravdess4" --protocol grouped --k "${FOLDS:-4}" \
        --audio_encoder "$real/encoders/whisper-base-6s" --text_encoder "$work/encoders/text" \
        --cache_dir "$work/cache" --preset small "${@:2}" >"$work/log" 2>&1 || grep -E "^error|Error:" "$work/log" | head -5
    "$python" -c "
import json, sys
from pathlib import Path
path = Path(sys.argv[1], 'results.json')
found = json.loads(path.read_text()) if path.exists() else {}
said = f\"{found['wall_time_s']:.1f} s on {found['device']}, UAR {found['test']['UAR']:.3f}; \" if found else ''
print(f'{sys.argv[2]}: {said}{sys.argv[3]} s with imports and test', flush=True)" "$work/$name" "$name" "$((SECONDS - began))"
}

operations() { "$python" benchmarks/operations.py; }
forward() {
    bench real_time_factor --dtypes bfloat16 --batches 1x3.6 16x3.6 64x3.6 64x10 --compile
    bench real_time_factor --dtypes float32 --batches 16x3.6
}
memory() { bench memory_throughput --batch_size 16 --precisions no bf16; }
pipeline() { bench batched_pipeline --modalities both text --rounds 2; }
encode() { train encode "$python" -- --encode_only True; }
cached() { # the goal of the first: 12 s
    for precision in no bf16; do
        for compile in False True; do # True: CUDA graphs
            train "cached-$precision-graphs-$compile" "$python" -- --epochs 10 --mixed_precision "$precision" --compile "$compile"
        done
    done
}
tuned() {
    for precision in no bf16; do
        train "lora-$precision" "$python" -- --epochs 1 --lora_rank 8 --cache_dir off --mixed_precision "$precision"
        train "all-$precision" "$python" -- --epochs 1 --unfreeze_audio_layers 6 --cache_dir off --mixed_precision "$precision"
    done
}
launched() {
    for way in ddp fsdp; do
        sed "s/num_processes: .*/num_processes: 1/; s/cls_to_wrap: .*/cls_to_wrap: WhisperEncoderLayer,BertLayer/" \
            "launch/$way.yaml" >"$work/$way.yaml"
        train "$way" "$python" -m accelerate.commands.launch --config_file "$work/$way.yaml" -- --epochs 1 --unfreeze_audio_layers 6 --cache_dir off
    done
}
if [ -d "$real/ravdess4" ]; then
    "$python" -c "
import sys
from mtmm_training.data.corpora.synthetic import write_encoders
write_encoders(sys.argv[1])" "$work/encoders" 2>/dev/null
    awk -v speakers="${SPEAKERS:-12}" 'NR == 1 || (match($0, /actor_[0-9]+/) && substr($0, RSTART + 6, 2) + 0 <= speakers)' \
        "$real/ravdess4/manifest.csv" >"$work/manifest.csv"
fi
for part in "${parts[@]}"; do
    case $part in encode | cached | tuned | launched) [ -d "$real/ravdess4" ] || continue ;; esac
    "$part"
done
