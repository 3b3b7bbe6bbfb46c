#!/usr/bin/env bash
# Votes against majority labels, of simulated listeners, with the same epochs: RAVDESS's four emotions with
# a stated confusion of each (runs/simulate_listeners.py), 4 folds of speakers, frozen encoders; then risk
# over coverage, and, on validation speakers, votes of which a third is left out in each epoch.
#   runs/votes.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [FLAGS OF EVALUATE RUN]
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"

python runs/simulate_listeners.py "$manifest" "$out/manifest.csv"
recipe=(--manifest "$out/manifest.csv" --protocol grouped --k 4 --preset small --select_by last
    --audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache" "${@:5}")
mtmm evaluate run --out "$out/majority" "${recipe[@]}" --labels majority
mtmm evaluate run --out "$out/votes" "${recipe[@]}" --labels votes
mtmm evaluate compare "$out/majority" "$out/votes" --out "$out/comparison"
mtmm evaluate risk "$out/majority" "$out/votes" --out "$out/risk"
mtmm evaluate run --out "$out/dropped" "${recipe[@]}" --labels votes --vote_dropout 0.33
mtmm evaluate compare "$out/votes" "$out/dropped" --split validation --out "$out/comparison_of_dropout"
