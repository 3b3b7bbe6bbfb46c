#!/usr/bin/env bash
# Votes against majority labels, of simulated listeners: RAVDESS's four emotions with a stated confusion
# of each (runs/simulate_listeners.py), 4 folds of speakers, frozen encoders; then risk over coverage.
#   runs/votes.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"

python runs/simulate_listeners.py "$manifest" "$out/manifest.csv"
for labels in majority votes; do
    mtmm evaluate run --out "$out/$labels" --manifest "$out/manifest.csv" --protocol grouped --k 4 \
        --audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache" \
        --preset small --select_by last --labels "$labels"
done
mtmm evaluate compare "$out/majority" "$out/votes" --out "$out/comparison"
mtmm evaluate risk "$out/majority" "$out/votes" --out "$out/risk"
