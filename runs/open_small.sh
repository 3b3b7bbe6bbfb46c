#!/usr/bin/env bash
# checkpoints/open_small: one small model of RAVDESS's recordings (emotions) and EmoBank's sentences
# (valence, arousal), with whisper-base and all-MiniLM-L6-v2 frozen. Four folds of a quarter of all
# speakers and documents give its numbers. Then a model of all of RAVDESS trains, two actors of whom
# validate; URDU's speakers, another language, and EmoBank's own test sentences are its test. Its heads
# go to CHECKPOINT, checkpoints/open_small if not given; the encoders stay where they are. More flags
# are those of training, such as --epochs 1 for a trial.
#   runs/open_small.sh RAVDESS_MANIFEST EMOBANK_FOLDER URDU_MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT [CHECKPOINT [FLAGS]]
set -euo pipefail
. "$(dirname "$0")/help.sh"
ravdess=$(realpath "${1:?give the manifest of RAVDESS}")
emobank=$(realpath "${2:?give the folder of emobank.csv}")
urdu=$(realpath "${3:?give the manifest of URDU}")
audio=${4:?give the audio encoder: a folder, or openai/whisper-base}
text=${5:?give the text encoder: a folder, or sentence-transformers/all-MiniLM-L6-v2}
out=$(realpath -m "${6:?give a folder for the results}")
checkpoint=$(realpath -m "${7:-$(dirname "$0")/../checkpoints/open_small}")
cd "$(dirname "$0")/.."

mkdir -p "$out"
python - "$ravdess" "$emobank" "$urdu" "$out" <<'PY'
import sys
from dataclasses import replace
from pathlib import Path
from mtmm_training.data.corpora import read_corpus
from mtmm_training.data.manifest import read_manifest, write_manifest

ravdess, emobank, urdu, out = map(Path, sys.argv[1:])
validate = {"actor_19": "validation", "actor_20": "validation"}
heard = [replace(u, corpus="ravdess", split=validate.get(u.speaker_id, "train")) for u in read_manifest(ravdess)]
write_manifest(heard, out / "ravdess.csv")
write_manifest(read_corpus("emobank", emobank, official_split=True), out / "emobank.csv")
write_manifest([replace(u, corpus="urdu", split="test") for u in read_manifest(urdu)], out / "urdu.csv")
PY

recipe=(--audio_encoder "$audio" --text_encoder "$text" --cache_dir "$out/cache")
if [ ! -d "$audio" ]; then recipe+=(--model_config '{"audio_window_s": 6}'); fi
recipe+=(--preset small --augment --reference speaker --corpus_exponent 0.5 --batch_size 32 --epochs 12)
recipe+=("${@:8}")
mtmm evaluate run --out "$out/folds" --manifest "$out/ravdess.csv" "$out/emobank.csv" \
    --protocol grouped --k 4 "${recipe[@]}"
[ -f "$out/model/results.json" ] || mtmm train --out "$out/model" --resume True \
    --manifest "$out/ravdess.csv" "$out/emobank.csv" "$out/urdu.csv" --protocol official "${recipe[@]}"
for run in folds model; do
    [ -f "$out/$run/references/references.csv" ] || mtmm study references --run "$out/$run" --cache_dir "$out/cache"
done

rm -rf "$out/staged"
mtmm publish "$out/model" someone/open_small --heads_only --dry_run --out "$out/staged" \
    --base_model openai/whisper-base sentence-transformers/all-MiniLM-L6-v2 --licence cc-by-nc-sa-4.0 \
    --corpus_name "RAVDESS and EmoBank" --corpus_licence "RAVDESS CC BY-NC-SA 4.0, EmoBank CC BY-SA 4.0"
python - "$out" "$checkpoint" <<'PY'
import json
import re
import shutil
import sys
from pathlib import Path

import pandas as pd

out, checkpoint = map(Path, sys.argv[1:])
shutil.rmtree(checkpoint, ignore_errors=True)
shutil.copytree(out / "staged", checkpoint, ignore=shutil.ignore_patterns("figures", "results.json"))  # 2 MiB in all
card = (out / "staged" / "README.md").read_text().replace('"someone/open_small"', '"checkpoints/open_small"')
card = re.sub(r"!\[[^]]*\]\(figures/.*\n+", "", card)
card = re.sub(r"All numbers, by epoch.*\n", "", card)

rows = ["| corpus | heard of each speaker | UAR, 95 % interval by speaker |", "|---|---|---|"]
for name, run in (("RAVDESS, four folds", "folds"), ("URDU, another language, none of it in training", "model")):
    table = pd.read_csv(out / run / "references" / "references.csv")
    for size, words in ((0, "nothing"), (8, "8 recordings"), (None, "all recordings")):
        row = table[(table["kind"] == "random") & (table["size"].isna() if size is None else table["size"] == size)]
        uar, low, high = row[["UAR", "UAR_low", "UAR_high"]].iloc[0]
        rows.append(f"| {name} | {words} | {uar:.3f} [{low:.3f}, {high:.3f}] |")
ccc = json.loads((out / "model" / "results.json").read_text())["by_corpus"]["emobank"]["CCC"]
rows += ["", "| corpus | CCC valence | CCC arousal |", "|---|---|---|"]
rows += [f"| EmoBank, its own test sentences | {ccc['valence']:.3f} | {ccc['arousal']:.3f} |"]
section = """## Results by corpus

A speaker's unlabelled recordings may be given as a reference: `predict(x, reference=...)`. In the folds six actors in
each were not heard in training; the model here has heard all. The numbers of the table above mix the two test corpora.

{rows}

The emotion was learned from recordings alone, of two sentences, and valence and arousal from written sentences alone.
So trust the emotion where there is a recording, and valence and arousal where there are words.

## Why this licence

RAVDESS is CC BY-NC-SA 4.0 (Livingstone & Russo 2018) and EmoBank CC BY-SA 4.0 (Buechel & Hahn 2017). The weights are
treated as adapted from both, so the stricter one holds: no commercial use, and the same licence for what is made of
them. whisper-base (MIT) and all-MiniLM-L6-v2 (Apache-2.0) are not in this folder. URDU (Latif et al. 2018, for research)
was tested on alone.

""".replace("{rows}", "\n".join(rows))
(checkpoint / "README.md").write_text(card.replace("## Limits\n", section + "## Limits\n", 1))
size = sum(path.stat().st_size for path in checkpoint.iterdir())
print(f"{checkpoint}: {size:,} bytes")
PY
