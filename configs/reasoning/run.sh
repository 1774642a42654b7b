#!/usr/bin/env bash
# GPT-2, Convolution Attention and Progressive Diverging on generated problems of mathematics, in a size for two CPU
# cores, one process at a time: makes table.md and loss.png of this folder again. What is done is not done twice, and
# what was stopped goes on. It needs the extra maths.
#
#   bash configs/reasoning/run.sh
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$root"
# shellcheck source=slurm/common.sh
source slurm/common.sh
export OMP_NUM_THREADS=1 # two threads add in another order
here=configs/reasoning

problems() { # NAME DOCUMENTS SEED PREPARED-AS...: generated, then a corpus
    [[ -f data/$1.jsonl ]] || "$PYTHON" tools/maths_corpus.py "data/$1.jsonl" --documents "$2" --seed "$3"
    "$PYTHON" tools/prepare_data.py "data/$1.jsonl" --output "data/$1" "${@:4}"
}

problems problems 700 1 --vocab-size 512
problems problems-test 70 2 --tokenizer data/problems/tokenizer/tokenizer.model # other seeds: other problems
for model in gpt2 convolution_attention diverging; do bash slurm/curriculum.sh --here $here/small/$model.yaml; done
"$PYTHON" $here/table.py $here --test data/problems-test runs/reasoning-{gpt2,convolution,diverging}
