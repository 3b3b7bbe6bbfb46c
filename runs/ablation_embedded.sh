#!/usr/bin/env bash
# The paper's ablations on the embedded corpus, made on the spot: about 30 minutes of one core's time.
#   runs/ablation_embedded.sh OUT [JOBS]
set -euo pipefail
. "$(dirname "$0")/help.sh"
out=$(realpath -m "${1:?give a folder for the results}")
jobs=${2:-2}
cd "$(dirname "$0")/.."
OMP_NUM_THREADS=1 mtmm ablation --out "$out" --jobs "$jobs"
