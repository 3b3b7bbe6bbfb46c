#!/usr/bin/env bash
# Votes against majority labels, of simulated listeners, with the same epochs; then risk over coverage.
# RAVDESS's four emotions with a stated confusion of each (runs/simulate_listeners.py), 4 folds of
# speakers, frozen encoders, votes also with a third of them left out in each epoch; then the embedded
# corpus with its own listeners, 3 folds, encoders trained. Vote dropout is judged on validation speakers.
#   runs/votes.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"

python runs/simulate_listeners.py "$manifest" "$out/manifest.csv"
acted=(--manifest "$out/manifest.csv" --protocol grouped --k 4 --preset small --select_by last
    --audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
mtmm evaluate run --out "$out/majority" "${acted[@]}" --labels majority
mtmm evaluate run --out "$out/votes" "${acted[@]}" --labels votes
mtmm evaluate compare "$out/majority" "$out/votes" --out "$out/comparison"
mtmm evaluate risk "$out/majority" "$out/votes" --out "$out/risk"
mtmm evaluate run --out "$out/votes_dropped" "${acted[@]}" --labels votes --vote_dropout 0.33
mtmm evaluate compare "$out/votes" "$out/votes_dropped" --split validation --out "$out/comparison_of_dropout"

embedded="$out/embedded"
python - "$embedded" <<'PY'
import sys
from pathlib import Path

from mtmm_training.studies.embedded_demo import embedded_settings

embedded_settings(Path(sys.argv[1]))
PY
heard=(--corpus synthetic --corpus_dir "$embedded/corpus" --corpus_options '{"heard": true}' --protocol grouped --k 3
    --audio_encoder "$embedded/encoders/audio" --text_encoder "$embedded/encoders/text" --epochs 10 --batch_size 8
    --learning_rate 1e-3 --encoder_learning_rate 1e-3 --rmm_start 0.5 --model_config '{"freeze_audio_encoder": false,
    "freeze_text_encoder": false, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
    "num_bridge_tokens": 8}')
mtmm evaluate run --out "$embedded/majority" "${heard[@]}" --labels majority
mtmm evaluate run --out "$embedded/votes" "${heard[@]}" --labels votes
mtmm evaluate compare "$embedded/majority" "$embedded/votes" --out "$embedded/comparison"
mtmm evaluate risk "$embedded/majority" "$embedded/votes" --out "$embedded/risk"
