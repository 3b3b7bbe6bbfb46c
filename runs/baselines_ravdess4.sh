#!/usr/bin/env bash
# Linear baselines on four emotions of RAVDESS: 24 folds, one speaker left out in each.
# The encoders of the table are whisper-base's, cut to 6 s, and all-MiniLM-L6-v2 (not listened to).
# They run once per utterance; eGeMAPS is left out without openSMILE (pip install opensmile).
#   runs/baselines_ravdess4.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"

baseline() {
    mtmm baselines --manifest "$manifest" --protocol leave_one_speaker_out \
        --audio_encoder "$audio" --text_encoder "$text" --modalities audio \
        --cache_dir "$out/cache" --out "$out/$1" "${@:2}"
    mtmm evaluate table "$out/$1"
}

baseline last_layer --layers 6 # with `last` it would be encoded once more, into a smaller cache
baseline best_layer --layers best
baseline layers_2_to_4 --layers 2 3 4 --pooling mean_std
if python -c "import opensmile" 2>/dev/null; then
    baseline egemaps --features egemaps
fi
