#!/usr/bin/env bash
# Four emotions of RAVDESS, 4 grouped folds of six speakers each, from the recordings alone: frozen
# encoders, then LoRA on the acoustic one, against the best-layer regression, paired.
#   runs/ravdess4_lora.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"
corpus=(--manifest "$manifest" --protocol grouped --k 4 --modalities audio)
encoders=(--audio_encoder "$audio" --text_encoder "$text")

mtmm baselines "${corpus[@]}" "${encoders[@]}" --layers best --cache_dir "$out/cache" \
    --out "$out/best_layer"
mtmm evaluate table "$out/best_layer"
mtmm evaluate run --out "$out/frozen" --cache_dir "$out/cache" "${corpus[@]}" \
    "${encoders[@]}" --preset small
for fold in 0 1 2 3; do # each from the frozen run's model: it has seen the same training split
    [ -f "$out/lora/fold-0$fold/results.json" ] || mtmm train --resume True \
        --model "$out/frozen/fold-0$fold/model" --fold "$fold" --out "$out/lora/fold-0$fold" "${corpus[@]}" \
        --lora_rank 8 --learning_rate 3e-4 --epochs 3 --mixed_precision bf16 \
        --augment speed noise lowpass gain --augment_variants 7
done
mtmm evaluate table "$out/lora"
mtmm evaluate compare "$out/best_layer" "$out/frozen" "$out/lora" --out "$out/comparison"
