#!/usr/bin/env bash
# Valence and arousal of sentences: EmoBank's own split, text only, against mean pooling and ridge.
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
mtmm evaluate run --out "$out/ours" "${data[@]}" "${encoders[@]}" \
    --preset small --batch_size 64 --epochs 10
mtmm evaluate compare "$out/baseline" "$out/ours" --out "$out/comparison"
