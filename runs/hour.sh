#!/usr/bin/env bash
# An hour of speech with known changes of emotion, and how well a model's timeline finds them: RAVDESS's
# four emotions, actors 1-18 to train and 19-20 to validate; the hour is of actors 21-24 only.
# A finished run in OUT/run is taken as it is.
#   runs/hour.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [SECONDS [FLAGS OF TRAINING]]
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"
length=${5:-3600}

[ -f "$out/run/results.json" ] || mtmm train --out "$out/run" --resume True \
    --manifest "$manifest" --validation_speakers actor_19 actor_20 \
    --test_speakers actor_21 actor_22 actor_23 actor_24 --cache_dir "$out/cache" \
    --audio_encoder "$audio" --text_encoder "$text" --preset small "${@:6}"
mtmm study hour --run "$out/run" --out "$out/hour" --seconds "$length"
