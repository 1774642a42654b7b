#!/usr/bin/env bash
# Makes the pictures and tables of this folder again, on this machine, one process at a time; what is done is not done
# twice, and what was stopped goes on.
#
#   bash configs/comparisons/run.sh [layers] [stack] [growth]        all three if none is named
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
# shellcheck source=slurm/common.sh
source slurm/common.sh
export OMP_NUM_THREADS=1 # two threads add in another order
here=configs/comparisons

text() {
    [[ -f data/kjv.jsonl ]] || "$PYTHON" tools/demo_corpus.py data/kjv.jsonl
}

bible_in_wordpiece() {
    text
    "$PYTHON" tools/prepare_data.py data/kjv.jsonl --split "train[:80%]" --wordpiece --vocab-size 400 \
        --output data/kjv-wordpiece
}

train() { bash slurm/curriculum.sh --here "$1"; }

compare() { # OUT RUN...
    "$PYTHON" tools/compare.py "${@:2}" --out "$here/$1"
}

layers() {
    bible_in_wordpiece
    train $here/layers.yaml
    local run=runs/comparison-layers
    compare layers $run/layers-2 $run/layers-4 $run/layers-8
    compare increase $run/layers-1-to-10 $run/layers-12
}

stack() {
    bible_in_wordpiece
    train $here/stack.yaml
    bash slurm/stage.sh $here/layers.yaml layers-12
    compare stack runs/comparison-stack runs/comparison-layers/layers-12
}

event() { # SCHEDULE MOMENTS: growth.yaml with this growth event
    mkdir -p runs/comparison-growth
    sed -e "s/^name: .*/name: $1-$2/" -e "s/{schedule: .*}/{schedule: $1, moments: $2}/" $here/growth.yaml \
        >"runs/comparison-growth/$1-$2.yaml"
    train "runs/comparison-growth/$1-$2.yaml"
}

growth() {
    text
    "$PYTHON" tools/prepare_data.py data/kjv.jsonl --output data/kjv --vocab-size 8192
    local schedule moments run=runs/comparison-growth
    for schedule in continue rewind rewarm restart; do event "$schedule" default; done
    for moments in transform copy reset; do event rewind "$moments"; done
    compare growth $run/rewind-{default,transform,copy,reset} $run/{rewarm,restart,continue}-default
}

(($#)) || set -- layers stack growth
for part; do
    case $part in
        layers | stack | growth) "$part" ;;
        *) fail "$part: choose layers, stack or growth" ;;
    esac
done
