#!/usr/bin/env bash
# Four emotions of RAVDESS, 24 folds, one speaker left out in each: frozen encoders, the fusion's
# training alone; then the regressions of runs/baselines_ravdess4.sh that are in OUT, minus it.
#   runs/ravdess4.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [JOBS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"
jobs=${5:-2}

mtmm evaluate run --out "$out/ours" --jobs "$jobs" --cache_dir "$out/cache" \
    --manifest "$manifest" --protocol leave_one_speaker_out \
    --audio_encoder "$audio" --text_encoder "$text" --preset small --select_by last
others=()
for name in last_layer best_layer layers_2_to_4 egemaps; do
    if [ -d "$out/$name" ]; then others+=("$out/$name"); fi
done
if [ ${#others[@]} -gt 0 ]; then
    mtmm evaluate compare "$out/ours" "${others[@]}" --out "$out/comparison"
fi
