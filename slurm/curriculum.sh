#!/usr/bin/env bash
# All stages of a curriculum, one after the other. Stages that are finished are skipped.
#
#   bash slurm/curriculum.sh [--here] CONFIG
#
# Where there is sbatch they are submitted as a chain of dependent jobs; with --here, inside a job, and where there is
# none, they run here. sbatch's own variables (SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, ...) say where;
# CAMBIUM_RANKS_PER_NODE (8) is the number of GPUs of a node, and CAMBIUM_GPUS=0 asks for none. Call it again at any time:
# what is done is skipped, and a stage that is queued or running is not submitted twice.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=${SLURM_JOB_ID:-}
if [[ ${1:-} == --here ]]; then here=yes && shift; fi
[[ $# == 1 && $1 != -* ]] || { sed -n '/^# All stages/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"
config=$1

facts=$("$PYTHON" -m pretrain.stages "$config")

run_here() {
    while IFS=$'\t' read -r name ranks _ state folder <&3; do
        if [[ $state == "done" ]]; then
            echo "== $name is finished already"
            continue
        fi
        echo "== $name: $ranks ranks, $folder"
        bash "$root/slurm/stage.sh" "$config" "$name"
        [[ -f $folder/DONE ]] || exit 1 # stopped on request
    done 3<<<"$facts"
}

submit() {
    local per_node=${CAMBIUM_RANKS_PER_NODE:-8} previous='' name ranks state folder tasks job options
    while IFS=$'\t' read -r name ranks _ state folder <&3; do
        if [[ $state == "done" ]]; then
            echo "$name is finished already"
            continue
        fi
        job_name="cambium-$(basename "$(dirname "$folder")")-$name"
        job=$(squeue --me --noheader --format=%A --name="$job_name" | head -n 1)
        if [[ -n $job ]]; then
            echo "$name is job $job already"
        else
            tasks=$((ranks < per_node ? ranks : per_node))
            ((ranks % tasks == 0)) || fail "$name: $ranks ranks do not fill nodes of $tasks; change its parallel section"
            options=(--parsable --job-name="$job_name" --nodes=$((ranks / tasks)) --ntasks-per-node="$tasks")
            [[ ${CAMBIUM_GPUS:-1} == 0 ]] || options+=(--gpus-per-node="$tasks")
            [[ -z $previous ]] || options+=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
            job=$(sbatch "${options[@]}" "$root/slurm/stage.sh" "$config" "$name")
            job=${job%%;*} # a cluster's name may follow
            echo "$name is job $job: $((ranks / tasks)) nodes x $tasks ranks"
        fi
        previous=$job
    done 3<<<"$facts"
}

if [[ -z $here ]] && command -v sbatch >/dev/null; then submit; else run_here; fi
