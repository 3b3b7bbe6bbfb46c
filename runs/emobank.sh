#!/usr/bin/env bash
# Valence and arousal of sentences: EmoBank's own split, text only, against mean pooling and ridge, and
# single ratings against means alone; then single ratings with a linear path.
#   runs/emobank.sh EMOBANK_FOLDER AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
corpus=$(realpath "${1:?give the folder of emobank.csv}")
audio=$(realpath "${2:?give the folder of the audio encoder, which hears nothing here}")
text=$(realpath "${3:?give the folder of the text encoder}")
out=$(realpath -m "${4:?give a folder for the results}")
cd "$(dirname "$0")/.."

data=(--corpus emobank --corpus_dir "$corpus" --protocol official --modalities text)
encoders=(--audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
mtmm baselines --out "$out/baseline" "${data[@]}" "${encoders[@]}" --layers best
mtmm evaluate table "$out/baseline"
recipe=("${data[@]}" "${encoders[@]}" --preset small --batch_size 64 --epochs 10)
for labels in majority votes; do
    mtmm evaluate run --out "$out/$labels" "${recipe[@]}" --labels "$labels"
done
mtmm evaluate run --out "$out/linear_path" "${recipe[@]}" --labels votes --linear_path
mtmm evaluate compare "$out/baseline" "$out/majority" "$out/votes" "$out/linear_path" --out "$out/comparison"
mtmm evaluate compare "$out/majority" "$out/votes" "$out/linear_path" --out "$out/comparison_of_labels"
