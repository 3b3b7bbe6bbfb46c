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
. runs/labels.sh
