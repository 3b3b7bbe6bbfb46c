#!/usr/bin/env bash
# A model of openly licensed English for whoever has a network, a GPU and an evening: WavLM-large and
# DeBERTa-v3-base frozen, emotions of RAVDESS and of CREMA-D with its listeners' votes, valence and
# arousal of EmoBank. Folds of a fifth of all speakers, each corpus against the other, a model of all,
# its risk, an export, and a dry run of publishing. Every step goes on where it was stopped.
# A corpus that is there already: RAVDESS=FOLDER, CREMA_D=FOLDER, EMOBANK=FOLDER before the command.
# The addresses could not be tried where this was written, and have no checksums; the readers check the
# totals of what arrives. NAME is owner/name on the Hub; FLAGS are those of training.
#   runs/open_english.sh OUT NAME [FLAGS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
out=$(realpath -m "${1:?give a folder for the results}")
name=${2:?give the name of the repository, owner/name}
cd "$(dirname "$0")/.."
cat <<END
This downloads, unless folders are given: RAVDESS 0.2 GB (CC BY-NC-SA 4.0), CREMA-D 1 GB (ODbL), EmoBank
2 MB (CC BY-SA 4.0), WavLM-large 1.3 GB and DeBERTa-v3-base 0.4 GB (both MIT). It keeps 60 GB of states
in $out/cache, and takes hours on a GPU. RAVDESS's licence makes the weights CC BY-NC-SA 4.0.
END
mkdir -p "$out/data"
fetch() { [ -f "$out/data/$2" ] || { curl -fL -C - -o "$out/data/$2.part" "$1" && mv "$out/data/$2.part" "$out/data/$2"; }; }
if [ -z "${RAVDESS:-}" ]; then
    fetch "https://zenodo.org/records/1188976/files/Audio_Speech_Actors_01-24.zip" ravdess.zip
    RAVDESS=$out/data/ravdess; python -m zipfile -e "$out/data/ravdess.zip" "$RAVDESS"
fi
if [ -z "${EMOBANK:-}" ]; then
    EMOBANK=$out/data; fetch "https://raw.githubusercontent.com/JULIELab/EmoBank/master/corpus/emobank.csv" emobank.csv
fi
if [ -z "${CREMA_D:-}" ]; then
    CREMA_D=$out/data/crema_d  # needs git lfs
    [ -d "$CREMA_D" ] || git clone --depth 1 https://github.com/CheyneyComputerScience/CREMA-D "$CREMA_D"
fi
python - "$RAVDESS" "$CREMA_D" "$EMOBANK" "$out" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path
from mtmm_training.data.corpora import read_corpus
from mtmm_training.data.manifest import write_manifest

ravdess, crema_d, emobank, out = map(Path, sys.argv[1:])
test = {f"ravdess_actor_{n}" for n in range(21, 25)} | {f"crema_d_{n}" for n in range(1077, 1092)}
validation = {f"ravdess_actor_{n}" for n in (19, 20)} | {f"crema_d_{n}" for n in range(1067, 1077)}
for name, folder in (("ravdess", ravdess), ("crema_d", crema_d)):
    acted = [
        replace(u, split="test" if u.speaker_id in test else "validation" if u.speaker_id in validation else "train")
        for u in read_corpus(name, folder)
    ]
    write_manifest(acted, out / f"{name}.csv")
write_manifest(read_corpus("emobank", emobank, official_split=True), out / "emobank.csv")
PY

data=(--manifest "$out/ravdess.csv" "$out/crema_d.csv" "$out/emobank.csv")
recipe=(--audio_encoder microsoft/wavlm-large --text_encoder microsoft/deberta-v3-base --cache_dir "$out/cache")
recipe+=(--preset small --augment --reference speaker --batch_size 32 --epochs 12)
mtmm evaluate run --out "$out/folds" "${data[@]}" --protocol grouped --k 5 "${recipe[@]}" --corpus_exponent 0.5 "${@:3}"
mtmm evaluate cross --out "$out/cross" --corpora "$out/ravdess.csv" "$out/crema_d.csv" "${recipe[@]}" --modalities audio "${@:3}"
[ -f "$out/model/results.json" ] || mtmm train --out "$out/model" --resume True "${data[@]}" --protocol official \
    "${recipe[@]}" --corpus_exponent 0.5 "${@:3}"
mtmm evaluate risk "$out/folds" --error 0.1
mtmm study references --run "$out/model" --cache_dir "$out/cache"
mtmm export "$out/model/model" "$out/exported" --run "$out/model"
mtmm publish "$out/model" "$name" --heads_only --dry_run --licence cc-by-nc-sa-4.0 --out "$out/staged" \
    --corpus_name "RAVDESS, CREMA-D and EmoBank" \
    --corpus_licence "RAVDESS CC BY-NC-SA 4.0, CREMA-D ODbL, EmoBank CC BY-SA 4.0"
echo "look at $out/staged, then publish without --dry_run: hf auth login, and the last command"
