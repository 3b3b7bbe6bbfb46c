#!/usr/bin/env bash
# Four emotions of RAVDESS, 4 grouped folds of six speakers each, from the recordings alone: LoRA on
# the acoustic encoder against frozen encoders and the best-layer regression, paired.
#   runs/ravdess4_lora.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
manifest=$(realpath "${1:?give the manifest}")
audio=$(realpath "${2:?give the folder of the audio encoder}")
text=$(realpath "${3:?give the folder of the text encoder}")
out=$(realpath -m "${4:?give a folder for the results}")
cd "$(dirname "$0")/.."
. runs/small_corpus.sh
corpus=(--manifest "$manifest" --protocol grouped --k 4 --modalities audio)
encoders=(--audio_encoder "$audio" --text_encoder "$text")

python -m mtmm_training.baselines "${corpus[@]}" "${encoders[@]}" --layers best --cache_dir "$out/cache" \
    --out "$out/best_layer"
python -m mtmm_training.evaluate run --out "$out/frozen" --cache_dir "$out/cache" "${corpus[@]}" \
    "${encoders[@]}" "${SMALL_CORPUS[@]}" --augment speed noise --augment_variants 2 --epochs 40
python -m mtmm_training.evaluate run --out "$out/lora" "${corpus[@]}" "${encoders[@]}" "${SMALL_CORPUS[@]}" \
    --lora_rank 8 --learning_rate 1e-3 --mixed_precision bf16 --epochs 6 \
    --augment speed noise lowpass gain --augment_variants 7
python -m mtmm_training.evaluate compare "$out/best_layer" "$out/frozen" "$out/lora" --out "$out/comparison"
