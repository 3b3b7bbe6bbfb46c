#!/usr/bin/env bash
# From open data to a published model without a network: a Hub on the loopback has both encoders, the
# model is trained with their Hub ids as runs/open_small.sh does, published there as its heads alone, and
# answers in a process that has nothing but the Hub. Half an hour of two cores. At last it reads MELD's
# test lines, of which it has seen none: their sentiment is valence. SHARED has ravdess4/, urdu/, emobank/,
# meld/ and encoders/; FLAGS are those of training, such as --epochs 1 for a trial.
#   runs/local_small.sh SHARED OUT [FLAGS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
shared=$(realpath "${1:?give the folder of corpora and encoders}")
out=$(realpath -m "${2:?give a folder for the results}")
cd "$(dirname "$0")/.."
mkdir -p "$out"

rm -f "$out/hub_address"
PYTHONPATH=tests python - "$shared/encoders" "$out/hub_address" <<'PY' &
import os
import sys
import time
from pathlib import Path

from hub_server import HubServer, files_in

encoders, address = map(Path, sys.argv[1:])
ids = {"whisper-base-6s": "openai/whisper-base", "all-MiniLM-L6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
with HubServer() as hub:
    for folder, name in ids.items():
        hub.put(name, files_in(encoders / folder))
    address.with_suffix(".tmp").write_text(hub.url)
    os.replace(address.with_suffix(".tmp"), address)
    while os.getppid() > 1:
        time.sleep(1)
PY
trap 'kill %1' EXIT
for _ in {1..120}; do [ -f "$out/hub_address" ] && break; sleep 1; done
HF_ENDPOINT=$(cat "$out/hub_address")
export HF_ENDPOINT HF_TOKEN=hf_the_writers_token HF_HOME="$out/hub" HF_HUB_DISABLE_XET=1 NO_PROXY=127.0.0.1

runs/open_small.sh "$shared/ravdess4/manifest.csv" "$shared/emobank" "$shared/urdu/manifest.csv" \
    openai/whisper-base sentence-transformers/all-MiniLM-L6-v2 "$out" "$out/checkpoint" "${@:3}"
mtmm publish "$out/model" writer/open_small --heads_only --licence cc-by-nc-sa-4.0 --tag v1 \
    --corpus_name "RAVDESS and EmoBank" --corpus_licence "RAVDESS CC BY-NC-SA 4.0, EmoBank CC BY-SA 4.0"
python - "$shared/meld" "$out/meld.csv" <<'PY'
import sys
from dataclasses import replace

from mtmm_training.data.corpora import read_corpus
from mtmm_training.data.manifest import write_manifest

lines = read_corpus("meld", sys.argv[1], official_split=True, sentiment_as_valence=True)
write_manifest([replace(u, emotion=None) for u in lines if u.split == "test"], sys.argv[2])
PY
mtmm score writer/open_small "$out/meld.csv" --revision v1 --out "$out/meld"
cd "$out"
HF_HOME="$out/new_home" python -I - "$shared" <<'PY'
import sys

from huggingface_hub import HfApi
from transformers import pipeline

print(*HfApi().list_repo_files("writer/open_small"))
predict = pipeline(model="writer/open_small", revision="v1", trust_remote_code=True)
recording = f"{sys.argv[1]}/ravdess4/audio/actor_01/03-01-05-02-01-01-01.flac"
print(predict({"audio": recording, "text": "Kids are talking by the door"}))
PY
