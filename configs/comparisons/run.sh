#!/usr/bin/env bash
# Makes the pictures and tables of this folder again, on this machine, one process at a time; what is done is not done
# twice, and what was stopped goes on.
#
#   bash configs/comparisons/run.sh [layers] [stack] [growth] [layer_drop] [search] [orders] [diverging] [distill] [context]
#                                                                                              all if none is named
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

bible_in_sentencepiece() {
    text
    "$PYTHON" tools/prepare_data.py data/kjv.jsonl --output data/kjv --vocab-size 8192
}

growth() {
    bible_in_sentencepiece
    local schedule moments run=runs/comparison-growth
    for schedule in continue rewind rewarm restart; do event "$schedule" default; done
    for moments in transform copy reset; do event rewind "$moments"; done
    compare growth $run/rewind-{default,transform,copy,reset} $run/{rewarm,restart,continue}-default
}

pruned() { # STAGE HOW...: an answer of tools/prune.py
    local stage=runs/comparison-layer-drop/$1
    local answer=$stage${2#-}.json
    [[ -f $answer ]] && return
    "$PYTHON" tools/prune.py "$stage" "${@:2}" --samples 128 --json >"$answer.part"
    mv "$answer.part" "$answer"
}

layer_drop() {
    bible_in_sentencepiece
    train $here/layer_drop.yaml
    local stage run=runs/comparison-layer-drop
    for stage in whole layer-drop layers-4; do
        pruned $stage --keep every-other
        pruned $stage --layers 1
    done
    "$PYTHON" $here/pruned.py $here/layer_drop $run/{whole,layer-drop,layers-4}-{keep,layers}.json
    compare layer_drop $run/{whole,layers-4,layer-drop}
}

search() {
    bible_in_sentencepiece
    local run=runs/comparison-search
    "$PYTHON" tools/search_order.py $here/search.yaml --rate 0.1 --out $run
    mkdir -p $here/search
    cp $run/{probabilities.png,table.md} $here/search
}

orders() {
    bible_in_sentencepiece
    train $here/orders.yaml
    local run=runs/comparison-orders
    compare orders $run/{found,sandwich-2,par-5,interleaved}
}

diverging() {
    orders
    train $here/diverging.yaml
    compare diverging runs/comparison-diverging runs/comparison-orders/interleaved
}

distill() {
    bible_in_wordpiece
    train $here/distill.yaml
    local run=runs/comparison-distill
    sed -e '/name: pruned/,/distill:/{s/pruned.*/pruned-alone/;/distill:/d}' $here/distill.yaml >$run/pruned-alone.yaml
    bash slurm/stage.sh $run/pruned-alone.yaml pruned-alone
    local stages=("$run"/{teacher,assistant,logits,minilm,minilm2,by-assistant,pruned,pruned-alone,alone})
    compare distill "${stages[@]}"
    "$PYTHON" $here/probe.py $here/distill data/kjv.jsonl $run/more-masked "${stages[@]}"
}

context() {
    bible_in_sentencepiece
    train $here/context.yaml
    local run=runs/comparison-context
    compare context $run/{memory,span,memory-span,plain}
}

(($#)) || set -- layers stack growth layer_drop search orders diverging distill context
for part; do
    case $part in
        layers | stack | growth | layer_drop | search | orders | diverging | distill | context) "$part" ;;
        *) fail "$part: choose layers, stack, growth, layer_drop, search, orders, diverging, distill or context" ;;
    esac
done
