#!/usr/bin/env bash
# Four emotions of RAVDESS, 24 folds, one speaker left out in each, three seeds: frozen encoders, the small
# recipe with a linear path, answered without and with references of each test speaker's own unlabelled
# recordings; the regression on layers 2 to 4 in the same ways; then the curve over how many recordings of
# which emotions.
#   runs/references_ravdess4.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [JOBS] [SEEDS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"
jobs=${5:-2}
read -ra seeds <<< "${6:-0 1 2}"
corpus=(--manifest "$manifest" --protocol leave_one_speaker_out --audio_encoder "$audio"
    --text_encoder "$text" --cache_dir "$out/cache")

for kind in none speaker; do
    mtmm baselines "${corpus[@]}" --reference "$kind" --modalities audio --layers 2 3 4 --pooling mean_std \
        --out "$out/regression/$kind"
done
runs=()
for seed in "${seeds[@]}"; do
    mtmm evaluate run "${corpus[@]}" --out "$out/referenced/$seed" --seed "$seed" --jobs "$jobs" \
        --reference speaker --preset small --select_by last --class_weights balanced --linear_path
    runs+=("$out/referenced/$seed")
done
for kind in none speaker; do
    mtmm evaluate compare "$out/regression/$kind" "${runs[@]}" "$out/referenced" --out "$out/comparison_$kind"
done
mtmm study references --run "$out/referenced" --cache_dir "$out/cache"
