#!/usr/bin/env bash
# What a trained run says of sounds unlike its training data: noise, hum, a tone, clicks; numbers read by
# espeak-ng (a Debian package) in four languages, and whispered; and further recordings, such as music.
# The least confidence is that for one wrong answer in ten, and is saved in the run's model.
#   runs/sounds.sh RUN OUT [RECORDING ...]
set -euo pipefail
. "$(dirname "$0")/help.sh"
run=$(realpath "${1:?give the folder of a run}")
out=$(realpath -m "${2:?give a folder for the sounds}")
mkdir -p "$out"

python - "$out" <<'PY'
import sys

import numpy as np
import soundfile

rate = 16000
times, draw = np.arange(4 * rate) / rate, np.random.default_rng(0)
sounds = {
    "noise": draw.normal(size=len(times)),
    "hum": sum(np.sin(2 * np.pi * 50 * n * times) / n for n in range(1, 9)),
    "tone": np.sin(2 * np.pi * 440 * times),
    "clicks": (np.arange(len(times)) % (rate // 5) < rate // 100) * 4.0,
}
for name, sound in sounds.items():
    soundfile.write(f"{sys.argv[1]}/{name}.wav", 0.1 * sound, rate)
PY
for voice in en de ur cmn en+whisper de+whisperf; do
    espeak-ng -v "$voice" -w "$out/speech_$voice.wav" "1 2 3 4 5 6 7 8 9"
done
mtmm evaluate risk "$run" --save --out "$out/risk"
mtmm predict "$out"/*.wav "${@:3}" --model "$run/model" --csv
