#!/usr/bin/env bash
# Four emotions of RAVDESS, 24 folds, one speaker left out in each: frozen encoders, the small recipe with
# a linear path, answered with references of each test speaker's own unlabelled recordings; then the curve
# over how many recordings of which emotions.
#   runs/references_ravdess4.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [JOBS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"
jobs=${5:-2}

mtmm evaluate run --out "$out/referenced" --jobs "$jobs" --cache_dir "$out/cache" \
    --manifest "$manifest" --protocol leave_one_speaker_out \
    --audio_encoder "$audio" --text_encoder "$text" --preset small --select_by last \
    --class_weights balanced --linear_path --reference speaker
mtmm study references --run "$out/referenced" --cache_dir "$out/cache"
