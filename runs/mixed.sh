#!/usr/bin/env bash
# One model of two corpora that share no label: RAVDESS has recordings with emotions, EmoBank has
# sentences with valence and arousal. A corpus of n utterances gets a share of each epoch in
# proportion to the root of n. Against the models of one corpus each, on the same test splits:
# actors 21 to 24 (19 and 20 validate), and EmoBank's own.
#   runs/mixed.sh RAVDESS_MANIFEST EMOBANK_FOLDER AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
ravdess=$(realpath "${1:?give the manifest of RAVDESS}")
emobank=$(realpath "${2:?give the folder of emobank.csv}")
audio=$(realpath "${3:?give the folder of the audio encoder}")
text=$(realpath "${4:?give the folder of the text encoder}")
out=$(realpath -m "${5:?give a folder for the results}")
cd "$(dirname "$0")/.."

mkdir -p "$out"
python - "$ravdess" "$emobank" "$out" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path
from mtmm_training.data.corpora import read_corpus
from mtmm_training.data.manifest import read_manifest, write_manifest

ravdess, emobank, out = map(Path, sys.argv[1:])
splits = {f"actor_{n}": "validation" for n in (19, 20)} | {f"actor_{n}": "test" for n in range(21, 25)}
acted = [replace(u, corpus="ravdess", split=splits.get(u.speaker_id, "train")) for u in read_manifest(ravdess)]
write_manifest(acted, out / "ravdess.csv")
write_manifest(read_corpus("emobank", emobank, official_split=True), out / "emobank.csv")
PY

common=(--protocol official --audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
common+=(--preset small --augment)  # none, as recordings and sentences take turns
mtmm evaluate run --out "$out/ravdess" --manifest "$out/ravdess.csv" \
    "${common[@]}" --epochs 40
mtmm evaluate run --out "$out/emobank" --manifest "$out/emobank.csv" \
    "${common[@]}" --batch_size 64 --epochs 10
mtmm evaluate run --out "$out/both" \
    --manifest "$out/ravdess.csv" "$out/emobank.csv" "${common[@]}" \
    --corpus_exponent 0.5 --batch_size 32 --epochs 12

# The model of both, seen on each corpus alone, paired with that corpus's own model.
for corpus in ravdess emobank; do
    mtmm evaluate compare "$out/$corpus" "$out/both" --corpus "$corpus" --out "$out/comparison_$corpus"
done
