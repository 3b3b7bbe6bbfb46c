#!/usr/bin/env bash
# The paper's tables on IEMOCAP (licensed; the full release as distributed), 10 folds per variant.
# Frozen HuBERT-large and DeBERTaV3-large are run once per utterance; every variant and fold then
# reads their states from OUT/ablation/cache. FLAGS are those of training, such as other encoders.
#   runs/iemocap.sh IEMOCAP_full_release OUT [JOBS [FLAGS]]
set -euo pipefail
. "$(dirname "$0")/help.sh"
corpus=$(realpath "${1:?give the folder of IEMOCAP_full_release}")
out=$(realpath -m "${2:?give a folder for the results}")
jobs=${3:-1}
cd "$(dirname "$0")/.."
recipe=(--corpus iemocap --corpus_dir "$corpus" --jobs "$jobs")
recipe+=(--audio_encoder facebook/hubert-large-ll60k --text_encoder microsoft/deberta-v3-large "${@:4}")

# Multi-task against each task and modality alone, the parts of the fusion, layers, bridge tokens.
mtmm ablation --out "$out/ablation" --protocol speaker "${recipe[@]}"

# One session out (5 folds), the other protocol in use.
mtmm evaluate run --out "$out/session" --protocol session --preset paper \
    --cache_dir "$out/ablation/cache" "${recipe[@]}"
