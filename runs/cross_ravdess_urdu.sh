#!/usr/bin/env bash
# Four emotions across corpora: trained on RAVDESS and tested on URDU, and the other way, without a
# reference and with the tested corpus's own unlabelled recordings, as those of one domain and as those of
# each speaker too; then URDU within itself, and which answers are unsure.
#   runs/cross_ravdess_urdu.sh RAVDESS_MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT URDU_MANIFEST
set -euo pipefail
. "$(dirname "$0")/help.sh"
urdu=$(realpath "${5:?give the manifest of URDU}")
. "$(dirname "$0")/speech.sh"
recipe=(--protocol grouped --k 5 --preset small --select_by last --linear_path --class_weights balanced --modalities audio
    --audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
for kind in domain speaker; do
    mtmm evaluate cross --out "$out/$kind" --corpora "ravdess=$manifest" "urdu=$urdu" "${recipe[@]}" --reference "$kind"
done
mtmm evaluate run --out "$out/urdu" --manifest "$urdu" "${recipe[@]}" --reference speaker
# What is unsure of each corpus, by the model of RAVDESS (fold-00) and that of URDU (fold-01).
for corpus in ravdess urdu; do
    for error in 0.1 0.2; do
        mtmm evaluate risk "$out/domain/fold-00" "$out/domain/fold-01" --error "$error" --corpus "$corpus" --out "$out/risk_$corpus"
    done
done
