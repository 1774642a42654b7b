#!/usr/bin/env bash
# Trains what the demo is compared with, from scratch, and records it in configs/study/demo; goes on where it stopped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
# shellcheck source=slurm/common.sh
source slurm/common.sh
[[ -f data/kjv.jsonl ]] || "$PYTHON" tools/demo_corpus.py data/kjv.jsonl
"$PYTHON" tools/prepare_data.py data/kjv.jsonl --output data/kjv --vocab-size 8192
"$PYTHON" tools/study.py configs/study/demo.yaml --out configs/study/demo "$@"
for run in runs/study-demo/*/whole; do
    into=configs/study/demo/$(basename "$(dirname "$run")")/whole
    mkdir -p "$into"
    cp "$run/config.yaml" "$run/metrics.jsonl" "$into"
done
