#!/usr/bin/env bash
# A pipeline of text (docs/pipelines.md), each of its phases an array of jobs that begins when the one before it is done.
#
#   bash slurm/prepare.sh [--here] PIPELINE
#
# With --here, inside a job, and where there is no sbatch, all of it runs here. Call it again after a failure: what is
# done is not done again, and what is queued is not submitted twice. slurm/site.sh says where jobs go; each task takes
# CAMBIUM_CPUS_PER_RANK processors, 1 if that is empty, and no GPU.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=${SLURM_JOB_ID:-}
[[ ${1:-} != --here ]] || { here=yes && shift; }
[[ $# -eq 1 && $1 != -* ]] || { sed -n '/^# A pipeline/,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2; exit 2; }
# shellcheck source=slurm/common.sh
source "$root/slurm/common.sh"

if [[ -n $here ]] || ! command -v sbatch >/dev/null; then
    once -m pretrain.cli.preparation "$1" --workers "$(nproc)"
    exit
fi
config=$(realpath "$1")
output=$(once -m pretrain.cli.preparation "$config" --where)
mkdir -p "$output.log"
exec 9>"$output.log/.lock"
flock 9 # of two at once, the second finds the jobs of the first
queued=$(squeue --me --noheader --format='%A|%k' | sed -n "s^|$output\$^^p" | sort -u | paste -sd' ')
if [[ -n $queued ]]; then
    echo "$output is in the queue already: jobs $queued"
    exit
fi
begun=$(once -m pretrain.cli.preparation "$config" --begin) # now that no task of it runs
if [[ -z $begun ]]; then
    echo "$output is there already"
    exit
fi
mapfile -t phases <<<"$begun"
most=$(scontrol show config | sed -n 's/^MaxArraySize *= *//p')
previous=''
for phase in "${phases[@]}"; do
    IFS=$'\t' read -r name tasks <<<"$phase"
    ((tasks <= most - 1)) || fail "$config: $name has $tasks tasks, and SLURM's MaxArraySize is $most: give fewer tasks"
    printf -v command '%q ' srun --ntasks=1 "${step_options[@]}" "${in_job[@]}" -m pretrain.cli.preparation "$config" --task
    options=(--array="0-$((tasks - 1))" --ntasks=1 --cpus-per-task="${CAMBIUM_CPUS_PER_RANK:-1}" --requeue)
    options+=(--job-name="cambium-$name" --comment="$output" --output="${output//%/%%}.log/$name-%a.log" --open-mode=append)
    [[ -z $previous ]] || options+=(--dependency="afterok:$previous" --kill-on-invalid-dep=yes)
    previous=$(sbatch --parsable "${options[@]}" --wrap "$command$name:\$SLURM_ARRAY_TASK_ID")
    previous=${previous%%;*} # a cluster's name may follow
    echo "$name is job $previous: $tasks tasks, $output.log/$name-*.log"
done
