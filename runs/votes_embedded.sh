#!/usr/bin/env bash
# Votes against majority labels of the embedded corpus's simulated listeners, with the same epochs: 3 folds
# of speakers, encoders trained; then risk over coverage, and, on validation speakers, votes of which a third
# is left out in each epoch. The label is what most listeners heard.
#   runs/votes_embedded.sh OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
out=$(realpath -m "${1:?give a folder for the results}")
cd "$(dirname "$0")/.."

python - "$out" <<'PY'
import sys
from pathlib import Path

from mtmm_training.studies.embedded_demo import embedded_settings

embedded_settings(Path(sys.argv[1]))
PY
recipe=(--corpus synthetic --corpus_dir "$out/corpus" --corpus_options '{"heard": true}'
    --audio_encoder "$out/encoders/audio" --text_encoder "$out/encoders/text"
    --protocol grouped --k 3 --preset paper --epochs 10 --batch_size 8
    --learning_rate 1e-3 --encoder_learning_rate 1e-3 --rmm_start 0.5 --model_config '{"freeze_audio_encoder": false,
    "freeze_text_encoder": false, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128,
    "num_bridge_tokens": 8}')
. runs/labels.sh
