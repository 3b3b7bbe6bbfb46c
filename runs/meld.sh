#!/usr/bin/env bash
# Seven emotions of MELD's lines, text only: with and without sentiment (as valence 1, 3, 5) as a
# second task, paired, against mean pooling and logistic regression; then both with a linear path.
#   runs/meld.sh MELD_FOLDER AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
corpus=$(realpath "${1:?give the folder of the three CSV files}")
audio=$(realpath "${2:?give the folder of the audio encoder, which hears nothing here}")
text=$(realpath "${3:?give the folder of the text encoder}")
out=$(realpath -m "${4:?give a folder for the results}")
cd "$(dirname "$0")/.."

data=(--corpus meld --corpus_dir "$corpus" --protocol official --modalities text)
data+=(--emotions anger disgust fear joy neutral sadness surprise --class_weights balanced)
encoders=(--audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
ours=("${data[@]}" "${encoders[@]}" --preset small --select_by UAR)
ours+=(--batch_size 64 --epochs 10)
mtmm baselines --out "$out/baseline" "${data[@]}" "${encoders[@]}" --layers best
mtmm evaluate run --out "$out/emotions" "${ours[@]}"
mtmm evaluate run --out "$out/emotions_and_sentiment" "${ours[@]}" \
    --corpus_options '{"sentiment_as_valence": true}'
mtmm evaluate run --out "$out/linear_path" "${ours[@]}" --linear_path \
    --corpus_options '{"sentiment_as_valence": true}'
mtmm evaluate compare "$out/emotions" "$out/emotions_and_sentiment" \
    --out "$out/second_task"
mtmm evaluate compare "$out/emotions_and_sentiment" "$out/linear_path" --out "$out/with_linear_path"
mtmm evaluate compare "$out/baseline" "$out/emotions_and_sentiment" "$out/linear_path" \
    --out "$out/comparison"
