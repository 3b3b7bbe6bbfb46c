#!/usr/bin/env bash
# Four emotions of RAVDESS, actors 1-16 to train, 17-20 to validate: a call of two actors that training
# did not hear, followed by channel and by turn, without and with their own references; and embeddings
# of actors 21-24 under a logistic regression, one actor left out in each fold.
#   runs/speakers_ravdess4.sh MANIFEST AUDIO_ENCODER TEXT_ENCODER OUT
set -euo pipefail
. "$(dirname "$0")/help.sh"
. "$(dirname "$0")/speech.sh"

[ -f "$out/run/results.json" ] || mtmm train --out "$out/run" --resume True \
    --manifest "$manifest" --validation_speakers actor_17 actor_18 actor_19 actor_20 \
    --test_speakers actor_21 actor_22 actor_23 actor_24 --cache_dir "$out/cache" --preset small --augment \
    --modalities audio --reference speaker --linear_path --audio_encoder "$audio" --text_encoder "$text"
mtmm study call --run "$out/run" --out "$out/call"
python - "$manifest" "$out/unheard.csv" <<'PY'
import sys
from pathlib import Path

import pandas as pd

table = pd.read_csv(sys.argv[1])
table = table[table["speaker"] >= "actor_21"]  # whom training did not hear
table["audio"] = [str(Path(sys.argv[1]).parent / audio) for audio in table["audio"]]
table.to_csv(sys.argv[2], index=False)
PY
mtmm embed "$out/unheard.csv" --model "$out/run" --out "$out/embeddings.parquet"
mtmm embed "$out/unheard.csv" --model "$out/run" --reference speaker --out "$out/embeddings_referenced.parquet"
python - "$out/unheard.csv" "$out"/embeddings*.parquet <<'PY'
import sys

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import LeaveOneGroupOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

labels = pd.read_csv(sys.argv[1]).set_index("audio")
for path in sys.argv[2:]:
    table = pd.read_parquet(path).set_index("id").loc[labels.index]
    for which in ("fused", "audio"):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000, class_weight="balanced"))
        vectors, folds = np.stack(table[which]), LeaveOneGroupOut()
        said = cross_val_predict(model, vectors, labels["emotion"], groups=labels["speaker"], cv=folds)
        print(path, which, f"UAR {balanced_accuracy_score(labels['emotion'], said):.3f}")
PY
